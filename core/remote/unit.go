package remote

import "strings"

// Unit is the text of the systemd unit that runs an agent.
func Unit(l Layout, insecure bool, groups []string) string {
	var b strings.Builder
	write := func(lines ...string) {
		for _, line := range lines {
			b.WriteString(line + "\n")
		}
	}
	write("# One Apiary agent. `apiary hive install` writes this file; `systemctl edit apiary` changes it in a way that lasts.",
		"",
		"[Unit]",
		"Description=Apiary agent",
		"Documentation=https://github.com/apiary-dev/apiary")
	if l.Service == ServiceSystem {
		write("Wants=network-online.target", "After=network-online.target")
	}
	exec := l.Bin + " agent --background"
	if insecure {
		exec += " --insecure-i-know"
	}
	write("",
		"[Service]",
		"Type=exec",
		"ExecStart="+exec,
		"Environment=APIARY_HOME="+l.Data+" APIARY_CONFIG="+l.Config,
		"# The log is agent.log in the data folder; what is said before it is open is in the journal.",
		"",
		"# Workers are processes of their own, which go on serving while the agent is stopped, restarted or replaced: only the agent is",
		"# sent signals. The next agent finds them in the process table, so nothing has to be delegated.",
		"KillMode=process",
		"# One worker that the kernel ends for want of memory does not end the others.",
		"OOMPolicy=continue",
		"# An agent that stops lets running requests finish: hive.drain, and a little more.",
		"TimeoutStopSec=150",
		"Restart=on-failure",
		"RestartSec=2",
		"# A configuration with mistakes (2) and a data folder that is taken (4) do not get better by trying again.",
		"RestartPreventExitStatus=2 4",
		"",
		"NoNewPrivileges=yes",
		"RestrictSUIDSGID=yes",
		"LockPersonality=yes",
		"LimitCORE=0",
		"LimitNOFILE=65536",
		"UMask=0077")
	if l.Service == ServiceSystem {
		write("",
			"User="+account,
			"Group="+account)
		if len(groups) > 0 {
			write("# Who may use GPUs.", "SupplementaryGroups="+strings.Join(groups, " "))
		}
		writable := "ReadWritePaths=" + l.Data
		if name, ok := strings.CutPrefix(l.Data, "/var/lib/"); ok {
			writable = "StateDirectory=" + name + "\nStateDirectoryMode=0700"
		}
		write("CapabilityBoundingSet=",
			"ProtectSystem=strict",
			writable,
			"# Models may lie in a home folder (file:); nothing is written there.",
			"ProtectHome=read-only",
			"ProtectControlGroups=yes",
			"ProtectKernelLogs=yes",
			"ProtectKernelModules=yes",
			"ProtectKernelTunables=yes",
			"ProtectHostname=yes",
			"RestrictNamespaces=yes",
			"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
			"SystemCallArchitectures=native",
			"# Not here, on purpose: PrivateDevices, ProtectClock and DevicePolicy would hide the GPUs; MemoryDenyWriteExecute keeps GPU drivers",
			"# and WASM plugins from compiling; PrivateTmp would give each start another folder for what workers of earlier ones have open.")
	}
	target := "default.target"
	if l.Service == ServiceSystem {
		target = "multi-user.target"
	}
	write("", "[Install]", "WantedBy="+target)
	return b.String()
}
