package sdk

import (
	"encoding/json"
	"math"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Info returns how the worker is now: the answer of GET /info and the body of beats.
func (s *Server) Info() contract.WorkerInfo {
	st := s.o.Engine.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	w := contract.WorkerInfo{
		ID: s.o.WorkerID, ModelID: s.o.Model, Device: s.o.Device, Port: s.o.Port, Status: s.status(st),
		Implementation: s.o.Implementation, Version: s.o.Version,
		ContractVersion: contract.Version, Incarnation: s.started.UnixNano(), HiveID: s.o.HiveID, Address: s.o.Address,
		PID: s.identity.PID, BootID: s.identity.BootID, StartTicks: s.identity.StartTicks, StartedAt: s.started.UTC(),
		SpawnKey: s.o.SpawnKey, Generation: s.o.Generation, APIs: []string{contract.APIInfer}, Capabilities: []string{},
		ContextLength: s.o.Context, Slots: s.o.Slots, SlotsBusy: st.SlotsBusy, QueueDepth: st.QueueDepth, KVTokensUsed: st.KVTokensUsed,
		MemoryBytes: residentMemory(), DeviceMemoryBytes: st.DeviceMemory, LoadProgress: s.fraction, Progress: s.steps + st.Progress, Protection: &s.protects,
	}
	if m := s.model; m != nil {
		w.ContextLength, w.Slots, w.Capabilities = m.ContextLength, m.Slots, append(w.Capabilities, m.Capabilities...)
		for _, c := range []struct{ capability, api string }{
			{contract.CapabilityChat, contract.APIChat}, {contract.CapabilityCompletion, contract.APICompletions}, {contract.CapabilityEmbedding, contract.APIEmbeddings},
		} {
			if has(m.Capabilities, c.capability) {
				w.APIs = append(w.APIs, c.api)
			}
		}
	}
	return w
}

// status judges by what the engine says and by the requests that are with it, because a request is with the engine a moment
// before it has a slot, and an engine that ignores a cancel keeps its slot. It is called with mu held.
func (s *Server) status(st Stats) contract.WorkerStatus {
	switch {
	case s.stopping:
		return contract.StatusStopped
	case s.model == nil:
		return contract.StatusStarting
	case max(s.open, st.SlotsBusy) >= s.model.Slots:
		return contract.StatusBusy
	}
	return contract.StatusReady
}

// checkBeat refuses arguments with which a beat would be larger than queens take.
func (s *Server) checkBeat() error {
	w := s.Info()
	w.Port, w.PID, w.StartTicks, w.Generation, w.Status = math.MaxUint16, math.MaxInt32, math.MaxUint64, math.MaxInt64, contract.StatusStarting
	w.APIs = []string{contract.APIInfer, contract.APIChat, contract.APICompletions, contract.APIEmbeddings}
	w.Capabilities = []string{contract.CapabilityChat, contract.CapabilityCompletion, contract.CapabilityEmbedding, contract.CapabilityResume}
	w.ContextLength, w.Slots, w.SlotsBusy, w.QueueDepth, w.KVTokensUsed = math.MaxInt32, math.MaxInt32, math.MaxInt32, math.MaxInt32, math.MaxInt32
	w.MemoryBytes, w.DeviceMemoryBytes, w.LoadProgress, w.Progress = math.MaxUint64, math.MaxUint64, 1.0/3, math.MaxUint64
	w.Protection = &contract.Protection{Landlock: math.MaxInt32, Seccomp: true}
	b, err := json.Marshal(contract.Heartbeat{Worker: w, Timestamp: time.Now().UTC(), Sequence: math.MaxUint64})
	if err != nil || len(b) > contract.MaxWorkerBeat {
		return fault.New(fault.Invalid, "beat_too_large",
			"The worker's heartbeat would have %d bytes and at most %d are allowed; use a shorter --model, --spawn-key or --device.", len(b), contract.MaxWorkerBeat)
	}
	return nil
}
