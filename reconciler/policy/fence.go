package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// fence says what the files of one unit may write: mesh.cue the mesh, services/<namespace>/ what its own namespace
// has, tests/ expectations, files beside the namespaces nothing but hidden fields and definitions. Which top-level
// fields these are stands in the unit; see layout.go.
//
// It holds twice. From each unit only the fenced part is ever taken, whatever CUE unified into the rest: that is what
// keeps tenants apart. And everything outside the fence is a finding, so that no line silently does nothing.
type fence struct{ unit unit }

// The top-level fields that hold namespaces, and those that only mesh.cue writes.
var (
	namespaced = []string{"namespaces", "services", "workloads", "groups", "egress"}
	meshOnly   = []string{"mesh", "invariants"}
)

// owner names the place where a path belongs.
func owner(p []string) string {
	ns := "<namespace>"
	if len(p) > 1 {
		ns = p[1]
	}
	switch p[0] {
	case "mesh", "invariants":
		return meshFile
	case "tests":
		return "tests/"
	case "workloads", "groups":
		return "external/" + ns + "/"
	case "egress":
		return "egress/" + ns + "/"
	}
	return "services/" + ns + "/"
}

func (f fence) finding(p []string, pos diag.Pos) diag.Finding {
	what := strings.Join(p[:min(len(p), 2)], ".")
	out := diag.Finding{ID: diag.OutsideFence, Path: strings.Join(p, "."), Pos: pos,
		Message: fmt.Sprintf("%s may not write %s: it belongs to %s", name(f.unit), what, owner(p)),
		Hint:    "move it to " + owner(p)}
	if !slices.Contains(f.unit.Roots, p[0]) && slices.Contains(kindRoots(f.unit.Dir), p[0]) {
		out.Message = fmt.Sprintf("%s may not write %s: mesh.sources.%s does not give it the kind %q", name(f.unit), what, f.unit.Source, kindOf(p[0]))
		out.Hint = fmt.Sprintf("remove it, or let the owners of mesh.cue add %q to the kinds of that source", kindOf(p[0]))
	}
	return out
}

// field judges a field with a plain label.
func (f fence) field(p []string, pos diag.Pos) (diag.Finding, bool) {
	switch {
	case policyShape.at(p[0]) == nil:
		return diag.Finding{}, false // an unknown field is another finding
	case !slices.Contains(f.unit.Roots, p[0]):
		// The namespace, where there is one to be had, says best what is wrong.
		if deeper := len(p) == 2 && slices.Contains(namespaced, p[0]) && f.unit.Namespace != ""; deeper || len(p) == 1 && (f.unit.Namespace == "" || !slices.Contains(namespaced, p[0])) {
			return f.finding(p, pos), true
		}
	case len(p) == 2 && slices.Contains(namespaced, p[0]) && p[1] != f.unit.Namespace:
		return f.finding(p, pos), true
	}
	return diag.Finding{}, false
}

// other judges what has no plain label, where the label decides whose it is.
func (f fence) other(p []string, n ast.Node) (diag.Finding, bool) {
	fd, ok := n.(*ast.Field)
	if !ok {
		return diag.Finding{}, false // references and calls: judged by what they evaluate to
	}
	if len(p) == 0 || len(p) == 1 && slices.Contains(namespaced, p[0]) {
		return diag.Finding{ID: diag.OutsideFence, Path: strings.Join(p, "."), Pos: position(fd.Label.Pos()),
			Message: "here the label decides whose field it is, so it is written out: no pattern, no computed label",
			Hint:    fmt.Sprintf("write the name, as in `services: %s: …`", cmp.Or(f.unit.Namespace, "<namespace>"))}, true
	}
	return diag.Finding{}, false
}

// value judges what the unit's instance evaluates to, and finds what came in by references and comprehensions. seen
// holds the paths that already have a finding. What only mesh.cue writes is judged by [meshHash].
func (f fence) value(v cue.Value, seen map[string]bool) diag.List {
	var findings diag.List
	report := func(p []string, v cue.Value) {
		if dotted := strings.Join(p, "."); !seen[dotted] && !seen[p[0]] {
			pos := writtenAt(v)
			if pos.IsZero() || path.Dir(pos.File) != cmp.Or(f.unit.Dir, ".") {
				pos = diag.Pos{File: f.unit.Files[0].Name, Line: 1, Column: 1}
			}
			findings.Add(f.finding(p, pos))
		}
	}
	for _, root := range policyShape.names() {
		if slices.Contains(meshOnly, root) {
			continue
		}
		allowed := slices.Contains(f.unit.Roots, root)
		if allowed && !slices.Contains(namespaced, root) {
			continue
		}
		it, err := lookup(v, root).Fields()
		if err != nil {
			continue
		}
		for it.Next() {
			if name := it.Selector().Unquoted(); !allowed || name != f.unit.Namespace {
				report([]string{root, name}, it.Value())
			}
		}
	}
	return findings
}

// meshHash is a hash over what only mesh.cue writes, as an instance sees it. "" stands for what cannot be read.
func meshHash(v cue.Value) string {
	h := sha256.New()
	for _, root := range meshOnly {
		w := lookup(v, root)
		if !w.Exists() {
			fmt.Fprintf(h, "no %s\n", root)
			continue
		}
		b, err := w.MarshalJSON()
		if err != nil {
			return ""
		}
		fmt.Fprintf(h, "%s %d %s\n", root, len(b), b)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
