package policy

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

func TestFormat(t *testing.T) {
	const crooked = "package policy\nservices: shop: \"web\": {\n  ports: http: {port:80,protocol:\"http1\"} // the door\n\n\n\n  allow: a: from: []\n}\n"
	const straight = "package policy\n\nservices: shop: \"web\": {\n\tports: http: {port: 80, protocol: \"http1\"} // the door\n\n\tallow: a: from: []\n}\n"
	out, findings := Format("services/shop/web.cue", []byte(crooked))
	if len(findings) > 0 || string(out) != straight {
		t.Errorf("%v\n%s", findings, out)
	}
	if again, _ := Format("services/shop/web.cue", out); !bytes.Equal(again, out) {
		t.Errorf("formatting it again changes it:\n%s", again)
	}
	out, findings = Format("a.cue", []byte("package policy\n\na: {\n"))
	if len(out) > 0 || len(findings) != 1 || findings[0].ID != diag.Syntax || findings[0].Pos.File != "a.cue" || findings[0].Pos.Line < 3 {
		t.Errorf("what cannot be read: %q, %v", out, findings)
	}
}

// What the formatter would break is left as it is.
func TestFormatBreaksNothing(t *testing.T) {
	text := []byte("package policy\n\nnamespaces: \"my-ns\": v1alpha1.#Namespace & {\n\t// nothing yet\n}\n")
	if out, findings := Format("ns.cue", text); len(out) > 0 || len(findings) != 1 || findings[0].Pos.File != "ns.cue" {
		t.Errorf("%q, %v; if the formatter has been mended, delete this test and the check", out, findings)
	}
}

// The language that is explained is the language that is decoded: the same types, with the same fields.
func TestLanguage(t *testing.T) {
	all, err := Language(v1alpha1.Files()["types.cue"])
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Definition{}
	for _, d := range all {
		byName[d.Name] = d
	}
	seen := map[string]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Map, reflect.Slice:
			walk(typ.Elem())
			return
		}
		if typ.PkgPath() == "" || seen[typ.Name()] {
			return
		}
		seen[typ.Name()] = true
		d, ok := byName[typ.Name()]
		if !ok {
			t.Errorf("#%s is not described", typ.Name())
			return
		}
		if d.Doc == "" || strings.HasPrefix(d.Doc, "//") {
			t.Errorf("#%s says %q", d.Name, d.Doc)
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		var want, got []string
		for f := range typ.Fields() {
			name, opt, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
			i := slices.IndexFunc(d.Fields, func(f Field) bool { return f.Name == name })
			if i < 0 {
				continue
			}
			if d.Fields[i].Required != (opt == "") {
				t.Errorf("#%s.%s: required is %t", d.Name, name, d.Fields[i].Required)
			}
			if strings.Contains(d.Fields[i].Type, "error(") || d.Fields[i].Type == "" {
				t.Errorf("#%s.%s: type %q", d.Name, name, d.Fields[i].Type)
			}
			walk(f.Type)
		}
		for _, f := range d.Fields {
			got = append(got, f.Name)
			if _, ok := byName[f.Ref]; f.Ref != "" && !ok {
				t.Errorf("#%s.%s refers to #%s, which is not described", d.Name, f.Name, f.Ref)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("#%s has %v, is decoded as %v", d.Name, got, want)
		}
	}
	walk(reflect.TypeFor[v1alpha1.Policy]())
	if len(seen) < 30 {
		t.Errorf("only %d types were seen", len(seen))
	}
	i := slices.IndexFunc(byName["Policy"].Fields, func(f Field) bool { return f.Name == "services" })
	if f := byName["Policy"].Fields[i]; f.Ref != "Service" || f.Maps != 2 || f.Type != "[string]: [string]: #Service" {
		t.Errorf("%+v", f)
	}
	i = slices.IndexFunc(byName["Retry"].Fields, func(f Field) bool { return f.Name == "retries" })
	if f := byName["Retry"].Fields[i]; f.Type != "int & >=0 & <=10" {
		t.Errorf("%+v", f)
	}
}
