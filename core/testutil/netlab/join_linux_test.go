package netlab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bare makes a machine without any keys, and with a configuration that says its name alone.
func (l *lab) bare(n int) *agent {
	a := l.machine(n, hive, "")
	a.forget()
	a.write("config.hcl", fmt.Sprintf("agent {\n  name = \"h%d\"\n}\n", n))
	return a
}

// forget removes the keys that machine has copied there by hand.
func (a *agent) forget() {
	for _, name := range []string{"secrets", "gossip.key"} {
		if err := os.RemoveAll(filepath.Join(a.home, name)); err != nil {
			a.lab.t.Fatal(err)
		}
	}
}

// join has a machine join with a token and start its agent. It returns what was said, and whether it worked.
func (a *agent) join(token string) (string, bool) {
	c := a.inside(a.lab.binary, "join", "--insecure-i-know", "-")
	c.Stdin = strings.NewReader(token)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err == nil
}

// token has the queen on a machine make one.
func (a *agent) token(args ...string) string {
	a.lab.t.Helper()
	c := a.inside(append([]string{a.lab.binary, "--addr", a.ip + ":7833", "token", "create"}, args...)...)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		a.lab.t.Fatalf("token create: %v\n%s", err, said.String())
	}
	return string(out)
}

// TestJoin: machines without any keys become hives and a queen with a token each, many at once, and all hear each other.
func TestJoin(t *testing.T) {
	l := newLab(t)
	t.Parallel()
	const hives = 6
	q := l.machine(1, both, "")
	q.forget()
	q.write("config.hcl", fmt.Sprintf("agent {\n  name = \"h1\"\n}\ngossip {\n  bind = \"%[1]s:7834\"\n}\nqueen {\n  listen = \"%[1]s:7833\"\n  hives  = []\n}\nhive {\n  listen = \"%[1]s:7835\"\n}\n", q.ip))
	q.start()
	within(t, 20*time.Second, "the queen is there", func() bool { return q.alive() == 1 })
	var all sync.WaitGroup
	for n := 3; n < 3+hives; n++ {
		a, token := l.bare(n), q.token("--name", fmt.Sprintf("h%d", n))
		all.Go(func() {
			if said, ok := a.join(token); !ok || !strings.Contains(said, "hive.listen = \""+a.ip+":7835\"") {
				t.Errorf("h%d: %s", a.n, said)
			}
		})
	}
	second, token := l.bare(2), q.token("--role", "queen")
	all.Go(func() {
		if said, ok := second.join(token); !ok {
			t.Errorf("h2: %s", said)
		}
	})
	all.Wait()
	within(t, 60*time.Second, "both queens know all hives", func() bool { return q.alive() == hives+2 && second.alive() == hives+2 })

	// A queen that joined lets hives in, too; nobody joins with what is used.
	late := l.bare(20)
	token = second.token()
	if said, ok := late.join(token); !ok {
		t.Errorf("at the second queen: %s", said)
	}
	within(t, 30*time.Second, "both queens know it", func() bool { return q.hive(20) != "" && second.hive(20) != "" })
	thief := l.bare(21)
	if said, ok := thief.join(token); ok || !strings.Contains(said, "was used by another machine") {
		t.Errorf("with a token that is used: %s", said)
	}
	for _, a := range l.agents {
		if b, err := os.ReadFile(filepath.Join(a.home, "agent.log")); err == nil && bytes.Contains(b, []byte("apiary1.")) {
			t.Errorf("a token is in the log of h%d", a.n)
		}
	}
}
