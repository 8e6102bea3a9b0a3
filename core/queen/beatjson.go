package queen

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// decodeBeat reads a worker's beat. A large cluster sends thousands a second, so beats as workers/sdk writes them are read by a reader of
// their own, which costs a tenth of encoding/json; whatever is unusual in one is left to that.
func decodeBeat(body []byte) (contract.Heartbeat, error) {
	var fast contract.Heartbeat
	r := beatReader{text: string(body)}
	if r.beat(&fast) && r.at == len(r.text) {
		return fast, nil
	}
	var b contract.Heartbeat
	err := json.Unmarshal(body, &b)
	return b, err
}

// beatReader reads compact JSON without escapes, of ASCII, with exactly the known fields and types. A method that returns false has met
// something else, and what it was to fill is then worth nothing. Texts are parts of the one text, which costs one allocation.
type beatReader struct {
	text string
	at   int
}

func (r *beatReader) beat(b *contract.Heartbeat) bool {
	return r.object(func(key string) bool {
		switch key {
		case "worker":
			return r.worker(&b.Worker)
		case "timestamp":
			return r.time(&b.Timestamp)
		case "sequence":
			return r.unsigned(&b.Sequence)
		}
		return false
	})
}

func (r *beatReader) worker(w *contract.WorkerInfo) bool {
	return r.object(func(key string) bool {
		switch key {
		case "id":
			return r.string(&w.ID)
		case "model_id":
			return r.string(&w.ModelID)
		case "device":
			return r.string(&w.Device)
		case "port":
			return r.int(&w.Port)
		case "status":
			return r.string((*string)(&w.Status))
		case "implementation":
			return r.string(&w.Implementation)
		case "version":
			return r.string(&w.Version)
		case "contract_version":
			return r.int(&w.ContractVersion)
		case "incarnation":
			return r.signed(&w.Incarnation)
		case "model_name":
			return r.string(&w.ModelName)
		case "hive_id":
			return r.string(&w.HiveID)
		case "address":
			return r.string(&w.Address)
		case "pid":
			return r.int(&w.PID)
		case "boot_id":
			return r.string(&w.BootID)
		case "start_ticks":
			return r.unsigned(&w.StartTicks)
		case "started_at":
			return r.time(&w.StartedAt)
		case "spawn_key":
			return r.string(&w.SpawnKey)
		case "generation":
			return r.signed(&w.Generation)
		case "apis":
			return r.strings(&w.APIs)
		case "capabilities":
			return r.strings(&w.Capabilities)
		case "context_length":
			return r.int(&w.ContextLength)
		case "slots":
			return r.int(&w.Slots)
		case "slots_busy":
			return r.int(&w.SlotsBusy)
		case "queue_depth":
			return r.int(&w.QueueDepth)
		case "kv_tokens_used":
			return r.int(&w.KVTokensUsed)
		case "memory_bytes":
			return r.unsigned((*uint64)(&w.MemoryBytes))
		case "device_memory_bytes":
			return r.unsigned((*uint64)(&w.DeviceMemoryBytes))
		case "load_progress":
			return r.fraction(&w.LoadProgress)
		case "progress":
			return r.unsigned(&w.Progress)
		case "protection":
			w.Protection = &contract.Protection{}
			return r.protection(w.Protection)
		}
		return false
	})
}

func (r *beatReader) protection(p *contract.Protection) bool {
	return r.object(func(key string) bool {
		switch key {
		case "no_new_privs":
			return r.bool(&p.NoNewPrivs)
		case "landlock":
			return r.int(&p.Landlock)
		case "seccomp":
			return r.bool(&p.Seccomp)
		case "reason":
			return r.string(&p.Reason)
		}
		return false
	})
}

func (r *beatReader) bool(to *bool) bool {
	word := "false"
	if *to = strings.HasPrefix(r.text[r.at:], "true"); *to {
		word = "true"
	}
	if !strings.HasPrefix(r.text[r.at:], word) {
		return false
	}
	r.at += len(word)
	return true
}

// next takes c, if it is next.
func (r *beatReader) next(c byte) bool {
	if r.at < len(r.text) && r.text[r.at] == c {
		r.at++
		return true
	}
	return false
}

// object has value read what follows each key.
func (r *beatReader) object(value func(key string) bool) bool {
	if !r.next('{') {
		return false
	}
	for {
		var key string
		if !r.string(&key) || !r.next(':') || !value(key) {
			return false
		}
		if !r.next(',') {
			return r.next('}')
		}
	}
}

func (r *beatReader) string(to *string) bool {
	if !r.next('"') {
		return false
	}
	for i := r.at; i < len(r.text); i++ {
		switch c := r.text[i]; {
		case c == '"':
			*to, r.at = r.text[r.at:i], i+1
			return true
		case c == '\\', c < ' ', c >= 0x80:
			return false
		}
	}
	return false
}

func (r *beatReader) strings(to *[]string) bool {
	if !r.next('[') {
		return false
	}
	*to = make([]string, 0, 4)
	if r.next(']') {
		return true
	}
	for {
		var s string
		if !r.string(&s) {
			return false
		}
		*to = append(*to, s)
		if !r.next(',') {
			return r.next(']')
		}
	}
}

func (r *beatReader) time(to *time.Time) bool {
	from := r.at
	var s string
	return r.string(&s) && to.UnmarshalJSON([]byte(r.text[from:r.at])) == nil
}

// digits takes the digits of a number that begins with no needless zero.
func (r *beatReader) digits() bool {
	from := r.at
	for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
		r.at++
	}
	return r.at > from && (r.text[from] != '0' || r.at == from+1)
}

func (r *beatReader) unsigned(to *uint64) bool {
	from := r.at
	if !r.digits() {
		return false
	}
	n, err := strconv.ParseUint(r.text[from:r.at], 10, 64)
	*to = n
	return err == nil
}

func (r *beatReader) signed(to *int64) bool {
	from := r.at
	r.next('-')
	if !r.digits() {
		return false
	}
	n, err := strconv.ParseInt(r.text[from:r.at], 10, 64)
	*to = n
	return err == nil
}

func (r *beatReader) int(to *int) bool {
	var n int64
	ok := r.signed(&n)
	*to = int(n)
	return ok && int64(*to) == n
}

// fraction takes a number without a sign and without an exponent.
func (r *beatReader) fraction(to *float64) bool {
	from := r.at
	if !r.digits() {
		return false
	}
	if r.next('.') {
		after := r.at
		for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
			r.at++
		}
		if r.at == after {
			return false
		}
	}
	n, err := strconv.ParseFloat(r.text[from:r.at], 64)
	*to = n
	return err == nil
}
