package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/spent"
)

// resident returns the resident memory of a process in KB.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range bytes.Lines(b) {
		if f := strings.Fields(string(l)); len(f) > 1 && f[0] == "VmRSS:" {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// results holds the values of each cell by target, one a round.
type results struct {
	values  map[string]map[string][]float64
	targets []*target
}

func (r *results) add(cell, target string, v float64) {
	if r.values == nil {
		r.values = map[string]map[string][]float64{}
	}
	if r.values[cell] == nil {
		r.values[cell] = map[string][]float64{}
	}
	r.values[cell][target] = append(r.values[cell][target], v)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// requestCells are the cells of requests that do not stream.
var requestCells = []struct {
	name        string
	connections int
	prompt      int
}{{"json-1k-c1", 1, 1 << 10}, {"json-1k-c32", 32, 1 << 10}, {"json-32k-c1", 1, 32 << 10}, {"json-32k-c32", 32, 32 << 10}}

const (
	cellPaced  = "paced-token-200"
	cellMemory = "kb-per-stream"
	cellAdded  = "added-p50-1k-c1"
)

// measureCPU fills the cells of CPU time and latency.
func measureCPU(ctx context.Context, s *setup, p plan, r *results) error {
	r.targets = s.targets
	for round := range p.rounds {
		for _, cell := range requestCells {
			if !p.only.MatchString(cell.name) {
				continue
			}
			p50 := map[string]float64{}
			for i := range s.targets {
				t := s.targets[(i+round)%len(s.targets)]
				if t.skipped != "" {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				before, err := spent.CPU(t.pids[fast])
				if err != nil {
					return err
				}
				lat, err := s.requests(t, cell.connections, cell.prompt, p.requests)
				if err != nil {
					return fmt.Errorf("%s through %s: %w", cell.name, t.name, err)
				}
				after, err := spent.CPU(t.pids[fast])
				if err != nil {
					return err
				}
				r.add(cell.name, t.name, float64((after-before).Microseconds())/float64(len(lat)))
				p50[t.name] = float64(lat[len(lat)/2].Nanoseconds()) / 1000
			}
			if cell.name == "json-1k-c1" {
				for name, v := range p50 {
					r.add(cellAdded, name, v-p50[s.direct().name])
				}
			}
		}
		for i := range s.targets {
			t := s.targets[(i+round)%len(s.targets)]
			if t.skipped != "" || !p.only.MatchString(cellPaced) {
				continue
			}
			if err := measurePaced(ctx, s, t, p, r); err != nil {
				return fmt.Errorf("paced tokens through %s: %w", t.name, err)
			}
		}
	}
	return nil
}

func measurePaced(ctx context.Context, s *setup, t *target, p plan, r *results) error {
	st, err := s.open(t, p.streams)
	if err != nil {
		return err
	}
	defer st.close()
	if err := pause(ctx, p.pacedWarmup); err != nil {
		return err
	}
	before, err := spent.CPU(t.pids[paced])
	if err != nil {
		return err
	}
	n := st.tokens.Load()
	if err := pause(ctx, p.paced); err != nil {
		return err
	}
	n = st.tokens.Load() - n
	after, err := spent.CPU(t.pids[paced])
	if err != nil {
		return err
	}
	if b := st.broken.Load(); b > 0 || n == 0 {
		return fmt.Errorf("%d streams broke, %d tokens came", b, n)
	}
	r.add(cellPaced, t.name, float64((after-before).Nanoseconds())/1000/float64(n))
	return nil
}

// measureMemory compares the resident memory of each relay without streams and with many.
func measureMemory(ctx context.Context, s *setup, p plan, r *results) error {
	for _, t := range s.targets[:len(s.targets)-1] {
		if t.skipped != "" || !p.only.MatchString(cellMemory) {
			continue
		}
		before, err := resident(t.pids[paced])
		if err != nil {
			return err
		}
		st, err := s.open(t, p.memory)
		if err != nil {
			return fmt.Errorf("open streams through %s: %w", t.name, err)
		}
		err = pause(ctx, p.paced)
		after, rerr := resident(t.pids[paced])
		st.close()
		if err != nil || rerr != nil {
			return fmt.Errorf("memory of %s: %w, %w", t.name, err, rerr)
		}
		r.add(cellMemory, t.name, (after-before)/float64(p.memory))
		// The paced worker shall be idle again before the next one.
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// print writes the rows.
func (r *results) print(w io.Writer) {
	goals := map[string]float64{ // of the ratio to vllm-router
		"json-1k-c32": 0.8, "json-32k-c1": 0.75, "json-32k-c32": 0.75, cellPaced: 1.0,
	}
	cells := []string{}
	for _, c := range requestCells {
		cells = append(cells, c.name)
	}
	cells = append(cells, cellPaced, cellMemory, cellAdded)
	for _, cell := range cells {
		v := r.values[cell]
		if len(v) == 0 {
			continue // not asked for
		}
		ours := median(v["apiary"])
		if cell == cellMemory {
			row(w, cell+"/bound", ours, 24, 1)
		}
		for _, t := range r.targets[1 : len(r.targets)-1] {
			switch goal := goals[cell]; {
			case t.name == keyed && cell == cellAdded:
			case t.name == keyed && cell == cellMemory:
				row(w, cell+"-keys/plain", median(v[keyed]), ours, 0)
			case t.name == keyed:
				row(w, cell+"-keys/plain", median(v[keyed]), ours, 1.25)
			case t.skipped != "":
				_, _ = fmt.Fprintf(w, "relay/%s/%s skipped: %s\n", cell, t.name, t.skipped)
			case t.name != "vllm-router":
				row(w, cell+"/"+t.name, ours, median(v[t.name]), 0)
			default:
				row(w, cell+"/"+t.name, ours, median(v[t.name]), goal)
			}
		}
	}
}

func row(w io.Writer, name string, ours, other, goal float64) {
	ratio := ours / other
	g, verdict := "-", "info"
	if goal > 0 {
		if g, verdict = fmt.Sprintf("%.2f", goal), "missed"; ratio <= goal {
			verdict = "met"
		}
	}
	_, _ = fmt.Fprintf(w, "relay/%-30s %8.1f %8.1f %6.2f %5s %s\n", name, ours, other, ratio, g, verdict)
}
