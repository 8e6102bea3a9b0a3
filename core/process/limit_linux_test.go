package process

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKillSelfAfter(t *testing.T) {
	if os.Getenv("APIARY_TEST_KILL_SELF") != "" {
		cancel, err := KillSelfAfter(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if cancel, err = KillSelfAfter(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(100 * time.Millisecond)
		t.Log("alive")
		if _, err = KillSelfAfter(-time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillSelfAfter$", "-test.v")
	cmd.Env = append(os.Environ(), "APIARY_TEST_KILL_SELF=1")
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); !ok || ws.Signal() != unix.SIGKILL {
		t.Errorf("the process ended otherwise: %v\n%s", err, out)
	}
}
