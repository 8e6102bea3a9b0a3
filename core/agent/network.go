package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/trust"
)

// network is the one place where connections to other agents are made; listen is the one where they are accepted.
type network struct {
	tls *tls.Config // for calls to agents of this cluster; nil: none can be made
}

const dialBound = 5 * time.Second

// dial connects to another agent, or to a worker.
func (network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialBound, KeepAlive: 15 * time.Second}
	return d.DialContext(ctx, network, addr)
}

// dialTLS connects to another agent and has seen its certificate when it returns.
func (n network) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	if n.tls == nil {
		return nil, errors.New("this agent has no certificate")
	}
	ctx, cancel := context.WithTimeout(ctx, dialBound)
	defer cancel()
	c, err := n.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s := tls.Client(c, n.tls)
	if err := s.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return s, nil
}

// trusted lets a listener speak TLS and plain HTTP at its one port. anybody says that plain is for all who can connect, and not only for
// this machine.
func trusted(ln net.Listener, c *credentials, anybody bool, connections int, log *slog.Logger) net.Listener {
	o := trust.ListenerOptions{TLS: trust.ServerConfig(c.identity, c.verifier), MaxPending: connections, Log: log}
	if anybody {
		o.Plain = func(net.Addr) bool { return true }
		o.MaxOfOne = connections
	}
	return trust.NewListener(ln, o)
}

// answers reports whether the agent that m describes answers its /healthz. One that does not say who it is counts, too: something
// is there.
func (n network) answers(ctx context.Context, m contract.Member) bool {
	for _, base := range []string{m.Hive, m.Queen} {
		if base == "" {
			continue
		}
		c := client.New(client.Options{Base: base, Dial: n.dial, DialTLS: n.dialTLS})
		var h contract.Health
		err := c.GetJSON(ctx, "/healthz", &h)
		c.Close()
		if err == nil && (h.NodeID == "" || h.NodeID == m.ID && h.Start == m.Start) {
			return true
		}
	}
	return false
}

func listen(addr, setting string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, cannotListen(addr, setting, err)
	}
	return ln, nil
}

func cannotListen(addr, setting string, err error) error {
	return fault.New(fault.Conflict, "cannot_listen",
		"The agent cannot listen at %s (%s): %w; end the program that has the port, or choose another one in the configuration or with APIARY_ADDR.", addr, setting, err)
}

// receiveBuffer is what the kernel keeps of the packets of a burst.
const receiveBuffer = 2 << 20

// listenGossip opens a port for TCP and UDP. Where the configuration does not name the usual one, and another agent of this machine
// has it, any other will do.
func listenGossip(cfg config.Gossip) (net.Listener, net.PacketConn, error) {
	host, port, err := net.SplitHostPort(cfg.Bind)
	if err != nil {
		return nil, nil, cannotListen(cfg.Bind, "gossip.bind", err)
	}
	for attempt := 0; ; attempt++ {
		ln, err := listen(net.JoinHostPort(host, port), "gossip.bind")
		if err == nil {
			var p net.PacketConn
			if p, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
				if u, ok := p.(*net.UDPConn); ok {
					_ = u.SetReadBuffer(receiveBuffer) // the kernel may allow less
				}
				return ln, p, nil
			}
			_ = ln.Close()
			err = cannotListen(ln.Addr().String(), "gossip.bind", err)
		}
		switch taken := errors.Is(err, syscall.EADDRINUSE); {
		case taken && port == "0" && attempt < 20: // free for TCP alone
		case taken && !cfg.BindSet && port != "0":
			port = "0"
		default:
			return nil, nil, err
		}
	}
}

// checkGossip refuses addresses with which the agents of other machines could not work, before any socket is opened.
func checkGossip(o Options, queen, hive bool) error {
	cfg := o.Config
	host, _, err := net.SplitHostPort(cfg.Gossip.Bind)
	if err != nil {
		return fault.New(fault.Invalid, "bad_address", "gossip.bind = %q is not an address; write host:port, for example 127.0.0.1:7834.", cfg.Gossip.Bind)
	}
	for _, entry := range o.Join {
		if _, _, err := contract.SplitJoin(entry); err != nil {
			return fault.New(fault.Invalid, "bad_address", "--join %.100q: %w.", entry, err)
		}
	}
	if isLoopbackHost(host) {
		for _, entry := range append(cfg.Gossip.Join[:len(cfg.Gossip.Join):len(cfg.Gossip.Join)], o.Join...) {
			other, _, _ := contract.SplitJoin(entry)
			if ip, err := netip.ParseAddr(other); err == nil && !ip.IsLoopback() {
				return fault.New(fault.Invalid, "gossip_on_loopback",
					"The agent is to join %s, and gossip.bind = %q cannot be reached from there; set gossip.bind (and queen.listen, hive.listen) to this machine's address.", entry, cfg.Gossip.Bind)
			}
		}
		return nil
	}
	if cfg.Gossip.Key == "" && sharedByHand(cfg.Home) {
		return fault.New(fault.Invalid, "no_gossip_key",
			"gossip.bind = %q can be reached from other machines, and the cluster key of this one was copied here without a gossip key; `apiary join` brings both, or `apiary keygen > gossip.key` makes one, which gossip.key = file(\"gossip.key\") uses on each machine.", cfg.Gossip.Bind)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() && cfg.Agent.Advertise == "" {
		return fault.New(fault.Invalid, "no_advertise",
			"gossip.bind = %q is every address of this machine, and others must be told one; set agent.advertise to it, or gossip.bind to one address.", cfg.Gossip.Bind)
	}
	for _, l := range []struct {
		has           bool
		addr, setting string
	}{{queen, cfg.Queen.Listen, "queen.listen"}, {hive, cfg.Hive.Listen, "hive.listen"}} {
		if host, _, err := net.SplitHostPort(l.addr); l.has && err == nil && isLoopbackHost(host) {
			return fault.New(fault.Invalid, "role_on_loopback",
				"gossip.bind = %q invites other machines, and %s = %q cannot be reached from there; set it to this machine's address too.", cfg.Gossip.Bind, l.setting, l.addr)
		}
	}
	return httpd.CheckBind(cfg.Gossip.Bind, o.Insecure, "gossip.bind")
}

// sharedByHand reports whether a data folder has a cluster key and no gossip key: somebody brought it from another machine. The gossip key that
// the first start would make is not that of the others.
func sharedByHand(home string) bool {
	has := func(name string) bool {
		_, err := os.Lstat(filepath.Join(home, "secrets", name))
		return err == nil
	}
	return has(secret.ClusterKeyFile) && !has(gossipKeyFile)
}

func isLoopbackHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}
