package url

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

var (
	sha256 = strings.Repeat("0a", 32)
	sha512 = strings.Repeat("0b", 64)
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"https://h.example.org/a/m.gguf":                                            "https://h.example.org/a/m.gguf ",
		"url:https://h/m.gguf":                                                      "https://h/m.gguf ",
		"url:http://10.0.0.5:9000/m.gguf":                                           "http://10.0.0.5:9000/m.gguf ",
		"https://h/m.gguf?checksum=sha256:" + sha256:                                "https://h/m.gguf sha256:" + sha256,
		"https://h/m.gguf?a=b%20c&checksum=" + sha256 + "&Signature=x%2By+z":        "https://h/m.gguf?a=b%20c&Signature=x%2By+z " + sha256,
		"https://h/m.gguf?checksum=file:https%3A%2F%2Fh%2FSHA256SUMS&archive=false": "https://h/m.gguf file:https://h/SHA256SUMS",
		"https://h/m.gguf@0123456789ab":                                             "https://h/m.gguf ",
		"https://h/m.gguf#part":                                                     "https://h/m.gguf ",
		"https://h/m%20odd.gguf":                                                    "https://h/m%20odd.gguf ",
	} {
		r, err := parse(in)
		if err != nil || r.target.String()+" "+r.checksum != want {
			t.Errorf("%s: %v %s, %v", in, r.target, r.checksum, err)
		}
		if !New().Supports(in) {
			t.Errorf("%s is not supported", in)
		}
	}
	for _, in := range []string{
		"url:", "url:file:///etc/passwd", "url:ftp://h/x", "https://", "https:///x", "https://u:p@h/x.gguf", "https://h/x y", "https://h/x\n", "https://h/%zz", "https://h/m.gguf?checksum=", "https://h/m.gguf?checksum=%zz",
		"https://h/m.zip?archive=zip", "https://h/m.zip", "https://h/m.zip//?checksum=" + sha256, "https://h/m?archive=rar&checksum=" + sha256, "https://h/" + strings.Repeat("a", 5000), "s3::https://h/x", "git::https://h/x",
	} {
		if r, err := parse(in); err == nil {
			t.Errorf("%q: %v", in, r.target)
		}
	}
	for _, ref := range []string{"hf:a/b", "file:/x", "org/repo", "https:x", "git::https://h/x"} {
		if New().Supports(ref) {
			t.Errorf("%s is supported", ref)
		}
	}
}

func TestArchives(t *testing.T) {
	sum := "checksum=sha256:" + sha256
	for in, want := range map[string]string{
		"https://h/m.tar.gz?" + sum:                       "https://h/m.tar.gz  https://h/m.tar.gz?" + sum,
		"https://h/a/m.zip//x/y.gguf?" + sum:              "https://h/a/m.zip x/y.gguf https://h/a/m.zip//x/y.gguf?" + sum,
		"https://h/get?id=7&archive=tgz&" + sum:           "https://h/get?id=7  https://h/get?id=7&archive=zip&" + sum,
		"https://h/get//y.gguf?archive=zip&" + sum:        "https://h/get y.gguf https://h/get//y.gguf?archive=zip&" + sum,
		"https://h/m.tar.gz//a.gguf?archive=false&" + sum: "https://h/m.tar.gz//a.gguf  https://h/m.tar.gz//a.gguf?" + sum,
	} {
		r, err := parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		canonical := r.canonical(vendor.Digests{SHA256: sha256})
		if got := r.target.String() + " " + r.member + " " + canonical; got != want {
			t.Errorf("%s: %s", in, got)
		}
		if again, err := parse(canonical); r.archive && (err != nil || again.canonical(vendor.Digests{SHA256: sha256}) != canonical) {
			t.Errorf("%s: %s is %v, %v", in, canonical, again, err)
		}
	}
}

func TestResolveArchive(t *testing.T) {
	s, v, _ := site(t)
	for ref, want := range map[string]vendor.ArchiveMember{
		"/m.gguf?archive=zip&checksum=" + sha256:           {Match: "*.gguf"},
		"/m.gguf//a/b.gguf?archive=zip&checksum=" + sha256: {Path: "a/b.gguf"},
	} {
		m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: s.URL + ref})
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		want.Archive.SHA256, want.Size = sha256, 1000
		if f := m.Files[0]; len(m.Files) != 1 || f.Member == nil || *f.Member != want || f.Size != -1 || f.Digests != (vendor.Digests{}) || f.Sources[0].URL != s.URL+"/m.gguf" || !f.Sources[0].Ranges {
			t.Errorf("%s: %+v", ref, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("url:https://h/m.gguf?checksum=sha256:" + sha256 + "&x=%2B")
	f.Add("https://h/m.gguf@0123456789ab")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parse(s)
		if err != nil {
			return
		}
		canonical := r.canonical(vendor.Digests{})
		if again, err := parse(canonical); err == nil && again.target.String() != r.target.String() && !strings.Contains(canonical, "@") {
			t.Errorf("%q is %s, and that is %s", s, canonical, again.target)
		}
	})
}

