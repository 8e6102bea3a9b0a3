package logging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
)

// File is a log file that is rotated by size: name.1 is the newest old one. It may be used from several goroutines.
type File struct {
	path string
	max  int64
	keep int

	mu sync.Mutex
	// mu guards the fields below.
	f    *os.File // nil once closed
	size int64
}

// OpenFile opens or makes the file with mode 0600 for appending. Before a write would take it past maxBytes it is renamed, and at most keep
// old files stay.
func OpenFile(path string, maxBytes int64, keep int) (*File, error) {
	l := &File{path: path, max: maxBytes, keep: keep}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0o600) // a FIFO must not hold it up
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file; move it away", l.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write appends p whole.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return 0, fmt.Errorf("write log %s: %w", l.path, fs.ErrClosed)
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate makes path the newest old file and opens a new one. An old file that cannot be renamed is not worth losing the line:
// then the current file grows on.
func (l *File) rotate() error {
	old := func(n int) string { return fmt.Sprintf("%s.%d", l.path, n) }
	if l.keep < 1 {
		if err := l.f.Truncate(0); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
		l.size = 0
		return nil
	}
	for n := l.keep - 1; n >= 1; n-- {
		if err := os.Rename(old(n), old(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := os.Rename(l.path, old(1)); err != nil {
		return nil
	}
	current := l.f
	if err := l.open(); err != nil {
		l.f = current // keeps writing to what is now name.1
		return nil
	}
	return current.Close()
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}
