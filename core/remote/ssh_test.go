package remote

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestCheckHost(t *testing.T) {
	for _, good := range []string{"tower", "me@tower", "me@10.0.0.7", "fe80::1", "me@[2001:db8::7]", "tower.lan", "ssh://me@tower:2222"} {
		if err := CheckHost(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-oProxyCommand=touch /tmp/x", "-p", "me@-oX", "a b", "a;b", "$(id)", "`id`", "a\nb", "a'b", `a"b`, "a|b", "höst", "a&b", "a\x00b"} {
		if err := CheckHost(bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q is accepted: %v", bad, err)
		}
	}
}

// TestQuote has a real shell read the words back.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a", "a b", "it's", "'", "''", `\`, `a\'b`, "$(id)", "`id`", "a\nb", "*", "!x", "~", "-n", `"`, "é"} {
		out, err := exec.Command("sh", "-c", "printf %s. "+quote(s)).Output()
		if err != nil || string(out) != s+"." {
			t.Errorf("%q became %q, %v", s, out, err)
		}
	}
}

// TestScriptOnStandardInput runs scripts as ssh has them run, by several login shells.
func TestScriptOnStandardInput(t *testing.T) {
	s := script{body: `printf 'got=%s\n' "$v"; printf 'rest=%s\n' "$(cat)"`}.set("v", "it's $HOME `id`\\")
	text := s.text()
	for _, shell := range []string{"sh", "dash", "bash", "zsh", "fish", "csh", "busybox"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		args := []string{"-c", s.command(len(text))}
		if shell == "busybox" {
			args = append([]string{"sh"}, args...)
		}
		cmd := exec.Command(path, args...)
		cmd.Stdin = strings.NewReader(text + strings.Repeat("data ", 3))
		out, err := cmd.Output()
		_, said, _ := strings.Cut(string(out), began+"\n")
		if err != nil || said != "got=it's $HOME `id`\\\nrest=data data data \n" {
			t.Errorf("%s: %q, %v", shell, out, err)
		}
	}
}

func TestFailuresAreSentences(t *testing.T) {
	for said, want := range map[string]struct {
		kind fault.Kind
		code string
	}{
		"me@tower: Permission denied (publickey).":                                            {fault.Denied, "ssh_denied"},
		"No ED25519 host key is known for x\nHost key verification failed.":                   {fault.Denied, "ssh_host_unknown"},
		"@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": {fault.Denied, "ssh_host_changed"},
		"ssh: Could not resolve hostname tower: Name or service not known":                    {fault.NotFound, "ssh_no_such_host"},
		"ssh: connect to host tower port 22: Connection refused":                              {fault.Unavailable, "ssh_refused"},
		"ssh: connect to host tower port 22: No route to host":                                {fault.Unavailable, "ssh_no_route"},
		"ssh: connect to host tower port 22: Connection timed out":                            {fault.Unavailable, "ssh_timeout"},
		"": {fault.Unavailable, "ssh_lost"},
		"kex_exchange_identification: banner line contains invalid characters": {fault.Unavailable, "ssh_lost"},
	} {
		e := fault.As(connectionFailure("tower", said))
		if e.Kind != want.kind || e.Code != want.code || !strings.Contains(e.Message, "tower") {
			t.Errorf("%q became %s %s: %s", said, e.Kind, e.Code, e.Message)
		}
	}
	for said, want := range map[string]struct {
		kind fault.Kind
		text string
	}{
		"cat: write error: No space left on device":   {fault.Exhausted, "the disk is full"},
		"mkdir: cannot create 'x': Permission denied": {fault.Denied, "may not"},
		"apiary:other_cluster:it has another key":     {fault.Conflict, "It is not possible to write the key on tower: it has another key."},
		"": {fault.Unavailable, "did not say why"},
	} {
		e := fault.As(scriptFailure("tower", "write the key", said))
		if e.Kind != want.kind || !strings.Contains(e.Message, want.text) {
			t.Errorf("%q became %s: %s", said, e.Kind, e.Message)
		}
	}
}
