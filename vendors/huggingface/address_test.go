package huggingface

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzAddresses compares what is done with addresses here with net/url, which is not there in a guest.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"a b/c+d%?#", "refs%2Fpr", "%zz", "%4", "ä\x00", "$&+=:@~", "https://hub.example.org/x", "http://[::1]:80/", "https://u@h", "https://h:99999999/", "https://h?x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := pathEscape(s), url.PathEscape(s); got != want {
			t.Errorf("path %q: %q, want %q", s, got, want)
		}
		if got, want := queryEscape(s), url.QueryEscape(s); got != want {
			t.Errorf("query %q: %q, want %q", s, got, want)
		}
		got, err := unescape(s)
		if want, werr := url.PathUnescape(s); got != want || (err == nil) != (werr == nil) {
			t.Errorf("unescape %q: %q %v, want %q %v", s, got, err, want, werr)
		}
		if !goodEndpoint(s) || strings.Contains(s, "[") { // which numbers make an IPv6 address is left to who asks there
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
			t.Errorf("%q is taken for an endpoint: %+v, %v", s, u, err)
		}
	})
}

func TestGoodEndpoint(t *testing.T) {
	for s, want := range map[string]bool{
		"https://huggingface.co": true, "http://127.0.0.1:8080": true, "https://hub.example.org/mirror/hf": true, "http://[::1]:9000/hf": true, "HTTPS://x": false,
		"https://": false, "https:///x": false, "ftp://x": false, "https://user@x": false, "https://x?y": false, "https://x#y": false, "https://x/a b": false, "https://x:": false,
		"https://x:port": false, "https://[::1": false, "x.example": false, "https://x/%zz": false, "https://" + strings.Repeat("a", 3): true,
	} {
		if goodEndpoint(s) != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
}
