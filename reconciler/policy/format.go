package policy

import (
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Format writes a policy file in the one layout that `cue fmt` gives it. Findings say why it cannot be read; then there
// is no text. It parses in this process and evaluates nothing: it is for an author's own files, not for a commit's.
func Format(name string, text []byte) ([]byte, diag.List) {
	file, err := parser.ParseFile(name, text, parser.ParseComments)
	if err != nil {
		return nil, unreadable(name, err)
	}
	out, err := format.Node(file)
	if err != nil {
		return nil, unreadable(name, err)
	}
	// The formatter of v0.17.1 breaks some files, such as those with nothing but a comment in a struct that is unified.
	if _, err := parser.ParseFile(name, out, parser.ParseComments); err != nil {
		return nil, diag.List{{ID: diag.Syntax, Pos: diag.Pos{File: name}, Message: "CUE's formatter cannot lay this file out without breaking it",
			Hint: "give structs that hold only a comment a field, or move the comment out"}}
	}
	return out, nil
}

func unreadable(name string, err error) diag.List {
	var findings diag.List
	for _, e := range errors.Errors(err) {
		pos := position(e.Position())
		if pos.File == "" {
			pos = diag.Pos{File: name}
		}
		message, args := e.Msg()
		findings.Add(diag.Finding{ID: diag.Syntax, Message: errors.Newf(e.Position(), message, args...).Error(), Pos: pos})
	}
	return findings.Sorted()
}

// Definition is a type of the policy language, as types.cue writes it.
type Definition struct {
	Name   string  // without "#"
	Doc    string  // as written, lines joined; paragraphs are apart by an empty line
	Type   string  // of one that is no struct, as in `"strict" | "permissive"`; else ""
	Fields []Field // in the author's order
}

// Field is a field of a definition.
type Field struct {
	Name     string
	Required bool
	Type     string // as written, without the messages for wrong values: "[string]: #Port", "int & >=0 & <=10"
	Doc      string
	// Ref is the name of the definition that its values are, or whose lists or maps they are; "" where there is none.
	Ref string
	// Maps is how many names stand between the field and its values: 2 for services, by namespace and name.
	Maps int
	// List is set where the values are those of a list.
	List bool
}

// Language parses the structure of the policy language: the embedded types.cue.
func Language(types []byte) ([]Definition, error) {
	file, err := parser.ParseFile("types.cue", types, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var all []Definition
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.Field)
		if !ok {
			continue
		}
		name, _, err := ast.LabelName(f.Label)
		if err != nil {
			continue // a pattern is no definition
		}
		d := Definition{Name: name[1:], Doc: docOf(f)}
		body, ok := f.Value.(*ast.StructLit)
		if !ok {
			d.Type = typeText(f.Value)
			all = append(all, d)
			continue
		}
		for _, decl := range body.Elts {
			f, ok := decl.(*ast.Field)
			if !ok {
				continue
			}
			name, _, err := ast.LabelName(f.Label)
			if err != nil {
				continue
			}
			field := Field{Name: name, Required: f.Constraint.String() == "!", Type: typeText(f.Value), Doc: docOf(f)}
			field.Ref, field.Maps, field.List = refOf(f.Value)
			d.Fields = append(d.Fields, field)
		}
		all = append(all, d)
	}
	return all, nil
}

// docOf is the comment above a field.
func docOf(f *ast.Field) string {
	text := ""
	for _, g := range f.Comments() {
		if g.Doc {
			text = g.Text()
		}
	}
	return text
}

// typeText writes an expression without the error(…) that words the message for a wrong value.
func typeText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		if e.Op.String() == "|" {
			switch {
			case isMessage(e.Y):
				return typeText(e.X)
			case isMessage(e.X):
				return typeText(e.Y)
			}
		}
		return typeText(e.X) + " " + e.Op.String() + " " + typeText(e.Y)
	case *ast.ParenExpr:
		return "(" + typeText(e.X) + ")"
	case *ast.ListLit:
		if len(e.Elts) == 1 {
			if rest, ok := e.Elts[0].(*ast.Ellipsis); ok && rest.Type != nil {
				return "[..." + typeText(rest.Type) + "]"
			}
		}
	case *ast.StructLit:
		if value, ok := patternOf(e); ok {
			return "[string]: " + typeText(value)
		}
	}
	b, err := format.Node(e)
	if err != nil {
		return "_"
	}
	return string(b)
}

func isMessage(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	name, ok := call.Fun.(*ast.Ident)
	return ok && name.Name == "error"
}

// patternOf is what a struct written `[string]: value` holds.
func patternOf(s *ast.StructLit) (ast.Expr, bool) {
	if len(s.Elts) != 1 {
		return nil, false
	}
	f, ok := s.Elts[0].(*ast.Field)
	if !ok {
		return nil, false
	}
	if _, ok := f.Label.(*ast.ListLit); !ok {
		return nil, false
	}
	return f.Value, true
}

func refOf(e ast.Expr) (ref string, maps int, list bool) {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			if len(x.Name) > 1 && x.Name[0] == '#' {
				ref = x.Name[1:]
			}
			return ref, maps, list
		case *ast.ParenExpr:
			e = x.X
		case *ast.BinaryExpr:
			if x.Op.String() != "|" || !isMessage(x.Y) {
				return "", maps, list
			}
			e = x.X
		case *ast.ListLit:
			rest, ok := (*ast.Ellipsis)(nil), false
			if len(x.Elts) == 1 {
				rest, ok = x.Elts[0].(*ast.Ellipsis)
			}
			if !ok || rest.Type == nil {
				return "", maps, list
			}
			e, list = rest.Type, true
		case *ast.StructLit:
			value, ok := patternOf(x)
			if !ok {
				return "", maps, list
			}
			e, maps = value, maps+1
		default:
			return "", maps, list
		}
	}
}
