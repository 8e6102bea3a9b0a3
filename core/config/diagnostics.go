package config

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Diagnostics are the mistakes of a configuration file, in its order.
type Diagnostics []Diagnostic

// Diagnostic is one mistake.
type Diagnostic struct {
	Summary string `json:"summary"`
	Detail  string `json:"detail"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`   // from 1; 0: no place
	Column  int    `json:"column,omitempty"` // from 1
	Block   string `json:"block,omitempty"`  // that it stands in: `worker "llama"`, `queen.limits`
	Excerpt string `json:"excerpt,omitempty"`
}

// Error gives all the mistakes in full, separated by empty lines.
func (d Diagnostics) Error() string {
	var b strings.Builder
	for i, m := range d {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "Error: %s\n", m.Summary)
		if m.Line > 0 {
			in := ""
			if m.Block != "" {
				in = ", in " + m.Block
			}
			fmt.Fprintf(&b, "  on %s line %d%s:\n  %d: %s\n", m.File, m.Line, in, m.Line, m.Excerpt)
		}
		b.WriteString(m.Detail + "\n")
	}
	return strings.TrimRight(b.String(), "\n")
}

// Bounds of what is told. A file of nothing but mistakes has one for each of its bytes, in a line as long as the file.
const (
	maxMistakes = 200
	maxDetail   = 2000 // bytes
	maxLine     = 4000 // bytes of a line that are looked at for its excerpt
)

// fromHCL turns HCL's diagnostics into ours, sorted by place, each once. What is beyond the first 200 is only counted.
func fromHCL(diags hcl.Diagnostics, src []byte, name string, body *hclsyntax.Body) Diagnostics {
	var out Diagnostics
	lines := bytes.Split(src, []byte("\n"))
	diags = slices.DeleteFunc(slices.Clone(diags), func(d *hcl.Diagnostic) bool { return d.Severity != hcl.DiagError })
	start := func(d *hcl.Diagnostic) int {
		if d.Subject == nil {
			return 0
		}
		return d.Subject.Start.Byte
	}
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int { return cmp.Compare(start(a), start(b)) })
	more := len(diags) - maxMistakes
	for _, d := range diags[:min(len(diags), maxMistakes)] {
		m := Diagnostic{Summary: d.Summary, Detail: d.Detail, File: name}
		if len(m.Detail) > maxDetail {
			m.Detail = strings.ToValidUTF8(m.Detail[:maxDetail], "") + " …"
		}
		if d.Subject != nil {
			m.Line, m.Column = d.Subject.Start.Line, d.Subject.Start.Column
			secret := false
			if body != nil {
				m.Block, secret = blockAt(body, d.Subject.Start.Byte)
			}
			if m.Line >= 1 && m.Line <= len(lines) {
				m.Excerpt = excerpt(string(lines[m.Line-1][:min(len(lines[m.Line-1]), maxLine)]), secret)
			}
		}
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	out = slices.Compact(out)
	if more > 0 {
		last := out[len(out)-1]
		last.Summary, last.Detail = "More mistakes", fmt.Sprintf("There are %d more mistakes after this place; correct the first ones and look again.", more)
		out = append(out, last)
	}
	return out
}

// blockAt names the innermost block around a byte of the file and says whether it holds a secret.
func blockAt(body *hclsyntax.Body, at int) (string, bool) {
	var path []string
	secret := false
	for {
		var inner *hclsyntax.Block
		for _, b := range body.Blocks {
			// The block's own type and labels belong to what is around it: a mistake in them is a mistake of the outer block.
			if at > b.OpenBraceRange.Start.Byte && at < b.CloseBraceRange.End.Byte {
				inner = b
			}
		}
		if inner == nil {
			return strings.Join(path, "."), secret
		}
		name := inner.Type
		for _, l := range inner.Labels {
			name += fmt.Sprintf(" %q", l)
		}
		path = append(path, name)
		secret = secret || inner.Type == credentialBlock
		body = inner.Body
	}
}

// maxExcerpt bounds the line that is shown, in characters.
const maxExcerpt = 160

var (
	assignment  = regexp.MustCompile(`^(.*?\b([A-Za-z0-9_-]+)\s*=\s*)(.*)$`)
	callPattern = regexp.MustCompile(`^(env|file)\("[^"]*"\)\s*}?\s*$`)
)

// excerpt prepares a line of the file to be shown. In a block with a secret, values are hidden, but for the list of
// hosts and calls of env and file; a line that assigns to "value" or "env" is treated so everywhere, because a file that does
// not parse has no blocks.
func excerpt(line string, secret bool) string {
	line = strings.TrimRight(line, "\r")
	if m := assignment.FindStringSubmatch(line); m != nil {
		if (secret && m[2] != "hosts" || m[2] == "value" || m[2] == "env") && !callPattern.MatchString(strings.TrimSpace(m[3])) {
			line = m[1] + "***"
		}
	} else if secret && strings.TrimSpace(line) != "" {
		line = "***" // inside a heredoc, or something else that is no assignment
	}
	line = strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0xfffd || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, line)
	if r := []rune(line); len(r) > maxExcerpt {
		line = string(r[:maxExcerpt]) + " …"
	}
	return line
}

// suggest returns ` Did you mean "x"?` for the candidate that is closest to name, or "" where none is close.
func suggest(name string, candidates []string) string {
	best, at := "", 0
	for _, c := range candidates {
		if d := distance(name, c); best == "" || d < at {
			best, at = c, d
		}
	}
	if best == "" || at > max(1, (len(best)+1)/3) && !strings.HasPrefix(best, name) && !strings.HasPrefix(name, best) || len(name) < 2 {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", best)
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
