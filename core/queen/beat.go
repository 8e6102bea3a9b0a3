package queen

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

var (
	workerID = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
)

// heartbeat takes a worker's beat, which carries the worker's own secret. The first one is the worker's registration.
func (q *Queen) heartbeat(w http.ResponseWriter, r *http.Request) {
	draining, err := q.takeBeat(w, r)
	if err != nil {
		q.o.Metrics.Beat("worker", "refused")
		httpd.WriteError(w, r, err)
		return
	}
	q.o.Metrics.Beat("worker", "accepted")
	httpd.WriteJSON(w, http.StatusOK, contract.HeartbeatReply{Queens: q.queens(), IntervalMS: int(q.o.Interval.Milliseconds()), Draining: draining})
}

// takeBeat reads a beat and gives it to the registry if its sender may speak for the worker and what it says can be. It returns whether
// the worker is being drained.
func (q *Queen) takeBeat(w http.ResponseWriter, r *http.Request) (draining bool, err error) {
	body, err := readBeat(w, r)
	if err != nil {
		return false, httpd.BodyError(err)
	}
	beat, err := decodeBeat(body)
	if err != nil {
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			return false, invalidBeat(te.Field, "has the wrong type")
		}
		return false, fault.New(fault.Invalid, "invalid_json", "The body is not a heartbeat.")
	}
	info := &beat.Worker
	if !workerID.MatchString(info.ID) || !secret.ForWorker(q.o.ClusterKey, info.ID).Equal(httpd.Bearer(r)) {
		return false, unauthorized("The beat does not carry the secret of the worker it speaks for.")
	}
	err = checkWorkerBeat(info)
	if err == nil {
		err = q.checkAddress(info, r.RemoteAddr)
	}
	if err != nil {
		q.log.Warn("beat refused", "worker", info.ID, "field", fault.As(err).Param, "error", err.Error())
		return false, err
	}
	q.step(registry.Beat{Heartbeat: beat})
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.machine.Draining(info.ID), nil
}

// readBeat reads a body of at most the size of a beat.
func readBeat(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength <= 0 || r.ContentLength > contract.MaxWorkerBeat {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, contract.MaxWorkerBeat))
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, body)
	return body, err
}

func invalidBeat(field, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, "invalid_beat", "The field %q of the heartbeat %s.", field, fmt.Sprintf(format, args...)).WithParam(field)
}

// Bounds of what a beat may say. Of text the size of a beat is the other one.
const (
	maxName   = 128
	maxText   = 1024
	maxLabels = 32
	maxCount  = math.MaxInt32
	maxTokens = 1 << 48
	maxMemory = 1 << 20 * contract.GiB
)

// text is a field of a beat that is shown to people, sent on or compared.
type text struct {
	field, value string
	required     bool
	most         int
}

// count is a number in a beat.
type count struct {
	field       string
	value       int64
	least, most int64
}

func checkText(t text) error {
	switch {
	case t.required && t.value == "":
		return invalidBeat(t.field, "is missing")
	case len(t.value) > t.most:
		return invalidBeat(t.field, "is longer than %d bytes", t.most)
	case contract.HasHidden(t.value):
		return invalidBeat(t.field, "holds control or format characters")
	}
	return nil
}

func checkFields(texts []text, counts []count) error {
	for _, t := range texts {
		if err := checkText(t); err != nil {
			return err
		}
	}
	for _, n := range counts {
		if n.value < n.least || n.value > n.most {
			return invalidBeat(n.field, "is %d and must be between %d and %d", n.value, n.least, n.most)
		}
	}
	return nil
}

