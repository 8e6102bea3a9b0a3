package echo

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// event is one line of the history: what tests check against what clients saw.
type event struct {
	Time    time.Time `json:"time"`
	Worker  string    `json:"worker"`
	Event   string    `json:"event"` // "start", "token", "cancel", "end"
	Request string    `json:"request"`
	N       int       `json:"n"` // tokens so far
}

// history appends events to a file, each line with one write, so that several workers can share it. A nil history drops them.
type history struct {
	f      *os.File
	worker string
}

func openHistory(path, worker string) (*history, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the history: %w", err)
	}
	return &history{f: f, worker: worker}, nil
}

func (h *history) write(e event) {
	if h == nil {
		return
	}
	e.Time, e.Worker = time.Now(), h.worker
	if b, err := json.Marshal(e); err == nil {
		_, _ = h.f.Write(append(b, '\n')) // a test that reads the file sees what is missing
	}
}

// Close closes the file.
func (h *history) Close() error {
	if h == nil {
		return nil
	}
	return h.f.Close()
}
