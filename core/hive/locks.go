package hive

import (
	"context"
	"sync"
)

// keyLocks lets one caller at a time work under a key.
type keyLocks struct {
	mu   sync.Mutex // mu guards the field below
	held map[string]*keyLock
}

type keyLock struct {
	turn  chan struct{}
	users int // that hold it or wait for it
}

// lock waits for its turn and returns the function that ends it.
func (k *keyLocks) lock(ctx context.Context, key string) (func(), error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{turn: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
