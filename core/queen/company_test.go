package queen

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// hall is several queens in one process that reach each other over HTTP, and of which ways can be cut.
type hall struct {
	t *testing.T

	mu     sync.Mutex // guards the fields below
	queens []*agent
	states map[string]contract.MemberState
	cut    map[string]bool // "from to" → no way, by node ids of queens and hives
	where  map[string]string
}

func newHall(t *testing.T) *hall {
	return &hall{t: t, states: map[string]contract.MemberState{}, cut: map[string]bool{}, where: map[string]string{}}
}

// members are those that a queen sees.
func (h *hall) members(self string) []contract.Member {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []contract.Member{{ID: self, Name: self, Self: true, State: contract.MemberAlive, Roles: []string{"queen"}, Start: "0", Address: "127.0.0.1:1"}}
	for _, a := range h.queens {
		if a.o.NodeID != self {
			out = append(out, contract.Member{ID: a.o.NodeID, Name: a.o.NodeID, Queen: a.base, State: h.states[a.o.NodeID], Roles: []string{"queen"}, Start: "0", Address: "127.0.0.1:1"})
		}
	}
	return out
}

func (h *hall) dial(from string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.mu.Lock()
		way := from + " " + h.where[addr]
		no := h.cut[way]
		h.mu.Unlock()
		if no {
			return nil, syscall.EHOSTUNREACH
		}
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: c, h: h, way: way}, nil
	}
}

// cutConn is a connection that fails once its way is cut.
type cutConn struct {
	net.Conn
	h   *hall
	way string
}

func (c *cutConn) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	no := c.h.cut[c.way]
	c.h.mu.Unlock()
	if no {
		return 0, syscall.ECONNRESET
	}
	return c.Conn.Write(b)
}

// start adds a queen, or starts one again under its node id.
func (h *hall) start(id string, o Options, hives ...*fakeHive) *agent {
	o.NodeID, o.Start = id, fmt.Sprintf("%020d", time.Now().UnixNano())
	o.Members = func() []contract.Member { return h.members(id) }
	o.Dial = h.dial(id)
	if o.Registry.Grace == 0 {
		o.Registry.Grace = 300 * time.Millisecond
	}
	a := startQueen(h.t, o, hives...)
	h.mu.Lock()
	h.queens = append(slices.DeleteFunc(h.queens, func(b *agent) bool { return b.o.NodeID == id }), a)
	h.states[id] = contract.MemberAlive
	h.where[strings.TrimPrefix(a.base, "http://")] = id
	for _, v := range hives {
		h.where[strings.TrimPrefix(v.url, "http://")] = v.id
	}
	h.mu.Unlock()
	h.changed()
	return a
}

func (h *hall) all() []*agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.queens)
}

func (h *hall) changed() {
	for _, a := range h.all() {
		a.MembersChanged()
	}
}

// see has all queens see a member in a state.
func (h *hall) see(id string, s contract.MemberState) {
	h.mu.Lock()
	h.states[id] = s
	h.mu.Unlock()
	h.changed()
}

// split cuts all ways between two groups of queens and hives, or joins them again.
func (h *hall) split(on bool, one, other []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range one {
		for _, b := range other {
			h.cut[a+" "+b], h.cut[b+" "+a] = on, on
		}
	}
}

// eventually waits for a condition of several queens.
func (h *hall) eventually(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	h.t.Fatalf("never happened: %s", what)
}

// together waits until all queens are acquainted and know of each other.
func (h *hall) together() {
	h.t.Helper()
	h.eventually("all queens own their part", func() bool {
		for _, a := range h.all() {
			if len(a.company.owners()) != len(h.all()) || !a.acquainted() {
				return false
			}
		}
		return true
	})
}

func namesOf(list []contract.Deployment) (out []string) {
	for _, d := range list {
		out = append(out, d.Name)
	}
	return out
}

