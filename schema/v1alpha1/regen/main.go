// Command regen writes what follows from the schema's CUE files: the Go types beside them, a JSON Schema of them for
// editors, the definitions of what becomes Kubernetes objects, and the copy of the schema in policy-repo-template. Run it
// from the top of the source tree: go run ./schema/v1alpha1/regen
//
// The Go types are made by the stock CLI out of types.cue alone: rules.cue holds what has no form in Go. The JSON Schema
// and the definitions are made from the same file, and from those definitions of rules.cue that are one pattern.
package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

const schema = "schema/v1alpha1"

func main() {
	files, err := generate()
	if err == nil {
		err = write(files)
	}
	if err == nil {
		err = vendor("policy-repo-template")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "regen:", err)
		os.Exit(1)
	}
}

// generate makes every file that is generated beside the schema, by its path under it.
func generate() (map[string][]byte, error) {
	cue, err := stockCLI()
	if err != nil {
		return nil, err
	}
	types, err := goTypes(cue)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{"cue_types_gen.go": types}
	sources, err := plain()
	if err != nil {
		return nil, err
	}
	root, err := jsonSchema(cue, sources)
	if err != nil {
		return nil, err
	}
	if out["policy.schema.json"], err = indented(root); err != nil {
		return nil, err
	}
	definitions, err := definitions(cue, root)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, definitions)
	return out, nil
}

func write(files map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := filepath.Join(schema, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stockCLI builds the cue CLI that tools/ pins, and returns its path.
func stockCLI() (string, error) {
	find := exec.Command("go", "tool", "-n", "cue")
	find.Dir = "tools"
	find.Stderr = os.Stderr
	exe, err := find.Output()
	if err != nil {
		return "", fmt.Errorf("building the cue CLI in tools/: %w", err)
	}
	return strings.TrimSpace(string(exe)), nil
}

// run runs the stock CLI in a module that holds only the given files, and returns what it prints. What it writes there
// is read back into files.
func run(cue string, files map[string][]byte, args ...string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "heddle-regen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	module, err := os.ReadFile(filepath.Join(schema, "cue.mod", "module.cue"))
	if err != nil {
		return nil, fmt.Errorf("reading the schema (regen runs from the top of the source tree): %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "cue.mod"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "cue.mod", "module.cue"), module, 0o644); err != nil {
		return nil, err
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(cue, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CUE_REGISTRY=none")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("cue %s: %w\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	return stdout.Bytes(), nil
}

func goTypes(cue string) ([]byte, error) {
	types, err := os.ReadFile(filepath.Join(schema, "types.cue"))
	if err != nil {
		return nil, fmt.Errorf("reading the schema (regen runs from the top of the source tree): %w", err)
	}
	files := map[string][]byte{"types.cue": types}
	if _, err := run(cue, files, "exp", "gengotypes", "."); err != nil {
		return nil, err
	}
	return files["cue_types_gen.go"], nil
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