// checkWorkerBeat refuses what no worker can be. It returns a *fault.Error whose Param is the field.
func checkWorkerBeat(w *contract.WorkerInfo) error {
	err := checkFields([]text{
		{"worker.model_id", w.ModelID, true, maxText}, {"worker.model_name", w.ModelName, false, maxText},
		{"worker.device", w.Device, true, maxName}, {"worker.implementation", w.Implementation, true, maxName},
		{"worker.version", w.Version, false, maxName}, {"worker.hive_id", w.HiveID, false, maxName},
		{"worker.boot_id", w.BootID, true, maxName}, {"worker.spawn_key", w.SpawnKey, false, maxText},
	}, []count{
		{"worker.port", int64(w.Port), 1, math.MaxUint16}, {"worker.pid", int64(w.PID), 1, maxCount},
		{"worker.contract_version", int64(w.ContractVersion), 1, maxCount}, {"worker.incarnation", w.Incarnation, 1, math.MaxInt64},
		{"worker.generation", w.Generation, 0, contract.MaxGeneration}, {"worker.context_length", int64(w.ContextLength), 0, maxCount},
		{"worker.slots", int64(w.Slots), 0, maxCount}, {"worker.slots_busy", int64(w.SlotsBusy), 0, maxCount},
		{"worker.queue_depth", int64(w.QueueDepth), 0, maxCount}, {"worker.kv_tokens_used", int64(w.KVTokensUsed), 0, maxTokens},
	})
	if err != nil {
		return err
	}
	for _, list := range []struct {
		field  string
		labels []string
	}{{"worker.apis", w.APIs}, {"worker.capabilities", w.Capabilities}} {
		if len(list.labels) > maxLabels {
			return invalidBeat(list.field, "has more than %d entries", maxLabels)
		}
		for _, l := range list.labels {
			if err := checkText(text{list.field, l, true, maxName}); err != nil {
				return err
			}
		}
	}
	switch w.Status {
	case contract.StatusStarting, contract.StatusReady, contract.StatusBusy, contract.StatusStopped:
	default:
		return invalidBeat("worker.status", "must be Starting, Ready, Busy or Stopped")
	}
	if w.MemoryBytes > maxMemory {
		return invalidBeat("worker.memory_bytes", "is %s, and no machine has more than %s", w.MemoryBytes, maxMemory)
	}
	if w.DeviceMemoryBytes > maxMemory {
		return invalidBeat("worker.device_memory_bytes", "is %s, and no machine has more than %s", w.DeviceMemoryBytes, maxMemory)
	}
	if w.LoadProgress < 0 || w.LoadProgress > 1 {
		return invalidBeat("worker.load_progress", "must be between 0 and 1")
	}
	return nil
}

// checkAddress refuses a worker that would have requests sent to a host that is not its own: requests carry prompts and the
// worker's secret. A worker listens where its hive does. One of a hive that is not known (yet), or that was started by hand,
// listens where its beat comes from, or on a hive of the configuration. peer is the host:port from which the beat came.
func (q *Queen) checkAddress(w *contract.WorkerInfo, peer string) error {
	const field = "worker.address"
	_, notIP := netip.ParseAddr(w.Address)
	switch {
	case w.Address == "":
		return invalidBeat(field, "is missing")
	case notIP != nil && !hostName.MatchString(w.Address):
		return invalidBeat(field, "is not a host")
	}
	if h, ok := q.Snapshot().Hive(w.HiveID); ok {
		if host := hostOf(h.Beat.Address); !sameHost(w.Address, host) {
			return invalidBeat(field, "is not the host of its hive, %q", host)
		}
		return nil
	}
	from, _, err := net.SplitHostPort(peer)
	if err == nil && sameHost(w.Address, from) {
		return nil
	}
	for _, base := range *q.configured.Load() {
		if sameHost(w.Address, hostOf(base)) {
			return nil
		}
	}
	return invalidBeat(field, "is neither where the beat comes from nor a hive of this queen")
}

func hostOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// sameHost reports whether two hosts are one: by name, by address, or because both are this machine.
func sameHost(a, b string) bool {
	x, xerr := netip.ParseAddr(a)
	y, yerr := netip.ParseAddr(b)
	loopback := func(name string, ip netip.Addr, err error) bool {
		return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(name, "localhost")
	}
	switch {
	case loopback(a, x, xerr):
		return loopback(b, y, yerr)
	case xerr == nil && yerr == nil:
		return x.Unmap() == y.Unmap()
	}
	return strings.EqualFold(a, b)
}

// checkHiveBeat refuses what no hive can be.
func checkHiveBeat(h contract.HiveBeat) error {
	err := checkFields([]text{
		{"id", h.ID, true, maxName}, {"name", h.Name, false, maxName}, {"version", h.Version, false, maxName}, {"boot_id", h.BootID, true, maxName},
		{"address", h.Address, true, maxText}, {"inventory_digest", h.InventoryDigest, true, maxName},
	}, []count{
		{"incarnation", h.Incarnation, 1, math.MaxInt64}, {"devices", int64(h.Devices), 0, maxCount}, {"models", int64(h.Models), 0, maxCount},
		{"engines", int64(h.Engines), 0, maxCount},
	})
	if err != nil {
		return err
	}
	u, err := url.Parse(h.Address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return invalidBeat("address", "is not the base URL of a hive")
	}
	return nil
}
