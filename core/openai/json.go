package openai

import (
	"encoding/binary"
	"math/bits"
)

// The functions here check JSON (RFC 8259) from position i and return the position after what they read. Where ok is false
// the position is that of the fault, and -1 stands for nesting that is too deep.

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// value reads one value. depth counts the objects and arrays around it.
func value(b []byte, i, depth int) (int, bool) {
	if i >= len(b) {
		return i, false
	}
	switch c := b[i]; {
	case c == '"':
		return str(b, i)
	case c == '{' || c == '[':
		if depth >= MaxDepth {
			return -1, false
		}
		return container(b, i, depth+1)
	case c == '-' || c >= '0' && c <= '9':
		return number(b, i)
	case c == 't':
		return literal(b, i, "true")
	case c == 'f':
		return literal(b, i, "false")
	case c == 'n':
		return literal(b, i, "null")
	}
	return i, false
}

// container reads an object or an array. A recursion per level is bounded by MaxDepth.
func container(b []byte, i, depth int) (int, bool) {
	object := b[i] == '{'
	last := b[i] + 2 // '}' follows '{' and ']' follows '[' by two
	if i = space(b, i+1); i < len(b) && b[i] == last {
		return i + 1, true
	}
	for {
		var ok bool
		if object {
			if i, ok = str(b, i); !ok {
				return i, false
			}
			if i = space(b, i); i >= len(b) || b[i] != ':' {
				return i, false
			}
			i = space(b, i+1)
		}
		if i, ok = value(b, i, depth); !ok {
			return i, false
		}
		if i = space(b, i); i >= len(b) {
			return i, false
		}
		switch b[i] {
		case ',':
			i = space(b, i+1)
		case last:
			return i + 1, true
		default:
			return i, false
		}
	}
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// str reads a string, eight bytes at a time where nothing needs a look: prompts are mostly that.
func str(b []byte, i int) (int, bool) {
	if i >= len(b) || b[i] != '"' {
		return i, false
	}
	for i++; ; {
		for i+8 <= len(b) {
			x := binary.LittleEndian.Uint64(b[i:])
			quote, slash := x^('"'*ones), x^('\\'*ones)
			// The high bit of a byte is set where it is a control character, a quote or a backslash. A borrow can set bits
			// above the first such byte, never below it.
			m := ((x-' '*ones)&^x | (quote-ones)&^quote | (slash-ones)&^slash) & highs
			if m != 0 {
				i += bits.TrailingZeros64(m) >> 3
				break
			}
			i += 8
		}
		for i < len(b) && b[i] >= ' ' && b[i] != '"' && b[i] != '\\' {
			i++
		}
		if i >= len(b) || b[i] < ' ' {
			return i, false
		}
		if b[i] == '"' {
			return i + 1, true
		}
		if i+1 >= len(b) {
			return i, false
		}
		switch b[i+1] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i += 2
		case 'u':
			if i+6 > len(b) {
				return len(b), false
			}
			for _, c := range b[i+2 : i+6] {
				if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f') {
					return i, false
				}
			}
			i += 6
		default:
			return i, false
		}
	}
}

func number(b []byte, i int) (int, bool) {
	if b[i] == '-' {
		i++
	}
	if i >= len(b) {
		return i, false
	}
	if b[i] == '0' {
		i++
	} else if n := digits(b, i); n == i {
		return i, false
	} else {
		i = n
	}
	if i < len(b) && b[i] == '.' {
		n := digits(b, i+1)
		if n == i+1 {
			return n, false
		}
		i = n
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		n := digits(b, i)
		if n == i {
			return n, false
		}
		i = n
	}
	return i, true
}

func digits(b []byte, i int) int {
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	return i
}

func literal(b []byte, i int, s string) (int, bool) {
	if len(b)-i < len(s) || string(b[i:i+len(s)]) != s {
		return i, false
	}
	return i + len(s), true
}
