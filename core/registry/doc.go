// Package registry is what a queen knows of workers and hives through their beats, as a pure state machine: Step takes the
// time and an event and returns what has changed. It has no clock, no I/O, no randomness and no goroutines; times are
// monotonic durations since an origin of the caller's choice, and jitter comes with the events.
//
// It judges liveness by age, orders beats, ejects workers whose requests fail and accounts for spawns and crashes. It does
// not spawn, route or talk to anybody.
package registry
