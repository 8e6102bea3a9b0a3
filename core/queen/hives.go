package queen

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	pollTimeout  = 3 * time.Second
	retryPoll    = time.Second // after a poll that failed
	probeTimeout = 2 * time.Second
	verifyGap    = 2 * time.Second
)

// link is the way to one hive: of the configuration, which is polled, or one that the gossip told of, which is asked when its
// inventory has changed, and polled only while no beats come.
type link struct {
	q      *Queen
	base   string
	gossip bool           // told of by gossip
	open   *client.Client // without a token: for /v1/id
	// polling has room for the one poll that may be under way: of two, the older answer might come last.
	polling chan struct{}

	mu       sync.Mutex // guards the fields below
	id       string     // node id; empty until it is learnt
	api      *client.Client
	digest   string // of the inventory that the registry has
	reported bool
	greeted  bool // its workers have been asked who they are
	failing  bool
	refresh  chan struct{} // buffered: ask now
	heardAt  time.Time     // of the last beat by gossip
	seenAt   time.Time     // of the last sign of life
	ended    context.CancelFunc
	over     bool
}

func newLink(q *Queen, base string) *link {
	return &link{q: q, base: base, open: client.New(client.Options{Base: base, Dial: q.o.Dial}), refresh: make(chan struct{}, 1), polling: make(chan struct{}, 1)}
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open.Close()
	if l.api != nil {
		l.api.Close()
	}
}

