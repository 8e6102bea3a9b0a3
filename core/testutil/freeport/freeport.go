// Package freeport finds ports for servers that are told where to listen.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports lie below those that systems give out by themselves, so that no connection, and nobody who lets the system choose, takes
// one between the search and its use.
const (
	first = 12_000
	last  = 30_000
)

var given sync.Map // the ports that this process has handed out

// Address is a loopback address that nobody listens on, and that no other caller in this process gets.
func Address() (string, error) {
	for range 1000 {
		port := first + rand.N(last-first)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		return addr, l.Close()
	}
	return "", fmt.Errorf("no port from %d to %d is free on the loopback interface", first, last)
}
