package cli

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// keyCommands are those of scripts that show keys.
func keyCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"keyed": scriptKeyed, "envfile": scriptEnvFile, "unseen": scriptUnseen, "members": scriptMembers}
}

// scriptKeyed sends a request with the key that a file holds, by x-api-key or as a bearer token; "-" stands for none.
func scriptKeyed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 || len(args) > 5 {
		ts.Fatalf("usage: keyed FILE|- METHOD PATH STATUS [BODYFILE]")
	}
	for _, header := range []string{"X-Api-Key", "Authorization"} {
		var body io.Reader
		if len(args) == 5 {
			body = strings.NewReader(ts.ReadFile(args[4]))
		}
		req, err := http.NewRequest(args[1], "http://"+ts.Getenv("APIARY_ADDR")+args[2], body)
		ts.Check(err)
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if args[0] != "-" {
			key := strings.TrimSpace(ts.ReadFile(args[0]))
			if header == "Authorization" {
				key = "Bearer " + key
			}
			req.Header.Set(header, key)
		}
		resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
		ts.Check(err)
		out := io.Discard
		if header == "Authorization" {
			out = ts.Stdout()
		}
		_, err = io.Copy(out, resp.Body)
		_ = resp.Body.Close()
		ts.Check(err)
		if got := strconv.Itoa(resp.StatusCode); got != args[3] {
			ts.Fatalf("%s %s with %s of %s answered %s, not %s", args[1], args[2], header, args[0], got, args[3])
		}
	}
}

// scriptEnvFile sets a variable to what a file holds.
func scriptEnvFile(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: envfile NAME FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// scriptUnseen looks for what a file holds in all files of a folder.
func scriptUnseen(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: unseen FILE FOLDER")
	}
	secret := strings.TrimSpace(ts.ReadFile(args[0]))
	seen := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[1]), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // files of an agent that runs come and go
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), secret) {
			ts.Fatalf("%s holds the key", path)
		}
		seen++
		return nil
	}))
	if seen == 0 {
		ts.Fatalf("there are no files in %s", args[1])
	}
}

// scriptMembers waits until so many agents list each other.
func scriptMembers(ts *testscript.TestScript, _ bool, args []string) {
	waitUntil(ts, func() bool {
		ts.Check(ts.Exec("apiary", "hive", "list", "--json"))
		return strconv.Itoa(strings.Count(ts.ReadFile("stdout"), `"liveness": "alive"`)) == args[0]
	}, "the hives are not heard")
}
