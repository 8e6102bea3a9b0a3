package huggingface

import (
	"errors"
	"strings"
)

// The few things that are done with addresses here are done without net/url, which would make a WASM guest 200 KB larger.

const hexDigits = "0123456789ABCDEF"

// percent writes s with every byte but letters, digits and those of safe as %XX.
func percent(s, safe string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; strings.IndexByte(letters+digits+"-_.~", c) >= 0 || strings.IndexByte(safe, c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}

// pathEscape writes s as one part of a path, as url.PathEscape does.
func pathEscape(s string) string { return percent(s, "$&+=:@") }

// queryEscape writes s as a value in a query, as url.QueryEscape does.
func queryEscape(s string) string { return strings.ReplaceAll(percent(s, " "), " ", "+") }

// unescape is the reverse of pathEscape.
func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("it ends within an escape")
		}
		high, low := strings.IndexByte(hexDigits, upper(s[i+1])), strings.IndexByte(hexDigits, upper(s[i+2]))
		if high < 0 || low < 0 {
			return "", errors.New("it has a % without two hexadecimal digits")
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'f' {
		return c - 'a' + 'A'
	}
	return c
}

// printable reports whether s has nothing but characters that may stand in an address.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// goodEndpoint reports whether s is http or https, a host, perhaps a port and a path, and nothing else.
func goodEndpoint(s string) bool {
	rest, ok := strings.CutPrefix(s, "https://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "http://")
	}
	host, path, _ := strings.Cut(rest, "/")
	if !ok || strings.ContainsAny(path, `?#"<>\^`+"`{|}") || !printable(path) {
		return false
	}
	if _, err := unescape(path); err != nil {
		return false
	}
	if inner, ok := strings.CutPrefix(host, "["); ok { // an IPv6 address
		inner, port, ok := strings.Cut(inner, "]")
		return ok && inner != "" && strings.Trim(inner, digits+"abcdefABCDEF:.") == "" && goodPort(port)
	}
	name, port := host, ""
	if i := strings.IndexByte(host, ':'); i >= 0 {
		name, port = host[:i], host[i:]
	}
	return name != "" && strings.Trim(name, letters+digits+"-._~") == "" && goodPort(port)
}

// goodPort reports whether s is nothing, or a colon and a number.
func goodPort(s string) bool {
	number, ok := strings.CutPrefix(s, ":")
	return s == "" || ok && number != "" && len(number) <= 5 && strings.Trim(number, digits) == ""
}
