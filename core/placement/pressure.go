package placement

import "time"

// Pressure is how long a deployment has had too much or too little to do. Its zero value is that of a new one.
type Pressure struct {
	QueuedSince time.Duration // requests have waited without a break since then; 0: none waits
	SlackSince  time.Duration // one replica fewer would have done since then; 0: it would not do
	Replicas    int           // that served at the last look
}

// Observe is the pressure after a look at the deployment at the time now: its replicas that serve, their slots, how many of those
// are busy, and how many requests wait at queens and in workers. A replica fewer does when the others would be half full at most, so
// that what one look takes away the next one does not add again.
func (p Pressure) Observe(now time.Duration, replicas, slots, busy, queued int) Pressure {
	keep := func(since time.Duration, on bool) time.Duration {
		switch {
		case !on:
			return 0
		case since == 0:
			return max(now, 1)
		}
		return since
	}
	slack := replicas > 1 && queued == 0 && 2*busy*replicas <= slots*(replicas-1)
	if replicas != p.Replicas { // what was seen of more or fewer replicas says nothing of these
		p.SlackSince = 0
	}
	return Pressure{Replicas: replicas, QueuedSince: keep(p.QueuedSince, queued > 0), SlackSince: keep(p.SlackSince, slack)}
}
