package gateway

import (
	"context"
	"net"
	"time"
)

// A packet that is lost while a connection is made is sent again only after a second, then after two, then four. A second connection that
// is begun meanwhile is there sooner, so on a lossy network requests do not wait for that.
const (
	dialAgain    = 300 * time.Millisecond // between the beginnings of attempts
	dialAttempts = 4                      // at most under way at once
)

type dialed struct {
	c   net.Conn
	err error
}

// dialWorker makes a connection to a worker. Where that takes long it begins others beside it and takes the one that is there first; an
// attempt that fails, a refused one for example, ends all.
func (g *Gateway) dialWorker(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.limits().Dial)
	done := make(chan dialed, dialAttempts)
	begun, ended := 0, 0
	begin := func() {
		begun++
		go func() {
			c, err := g.dial(ctx, "tcp", addr)
			done <- dialed{c, err}
		}()
	}
	defer func() {
		cancel()
		if left := begun - ended; left > 0 { // what comes too late is closed
			go func() {
				for range left {
					if d := <-done; d.c != nil {
						_ = d.c.Close()
					}
				}
			}()
		}
	}()
	begin()
	again := time.NewTimer(dialAgain)
	defer again.Stop()
	for {
		select {
		case d := <-done:
			ended++
			return d.c, d.err
		case <-again.C:
			if begun < dialAttempts {
				begin()
				again.Reset(dialAgain)
			}
		}
	}
}
