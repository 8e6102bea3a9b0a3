package remote

import (
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

// connectionFailure says in one sentence why ssh could not connect, or lost the connection, from what it wrote.
func connectionFailure(host, said string) error {
	last := lastLine(said)
	for _, f := range []struct {
		sign    string
		kind    fault.Kind
		code    string
		message string
	}{
		{"REMOTE HOST IDENTIFICATION HAS CHANGED", fault.Denied, "ssh_host_changed",
			"The host key of %s is not the one that this machine knows, so somebody may be in between; find out why, and only then remove the old key with `ssh-keygen -R`. Nothing was done."},
		{"Host key verification failed", fault.Denied, "ssh_host_unknown",
			"The host key of %s is not known here; connect once with `ssh`, compare the key, and try again."},
		{"Permission denied", fault.Denied, "ssh_denied",
			"The machine %s does not let you in; check the user name and that your key is there (`ssh-copy-id`), or give the command at a terminal to type a password."},
		{"Too many authentication failures", fault.Denied, "ssh_denied",
			"The machine %s refused after too many keys; name the right one with IdentityFile and IdentitiesOnly in your ssh configuration."},
		{"Could not resolve hostname", fault.NotFound, "ssh_no_such_host",
			"There is no machine called %s: its name cannot be resolved; check the name, or write its address."},
		{"Connection refused", fault.Unavailable, "ssh_refused",
			"The machine %s refused the connection; is an ssh server running there, and is the port right (--port)?"},
		{"No route to host", fault.Unavailable, "ssh_no_route", "There is no route to %s; is it switched on and in a network that this machine reaches?"},
		{"Network is unreachable", fault.Unavailable, "ssh_no_route", "The network of %s cannot be reached from here; check this machine's own network."},
		{"timed out", fault.Unavailable, "ssh_timeout", "The machine %s did not answer in time; is it switched on, and does a firewall let ssh through?"},
		{"Bad configuration option", fault.Invalid, "ssh_config", "ssh does not understand its configuration, so nothing was sent to %s; `ssh -G` shows what is wrong."},
		{"Can't open user config file", fault.NotFound, "ssh_config", "The ssh configuration file for %s cannot be opened; correct --ssh-config."},
		{"Connection closed by", fault.Unavailable, "ssh_lost", "The machine %s closed the connection; try again, and look at the log of its ssh server."},
	} {
		if strings.Contains(said, f.sign) {
			e := fault.New(f.kind, f.code, f.message, host)
			if last != "" {
				e.Message += " (" + strings.TrimSuffix(last, ".") + ")"
			}
			return e
		}
	}
	if last == "" {
		return fault.New(fault.Unavailable, "ssh_lost", "The connection to %s was lost; try again.", host)
	}
	return fault.New(fault.Unavailable, "ssh_lost", "The connection to %s failed; try `ssh %s` by hand. (%s)", host, host, strings.TrimSuffix(last, "."))
}

// noShell says that the machine did not run the script at all.
func noShell(host, said string) error {
	e := fault.New(fault.Unavailable, "no_shell", "The machine %s let you in but ran no command; the account needs a login shell, and the machine a POSIX sh.", host)
	if last := lastLine(said); last != "" {
		e.Message += " (" + strings.TrimSuffix(last, ".") + ")"
	}
	return e
}

// scriptFailure says in one sentence why a step failed on the machine.
func scriptFailure(host, what, said string) error {
	for line := range strings.Lines(said) {
		rest, ok := strings.CutPrefix(line, "apiary:")
		if !ok {
			continue
		}
		code, message, _ := strings.Cut(strings.TrimSpace(rest), ":")
		return fault.New(kindOf(code), code, "It is not possible to %s on %s: %s.", what, host, strings.TrimSuffix(message, "."))
	}
	last := lastLine(said)
	for _, f := range []struct {
		sign, code, message string
		kind                fault.Kind
	}{
		{"No space left on device", "disk_full", "the disk is full; free some space and try again", fault.Exhausted},
		{"Disk quota exceeded", "disk_full", "the disk quota of the account is used up; free some space and try again", fault.Exhausted},
		{"Read-only file system", "read_only", "the file system is read-only; choose other folders with --bin-dir and --data-dir", fault.Denied},
		{"Permission denied", "not_permitted", "the account may not; log in as another one, or choose other folders with --bin-dir and --data-dir", fault.Denied},
		{"Operation not permitted", "not_permitted", "the account may not; log in as another one, or choose other folders with --bin-dir and --data-dir", fault.Denied},
	} {
		if strings.Contains(said, f.sign) {
			return fault.New(f.kind, f.code, "It is not possible to %s on %s: %s. (%s)", what, host, f.message, last)
		}
	}
	if last == "" {
		last = "it did not say why"
	}
	return fault.New(fault.Unavailable, "remote_failed", "It is not possible to %s on %s: %s.", what, host, strings.TrimSuffix(last, "."))
}

// kindOf is the kind of a failure that a script found out itself.
func kindOf(code string) fault.Kind {
	switch code {
	case "disk_full":
		return fault.Exhausted
	case "other_cluster", "own_config", "not_ours":
		return fault.Conflict
	case "noexec", "wrong_arch", "no_sha256":
		return fault.Invalid
	}
	return fault.Unavailable
}

// lastLine is the last line of what a program said that is not empty.
func lastLine(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
