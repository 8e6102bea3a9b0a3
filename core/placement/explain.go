package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

// Verdict says whether another worker could run at a place, and why not.
type Verdict struct {
	Place  Place
	Name   string // "tower/cuda0", or "attic/*" for a hive that takes nothing at all
	OK     bool
	Code   string // why not; empty when it could
	Reason string
	Evicts []string // ids of the workers that would have to go
}

// Choice is a smaller form of a model that would fit now.
type Choice struct {
	Variant string // another quantisation; empty: of the same one
	Context int    // a smaller context; 0: the same one
	Need    contract.Bytes
	Place   Place
	Text    string
}

// Explanation says where another worker of a model could run.
type Explanation struct {
	Name     string
	Variant  string
	Context  int // 0: the engine's choice
	Need     contract.Bytes
	Accuracy float64 // of Need, as a share
	Places   []Verdict
	Smaller  []Choice // only where it fits nowhere without others' going
}

// Explain says for each device whether another worker of a deployment or model could run there, and why not. ok is false when there
// is neither a deployment nor a model of that name or id.
func Explain(in Input, name string) (e Explanation, ok bool) {
	pl := newPlanner(&in)
	d := pl.byName[name]
	if d == nil {
		for i := range in.Models {
			if m := &in.Models[i]; m.ID == name || m.Name == name {
				d = &deployment{Deployment: &Deployment{Name: m.Name, Model: m.ID, Max: 1}, model: m, replicas: map[int]*replica{},
					opinions: map[int]*Opinion{}, allowed: map[int]string{}, onHive: map[string]int{}, at: map[Place][]int{}}
				break
			}
		}
	}
	if d == nil || d.model == nil {
		return e, false
	}
	n, _ := d.vacant(nil)
	e = Explanation{Name: d.Name, Variant: d.model.Variant}
	if list := pl.contexts(d, nil); len(list) > 0 {
		e.Context = list[0]
	}
	fits := false
	for i := 0; i < len(pl.devs); i++ {
		v := pl.devs[i]
		c, code := pl.consider(d, n, v, true, true)
		verdict := Verdict{Place: v.place, Name: pl.name(v.place), OK: code == "", Code: code}
		switch code {
		case "":
			verdict.Reason = pl.yes(&c)
			for _, w := range c.evict {
				verdict.Evicts = append(verdict.Evicts, w.ID)
			}
			fits = fits || c.tier != tierEvict
			if e.Need == 0 {
				e.Context, e.Need = c.context, amount(c.need)
				_, e.Accuracy = pl.need(d, v.place, c.context, d.Slots)
			}
		case notDrained, notSilent:
			verdict.Place.Device, verdict.Name = "*", strings.TrimSuffix(verdict.Name, v.place.Device)+"*"
			verdict.Reason = pl.no(d, v, code, &c)
			for i+1 < len(pl.devs) && pl.devs[i+1].hive == v.hive {
				i++
			}
		default:
			verdict.Reason = pl.no(d, v, code, &c)
		}
		e.Places = append(e.Places, verdict)
	}
	if e.Need == 0 && len(pl.devs) > 0 {
		var need int64
		need, e.Accuracy = pl.need(d, Place{}, e.Context, d.Slots)
		e.Need = amount(need)
	}
	if !fits {
		e.Smaller = pl.smaller(d, n, e.Context)
	}
	return e, true
}

// yes says how a worker would fit.
func (pl *planner) yes(c *candidate) string {
	var b strings.Builder
	switch c.tier {
	case tierNow:
		fmt.Fprintf(&b, "%s needed, %s free", amount(c.need), amount(c.room))
	case tierAfter:
		fmt.Fprintf(&b, "%s needed, %s free once the workers that are being drained have ended", amount(c.need), amount(c.room))
	default:
		b.WriteString("would evict ")
		for i, w := range c.evict {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%s (idle %s, priority %d)", w.Deployment, short(pl.idle(w)), pl.byName[w.Deployment].Priority)
		}
	}
	if c.fetch > 0 {
		fmt.Fprintf(&b, "; fetches %s", c.fetch)
	}
	return b.String()
}

