package remote

import (
	"context"
)

// Upgrade puts another program in the place of the one that Install has put on a machine, and restarts the agent, whose workers go on.
// Key and configuration stay what they are; so Plan's Config, Key and Insecure play no part. An agent that runs this program already is left
// alone, and one that does not run is started. When a step fails, what was done is undone and the error says so. A machine
// without an installation is a NotFound.
func (c *Conn) Upgrade(ctx context.Context, m Machine, p Plan) (Installed, error) {
	if m.Existing == nil {
		return Installed{}, NotInstalled(m)
	}
	p.Insecure = m.Existing.Insecure
	in := &installation{c: c, m: m, p: p, l: m.Layout}
	// What an earlier run that was cut off has left is the way back: it is only removed at the end.
	in.r.Config = "same"
	return in.carryOut(ctx, in.before, in.program, in.start, in.answers)
}

// before asks who runs there, while that can be asked.
func (in *installation) before(ctx context.Context) error {
	if in.p.Before == nil || !in.m.Existing.Running {
		return nil
	}
	a, err := in.c.agent(ctx, in.l)
	if err != nil {
		return err
	}
	return in.p.Before(ctx, a)
}