// TestRecordsAreShared: what is applied at one queen is in force at the others at once, what is taken back stays so, and of two writes the
// later one counts everywhere.
func TestRecordsAreShared(t *testing.T) {
	h := newHall(t)
	home := t.TempDir()
	a, b := h.start("q1", Options{Home: home, Interval: time.Minute}), h.start("q2", Options{Home: t.TempDir(), Interval: time.Minute})
	h.together()
	in := func(q *agent, want ...string) {
		t.Helper()
		h.eventually(fmt.Sprintf("%v are in force at %s", want, q.o.NodeID), func() bool {
			ok := slices.Equal(namesOf(q.book.deployments()), want)
			for _, name := range want {
				ok = ok && q.deploy.wish(name) != nil
			}
			return ok
		})
	}
	a.run(planOp(contract.OpApply, echoDeployment("one", 0, 1), echoDeployment("two", 0, 1)))
	in(b, "one", "two")
	b.run(planOp(contract.OpApply, echoDeployment("two", 0, 1), echoDeployment("three", 0, 1)))
	in(a, "three", "two")
	if got := a.book.removed(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("removed at the first one: %v", got)
	}
	if a.book.digest() != b.book.digest() {
		t.Error("the records differ")
	}
	inStep := func(q *agent, other, want string) {
		t.Helper()
		h.eventually(fmt.Sprintf("%s says that the records of %s are %s", q.o.NodeID, other, want), func() bool {
			return slices.ContainsFunc(q.members(), func(m contract.Member) bool { return m.ID == other && m.Records == want })
		})
	}
	inStep(a, "q2", contract.RecordsSame)
	inStep(b, "q1", contract.RecordsSame)
	// While they are apart each has a say; afterwards the later one counts, also of what one took back and the other changed.
	h.split(true, []string{"q1"}, []string{"q2"})
	a.run(planOp(contract.OpApply, echoDeployment("two", 0, 2)))
	time.Sleep(5 * time.Millisecond)
	b.run(planOp(contract.OpApply, echoDeployment("three", 0, 3), echoDeployment("four", 0, 1)))
	in(a, "two")
	in(b, "four", "three")
	inStep(a, "q2", contract.RecordsDifferent)
	h.split(false, []string{"q1"}, []string{"q2"})
	h.see("q2", contract.MemberSuspect)
	h.eventually("the suspicion is seen", func() bool { p := a.company.find("q2", true); p.mu.Lock(); defer p.mu.Unlock(); return !p.alive })
	h.see("q2", contract.MemberAlive)
	in(a, "four", "three")
	in(b, "four", "three")
	if n := a.deploy.wish("three").Replicas.Max; n != 3 {
		t.Errorf("three has %d replicas at most", n)
	}
	// A queen that comes back with a file of long ago learns what happened since.
	a.end()
	b.run(planOp(contract.OpApply, echoDeployment("five", 0, 1)))
	a = h.start("q1", Options{Home: home, Interval: time.Minute})
	in(a, "five")
	if got := a.book.removed(); !slices.Equal(got, []string{"four", "one", "three", "two"}) {
		t.Errorf("removed after a start with an old file: %v", got)
	}
	kept, err := openBook(home, "q1")
	if err != nil || kept.digest() != b.book.digest() {
		t.Errorf("the file has other records than the other queen: %v", err)
	}
}

// TestManyRecords: all records are exchanged in parts where they are too many for one message.
func TestManyRecords(t *testing.T) {
	h := newHall(t)
	a := h.start("q1", Options{})
	var list []contract.Deployment
	for i := range 25 {
		d := echoDeployment(fmt.Sprintf("d%d", i), 0, 1)
		d.Args = []string{strings.Repeat("x", 100_000)}
		list = append(list, d)
	}
	if err := a.book.apply(list); err != nil {
		t.Fatal(err)
	}
	b := h.start("q2", Options{})
	if err := b.book.drain("h1", true); err != nil {
		t.Fatal(err)
	}
	h.eventually("both have all", func() bool {
		return len(b.book.deployments()) == 25 && a.book.drained()["h1"] && a.book.digest() == b.book.digest()
	})
	huge := echoDeployment("huge", 0, 1)
	huge.Args = []string{strings.Repeat("x", 2<<20)}
	if err := a.book.apply([]contract.Deployment{huge}); err == nil {
		t.Error("a deployment of 2 MiB is taken")
	}
}

