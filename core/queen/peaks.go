package queen

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

const (
	peaksFile = "peaks.json" // in the state folder
	maxPeaks  = 1000
	peaksSave = time.Minute // between two writes
)

// peaks are the most memory that workers were seen to take of their devices: estimates are corrected by them, for each model, engine,
// context and device. A worker on several devices does not say what it takes of each.
type peaks struct {
	home  string // of the agent; empty: nothing is kept
	all   map[peakKey]contract.Bytes
	dirty bool
	saved time.Duration
}

type peakKey struct {
	Model, Engine  string
	Context, Slots int
	Place          placement.Place
}

// openPeaks reads what was measured before. A file that cannot be read is as if nothing was measured.
func openPeaks(home string) (*peaks, error) {
	p := &peaks{home: home, all: map[peakKey]contract.Bytes{}}
	if home == "" {
		return p, nil
	}
	raw, err := folder.ReadFile(filepath.Join(home, stateFolder, peaksFile), maxShared)
	var list []placement.Peak
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("read what workers took of memory: %w", err)
	}
	for _, k := range list {
		p.all[peakKey{k.Model, k.Engine, k.Context, k.Slots, k.Place}] = k.Bytes
	}
	return p, nil
}

// note looks at a worker that has served. context and slots are what it was started with.
func (p *peaks) note(w *registry.Worker, engine string, context, slots int) {
	i := &w.Info
	taken := memoryTaken(i)
	if taken == 0 || strings.Contains(i.Device, ",") || strings.HasPrefix(i.ModelID, echoScheme) {
		return
	}
	k := peakKey{i.ModelID, engine, context, slots, placement.Place{Hive: i.HiveID, Device: i.Device}}
	old, known := p.all[k]
	if !known && len(p.all) >= maxPeaks {
		return
	}
	p.all[k] = max(old, taken)
	p.dirty = p.dirty || taken > old+old/20
}

// memoryTaken is what a worker says that it takes of the memory of its device; 0: it does not say.
func memoryTaken(i *contract.WorkerInfo) contract.Bytes {
	if strings.HasPrefix(i.Device, "cpu") {
		return i.MemoryBytes
	}
	return i.DeviceMemoryBytes
}

func (p *peaks) list() []placement.Peak {
	out := make([]placement.Peak, 0, len(p.all))
	for k, bytes := range p.all {
		out = append(out, placement.Peak{Model: k.Model, Engine: k.Engine, Context: k.Context, Slots: k.Slots, Place: k.Place, Bytes: bytes})
	}
	return out
}

// save writes the file where something was learnt, and not too often.
func (p *peaks) save(now time.Duration) error {
	if !p.dirty || p.home == "" || p.saved != 0 && now-p.saved < peaksSave {
		return nil
	}
	p.dirty, p.saved = false, now
	list := p.list()
	slices.SortFunc(list, func(a, b placement.Peak) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	raw, err := json.Marshal(list)
	if err == nil {
		err = replaceFile(filepath.Join(p.home, stateFolder, peaksFile), raw)
	}
	if err != nil {
		return fmt.Errorf("write what workers took of memory: %w", err)
	}
	return nil
}

// notePeaks looks at the workers that plans started and that have served. q.deploy.mu is held.
func (q *Queen) notePeaks(s *registry.Snapshot) {
	d := q.deploy
	for i := range s.Workers {
		w := &s.Workers[i]
		how, ok := d.started[w.Info.ID]
		if !ok || d.used[w.Info.ID].at == 0 || w.Exit != nil {
			continue
		}
		d.peaks.note(w, how.engine, how.context, how.slots)
	}
	if err := d.peaks.save(q.now()); err != nil {
		q.log.Warn("estimates of memory start from nothing after a restart", "error", err.Error())
	}
}
