package config

import (
	"math"
	"math/big"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// maxArithmetic bounds the calculations in one value.
const maxArithmetic = 64

// costly says why an expression is not evaluated although it can be read; "" where it may be. HCL calculates with numbers of any
// size and writes them out in full where they become text, and a for inside a for multiplies lists: a line of either can take hours.
func costly(e hclsyntax.Expression) (why string, at hcl.Range) {
	w := &walker{}
	_ = hclsyntax.Walk(e, w)
	if w.why == "" && w.operations > maxArithmetic {
		return "There are more than 64 calculations in one value; write what comes out", e.Range()
	}
	if w.why == "" && w.operations > 0 && w.digits != nil {
		return "A text that is calculated with is too large a number", *w.digits
	}
	return w.why, w.at
}

type walker struct {
	why        string
	at         hcl.Range
	loops      int // for expressions around the current place
	operations int
	digits     *hcl.Range // of a text that is a number out of bounds
}

// Enter looks at an expression before those in it.
func (w *walker) Enter(n hclsyntax.Node) hcl.Diagnostics {
	switch e := n.(type) {
	case *hclsyntax.ForExpr:
		if w.loops++; w.loops > 1 {
			w.refuse("A for inside another one is not evaluated; write the list out", e.Range())
		}
	case *hclsyntax.LiteralValueExpr:
		v := e.Val
		if !v.IsKnown() || v.IsNull() {
			break
		}
		if v.Type() == cty.Number && !moderate(v.AsBigFloat()) {
			w.refuse("The number is too large or too small", e.Range())
		}
		if v.Type() == cty.String {
			if x, err := cty.ParseNumberVal(v.AsString()); err == nil && !moderate(x.AsBigFloat()) {
				at := e.Range()
				w.digits = &at
			}
		}
	case *hclsyntax.UnaryOpExpr:
		w.operations++
	case *hclsyntax.BinaryOpExpr:
		switch e.Op {
		case hclsyntax.OpAdd, hclsyntax.OpSubtract, hclsyntax.OpMultiply, hclsyntax.OpDivide, hclsyntax.OpModulo:
			w.operations++
		}
	}
	return nil
}

// Exit is called after those in it.
func (w *walker) Exit(n hclsyntax.Node) hcl.Diagnostics {
	if _, ok := n.(*hclsyntax.ForExpr); ok {
		w.loops--
	}
	return nil
}

func (w *walker) refuse(why string, at hcl.Range) {
	if w.why == "" {
		w.why, w.at = why, at
	}
}

// moderate reports whether a number is one of a float64 too.
func moderate(n *big.Float) bool {
	f, _ := n.Float64()
	return !math.IsInf(f, 0) && (f != 0) == (n.Sign() != 0)
}