// TestWrongClocks: what a queen with a clock of another century writes is taken, and the others can still change it.
func TestWrongClocks(t *testing.T) {
	b, err := openBook(t.TempDir(), "q1")
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(echoDeployment("chat", 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	ahead := contract.Record{Kind: contract.RecordDeployment, Key: "chat", Value: value, Time: time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli(), Node: "q2"}
	if changed, refused, err := b.merge([]contract.Record{ahead}); !changed || refused != nil || err != nil {
		t.Errorf("a record of 2090: %v %v %v", changed, refused, err)
	}
	if err := b.apply([]contract.Deployment{echoDeployment("chat", 2, 2)}); err != nil {
		t.Fatal(err)
	}
	list, _, _ := b.since(0)
	if len(list) != 1 || list[0].Node != "q1" || list[0].Compare(ahead) <= 0 {
		t.Errorf("records %+v", list)
	}
	other, err := openBook("", "q2")
	if err != nil {
		t.Fatal(err)
	}
	other.set(ahead)
	if changed, _, _ := other.merge(list); !changed || other.deployments()[0].Replicas.Min != 2 {
		t.Errorf("the one whose clock was wrong has %+v", other.deployments())
	}
	if changed, _, _ := b.merge(list); changed {
		t.Error("its own record changes a book")
	}
	for what, bad := range map[string]func(*contract.Record){
		"no kind": func(r *contract.Record) { r.Kind = "" }, "a slash in its kind": func(r *contract.Record) { r.Kind = "a/b" }, "no key": func(r *contract.Record) { r.Key = "" },
		"a long key": func(r *contract.Record) { r.Key = strings.Repeat("k", 300) }, "an invisible key": func(r *contract.Record) { r.Key = "a\u202eb" }, "no writer": func(r *contract.Record) { r.Node = "" },
		"a time before 1970": func(r *contract.Record) { r.Time = -1 }, "a time after 2099": func(r *contract.Record) { r.Time = 1 << 62 }, "a count that is none": func(r *contract.Record) { r.Count = 1 << 60 },
		"no value": func(r *contract.Record) { r.Value = nil }, "a value that is gone": func(r *contract.Record) { r.Deleted = true },
		"much too much": func(r *contract.Record) { r.Value = json.RawMessage(`"` + strings.Repeat("x", 2<<20) + `"`) },
	} {
		r := ahead
		r.Count = 77
		bad(&r)
		if changed, refused, _ := b.merge([]contract.Record{r}); changed || refused == nil {
			t.Errorf("a record with %s is taken", what)
		}
	}
	old := contract.Record{Kind: contract.RecordDrain, Key: "h", Deleted: true, Time: time.Now().Add(-31 * 24 * time.Hour).UnixMilli(), Node: "q2"}
	if changed, refused, _ := b.merge([]contract.Record{old}); changed || refused != nil {
		t.Error("a record that was taken back a month ago is taken in")
	}
}

// FuzzSync: whatever another queen sends is answered, and the queen still knows what it knew.
func FuzzSync(f *testing.F) {
	for _, s := range []string{``, `{}`, `[]`, `null`, `{"state":{"node_id":"q2","start":"1","sequence":1},"digest":"","records":[]}`,
		`{"state":{"node_id":"q2","sequence":1,"pending":[{"worker_id":"w","deployment":"d","model":"m","hive_id":"h","device":"cpu0","replica":-1}]},"records":[{"kind":"deployment","key":"x","value":{"name":3},"time":1,"node":"n"}]}`,
		`{"state":{"node_id":"q2","sequence":1,"wanted":{"echo:x":"q1"},"draining":["w"]},"records":[{"kind":"deployment","key":"x","value":[[[[]]]],"time":4102444799999,"count":1,"node":"n"}],"pull":true,"after":"deployment/\u0000"}`} {
		f.Add([]byte(s))
	}
	q, err := New(Options{NodeID: "q1", ClusterKey: clusterKey, URL: "http://127.0.0.1:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(q.stop)
	if err := q.book.drain("mine", true); err != nil {
		f.Fatal(err)
	}
	handler := q.peerOnly(http.HandlerFunc(q.sync))
	ask := func(body []byte) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest("POST", syncPath, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+secret.ForQueen(clusterKey, "q1").Reveal())
		handler.ServeHTTP(w, r)
		return w
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := ask(body)
		if w.Code != 200 && w.Code != 400 && w.Code != 409 && w.Code != 429 {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		for k, r := range q.book.records {
			if checkRecord(r) != nil {
				t.Errorf("record %v: %+v", k, r)
			}
		}
	})
}

// TestHostileSync: only who knows the cluster's key is heard, and nothing that cannot be meant changes anything.
func TestHostileSync(t *testing.T) {
	a := startQueen(t, Options{})
	good := `{"state":{"node_id":"q2","start":"1","sequence":1},"digest":"x","records":[]}`
	for _, c := range []struct {
		token  secret.Secret
		body   string
		status int
	}{
		{"", good, 401}, {clusterKey, good, 401}, {secret.ForQueen(clusterKey, "q2"), good, 401}, {secret.ForHive(clusterKey, "q1"), good, 401},
		{secret.ForQueen(clusterKey, "q1"), good, 200}, {secret.ForQueen(clusterKey, "q1"), `{`, 400}, {secret.ForQueen(clusterKey, "q1"), `{}`, 400},
		{secret.ForQueen(clusterKey, "q1"), strings.Replace(good, "q2", "q1", 1), 409}, {secret.ForQueen(clusterKey, "q1"), strings.Replace(good, `"sequence":1`, `"sequence":1,"draining":["../x"]`, 1), 400},
		{secret.ForQueen(clusterKey, "q1"), strings.Replace(good, `"sequence":1`, `"sequence":1,"waiting":{"a":-4}`, 1), 400},
		{secret.ForQueen(clusterKey, "q1"), strings.Replace(good, `"sequence":1`, `"sequence":1,"wanted":{"":"q1"}`, 1), 400},
		{secret.ForQueen(clusterKey, "q1"), strings.Replace(good, `[]`, `["`+strings.Repeat("x", 9<<20)+`"]`, 1), 413},
	} {
		res, err := send(http.DefaultClient, "POST", a.base+syncPath, c.token, json.RawMessage(c.body))
		if c.body == `{` {
			req, _ := http.NewRequest("POST", a.base+syncPath, strings.NewReader(c.body))
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
			res, err = http.DefaultClient.Do(req)
		}
		if err != nil {
			t.Errorf("%.80s: %v", c.body, err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%.120s: %d %.200s, want %d", c.body, res.StatusCode, b, c.status)
		}
	}
	if n := len(a.company.owners()); n != 1 {
		t.Errorf("a queen that is no member owns something: %d", n)
	}
	for i := range maxPeers + 10 {
		res, err := send(http.DefaultClient, "POST", a.base+syncPath, secret.ForQueen(clusterKey, "q1"), json.RawMessage(strings.Replace(good, "q2", fmt.Sprintf("x%d", i), 1)))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	if n := len(a.company.all()); n > maxPeers {
		t.Errorf("%d queens are known", n)
	}
}
