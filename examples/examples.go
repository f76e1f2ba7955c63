// Package examples carries the example meshes inside the heddle binary, so that `heddle up` works in any directory.
// An example is a directory with policy/ (the policy repository's files, but for the vendored schema, which heddle
// writes) and processes.json (what to run; executables are never named by policy).
package examples

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed shop/policy shop/processes.json
var embedded embed.FS

// Default is the example that `heddle up` runs when it is told nothing.
const Default = "shop"

// Open finds an example: a directory on disk that holds processes.json, else an embedded one by its name, "shop" or
// "examples/shop". dir is the directory on disk, or empty where the example is the embedded one.
func Open(name string) (example fs.FS, dir string, err error) {
	if _, err := os.Stat(filepath.Join(name, "processes.json")); err == nil {
		abs, err := filepath.Abs(name)
		if err != nil {
			return nil, "", fmt.Errorf("example %s: %w", name, err)
		}
		return os.DirFS(abs), abs, nil
	}
	short := strings.TrimPrefix(strings.Trim(filepath.ToSlash(name), "/"), "examples/")
	sub, err := fs.Sub(embedded, short)
	if err == nil {
		_, err = fs.Stat(sub, "processes.json")
	}
	if err != nil {
		return nil, "", fmt.Errorf("no example %q: %w", name, ErrUnknown)
	}
	return sub, "", nil
}

// ErrUnknown means that there is no such example.
var ErrUnknown = errors.New("it is neither a directory with a processes.json nor one of: " + strings.Join(Names(), ", "))

// Names are the embedded examples, sorted.
func Names() []string {
	entries, err := embedded.ReadDir(".")
	if err != nil {
		return nil // the root of an embed.FS can always be read
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
