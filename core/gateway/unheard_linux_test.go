package gateway

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWhatNobodyAcknowledges: the system gives up a connection to a worker whose machine acknowledges nothing.
func TestWhatNobodyAcknowledges(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	g := New(Options{})
	defer g.Close()
	l, err := g.connect(context.Background(), &backend{addr: ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var ms int
	if cerr := l.raw.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if ms != int(unheard.Milliseconds()) {
		t.Errorf("it is given up after %d ms, want %v", ms, unheard)
	}
}
