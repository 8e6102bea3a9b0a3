package gossip

import (
	"log"
	"strings"
	"time"
)

// logWriter takes memberlist's lines, "[LEVEL] memberlist: text", to slog. Most of what memberlist calls an error is a machine
// that is off or a packet of a stranger: nothing that a person must act upon.
type logWriter struct{ g *Gossip }

// complaintGap is the least time between two lines about what memberlist complains of.
const complaintGap = 500 * time.Millisecond

func newLogger(g *Gossip) *log.Logger { return log.New(logWriter{g}, "", 0) }

// Write takes one line.
func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level, text, ok := strings.Cut(strings.TrimPrefix(line, "["), "] ")
	if !ok {
		level, text = "WARN", line
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	l := w.g.log
	switch {
	case strings.Contains(text, "could decrypt the message"), strings.Contains(text, "unsupported encryption version"), strings.Contains(text, "too small to decrypt"),
		strings.Contains(text, "cannot decrypt empty payload"), strings.Contains(text, "encryption is configured but"):
		w.g.o.Metrics.GossipDropped("undecipherable")
		if w.g.once("key", time.Minute) {
			l.Warn("gossip that cannot be read is dropped; if it is an agent's, gossip.key or secrets/cluster.key differs there", "detail", cut(text))
		}
	case strings.Contains(text, "ignoring alive message"): // NotifyAlive has told
	case level == "ERR", level == "ERROR", level == "WARN":
		if w.g.once("memberlist", complaintGap) { // a stranger may cause thousands a second
			l.Info("memberlist", "detail", cut(text))
		}
	default:
		l.Debug("memberlist", "detail", cut(text))
	}
	return len(b), nil
}

func cut(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}
