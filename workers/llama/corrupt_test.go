package llama

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// Loading what is broken may not end the process, so these tests load in a child.
const childFile = "APIARY_TEST_LOAD"

func TestMain(m *testing.M) {
	if list := os.Getenv(childFile); list != "" {
		os.Exit(loadFiles(list))
	}
	os.Exit(m.Run())
}

// loadFiles loads each file of the list in turn and prints what became of it.
func loadFiles(list string) int {
	lib, err := OpenLibrary(os.Getenv("APIARY_TEST_LOAD_ENGINE"), slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for path := range strings.SplitSeq(list, "\n") {
		fmt.Printf("%s ", filepath.Base(path))
		e := New(Options{Library: lib, ModelPath: path, Threads: 1, Context: 64, Slots: 1})
		if _, err := e.Load(context.Background(), func(float64) {}); err != nil {
			fmt.Printf("refused %v\n", fault.KindOf(err))
			continue
		}
		_, _ = e.Generate(context.Background(), &sdk.Request{Prompt: "Once", MaxTokens: 2, TopP: 1, RepeatPenalty: 1}, func(sdk.Token) error { return nil })
		_ = e.Close()
		fmt.Println("loaded")
	}
	return 0
}

// loadInChild returns what became of each file.
func loadInChild(t *testing.T, files map[string][]byte) map[string]string {
	t.Helper()
	dir := t.TempDir()
	var list []string
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		list = append(list, path)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childFile+"="+strings.Join(list, "\n"), "APIARY_TEST_LOAD_ENGINE="+engineDir(t))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	got := map[string]string{}
	last := ""
	for line := range strings.Lines(out.String()) {
		name, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name], last = what, name
	}
	if err != nil {
		if keep := os.Getenv("APIARY_TEST_KEEP"); keep != "" {
			_ = os.WriteFile(filepath.Join(keep, last), files[last], 0o600)
		}
		t.Errorf("loading %s ended the process: %v\n%.2000s", last, err, errs.String())
	}
	return got
}

func TestTruncatedAndForeignFiles(t *testing.T) {
	whole, err := os.ReadFile(stories(t))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"empty":      nil,
		"text":       []byte("this is not a model\n"),
		"magic":      []byte("GGUF"),
		"zeros":      append([]byte("GGUF\x03\x00\x00\x00"), make([]byte, 4096)...),
		"last-byte":  whole[:len(whole)-1],
		"garbage":    append([]byte("GGUF"), bytes.Repeat([]byte{0xff}, 100_000)...),
		"whole.gguf": whole,
	}
	for _, n := range []int{5, 24, 100, 1000, 5000, 12_000, 20_000, len(whole) / 2, len(whole) - 4096} {
		files["cut-"+strconv.Itoa(n)] = whole[:n]
	}
	got := loadInChild(t, files)
	for name := range files {
		want := "refused invalid"
		if name == "whole.gguf" {
			want = "loaded"
		}
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	e := New(Options{Library: library(t), ModelPath: filepath.Join(t.TempDir(), "none.gguf"), Threads: 1})
	if _, err := e.Load(context.Background(), func(float64) {}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a file that does not exist: %v", err)
	}
}

// TestDamagedHeaders changes bytes of the header. Most of these files load, with other words or numbers; none may end the
// process.
func TestDamagedHeaders(t *testing.T) {
	whole, err := os.ReadFile(stories(t))
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := strconv.ParseUint(os.Getenv("APIARY_TEST_SEED"), 10, 64)
	rng := rand.New(rand.NewPCG(seed, 3))
	header := 20_000 // metadata and the list of tensors
	files := map[string][]byte{}
	for i := range 60 {
		b := bytes.Clone(whole)
		for range 1 + rng.IntN(4) {
			at := 8 + rng.IntN(header-8)
			if i%2 == 0 {
				at = 8 + rng.IntN(800) // where the numbers are
			}
			switch rng.IntN(3) {
			case 0:
				b[at] ^= 1 << rng.IntN(8)
			case 1:
				b[at] = 0
			case 2:
				b[at] = 0xff
			}
		}
		files[fmt.Sprintf("damaged-%d-%d.gguf", seed, i)] = b
	}
	got := loadInChild(t, files)
	if len(got) != len(files) {
		t.Errorf("%d of %d files were tried", len(got), len(files))
	}
}