// run polls until ctx ends.
func (l *link) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	l.ended = cancel
	over := l.over
	l.mu.Unlock()
	if over {
		return
	}
	for {
		wait, asked := l.patience(), false
		var err error
		if wait <= 0 {
			asked, err = true, l.poll(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if asked {
			l.note(err)
			wait = l.q.o.Interval + time.Duration(jitter()*float64(l.q.o.Interval)/10)
		}
		if err != nil && !l.lost() {
			wait = min(wait, retryPoll)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-l.refresh:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// note logs the change from answering to failing and back, and not every failure.
func (l *link) note(err error) {
	l.mu.Lock()
	was := l.failing
	l.failing = err != nil
	if err == nil {
		l.seenAt = time.Now()
	}
	l.mu.Unlock()
	switch {
	case err != nil && !was:
		l.q.log.Warn("hive does not answer", "hive", l.base, "error", err.Error())
	case err == nil && was:
		l.q.log.Info("hive answers again", "hive", l.base)
	}
}

// poll asks the hive how it is, and for its inventory when that has changed.
func (l *link) poll(ctx context.Context) error {
	select {
	case l.polling <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.polling }()
	if l.isOver() {
		return fault.New(fault.Unavailable, "hive_unavailable", "The hive at %s is not one of this queen any more.", l.base)
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	api, id, err := l.identify(ctx)
	if err != nil {
		return err
	}
	var beat contract.HiveBeat
	if err := api.GetJSON(ctx, "/v1/hive", &beat); err != nil {
		if fault.KindOf(err) == fault.Denied && !l.gossip { // another hive has taken over the address
			l.mu.Lock()
			l.id, l.api = "", nil
			l.mu.Unlock()
		}
		l.q.o.Metrics.Beat("hive", "refused")
		return err
	}
	if beat.ID != id {
		return fmt.Errorf("the hive at %s calls itself %q and %q", l.base, id, beat.ID)
	}
	if err := checkHiveBeat(beat); err != nil {
		l.q.o.Metrics.Beat("hive", "refused")
		return err
	}
	l.q.o.Metrics.Beat("hive", "accepted")
	l.q.step(registry.HiveBeat{Beat: beat})
	l.mu.Lock()
	known := l.digest
	l.mu.Unlock()
	if beat.InventoryDigest == known && known != "" {
		return nil
	}
	var inv contract.Inventory
	if err := api.GetJSON(ctx, "/v1/inventory", &inv); err != nil {
		return err
	}
	inv.HiveID = id
	l.q.step(registry.HiveInventory{Inventory: &inv})
	l.mu.Lock()
	first := !l.reported
	l.digest, l.reported = inv.Digest, true
	l.mu.Unlock()
	if first {
		l.q.notify()
		l.q.do(func(ctx context.Context) { l.q.greet(ctx, l) })
	}
	return nil
}

// identify learns the hive's node id, from which its secret follows.
func (l *link) identify(ctx context.Context) (*client.Client, string, error) {
	l.mu.Lock()
	api, id := l.api, l.id
	l.mu.Unlock()
	if api != nil {
		return api, id, nil
	}
	var who struct {
		ID string `json:"id"`
	}
	if err := l.open.GetJSON(ctx, "/v1/id", &who); err != nil {
		return nil, "", err
	}
	if who.ID == "" || len(who.ID) > 128 {
		return nil, "", fmt.Errorf("the hive at %s has no usable node id", l.base)
	}
	api = client.New(client.Options{Base: l.base, Token: secret.ForHive(l.q.o.ClusterKey, who.ID), Dial: l.q.o.Dial})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id, l.api, l.digest = who.ID, api, ""
	return api, who.ID, nil
}

// known returns the node id and the client, once they are known.
func (l *link) known() (string, *client.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.api
}

// isOver reports whether the link has been taken out.
func (l *link) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func (l *link) hasReported() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reported
}

// update fetches the hive's inventory after an operation has changed it, so that the change is seen at once. The digest in the
// hive's beat says that it has changed.
func (l *link) update(ctx context.Context) {
	if err := l.poll(ctx); err != nil {
		select { // the loop tries again
		case l.refresh <- struct{}{}:
		default:
		}
	}
}

// reported says whether every configured hive has said what it has.
func (q *Queen) reported() bool {
	return !slices.ContainsFunc(*q.links.Load(), func(l *link) bool { return !l.hasReported() })
}

// settled says whether this queen may know what there is to know: every hive has reported, or it has waited long enough.
func (q *Queen) settled() bool { return q.now() >= q.o.ReadyAfter || q.reported() }

// hive returns the link to a hive that answers, by node id or name.
func (q *Queen) hive(id string) (*link, registry.Hive, error) {
	s := q.Snapshot()
	h, ok := s.Hive(id)
	for i := 0; !ok && i < len(s.Hives); i++ {
		if s.Hives[i].Beat.Name == id {
			h, ok = s.Hives[i], true
		}
	}
	if !ok {
		return nil, h, fault.New(fault.NotFound, "hive_not_found", "No hive with the id or name %s is known; `apiary hive list` shows those that are.", quoted(id))
	}
	for _, l := range *q.links.Load() {
		if lid, api := l.known(); api != nil && lid == h.Beat.ID {
			if h.Liveness == contract.LivenessDown || h.Liveness == contract.LivenessLost {
				break
			}
			return l, h, nil
		}
	}
	return nil, h, fault.New(fault.Unavailable, "hive_unavailable", "The hive %s does not answer; try again when it does.", quoted(h.Beat.Name)).
		WithRetryAfter(q.o.Interval)
}

// alive returns the links to all hives that answer, the local one first.
func (q *Queen) alive() []*link {
	var out []*link
	for _, h := range q.Snapshot().Hives {
		if l, _, err := q.hive(h.Beat.ID); err == nil {
			if h.Beat.ID == q.o.NodeID {
				out = slices.Insert(out, 0, l)
			} else {
				out = append(out, l)
			}
		}
	}
	return out
}

// open returns the ids of the hives that answer and take workers, the local one first.
func (q *Queen) open() []string {
	drained := q.book.drained()
	var out []string
	for _, l := range q.alive() {
		if id, _ := l.known(); !drained[id] {
			out = append(out, id)
		}
	}
	return out
}

// chosen returns the hive with the id, or without one the local hive, or else the first that answers.
func (q *Queen) chosen(id string) (*link, registry.Hive, error) {
	if id != "" {
		return q.hive(id)
	}
	if ids := q.open(); len(ids) > 0 {
		return q.hive(ids[0])
	}
	return nil, registry.Hive{}, fault.New(fault.Unavailable, "no_hive", "No hive answers, or all are drained, so nothing can be fetched or started; is an agent with the role hive running?").
		WithRetryAfter(q.o.Interval)
}

// processes lists the worker processes on a hive.
func (l *link) processes(ctx context.Context) ([]contract.Process, error) {
	_, api := l.known()
	return client.Run[[]contract.Process](ctx, api, operation{contract.OpProcessList}, nil)
}

// operation is the body of an operation without fields.
type operation struct {
	Operation string `json:"operation"`
}

// verify asks a worker's hive whether its process still exists, because somebody was refused there.
func (q *Queen) verify(workerID string) {
	w, ok := q.Snapshot().Worker(workerID)
	if !ok || w.Exit != nil || w.Info.HiveID == "" {
		return
	}
	l, _, err := q.hive(w.Info.HiveID)
	if err != nil {
		return
	}
	q.mu.Lock()
	now := q.now()
	at, seen := q.verifying[workerID]
	again := !seen || now-at >= verifyGap
	if again {
		q.verifying[workerID] = now
	}
	for id, t := range q.verifying {
		if now-t > time.Minute {
			delete(q.verifying, id)
		}
	}
	q.mu.Unlock()
	if !again {
		return
	}
	q.do(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, pollTimeout)
		defer cancel()
		list, err := l.processes(ctx)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.Identity == w.Info.Identity() && !p.Zombie {
				return
			}
		}
		q.noteExit(contract.WorkerExit{WorkerID: workerID, Identity: w.Info.Identity(), ExitCode: -1})
		q.step(registry.Gone{WorkerID: workerID, Jitter: jitter()})
	})
}

// probe tries the ejected workers, so that one that can be reached again is used again soon.
func (q *Queen) probe() {
	for _, w := range q.Snapshot().Workers {
		if w.EjectedUntil == 0 || w.Exit != nil {
			continue
		}
		q.do(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			c := q.workerClient(&w, "")
			defer c.Close()
			if c.GetJSON(ctx, "/health", nil) == nil {
				q.step(registry.Reachable{WorkerID: w.Info.ID})
			}
		})
	}
}

// workerClient makes a client of a worker, which the caller closes. /health needs no token.
func (q *Queen) workerClient(w *registry.Worker, token secret.Secret) *client.Client {
	return client.New(client.Options{Base: "http://" + net.JoinHostPort(w.Info.Address, strconv.Itoa(w.Info.Port)), Token: token, Dial: q.o.Dial})
}
