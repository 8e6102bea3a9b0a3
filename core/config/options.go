package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// option is an attribute of a block, bound to a field of a Config.
type option struct {
	name  string
	field any    // pointer to the field, by which checks find the place where it was set
	need  string // one sentence with an example, shown when the type is wrong
	// tells says that errors of set hold the value, which must not be shown when it comes from a variable or a file.
	tells bool
	// set stores a value that is known and not null. errType stands for the sentence in need; another error is shown itself.
	set func(cty.Value) error
	get func() cty.Value
	// expression is set where the attribute is kept as an expression instead of a value; set is nil then.
	expression *contract.Expression
	// hidden says that get does not give what is really there.
	hidden bool
}

// errType says that a value has the wrong type.
var errType = errors.New("wrong type")

// block is a block bound to a part of a Config. A top-level Config is a block too.
type block struct {
	name    string
	label   string // of a block that has one
	options []option
	blocks  []*block // each at most once
	groups  []*group
	later   *later // set for a block whose options are not known yet: its body is kept as it is
}

// group is all blocks of one name that have a label.
type group struct {
	name  string
	plain bool // its blocks have no label
	check func(label string) error
	// open returns a block bound to a new element of that label, and what appends the element once it is decoded.
	open func(label string) (b *block, done func())
	// each returns the existing elements, bound.
	each func() []*block
}

// asText returns the string in v. A number is not taken for text, because it is mostly a forgotten unit.
func asText(v cty.Value) (string, error) {
	if v.Type() != cty.String {
		return "", errType
	}
	return v.AsString(), nil
}

func text(name, need string, p *string, check func(string) error) option {
	return option{name: name, field: p, need: need, tells: true,
		set: func(v cty.Value) error {
			s, err := asText(v)
			if err != nil {
				return err
			}
			if s != "" && check != nil {
				if err := check(s); err != nil {
					return err
				}
			}
			*p = s
			return nil
		},
		get: func() cty.Value { return cty.StringVal(*p) }}
}

func choice(name string, p *string, values ...string) option {
	need := fmt.Sprintf("One of %s is needed, for example %q.", quoteAll(values), values[0])
	return option{name: name, field: p, need: need, tells: true,
		set: func(v cty.Value) error {
			s, err := asText(v)
			if err != nil {
				return err
			}
			if !slices.Contains(values, s) {
				return fmt.Errorf("%q is not one of %s.%s", s, quoteAll(values), suggest(s, values))
			}
			*p = s
			return nil
		},
		get: func() cty.Value { return cty.StringVal(*p) }}
}

func quoteAll(values []string) string {
	q := make([]string, len(values))
	for i, v := range values {
		q[i] = strconv.Quote(v)
	}
	return strings.Join(q, ", ")
}

func level(name string, p *slog.Level) option {
	s := strings.ToLower(p.String())
	o := choice(name, &s, "info", "debug", "warn", "error")
	o.field = p
	inner := o.set
	o.set = func(v cty.Value) error {
		if err := inner(v); err != nil {
			return err
		}
		return p.UnmarshalText([]byte(s))
	}
	o.get = func() cty.Value { return cty.StringVal(strings.ToLower(p.String())) }
	return o
}

func boolean(name string, p *bool) option {
	return option{name: name, field: p, need: "true or false is needed.",
		set: func(v cty.Value) error {
			b, err := convert.Convert(v, cty.Bool)
			if err != nil {
				return errType
			}
			*p = b.True()
			return nil
		},
		get: func() cty.Value { return cty.BoolVal(*p) }}
}

// asNumber accepts a number and, because env() gives text, a text that is one.
func asNumber(v cty.Value) (*big.Float, error) {
	if v.Type() == cty.Bool {
		return nil, errType
	}
	n, err := convert.Convert(v, cty.Number)
	if err != nil {
		return nil, errType
	}
	return n.AsBigFloat(), nil
}

// whole is a whole number from lo to hi, of things where it counts some.
func whole(name, things string, example int, p *int, lo, hi int) option {
	if things != "" {
		things = " of " + things
	}
	return option{name: name, field: p, need: fmt.Sprintf("A number%s is needed, for example %d.", things, example),
		set: func(v cty.Value) error {
			f, err := asNumber(v)
			if err != nil {
				return err
			}
			n, exact := f.Int64()
			if exact != big.Exact || n < int64(lo) || n > int64(hi) {
				return fmt.Errorf("a whole number%s from %d to %d is needed, for example %d", things, lo, hi, example)
			}
			*p = int(n)
			return nil
		},
		get: func() cty.Value { return cty.NumberIntVal(int64(*p)) }}
}

