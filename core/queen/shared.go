package queen

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

const (
	stateFolder   = "state"
	sharedFile    = "shared.json"
	maxShared     = 64 * contract.MiB
	tombstoneKept = 30 * 24 * time.Hour
)

// book holds the records that queens share, and keeps them in a file. Its methods may be called from many goroutines.
type book struct {
	home string // of the agent; empty: nothing is kept
	node string
	now  func() time.Time

	mu      sync.Mutex // guards the fields below
	records map[recordKey]contract.Record
	// configured is what this agent's configuration said of deployments when it was last read, as digests by their names: only what has
	// changed in it since is a wish that may be newer than the records.
	configured  map[string]string
	time, count int64 // of the newest record that was made or seen
	size        int   // of all records
	// revs says at which revision of the book each record changed last.
	revs map[recordKey]int64
	rev  int64
	// sum is the digest of all records as it was at sumAt; empty: not known.
	sum   string
	sumAt time.Time
}

type recordKey struct{ kind, key string }

// sharedState is the form of the file.
type sharedState struct {
	Records    []contract.Record `json:"records"`
	Configured map[string]string `json:"configured,omitempty"`
}

// openBook reads the records of a data folder. A file that is not there is an empty one.
func openBook(home, node string) (*book, error) {
	b := &book{home: home, node: node, now: time.Now, records: map[recordKey]contract.Record{}, configured: map[string]string{}, revs: map[recordKey]int64{}}
	if home == "" {
		return b, nil
	}
	if err := folder.Make(home, stateFolder); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", folder.Full(err, home, "the state folder", 0))
	}
	path := filepath.Join(home, stateFolder, sharedFile)
	raw, err := folder.ReadFile(path, maxShared)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the shared records: %w", err)
	}
	var s sharedState
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fault.New(fault.Invalid, "damaged_state_file", "%s cannot be read (%v); restore it, or remove it and run `apiary apply` again.", path, err)
	}
	for _, r := range s.Records {
		r.Value = compact(r.Value)
		b.set(r)
	}
	maps.Copy(b.configured, s.Configured)
	return b, nil
}

// put makes a record; a nil value takes it back. b.mu is held.
func (b *book) put(kind, key string, value any) error {
	r := contract.Record{Kind: kind, Key: key, Deleted: value == nil, Node: b.node}
	if value != nil {
		var err error
		if r.Value, err = json.Marshal(value); err != nil {
			return fmt.Errorf("write the record of %s %s: %w", kind, key, err)
		}
	}
	if r.Size() > int(contract.MaxRecords) {
		return fault.New(fault.Invalid, "record_too_large", "The %s %s takes more than %s and cannot be shared with other queens; make it smaller, or give its workers a file in the place of long values.", kind, quoted(key), contract.MaxRecords)
	}
	old, known := b.records[recordKey{kind, key}]
	if known && old.Deleted == r.Deleted && bytes.Equal(old.Value, r.Value) || !known && r.Deleted {
		return nil
	}
	if !known && len(b.records) >= maxOwnRecords || r.Size() > old.Size() && b.size+r.Size() > int(maxOwnBytes) {
		return fault.New(fault.Exhausted, "too_many_records", "The deployments, drained hives and API keys take %d records and %s, and there is no room for more; take back what is not needed, and of many small ones wait a month, for so long it is known that they were taken back.",
			len(b.records), contract.Bytes(b.size))
	}
	switch now := min(b.now().UnixMilli(), maxRecordTime-1); {
	case now > b.time:
		r.Time = now
	case b.count < maxRecordCount:
		r.Time, r.Count = b.time, b.count+1
	default: // somebody has written the last record that there can be
		return fault.New(fault.Exhausted, "records_at_end", "Nothing can be applied, drained or revoked any more, because a record at the end of all time was shared; stop all queens, remove state/%s from their data folders, and apply again.", sharedFile)
	}
	b.set(r)
	return nil
}

