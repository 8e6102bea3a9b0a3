package trust

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// door is a listener at loopback that echoes lines, with what its connections were.
func door(t *testing.T, c *cluster, change func(*ListenerOptions)) (l *Listener, addr string, id *Identity) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id = c.member("aaaaaaaaaaaa", "tower", RoleHive)
	o := ListenerOptions{TLS: ServerConfig(id, c.verifier)}
	if change != nil {
		change(&o)
	}
	l = NewListener(inner, o)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				line, err := bufio.NewReader(conn).ReadString('\n')
				if err != nil {
					return
				}
				kind := "plain"
				if s, ok := conn.(*tls.Conn); ok {
					kind = fmt.Sprint("tls ", len(s.ConnectionState().PeerCertificates))
				}
				_, _ = io.WriteString(conn, kind+" "+line)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l, inner.Addr().String(), id
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func say(t *testing.T, c net.Conn, line string) string {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	out, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("after %q: %v", out, err)
	}
	return strings.TrimSpace(out)
}

func TestOnePortForBoth(t *testing.T) {
	c := newCluster(t)
	_, addr, _ := door(t, c, nil)
	queen := c.member("bbbbbbbbbbbb", "second", RoleQueen)
	if got := say(t, dial(t, addr), "GET / HTTP/1.1"); got != "plain GET / HTTP/1.1" {
		t.Errorf("plain: %q", got)
	}
	for want, id := range map[string]*Identity{"tls 2 hello": queen, "tls 0 hello": nil} {
		if got := say(t, tls.Client(dial(t, addr), ClientConfig(id, c.verifier, Expect{NodeID: "aaaaaaaaaaaa"})), "hello"); got != want {
			t.Errorf("with TLS: %q, want %q", got, want)
		}
	}
	// A line that ends before anybody answers does not hurt others.
	_ = dial(t, addr).Close()
	if got := say(t, dial(t, addr), "x"); got != "plain x" {
		t.Errorf("afterwards: %q", got)
	}
}

func TestPlainFromElsewhere(t *testing.T) {
	c := newCluster(t)
	_, addr, _ := door(t, c, func(o *ListenerOptions) { o.Plain = func(net.Addr) bool { return false } })
	// The whole answer arrives although most of the request is never read.
	conn := dial(t, addr)
	go func() {
		_, _ = io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 60000\r\n\r\n"+strings.Repeat("x", 60000))
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	var e struct {
		Error struct{ Message, Code, Type string }
	}
	if err != nil || res.StatusCode != 400 || json.Unmarshal(body, &e) != nil || e.Error.Code != "https_required" || !strings.Contains(e.Error.Message, "https://") {
		t.Errorf("%d %s %v", res.StatusCode, body, err)
	}
	if got := say(t, tls.Client(dial(t, addr), ClientConfig(nil, c.verifier, Expect{})), "hello"); got != "tls 0 hello" {
		t.Errorf("with TLS: %q", got)
	}
}

func TestPlainIsForThisMachine(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:5": true, "127.5.5.5:5": true, "[::1]:5": true, "[::ffff:127.0.0.1]:5": true, "10.0.0.5:5": false, "[fd00::1]:5": false, "pipe": false} {
		if got := isLoopback(textAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if isLoopback(nil) {
		t.Error("no address is this machine's")
	}
}

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

// closed waits until the other side has closed the connection.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("there is an answer")
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the connection stays open")
	}
}

// pipes is a listener whose connections are in memory, for a bubble.
type pipes struct {
	made chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipes() *pipes { return &pipes{made: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.made:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return textAddr("pipe") }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.made <- there
	return here
}

func TestHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		p := newPipes()
		l := NewListener(p, ListenerOptions{TLS: ServerConfig(c.member("aaaaaaaaaaaa", "tower"), c.verifier), MaxPending: 3, Plain: func(net.Addr) bool { return true }})
		ready := make(chan net.Conn)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					close(ready)
					return
				}
				ready <- conn
			}
		}()
		start := time.Now()
		silent, half, slow := p.dial(), p.dial(), p.dial()
		go func() { _, _ = half.Write([]byte{recordHandshake, 3, 1}) }()
		go func() { // a byte now and then buys no time
			for _, err := slow.Write([]byte{recordHandshake, 3, 1, 0x40, 0}); err == nil; _, err = slow.Write([]byte{1}) {
				time.Sleep(time.Second)
			}
		}()
		synctest.Wait()
		closed(t, p.dial()) // one too many
		if time.Since(start) != 0 {
			t.Errorf("it is closed after %v", time.Since(start))
		}
		for _, conn := range []net.Conn{silent, half, slow} {
			closed(t, conn)
			if got := time.Since(start); got != 5*time.Second {
				t.Errorf("it is closed after %v", got)
			}
		}
		synctest.Wait()
		last := p.dial() // there is room again
		go func() { _, _ = last.Write([]byte("x")) }()
		conn := <-ready
		time.Sleep(time.Hour) // who is through has all the time that the server gives
		go func() { _, _ = last.Write([]byte("y")) }()
		b := make([]byte, 2)
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "xy" {
			t.Errorf("%q, %v", b, err)
		}
		_, _ = conn.Close(), last.Close()
		_ = l.Close()
		<-ready
		time.Sleep(time.Minute) // for the writers
	})
}

