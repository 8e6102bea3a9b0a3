package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/run"
)

const (
	maxSeen      = 1024
	maxPeersFile = 256 << 10
	joinsAtOnce  = 4
	lookupBound  = 5 * time.Second
	failurePause = 10 * time.Minute // between two lines about one address that cannot be joined
)

// target is somebody to join.
type target struct {
	at         netip.AddrPort
	configured string // as the configuration has it; "": a member that was seen before
}

// targets are those that should be members and are not: the configured ones, whose names are resolved anew each time, and all that
// were seen within a day.
func (g *Gossip) targets(ctx context.Context) []target {
	var out []target
	for _, entry := range g.o.Join {
		for _, at := range g.resolve(ctx, entry) {
			out = append(out, target{at, entry})
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for at, when := range g.seen {
		if time.Since(when) > kept {
			delete(g.seen, at)
			continue
		}
		out = append(out, target{at: at})
	}
	present := map[netip.AddrPort]bool{g.advertise: true}
	for _, n := range g.table.nodes {
		if n.alive {
			present[n.at] = true
			if n.name != g.name {
				g.seenAt(n.at)
			}
		}
	}
	return slices.DeleteFunc(out, func(t target) bool {
		drop := present[t.at]
		present[t.at] = true
		return drop
	})
}

// seenAt remembers where a member is. g.mu is held.
func (g *Gossip) seenAt(at netip.AddrPort) {
	if _, known := g.seen[at]; !known && len(g.seen) >= maxSeen {
		var oldest netip.AddrPort
		for a, when := range g.seen {
			if !oldest.IsValid() || when.Before(g.seen[oldest]) {
				oldest = a
			}
		}
		delete(g.seen, oldest)
	}
	g.seen[at] = time.Now()
}

func (g *Gossip) resolve(ctx context.Context, entry string) []netip.AddrPort {
	host, port, err := contract.SplitJoin(entry)
	if err != nil {
		if g.once("join "+entry, failurePause) {
			g.log.Warn("an entry of gossip.join cannot be used", "entry", entry, "because", err.Error())
		}
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip, port)}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupBound)
	defer cancel()
	ips, err := g.o.Resolve(ctx, host)
	if err != nil && g.once("join "+entry, failurePause) {
		g.log.Warn("the name of an agent to join is not known; it is asked for again and again", "entry", entry, "because", err.Error())
	}
	out := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips[:min(len(ips), 32)] {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), port))
	}
	return out
}

// join exchanges members with each target, a few at a time, and says what is wrong with those where it does not work.
func (g *Gossip) join(ctx context.Context, targets []target) {
	var all sync.WaitGroup
	turns := make(chan struct{}, joinsAtOnce)
	for _, t := range targets {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		all.Go(func() {
			defer func() { <-turns }()
			_, err := g.list.Join([]string{t.at.String()})
			g.o.Metrics.GossipJoin(err == nil)
			if err == nil || ctx.Err() != nil {
				return
			}
			if t.configured != "" && g.once("join "+t.at.String(), failurePause) {
				g.log.Warn("an agent cannot be joined; it is tried again and again", "address", t.at.String(), "entry", t.configured, "because", explain(err, g.advertise, t.at))
			}
		})
	}
	all.Wait()
}

// explain says what an operator can do about an agent that cannot be joined.
func explain(err error, self, to netip.AddrPort) string {
	text := err.Error() // memberlist joins errors into text, so only that is left of most
	switch {
	case strings.Contains(text, "no installed keys could decrypt"), strings.Contains(text, "encryption is configured but"), strings.Contains(text, "is encrypted and encryption is not configured"):
		return "its keys are others than those of this agent; gossip.key and secrets/cluster.key must be the same on all machines"
	case errors.Is(err, syscall.ECONNREFUSED), strings.Contains(text, "connection refused"):
		return "nothing listens there; is the agent running, and does its gossip.bind name that address and port?"
	case self.Addr().IsLoopback() && !to.Addr().IsLoopback():
		return "this agent's gossip.bind is on loopback, which no other machine can reach; set it to this machine's address"
	case strings.Contains(text, "i/o timeout"), strings.Contains(text, "deadline exceeded"):
		return "there is no answer; let TCP and UDP through to the gossip port on both machines"
	case strings.Contains(text, "no route to host"), strings.Contains(text, "network is unreachable"):
		return "there is no way to that address from this machine; look at the network"
	case strings.Contains(text, "EOF"), strings.Contains(text, "reset by peer"):
		return "it broke off without an answer; its keys may be others than those of this agent, or another program has the port"
	}
	return text
}

// rejoin joins again and again who is missing: memberlist by itself does not mend a partition that lasted. One that has found nobody
// yet is in a hurry: those that it is to join may be about to start.
func (g *Gossip) rejoin(ctx context.Context) {
	for hurry := g.o.Rejoin / 16; ; hurry = min(2*hurry, g.o.Rejoin) {
		wait := g.o.Rejoin + time.Duration((2*rand.Float64()-1)*float64(g.o.Rejoin)/3)
		if g.alone() {
			wait = min(wait, hurry)
		}
		if run.Sleep(ctx, wait) != nil {
			return
		}
		g.join(ctx, g.targets(ctx))
		g.forget()
	}
}

// alone reports whether no other member is there.
func (g *Gossip) alone() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.table.nodes {
		if n.alive && n.name != g.name {
			return false
		}
	}
	return true
}

// peer is an entry of the file of members.
type peer struct {
	Address netip.AddrPort `json:"address"`
	Seen    time.Time      `json:"seen"`
}

// remember reads who was seen before this start.
func (g *Gossip) remember() {
	if g.o.PeersFile == "" {
		return
	}
	b, err := folder.ReadFile(g.o.PeersFile, maxPeersFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var peers []peer
	if err == nil {
		peers, err = decodePeers(b)
	}
	if err != nil {
		g.log.Warn("the members of the last day are not known; they are found through gossip.join", "file", g.o.PeersFile, "error", err.Error())
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range peers {
		g.seen[p.Address] = time.Now().Add(-min(max(time.Since(p.Seen), 0), kept))
	}
}

// decodePeers reads the file of members.
func decodePeers(b []byte) ([]peer, error) {
	var all []peer
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, errors.New("it is not a list of members")
	}
	all = slices.DeleteFunc(all, func(p peer) bool {
		return !p.Address.IsValid() || p.Address.Port() == 0 || p.Address.Addr().IsUnspecified() || p.Address.Addr().IsMulticast()
	})
	return all[:min(len(all), maxSeen)], nil
}

// forget writes down who was seen, for the next start.
func (g *Gossip) forget() {
	if g.o.PeersFile == "" {
		return
	}
	g.mu.Lock()
	all := make([]peer, 0, len(g.seen))
	for at, when := range g.seen {
		if time.Since(when) <= kept {
			all = append(all, peer{at, when.UTC().Truncate(time.Second)})
		}
	}
	g.mu.Unlock()
	slices.SortFunc(all, func(a, b peer) int { return a.Address.Compare(b.Address) })
	b, err := json.Marshal(all)
	if err == nil {
		err = replaceFile(g.o.PeersFile, b)
	}
	if err != nil && g.once("peers file", time.Hour) {
		g.log.Warn("cannot write down the members for the next start", "error", err.Error())
	}
}

// replaceFile publishes b under path by rename, for its owner alone.
func replaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*") // created 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
