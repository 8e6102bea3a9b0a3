package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// pluginCommands are the commands of scripts about plugins: `shelf` starts a server with the index of a model, and sets SHELF
// (host:port), EXAMPLES (their folder), PLUGIN_WASM (a plugin in C, as a module) and PLUGIN_PROGRAM (one in Go, as a program); `flip PATTERN`
// changes the last byte of a file.
func pluginCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"shelf": scriptShelf, "flip": scriptFlip}
}

func scriptShelf(ts *testscript.TestScript, _ bool, _ []string) {
	body, err := os.ReadFile(ts.Getenv("MODEL"))
	ts.Check(err)
	sum := sha256.Sum256(body)
	// A server on this machine that nobody has granted.
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	ts.Defer(private.Close)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/led.gguf" {
			http.Redirect(w, r, private.URL+"/led.gguf", http.StatusFound)
			return
		}
		if r.URL.Path != "/index.json" {
			_, _ = w.Write(body)
			return
		}
		file := map[string]any{"path": "stories.gguf", "size": len(body), "sha256": hex.EncodeToString(sum[:]), "url": server.URL + "/stories.gguf"}
		far := map[string]any{"path": "far.gguf", "size": len(body), "sha256": hex.EncodeToString(sum[:]), "url": "https://elsewhere.example.org/far.gguf"}
		led := map[string]any{"path": "led.gguf", "size": len(body), "sha256": strings.Repeat("0", 64), "url": server.URL + "/led.gguf"}
		_ = json.NewEncoder(w).Encode(map[string]any{"models": []any{
			map[string]any{"name": "led", "format": "gguf", "files": []any{led}},
			map[string]any{"name": "stories", "format": "gguf", "files": []any{file}},
			map[string]any{"name": "far", "format": "gguf", "files": []any{far}},
		}})
	}))
	ts.Defer(server.Close)
	ts.Setenv("SHELF", strings.TrimPrefix(server.URL, "http://"))
	module, err := filepath.Abs(filepath.Join("..", "..", "plugins", "wasm", "testdata", "shelf-c.wasm"))
	ts.Check(err)
	ts.Setenv("PLUGIN_WASM", module)
	cases, err := filepath.Abs(filepath.Join("..", "..", "examples"))
	ts.Check(err)
	ts.Setenv("EXAMPLES", cases)
	program := ts.MkAbs("plugin-go")
	build := exec.Command("go", "build", "-o", program, "../../examples/plugin-go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		ts.Fatalf("build the plugin: %v\n%s", err, out)
	}
	ts.Setenv("PLUGIN_PROGRAM", program)
}

func scriptFlip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	found, err := filepath.Glob(path)
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%d files match %s", len(found), path)
	}
	raw, err := os.ReadFile(found[0])
	ts.Check(err)
	raw[len(raw)-1] ^= 1
	ts.Check(os.Chmod(found[0], 0o700))
	ts.Check(os.WriteFile(found[0], raw, 0o500))
}
