package main

import (
	"embed"
	"io/fs"
	"strings"
)

// scaffold is the repository that `heddle policy init` writes: policy-repo-template but for the vendored schema, which
// is embedded already. A test keeps the two the same.
//
//go:embed all:scaffold
var scaffold embed.FS

// scaffolding is the files of a new policy repository by their slash-separated names.
func scaffolding() (map[string][]byte, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(scaffold, "scaffold", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[strings.TrimPrefix(name, "scaffold/")], err = scaffold.ReadFile(name)
		return err
	})
	return files, err
}
