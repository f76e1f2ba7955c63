// Package v1alpha1 is Heddle's policy language. types.cue is its single source; the Go types are generated from it by
// `make generate`. The CUE files are embedded, so that every binary validates against its own copy, whatever copy a
// repository carries.
package v1alpha1

import (
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Document is an evaluated policy repository: plain data, with the author's position of every field. It is what
// `reconciler/policy` makes and `reconciler/compile` reads. It is never written again.
type Document struct {
	Policy Policy
	// Positions maps a field's path to where the author wrote it. Paths are dot-separated field names, with list
	// indices as numbers: "services.shop.web.httpRoutes.cart.backends.0.weight". Names that are not identifiers stand as
	// they are, unquoted. Documents made by hand have all of them here. Read it by [Document.At].
	Positions map[string]diag.Pos
	// Places are the positions of a document that was read from files: of what belongs to a namespace, under its name, in
	// the order of the directories that write it; of all else, under "".
	Places map[string][]*Places
	// Unread names what has findings and could therefore not be read: a service, "namespace/name", or a whole namespace
	// where not even the names of its services are certain. A reference to one of them cannot be judged. A document with
	// anything unread serves to look for more findings and is never published.
	Unread []string
	// Delegated are the directories of this repository that mesh.sources gives to somebody else, by name, whether they hold
	// files or not. A commit never authorises itself: the loop compares them with those of the applied release before it
	// follows a commit that widens them.
	Delegated []Delegation
}

// Delegation is a directory of the repository that somebody else writes, fenced to namespaces and kinds.
type Delegation struct {
	Name      string // in mesh.sources
	Directory string // slash-separated, from the root of the repository
	// Namespaces are names, or beginnings of names followed by "*"; sorted.
	Namespaces []string
	// Kinds are those of [SourceKinds] that it may write; sorted.
	Kinds []string
}

// SourceKinds are the kinds of mesh.sources, all of which a source may write that names none. "defaults" is what stands
// under namespaces.
var SourceKinds = []string{"defaults", "egress", "groups", "services", "workloads"}

// Uses reports whether anything of the document was written below a directory.
func (d *Document) Uses(directory string) bool {
	below := func(file string) bool { return strings.HasPrefix(file, directory+"/") }
	for _, p := range d.Positions {
		if below(p.File) {
			return true
		}
	}
	for _, places := range d.Places {
		if slices.ContainsFunc(places, func(p *Places) bool { return p.Len() > 0 && slices.ContainsFunc(p.files, below) }) {
			return true
		}
	}
	return false
}

// Writes reports whether a namespace is among those of a delegation.
func (d Delegation) Writes(namespace string) bool { return Covers(d.Namespaces, []string{namespace}) }

// Covers reports whether each of the names is among the wider ones. A name that ends in "*" stands for all that begin so:
// "pay-*" covers "pay-eu" and "pay-e*".
func Covers(wider, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool {
		return !slices.ContainsFunc(wider, func(w string) bool {
			begin, open := strings.CutSuffix(w, "*")
			return w == n || open && strings.HasPrefix(n, begin)
		})
	})
}

// At is the position of a path, if the author wrote it.
func (d *Document) At(path string) (diag.Pos, bool) {
	if p, ok := d.Positions[path]; ok {
		return p, true
	}
	for _, places := range d.Places[namespaceOf(path)] {
		if p, ok := places.At(path); ok {
			return p, true
		}
	}
	return diag.Pos{}, false
}

// namespaceOf is the namespace that a path belongs to, "" for what is the mesh's.
func namespaceOf(path string) string {
	root, rest, _ := strings.Cut(path, ".")
	switch root {
	case "namespaces", "services", "workloads", "groups", "egress":
		ns, _, _ := strings.Cut(rest, ".")
		return ns
	}
	return ""
}

// Pos is the position of a path or, where the author did not write it, of its nearest ancestor that has one.
func (d *Document) Pos(path ...string) diag.Pos {
	whole := strings.Join(path, ".")
	for n := len(path); n > 0; n-- {
		if p, ok := d.At(whole); ok {
			return p
		}
		whole = whole[:max(len(whole)-len(path[n-1])-1, 0)]
	}
	return diag.Pos{}
}
