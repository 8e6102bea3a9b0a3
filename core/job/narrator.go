package job

import (
	"fmt"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Progress events of one job are at least this far apart.
const progressGap = 100 * time.Millisecond

// maxMessage bounds a narration line, in bytes.
const maxMessage = 4096

// Narrator tells a job's story. It may be used from several goroutines. What is said after the job's end is not heard.
type Narrator struct{ run *run }

// Info says what the job does. action is a short stable word, the rest as for fmt.Sprintf.
func (n *Narrator) Info(action, format string, args ...any) {
	n.say(contract.Narration{Level: "info", Action: action, Message: fmt.Sprintf(format, args...)})
}

// Warn says what did not go as it should.
func (n *Narrator) Warn(action, format string, args ...any) {
	n.say(contract.Narration{Level: "warn", Action: action, Message: fmt.Sprintf(format, args...)})
}

// Progress says how far an action is. It may be called as often as one likes: about ten a second are told, and always the last.
func (n *Narrator) Progress(action, message string, p contract.Progress) {
	n.say(contract.Narration{Level: "info", Action: action, Message: message, Progress: &p})
}

// Forward tells a line of another agent's job as part of this one.
func (n *Narrator) Forward(line contract.Narration) { n.say(line) }

func (n *Narrator) say(line contract.Narration) {
	if len(line.Message) > maxMessage {
		line.Message = line.Message[:maxMessage] + "…"
	}
	r := n.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended.IsZero() {
		return
	}
	if p := line.Progress; p != nil {
		// A line of another action ends the wait of the one before.
		if r.held != nil && r.held.Action != line.Action {
			r.release()
		}
		if now := time.Now(); now.Sub(r.last) < progressGap && !(p.Total > 0 && p.Done >= p.Total) {
			r.held = &line
			return
		} else {
			r.held, r.last = nil, now
		}
	} else {
		r.release()
	}
	r.tell(line)
}

// release tells the progress that was held back. r.mu is held.
func (r *run) release() {
	if line := r.held; line != nil {
		r.held = nil
		r.tell(*line)
	}
}

func (r *run) tell(line contract.Narration) {
	r.seq++
	line.Seq, line.Time = r.seq, time.Now().UTC()
	r.append(contract.JobEventNarration, line)
}
