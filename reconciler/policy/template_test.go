package policy

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// template reads policy-repo-template.
func template(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	root := os.DirFS("../../policy-repo-template")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[name], err = fs.ReadFile(root, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestTemplateVendorsTheSchema: the copy that newcomers get is the schema that this source tree embeds.
func TestTemplateVendorsTheSchema(t *testing.T) {
	got := maps.Clone(template(t))
	maps.DeleteFunc(got, func(name string, _ []byte) bool { return !strings.HasPrefix(name, v1alpha1.VendorDir+"/") })
	if !maps.EqualFunc(got, v1alpha1.Vendored(), bytes.Equal) {
		t.Errorf("policy-repo-template holds another schema than schema/v1alpha1 (%s, %s): run `go run ./schema/v1alpha1/regen`",
			v1alpha1.Version, v1alpha1.Digest()[:12])
	}
}

// TestTemplateLoads: Heddle finds nothing in the template, and reads what it says, each value at its author's line. What the
// stock CLI says of it, and what the workflows do, is tested in ci.
func TestTemplateLoads(t *testing.T) {
	e := New(Options{})
	for env, timeout := range map[string]v1alpha1.Duration{"": "15s", "staging": "30s"} {
		doc, findings, err := e.LoadFiles(t.Context(), template(t), env)
		if err != nil || len(findings) > 0 {
			t.Fatalf("env %q: %v\n%v", env, err, findings)
		}
		if got := doc.Policy.Mesh.Defaults.Timeout; got != timeout {
			t.Errorf("env %q: default timeout %s, want %s", env, got, timeout)
		}
		names := []string{}
		for namespace, services := range doc.Policy.Services {
			for name := range services {
				names = append(names, namespace+"/"+name)
			}
		}
		slices.Sort(names)
		want := []string{"payments/gateway", "payments/ledger", "shop/api", "shop/api-v2", "shop/web"}
		if d := cmp.Diff(want, names); d != "" {
			t.Errorf("env %q: services (-want +got):\n%s", env, d)
		}
		if len(doc.Policy.Invariants) < 3 || len(doc.Policy.Tests) < 12 || len(doc.Policy.Workloads["payments"]) != 1 {
			t.Errorf("env %q: %d invariants, %d expectations, %d workloads", env,
				len(doc.Policy.Invariants), len(doc.Policy.Tests), len(doc.Policy.Workloads["payments"]))
		}
		for _, at := range []struct{ file, path string }{
			{"services/shop/api.cue", "services shop api httpRoutes items backends 0 weight"},
			{"services/payments/gateway.cue", "services payments gateway deny batch from 0 identity"},
			{"external/payments/ledger.cue", "workloads payments ledger-1 address"},
			{"mesh.cue", "mesh mandates maxTimeout"},
		} {
			if pos := doc.Pos(strings.Fields(at.path)...); pos.File != at.file {
				t.Errorf("env %q: %s stands at %s, want %s", env, at.path, pos, at.file)
			}
		}
		if _, _, findings := compile.Compile(doc, compile.Options{}); len(findings) > 0 {
			t.Errorf("env %q: %v", env, findings)
		}
	}
	_, findings, err := e.LoadFiles(t.Context(), template(t), "nope")
	if err != nil || len(findings) != 1 || findings[0].Pos.File != "mesh.cue" {
		t.Errorf("an environment that mesh.cue does not know: %v %v", findings, err)
	}
}
