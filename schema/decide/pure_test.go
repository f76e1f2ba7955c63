package decide

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPure: decisions take times and addresses as values, and never ask the world for either.
func TestPure(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		looked++
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok && pkg.Name == "time" && s.Sel.Name != "Time" && s.Sel.Name != "Duration" {
					t.Errorf("%s uses time.%s", name, s.Sel.Name)
				}
			}
			return true
		})
		for _, i := range file.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			if slices.Contains([]string{"net", "os", "context", "io", "log"}, path) || strings.HasPrefix(path, "net/") && path != "net/netip" {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
	if looked == 0 {
		t.Error("no source was looked at")
	}
}
