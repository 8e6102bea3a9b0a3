package remote

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

// example is the unit that people may copy; it is what is installed for root.
const example = "../../examples/systemd/apiary.service"

func systemLayout() Layout {
	return Layout{Bin: "/usr/local/bin/apiary", Data: "/var/lib/apiary", Config: "/etc/apiary/config.hcl", Unit: "/etc/systemd/system/apiary.service", Service: ServiceSystem}
}

func TestUnitIsTheExample(t *testing.T) {
	got := Unit(systemLayout(), false, []string{"video", "render"})
	want, err := os.ReadFile(example)
	if err != nil || got != string(want) {
		t.Errorf("%s differs from what is installed (%v); it should be:\n%s", example, err, got)
	}
}

// TestUnitsAreRight asks systemd itself, where it is.
func TestUnitsAreRight(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{ServiceSystem, ServiceUser} {
		l := systemLayout()
		l.Service, l.Bin = service, program // which must exist
		file := filepath.Join(t.TempDir(), "apiary.service")
		if err := os.WriteFile(file, []byte(Unit(l, true, nil)), 0o600); err != nil {
			t.Fatal(err)
		}
		// It warns of other units of this machine too; only what it says of this one counts.
		out, _ := exec.Command(verify, "verify", "--man=no", file).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "apiary.service") && !strings.Contains(line, "world-inaccessible") {
				t.Errorf("%s: %s", service, line)
			}
		}
	}
}

func TestUnitOfInsecureUser(t *testing.T) {
	l := Layout{Bin: "/home/me/.local/bin/apiary", Data: "/home/me/.local/share/apiary", Config: "/home/me/.local/share/apiary/config.hcl", Service: ServiceUser}
	got := Unit(l, true, []string{"video"})
	for _, want := range []string{"ExecStart=/home/me/.local/bin/apiary agent --background --insecure-i-know\n", "KillMode=process\n", "NoNewPrivileges=yes\n", "WantedBy=default.target\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the unit lacks %q:\n%s", want, got)
		}
	}
	for _, not := range []string{"User=", "ProtectSystem", "SupplementaryGroups", "network-online"} {
		if strings.Contains(got, not) {
			t.Errorf("a user's unit has %q", not)
		}
	}
}

func TestReadMachine(t *testing.T) {
	m, err := read("me@tower", "os=Linux\narch=aarch64\nname=tower\nuid=1000\nuser=me\nhome=/home/me\naddress=10.0.0.7\nservice=user\ngroup=video\nlibc=glibc\nffi=\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.lay(Places{}); err != nil {
		t.Fatal(err)
	}
	if m.Platform != "linux-arm64" || m.Layout.Bin != "/home/me/.local/bin/apiary" || m.Layout.Unit != "/home/me/.config/systemd/user/apiary.service" ||
		!strings.Contains(m.Missing, "libffi") || m.Existing != nil || m.Layout.as() != "" || m.Address != "10.0.0.7" {
		t.Errorf("%+v", m)
	}
	m, err = read("root@tower", "os=Linux\narch=x86_64\nuid=0\nhome=/root\nservice=system\nlibc=glibc\nffi=1\naccount=1\nrecord=1\n"+
		"record_bin=/opt/b/apiary\nrecord_data=/srv/apiary\nrecord_config=/etc/apiary/config.hcl\nrecord_service=system\nrecord_insecure=true\nsha256=abc\nversion=apiary v1\nrunning=1\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.lay(Places{}); err != nil {
		t.Fatal(err)
	}
	if e := m.Existing; e == nil || !e.Running || !e.Insecure || m.Layout.Data != "/srv/apiary" || m.Layout.Bin != "/opt/b/apiary" || m.Layout.as() != account || m.Missing != "" {
		t.Errorf("%+v %+v", m, m.Existing)
	}
	if err := m.lay(Places{DataDir: "/elsewhere"}); fault.As(err).Code != "installed_elsewhere" {
		t.Errorf("another data folder than that of the installation: %v", err)
	}
	for _, out := range []string{"os=Darwin\narch=arm64\n", "os=Linux\narch=riscv64\n", ""} {
		if _, err := read("x", out); fault.As(err).Code != "unsupported_platform" {
			t.Errorf("%q: %v", out, err)
		}
	}
	m, _ = read("x", "os=Linux\narch=x86_64\nhome=/home/it's me\nservice=none\n")
	if err := m.lay(Places{}); fault.As(err).Code != "bad_path" {
		t.Errorf("a home with a quote: %v", err)
	}
}