// save writes the file. b.mu is held.
func (b *book) save() error {
	s := sharedState{Records: []contract.Record{}, Configured: b.configured}
	for k, r := range b.records {
		if expired(r) {
			delete(b.records, k)
			delete(b.revs, k)
			b.size -= r.Size()
			b.sum = ""
			continue
		}
		s.Records = append(s.Records, r)
	}
	slices.SortFunc(s.Records, func(x, y contract.Record) int {
		return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Key, y.Key))
	})
	if b.home == "" {
		return nil
	}
	var raw bytes.Buffer
	enc := json.NewEncoder(&raw) // values as they are: neither white space nor escapes make them larger than what was counted
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return fmt.Errorf("write the shared records: %w", err)
	}
	path := filepath.Join(b.home, stateFolder, sharedFile)
	if err := replaceFile(path, raw.Bytes()); err != nil {
		return fmt.Errorf("write the shared records: %w", folder.Full(err, b.home, "the shared records", int64(raw.Len())))
	}
	return nil
}

// replaceFile writes a file that only its owner reads, whole or not at all.
func replaceFile(path string, content []byte) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := folder.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = cmp.Or(err, f.Sync())
	err = cmp.Or(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// change makes records by f and keeps them in the file, or where one of that fails changes nothing: what is refused here must not be in
// force at other queens. b.mu is held.
func (b *book) change(f func() error) error {
	records, revs, configured := maps.Clone(b.records), maps.Clone(b.revs), b.configured
	at, count, size := b.time, b.count, b.size
	err := f()
	if err == nil {
		err = b.save()
	}
	if err != nil {
		b.records, b.revs, b.configured, b.time, b.count, b.size, b.sum = records, revs, configured, at, count, size, ""
	}
	return err
}

// configure takes over what changed in the configuration of this agent since it was last read.
func (b *book) configure(list []contract.Deployment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := map[string]string{}
	for _, d := range list {
		now[d.Name] = digestOf(d)
	}
	if maps.Equal(b.configured, now) {
		return nil
	}
	return b.change(func() error {
		for _, d := range list {
			if b.configured[d.Name] != now[d.Name] {
				if err := b.put(contract.RecordDeployment, d.Name, d); err != nil {
					return err
				}
			}
		}
		for name := range b.configured {
			if now[name] == "" {
				if err := b.put(contract.RecordDeployment, name, nil); err != nil {
					return err
				}
			}
		}
		b.configured = now
		return nil
	})
}

// apply makes the list the deployments in force.
func (b *book) apply(list []contract.Deployment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.change(func() error {
		for _, d := range b.list() {
			if !slices.ContainsFunc(list, func(o contract.Deployment) bool { return o.Name == d.Name }) {
				if err := b.put(contract.RecordDeployment, d.Name, nil); err != nil {
					return err
				}
			}
		}
		for _, d := range list {
			if err := b.put(contract.RecordDeployment, d.Name, d); err != nil {
				return err
			}
		}
		return nil
	})
}

// drain notes whether a hive is drained.
func (b *book) drain(hiveID string, on bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var value any
	if on {
		value = true
	}
	return b.change(func() error { return b.put(contract.RecordDrain, hiveID, value) })
}

// deployments lists those in force, by name.
func (b *book) deployments() []contract.Deployment {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list()
}

// list is deployments. b.mu is held.
func (b *book) list() []contract.Deployment {
	out := []contract.Deployment{}
	for k, r := range b.records {
		var d contract.Deployment
		if k.kind == contract.RecordDeployment && !r.Deleted && json.Unmarshal(r.Value, &d) == nil && d.Name == k.key {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(x, y contract.Deployment) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// removed lists the names of the deployments that were taken back.
func (b *book) removed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for k, r := range b.records {
		if k.kind == contract.RecordDeployment && r.Deleted {
			out = append(out, k.key)
		}
	}
	slices.Sort(out)
	return out
}

// drained are the node ids of the hives that are drained.
func (b *book) drained() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]bool{}
	for k, r := range b.records {
		if k.kind == contract.RecordDrain && !r.Deleted {
			out[k.key] = true
		}
	}
	return out
}

// digestOf tells one value from another. What is given to it can always be encoded.
func digestOf(v any) string {
	raw, _ := json.Marshal(v)
	h := fnv.New64a()
	_, _ = h.Write(raw)
	return fmt.Sprintf("%016x", h.Sum64())
}
