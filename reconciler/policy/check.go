package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/literal"
	"cuelang.org/go/cue/token"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// allowedImports are the standard packages that policy may use: pure functions of their arguments.
var allowedImports = []string{
	"encoding/base64", "encoding/hex", "encoding/json", "list", "math", "math/bits", "net", "path", "regexp",
	"strconv", "strings", "struct", "time",
}

// meshFile is the one file at the top of a repository.
const meshFile = "mesh.cue"

// packageName is the package clause of every policy file.
const packageName = "policy"

// checkHead looks at what decides how CUE reads a file at all: its package, its imports and its attributes. A file with
// such a finding is not given to CUE.
func checkHead(f *ast.File) diag.List {
	var findings diag.List
	add := func(id string, p token.Pos, message, hint string) {
		pos := position(p)
		if pos.File == "" {
			pos = diag.Pos{File: f.Filename, Line: 1, Column: 1}
		}
		findings.Add(diag.Finding{ID: id, Message: message, Hint: hint, Pos: pos})
	}
	switch name := f.PackageName(); {
	case name == "":
		add(diag.WrongPackage, token.NoPos, "no package clause: CUE would pass over this file", "begin it with `package policy`")
	case name != packageName:
		pos := token.NoPos
		for _, d := range f.Decls {
			if p, ok := d.(*ast.Package); ok {
				pos = p.Name.Pos()
			}
		}
		add(diag.WrongPackage, pos, fmt.Sprintf("package %s: every policy file is of package policy", name), "write `package policy`")
	}
	for spec := range f.ImportSpecs() {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has said so
		}
		bare, _, _ := strings.Cut(name, ":")
		if bare == v1alpha1.ImportPath || slices.Contains(allowedImports, bare) {
			continue
		}
		hint := "policy may import Heddle's schema and these standard packages: " + strings.Join(allowedImports, ", ")
		if near := diag.Nearest(name, append([]string{v1alpha1.ImportPath}, allowedImports...)); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		if strings.Contains(strings.Split(bare, "/")[0], ".") {
			hint = "what several files share may stand in a hidden field (_name) of mesh.cue or services/*.cue, which all files below see"
		}
		add(diag.ForeignImport, spec.Path.Pos(), fmt.Sprintf("import of %q", name), hint)
	}
	var tag *ast.Attribute
	if f.Filename == meshFile {
		_, tag = envField(f)
	}
	ast.Walk(f, func(n ast.Node) bool {
		a, ok := n.(*ast.Attribute)
		if !ok {
			return true
		}
		const way = "write `_env: *\"default\" | string @tag(env)` in mesh.cue"
		name, body := a.Split()
		key, _, _ := strings.Cut(body, ",")
		switch {
		case name == "tag" && a == tag && body == "env":
		case name == "tag" && strings.TrimSpace(key) != "env":
			add(diag.ForeignAttr, a.Pos(), fmt.Sprintf("attribute @tag(%s): only the tag env is injected", clip(key)), way)
		case name == "tag" && body != "env":
			add(diag.ForeignAttr, a.Pos(), fmt.Sprintf("attribute @tag(%s): the tag env has no options", clip(body)), way)
		case name == "tag":
			// The stock CLI injects it wherever it stands: a pull request would be shown other policy than is enforced.
			add(diag.ForeignAttr, a.Pos(), "attribute @tag(env): the environment goes to one top-level field of mesh.cue, and only there",
				way+"; all files below see that field")
		default:
			add(diag.ForeignAttr, a.Pos(), fmt.Sprintf("attribute @%s: policy files may not use it", clip(name)),
				"remove it; only @tag(env) is known")
		}
		return true
	}, nil)
	return findings
}

// checkNumbers refuses exponents: CUE reads 1e100000000 as 1, and nothing in policy is that large.
func checkNumbers(f *ast.File) diag.List {
	var findings diag.List
	ast.Walk(f, func(n ast.Node) bool {
		if n, ok := n.(*ast.BasicLit); ok && n.Kind == token.FLOAT && strings.ContainsAny(n.Value, "eE") {
			findings.Add(diag.Finding{ID: diag.WrongValue, Pos: position(n.Pos()), Hint: "write the digits, as in 8080",
				Message: clip(n.Value) + ": numbers are written out, without an exponent"})
		}
		return true
	}, nil)
	return findings
}

