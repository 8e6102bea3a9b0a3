package artifact

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/huggingface"
)

// hubStore is a store whose vendor asks a hub on this machine. Token is sent to the hub.
func hubStore(t *testing.T, hub *fakehub.Hub, token string, own ...string) *Store {
	t.Helper()
	client := egress.NewClient(egress.Options{Idle: impatient, Own: func(u *url.URL) bool {
		for _, o := range own {
			if u.Scheme+"://"+u.Host == o {
				return true
			}
		}
		return false
	}})
	credentials := func(name, host string) (secret.Secret, error) {
		if name == huggingface.Credential && host == strings.TrimPrefix(hub.URL, "http://") {
			return secret.Secret(token), nil
		}
		return "", nil
	}
	v := huggingface.New()
	err := v.Configure(t.Context(), vendor.Configuration{
		Values: []byte(`{"endpoint":"` + hub.URL + `"}`), Host: NewHost(HostOptions{Name: "huggingface", Credentials: credentials, HTTP: client}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors, o.HTTP, o.Credentials = []vendor.Vendor{v}, client, credentials
	})
}

func newHub(t *testing.T, repos ...fakehub.Repo) *fakehub.Hub {
	hub := fakehub.New()
	t.Cleanup(hub.Close)
	for _, r := range repos {
		hub.Add(r)
	}
	return hub
}

// projectorFile is a small valid file of the kind that goes with a model.
func projectorFile() []byte {
	var b bytes.Buffer
	text := func(s string) { _ = binary.Write(&b, binary.LittleEndian, uint64(len(s))); b.WriteString(s) }
	b.WriteString("GGUF")
	_ = binary.Write(&b, binary.LittleEndian, uint32(3))
	_ = binary.Write(&b, binary.LittleEndian, []uint64{1, 2})
	for _, kv := range [][2]string{{"general.architecture", "clip"}, {"general.type", "mmproj"}} {
		text(kv[0])
		_ = binary.Write(&b, binary.LittleEndian, uint32(8))
		text(kv[1])
	}
	text("w")
	_ = binary.Write(&b, binary.LittleEndian, uint32(1))
	_ = binary.Write(&b, binary.LittleEndian, uint64(64))
	_ = binary.Write(&b, binary.LittleEndian, uint32(24))
	_ = binary.Write(&b, binary.LittleEndian, uint64(0))
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
	b.Write(make([]byte, 64))
	return b.Bytes()
}

func TestHub(t *testing.T) {
	t.Parallel()
	first, second := ggufFile(1, 0, 2, 3000), ggufFile(2, 1, 2, 2000)
	hub := newHub(t, fakehub.Repo{ID: "org/repo", Gated: "auto", Tokens: []string{"hf_canary"}, Files: []fakehub.File{
		{Path: "q/m-Q4_K_M-00001-of-00002.gguf", Body: first, LFS: true}, {Path: "q/m-Q4_K_M-00002-of-00002.gguf", Body: second, LFS: true},
		{Path: "mmproj-F16.gguf", Body: projectorFile(), LFS: true}, {Path: "small-Q8_0.gguf", Body: ggufFile(3, 0, 1, 100)},
	}})
	s := hubStore(t, hub, "hf_canary", hub.URL, hub.CDN)
	m, err := s.PullModel(t.Context(), "hf:org/repo", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "hf:org/repo@" + hub.Commit("org/repo", "main") + ":Q4_K_M"; m.ID != want || m.Architecture != "llama" || m.Vendor != "huggingface" {
		t.Errorf("%+v", m)
	}
	if len(m.Files) != 3 || m.Files[0].SHA256 != sum256(first) || m.Files[0].Role != "" || m.Files[2].Role != vendor.RoleProjector {
		t.Errorf("%+v", m.Files)
	}
	path, err := s.ModelPath(t.Context(), m)
	if err != nil || filepath.Base(path) != "m-Q4_K_M-00001-of-00002.gguf" {
		t.Errorf("%s, %v", path, err)
	}
	for _, r := range hub.Requests() {
		if r.CDN == (r.Authorization != "") || r.Status >= 400 {
			t.Errorf("%+v", r)
		}
	}
	// The pinned form, and the one that was asked for, need no network any more.
	for _, ref := range []string{m.ID, "hf:org/repo"} {
		if again, err := s.PullModel(t.Context(), ref, nil); err != nil || again.ID != m.ID {
			t.Errorf("%s: %v, %v", ref, again.ID, err)
		}
	}
	if n := len(hub.Requests()); n > 0 {
		t.Errorf("asked %d times more", n)
	}
	// A file without SHA-256 is proved by the name that git gives it.
	if m, err = s.PullModel(t.Context(), "hf:org/repo:Q8_0", nil); err != nil || len(m.Files) != 2 || !strings.HasSuffix(m.ID, ":Q8_0") {
		t.Errorf("%+v, %v", m, err)
	}
	// A commit is for ever, a branch goes on.
	hub.Add(fakehub.Repo{ID: "org/repo", Files: []fakehub.File{{Path: "m-Q4_K_M.gguf", Body: ggufFile(4, 0, 1, 10), LFS: true}}})
	_, err = s.PullModel(t.Context(), "hf:org/repo@"+strings.Repeat("0", 40), nil)
	wantFault(t, err, fault.NotFound, "revision_not_found", "org/repo has no revision")
}

// Addresses of the content network expire: another one is asked for, and the bytes that are there stay.
func TestHubExpiredAddress(t *testing.T) {
	t.Parallel()
	body := ggufFile(1, 0, 1, 500_000)
	hub := newHub(t, fakehub.Repo{ID: "o/r", Files: []fakehub.File{{Path: "m-Q8_0.gguf", Body: body, LFS: true}}})
	hub.Set(func(f *fakehub.Faults) { f.CutAfter = 150_000 })
	s := hubStore(t, hub, "", hub.URL, hub.CDN)
	if _, err := s.PullModel(t.Context(), "hf:o/r", nil); err != nil {
		t.Fatal(err)
	}
	var sent int64
	var ranges []string
	for _, r := range hub.Requests() {
		if r.CDN {
			sent += r.Sent
			ranges = append(ranges, r.Range)
		}
	}
	if sent != int64(len(body)) || strings.Join(ranges, " ") != " bytes=150000-500191 bytes=300000-500191 bytes=450000-500191" {
		t.Errorf("%d bytes of %d, in %q", sent, len(body), ranges)
	}
}

// One that is refused for good ends the transfer, after a few more were asked for.
func TestHubRefusedAddress(t *testing.T) {
	t.Parallel()
	body := ggufFile(1, 0, 1, 5000)
	cdn := newServer(t, body)
	cdn.status, cdn.statusTimes = 403, 99
	front := newServer(t, body)
	front.status, front.statusTimes, front.header = 302, 99, map[string][]string{"Location": {cdn.URL + "/0?signed"}}
	s, _, err := pull(t, front.vendor("w", 0), nil)
	wantFault(t, err, fault.Unavailable, "source_expired", "refused to send it (status 403)")
	if n := front.count(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	if left := files(t, s, "partial"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestHubFaults(t *testing.T) {
	t.Parallel()
	body := ggufFile(1, 0, 1, 5000)
	for name, c := range map[string]struct {
		files  []fakehub.File
		faults fakehub.Faults
		own    func(h *fakehub.Hub) []string
		kind   fault.Kind
		code   string
		part   string
	}{
		"wrong byte":           {faults: fakehub.Faults{Wrong: true}, kind: fault.Conflict, code: codeDigest, part: sum256(body)},
		"wrong byte, git":      {files: []fakehub.File{{Path: "m.gguf", Body: body}}, kind: fault.Conflict, code: codeDigest, part: "git's name for it should be"},
		"rate limit":           {faults: fakehub.Faults{Limited: 1}, kind: fault.Exhausted, code: "rate_limited", part: "try again in 56s"},
		"safetensors":          {files: []fakehub.File{{Path: "model.safetensors", Body: body, LFS: true}}, kind: fault.Invalid, code: "unsupported_format", part: "GGUF"},
		"private mirror's CDN": {own: func(h *fakehub.Hub) []string { return []string{h.URL} }, kind: fault.Denied, code: egress.CodeRefused, part: "only https is used"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.files == nil {
				c.files = []fakehub.File{{Path: "m.gguf", Body: body, LFS: true}}
			}
			hub := newHub(t, fakehub.Repo{ID: "o/r", Files: c.files})
			hub.Set(func(f *fakehub.Faults) { *f = c.faults })
			own := []string{hub.URL, hub.CDN}
			if c.own != nil {
				own = c.own(hub)
			}
			s := hubStore(t, hub, "", own...)
			if name == "wrong byte, git" {
				s.opts.Vendors = []vendor.Vendor{otherGitName{s.opts.Vendors[0]}}
			}
			_, err := s.PullModel(t.Context(), "hf:o/r", nil)
			wantFault(t, err, c.kind, c.code, c.part)
			if ms, err := s.Models(); err != nil || len(ms) > 0 || len(files(t, s, "blobs")) > 0 {
				t.Errorf("visible: %v, %v, %v", ms, files(t, s, "blobs"), err)
			}
		})
	}
}

// otherGitName is a vendor that promises other bytes.
type otherGitName struct{ vendor.Vendor }

func (v otherGitName) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	m, err := v.Vendor.Resolve(ctx, req)
	if err == nil {
		m.Files[0].Digests.GitBlobSHA1 = strings.Repeat("0", 40)
	}
	return m, err
}

// A large file is asked for in pieces, since some content networks refuse to send all of it at once.
func TestHubPieces(t *testing.T) {
	t.Parallel()
	body := ggufFile(1, 0, 1, 250_000)
	for name, c := range map[string]struct {
		faults fakehub.Faults
		want   string
		sent   int
	}{
		"ranges":    {want: "bytes=0-99999 bytes=100000-199999 bytes=200000-250191", sent: len(body)},
		"no ranges": {faults: fakehub.Faults{NoRanges: true}, want: "", sent: len(body)}, // the fake forgets what was asked
		"cut":       {faults: fakehub.Faults{CutAfter: 80_000}, want: "bytes=0-99999 bytes=80000-179999 bytes=160000-250191 bytes=240000-250191", sent: len(body)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := newHub(t, fakehub.Repo{ID: "o/r", Files: []fakehub.File{{Path: "m-Q8_0.gguf", Body: body, LFS: true}}})
			hub.Set(func(f *fakehub.Faults) { *f = c.faults })
			s := hubStore(t, hub, "", hub.URL, hub.CDN)
			s.timing.span = 100_000
			if _, err := s.PullModel(t.Context(), "hf:o/r", nil); err != nil {
				t.Fatal(err)
			}
			sent := 0
			var ranges []string
			for _, r := range hub.Requests() {
				if r.CDN {
					sent += int(r.Sent)
					ranges = append(ranges, r.Range)
				}
			}
			if got := strings.Join(ranges, " "); sent != c.sent || c.want != "" && got != c.want {
				t.Errorf("%d bytes in %q", sent, got)
			}
		})
	}
}
