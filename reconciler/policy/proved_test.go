package policy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/reconciler/reach"
)

// TestProved runs the archives of testdata/proved through all stages, up to what a repository says of itself: its
// expectations and invariants. The part `findings` is what comes of it, rewritten by -update.
func TestProved(t *testing.T) {
	archives, err := filepath.Glob("testdata/proved/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("no archives", err)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	e := New(Options{})
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string][]byte{}, ""
			for _, f := range a.Files {
				if f.Name == "findings" {
					want = string(f.Data)
				} else {
					files[f.Name] = f.Data
				}
			}
			doc, findings, err := e.LoadFiles(t.Context(), repository(files), "")
			if err != nil || len(findings) > 0 {
				t.Fatal(findings, err)
			}
			m, origins, findings := compile.Compile(doc, compile.Options{ProxyVersion: "any", Now: now})
			if m == nil {
				t.Fatal(findings)
			}
			_, failed := expect.Run(doc, m, origins, now)
			findings = append(append(findings, failed...), reach.Prove(t.Context(), m, origins, m.Invariants, now, 0)...).Sorted()
			got := findings.Error() + "\n"
			if *update {
				a.Files = append(slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "findings" }),
					txtar.File{Name: "findings", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got; -update rewrites it):\n%s", d)
			}
		})
	}
}
