package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// printJSON writes v for programs: one indented JSON value.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printLine writes v as one line of JSON, for answers that come piece by piece.
func (a *app) printLine(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows under upper-case headings in columns two spaces apart. Without rows it says empty on stderr.
func (a *app) table(headings []string, rows [][]string, empty string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.err, empty)
		return err
	}
	return writeTable(a.out, headings, rows)
}

func writeTable(w io.Writer, headings []string, rows [][]string) error {
	widths := make([]int, len(headings))
	rows = append([][]string{headings}, rows...)
	for n, row := range rows {
		rows[n] = slices.Clone(row)
		for i, cell := range row {
			cell = printable(cell)
			rows[n][i] = cell
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fail writes an error for whoever reads stderr: a sentence, or a JSON object under --json.
func (a *app) fail(err error) {
	e := fault.As(err)
	switch {
	case a.json:
		_ = json.NewEncoder(a.err).Encode(failure(err))
	case e.Kind == fault.Interrupted:
		_, _ = fmt.Fprintln(a.err, "Interrupted.")
	case strings.HasPrefix(e.Message, "Error: "):
		_, _ = fmt.Fprintln(a.err, plain(printableLines(strings.TrimRight(e.Message, "\n")), isTerminal(a.err)))
	default:
		_, _ = fmt.Fprintln(a.err, "Error: "+plain(sentence(printableLines(told(err))), isTerminal(a.err)))
	}
}

// failureBody is how an error is told under --json: one object on stderr.
type failureBody struct {
	Error struct {
		contract.Error
		Diagnostics config.Diagnostics `json:"diagnostics,omitempty"` // of a configuration: each mistake by itself
	} `json:"error"`
	ExitCode int `json:"exit_code"`
}

func failure(err error) failureBody {
	b := failureBody{ExitCode: fault.ExitCode(err)}
	b.Error.Error = fault.Wire(err, "")
	b.Error.Message = fault.As(err).Message // this is the caller's own terminal: nothing to hide
	if diags, ok := errors.AsType[config.Diagnostics](err); ok {
		b.Error.Message, _, _ = strings.Cut(b.Error.Message, "\n")
		b.Error.Diagnostics = diags
	}
	return b
}

// plain writes an ellipsis as three dots where it does not go to a terminal, which alone is known to show it.
func plain(s string, terminal bool) string {
	if terminal {
		return s
	}
	return strings.ReplaceAll(s, "…", "...")
}

// told is the message of an error. One without a kind of its own, which is wrapped in what was being done, or comes from a system
// call, is told as that which could not be done.
func told(err error) string {
	message := fault.As(err).Message
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return message
	}
	verb, rest, _ := strings.Cut(message, " ")
	switch verb {
	case "lstat", "stat", "fstatat", "newfstatat":
		verb = "look at"
	case "mkdir", "mkdirat":
		verb = "make the folder"
	case "openat":
		verb = "open"
	case "ask", "close", "configure", "encode", "end", "execute", "find", "identify", "install", "list", "load", "lock", "look", "make", "open",
		"parse", "prepare", "publish", "pull", "read", "remove", "rename", "rotate", "serve", "set", "start", "stop", "switch", "sync", "take",
		"unpack", "wait", "write":
	default:
		return message
	}
	if !strings.Contains(rest, ": ") {
		return message
	}
	return "Could not " + verb + " " + rest
}

// sentence makes a full sentence of a message that came from a library: it starts with a capital and ends with a full stop.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return "Something failed without saying why."
	}
	if first, size := utf8.DecodeRuneInString(s); first >= 'a' && first <= 'z' && !strings.ContainsAny(firstWord(s), ":/._=@") {
		s = strings.ToUpper(s[:size]) + s[size:]
	}
	if !strings.ContainsAny(s[len(s)-1:], ".!?)") {
		s += "."
	}
	return s
}

func firstWord(s string) string {
	w, _, _ := strings.Cut(s, " ")
	return strings.TrimSuffix(w, ":")
}

// plural gives "1 worker" or "3 workers".
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// thousands writes 3900 as 3,900.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
