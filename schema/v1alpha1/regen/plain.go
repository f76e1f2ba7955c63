package main

import (
	"os"
	"path/filepath"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/ast/astutil"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
)

// plain reads the schema as the generators of the stock CLI can use it: types.cue without the messages, which they would
// take for one more alternative, and the definitions of rules.cue that are one pattern, as #Duration and #Path are, with
// the strings that these are put together from. What else rules.cue has, such as checks over several fields, has no form
// in a JSON Schema.
func plain() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range []string{"types.cue", "rules.cue"} {
		text, err := os.ReadFile(filepath.Join(schema, name))
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(name, text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if name == "rules.cue" {
			patterns(f)
		}
		if out[name], err = format.Node(astutil.Apply(f, nil, dropMessage)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// dropMessage makes `X | error("…")` X.
func dropMessage(c astutil.Cursor) bool {
	or, ok := c.Node().(*ast.BinaryExpr)
	if !ok || or.Op != token.OR {
		return true
	}
	if call, ok := or.Y.(*ast.CallExpr); ok {
		if f, ok := call.Fun.(*ast.Ident); ok && f.Name == "error" {
			c.Replace(or.X)
		}
	}
	return true
}

// patterns leaves of rules.cue its patterns, and the texts that they use.
func patterns(f *ast.File) {
	var keep []ast.Decl
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.Package, *ast.LetClause:
			keep = append(keep, d)
		case *ast.Field:
			name, _, _ := ast.LabelName(d.Label)
			_, structure := d.Value.(*ast.StructLit)
			if (strings.HasPrefix(name, "#") || strings.HasPrefix(name, "_")) && !structure && !calls(d.Value) {
				keep = append(keep, d)
			}
		}
	}
	f.Decls = keep
}

// calls reports whether an expression uses a standard package.
func calls(x ast.Expr) bool {
	found := false
	ast.Walk(x, func(n ast.Node) bool {
		_, is := n.(*ast.SelectorExpr)
		found = found || is
		return true
	}, nil)
	return found
}
