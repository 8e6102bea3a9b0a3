package queen

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
)

const maxDeployments = 1000

// checkPlacing refuses bodies that cannot be meant.
func checkPlacing(op string, plan contract.PlanRequest, explain contract.ExplainRequest, drain contract.HiveDrain) error {
	missing := func(field string) error {
		return fault.New(fault.Invalid, field+"_missing", "%s needs the field %q.", op, field).WithParam(field)
	}
	switch op {
	case contract.OpPlan, contract.OpApply:
		if plan.Deployments == nil {
			return missing("deployments")
		}
		return checkDeployments(plan.Deployments)
	case contract.OpExplain:
		if explain.Model == "" {
			return missing("model")
		}
	case contract.OpHiveDrain:
		if drain.HiveID == "" {
			return missing("hive_id")
		}
	}
	return nil
}

// checkDeployments refuses what no configuration says.
func checkDeployments(list []contract.Deployment) error {
	if len(list) > maxDeployments {
		return fault.New(fault.Invalid, "too_many_deployments", "There can be at most %d deployments, and these are %d.", maxDeployments, len(list)).WithParam("deployments")
	}
	names := map[string]bool{}
	for _, d := range list {
		wrong := func(format string, args ...any) error {
			return fault.New(fault.Invalid, "invalid_deployment", "The deployment %s is not one: %s.", quoted(d.Name), fmt.Sprintf(format, args...)).WithParam("deployments")
		}
		switch r := d.Replicas; {
		case !workerID.MatchString(d.Name):
			return wrong("its name must have lower-case letters, digits, dots, dashes and underscores")
		case names[d.Name]:
			return wrong("there are two of that name")
		case d.Source == "" || d.Model == "" || contract.HasHidden(d.Source+d.Model) || len(d.Source) > maxReference || len(d.Model) > maxReference:
			return wrong("it needs a model, by a name and a reference")
		case d.Worker.Name == "" || d.Worker.Adapter == "":
			return wrong("it needs a kind of worker")
		case r.Min < 0 || r.Max < 0 || r.Min > maxDeployments || r.Max > maxDeployments || r.Per != "" && r.Per != contract.PerGPU:
			return wrong("its replicas are from 0 to %d, or per gpu", maxDeployments)
		case d.Context < 0 || d.Slots < 0 || d.Slots > contract.MaxSlots || d.Threads < 0 || d.IdleTTLSeconds < 0:
			return wrong("context, slots, threads and idle_ttl_seconds must not be negative, and there are at most %d slots", contract.MaxSlots)
		}
		names[d.Name] = true
		if err := fits(d.Worker, d.Source); err != nil {
			return err
		}
		if _, err := newWish(d); err != nil {
			return wrong("%v", err)
		}
	}
	return nil
}

// planView says what applying the deployments would change.
func (q *Queen) planView(ctx context.Context, list []contract.Deployment) (contract.PlanView, error) {
	if err := q.awaitSettled(ctx); err != nil {
		return contract.PlanView{}, err
	}
	p := q.picture()
	if q.measure(ctx, p) {
		p = q.picture()
	}
	var current []contract.Deployment
	for _, w := range p.wishes {
		current = append(current, w.Deployment)
	}
	p.wishes = nil
	for _, d := range list {
		w, err := newWish(d)
		if err != nil {
			return contract.PlanView{}, err
		}
		p.wishes = append(p.wishes, w)
	}
	for _, d := range current {
		if !slices.ContainsFunc(list, func(o contract.Deployment) bool { return o.Name == d.Name }) {
			p.removed = append(p.removed, d.Name)
		}
	}
	return p.view(config.DiffDeployments(current, list)), nil
}

