package policy

import (
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// This file owns the mapping between CUE's positions and an author's. CUE names the schema's side of a conflict first,
// and the position of a unified struct points into the schema; so where an author wrote a field is read off the syntax
// of the author's own files, and CUE's positions only serve for what no syntax shows (fields made by comprehensions
// and references).

// schemaFile marks files of the embedded schema in CUE's positions.
const schemaFile = v1alpha1.VendorDir + "/"

// position converts one of CUE's.
func position(p token.Pos) diag.Pos {
	if !p.IsValid() {
		return diag.Pos{}
	}
	q := p.Position()
	return diag.Pos{File: q.Filename, Line: q.Line, Column: q.Column}
}

// isSchema reports whether p lies in the schema, or in the line that Heddle itself adds to an instance.
func isSchema(p diag.Pos) bool { return strings.HasPrefix(p.File, schemaFile) }

// sites are the places where the author's files write fields, by path as in [v1alpha1.Document.Positions]. A path
// that is written more than once has its first place, in the order of the files, and the others in again.
type sites struct {
	first map[string]diag.Pos
	again map[string][]diag.Pos
	text  map[string]string // of fields that are plain strings, to guess what a wrong one meant
}

func newSites() sites {
	return sites{map[string]diag.Pos{}, map[string][]diag.Pos{}, map[string]string{}}
}

func (s sites) add(path string, p token.Pos) {
	if _, ok := s.first[path]; ok {
		s.again[path] = append(s.again[path], position(p))
		return
	}
	s.first[path] = position(p)
}

// near is the place of a path or of its nearest written ancestor.
func (s sites) near(path string) diag.Pos {
	for path != "" {
		if p, ok := s.first[path]; ok {
			return p
		}
		path = path[:max(strings.LastIndexByte(path, '.'), 0)]
	}
	return diag.Pos{}
}

// inside gives findings about values of a file the paths and places of the fields that hold them, so that what CUE says
// about the same value is known for an echo.
func (s sites) inside(findings diag.List, file string) diag.List {
	for i := range findings {
		f := &findings[i]
		var best diag.Pos
		for path, p := range s.first {
			if p.File != file || p.Line != f.Pos.Line || p.Column > f.Pos.Column || p.Compare(best) < 0 && best.File != "" {
				continue
			}
			if p != best || len(path) > len(f.Path) {
				best, f.Path = p, path
			}
		}
		if best.File != "" {
			f.Pos = best
		}
	}
	return findings
}

// visitor walks the declarations of an author's file along the labels that can be read off the syntax.
type visitor struct {
	// field is called for every regular field with a plain label, before its value is walked.
	field func(path []string, f *ast.Field)
	// element is called for every list element with a known index.
	element func(path []string, e ast.Expr)
	// other is called for what has no plain label: patterns, computed labels, embeddings of references.
	other func(path []string, n ast.Node)
}

func (v *visitor) decls(path []string, decls []ast.Decl) {
	for _, d := range decls {
		switch d := d.(type) {
		case *ast.Field:
			name, plain := label(d.Label)
			switch {
			case !plain:
				v.other(path, d)
			case strings.HasPrefix(name, "_") && isIdent(d.Label), strings.HasPrefix(name, "#") && isIdent(d.Label):
				// Hidden fields and definitions are the author's own business; what they say counts where it is used.
			default:
				sub := append(slices.Clip(path), name)
				v.field(sub, d)
				v.expr(sub, d.Value)
			}
		case *ast.EmbedDecl:
			v.expr(path, d.Expr)
		case *ast.Comprehension:
			v.comprehension(path, d)
		}
	}
}

func (v *visitor) comprehension(path []string, c *ast.Comprehension) {
	v.expr(path, c.Value)
	if c.Fallback != nil {
		v.expr(path, c.Fallback.Body)
	}
}

func (v *visitor) expr(path []string, e ast.Expr) {
	switch e := e.(type) {
	case *ast.StructLit:
		v.decls(path, e.Elts)
	case *ast.ParenExpr:
		v.expr(path, e.X)
	case *ast.BinaryExpr:
		if e.Op == token.AND {
			v.expr(path, e.X)
			v.expr(path, e.Y)
		}
	case *ast.Comprehension:
		v.comprehension(path, e)
	case *ast.ListLit:
		for i, el := range e.Elts {
			switch el.(type) {
			case *ast.Comprehension, *ast.Ellipsis:
				v.other(path, el)
				return // the indices after it are unknown
			}
			sub := append(slices.Clip(path), strconv.Itoa(i))
			v.element(sub, el)
			v.expr(sub, el)
		}
	case *ast.Ident, *ast.SelectorExpr, *ast.IndexExpr, *ast.CallExpr, *ast.Interpolation:
		v.other(path, e)
	}
}

// label is the name of a label that can be read off the syntax.
func label(l ast.Label) (string, bool) {
	if a, ok := l.(*ast.Alias); ok {
		l, ok = a.Expr.(ast.Label)
		if !ok {
			return "", false
		}
	}
	switch l.(type) {
	case *ast.Ident, *ast.BasicLit:
		name, _, err := ast.LabelName(l)
		return name, err == nil
	}
	return "", false
}

func isIdent(l ast.Label) bool {
	if a, ok := l.(*ast.Alias); ok {
		l, _ = a.Expr.(ast.Label)
	}
	_, ok := l.(*ast.Ident)
	return ok
}

// writtenAt is a place in the author's files that takes part in a value, from CUE's own bookkeeping; the zero Pos if
// there is none.
func writtenAt(v cue.Value) diag.Pos {
	op, args := v.Expr()
	if op == cue.AndOp {
		for _, a := range args {
			if p := writtenAt(a); !p.IsZero() {
				return p
			}
		}
		return diag.Pos{}
	}
	if p := position(v.Pos()); !p.IsZero() && !isSchema(p) {
		return p
	}
	return diag.Pos{}
}

// complete adds places for the fields below v that the syntax does not show.
func (s sites) complete(prefix string, v cue.Value) {
	sub := func(name string, v cue.Value) {
		path := prefix + "." + name
		if _, ok := s.first[path]; !ok {
			if p := writtenAt(v); !p.IsZero() {
				s.first[path] = p
			}
		}
		s.complete(path, v)
	}
	switch v.IncompleteKind() {
	case cue.StructKind:
		for it, err := v.Fields(); err == nil && it.Next(); {
			sub(it.Selector().Unquoted(), it.Value())
		}
	case cue.ListKind:
		i := 0
		for it, err := v.List(); err == nil && it.Next(); i++ {
			sub(strconv.Itoa(i), it.Value())
		}
	}
}
