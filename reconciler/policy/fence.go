package policy

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// fence says what the files of one unit may write: mesh.cue the mesh, services/<namespace>/ its own namespace, files
// beside the namespaces nothing but hidden fields and definitions.
//
// It holds twice. From each unit only the fenced part is ever taken, whatever CUE unified into the rest: that is what
// keeps tenants apart. And everything outside the fence is a finding, so that no line silently does nothing.
type fence struct {
	unit  unit
	ns    string
	roots []string // top-level fields it may write
}

var namespaced = []string{"namespaces", "services", "workloads"}

func newFence(u unit) fence {
	f := fence{unit: u, ns: u.namespace()}
	switch {
	case u.Dir == "":
		f.roots = []string{"mesh"}
	case f.ns != "":
		f.roots = namespaced
	}
	return f
}

// owner names the place where a path belongs.
func owner(path []string) string {
	if path[0] == "mesh" {
		return "mesh.cue"
	}
	if len(path) > 1 {
		return "services/" + path[1] + "/"
	}
	return "services/<namespace>/"
}

func (f fence) finding(path []string, pos diag.Pos) diag.Finding {
	where := f.unit.Dir + "/"
	if f.unit.Dir == "" {
		where = "mesh.cue"
	}
	what := strings.Join(path[:min(len(path), 2)], ".")
	return diag.Finding{ID: diag.OutsideFence, Path: strings.Join(path, "."), Pos: pos,
		Message: fmt.Sprintf("%s may not write %s: it belongs to %s", where, what, owner(path)),
		Hint:    "move it to " + owner(path)}
}

// field judges a field with a plain label.
func (f fence) field(path []string, pos diag.Pos) (diag.Finding, bool) {
	known := slices.Contains(namespaced, path[0]) || path[0] == "mesh"
	switch {
	case !known:
		return diag.Finding{}, false // an unknown field is another finding
	case len(path) == 1 && path[0] == "mesh" && !slices.Contains(f.roots, "mesh"):
		return f.finding(path, pos), true
	case len(path) == 1 && path[0] != "mesh" && f.ns == "":
		return f.finding(path, pos), true
	case len(path) == 2 && slices.Contains(namespaced, path[0]) && f.ns != "" && path[1] != f.ns:
		return f.finding(path, pos), true
	}
	return diag.Finding{}, false
}

// other judges what has no plain label, where the label decides whose it is.
func (f fence) other(path []string, n ast.Node) (diag.Finding, bool) {
	fd, ok := n.(*ast.Field)
	if !ok {
		return diag.Finding{}, false // references and calls: judged by what they evaluate to
	}
	if len(path) == 0 || len(path) == 1 && slices.Contains(namespaced, path[0]) {
		return diag.Finding{ID: diag.OutsideFence, Path: strings.Join(path, "."), Pos: position(fd.Label.Pos()),
			Message: "here the label decides whose field it is, so it is written out: no pattern, no computed label",
			Hint:    fmt.Sprintf("write the name, as in `services: %s: …`", cmp.Or(f.ns, "<namespace>"))}, true
	}
	return diag.Finding{}, false
}

// value judges what the unit's instance evaluates to, and finds what came in by references and comprehensions. seen
// holds the paths that already have a finding.
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
	for _, root := range namespaced {
		it, err := lookup(v, root).Fields()
		if err != nil {
			continue
		}
		for it.Next() {
			if name := it.Selector().Unquoted(); f.ns == "" || name != f.ns {
				report([]string{root, name}, it.Value())
			}
		}
	}
	return findings
}
