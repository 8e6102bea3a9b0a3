package contract

import "testing"

func TestHidden(t *testing.T) {
	for _, s := range []string{"a\nb", "a\x00", "\x7f", "\u009b31m", "safe\u202egpj.exe", "\u2066x\u2069", "zero\u200bwidth", "\u200dx", "\ufeffbom", "a\u2028b", "a\u2029b", "soft\u00adhyphen", "\U000e0041"} {
		if !HasHidden(s) {
			t.Errorf("%q passes", s)
		}
	}
	for _, s := range []string{"", "hf:org/repo:Q4_K_M", "file:/models/größer und weiter.gguf", "モデル", "שלום", "a b", "😀"} {
		if HasHidden(s) {
			t.Errorf("%q is refused", s)
		}
	}
}
