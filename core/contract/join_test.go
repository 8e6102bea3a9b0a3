package contract

import (
	"fmt"
	"testing"
)

func TestSplitJoin(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.5": "10.0.0.5 7834", "10.0.0.5:99": "10.0.0.5 99", "[::1]:99": "::1 99", "::1": "::1 7834", "tower": "tower 7834",
		"dns:apiary.lan": "apiary.lan 7834", "dns:apiary.lan:99": "apiary.lan 99", "": "", ":7834": "", "a:b": "", "a:0": "", "a:99999": "", "http://a:1": "", "a b": "", "dns:": "", "a/b:1": ""} {
		got := ""
		if host, port, err := SplitJoin(in); err == nil {
			got = fmt.Sprint(host, " ", port)
		}
		if got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzSplitJoin(f *testing.F) {
	f.Add("dns:apiary.lan:7834")
	f.Fuzz(func(t *testing.T, s string) {
		if host, port, err := SplitJoin(s); err == nil && (host == "" || port == 0) {
			t.Errorf("%q is %q %d", s, host, port)
		}
	})
}
