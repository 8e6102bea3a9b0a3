package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTrio runs examples/trio/run as its README says, with the real engine where it is there and the echo worker elsewhere.
func TestTrio(t *testing.T) {
	t.Parallel()
	script, err := filepath.Abs("../../examples/trio/run")
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "trio")
	env := []string{"APIARY=" + filepath.Join(built, "apiary"), "TRIO_HOME=" + data, fmt.Sprintf("TRIO_NET=127.%d.%d", 1+os.Getpid()%250, 1+os.Getpid()/250%250),
		"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	if dir := engineDir(); dir != "" {
		env = append(env, "TRIO_ENGINE=path:"+dir)
	} else {
		env = append(env, "TRIO_MODEL=echo:story", "TRIO_WORKER=echo")
	}
	run := func(code int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, script, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
			t.Fatalf("run %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() { run(0, "stop") })
	wants(t, run(1, "status"), "no queen answers")
	out := run(0)
	wants(t, out, "queen two ", "2 hives up, 1 not heard", "3 ready", "It goes on running.")
	if n := strings.Count(out, "== A story by way of queen"); n != 4 {
		t.Errorf("%d stories were told:\n%s", n, out)
	}
	wants(t, run(1), "is there already")
	wants(t, run(0, "status"), "one", "two", "three", "3 hives up")
	wants(t, run(0, "stop"), "three: agent (hive) stopped", "two: agent (queen + hive) stopped", "one: agent (queen + hive) stopped")
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	if left, err := exec.Command("pgrep", "-f", data).Output(); err == nil {
		t.Errorf("there are still processes: %s", left)
	}
	wants(t, run(1, "nonsense"), "run stop")
}
