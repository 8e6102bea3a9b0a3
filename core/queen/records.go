package queen

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Queens share records by giving each other those that have changed, and all of them where their digests differ. The newest one of a key
// counts, by a clock that is a queen's own but never behind a record that it has seen, so that what is written by somebody who knew of
// another record counts more than that.
//
// A queen whose clock is wrong locks nobody out. Records from its future, or what others take for that, are taken, and the clock of each
// queen that sees one moves on with it: what is written anywhere afterwards counts more, although it has nearly the same time. Were such
// records refused, queens would differ for as long as a clock is wrong, and one whose clock stands in 1970 would refuse all there is. Only what no clock says is
// refused: before 1970, or after 2099, from where no room would be left.
const (
	maxRecordTime  = 4_102_444_800_000 // 2100-01-01, in Unix milliseconds
	maxRecordCount = 1 << 52
	maxRecordKeys  = 40_000 // with those that were taken back within a month
	maxOwnRecords  = 36_000 // that a queen adds to: what two add that do not hear each other the others take
	maxRecordKind  = 64
	maxRecordKey   = 256
	maxRecordBytes = 40 * contract.MiB // of all, so that the file of them can be read again
	maxOwnBytes    = 32 * contract.MiB

	sumKept = 10 * time.Second // then a record may have expired
)

// compact is a value without the white space of a file.
func compact(v json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if len(v) == 0 || json.Compact(&b, v) != nil {
		return v
	}
	return b.Bytes()
}

// expired reports whether a record was taken back so long ago that nobody can have missed it.
func expired(r contract.Record) bool {
	return r.Deleted && time.Now().UnixMilli()-r.Time > tombstoneKept.Milliseconds()
}

// set takes a record in. b.mu is held, or b is not shared yet.
func (b *book) set(r contract.Record) {
	k := recordKey{r.Kind, r.Key}
	b.rev++
	b.size += r.Size()
	if old, known := b.records[k]; known {
		b.size -= old.Size()
	}
	b.records[k], b.revs[k], b.sum = r, b.rev, ""
	if cmp.Or(cmp.Compare(r.Time, b.time), cmp.Compare(r.Count, b.count)) > 0 {
		b.time, b.count = r.Time, r.Count
	}
}

// checkRecord refuses what no queen writes.
func checkRecord(r contract.Record) error {
	switch {
	case r.Kind == "" || strings.Contains(r.Kind, "/") || len(r.Kind) > maxRecordKind || r.Key == "" || len(r.Key) > maxRecordKey || contract.HasHidden(r.Kind+r.Key):
		return fmt.Errorf("a record has no usable kind and key")
	case r.Node == "" || len(r.Node) > maxName || contract.HasHidden(r.Node):
		return fmt.Errorf("the record of %s %s does not say who wrote it", r.Kind, quoted(r.Key))
	case r.Time <= 0 || r.Time >= maxRecordTime || r.Count < 0 || r.Count > maxRecordCount:
		return fmt.Errorf("the record of %s %s is of a time that no clock says", r.Kind, quoted(r.Key))
	case r.Deleted != (len(r.Value) == 0) || r.Size() > int(contract.MaxRecords):
		return fmt.Errorf("the record of %s %s has no usable value", r.Kind, quoted(r.Key))
	}
	return nil
}

// merge takes in the records of another queen that are newer than what is here, and keeps them in the file. It reports whether there were
// any. refused has one of those that cannot be meant, which are left out; err is of the file.
func (b *book) merge(list []contract.Record) (changed bool, refused, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range list {
		if bad := checkRecord(r); bad != nil {
			refused = bad
			continue
		}
		old, known := b.records[recordKey{r.Kind, r.Key}]
		switch {
		case known && r.Compare(old) <= 0, expired(r):
			continue
		case !known && len(b.records) >= maxRecordKeys:
			refused = fmt.Errorf("there are more than %d records", maxRecordKeys)
			continue
		case r.Size() > old.Size() && b.size+r.Size() > int(maxRecordBytes):
			refused = fmt.Errorf("all records take more than %s", maxRecordBytes)
			continue
		}
		r.Value = compact(r.Value)
		b.set(r)
		changed = true
	}
	if !changed {
		return false, refused, nil
	}
	return true, refused, b.save()
}

// digest tells whether two queens have the same records.
func (b *book) digest() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sum != "" && time.Since(b.sumAt) < sumKept {
		return b.sum
	}
	h := fnv.New64a()
	for _, k := range b.sorted() {
		if r := b.records[k]; !expired(r) {
			_, _ = fmt.Fprintf(h, "%q %q %d %d %q %t\n", r.Kind, r.Key, r.Time, r.Count, r.Node, r.Deleted)
		}
	}
	b.sum, b.sumAt = fmt.Sprintf("%016x", h.Sum64()), time.Now()
	return b.sum
}

// sorted lists the keys of the records in an order that all queens have. b.mu is held.
func (b *book) sorted() []recordKey {
	out := make([]recordKey, 0, len(b.records))
	for k := range b.records {
		out = append(out, k)
	}
	slices.SortFunc(out, recordKey.compare)
	return out
}

func (k recordKey) compare(o recordKey) int {
	return cmp.Or(strings.Compare(k.kind, o.kind), strings.Compare(k.key, o.key))
}

// since lists the records that changed after a revision, and the revision now. ok is false where they are too many for one message.
func (b *book) since(rev int64) (list []contract.Record, now int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list = []contract.Record{}
	if rev == b.rev {
		return list, b.rev, true
	}
	size := 0
	for k, r := range b.records {
		if b.revs[k] > rev {
			list = append(list, r)
			size += r.Size()
		}
	}
	if size > int(contract.MaxRecords) {
		return []contract.Record{}, b.rev, false
	}
	return list, b.rev, true
}

// page lists records from the one that follows after, which is a next of before or empty, as many as go into a message. next is empty when
// there are no more.
func (b *book) page(after string) (list []contract.Record, next string) {
	kind, key, _ := strings.Cut(after, "/")
	b.mu.Lock()
	defer b.mu.Unlock()
	list = []contract.Record{}
	size := 0
	for _, k := range b.sorted() {
		if after != "" && k.compare(recordKey{kind, key}) <= 0 {
			continue
		}
		r := b.records[k]
		if size += r.Size(); size > int(contract.MaxRecords) && len(list) > 0 {
			last := list[len(list)-1]
			return list, last.Kind + "/" + last.Key
		}
		list = append(list, r)
	}
	return list, ""
}