// checkFields walks the fields that an own file of a unit writes: notes their places, and finds misspelt names and
// fields that belong to someone else. computed reports whether it has fields that the syntax does not show.
func checkFields(u unit, f *ast.File, at sites) (findings diag.List, computed bool) {
	fence := fence{u}
	// say keeps a text as it is written, for naming the nearest one that would be right.
	say := func(dotted string, x ast.Expr) {
		if lit, ok := x.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := literal.Unquote(lit.Value); err == nil {
				at.text[dotted] = text
			}
		}
	}
	v := visitor{
		field: func(path []string, fd *ast.Field) {
			pos := position(fd.Label.Pos())
			dotted := strings.Join(path, ".")
			if fd.Constraint == token.ILLEGAL {
				at.add(dotted, fd.Label.Pos())
				say(dotted, fd.Value)
			}
			if outside, ok := fence.field(path, pos); ok {
				findings.Add(outside)
				return
			}
			if fd.Constraint == token.OPTION {
				findings.Add(diag.Finding{ID: diag.Incomplete, Path: dotted, Pos: pos,
					Message: fmt.Sprintf("%s? only says what the field would have to be: nothing is enforced by it", path[len(path)-1]),
					Hint:    "leave out the ?"})
			}
			parent := policyShape
			for _, name := range path[:len(path)-1] {
				parent = parent.step(name)
			}
			if parent != nil && parent.fields != nil && parent.at(path[len(path)-1]) == nil {
				findings.Add(unknownField(path, parent.names(), pos))
			}
		},
		element: func(path []string, e ast.Expr) {
			dotted := strings.Join(path, ".")
			at.add(dotted, e.Pos())
			say(dotted, e)
		},
		other: func(path []string, n ast.Node) {
			if sel, ok := n.(*ast.SelectorExpr); ok && fromSchema(f, sel) {
				return // its definitions have no values: they bring no field that the syntax does not show
			}
			computed = true
			if outside, ok := fence.other(path, n); ok {
				findings.Add(outside)
			}
		},
	}
	v.decls(nil, f.Decls)
	return findings, computed
}

// fromSchema reports whether an expression is one of the schema's definitions, as in v1alpha1.#Service.
func fromSchema(f *ast.File, sel *ast.SelectorExpr) bool {
	x, ok := sel.X.(*ast.Ident)
	if !ok {
		return false
	}
	if name, ok := sel.Sel.(*ast.Ident); !ok || !strings.HasPrefix(name.Name, "#") {
		return false
	}
	for spec := range f.ImportSpecs() {
		path, err := strconv.Unquote(spec.Path.Value)
		if bare, _, _ := strings.Cut(path, ":"); err != nil || bare != v1alpha1.ImportPath {
			continue
		}
		if spec.Name == nil && x.Name == schemaName || spec.Name != nil && x.Name == spec.Name.Name {
			return !declared(f.Decls, x.Name)
		}
	}
	return false
}

// declared reports whether a name that an import has is also a field, an alias or a let of the file, at any depth: then
// an identifier may stand for that one.
func declared(decls []ast.Decl, name string) bool {
	found := false
	for _, d := range decls {
		ast.Walk(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				if l, ok := label(n.Label); ok && l == name {
					found = true
				}
			case *ast.Alias:
				found = found || n.Ident.Name == name
			case *ast.LetClause:
				found = found || n.Ident.Name == name
			case *ast.ForClause:
				found = found || n.Key != nil && n.Key.Name == name || n.Value != nil && n.Value.Name == name
			}
			return !found
		}, nil)
	}
	return found
}

// schemaName is what the schema's package is called.
const schemaName = "v1alpha1"

func unknownField(path []string, known []string, pos diag.Pos) diag.Finding {
	name := path[len(path)-1]
	f := diag.Finding{ID: diag.UnknownField, Path: strings.Join(path, "."), Pos: pos,
		Message: fmt.Sprintf("unknown field %s", name), Hint: "known here: " + strings.Join(known, ", ")}
	if len(path) == 1 {
		f.Message = fmt.Sprintf("unknown top-level field %s", name)
	}
	if near := diag.Nearest(name, known); near != "" {
		f.Hint = fmt.Sprintf("did you mean %s? known here: %s", near, strings.Join(known, ", "))
	}
	return f
}

// misspells reports whether an unknown field is nearly the one that another finding misses: then it is there, and what is
// wrong has been said.
func misspells(unknown, missing diag.Finding) bool {
	in := func(path string) (parent, name string) {
		i := strings.LastIndexByte(path, '.') + 1
		return path[:i], path[i:]
	}
	parent, name := in(unknown.Path)
	parent2, name2 := in(missing.Path)
	return unknown.ID == diag.UnknownField && parent == parent2 && diag.Nearest(name, []string{name2}) != ""
}

// clip bounds what of an author's text stands in a message, and keeps it on one line.
func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const limit = 120
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && s[cut]&0xC0 == 0x80 {
		cut--
	}
	return s[:cut] + "…"
}
