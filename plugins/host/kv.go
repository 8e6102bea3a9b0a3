package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of what one plugin may keep.
const (
	maxKey   = 256
	maxValue = 64 << 10
	maxKept  = 1 << 20
)

// Store keeps the small things that one plugin wants to find again, such as the ETag of an answer. It is a cache: what
// cannot be read is forgotten.
type Store struct {
	path string // "": in memory only
	now  func() time.Time

	mu   sync.Mutex
	kept map[string]entry // guarded by mu
}

type entry struct {
	Value []byte    `json:"value"`
	Until time.Time `json:"until,omitzero"`
}

// OpenStore returns the store whose file is path; "" keeps it in memory.
func OpenStore(path string) *Store {
	s := &Store{path: path, now: time.Now, kept: map[string]entry{}}
	if path == "" {
		return s
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > 4*maxKept {
		return s
	}
	raw, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(raw, &s.kept) != nil || s.kept == nil {
		s.kept = map[string]entry{}
	}
	return s
}

// Get implements the method of vendor.Host.
func (s *Store) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.kept[key]
	if !ok || s.past(e) {
		return nil, nil
	}
	return e.Value, nil
}

func (s *Store) past(e entry) bool { return !e.Until.IsZero() && !s.now().Before(e.Until) }

// Set implements the method of vendor.Host.
func (s *Store) Set(_ context.Context, key string, value []byte, ttlSeconds int64) error {
	switch {
	case key == "" || len(key) > maxKey:
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_key", Message: fmt.Sprintf("A key has 1 to %d bytes, not %d.", maxKey, len(key))}
	case len(value) > maxValue:
		return &vendor.Error{Kind: vendor.KindExhausted, Code: "value_too_large", Message: fmt.Sprintf("A value has at most %d KiB; this one has %d bytes.", maxValue>>10, len(value))}
	case ttlSeconds < 0:
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_ttl", Message: "A time to live is not negative."}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(s.kept)
	maps.DeleteFunc(next, func(_ string, e entry) bool { return s.past(e) })
	delete(next, key)
	if len(value) > 0 {
		e := entry{Value: append([]byte(nil), value...)}
		if ttlSeconds > 0 {
			e.Until = s.now().Add(time.Duration(min(ttlSeconds, 10*365*24*3600)) * time.Second)
		}
		next[key] = e
	}
	size := 0
	for k, e := range next {
		size += len(k) + len(e.Value)
	}
	if size > maxKept {
		return &vendor.Error{Kind: vendor.KindExhausted, Code: "store_full", Message: fmt.Sprintf("A plugin may keep %d KiB; remove something first.", maxKept>>10)}
	}
	if err := s.save(next); err != nil {
		return err
	}
	s.kept = next
	return nil
}

// save publishes the file by rename. It is not synced: losing it costs a request.
func (s *Store) save(kept map[string]entry) error {
	if s.path == "" {
		return nil
	}
	raw, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("keep a plugin's values: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.path), ".kv-*")
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
			return fmt.Errorf("keep a plugin's values: %w", err)
		}
		tmp, err = os.CreateTemp(filepath.Dir(s.path), ".kv-*")
	}
	if err != nil {
		return fmt.Errorf("keep a plugin's values: %w", err)
	}
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), s.path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("keep a plugin's values: %w", err)
	}
	return nil
}