// share is a fraction above 0, up to 1.
func share(name string, p *float64) option {
	return option{name: name, field: p, need: "A fraction above 0 and up to 1 is needed, for example 0.2.",
		set: func(v cty.Value) error {
			f, err := asNumber(v)
			if err != nil {
				return err
			}
			n, _ := f.Float64()
			if n <= 0 || n > 1 {
				return errType
			}
			*p = n
			return nil
		},
		get: func() cty.Value { return cty.NumberFloatVal(*p) }}
}

func parseDuration(v cty.Value) (time.Duration, error) {
	if v.Type() == cty.Number && v.AsBigFloat().Sign() == 0 {
		return 0, nil // 0 needs no unit
	}
	s, err := asText(v)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errType
	}
	return d, nil
}

func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func duration(name string, p *time.Duration, lo, hi time.Duration) option {
	need := fmt.Sprintf("A time with its unit is needed, for example %q.", formatDuration(*p))
	if *p == 0 {
		need = `A time with its unit is needed, for example "30s".`
	}
	return option{name: name, field: p, need: need,
		set: func(v cty.Value) error {
			d, err := parseDuration(v)
			if err != nil {
				return err
			}
			if d < lo || d > hi {
				return fmt.Errorf("a time from %s to %s is needed", formatDuration(lo), formatDuration(hi))
			}
			*p = d
			return nil
		},
		get: func() cty.Value { return cty.StringVal(formatDuration(*p)) }}
}

// durations is a list of at least one time.
func durations(name string, p *[]time.Duration, hi time.Duration) option {
	return option{name: name, field: p, need: `A list of times with their units is needed, for example ["0s", "10s", "20s"].`,
		set: func(v cty.Value) error {
			if !isList(v) || v.LengthInt() == 0 {
				return errType
			}
			var out []time.Duration
			for _, e := range v.AsValueSlice() {
				if e.IsNull() {
					return errType
				}
				d, err := parseDuration(e)
				if err != nil {
					return err
				}
				if d < 0 || d > hi {
					return fmt.Errorf("times from 0s to %s are needed", formatDuration(hi))
				}
				out = append(out, d)
			}
			*p = out
			return nil
		},
		get: func() cty.Value {
			out := make([]string, len(*p))
			for i, d := range *p {
				out[i] = formatDuration(d)
			}
			return textList(out)
		}}
}

func size(name, example string, p *contract.Bytes, lo, hi contract.Bytes) option {
	return option{name: name, field: p, need: fmt.Sprintf("An amount of bytes is needed, for example %q.", example),
		set: func(v cty.Value) error {
			s := ""
			switch {
			case v.Type() == cty.Number:
				// Not as text: 1e999999999 would be a gigabyte of digits.
				n, exact := v.AsBigFloat().Uint64()
				if exact != big.Exact && n == 0 || v.AsBigFloat().Sign() < 0 {
					return errType
				}
				s = strconv.FormatUint(n, 10)
			case v.Type() == cty.String:
				s = v.AsString()
			default:
				return errType
			}
			b, err := contract.ParseBytes(s)
			if err != nil {
				return errType
			}
			if b < lo || b > hi {
				return fmt.Errorf("an amount from %s to %s is needed", lo, hi)
			}
			*p = b
			return nil
		},
		get: func() cty.Value { return cty.StringVal(formatBytes(*p)) }}
}

