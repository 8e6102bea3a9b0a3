package trust

import "time"

// Clock tells the time twice: as the machine's clock says it, and as it would be had nobody set that clock since this process
// started. A certificate is in time when it is by one of them, so that a clock that jumps ends nothing, and neither does a machine that
// slept, during which only the first goes on.
type Clock struct {
	wall  func() time.Time
	base  time.Time // of wall at start
	start time.Time // with its monotonic reading
}

// NewClock starts a clock. wall is what the machine's clock says; nil is time.Now.
func NewClock(wall func() time.Time) *Clock {
	if wall == nil {
		wall = time.Now
	}
	return &Clock{wall: wall, base: wall().Round(0), start: time.Now()}
}

// Now is the time by the machine's clock.
func (c *Clock) Now() time.Time { return c.wall().Round(0) }

// steady is the time since start, added to what it was then.
func (c *Clock) steady() time.Time { return c.base.Add(time.Since(c.start)) }

// within reports how now stands to a span that Leeway widens: before it -1, after it 1, inside 0.
func within(now, from, until time.Time) int {
	switch {
	case now.Before(from.Add(-Leeway)):
		return -1
	case now.After(until.Add(Leeway)):
		return 1
	}
	return 0
}

// within is the function of that name by the better of the two clocks.
func (c *Clock) within(from, until time.Time) int {
	at := within(c.Now(), from, until)
	if at != 0 && within(c.steady(), from, until) == 0 {
		return 0
	}
	return at
}
