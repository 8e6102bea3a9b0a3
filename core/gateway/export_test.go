package gateway

import "errors"

// Waiting is how many requests are in queues.
func Waiting(g *Gateway) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, q := range g.queues {
		n += len(q.waiters)
	}
	return n
}

// ParseReply feeds an answer in pieces of a size and returns what it says.
func ParseReply(b []byte, size int) (status int, body, usage string, whole bool, err error) {
	var p reply
	var got []byte
	for len(b) > 0 && err == nil && p.phase != complete {
		n := min(size, len(b))
		_, err = p.feed(b[:n], func(d []byte) error { got = append(got, d...); return nil })
		b = b[n:]
	}
	if err != nil && !errors.Is(err, errReply) {
		panic("an error that is not errReply: " + err.Error())
	}
	return p.status, string(got), string(p.usage), p.end() && err == nil, err
}
