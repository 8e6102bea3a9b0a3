package queen

import "github.com/apiary-dev/apiary/core/contract"

// Settings are the Options that may change while a queen runs. They are replaced as a whole and never changed.
type Settings struct {
	Models      []Model
	Workers     []contract.WorkerKind
	Defaults    map[string]contract.WorkerSpawn
	Deployments []contract.Deployment
}

func (q *Queen) settings() *Settings { return q.live.Load() }

// Reconfigure takes over other settings. Names of models stand for what the new ones say from then on, and workers that are started
// are started by them; those that run, or whose start has begun, are left alone. It may be called at any time.
func (q *Queen) Reconfigure(s Settings) {
	if err := q.book.configure(s.Deployments); err != nil {
		q.log.Error("deployments could not be stored", "error", err.Error())
	}
	q.readWishes()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.live.Store(&s)
	q.dir.Store(q.index(q.snap.Load()))
	q.wake()
	q.deploy.wake()
}
