package contract

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Hidden reports whether r shows nothing of its own and may change how the text around it looks: control and format characters,
// such as those that reverse the direction of text, and the separators of lines and paragraphs. No name holds one.
func Hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// HasHidden reports whether s holds a character that is Hidden.
func HasHidden(s string) bool {
	for i := range len(s) { // plain text, which is nearly all, is looked at byte by byte
		if c := s[i]; c < ' ' || c == 0x7f {
			return true
		} else if c >= utf8.RuneSelf {
			return strings.ContainsFunc(s[i:], Hidden)
		}
	}
	return false
}
