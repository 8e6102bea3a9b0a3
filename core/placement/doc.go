// Package placement decides which worker runs where: a pure function from a picture of the cluster to a plan, with a reason for
// each step and for each wish that stays open. It has no clock, no I/O and no chance in it: the same input in any order gives
// the same plan. It does not start, stop, fetch or talk to anybody, and remembers nothing between two calls.
//
// # How a queen uses it
//
// A queen builds an Input from its registry, its directory and the deployments in force, calls Make, and carries out the
// actions that are its own:
//
//	plan := placement.Make(in)
//	for _, a := range plan.Actions {
//		if a.Owner == self && ready(a) { … }
//	}
//
// It does so after each change that matters (a worker appeared, ended or changed its state, a hive came, went or was drained, a
// deployment was applied, a request found no worker, a Pressure changed), at Plan.Next and every few seconds, because the memory that others leave
// free changes without an event, at most once a second or so, not before
// the startup grace is over, and never two at a time. Models without a deployment that are served on demand are deployments to this package: Min 0, Max 1, an idle TTL.
//
// Every queen plans for the whole cluster and carries out only what it owns, so queens that know the same agree without asking
// each other. Where they know different things, the hive's fence (Action.Key, Action.Generation) and its own look at its memory
// decide, and what was started twice is ended once by the rule for doubled replicas.
//
// What has begun must be in the next Input: a spawn as a worker in StateStarting with Action.Need as its Memory, from the moment
// it is decided until it beats, fails or is given up; a worker that is being drained or ended in StateDraining. An action whose
// After names workers waits until they are gone; it needs no memory of its own, because the next plan repeats it. A worker that
// crashed, or is lost, stays in the Input until its replica runs again: that is how the wish for it survives.
//
// What several queens must see alike comes from beats: Replica and Generation from the worker's spawn key and generation, Spec from what
// it was started with, LastUsed from when it last had a busy slot or made progress. Deployment.Waiting counts the waiting requests of all
// queens. A queen keeps one Pressure for each deployment and calls Observe once a second.
//
// Failures are counted by the registry: a Past is its Verdict for the slot, while that does not allow a spawn. The registry's own wish to
// start a worker again is to be answered with Release for workers of deployments, and its EffectSurplus to be left alone: the plan does
// both. A spawn that a hive answers with the process of a worker that is silent has failed (registry.SpawnFailed), so that it is not
// repeated at once.
//
// The simulation in core/testutil/clustersim has a queen that does all this, in a few hundred lines.
package placement
