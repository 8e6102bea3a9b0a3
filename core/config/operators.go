package config

import (
	"math"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/apiary-dev/apiary/core/contract"
)

func (c *compiler) unary(e *hclsyntax.UnaryOpExpr) *node {
	n := c.compile(e.Val)
	if n == nil {
		return nil
	}
	want, f := kindBool, func(v value) value { return value{b: !v.b} }
	if e.Op == hclsyntax.OpNegate {
		want, f = kindNumber, func(v value) value { return value{n: -v.n} }
	}
	if !c.want(e.Val, n, want) {
		return nil
	}
	return &node{kind: want, why: n.why, eval: func(d *PlaceDevice) value { return f(n.eval(d)) }}
}

// want reports whether a node is of a kind, and says so where it is not.
func (c *compiler) want(e hclsyntax.Expression, n *node, k kind) bool {
	if n.kind != k {
		hint := ""
		if n.kind == kindText && n.literal != nil && k == kindNumber {
			if b, err := contract.ParseBytes(*n.literal); err == nil && b >= contract.MiB {
				hint = "; for an amount write for example gib(8)"
			}
		}
		c.fail(e.Range(), "%s is needed here, and this is %s%s", strings.ToUpper(k.String()[:1])+k.String()[1:], n.kind, hint)
	}
	return n.kind == k
}

func (c *compiler) binary(e *hclsyntax.BinaryOpExpr) *node {
	l, r := c.compile(e.LHS), c.compile(e.RHS) // both, so that the mistakes of both are told
	if l == nil || r == nil {
		return nil
	}
	switch e.Op {
	case hclsyntax.OpLogicalAnd, hclsyntax.OpLogicalOr:
		left, right := c.want(e.LHS, l, kindBool), c.want(e.RHS, r, kindBool)
		if !left || !right {
			return nil
		}
		return logical(l, r, e.Op == hclsyntax.OpLogicalAnd)
	case hclsyntax.OpEqual, hclsyntax.OpNotEqual:
		return c.equality(e, l, r)
	}
	left, right := c.want(e.LHS, l, kindNumber), c.want(e.RHS, r, kindNumber)
	if !left || !right {
		return nil
	}
	op, result := arithmetic(e.Op)
	if op == nil {
		c.fail(e.Range(), "This operator cannot stand in a condition on a device")
		return nil
	}
	return &node{kind: result, why: both(l, r), eval: func(d *PlaceDevice) value { return op(l.eval(d).n, r.eval(d).n) }}
}

func arithmetic(op *hclsyntax.Operation) (func(a, b float64) value, kind) {
	switch op {
	case hclsyntax.OpGreaterThan:
		return func(a, b float64) value { return value{b: a > b} }, kindBool
	case hclsyntax.OpGreaterThanOrEqual:
		return func(a, b float64) value { return value{b: a >= b} }, kindBool
	case hclsyntax.OpLessThan:
		return func(a, b float64) value { return value{b: a < b} }, kindBool
	case hclsyntax.OpLessThanOrEqual:
		return func(a, b float64) value { return value{b: a <= b} }, kindBool
	case hclsyntax.OpAdd:
		return func(a, b float64) value { return value{n: a + b} }, kindNumber
	case hclsyntax.OpSubtract:
		return func(a, b float64) value { return value{n: a - b} }, kindNumber
	case hclsyntax.OpMultiply:
		return func(a, b float64) value { return value{n: a * b} }, kindNumber
	case hclsyntax.OpDivide:
		return func(a, b float64) value { return value{n: a / b} }, kindNumber
	case hclsyntax.OpModulo:
		return func(a, b float64) value { return value{n: math.Mod(a, b)} }, kindNumber
	}
	return nil, kindBool
}

// logical is && and ||. It gives only the side that decided as the reason.
func logical(l, r *node, and bool) *node {
	return &node{kind: kindBool,
		eval: func(d *PlaceDevice) value {
			if left := l.eval(d); left.b != and {
				return left
			}
			return r.eval(d)
		},
		why: func(d *PlaceDevice) []string {
			left, right := l.eval(d).b, r.eval(d).b
			switch {
			case left != and:
				return l.why(d)
			case right != and:
				return r.why(d)
			}
			return append(l.why(d), r.why(d)...)
		}}
}

func both(l, r *node) func(*PlaceDevice) []string {
	return func(d *PlaceDevice) []string { return append(l.why(d), r.why(d)...) }
}

func (c *compiler) equality(e *hclsyntax.BinaryOpExpr, l, r *node) *node {
	if l.kind != r.kind || l.kind == kindTexts || l.kind == kindNumbers {
		hint := ""
		switch {
		case l.kind == kindTexts || r.kind == kindTexts:
			hint = "; ask with contains(hive.labels, \"…\")"
		case l.attribute == "device.memory" || l.attribute == "device.free":
			hint = "; an amount is written for example gib(8)"
		}
		c.fail(e.Range(), "%s and %s cannot be compared%s", strings.ToUpper(l.kind.String()[:1])+l.kind.String()[1:], r.kind, hint)
		return nil
	}
	for _, side := range [][2]*node{{l, r}, {r, l}} {
		known := c.attributes[side[0].attribute].only
		if lit := side[1].literal; known != nil && lit != nil && !slices.Contains(known, *lit) {
			c.fail(e.Range(), "%q is no kind of device; the kinds are %s, so a GPU is device.kind != \"cpu\"", *lit, quoteAll(known))
			return nil
		}
	}
	same := e.Op == hclsyntax.OpEqual
	return &node{kind: kindBool, why: both(l, r), eval: func(d *PlaceDevice) value {
		a, b := l.eval(d), r.eval(d)
		return value{b: (a.b == b.b && a.n == b.n && a.s == b.s) == same}
	}}
}

func (c *compiler) conditional(e *hclsyntax.ConditionalExpr) *node {
	test, yes, no := c.compile(e.Condition), c.compile(e.TrueResult), c.compile(e.FalseResult)
	if test == nil || yes == nil || no == nil || !c.want(e.Condition, test, kindBool) {
		return nil
	}
	if yes.kind != no.kind {
		c.fail(e.Range(), "Both results must be of one kind, and one is %s and the other %s", yes.kind, no.kind)
		return nil
	}
	pick := func(d *PlaceDevice) *node {
		if test.eval(d).b {
			return yes
		}
		return no
	}
	return &node{kind: yes.kind, eval: func(d *PlaceDevice) value { return pick(d).eval(d) },
		why: func(d *PlaceDevice) []string { return append(test.why(d), pick(d).why(d)...) }}
}
