package cli

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// pluginCommands are the commands of scripts about plugins: `shelf` starts a server with the index of a model, and sets SHELF
// (host:port), EXAMPLES (their folder), PLUGIN_WASM (a plugin in C, as a module) and PLUGIN_PROGRAM (one in Go, as a program); `flip PATTERN`
// changes the last byte of a file.
func pluginCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"shelf": scriptShelf, "flip": scriptFlip, "platforms": scriptPlatforms}
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

// scriptPlatforms makes a folder with the program of the example for this machine, and with something that is one for another machine.
func scriptPlatforms(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	own, err := os.ReadFile(ts.Getenv("PLUGIN_PROGRAM"))
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "index_"+runtime.GOOS+"_"+runtime.GOARCH), own, 0o700))
	machine, other := elf.EM_AARCH64, "arm64"
	if runtime.GOARCH == other {
		machine, other = elf.EM_X86_64, "amd64"
	}
	var head bytes.Buffer
	ts.Check(binary.Write(&head, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Entry: 0x400000, Ehsize: 64,
	}))
	ts.Check(os.WriteFile(filepath.Join(dir, "index_linux_"+other), head.Bytes(), 0o700))
	ts.Setenv("GOARCH_HERE", runtime.GOARCH)
}
