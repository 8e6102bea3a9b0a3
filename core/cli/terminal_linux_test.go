package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is a terminal that a command runs on, with what was written to it.
type screen struct {
	n    *node
	keys *os.File // what is written here is typed
	cmd  *exec.Cmd

	mu   sync.Mutex // guards the field below
	text strings.Builder
}

// onScreen starts a command on a terminal of its own.
func (n *node) onScreen(args ...string) *screen {
	n.t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		n.t.Skipf("there are no terminals here: %v", err)
	}
	n.t.Cleanup(func() { _ = keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		n.t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		n.t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	s := &screen{n: n, keys: keys, cmd: n.command(args...)}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	_ = tty.Close()
	go func() { // ends with the terminal
		b := make([]byte, 4096)
		for {
			k, err := keys.Read(b)
			s.mu.Lock()
			s.text.Write(b[:k])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) shows() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) typed(keys string) {
	s.n.t.Helper()
	if _, err := s.keys.WriteString(keys); err != nil {
		s.n.t.Fatal(err)
	}
}

// wait waits until something stands on the screen.
func (s *screen) wait(what string) {
	s.n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.shows(), what); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.n.t.Fatalf("%q does not come; the screen is\n%q", what, s.shows())
		}
	}
}

// exit waits for the command's end and gives its exit code.
func (s *screen) exit() int {
	s.n.t.Helper()
	kill := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer kill.Stop()
	err := s.cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		s.n.t.Fatal(err)
	}
	return 0
}

const ctrlC = "\x03"

// TestAgentOnATerminal: the end of its terminal stops an agent; SIGHUP means that there and not that the configuration changed.
func TestAgentOnATerminal(t *testing.T) {
	t.Parallel()
	n := newNode(t, "queen {\n  listen = \"ADDR\"\n}\nhive {\n  listen = \"127.0.0.1:0\"\n}\n")
	s := n.onScreen("agent")
	s.wait("queen started")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.shows())
	}
	if strings.Contains(s.shows(), "configuration read again") {
		t.Errorf("the screen is\n%q", s.shows())
	}
}

// TestChatOnATerminal: Ctrl-C ends an answer and not the chat, and at the prompt the chat.
func TestChatOnATerminal(t *testing.T) {
	t.Parallel()
	n, history := slowNode(t)
	s := n.onScreen("chat", "echo:slow")
	s.wait("/bye or Ctrl-D ends the chat")
	s.wait("> ")
	s.typed("/nonesuch\n")
	s.wait(`There is no command "/nonesuch"`)
	s.typed("alpha beta gamma\n")
	s.wait("gammaalpha") // it repeats the words for three seconds
	s.typed(ctrlC)
	s.wait("Interrupted.")
	n.until(5*time.Second, "the worker sees the cancel", func() bool {
		b := readAll(history)
		return strings.Contains(string(b), `"cancel"`) && !strings.Contains(string(b), "nonesuch")
	})
	s.typed("delta\n")
	s.wait("deltadelta") // the chat goes on
	s.typed(ctrlC)
	n.until(5*time.Second, "the answer ends", func() bool { return strings.Count(s.shows(), "Interrupted.") == 2 })
	n.until(5*time.Second, "the prompt comes", func() bool { return strings.HasSuffix(s.shows(), "> ") })
	s.typed(ctrlC)
	if code := s.exit(); code != 130 {
		t.Errorf("Ctrl-C at the prompt ends with %d, want 130; the screen is\n%q", code, s.shows())
	}
}

// TestInterruptedBar: Ctrl-C while a bar shows takes it away, and a second one leaves nothing either.
func TestInterruptedBar(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.ReplaceAll(slowEcho, `"--tps"`, `"--load", "60s", "--tps"`))
	n.start()
	s := n.onScreen("run", "echo:slow", "hello")
	s.wait("█")
	s.typed(ctrlC)
	if code := s.exit(); code != 130 {
		t.Errorf("the exit code is %d, want 130", code)
	}
	s.wait("Interrupted.")
	shown := s.shows()
	rest := shown[strings.LastIndex(shown, "\x1b[K")+len("\x1b[K"):]
	if rest != "Interrupted.\r\n" {
		t.Errorf("after the last erasure there is %q, want nothing but that it was interrupted", rest)
	}
}
