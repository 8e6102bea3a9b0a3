package gateway_test

import (
	"context"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/registry"
)

// cutConn is a connection to a machine that is cut off once cut is set: the system says so after something was sent to it, when that was
// not acknowledged for long.
type cutConn struct {
	net.Conn
	cut  *atomic.Bool
	err  syscall.Errno
	sent atomic.Bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		c.sent.Store(true)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.sent.Load() {
		return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", c.err)}
	}
	return c.Conn.Read(b)
}

// TestMachineIsCutOff: a request on a connection that was kept, to a worker whose machine is no longer there, goes to another worker, and
// what else was kept of the first is not used again.
func TestMachineIsCutOff(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH} {
		for _, stream := range []bool{false, true} {
			var cut atomic.Bool
			var far string
			answer := func(c *stubConn, r request) bool {
				if strings.Contains(r.body, `"stream":true`) {
					c.say(sseHead + chunked(chunk, done) + lastChunk)
				} else {
					c.say(reply(200, "application/json", okJSON))
				}
				return true
			}
			one, two := newStub(t, "one", answer), newStub(t, "two", answer)
			far = one.ln.Addr().String()
			h := newHubDialing(t, gateway.Limits{}, func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == far && cut.Load() {
					return nil, syscall.ETIMEDOUT
				}
				c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				if err == nil && addr == far {
					c = &cutConn{Conn: c, cut: &cut, err: errno}
				}
				return c, err
			})
			h.add(one, 4)
			if res, body := h.chat(stream); res.StatusCode != 200 {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
			h.add(two, 4)
			cut.Store(true)
			for range 4 { // some of them are sent to the first one
				if res, body := h.chat(stream); res.StatusCode != 200 || stream && !strings.Contains(body, "[DONE]") {
					t.Errorf("%v, stream %v: %d %s", errno, stream, res.StatusCode, body)
				}
			}
			if f := h.failed("one"); len(f) == 0 || f[0] != registry.FailureStall {
				t.Errorf("%v, stream %v: the failures of the first are %v", errno, stream, f)
			}
		}
	}
}
