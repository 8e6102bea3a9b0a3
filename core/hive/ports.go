package hive

import (
	"net"
	"strconv"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
)

// takePort reserves a port of the range that no running worker has, that is not in tried, and that can really be bound now.
// The search goes on where the last one ended, so that a port that was just given up rests. freePort ends the reservation.
func (h *Hive) takePort(running []process.Entry, tried map[int]bool) (int, error) {
	used := map[int]bool{}
	for _, e := range running {
		used[e.Port] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	first, last := h.opts.Ports[0], h.opts.Ports[1]
	for range last - first + 1 {
		port := h.nextPort
		if h.nextPort++; h.nextPort > last {
			h.nextPort = first
		}
		if used[port] || tried[port] || h.reserved[port] || !bindable(h.host, port) {
			continue
		}
		h.reserved[port] = true
		return port, nil
	}
	return 0, fault.New(fault.Exhausted, "no_free_port",
		"No port between %d and %d is free for a worker; delete a worker, or widen hive.worker_ports.", first, last)
}

func (h *Hive) freePort(port int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.reserved, port)
}

func bindable(host string, port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