// view is the plan of a picture for people, with what changes in the deployments.
func (p *picture) view(changes []contract.ConfigChange) contract.PlanView {
	in := p.input()
	plan := placement.Make(in)
	out := contract.PlanView{Items: []contract.PlanItem{}}
	steps := map[string][]contract.PlanStep{}
	var order []string
	for _, a := range plan.Actions {
		onDemand := !slices.ContainsFunc(p.wishes, func(w *wish) bool { return w.Name == a.Deployment }) && !slices.Contains(p.removed, a.Deployment)
		if ends := a.Kind == placement.Stop || a.Kind == placement.Evict; ends && (a.Kind == placement.Evict || onDemand) {
			out.Stop++
			out.Items = append(out.Items, contract.PlanItem{Kind: "worker", Name: a.WorkerID, Action: contract.ChangeRemove, Text: p.endText(a, &in)})
			continue
		} else if onDemand {
			continue
		}
		if steps[a.Deployment] == nil {
			order = append(order, a.Deployment)
		}
		steps[a.Deployment] = append(steps[a.Deployment], p.step(a, &in))
	}
	workers := out.Items
	out.Items = []contract.PlanItem{}
	add := func(i contract.PlanItem) {
		i.Kind, i.Steps = "deployment", steps[i.Name]
		for _, s := range plan.Shortfalls {
			if s.Deployment == i.Name {
				i.Problem, i.Code = s.Reason, s.Code
			}
		}
		out.Items = append(out.Items, i)
	}
	done := map[string]bool{}
	for _, c := range changes {
		done[c.Name] = true
		i := contract.PlanItem{Name: c.Name, Action: c.Action, Fields: c.Fields}
		switch c.Action {
		case contract.ChangeAdd:
			out.Add++
			i.Text = p.about(c.Name)
		case contract.ChangeModify:
			out.Change++
			i.Text = changeText(c.Fields, steps[c.Name])
		default:
			out.Stop++
			i.Text = "is taken back"
		}
		add(i)
	}
	for _, s := range plan.Shortfalls {
		if steps[s.Deployment] == nil {
			order = append(order, s.Deployment)
		}
	}
	for _, name := range order {
		if !done[name] && slices.ContainsFunc(p.wishes, func(w *wish) bool { return w.Name == name }) {
			done[name] = true
			add(contract.PlanItem{Name: name, Action: contract.ChangeNone, Text: "stays as it is"})
		}
	}
	out.Items = append(out.Items, workers...)
	return out
}

// about describes a new deployment.
func (p *picture) about(name string) string {
	i := slices.IndexFunc(p.wishes, func(w *wish) bool { return w.Name == name })
	w := p.wishes[i]
	var text string
	switch r := w.Replicas; {
	case r.Per == contract.PerGPU:
		text = "a replica on each GPU"
	case r.Max > r.Min:
		text = fmt.Sprintf("%d to %d replicas", r.Min, r.Max)
	case r.Min == 1:
		text = "1 replica"
	default:
		text = fmt.Sprintf("%d replicas", r.Min)
	}
	text += " of " + w.Model
	if m := p.model(p.dir.modelOf(w), w.Model); m.Bytes > 0 {
		text += " (" + strings.TrimPrefix(m.Variant+", ", ", ") + m.Bytes.String() + ")"
	}
	return text + " with " + w.Worker.Name
}

// changeText says what changes in a deployment, and what that means for its workers.
func changeText(fields []contract.FieldChange, steps []contract.PlanStep) string {
	var list []string
	for _, f := range fields {
		if f.Old == f.New {
			list = append(list, f.Name+" is another one")
			continue
		}
		list = append(list, fmt.Sprintf("%s %s → %s", f.Name, cmp.Or(f.Old, "none"), cmp.Or(f.New, "none")))
	}
	return strings.Join(list, ", ") + ": " + rollText(steps)
}

// rollText says how the workers of a deployment change.
func rollText(steps []contract.PlanStep) string {
	const drain = 2 * time.Minute
	down := slices.ContainsFunc(steps, func(s contract.PlanStep) bool { return s.Downtime })
	for _, s := range steps {
		if s.Kind == string(placement.Surge) {
			return fmt.Sprintf("surge 1 on %s, warm, shift, drain the old one (≤ %s); no downtime", s.Place, strings.TrimSuffix(drain.String(), "0s"))
		}
	}
	switch {
	case down:
		return "drain, then start the new one, for want of room; nobody serves meanwhile"
	case len(steps) > 0:
		return "no downtime"
	}
	return "no worker is touched"
}

// step describes one worker that is started or ended.
func (p *picture) step(a placement.Action, in *placement.Input) contract.PlanStep {
	s := contract.PlanStep{Kind: string(a.Kind), Replica: a.Replica, WorkerID: a.WorkerID, Downtime: a.Downtime, Reason: a.Reason}
	if a.Kind == placement.Stop {
		s.Text = fmt.Sprintf("worker %s is drained and ends", a.WorkerID)
		if a.Downtime {
			s.Text += "; nobody serves until the next one is ready"
		}
		return s
	}
	s.HiveID, s.Device, s.Place, s.Need, s.Free, s.Fetch, s.Context = a.Place.Hive, a.Place.Device, placeName(in, a.Place), a.Need, max(a.Free, 0), a.Fetch, a.Context
	var parts []string
	if a.Need > 0 {
		parts = append(parts, fmt.Sprintf("fits %s of %s free", a.Need, s.Free))
	}
	i := slices.IndexFunc(p.wishes, func(w *wish) bool { return w.Name == a.Deployment })
	id := p.dir.modelOf(p.wishes[i])
	switch {
	case a.Fetch > 0 && a.From != "":
		parts = append(parts, fmt.Sprintf("fetch %s from %s", a.Fetch, hiveName(in, a.From)))
	case a.Fetch > 0:
		parts = append(parts, fmt.Sprintf("fetch %s from its origin", a.Fetch))
	case p.dir.model(id) != nil:
		parts = append(parts, "weights already there")
	case !strings.HasPrefix(id, echoScheme):
		parts = append(parts, "fetch from its origin; its size is known then")
	}
	if len(a.After) > 0 {
		parts = append(parts, "once "+strings.Join(a.After, " and ")+" ended")
	}
	if len(parts) == 0 {
		parts = append(parts, "needs no memory worth mentioning")
	}
	s.Text = strings.Join(parts, " · ")
	return s
}

