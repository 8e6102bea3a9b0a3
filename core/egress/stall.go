package egress

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// watch makes a request that fails with ErrStalled where its answer does not begin within idle or its body comes too slowly.
func watch(next http.RoundTripper, req *http.Request, idle time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(idle, func() { cancel(ErrStalled) })
	res, err := next.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		err = stalled(ctx, err, idle)
		cancel(nil)
		return nil, err
	}
	res.Body = &body{ReadCloser: res.Body, ctx: ctx, cancel: cancel, idle: idle, left: idle}
	return res, nil
}

// stalled replaces an error that is the consequence of a stall.
func stalled(ctx context.Context, err error, idle time.Duration) error {
	if context.Cause(ctx) == ErrStalled {
		return fmt.Errorf("%w for %v", ErrStalled, idle)
	}
	return err
}

// body is the body of an answer. It counts the time that its reader waits in it, not what the reader does in between.
type body struct {
	io.ReadCloser
	ctx    context.Context // of the request, which the body belongs to
	cancel context.CancelCauseFunc
	idle   time.Duration

	left time.Duration // until got must have reached its share
	got  int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	begin := time.Now()
	timer := time.AfterFunc(b.left, func() { b.cancel(ErrStalled) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.left -= time.Since(begin)
	if b.got += int64(n); b.got >= int64(b.idle.Seconds()*slowestBytes) {
		b.left, b.got = b.idle, 0
	}
	if err != nil && err != io.EOF {
		err = stalled(b.ctx, err, b.idle)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}
