package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// planning are the checks of provisioners alone.
func planning() []check {
	return []check{
		{"pin: it says without a request what the plan will say", vendor.KindProvisioner, checkPin},
		{"list: choices are no more than asked for, and of its schemes", vendor.KindProvisioner, checkList},
		{"launch: it is pure and stays inside the engine's folder", vendor.KindProvisioner, checkLaunch},
	}
}

func checkPin(ctx context.Context, s *suite) error {
	if !slices.Contains(s.info.Features, vendor.FeaturePin) {
		return skipError("it does not pin references without a plan")
	}
	return s.each(ctx, func(on Instance, want Wanted, raw []byte) error {
		plan := &vendor.Plan{}
		if err := json.Unmarshal(raw, plan); err != nil {
			return err
		}
		before := s.host.count()
		for _, ref := range []string{want.Reference, plan.Reference} {
			pin, err := sdk.Call[vendor.PinResponse](ctx, on, vendor.MethodPin, vendor.PlanRequest{Reference: ref, Platform: s.cases.platform()})
			if err != nil {
				return fmt.Errorf("pin %s: %w", ref, err)
			}
			open := pin.Reference == "" && ref != plan.Reference // it leaves open what only a plan finds out
			if pin.Reference != plan.Reference && !open || pin.Platform != plan.Platform {
				return fmt.Errorf("%s is pinned to %s for %s, and planned as %s for %s", ref, pin.Reference, pin.Platform, plan.Reference, plan.Platform)
			}
		}
		if s.host.count() != before {
			return errors.New("it makes requests to pin a reference")
		}
		return nil
	})
}

func checkList(ctx context.Context, s *suite) error {
	if !slices.Contains(s.info.Features, vendor.FeatureList) {
		return skipError("it does not list engines")
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	for _, limit := range []int32{10, 1} {
		raw, err := s.call(ctx, on, vendor.MethodList, vendor.ListRequest{Platform: s.cases.platform(), Limit: limit})
		if err != nil {
			if _, err := typed(err); err != nil || len(s.cases.Resolve) > 0 {
				return fmt.Errorf("the engines are not listed: %w", errors.Join(err))
			}
			continue
		}
		reply := &vendor.ListResponse{}
		if err := json.Unmarshal(raw, reply); err != nil {
			return fmt.Errorf("the choices cannot be read: %w", err)
		}
		if len(reply.Choices) > int(limit) {
			return fmt.Errorf("there are %d choices where at most %d were asked for", len(reply.Choices), limit)
		}
		for _, c := range reply.Choices {
			if !s.ours(c.Reference) || strings.ContainsAny(c.Description, "\n\r\x1b") {
				return fmt.Errorf("the choice %q is not of its schemes, or is no line: %.200q", c.Reference, c.Description)
			}
		}
	}
	return nil
}

func checkLaunch(ctx context.Context, s *suite) error {
	if !slices.Contains(s.info.Features, vendor.FeatureLaunch) {
		return skipError("its engines are no servers of their own")
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	req := s.cases.Launch
	if req == nil {
		req = &vendor.LaunchRequest{Reference: s.some(), EngineDir: "/no/such/engine", Model: "/no/such/model.gguf", ModelName: "m", Devices: []string{"cpu"}, Context: 2048, Slots: 2, Threads: 1}
		if raw, err := s.ask(ctx, on, s.some()); err == nil {
			if got, err := s.read(raw); err == nil {
				req.Reference = got.reference
			}
		}
	}
	before := s.host.count()
	var first []byte
	for range 2 {
		raw, err := s.call(ctx, on, vendor.MethodLaunch, req)
		if err != nil {
			return err
		}
		if first == nil {
			first = raw
		}
		if err := same(first, raw); err != nil {
			return err
		}
	}
	if s.host.count() != before {
		return errors.New("it makes requests, and it gets all that it needs")
	}
	spec := &vendor.LaunchSpec{}
	if err := json.Unmarshal(first, spec); err != nil {
		return fmt.Errorf("the answer cannot be read: %w", err)
	}
	switch {
	case artifact.CheckPath(spec.Path) != nil:
		return fmt.Errorf("the program %q is not a relative path inside the engine's folder", spec.Path)
	case spec.Protocol != vendor.ProtocolOpenAI:
		return fmt.Errorf("the protocol is %q, and %q is the one that there is", spec.Protocol, vendor.ProtocolOpenAI)
	case !strings.HasPrefix(spec.ReadyPath, "/"):
		return fmt.Errorf("the path that says when the engine is ready is %q, and should begin with a slash", spec.ReadyPath)
	case !strings.Contains(string(first), "{port}"):
		return errors.New("neither an argument nor a variable holds {port}, so the engine cannot be told where to listen")
	}
	return nil
}
