package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInStep: the Go types are what the generator makes of types.cue.
func TestInStep(t *testing.T) {
	t.Chdir("../../..")
	find := exec.Command("go", "tool", "-n", "cue")
	find.Dir = "tools"
	if out, err := find.CombinedOutput(); err != nil && os.Getenv("HEDDLE_REQUIRE_CUE") == "" {
		t.Skipf("SKIPPED: the cue CLI could not be built, so nothing says that the Go types are in step: %v\n%s", err, out)
	}
	want, err := goTypes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(schema + "/cue_types_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("cue_types_gen.go is not what types.cue gives: run `go run ./schema/v1alpha1/regen` (-want +got):\n%s", d)
	}
}
