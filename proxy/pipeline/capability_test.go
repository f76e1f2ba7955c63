package pipeline_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// proofs has, for every capability that a sidecar declares, the test of package proxy that sees it enforced on the wire.
var proofs = map[mesh.Capability]string{
	mesh.CapAuthorize:        "TestInboundAnswers",
	mesh.CapAuthorizeL7:      "TestInboundAnswers",
	mesh.CapAuthorizePattern: "TestRules",
	mesh.CapAuthorizeNetwork: "TestRules",
	mesh.CapAuthorizeRequest: "TestRules",
	mesh.CapAuthorizeUntil:   "TestTunnelEndsWithItsRule",
	mesh.CapAudit:            "TestObserved",
	mesh.CapCluster:          "TestRules",
	mesh.CapNetworks:         "TestRules", // which cluster modes go by
	mesh.CapNonCanonical:     "TestRules",
	mesh.CapPermissive:       "TestExposed",
	mesh.CapDetect:           "TestServerFirst",
	mesh.CapHTTP1:            "TestTransparent",
	mesh.CapTCP:              "TestHalfClose",
	mesh.CapRoute:            "TestDestination",
	mesh.CapTimeout:          "TestRouteTimeout",
}

// TestCapabilities holds schema, table and sidecar together: what mesh.Enforced lists, which hello declares, is what a
// sidecar accepts in an object, and has a test; what it does not list is refused, wherever an object says that it needs
// it.
func TestCapabilities(t *testing.T) {
	tests := map[string]bool{}
	files, err := filepath.Glob("../*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests of package proxy: %v", err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				tests[f.Name.Name] = true
			}
		}
	}
	for _, c := range mesh.Capabilities {
		enforced := slices.Contains(mesh.Enforced, c)
		if enforced && !tests[proofs[c]] {
			t.Errorf("%s is declared, and no test of package proxy sees it enforced (%q)", c, proofs[c])
		}
		for where, change := range map[string]func(*pipeline.Config){
			"settings": func(p *pipeline.Config) { p.Settings.Needs = []mesh.Capability{c} },
			"inbound":  func(p *pipeline.Config) { p.Inbound[0].Needs = []mesh.Capability{c} },
			"outbound": func(p *pipeline.Config) { p.Outbound[0].Needs = []mesh.Capability{c} },
		} {
			p := config()
			change(&p)
			_, err := pipeline.Build(p, newWorld().deps)
			if enforced != (err == nil) || err != nil && !strings.Contains(err.Error(), `"`+string(c)+`"`) {
				t.Errorf("%s that needs %s: %v", where, c, err)
			}
		}
	}
}
