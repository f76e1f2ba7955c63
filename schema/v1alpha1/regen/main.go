// Command regen writes what follows from the schema's CUE files: the Go types beside them, and the copy of the schema in
// policy-repo-template. Run it from the top of the source tree: go run ./schema/v1alpha1/regen
//
// The Go types are made by the stock CLI out of types.cue alone: rules.cue holds what has no form in Go.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

const schema = "schema/v1alpha1"

func main() {
	types, err := goTypes()
	if err == nil {
		err = os.WriteFile(filepath.Join(schema, "cue_types_gen.go"), types, 0o644)
	}
	if err == nil {
		err = vendor("policy-repo-template")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "regen:", err)
		os.Exit(1)
	}
}

// goTypes runs the generator on a copy that holds only types.cue.
func goTypes() ([]byte, error) {
	find := exec.Command("go", "tool", "-n", "cue")
	find.Dir = "tools"
	find.Stderr = os.Stderr
	exe, err := find.Output()
	if err != nil {
		return nil, fmt.Errorf("building the cue CLI in tools/: %w", err)
	}
	dir, err := os.MkdirTemp("", "heddle-regen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "cue.mod"), 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"types.cue", "cue.mod/module.cue"} {
		b, err := os.ReadFile(filepath.Join(schema, name))
		if err != nil {
			return nil, fmt.Errorf("reading the schema (regen runs from the top of the source tree): %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	var said bytes.Buffer
	generate := exec.Command(strings.TrimSpace(string(exe)), "exp", "gengotypes", ".")
	generate.Dir = dir
	generate.Env = append(os.Environ(), "CUE_REGISTRY=none")
	generate.Stdout, generate.Stderr = &said, &said
	if err := generate.Run(); err != nil {
		return nil, fmt.Errorf("cue exp gengotypes: %w\n%s", err, &said)
	}
	return os.ReadFile(filepath.Join(dir, "cue_types_gen.go"))
}

// vendor replaces the copy of the schema in a policy repository.
func vendor(repo string) error {
	if err := os.RemoveAll(filepath.Join(repo, filepath.FromSlash(v1alpha1.VendorDir))); err != nil {
		return err
	}
	for name, b := range v1alpha1.Vendored() {
		p := filepath.Join(repo, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
