package placement

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// refusals counts why devices were not taken.
type refusals struct {
	hives, memory, killed, fenced, drained, silent, excluded, other int

	need     int64         // the least that would do
	most     int64         // the most that a device has free
	loops    int           // devices on which workers keep crashing
	waits    int           // devices that wait for the next attempt
	until    time.Duration // when the first of them may be tried again
	lastFail string
	place    Place // of the last device that refuses
}

func (r *refusals) add(pl *planner, d *deployment, v *dev, code string, c candidate) {
	r.hives++
	switch code {
	case ShortDoesNotFit:
		if r.memory == 0 || c.need < r.need {
			r.need = c.need
		}
		if r.memory == 0 || c.room > r.most {
			r.most = c.room
		}
		r.memory++
		r.place = v.place
	case notRemembers:
		r.killed++
		r.place = v.place
	case ShortCrashLoop, ShortBackOff:
		p := pl.pastOf(d, v.place)
		if r.until == 0 || p.Until < r.until {
			r.until, r.lastFail = p.Until, p.Reason
		}
		if code == ShortCrashLoop {
			r.loops++
		} else {
			r.waits++
		}
	case ShortFenced:
		r.fenced++
	case notDrained:
		r.drained++
	case notSilent:
		r.silent++
	case notExcluded, notGPU:
		r.excluded++
	default:
		r.other++
	}
}

// short tells a shortfall, the first of each deployment only.
func (pl *planner) short(d *deployment, missing int, code, reason string, retry time.Duration) {
	if d.short {
		return
	}
	d.short = true
	pl.plan.Shortfalls = append(pl.plan.Shortfalls, Shortfall{Deployment: d.Name, Missing: missing, Code: code, Reason: reason, RetryAfter: retry})
}

// shortOf tells why no device was taken: the reason that is nearest to being none.
func (pl *planner) shortOf(d *deployment, r refusals) {
	retry := time.Duration(0)
	if r.until > pl.in.Now {
		pl.wake(r.until)
		retry = r.until - pl.in.Now
	}
	explain := fmt.Sprintf("`apiary explain %s` says why", d.Name)
	switch {
	case r.loops > 0:
		pl.short(d, 1, ShortCrashLoop, fmt.Sprintf("The workers of %s keep ending, so none is started by itself for another %s; `apiary worker logs` shows why they end.", d.Name, short(retry)), retry)
	case r.waits > 0:
		pl.short(d, 1, ShortBackOff, fmt.Sprintf("%s is tried again in %s, because its last worker failed (%s); `apiary job list` says more.", d.Name, short(retry), orElse(r.lastFail, "no reason given")), retry)
	case r.memory == 1 && r.killed == 0:
		pl.short(d, 1, ShortDoesNotFit, fmt.Sprintf("%s needs %s and %s has %s free; %s.", d.Name, amount(r.need), pl.name(r.place), amount(r.most), explain), 0)
	case r.memory > 0:
		pl.short(d, 1, ShortDoesNotFit, fmt.Sprintf("%s needs %s and no device has that free; %s.", d.Name, amount(r.need), explain), 0)
	case r.killed == 1:
		pl.short(d, 1, ShortDoesNotFit, fmt.Sprintf("%s does not fit on %s: its workers were killed there for want of memory; choose a smaller model or context.", d.Name, pl.name(r.place)), 0)
	case r.killed > 1:
		pl.short(d, 1, ShortDoesNotFit, fmt.Sprintf("%s does not fit on any device: its workers were killed for want of memory; choose a smaller model or context.", d.Name), 0)
	case r.other > 0:
		pl.short(d, 1, ShortDoesNotFit, fmt.Sprintf("%s fits on no device that is left; %s.", d.Name, explain), 0)
	case r.fenced > 0:
		pl.short(d, 1, ShortFenced, fmt.Sprintf("%s cannot be placed: every device for it is fenced; %s.", d.Name, explain), 0)
	case r.drained > 0:
		pl.short(d, 1, ShortDrained, fmt.Sprintf("%s cannot be placed: the hives for it are drained; `apiary hive resume` takes one back.", d.Name), 0)
	case r.silent > 0:
		pl.short(d, 1, ShortNoHive, fmt.Sprintf("%s cannot be placed: no hive for it answers; `apiary hive list` shows since when.", d.Name), 0)
	case r.excluded > 0:
		pl.short(d, 1, ShortExcluded, fmt.Sprintf("%s cannot be placed: its rules exclude every device; %s.", d.Name, explain), 0)
	default:
		pl.short(d, 1, ShortNoHive, fmt.Sprintf("%s cannot be placed: no hive is known; `apiary agent --join` adds one.", d.Name), 0)
	}
}

// startText says why a worker is started, and why there.
func (pl *planner) startText(d *deployment, n int, code string, c *candidate, a *Action) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s goes to %s", Key(d.Name, n), pl.name(c.v.place))
	switch code {
	case CodeReplace:
		b.WriteString(" because its last worker failed or is lost")
	case CodeDemand:
		b.WriteString(" because requests wait for it")
	case CodeQueue:
		fmt.Fprintf(&b, " because requests have queued for %s", short(pl.in.Now-d.Pressure.QueuedSince))
	case CodeChange:
		b.WriteString(" because the deployment changed")
	case CodeDrained:
		b.WriteString(" because its hive is drained")
	case CodeExcluded:
		b.WriteString(" because the deployment's rules exclude the device it is on")
	}
	if c.need > 0 {
		fmt.Fprintf(&b, ": it needs %s of %s free", amount(c.need), amount(c.room))
	} else {
		b.WriteString(": it needs no memory worth mentioning")
	}
	if c.context > 0 && c.context < pl.autoContext(d) {
		fmt.Fprintf(&b, " with a context of %s tokens, as more does not fit", thousands(c.context))
	}
	switch {
	case c.fetch == 0 && d.model.Bytes > 0:
		b.WriteString(", and the weights are there already")
	case c.fetch > 0 && a.From != "":
		fmt.Fprintf(&b, ", and %s are fetched from %s", c.fetch, pl.hiveName(a.From))
	case c.fetch > 0:
		fmt.Fprintf(&b, ", and %s are fetched from the model's origin", c.fetch)
	}
	if len(a.After) > 0 {
		has := "have"
		if len(a.After) == 1 {
			has = "has"
		}
		fmt.Fprintf(&b, ", once %s %s ended", strings.Join(a.After, " and "), has)
	}
	return b.String() + "."
}

// staleText says why a worker is to be replaced.
func (pl *planner) staleText(d *deployment, w *Worker, code string) string {
	switch code {
	case staleDrained:
		return "the hive " + pl.hiveName(w.Hive) + " is drained"
	case staleExcluded:
		at := Place{w.Hive, first(w.Devices)}
		return pl.name(at) + " is " + d.banned(pl.byPlace[at])
	}
	return "the deployment " + d.Name + " has changed"
}

func (pl *planner) hiveName(id string) string {
	if h := pl.hives[id]; h != nil && h.Name != "" {
		return h.Name
	}
	return id
}

// short gives a duration to the second.
func short(d time.Duration) string {
	s := max(d, 0).Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
