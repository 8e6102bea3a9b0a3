package queen

import (
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
)

func (q *Queen) workerView(s *registry.Snapshot, w *registry.Worker) contract.WorkerView {
	h, _ := s.Hive(w.Info.HiveID)
	v := contract.WorkerView{WorkerInfo: w.Info, HiveName: h.Beat.Name, Liveness: w.Liveness, Condition: w.Condition,
		AgeMS: (q.now() - w.BeatAt).Milliseconds(), InFlight: q.o.InFlight(w.Info.ID), Reason: q.deploy.reason(w.Info.ID)}
	if name, n, onDemand := replicaOf(w.Info.SpawnKey); !onDemand {
		v.Deployment, v.Replica = name, n
	}
	return v
}

func (q *Queen) workerViews(s *registry.Snapshot) []contract.WorkerView {
	out := make([]contract.WorkerView, 0, len(s.Workers))
	for i := range s.Workers {
		out = append(out, q.workerView(s, &s.Workers[i]))
	}
	return out
}

func (q *Queen) hiveView(h *registry.Hive, devices bool) contract.HiveView {
	v := contract.HiveView{HiveBeat: h.Beat, Liveness: h.Liveness, AgeMS: (q.now() - h.BeatAt).Milliseconds(), Drained: q.book.drained()[h.Beat.ID]}
	if devices && h.Inventory != nil {
		v.DeviceList, v.Protection = h.Inventory.Devices, h.Inventory.Protection
	}
	return v
}

func (q *Queen) hiveViews(s *registry.Snapshot, devices bool) []contract.HiveView {
	out := make([]contract.HiveView, 0, len(s.Hives))
	for i := range s.Hives {
		out = append(out, q.hiveView(&s.Hives[i], devices))
	}
	return out
}
