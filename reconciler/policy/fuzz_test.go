package policy

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// FuzzChecks feeds one file of any name through everything that looks at syntax before CUE evaluates: no text makes it
// panic, and whatever it finds is one bounded line at a place in that file.
func FuzzChecks(f *testing.F) {
	archives, err := filepath.Glob("testdata/rules/*.txtar")
	if err != nil || len(archives) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			if strings.HasSuffix(file.Name, ".cue") {
				f.Add(file.Name, file.Data)
			}
		}
	}
	for _, text := range hostile {
		if len(text) < 4096 {
			f.Add("services/evil/web.cue", []byte(text))
		}
	}
	f.Add("mesh.cue", []byte(baseMesh))
	f.Add("services/a/b.cue", []byte("@if(x)\npackage policy\nimport \"a:b\"\nX=\"a\": Y={_#z: 1, for k, v in X {(k): v}, [...]}\nlet L = [1, ...]\n"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if name == "" || !utf8.ValidString(name) || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || len(data) > 1<<16 {
			t.Skip() // the source gives clean paths only
		}
		given := []v1alpha1.Delegation{{Name: "pay", Directory: "teams/pay", Namespaces: []string{"p*"}, Kinds: []string{"services"}}}
		tree, findings := layout([]blob{{name: name}}, given, true)
		if len(tree.mesh) > 0 {
			tree.units = append(tree.units, directory{unit{Roots: meshOnly}, tree.mesh})
		}
		for _, d := range tree.units {
			u := d.unit
			u.Files = []file{{name, data}}
			req := &request{Language: v1alpha1.LowestLanguage}
			syntax, errs := parse(req, u.Files[0])
			findings = append(findings, errs...)
			if (syntax == nil) != (len(errs) > 0) {
				t.Fatalf("syntax %v with findings %v", syntax, errs)
			}
			if syntax == nil {
				continue
			}
			findings = append(findings, checkNumbers(syntax)...)
			findings = append(findings, checkHead(syntax)...)
			at := newSites()
			found, _ := checkFields(u, syntax, at)
			findings = append(findings, found...)
			for path, pos := range at.first {
				if pos.File != name || pos.Line < 1 || pos.Column < 1 {
					t.Errorf("%q stands at %v", path, pos)
				}
			}
			inject(syntax, "staging")
		}
		for _, f := range findings {
			if f.ID == diag.NoPolicy {
				continue
			}
			if f.Pos.File != name {
				t.Errorf("not a place in %q: %v", name, f)
			}
			if strings.ContainsAny(f.Message, "\r\n") && !strings.ContainsAny(name, "\r\n") {
				t.Errorf("more than one line: %q", f.Message)
			}
			if f.ID == "" || f.Message == "" {
				t.Errorf("empty: %+v", f)
			}
		}
	})
}

// FuzzAnswer feeds what a child may say, were it taken over, to its parent: a frame that is none is an error, positions
// and values are read strictly, and nothing makes the parent panic or allocate more than the frame.
func FuzzAnswer(f *testing.F) {
	frame := func(r result) []byte {
		var b bytes.Buffer
		if err := writeFrame(&b, r); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	at := map[string]diag.Pos{"services.a.b": {File: "services/a/b.cue", Line: 3, Column: 1}, "services.a.c.ports": {File: "services/a/c.cue", Line: 1, Column: 9}}
	r := result{Dir: "services/a", Mesh: "00", Values: map[string]json.RawMessage{"services": json.RawMessage(`{"b":{"ports":{"http":{"port":80}}}}`)}}
	r.setPlaces(at)
	f.Add(frame(r))
	f.Add(frame(result{Dir: "services/a", Stopped: "cpu"}))
	f.Add(frame(result{Findings: diag.List{{ID: diag.Syntax, Message: "x", Pos: diag.Pos{File: "a", Line: -1}}}, Broken: []string{"b"}}))
	f.Add(frame(result{Places: "0 1 1 services\n9 9 9 x\n-1 0 0 y\n", PlaceFiles: []string{"a"}}))
	f.Add(frame(result{Values: map[string]json.RawMessage{"mesh": json.RawMessage(`{"trustDomain":1}`), "x": json.RawMessage(`null`)}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r result
		const limit = 1 << 20
		n, err := readFrame(bytes.NewReader(data), limit, &r)
		if err != nil || n > limit {
			return
		}
		p, err := decode(r)
		if err != nil {
			return
		}
		doc := v1alpha1.Document{Places: map[string][]*v1alpha1.Places{"a": {p.places}, "": {p.places}}}
		doc.Pos("services", "a", "b", "ports")
		doc.At("mesh")
	})
}