// strangers gives connections the address of another machine.
type strangers struct{ net.Listener }

type strange struct{ net.Conn }

func (s strangers) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return strange{c}, nil
}

func (strange) RemoteAddr() net.Addr { return textAddr("10.0.0.66:5") }

func TestOneMachineHasFewHandshakes(t *testing.T) {
	c := newCluster(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(strangers{inner}, ListenerOptions{TLS: ServerConfig(c.member("aaaaaaaaaaaa", "tower"), c.verifier), MaxOfOne: 2, Patience: time.Minute})
	accepted := make(chan net.Conn)
	go func() {
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
		}
	}()
	first, _ := dial(t, inner.Addr().String()), dial(t, inner.Addr().String())
	for {
		l.mu.Lock()
		n := len(l.pending)
		l.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	closed(t, dial(t, inner.Addr().String()))
	// One that gets through counts no more.
	s := tls.Client(first, ClientConfig(nil, c.verifier, Expect{}))
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	_ = (<-accepted).Close()
	for {
		l.mu.Lock()
		n := l.from[netip.MustParseAddr("10.0.0.66")]
		l.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if len(l.pending) > 0 || len(l.from) > 0 {
		t.Errorf("%v %v is left", l.pending, l.from)
	}
}

func TestListenerCloses(t *testing.T) {
	c := newCluster(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(inner, ListenerOptions{TLS: ServerConfig(c.member("aaaaaaaaaaaa", "tower"), c.verifier)})
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	silent := dial(t, inner.Addr().String())
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	closed(t, silent)
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	_ = l.Close() // twice is no fault
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	never := NewListener(inner, ListenerOptions{})
	_ = never.Close()
	if _, err := never.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// net/http finds the certificate of a connection of the listener by itself.
func TestListenerServesHTTP(t *testing.T) {
	c := newCluster(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id, queen := c.member("aaaaaaaaaaaa", "tower"), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := c.verifier.Peer(r.TLS, RoleQueen)
		_, _ = fmt.Fprint(w, p.Name, " ", code(err))
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(NewListener(inner, ListenerOptions{TLS: ServerConfig(id, c.verifier)})) }()
	get := func(scheme string, cfg *tls.Config) string {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		res, err := (&http.Client{Transport: tr}).Get(scheme + "://" + inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		return string(b)
	}
	for want, got := range map[string]string{
		"second ":             get("https", ClientConfig(queen, c.verifier, Expect{})),
		" wrong_role":         get("https", ClientConfig(id, c.verifier, Expect{})),
		" no_certificate":     get("http", nil),
		" no_certificate\x00": get("https", ClientConfig(nil, c.verifier, Expect{})) + "\x00",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	_ = srv.Close()
	<-done
}

// TestPlainIsASocket: what serves plain connections may watch them without a goroutine each, as those of a listener of the system.
func TestPlainIsASocket(t *testing.T) {
	c := newCluster(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(inner, ListenerOptions{TLS: ServerConfig(c.member("aaaaaaaaaaaa", "tower", RoleHive), c.verifier)})
	defer func() { _ = l.Close() }()
	if _, err := io.WriteString(dial(t, inner.Addr().String()), "GET"); err != nil {
		t.Fatal(err)
	}
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Close() }()
	sc, ok := got.(syscall.Conn)
	if !ok {
		t.Fatalf("%T is no socket", got)
	}
	if raw, err := sc.SyscallConn(); err != nil || raw == nil {
		t.Errorf("its socket is %v, error %v", raw, err)
	}
}
