package registry

import "time"

// Params are the registry's parameters. DefaultParams gives the defaults of the reliability contract; New replaces zero values
// by them.
type Params struct {
	Stale, Suspect, Down, Lost, Forget time.Duration // ages of the last beat

	Grace      time.Duration // after the start, in which nothing becomes down
	PauseAfter time.Duration // how late a tick must be for all ages to be shifted

	FlapChanges int // of being away or not, within FlapWindow, that make a hive suspect
	FlapWindow  time.Duration
	FlapHold    time.Duration // for so long it stays suspect

	BrakeShare  float64       // of the hives: when more fall silent at once, the mass-failure brake is on
	BrakeWindow time.Duration // within which that is at once
	BrakeHives  int           // with fewer there is no brake

	OutlierFailures int           // consecutive failures that eject a worker
	OutlierBase     time.Duration // first ejection; the nth lasts n times as long
	OutlierMax      time.Duration
	SlowStart       time.Duration

	Backoff       []time.Duration // waits before restarts; the last one repeats
	HealthyAfter  time.Duration   // a worker that was Ready this long resets the back-off
	CrashLimit    int             // crashes within CrashWindow that make a crash loop
	CrashWindow   time.Duration
	CrashLoopWait time.Duration // without automatic spawns after a crash loop
	OOMRestarts   int           // restarts after the first out-of-memory kill
}

// DefaultParams returns the defaults.
func DefaultParams() Params {
	return Params{
		Stale: 7500 * time.Millisecond, Suspect: 12500 * time.Millisecond, Down: 17500 * time.Millisecond, Lost: time.Minute,
		Forget: 24 * time.Hour,
		Grace:  17500 * time.Millisecond, PauseAfter: 2 * time.Second,
		FlapChanges: 3, FlapWindow: time.Minute, FlapHold: time.Minute,
		BrakeShare: 0.5, BrakeWindow: 10 * time.Second, BrakeHives: 3,
		OutlierFailures: 5, OutlierBase: 30 * time.Second, OutlierMax: 300 * time.Second, SlowStart: 30 * time.Second,
		Backoff: []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second,
			300 * time.Second},
		HealthyAfter: 10 * time.Minute, CrashLimit: 5, CrashWindow: 10 * time.Minute, CrashLoopWait: 15 * time.Minute,
		OOMRestarts: 2,
	}
}

func (p Params) withDefaults() Params {
	d := DefaultParams()
	for _, f := range []struct{ v, def *time.Duration }{
		{&p.Stale, &d.Stale}, {&p.Suspect, &d.Suspect}, {&p.Down, &d.Down}, {&p.Lost, &d.Lost}, {&p.Forget, &d.Forget},
		{&p.Grace, &d.Grace}, {&p.PauseAfter, &d.PauseAfter}, {&p.OutlierBase, &d.OutlierBase}, {&p.OutlierMax, &d.OutlierMax},
		{&p.SlowStart, &d.SlowStart}, {&p.HealthyAfter, &d.HealthyAfter}, {&p.CrashWindow, &d.CrashWindow},
		{&p.CrashLoopWait, &d.CrashLoopWait}, {&p.FlapWindow, &d.FlapWindow}, {&p.FlapHold, &d.FlapHold}, {&p.BrakeWindow, &d.BrakeWindow},
	} {
		if *f.v == 0 {
			*f.v = *f.def
		}
	}
	for _, f := range []struct{ v, def *int }{
		{&p.FlapChanges, &d.FlapChanges}, {&p.BrakeHives, &d.BrakeHives}, {&p.OutlierFailures, &d.OutlierFailures}, {&p.CrashLimit, &d.CrashLimit}, {&p.OOMRestarts, &d.OOMRestarts},
	} {
		if *f.v == 0 {
			*f.v = *f.def
		}
	}
	if p.BrakeShare == 0 {
		p.BrakeShare = d.BrakeShare
	}
	if len(p.Backoff) == 0 {
		p.Backoff = d.Backoff
	}
	return p
}
