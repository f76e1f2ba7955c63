package compile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/scanner"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// parse makes a Document of policy text, as package policy does out of CUE, without an evaluator: the text is the data
// subset of CUE (fields, `a: b: c`, lists, strings, numbers, booleans, comments). It keeps the position of each label
// and list element.
func parse(t testing.TB, files map[string]string) *v1alpha1.Document {
	t.Helper()
	positions := map[string]diag.Pos{}
	root := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := &parser{file: name, positions: positions}
		p.Init(strings.NewReader(files[name]))
		p.Filename = name
		p.Error = func(s *scanner.Scanner, msg string) { t.Fatalf("%s: %s", s.Position, msg) }
		p.next()
		if err := p.fields(root, "", scanner.EOF); err != nil {
			t.Fatalf("%s: %v", p.Position, err)
		}
	}
	return document(t, root, positions)
}

// document decodes data as the generated types have it; an unknown field is a mistake in the test.
func document(t testing.TB, root map[string]any, positions map[string]diag.Pos) *v1alpha1.Document {
	t.Helper()
	b, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	doc := &v1alpha1.Document{Positions: positions}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc.Policy); err != nil {
		t.Fatal(err)
	}
	return doc
}

type parser struct {
	scanner.Scanner
	file      string
	positions map[string]diag.Pos
	tok       rune
	text      string
}

func (p *parser) next() { p.tok = p.Scan(); p.text = p.TokenText() }

func (p *parser) mark(path string) {
	if _, ok := p.positions[path]; !ok {
		p.positions[path] = diag.Pos{File: p.file, Line: p.Position.Line, Column: p.Position.Column}
	}
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// fields reads fields up to the token that ends them, into m, which may hold some from another file.
func (p *parser) fields(m map[string]any, path string, end rune) error {
	for p.tok != end {
		if p.tok == ',' {
			p.next()
			continue
		}
		if err := p.field(m, path); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) field(m map[string]any, path string) error {
	var name string
	switch p.tok {
	case scanner.Ident:
		name = p.text
	case scanner.String:
		name = p.text[1 : len(p.text)-1]
	default:
		return fmt.Errorf("expected a label, found %q", p.text)
	}
	path = join(path, name)
	p.mark(path)
	p.next()
	if p.tok != ':' {
		return fmt.Errorf("expected ':' after %q, found %q", name, p.text)
	}
	p.next()
	// `a: b: c` nests; only a label is followed by a colon.
	if p.tok == scanner.Ident && p.text != "true" && p.text != "false" || p.tok == scanner.String && p.Peek() == ':' {
		inner, _ := m[name].(map[string]any)
		if inner == nil {
			inner = map[string]any{}
			m[name] = inner
		}
		return p.field(inner, path)
	}
	v, err := p.value(m[name], path)
	if err != nil {
		return err
	}
	m[name] = v
	return nil
}

func (p *parser) value(old any, path string) (any, error) {
	defer p.next()
	switch p.tok {
	case '{':
		m, _ := old.(map[string]any)
		if m == nil {
			m = map[string]any{}
		}
		p.next()
		return m, p.fields(m, path, '}')
	case '[':
		list := []any{}
		p.next()
		for p.tok != ']' {
			if p.tok == ',' {
				p.next()
				continue
			}
			at := join(path, fmt.Sprint(len(list)))
			p.mark(at)
			v, err := p.value(nil, at)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case '-', scanner.String, scanner.Int, scanner.Float, scanner.Ident:
		text := p.text
		if p.tok == '-' {
			p.Scan()
			text += p.TokenText()
		}
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		return v, nil
	}
	return nil, fmt.Errorf("expected a value, found %q", p.text)
}
