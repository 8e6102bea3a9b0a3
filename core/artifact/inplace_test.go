package artifact

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestInPlace(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	body := ggufFile(1, 0, 1, 3000)
	file := write(t, filepath.Join(t.TempDir(), "my model.gguf"), body)
	ref := "file:" + file
	m, err := s.PullModel(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(file)
	in := m.Files[0].InPlace
	if m.ID != ref+"@"+sum256(body)[:12] || m.References[0] != ref || m.Vendor != "local" || m.Parameters != 3000 || in.Path != file || !in.ModTime.Equal(st.ModTime()) || in.Inode != st.Sys().(*syscall.Stat_t).Ino {
		t.Errorf("got %+v, %+v", m, in)
	}
	if left := files(t, s, "blobs"); len(left) > 0 {
		t.Errorf("copied: %v", left)
	}
	if p, err := s.ModelPath(t.Context(), m); err != nil || p != file {
		t.Errorf("%s, %v", p, err)
	}
	var log reports
	if again, err := s.PullModel(t.Context(), "file://"+file, log.add); err != nil || again.ID != m.ID || log.has("verify", "") {
		t.Errorf("under another name: %v, %v, read again %v", again.ID, err, log.has("verify", ""))
	}
	for _, ref := range []string{ref, "file://" + file, m.ID} {
		if got, err := s.Model(ref); err != nil || got.ID != m.ID {
			t.Errorf("Model(%s): %v, %v", ref, got.ID, err)
		}
	}
}

// A file that was only touched keeps its ID; one with other bytes gets another, and the old entry goes.
func TestInPlaceChanges(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	file := write(t, filepath.Join(t.TempDir(), "m.gguf"), ggufFile(1, 0, 1, 3000))
	ref := "file:" + file
	m, err := s.PullModel(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ModelPath(t.Context(), m); err != nil {
		t.Errorf("touched: %v", err)
	}
	if m, err = s.Model(ref); err != nil || !s.complete(m) {
		t.Errorf("the entry was not refreshed: %v", err)
	}

	// Replaced by a file of the same size and time, as rsync -t would: the inode differs.
	st, _ := os.Stat(file)
	other := write(t, file+".new", ggufFile(2, 0, 1, 3000))
	if err := os.Chtimes(other, time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, file); err != nil {
		t.Fatal(err)
	}
	_, err = s.ModelPath(t.Context(), m)
	wantFault(t, err, fault.Conflict, "model_changed", m.ID)
	m2, err := s.Model(ref)
	if err != nil || m2.ID == m.ID || !strings.Contains(err2(s.Model(m.ID)), "not in the catalog") {
		t.Errorf("%v, %v", m2.ID, err)
	}
	if _, err := s.ModelPath(t.Context(), m2); err != nil {
		t.Error(err)
	}

	// Pulled again after a change: said, replaced.
	write(t, file, ggufFile(3, 0, 1, 3001))
	var log reports
	m3, err := s.PullModel(t.Context(), ref, log.add)
	if err != nil || m3.ID == m2.ID || !log.has("changed", m2.ID) {
		t.Errorf("%v, %v, %v", m3.ID, err, log.events)
	}
	_, err = s.PullModel(t.Context(), m2.ID, nil)
	wantFault(t, err, fault.Conflict, "model_changed", "was asked for")
	if all, _ := s.Models(); len(all) != 1 {
		t.Errorf("%d entries", len(all))
	}

	// Gone for a while: the entry stays.
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = s.ModelPath(t.Context(), m3)
	wantFault(t, err, fault.NotFound, "model_not_found", file)
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ModelPath(t.Context(), m3); err != nil {
		t.Error(err)
	}

	// Replaced by something that is no model: the entry goes.
	write(t, file, []byte("Dear all, no model here"))
	_, err = s.ModelPath(t.Context(), m3)
	wantFault(t, err, fault.Conflict, "model_changed", "Dear all")
	if all, _ := s.Models(); len(all) != 0 {
		t.Errorf("%d entries", len(all))
	}
}

func err2(_ any, err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestInPlaceRefuses(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	dir := t.TempDir()
	whole := ggufFile(1, 0, 1, 3000)
	fifo := filepath.Join(dir, "pipe.gguf")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ref, code, part string }{
		{"file:" + write(t, filepath.Join(dir, "notes.txt"), []byte("Dear all, ...")), "not_a_model", `notes.txt is not a model: it starts with "Dear all, ..", and a GGUF file starts with "GGUF".`},
		{"file:" + write(t, filepath.Join(dir, "cut.gguf"), whole[:len(whole)-5]), "model_truncated", "cut off"},
		{"file:" + write(t, filepath.Join(dir, "empty.gguf"), nil), "not_a_model", "empty"},
		{"file:" + fifo, "not_a_model", "neither a file nor a folder"},
		{"file:" + filepath.Join(dir, "missing.gguf"), "model_not_found", "check the path"},
		{"file:relative.gguf", "invalid_reference", "absolute"},
		{"file:/dev/zero", "not_a_model", ""},
		{"file:" + write(t, filepath.Join(dir, "a-00001-of-00002.gguf"), ggufFile(1, 0, 2, 10)), "shard_missing", "a-00002-of-00002.gguf"},
		{"file:" + write(t, filepath.Join(dir, "lonely.gguf"), ggufFile(1, 0, 2, 10)), "shard_missing", "of 2 files"},
	} {
		_, err := s.PullModel(t.Context(), c.ref, nil)
		if e := fault.As(err); e == nil || e.Code != c.code || !strings.Contains(e.Message, c.part) {
			t.Errorf("%s: %v", c.ref, err)
		}
	}
	if all, _ := s.Models(); len(all) != 0 {
		t.Errorf("%d entries", len(all))
	}
}

// The files of a Hugging Face cache are links with the names of the model to blobs without them; shards are found by name.
func TestInPlaceThroughLinks(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	dir := t.TempDir()
	one, two := ggufFile(1, 0, 2, 500), ggufFile(2, 1, 2, 700)
	for i, b := range [][]byte{one, two} {
		blob := write(t, filepath.Join(dir, "blobs", sum256(b)), b)
		link := filepath.Join(dir, "snapshots", []string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}[i])
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(blob, link); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.PullModel(t.Context(), "file:"+filepath.Join(dir, "snapshots"), nil)
	if err != nil || m.Parameters != 1200 || len(m.Files) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	p, err := s.ModelPath(t.Context(), m)
	if err != nil || filepath.Base(p) != "m-00001-of-00002.gguf" || filepath.Base(filepath.Dir(p)) != "snapshots" {
		t.Errorf("%s, %v", p, err)
	}
	// A link that leads elsewhere now is a change.
	link := filepath.Join(dir, "snapshots", "m-00002-of-00002.gguf")
	three := write(t, filepath.Join(dir, "blobs", "three"), ggufFile(3, 1, 2, 700))
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(three, link); err != nil {
		t.Fatal(err)
	}
	_, err = s.ModelPath(t.Context(), m)
	wantFault(t, err, fault.Conflict, "model_changed", "")
	if err := s.RemoveModel("file:" + filepath.Join(dir, "snapshots")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(three); err != nil {
		t.Error("the user's file was removed")
	}
}