// endText says why a worker ends for the sake of others.
func (p *picture) endText(a placement.Action, in *placement.Input) string {
	i := slices.IndexFunc(in.Workers, func(w placement.Worker) bool { return w.ID == a.WorkerID })
	if i < 0 || a.For == "" {
		return a.Reason
	}
	w := in.Workers[i]
	priority := func(name string) int {
		for _, d := range in.Deployments {
			if d.Name == name {
				return d.Priority
			}
		}
		return 0
	}
	idle := (in.Now - max(w.LastUsed, w.ReadyAt)).Round(time.Second)
	return fmt.Sprintf("%s on %s: idle %s, evicted to make room for %s (priority %d over %d)", p.nameOf(w.Model),
		placeName(in, placement.Place{Hive: w.Hive, Device: strings.Join(w.Devices, ",")}), idle, a.For, priority(a.For), priority(w.Deployment))
}

func placeName(in *placement.Input, at placement.Place) string {
	return hiveName(in, at.Hive) + "/" + at.Device
}

func hiveName(in *placement.Input, id string) string {
	for i := range in.Hives {
		if in.Hives[i].ID == id {
			return in.Hives[i].Name
		}
	}
	return id
}

// explain says for each device whether another worker of a model or deployment could run there.
func (q *Queen) explain(ctx context.Context, name string) (contract.Explanation, error) {
	none := contract.Explanation{}
	if err := q.awaitSettled(ctx); err != nil {
		return none, err
	}
	p := q.picture()
	if q.measure(ctx, p) {
		p = q.picture()
	}
	in := p.input()
	about := name
	if q.deploy.wish(name) == nil {
		id, err := q.fetched(name)
		if err != nil {
			return none, err
		}
		if w := q.wishFor(p.dir, id); w != nil {
			about = w.Name
		} else {
			kind, err := (&spawning{q: q}).chooseKind(id)
			if err != nil {
				return none, err
			}
			about = demandPrefix + id
			p.ask(&in, about, id, name, kind)
		}
	}
	e, ok := placement.Explain(in, about)
	if !ok {
		return none, notFound(name)
	}
	e.Name = name
	out := contract.Explanation{Name: name, Variant: e.Variant, Context: e.Context, Need: e.Need, Accuracy: e.Accuracy, Places: []contract.PlaceVerdict{}, Smaller: []string{}, Text: e.Text()}
	for _, v := range e.Places {
		out.Places = append(out.Places, contract.PlaceVerdict{HiveID: v.Place.Hive, Device: v.Place.Device, Place: v.Name, OK: v.OK, Code: v.Code, Reason: v.Reason, Evicts: v.Evicts})
	}
	for _, c := range e.Smaller {
		out.Smaller = append(out.Smaller, c.Text)
	}
	return out, nil
}

// fetched returns the pinned id of a model that a hive holds, or that needs no files.
func (q *Queen) fetched(name string) (string, error) {
	t, err := q.Resolve(name)
	if err != nil {
		return "", err
	}
	if len(t.ModelIDs) == 0 {
		return "", fault.New(fault.Conflict, "model_not_fetched", "The model %s is on no hive yet, so its size is not known; fetch it with `apiary model pull %s`.", quoted(name), pasteable(name))
	}
	return t.ModelIDs[0], nil
}

// ask adds the wish for one worker of a model to an input, under a name that is no deployment's.
func (p *picture) ask(in *placement.Input, name, modelID, modelName string, kind contract.WorkerKind) {
	if !slices.ContainsFunc(in.Models, func(m placement.Model) bool { return m.ID == modelID }) {
		in.Models = append(in.Models, p.model(modelID, modelName))
		in.Past = append(in.Past, p.past(map[string]bool{modelID: true})...)
	}
	in.Deployments = append(in.Deployments, placement.Deployment{Name: name, Model: modelID, Worker: kind.Name, Engine: kind.Source, Max: 1, Waiting: 1,
		Judge: p.opinions(nil, kind.Source)})
}
