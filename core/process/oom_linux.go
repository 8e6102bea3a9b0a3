package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// oomWatch tells whether the kernel killed for memory in a process's control group while the process was ending. The kernel
// counts such kills in memory.oom_control (version 1) or memory.events (version 2) of the victim's group, which other
// processes may share, so a count from long ago would blame the wrong one.
type oomWatch struct {
	pid   int
	file  string
	count uint64 // while the process was certainly not being killed
}

func newOOMWatch(pid int) oomWatch {
	w := oomWatch{pid: pid}
	w.sample()
	return w
}

// sample takes the count anew, from another group when the process was moved.
func (w *oomWatch) sample() {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", w.pid))
	if err != nil {
		return
	}
	file := oomFile(string(b))
	count := oomCount(file)
	// Looked at after the count: the kernel counts a kill and then signals, and a process that has ended belongs to no group.
	if !ending(w.pid) {
		w.file, w.count = file, count
	}
}

func (w *oomWatch) rose() bool { return w.file != "" && oomCount(w.file) > w.count }

// flagExiting is PF_EXITING of the kernel's process flags.
const flagExiting = 4

// ending reports whether the process has ended, is ending, or has a SIGKILL waiting.
func ending(pid int) bool {
	st, err := readStat(pid)
	if err != nil || st.dead() || st.flags&flagExiting != 0 {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		for _, name := range []string{"SigPnd:", "ShdPnd:"} {
			if v, ok := strings.CutPrefix(line, name); ok {
				pending, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
				if err != nil || pending&(1<<(unix.SIGKILL-1)) != 0 {
					return true
				}
			}
		}
	}
	return false
}

// oomFile finds the file with the count for the groups in the text of /proc/PID/cgroup; "" when there is none. Outside any
// limit the kernel's count for the whole machine is taken.
func oomFile(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		path := ""
		switch {
		case strings.Contains(","+f[1]+",", ",memory,"):
			path = filepath.Join("/sys/fs/cgroup/memory", f[2], "memory.oom_control")
		case f[0] == "0" && f[1] == "":
			path = filepath.Join("/sys/fs/cgroup", f[2], "memory.events")
		}
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "/proc/vmstat"
}

// oomCount reads the line "oom_kill N", which all three files have.
func oomCount(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}