// no says why a device is none for the deployment.
func (pl *planner) no(d *deployment, v *dev, code string, c *candidate) string {
	h := v.hive
	switch code {
	case notDrained:
		return "hive " + h.Name + " is drained"
	case notSilent:
		return fmt.Sprintf("hive %s is %s: no beat for %s", h.Name, h.Liveness, short(pl.in.Now-h.BeatAt))
	case ShortFenced:
		return "the device is fenced: " + v.d.Fenced
	case notExcluded:
		return d.opinion(v).Excluded
	case notGPU:
		return "there is one replica on each accelerator, and this is a processor"
	case notTwice:
		return "there is one replica on each accelerator, and this has its own"
	case notKnown:
		return "the memory of the device is not known"
	case notRemembers:
		if p := pl.pastOf(d, v.place); p.Context > 0 {
			return fmt.Sprintf("its workers were killed there for want of memory, last with a context of %s tokens", thousands(p.Context))
		}
		return "its workers were killed there for want of memory"
	case ShortCrashLoop:
		return fmt.Sprintf("its workers keep ending there (%s); none is started by itself for another %s", orElse(pl.pastOf(d, v.place).Reason, "no reason given"), short(pl.pastOf(d, v.place).Until-pl.in.Now))
	case ShortBackOff:
		return fmt.Sprintf("its last worker there failed (%s) and is started again in %s", orElse(pl.pastOf(d, v.place).Reason, "no reason given"), short(pl.pastOf(d, v.place).Until-pl.in.Now))
	}
	var who []string
	for _, w := range v.pool.workers {
		if name := orElse(w.Deployment, w.ID); !slices.Contains(who, name) {
			who = append(who, name)
		}
	}
	after := "reserve"
	if len(who) > 3 {
		after += fmt.Sprintf(" and %d workers", len(v.pool.workers))
	} else if len(who) > 0 {
		after += " and " + strings.Join(who, ", ")
	}
	return fmt.Sprintf("%s needed, %s free after %s", amount(c.need), amount(c.room), after)
}

// smaller looks for other quantisations, the largest first, and for the largest smaller context that fit somewhere now.
func (pl *planner) smaller(d *deployment, n, context int) []Choice {
	var out []Choice
	best := func(as *deployment) *candidate {
		c, _ := pl.choose(as, n, false, true)
		return c
	}
	variants := slices.Clone(d.model.Variants)
	slices.SortStableFunc(variants, func(a, b Variant) int {
		x, y := a.Estimate.size(context, d.Slots), b.Estimate.size(context, d.Slots)
		switch {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, v := range variants {
		m := *d.model
		m.ID, m.Estimate = d.model.ID+":"+v.Name, v.Estimate // what is known of the model's past is not of this one
		w := *d.Deployment
		w.Model = m.ID
		as := *d
		as.Deployment, as.model = &w, &m
		if c := best(&as); c != nil && v.Estimate.Weights < d.model.Estimate.Weights {
			out = append(out, Choice{Variant: v.Name, Need: amount(c.need), Place: c.v.place, Text: fmt.Sprintf("%s (%s) on %s", v.Name, amount(c.need), pl.name(c.v.place))})
			break
		}
	}
	if d.model.Estimate.PerToken > 0 && context > 0 {
		for _, tokens := range pl.ladder(context)[1:] {
			w := *d.Deployment
			w.Context = tokens
			as := *d
			as.Deployment = &w
			if c := best(&as); c != nil {
				out = append(out, Choice{Context: tokens, Need: amount(c.need), Place: c.v.place, Text: fmt.Sprintf("context %s on %s", thousands(tokens), pl.name(c.v.place))})
				break
			}
		}
	}
	return out
}

// Text is the explanation for a person, as `apiary explain` prints it.
func (e Explanation) Text() string {
	var b strings.Builder
	b.WriteString(e.Name)
	var about []string
	if e.Variant != "" {
		about = append(about, e.Variant)
	}
	if e.Need > 0 {
		need := e.Need.String()
		if e.Context > 0 {
			need += fmt.Sprintf(" with %s tokens of context", thousands(e.Context))
		}
		about = append(about, need, fmt.Sprintf("estimate ± %.0f %%", 100*e.Accuracy))
	}
	if len(about) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(about, ", "))
	}
	b.WriteByte('\n')
	width := 0
	for _, v := range e.Places {
		width = max(width, len(v.Name))
	}
	for _, v := range e.Places {
		answer := "no "
		if v.OK {
			answer = "yes"
		}
		fmt.Fprintf(&b, "  %-*s  %s  %s\n", width, v.Name, answer, v.Reason)
	}
	if len(e.Places) == 0 {
		b.WriteString("  no hive is known\n")
	}
	if len(e.Smaller) > 0 {
		var list []string
		for _, c := range e.Smaller {
			list = append(list, c.Text)
		}
		fmt.Fprintf(&b, "Smaller choices that fit now: %s.\n", strings.Join(list, ", "))
	}
	return b.String()
}
