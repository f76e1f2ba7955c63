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

// TestTemplateWithStockCUE does what the template's pull-request workflow does, on a copy, with the network cut and
// nothing cached, and sees the same commands fail on a mistake.
func TestTemplateWithStockCUE(t *testing.T) {
	exe := requireCUE(t)
	files := template(t)
	if workflow := string(files[".github/workflows/policy.yaml"]); !strings.Contains(workflow, "run: cue vet -c ./...\n") ||
		!strings.Contains(workflow, "run: cue vet -c -t env=staging ./...\n") {
		t.Error("the workflow does not run the commands that this test runs")
	}
	dir := t.TempDir()
	writeFiles(t, dir, files)
	for _, args := range [][]string{nil, {"-t", "env=staging"}} {
		if out, ok := vet(t, exe, dir, args...); !ok || out != "" {
			t.Errorf("cue vet -c ./... %v:\n%s", args, out)
		}
	}
	api := string(files["services/shop/api.cue"])
	writeFiles(t, dir, map[string][]byte{"services/shop/api.cue": []byte(strings.Replace(api, "weight: 90", "weight: 80", 1))})
	if out, ok := vet(t, exe, dir); ok || !strings.Contains(out, "weights sum to 90, not 100") {
		t.Errorf("a weight sum of 90 passes: %s", out)
	}
}

// TestTemplateLoads: Heddle finds nothing in the template either, and reads what it says.
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
		want := []string{"api", "api-v2", "web"}
		if d := cmp.Diff(want, slices.Sorted(maps.Keys(doc.Policy.Services["shop"]))); d != "" {
			t.Errorf("env %q: services (-want +got):\n%s", env, d)
		}
		if pos := doc.Pos("services", "shop", "api", "httpRoutes", "items", "backends", "0", "weight").String(); !strings.HasPrefix(pos, "services/shop/api.cue:") {
			t.Errorf("env %q: the weight stands at %s", env, pos)
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
