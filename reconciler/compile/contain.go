package compile

import (
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// This file is what findings about things in vain rest on: does whatever satisfies one condition satisfy another? Without
// regular expressions the answers are exact. Of expressions some questions are left open, and the answer to those is no:
// a finding that is missed is better than one that is wrong.
//
// That it is enough to compare conditions one by one, and never with several together, comes from there being no end of
// values: a request with a method, an element of a path and a value that nobody names is taken by what asks for none.
// Networks are finite, and are compared together: see coveredBy.

// takesAll reports whether every request that b takes is taken by a too.
func takesAll(a, b *mesh.Match) bool {
	return (a.Method == "" || a.Method == b.Method) && fieldsInside(a.Headers, b.Headers) && fieldsInside(a.Query, b.Query) &&
		matchPathInside(a, b)
}

// effort is about how many steps [takesAll] takes, for [compiler.spend].
func effort(a, b *mesh.Match) int {
	steps := compares + len(a.Headers)*len(b.Headers) + len(a.Query)*len(b.Query)
	if b.Path.Regex != "" && a.Path.Regex == "" && meets(a.Path.Exact+a.Path.Prefix, expressionOf(b.Path.Regex)) {
		steps += 2 * maxStates
	}
	return steps
}

// meets reports whether a string that an expression matches can begin with p, or p with it, going by its literal prefix.
func meets(p string, e *expression) bool {
	return strings.HasPrefix(p, e.literal) || strings.HasPrefix(e.literal, p)
}

// expression is what is asked again and again of a regular expression; it is never written after it was made.
type expression struct {
	everyText, everyPath bool
	literal              string // what every string that it matches begins with
	whole                bool   // and that is all of it
}

// expressions remembers some: what an expression is depends on nothing else, and a route is compared with many.
var expressions = struct {
	sync.Mutex
	by map[string]*expression
}{by: map[string]*expression{}}

func expressionOf(expr string) *expression {
	expressions.Lock()
	defer expressions.Unlock()
	e := expressions.by[expr]
	if e == nil {
		parts := partsOf(expr)
		e = &expression{
			everyText: len(parts) == 1 && anything(parts[0]),
			everyPath: len(parts) == 2 && parts[0].Op == syntax.OpLiteral && string(parts[0].Rune) == "/" && anything(parts[1]),
		}
		e.literal, e.whole = literalOf(parts)
		if len(expressions.by) >= maxRemembered {
			clear(expressions.by)
		}
		expressions.by[expr] = e
	}
	return e
}

// usesRegex reports whether a match has an expression anywhere.
func usesRegex(m *mesh.Match) bool {
	asked := func(h mesh.HeaderMatch) bool { return h.Regex != "" }
	return m.Path.Regex != "" || slices.ContainsFunc(m.Headers, asked) || slices.ContainsFunc(m.Query, asked)
}

// fieldsInside reports whether whatever satisfies the conditions b satisfies the conditions a.
func fieldsInside(a, b []mesh.HeaderMatch) bool {
	for i := range a {
		j := slices.IndexFunc(b, func(x mesh.HeaderMatch) bool { return x.Name == a[i].Name })
		if j < 0 || !valueInside(&a[i], &b[j]) {
			return false
		}
	}
	return true
}

// valueInside reports whether every value that satisfies b satisfies a.
func valueInside(a, b *mesh.HeaderMatch) bool {
	switch {
	case a.Present:
		return true
	case b.Present:
		return everyText(a.Regex)
	case b.Regex != "":
		return a.Regex == b.Regex || everyText(a.Regex)
	}
	return !slices.ContainsFunc(values(b), func(v string) bool { return !decide.ValueMatches(a, v) })
}

// everyText reports whether an expression matches every text without line ends, which no value and no path has. Those
// are the usual spellings; of others it says no.
func everyText(expr string) bool { return expr != "" && expressionOf(expr).everyText }

// everyPath is everyText of what begins with "/".
func everyPath(expr string) bool { return expr != "" && expressionOf(expr).everyPath }

func anything(re *syntax.Regexp) bool {
	return re.Op == syntax.OpStar && (re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL)
}

// partsOf are what stands side by side in an expression, without groups around it and borders at its ends.
func partsOf(expr string) []*syntax.Regexp {
	if expr == "" {
		return nil
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil
	}
	for re = re.Simplify(); re.Op == syntax.OpCapture; {
		re = re.Sub[0]
	}
	if re.Op != syntax.OpConcat {
		return []*syntax.Regexp{re}
	}
	parts := re.Sub
	if parts[0].Op == syntax.OpBeginText {
		parts = parts[1:]
	}
	if n := len(parts); n > 0 && parts[n-1].Op == syntax.OpEndText {
		parts = parts[:n-1]
	}
	return parts
}

// matchPathInside reports whether every path that b takes is taken by a too.
func matchPathInside(a, b *mesh.Match) bool {
	p, q := a.Path, b.Path
	switch {
	case p == mesh.PathMatch{}:
		return true
	case q == mesh.PathMatch{}:
		// A path is "*" or begins with "/", and the former is of OPTIONS only (RFC 9110, 7.1).
		return everyText(p.Regex) || everyPath(p.Regex) && b.Method != "" && b.Method != "OPTIONS"
	case p.Regex != "":
		return p.Regex == q.Regex || everyText(p.Regex) || everyPath(p.Regex)
	case q.Regex == "":
		return patternInside(p, patternOf(q))
	}
	if literal, whole := literalPrefix(q.Regex); whole {
		literal = decide.SpellPath(literal)
		if p.Exact != "" {
			return literal == p.Exact
		}
		return decide.HasPathPrefix(literal, p.Prefix)
	}
	if !meets(p.Exact+p.Prefix, expressionOf(q.Regex)) {
		return false
	}
	if p.Exact != "" {
		return onlyUnder(q.Regex, p.Exact, false)
	}
	return onlyUnder(q.Regex, p.Prefix, true)
}

// literalPrefix is what every string that an expression matches begins with, and whether that is all of it.
func literalPrefix(expr string) (literal string, whole bool) {
	e := expressionOf(expr)
	return e.literal, e.whole
}

func literalOf(parts []*syntax.Regexp) (literal string, whole bool) {
	var b strings.Builder
	for _, p := range parts {
		if p.Op != syntax.OpLiteral || p.Flags&syntax.FoldCase != 0 {
			return b.String(), false
		}
		b.WriteString(string(p.Rune))
	}
	return b.String(), true
}

// program is an expression as a machine; nil where it cannot be read, which is a finding elsewhere.
func program(expr string) *syntax.Prog {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil
	}
	return prog
}

