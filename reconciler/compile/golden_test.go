package compile

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden compiles the policy of each archive and compares what comes out: the mesh, its origins, the findings.
func TestGolden(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, file := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var policy, want []txtar.File
			files := map[string]string{}
			for _, f := range ar.Files {
				// "now" and "version" are what is asked for; "enforced" is what a sidecar does, whatever ours does by now.
				if strings.HasSuffix(f.Name, ".cue") || f.Name == "now" || f.Name == "version" || f.Name == "enforced" {
					policy = append(policy, f)
					files[f.Name] = string(f.Data)
				} else {
					want = append(want, f)
				}
			}
			got := golden(t, files)
			if *update {
				ar.Files = append(policy, got...)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(txtar.Format(&txtar.Archive{Files: want})), string(txtar.Format(&txtar.Archive{Files: got}))); d != "" {
				t.Errorf("run with -update if you can explain it (-want +got):\n%s", d)
			}
		})
	}
}

// TestUnread: what refers to a namespace that could not be read is not judged, the rest is, and no mesh comes of it.
func TestUnread(t *testing.T) {
	doc := parse(t, map[string]string{"mesh.cue": `
mesh: {trustDomain: "corp.example", mandates: {mtls: "strict", exempt: ["broken/x", "gone/x"]}}
services: shop: web: {
	ports: http: port: 80
	allow: a: from: [{service: "broken/x"}]
	allow: b: from: [{service: "gone/x"}]
	httpRoutes: r: backends: [{service: "broken/x", port: "p"}]
}
workloads: broken: w: service: "x"
`})
	doc.Unread = []string{"broken"}
	m, origins, findings := Compile(doc, Options{})
	var got []string
	for _, f := range findings {
		got = append(got, f.Path+" "+f.ID)
	}
	want := []string{"mesh.mandates.exempt.1 HDL0301", "services.shop.web.allow.b.from.0.service HDL0301"}
	if d := cmp.Diff(want, got); d != "" || m != nil || origins != nil {
		t.Errorf("a mesh: %t (-want +got):\n%s", m != nil, d)
	}

	doc = parse(t, map[string]string{"mesh.cue": `services: shop: web: ports: http: port: 80`})
	doc.Unread = []string{"broken"}
	if m, _, findings := Compile(doc, Options{}); m != nil || len(findings) > 0 {
		t.Errorf("mesh.cue was not read, and nothing else is wrong: %v", findings)
	}
}

func golden(t *testing.T, files map[string]string) (out []txtar.File) {
	opts := Options{ProxyVersion: strings.TrimSpace(files["version"])}
	if at := strings.TrimSpace(files["now"]); at != "" {
		var err error
		if opts.Now, err = time.Parse(time.RFC3339, at); err != nil {
			t.Fatal(err)
		}
	}
	enforced, old := files["enforced"]
	delete(files, "version")
	delete(files, "now")
	delete(files, "enforced")
	m, origins, findings := Compile(parse(t, files), opts)
	if old {
		var caps []mesh.Capability
		for _, c := range strings.Fields(enforced) {
			caps = append(caps, mesh.Capability(c))
		}
		m, origins, findings = newCompiler(parse(t, files), opts, gateOf("0.1.0", caps)).run()
	}
	if len(findings) > 0 {
		out = append(out, txtar.File{Name: "findings", Data: []byte(findings.Error() + "\n")})
	}
	if len(findings.Errors()) > 0 {
		if m != nil || origins != nil {
			t.Error("a mesh beside findings that reject it")
		}
		return out
	}
	for _, c := range m.Chunks() {
		var b bytes.Buffer
		if err := json.Indent(&b, mesh.Canonical(c), "", "  "); err != nil {
			t.Fatal(err)
		}
		b.WriteByte('\n')
		out = append(out, txtar.File{Name: "chunk/" + c.Namespace, Data: b.Bytes()})
	}
	var b bytes.Buffer
	for _, id := range slices.Sorted(maps.Keys(origins)) {
		fmt.Fprintf(&b, "%s %s\n", id, origins[id])
	}
	return append(out, txtar.File{Name: "origins", Data: b.Bytes()})
}
