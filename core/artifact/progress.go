package artifact

import (
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// reportEvery bounds how often progress is reported.
const reportEvery = 100 * time.Millisecond

// meter reports the bytes of one action as they grow. A count that falls back, because a transfer starts again, is not
// shown before it is past the highest one shown. It belongs to one goroutine.
type meter struct {
	report          Report
	action, message string
	total           int64 // <= 0: not known
	shown           int64
	next            time.Time
}

func newMeter(report Report, action, message string, total int64) *meter {
	return &meter{report: report, action: action, message: message, total: total, shown: -1}
}

// set reports that n bytes are done, now and then.
func (m *meter) set(n int64) {
	if now := time.Now(); n > m.shown && !now.Before(m.next) {
		m.next = now.Add(reportEvery)
		m.finish(n)
	}
}

// finish reports n bytes in any case.
func (m *meter) finish(n int64) {
	m.shown = max(n, m.shown)
	p := &contract.Progress{Done: uint64(m.shown), Unit: "bytes"}
	if m.total > 0 {
		p.Total = uint64(max(m.total, m.shown))
	}
	m.report(m.action, m.message, p)
}
