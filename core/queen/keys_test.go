package queen

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
)

// askKeys calls one of the routes of keys as an operator.
func askKeys(t *testing.T, q *Queen, method, path string, in, out any) int {
	t.Helper()
	s, err := httpd.New(httpd.Options{Routes: q.keyRoutes()})
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(in)
	r := httptest.NewRequest(method, path, strings.NewReader(string(body)))
	r.Host = "localhost"
	r.Header.Set("Content-Type", "application/json")
	if in == nil {
		r = httptest.NewRequest(method, path, nil)
		r.Host = "localhost"
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if out != nil && w.Code < 300 {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			t.Fatalf("%s %s answered %s", method, path, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), `"hash"`) {
		t.Errorf("%s %s shows hashes: %s", method, path, w.Body)
	}
	return w.Code
}

// A key of one queen is one of all, is revoked at all, also after they could not hear each other, and outlives them; what is in their
// files is not the key (T56).
func TestKeysAreShared(t *testing.T) {
	h := newHall(t)
	home := t.TempDir()
	a, b := h.start("q1", Options{Home: home, Interval: 200 * time.Millisecond}), h.start("q2", Options{Home: t.TempDir(), Interval: 200 * time.Millisecond})
	h.together()
	if a.KeysRequired() || b.KeysRequired() {
		t.Error("keys are needed before there is one")
	}
	var made contract.MadeKey
	if code := askKeys(t, a.Queen, http.MethodPost, "/admin/keys", contract.NewKey{Name: "anna"}, &made); code != http.StatusCreated || made.Key == "" {
		t.Fatalf("made with %d: %+v", code, made)
	}
	good := func(q *agent, key string, want bool) {
		t.Helper()
		h.eventually(fmt.Sprintf("the key is good at %s: %v", q.o.NodeID, want), func() bool {
			_, err := q.o.Keys.Check(key, time.Now())
			return (err == nil) == want && q.KeysRequired()
		})
	}
	good(a, made.Key, true)
	good(b, made.Key, true)
	if code := askKeys(t, b.Queen, http.MethodPost, "/admin/keys", contract.NewKey{Name: "anna"}, nil); code != http.StatusConflict {
		t.Errorf("another anna: %d", code)
	}
	// An open request at the one ends when the key is revoked at the other, although they are apart at that time.
	g, err := b.o.Keys.Check(made.Key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	if _, err := g.Begin(time.Now(), func(err error) { ended <- err }); err != nil {
		t.Fatal(err)
	}
	h.split(true, []string{"q1"}, []string{"q2"})
	if code := askKeys(t, a.Queen, http.MethodDelete, "/admin/keys/anna", nil, nil); code != http.StatusOK {
		t.Fatalf("revoked with %d", code)
	}
	good(a, made.Key, false)
	good(b, made.Key, true)
	var again contract.MadeKey
	if code := askKeys(t, a.Queen, http.MethodPost, "/admin/keys", contract.NewKey{Name: "anna"}, &again); code != http.StatusCreated {
		t.Fatalf("another one of the same name: %d", code)
	}
	h.split(false, []string{"q1"}, []string{"q2"})
	good(b, made.Key, false)
	good(b, again.Key, true)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the open request goes on")
	}
	var list []contract.APIKey
	if code := askKeys(t, b.Queen, http.MethodGet, "/admin/keys", nil, &list); code != http.StatusOK || len(list) != 1 || list[0].ID != again.ID {
		t.Errorf("the list: %d %+v", code, list)
	}
	raw, err := os.ReadFile(filepath.Join(home, stateFolder, sharedFile))
	if err != nil || strings.Contains(string(raw), again.Key) || !strings.Contains(string(raw), again.ID) {
		t.Errorf("the file has the key, or nothing of it: %v", err)
	}
	// The last one is revoked: the door does not open again, also after a start.
	if code := askKeys(t, a.Queen, http.MethodDelete, "/admin/keys/"+again.ID, nil, nil); code != http.StatusOK {
		t.Fatalf("revoked with %d", code)
	}
	a.end()
	a = h.start("q1", Options{Home: home, Interval: 200 * time.Millisecond})
	if !a.KeysRequired() {
		t.Error("without any key left callers need none")
	}
	if code := askKeys(t, a.Queen, http.MethodDelete, "/admin/keys/nobody", nil, nil); code != fault.HTTPStatus(fault.New(fault.NotFound, "x", "x")) {
		t.Errorf("an unknown one: %d", code)
	}
}