// site is a server with the habits of several.
func site(t *testing.T) (*httptest.Server, *Vendor, *fakehost.Host) {
	body := strings.Repeat("m", 1000)
	mux := http.NewServeMux()
	serve := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1e9, 0), strings.NewReader(body))
	}
	mux.HandleFunc("/m.gguf", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		serve(w, r)
	})
	mux.HandleFunc("/signed", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.RawQuery != "Signature=a%2Bb+c" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		serve(w, r)
	})
	mux.HandleFunc("/moved.gguf", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/m.gguf", http.StatusFound) })
	mux.HandleFunc("/no-length.gguf", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
	})
	for _, status := range []int{401, 429, 500, 418} {
		mux.HandleFunc(fmt.Sprintf("/%d", status), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	}
	for i := 1; i <= 3; i++ {
		mux.HandleFunc(fmt.Sprintf("/big-0000%d-of-00003.gguf", i), serve)
	}
	mux.HandleFunc("/half-00001-of-00002.gguf", serve)
	mux.HandleFunc("/SHA256SUMS", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "# list\n%s  other.gguf\n%s *dir/m.gguf\n", strings.Repeat("1", 64), sha256)
	})
	mux.HandleFunc("/bsd", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, "SHA512 (m.gguf) = %s\n", sha512) })
	mux.HandleFunc("/one", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, sha256) })
	mux.HandleFunc("/others", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, "%s  other.gguf\n", sha256) })
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	h := &fakehost.Host{}
	v := New()
	if err := v.Configure(t.Context(), vendor.Configuration{Host: h}); err != nil {
		t.Fatal(err)
	}
	return s, v, h
}

func TestResolve(t *testing.T) {
	s, v, _ := site(t)
	for ref, want := range map[string]string{
		"/m.gguf":                                     "/m.gguf m.gguf 1000 true",
		"/m.gguf@0123456789ab":                        "/m.gguf m.gguf 1000 true",
		"/moved.gguf":                                 "/moved.gguf moved.gguf 1000 true",
		"/signed?Signature=a%2Bb+c":                   "/signed?Signature=a%2Bb+c signed 1000 true",
		"/no-length.gguf":                             "/no-length.gguf no-length.gguf -1 false",
		"/m.gguf?checksum=sha256:" + sha256:           "/m.gguf?checksum=sha256:" + sha256 + " m.gguf 1000 true",
		"/m.gguf?checksum=" + sha256:                  "/m.gguf?checksum=sha256:" + sha256 + " m.gguf 1000 true",
		"/m.gguf?checksum=" + strings.ToUpper(sha512): "/m.gguf?checksum=sha512:" + sha512 + " m.gguf 1000 true",
		"/m.gguf?checksum=file:SHA256SUMS":            "/m.gguf?checksum=sha256:" + sha256 + " m.gguf 1000 true",
		"/m.gguf?checksum=file:" + s.URL + "/bsd":     "/m.gguf?checksum=sha512:" + sha512 + " m.gguf 1000 true",
		"/m.gguf?checksum=file:/one&x=1":              "/m.gguf?x=1&checksum=sha256:" + sha256 + " m.gguf 1000 true",
		"/big-00002-of-00003.gguf":                    "/big-00001-of-00003.gguf big-00001-of-00003.gguf 1000 true big-00002-of-00003.gguf 1000 true big-00003-of-00003.gguf 1000 true",
	} {
		m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: s.URL + ref})
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		got := strings.TrimPrefix(m.Reference, s.URL)
		for _, f := range m.Files {
			got += fmt.Sprint(" ", f.Path, " ", f.Size, " ", f.Sources[0].Ranges)
			if f.Role != vendor.RoleWeights || strings.Contains(f.Sources[0].URL, "checksum") || f.Sources[0].Credential != Credential {
				t.Errorf("%+v", f)
			}
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", ref, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	s, v, _ := site(t)
	for ref, want := range map[string]struct {
		kind vendor.Kind
		says string
	}{
		"/none.gguf":                          {vendor.KindNotFound, "There is no file at"},
		"/401":                                {vendor.KindDenied, "apiary credential set url --host"},
		"/signed?Signature=secret":            {vendor.KindDenied, "refuses to send"},
		"/429":                                {vendor.KindExhausted, "no more requests"},
		"/500":                                {vendor.KindUnavailable, "in trouble"},
		"/418":                                {vendor.KindUnavailable, "the status 418"},
		"/page":                               {vendor.KindInvalid, "is a web page"},
		"/m.gguf?checksum=md5:" + sha256[:32]: {vendor.KindInvalid, "prove nothing"},
		"/m.gguf?checksum=file:others":        {vendor.KindNotFound, "holds no SHA-256"},
		"/m.gguf?checksum=file:ftp://h/x":     {vendor.KindInvalid, "names a list that is no address"},
		"/m.gguf?checksum=file:missing":       {vendor.KindNotFound, "There is no file"},
		"/big-00001-of-00003.gguf?checksum=" + sha256: {vendor.KindInvalid, "A checksum is for one file"},
		"/half-00001-of-00002.gguf":                   {vendor.KindNotFound, "half-00002-of-00002.gguf"},
		"/x-00001-of-00999.gguf":                      {vendor.KindInvalid, "more than the 128"},
	} {
		m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: s.URL + ref})
		e, ok := errors.AsType[*vendor.Error](err)
		if !ok || e.Kind != want.kind || !strings.Contains(e.Message, want.says) {
			t.Errorf("%s: %v, %v", ref, m, err)
			continue
		}
		if strings.Contains(e.Message, "Signature") {
			t.Errorf("%s tells the query: %s", ref, e.Message)
		}
	}
	if _, err := New().Resolve(t.Context(), vendor.ResolveRequest{Reference: "https://h/x"}); err == nil {
		t.Error("an answer before Configure")
	}
}
