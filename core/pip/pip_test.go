package pip

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

// environment is one for tests. pip says nothing when help is empty.
func environment(vars map[string]string, files map[string]string, help string) Environment {
	return Environment{
		Getenv: func(k string) string { return vars[k] }, Home: "/home/u", OS: "linux",
		ReadFile: func(p string) ([]byte, error) {
			if s, ok := files[p]; ok {
				return []byte(s), nil
			}
			return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		},
		AskPip: func(context.Context) (string, error) {
			if help == "" {
				return "", errors.New("pip is not installed")
			}
			return help, nil
		},
	}
}

// helpWith is what pip prints, with other options around.
func helpWith(index string) string {
	return "Package Index Options:\n  -i, --index-url <url>       Base URL of the Python Package Index (default\n                              " + index + "). This should point to a\n" +
		"                              repository (or a local directory).\n  --extra-index-url <url>     Extra URLs (default https://extra.test).\n"
}

func TestURL(t *testing.T) {
	conf := func(s string) string { return "[global]\nindex-url = " + s + "\n" }
	user := map[string]string{"/home/u/.config/pip/pip.conf": conf("https://user.test/simple/")}
	help := helpWith("https://pip.test/simple")
	for name, c := range map[string]struct {
		configured string
		env        Environment
		want       string // empty: an error
	}{
		"configuration first": {"https://conf.test/simple", environment(map[string]string{"PIP_INDEX_URL": "https://env.test"}, user, help), "https://conf.test/simple"},
		"environment":         {"", environment(map[string]string{"PIP_INDEX_URL": "https://env.test/x/"}, user, help), "https://env.test/x"},
		"user's file":         {"", environment(nil, user, help), "https://user.test/simple"},
		"user's old file":     {"", environment(nil, map[string]string{"/home/u/.pip/pip.conf": conf("https://old.test")}, help), "https://old.test"},
		"new over old":        {"", environment(nil, map[string]string{"/home/u/.pip/pip.conf": conf("https://old.test"), "/home/u/.config/pip/pip.conf": conf("https://new.test")}, help), "https://new.test"},
		"XDG_CONFIG_HOME":     {"", environment(map[string]string{"XDG_CONFIG_HOME": "/x"}, map[string]string{"/x/pip/pip.conf": conf("https://xdg.test")}, help), "https://xdg.test"},
		"global file":         {"", environment(nil, map[string]string{"/etc/pip.conf": conf("https://global.test")}, help), "https://global.test"},
		"XDG_CONFIG_DIRS":     {"", environment(map[string]string{"XDG_CONFIG_DIRS": "rel:/y"}, map[string]string{"/y/pip/pip.conf": conf("https://dirs.test"), "rel/pip/pip.conf": conf("https://no.test")}, help), "https://dirs.test"},
		"user over global":    {"", environment(nil, map[string]string{"/etc/pip.conf": conf("https://global.test"), "/home/u/.config/pip/pip.conf": conf("https://user.test")}, help), "https://user.test"},
		"virtual environment": {"", environment(map[string]string{"VIRTUAL_ENV": "/v"}, map[string]string{"/v/pip.conf": conf("https://venv.test"), "/home/u/.config/pip/pip.conf": conf("https://user.test")}, help), "https://venv.test"},
		"PIP_CONFIG_FILE":     {"", environment(map[string]string{"PIP_CONFIG_FILE": "/own"}, map[string]string{"/own": conf("https://own.test"), "/home/u/.config/pip/pip.conf": conf("https://user.test")}, help), "https://own.test"},
		"no files at all":     {"", environment(map[string]string{"PIP_CONFIG_FILE": os.DevNull}, user, help), "https://pip.test/simple"},
		"install over global": {"", environment(nil, map[string]string{"/etc/pip.conf": "[install]\nindex_url: https://install.test\n", "/home/u/.config/pip/pip.conf": conf("https://user.test")}, help), "https://install.test"},
		"other sections":      {"", environment(nil, map[string]string{"/etc/pip.conf": "index-url = https://none.test\n[download]\nindex-url = https://download.test\n[global]\n# index-url = https://comment.test\ncert = /x\n"}, help), "https://pip.test/simple"},
		"pip":                 {"", environment(nil, nil, help), "https://pip.test/simple"},
		"pip, in brackets":    {"", environment(nil, nil, "--index-url URL  Base URL [x] (default: https://pip.test/simple)"), "https://pip.test/simple"},
		"pip, old":            {"", environment(nil, nil, "no such option"), ""},
		"pip, hidden":         {"", environment(nil, nil, helpWith("https://u:****@pip.test/simple")), ""},
		"pip, all hidden":     {"", environment(nil, nil, helpWith("https://****@pip.test/simple")), ""},
		"nothing":             {"", environment(nil, nil, ""), ""},
		"empty environment":   {"", Environment{}, ""},
		"configured alone":    {"http://conf.test:8080/", Environment{}, "http://conf.test:8080"},
		"no URL":              {"", environment(map[string]string{"PIP_INDEX_URL": "pypi"}, user, help), ""},
		"a folder":            {"", environment(map[string]string{"PIP_INDEX_URL": "file:///simple"}, user, help), ""},
		"a query":             {"", environment(map[string]string{"PIP_INDEX_URL": "https://x/?a=secret"}, user, help), ""},
	} {
		got, err := New(c.configured, c.env).URL(t.Context())
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if c.want == "" && (fault.KindOf(err) != fault.Invalid || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mac := environment(nil, map[string]string{"/home/u/Library/Application Support/pip/pip.conf": conf("https://mac.test"), "/etc/pip.conf": conf("https://no.test")}, help)
	mac.OS = "darwin"
	if got, err := New("", mac).URL(t.Context()); got != "https://mac.test" {
		t.Errorf("on a Mac: %q, %v", got, err)
	}
}

func TestPassword(t *testing.T) {
	x := New("", environment(map[string]string{"PIP_INDEX_URL": "https://us%20er:pa%3Ass@Index.test:8443/simple"}, nil, ""))
	if x.Credential("index.test:8443") != "" || x.Own(&url.URL{Scheme: "https", Host: "index.test:8443"}) {
		t.Error("known before it was looked for")
	}
	at, err := x.URL(t.Context())
	if err != nil || at != "https://Index.test:8443/simple" {
		t.Fatalf("%q, %v", at, err)
	}
	if got := x.Credential("index.test:8443").Reveal(); got != "Basic dXMgZXI6cGE6c3M=" {
		t.Errorf("got %q", got)
	}
	for _, host := range []string{"index.test", "index.test:443", "files.test", "", "x.index.test:8443"} {
		if got := x.Credential(host); got != "" {
			t.Errorf("sent to %q", host)
		}
	}
	for u, want := range map[string]bool{"https://index.test:8443/x": true, "http://index.test:8443/x": false, "https://index.test/x": false, "https://files.test": false} {
		at, err := url.Parse(u)
		if err != nil || x.Own(at) != want {
			t.Errorf("%s: %v, %v", u, !want, err)
		}
	}
	name := New("https://token@index.test", Environment{}) // a name without a password
	if _, err := name.URL(t.Context()); err != nil || name.Credential("index.test").Reveal() != "Basic dG9rZW46" {
		t.Errorf("%q, %v", name.Credential("index.test").Reveal(), err)
	}
	_, err = New("", environment(map[string]string{"PIP_INDEX_URL": "ftp://u:hunter2@x"}, nil, "")).URL(t.Context())
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestUnreadable(t *testing.T) {
	env := environment(nil, nil, helpWith("https://pip.test"))
	env.ReadFile = func(p string) ([]byte, error) { return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrPermission} }
	if got, err := New("", env).URL(t.Context()); got != "https://pip.test" {
		t.Errorf("files of others: %q, %v", got, err)
	}
	env.ReadFile = func(string) ([]byte, error) { return nil, errors.New("input/output error") }
	x := New("", env)
	if _, err := x.URL(t.Context()); fault.KindOf(err) != fault.Invalid {
		t.Errorf("got %v", err)
	}
	x.env.ReadFile = nil // the failure is not kept
	if got, err := x.URL(t.Context()); got != "https://pip.test" {
		t.Errorf("%q, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New("", environment(nil, nil, "")).URL(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A pip as it is installed is found on PATH and asked outside the current folder.
func TestAskPip(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell script")
	}
	bin, home := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\n[ \"$1 $2\" = 'install --help' ] && [ \"$(pwd -P)\" = \"$(cd '" + home + "' && pwd -P)\" ] && [ \"$COLUMNS\" = 4000 ] && printf '%s\\n' '  --index-url <url>  Base (default https://real.test/simple). More.' || exit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "pip"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("PATH", bin)
	for _, name := range []string{"PIP_INDEX_URL", "XDG_CONFIG_HOME", "VIRTUAL_ENV"} {
		t.Setenv(name, "")
	}
	t.Setenv("PIP_CONFIG_FILE", os.DevNull)
	if got, err := New("", SystemEnvironment()).URL(t.Context()); got != "https://real.test/simple" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("[global]\nindex-url = https://a.test\n", helpWith("https://b.test"))
	f.Fuzz(func(t *testing.T, conf, help string) {
		at, err := New("", environment(nil, map[string]string{"/etc/pip.conf": conf}, help)).URL(t.Context())
		if (err == nil) != (at != "") {
			t.Errorf("%q, %v", at, err)
		}
	})
}