// formatBytes gives an amount exactly, in the largest unit that allows it.
func formatBytes(b contract.Bytes) string {
	for _, u := range []struct {
		size contract.Bytes
		name string
	}{{contract.TiB, "TiB"}, {contract.GiB, "GiB"}, {contract.MiB, "MiB"}, {contract.KiB, "KiB"}} {
		if b >= u.size && b%u.size == 0 {
			return strconv.FormatUint(uint64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(b), 10) + "B"
}

// ports is a range of ports in the form "7855-7999".
func ports(name string, p *[2]int) option {
	return option{name: name, field: p, need: `A range of ports is needed, for example "7855-7999".`, tells: true,
		set: func(v cty.Value) error {
			s, err := asText(v)
			if err != nil {
				return err
			}
			first, last, _ := strings.Cut(s, "-")
			lo, err1 := parsePort(first)
			hi, err2 := parsePort(last)
			if err1 != nil || err2 != nil {
				return errType
			}
			if lo < 1024 || hi < lo {
				return fmt.Errorf("%q is no range of ports for workers; both are from 1024 to 65535 and the first is not above the last", s)
			}
			*p = [2]int{lo, hi}
			return nil
		},
		get: func() cty.Value { return cty.StringVal(fmt.Sprintf("%d-%d", p[0], p[1])) }}
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	return int(n), err
}

func isList(v cty.Value) bool {
	t := v.Type()
	return t.IsTupleType() || t.IsListType() || t.IsSetType()
}

// list is a list of texts, each checked, none twice.
func list(name, need string, p *[]string, check func(string) error) option {
	o := ordered(name, need, p, check)
	inner := o.set
	o.set = func(v cty.Value) error {
		before := *p
		if err := inner(v); err != nil {
			return err
		}
		for i, s := range *p {
			if slices.Contains((*p)[:i], s) {
				*p = before
				return fmt.Errorf("%q stands in the list twice", s)
			}
		}
		return nil
	}
	return o
}

// ordered is a list of texts in which a text may stand twice.
func ordered(name, need string, p *[]string, check func(string) error) option {
	return option{name: name, field: p, need: need, tells: true,
		set: func(v cty.Value) error {
			if !isList(v) {
				return errType
			}
			out := []string{}
			for _, e := range v.AsValueSlice() {
				if e.IsNull() {
					return errType
				}
				s, err := asText(e)
				if err != nil {
					return err
				}
				if check != nil {
					if err := check(s); err != nil {
						return err
					}
				}
				out = append(out, s)
			}
			*p = out
			return nil
		},
		get: func() cty.Value { return textList(*p) }}
}

func textList(s []string) cty.Value {
	if len(s) == 0 {
		return cty.EmptyTupleVal
	}
	out := make([]cty.Value, len(s))
	for i, v := range s {
		out[i] = cty.StringVal(v)
	}
	return cty.TupleVal(out)
}

// secretMap is an object of texts that may be secrets: only the names are shown.
func secretMap(name, need string, p *map[string]string, check func(key, value string) error) option {
	return option{name: name, field: p, need: need, tells: true, hidden: true,
		set: func(v cty.Value) error {
			if !v.Type().IsObjectType() && !v.Type().IsMapType() {
				return errType
			}
			out := map[string]string{}
			for k, e := range v.AsValueMap() {
				if e.IsNull() {
					continue // env() of an unset variable leaves the entry out
				}
				s, err := asText(e)
				if err != nil {
					return err
				}
				if err := check(k, s); err != nil {
					return err
				}
				out[k] = s
			}
			*p = out
			return nil
		},
		get: func() cty.Value {
			out := map[string]cty.Value{}
			for k := range *p {
				out[k] = cty.StringVal("***")
			}
			return cty.ObjectVal(out)
		}}
}

// foreignSecret is a secret that another service made: any length, but not blank (see the package comment).
func foreignSecret(name string, p *secret.Secret) option {
	return option{name: name, field: p, need: `A secret is needed, for example env("REGISTRY_TOKEN") or file("registry.token").`,
		set: func(v cty.Value) error {
			s, err := asText(v)
			if err != nil {
				return err
			}
			if err := checkForeignSecret(s); err != nil {
				return err
			}
			*p = secret.Secret(s)
			return nil
		},
		hidden: true,
		get: func() cty.Value {
			if *p == "" {
				return cty.NullVal(cty.String)
			}
			return cty.StringVal(p.String())
		}}
}

// ownSecret is a secret that Apiary itself mints (S2).
func ownSecret(name string, p *secret.Secret) option {
	o := foreignSecret(name, p)
	o.need = `A secret of at least 32 characters is needed, for example file("gossip.key"); ` + "`apiary keygen` makes one."
	set := o.set
	o.set = func(v cty.Value) error {
		if s, err := asText(v); err == nil {
			if err := secret.Check(s); err != nil {
				return err
			}
		}
		return set(v)
	}
	return o
}

func checkForeignSecret(s string) error {
	if strings.TrimSpace(s) == "" {
		return errors.New("a secret must not be empty or blank; leave the option out, or give null, to have none")
	}
	if strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return errors.New("a secret must not begin or end with a space or hold control characters; it is sent in an HTTP header")
	}
	return nil
}
