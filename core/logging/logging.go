// Package logging sets up log/slog: format, level, a rate limit per message site, quoting of foreign strings, and a log file
// that rotates. It holds no global logger; the logger is passed to who needs it.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Options says how to log.
type Options struct {
	Level  slog.Leveler // nil: info
	Format string       // "text", "json", or "auto" and "": text when the output is a terminal, json otherwise
}

// maxValue bounds one attribute in bytes.
const maxValue = 4 << 10

// New returns a logger that writes to w. Each message site may log ten lines a second; a line that follows dropped ones says
// how many in the attribute "suppressed". Strings are written so that they cannot forge lines or control a terminal, and
// are cut at 4 KiB.
func New(w io.Writer, o Options) *slog.Logger {
	ho := &slog.HandlerOptions{Level: o.Level, ReplaceAttr: clean}
	var h slog.Handler
	if o.Format == "text" || (o.Format != "json" && isTerminal(w)) {
		h = slog.NewTextHandler(w, ho)
	} else {
		h = slog.NewJSONHandler(w, ho)
	}
	return slog.New(&limited{Handler: h, sites: newSites()})
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// clean makes a value safe to show: a string (also one of an error or a Stringer) with anything unprintable is quoted, and a
// long one is cut. slog's JSON escapes only the ASCII controls, so without this a C1 control or a bidirectional override would
// reach the terminal of whoever reads the log.
func clean(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(cleanString(a.Value.String()))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			a.Value = slog.StringValue(cleanString(v.Error()))
		case []byte:
			a.Value = slog.StringValue(cleanString(string(v)))
		case slog.Level, *slog.Source:
		case fmt.Stringer:
			a.Value = slog.StringValue(cleanString(v.String()))
		case []string:
			c := make([]string, len(v))
			for i, s := range v {
				c[i] = cleanString(s)
			}
			a.Value = slog.AnyValue(c)
		}
	}
	return a
}

func cleanString(s string) string {
	cut := 0
	if len(s) > maxValue {
		end := maxValue
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		cut = len(s) - end
		s = s[:end]
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		s = strconv.Quote(s)
	}
	if cut > 0 {
		s += fmt.Sprintf(" … %d bytes more", cut)
	}
	return s
}
