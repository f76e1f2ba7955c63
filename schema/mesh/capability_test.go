package mesh

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// TestCapabilities wants every capability that the source names in the list of all, and what is enforced to be among
// them.
func TestCapabilities(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "capability.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var named []Capability
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Capability" {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			named = append(named, Capability(value))
		}
		return true
	})
	if !slices.Equal(named, Capabilities) || len(named) < 50 {
		t.Errorf("Capabilities are not what is named above it:\n%v\n%v", named, Capabilities)
	}
	for _, c := range Enforced {
		if !slices.Contains(Capabilities, c) {
			t.Errorf("%s is enforced, and no capability", c)
		}
	}
	for _, v := range []string{Version, "any"} {
		if caps, ok := EnforcedBy(v); !ok || !slices.IsSorted(caps) || len(slices.Compact(caps)) != len(caps) {
			t.Errorf("EnforcedBy(%q) = %v, %v", v, caps, ok)
		}
	}
	if _, ok := EnforcedBy("0.0.0"); ok {
		t.Error("an unknown version enforces something")
	}
}