// onlyUnder reports whether every string that an expression matches is p or, where open says so, begins with p and "/". It
// walks the expression's machine beside p, and looks for a way to a match that has left p. Borders (^, $, \b) are taken
// to hold anywhere, which can only add such ways.
func onlyUnder(expr, p string, open bool) bool {
	prog := program(expr)
	if prog == nil {
		return false
	}
	want := []rune(p)
	const left = -1
	type state struct {
		pc uint32
		at int // how much of want has been read, or left
	}
	todo, seen := []state{{uint32(prog.Start), 0}}, map[state]bool{}
	for len(todo) > 0 {
		if len(seen) > maxStates {
			return false // perhaps; it would take too long to know
		}
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		in := &prog.Inst[s.pc]
		switch in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			todo = append(todo, state{in.Out, s.at}, state{in.Arg, s.at})
		case syntax.InstCapture, syntax.InstNop, syntax.InstEmptyWidth:
			todo = append(todo, state{in.Out, s.at})
		case syntax.InstMatch:
			if s.at != len(want) {
				return false
			}
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			next := '/' // what keeps below p
			switch {
			case s.at == left:
				todo = append(todo, state{in.Out, left})
				continue
			case s.at < len(want):
				next = want[s.at]
				if in.MatchRune(next) {
					todo = append(todo, state{in.Out, s.at + 1})
				}
			case !open:
				todo = append(todo, state{in.Out, left})
				continue
			}
			if matchesBut(in, next) {
				todo = append(todo, state{in.Out, left})
			}
		}
	}
	return true
}

// matchesBut reports whether an instruction takes any other rune than one.
func matchesBut(in *syntax.Inst, but rune) bool {
	switch {
	case in.Op == syntax.InstRuneAny || in.Op == syntax.InstRuneAnyNotNL:
		return true
	case len(in.Rune) == 1:
		return in.Rune[0] != but || syntax.Flags(in.Arg)&syntax.FoldCase != 0 && unicode.SimpleFold(but) != but
	}
	for i := 0; i+1 < len(in.Rune); i += 2 {
		if in.Rune[i] != but || in.Rune[i+1] != but {
			return true
		}
	}
	return false
}

// matchesNoPath reports whether no string that begins as a path does, with "/" or as the "*" of OPTIONS, satisfies an
// expression.
func matchesNoPath(expr string) bool {
	prog := program(expr)
	if prog == nil {
		return false
	}
	todo, seen := []uint32{uint32(prog.Start)}, map[uint32]bool{}
	for len(todo) > 0 {
		pc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[pc] {
			continue
		}
		seen[pc] = true
		switch in := &prog.Inst[pc]; in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			todo = append(todo, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop, syntax.InstEmptyWidth:
			todo = append(todo, in.Out)
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if in.MatchRune('/') || in.MatchRune('*') {
				return false
			}
		}
	}
	return true
}
