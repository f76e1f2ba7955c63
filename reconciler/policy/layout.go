package policy

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// This file says what the directories of a repository mean:
//
//	mesh.cue                     mesh, invariants
//	services/<namespace>/*.cue   all that the namespace has
//	external/<namespace>/*.cue   its workloads and groups
//	egress/<namespace>/*.cue     its egress
//	tests/*.cue                  tests
//
// A directory that mesh.sources gives to somebody else has services, external and egress of its own, for some namespaces
// and some kinds of what they have. Files beside the namespaces (services/*.cue) and at the top of such a directory write
// nothing; their hidden fields and definitions are seen by the files below, as CUE does it.

// blob is a file that is not read yet. Two blobs with one hash have one content.
type blob struct {
	name string
	hash string
	read func() ([]byte, error)
}

// directory is a unit whose files are not read yet.
type directory struct {
	unit  // without Files
	blobs []blob
}

// tree is a repository sorted by what its files are, before any of them is read.
type tree struct {
	units  []directory // what is to be evaluated, ancestors first, in a fixed order; not mesh.cue
	mesh   []blob      // mesh.cue
	module []blob      // all of cue.mod that counts: module.cue and the vendored schema
	lost   []string    // namespaces that have files which are not evaluated
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// The directories that hold namespaces.
var branches = []string{"services", "external", "egress"}

// kindRoots are the top-level fields that a directory of its kind may write, before a source's own restriction.
func kindRoots(dir string) []string {
	base := path.Base(path.Dir(dir))
	switch {
	case dir == "":
		return meshOnly
	case dir == "tests":
		return []string{"tests"}
	case base == "services":
		return namespaced
	case base == "external":
		return []string{"workloads", "groups"}
	case base == "egress":
		return []string{"egress"}
	}
	return nil
}

// kindOf is what mesh.sources calls a top-level field.
func kindOf(root string) string {
	if root == "namespaces" {
		return "defaults"
	}
	return root
}

// hiddenDir reports whether CUE passes over a directory, as it does over .github and _build.
func hiddenDir(dir string) bool {
	for name := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(name, ".") {
			return true
		}
	}
	return false
}

// findMesh finds mesh.cue, which says what the other directories mean.
func findMesh(blobs []blob) []blob {
	for _, b := range blobs {
		if b.name == meshFile {
			return []blob{b}
		}
	}
	return nil
}

// layout sorts the files of a repository. Whatever looks like policy and would not be read is a finding: a file that
// silently does nothing is worse than one that is refused. delegated are the directories that belong to somebody else;
// known is false where mesh.cue could not be read, so that nobody knows whether there are more of them.
func layout(blobs []blob, delegated []v1alpha1.Delegation, known bool) (tree, diag.List) {
	t := tree{mesh: findMesh(blobs)}
	var findings diag.List
	dirs := map[string][]blob{}   // that are units
	beside := map[string][]blob{} // that units below see
	owners := map[string]*v1alpha1.Delegation{}
	for i, d := range delegated {
		owners[d.Directory] = &delegated[i]
	}
	refused := map[string]bool{}
	for _, b := range blobs {
		name := b.name
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		add := func(id, message, hint string) {
			findings.Add(diag.Finding{ID: id, Message: message, Hint: hint, Pos: diag.Pos{File: name}})
		}
		if dir == "cue.mod" || strings.HasPrefix(dir, "cue.mod/") {
			if name == moduleFile || dir == v1alpha1.VendorDir {
				t.module = append(t.module, b)
			}
			continue
		}
		if strings.Contains("/"+name, "/cue.mod/") {
			add(diag.NestedModule, "a second cue.mod: a policy repository is one CUE module",
				"remove "+name[:strings.Index("/"+name, "/cue.mod/")]+"cue.mod")
			continue
		}
		// root is the directory whose layout counts, "" for the repository's own; rest is what is below it.
		root, rest := rootOf(dir, owners)
		top, _, _ := strings.Cut(rest, "/")
		under := slices.Contains(branches, top) || rest == "tests" && root == "" || strings.HasPrefix(rest, "tests/") && root == ""
		switch ext := path.Ext(base); {
		case top == "overlays" && slices.Contains([]string{".cue", ".yaml", ".yml", ".json", ".toml"}, strings.ToLower(ext)):
			add(diag.UnreadFile, "this version of Heddle does not apply overlays: what this file says would not happen",
				"remove it until Heddle applies overlays, or upgrade Heddle")
			continue
		case ext == ".cue":
		case strings.EqualFold(ext, ".cue"):
			add(diag.FileName, "the extension of policy files is .cue, in lower case", "rename it to "+
				strings.TrimSuffix(base, ext)+".cue")
			continue
		case under && slices.Contains([]string{".yaml", ".yml", ".json", ".toml"}, ext):
			add(diag.FileName, "only .cue files are read as policy", "write it as CUE, or move it out of "+path.Join(root, top)+"/")
			continue
		default:
			continue // README, CODEOWNERS, workflows: free
		}
		if hiddenDir(dir) && !under {
			continue // .github and the like
		}
		if base[0] == '_' || base[0] == '.' {
			add(diag.FileName, "CUE passes over files whose names begin with _ or .", "rename it")
			continue
		}
		if strings.HasSuffix(base, "_tool.cue") || strings.HasSuffix(base, "_test.cue") {
			add(diag.FileName, "CUE passes over _tool.cue and _test.cue files, and a tool file could run commands",
				"rename it, or remove it")
			continue
		}
		depth := strings.Count(rest, "/")
		switch {
		case name == meshFile:
		case dir == "":
			add(diag.FileName, "at the top of a policy repository only mesh.cue is policy",
				"move its content into mesh.cue or into services/<namespace>/")
		case rest == "" && base == meshFile:
			add(diag.FileName, "a repository has one mesh.cue, at its top", fmt.Sprintf("rename it; %s/ writes namespaces, not the mesh", root))
		case rest == "", under && depth == 0 && top != "tests":
			beside[dir] = append(beside[dir], b)
		case under && top == "tests" && depth == 0:
			dirs[dir] = append(dirs[dir], b)
		case under && top == "tests":
			add(diag.FileName, "expectations stand directly in tests/, not deeper", "move it to tests/")
		case under && depth == 1:
			ns := path.Base(dir)
			if !dnsLabel.MatchString(ns) {
				add(diag.FileName, fmt.Sprintf("%q is not a namespace: want a DNS label (lower-case letters, digits, -)", ns),
					"rename the directory")
				continue
			}
			if owner := owners[root]; owner != nil && !owner.Writes(ns) {
				if !refused[dir] {
					refused[dir] = true
					findings.Add(diag.Finding{ID: diag.OutsideFence, Path: "mesh.sources." + owner.Name + ".namespaces", Pos: diag.Pos{File: name},
						Message: fmt.Sprintf("%s/ may not write namespace %s: mesh.sources.%s gives it %s", root, ns, owner.Name,
							strings.Join(owner.Namespaces, ", ")),
						Hint: "move it to a namespace of that source, or let the owners of mesh.cue add this one"})
					t.lost = append(t.lost, ns)
				}
				continue
			}
			dirs[dir] = append(dirs[dir], b)
		case under:
			add(diag.FileName, "policy files stand directly in "+path.Join(root, top)+"/<namespace>/, not deeper",
				"move it to "+path.Join(root, top, strings.Split(rest, "/")[1])+"/")
		case !known && root == "":
			if i := strings.LastIndexByte(dir, '/'); i > 0 && slices.Contains(branches, path.Base(dir[:i])) {
				t.lost = append(t.lost, path.Base(dir)) // perhaps somebody's, if mesh.cue could be read
			}
		case root != "" && top == "tests":
			add(diag.UnreadFile, "expectations stand in tests/ at the top of the repository; these are not read", "move it to tests/")
		default:
			hint := "policy is mesh.cue, tests/*.cue and services/, external/ and egress/<namespace>/*.cue; move or remove this file"
			if root == "" {
				hint += ", or name the directory in mesh.sources"
			}
			add(diag.UnreadFile, fmt.Sprintf("policy files in %s/ are not read", path.Join(root, top)), hint)
		}
	}

	// Ancestors come before what is below them, the repository's own directories before others'.
	order := []string{""}
	for _, d := range delegated {
		order = append(order, d.Directory)
	}
	for _, root := range order {
		owner := owners[root]
		t.aside(root, owner, beside)
		for _, branch := range branches {
			t.aside(path.Join(root, branch), owner, beside)
		}
		place := map[string]int{} // of a directory among its root's: services come first
		for dir := range dirs {
			if r, rest := rootOf(dir, owners); r == root {
				branch, _, _ := strings.Cut(rest, "/")
				place[dir] = (slices.Index(branches, branch) + len(branches) + 1) % (len(branches) + 1)
			}
		}
		for _, dir := range slices.SortedFunc(maps.Keys(place), func(a, b string) int {
			return cmp.Or(cmp.Compare(place[a], place[b]), strings.Compare(a, b))
		}) {
			u := unit{Dir: dir, Roots: kindRoots(dir), Above: above(dir, root, beside)}
			if dir != "tests" {
				u.Namespace = path.Base(dir)
			}
			if owner != nil {
				u.Source = owner.Name
				u.Roots = slices.DeleteFunc(slices.Clone(u.Roots), func(r string) bool { return !slices.Contains(owner.Kinds, kindOf(r)) })
			}
			t.units = append(t.units, directory{u, dirs[dir]})
		}
	}
	if len(t.mesh) == 0 {
		findings.Add(diag.Finding{ID: diag.NoPolicy, Message: "there is no mesh.cue: this is not a policy repository",
			Hint: "run `heddle policy init`, or check that the source's ref is the right one"})
	}
	return t, findings
}

// aside makes a unit of files that stand beside namespaces, if there are any.
func (t *tree) aside(dir string, owner *v1alpha1.Delegation, beside map[string][]blob) {
	if len(beside[dir]) == 0 {
		return
	}
	root := ""
	if owner != nil {
		root = owner.Directory
	}
	u := unit{Dir: dir, Above: above(dir, root, beside)}
	if owner != nil {
		u.Source = owner.Name
	}
	t.units = append(t.units, directory{u, beside[dir]})
}

// above lists the directories between mesh.cue and a unit that have files, outermost first.
func above(dir, root string, beside map[string][]blob) []string {
	out := []string{""}
	for up := path.Dir(dir); up != "." && len(up) >= len(root); up = path.Dir(up) {
		if len(beside[up]) > 0 {
			out = append(out, up)
		}
	}
	slices.Reverse(out[1:])
	return out
}

// rootOf finds the delegated directory that a directory is in, and the path below it.
func rootOf(dir string, owners map[string]*v1alpha1.Delegation) (root, rest string) {
	for up := dir; len(owners) > 0 && up != "." && up != ""; up = path.Dir(up) {
		if owners[up] != nil {
			return up, strings.TrimPrefix(strings.TrimPrefix(dir, up), "/")
		}
	}
	return "", dir
}

const moduleFile = "cue.mod/module.cue"

// delegations reads mesh.sources: the directories of this repository that somebody else writes, by name. Another
// repository's are not here: compile says what becomes of those.
func delegations(sources map[string]v1alpha1.Source, at func(path ...string) diag.Pos) ([]v1alpha1.Delegation, diag.List) {
	var out []v1alpha1.Delegation
	var findings diag.List
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		s := sources[name]
		if s.Directory == "" || s.Repository != "" {
			continue
		}
		bad := func(message, hint string) {
			findings.Add(diag.Finding{ID: diag.WrongValue, Path: "mesh.sources." + name + ".directory", Message: message, Hint: hint,
				Pos: at("mesh", "sources", name, "directory")})
		}
		top, _, _ := strings.Cut(s.Directory, "/")
		switch {
		case path.Clean("/"+s.Directory) != "/"+s.Directory || s.Directory == "." || strings.ContainsAny(s.Directory, "\\\x00"):
			bad(fmt.Sprintf("%s is not the path of a directory in this repository", clip(fmt.Sprintf("%q", s.Directory))),
				"write it from the top, without . and .. and without a slash at either end, as in \"teams/payments\"")
			continue
		case slices.Contains(append([]string{"tests", "overlays", "cue.mod"}, branches...), top):
			bad(fmt.Sprintf("%s/ means something else at the top of a repository", top), "put what somebody else writes under a directory of another name, as in \"teams/payments\"")
			continue
		case hiddenDir(s.Directory) || strings.HasPrefix(s.Directory, "_") || strings.Contains(s.Directory, "/_"):
			bad("CUE passes over directories whose names begin with . or _", "rename it")
			continue
		}
		if i := slices.IndexFunc(out, func(d v1alpha1.Delegation) bool {
			return d.Directory == s.Directory || strings.HasPrefix(d.Directory+"/", s.Directory+"/") || strings.HasPrefix(s.Directory+"/", d.Directory+"/")
		}); i >= 0 {
			bad(fmt.Sprintf("mesh.sources.%s has %s/ already, so that two sources would write the same files", out[i].Name, out[i].Directory),
				"give each source a directory of its own, none inside another's")
			continue
		}
		d := v1alpha1.Delegation{Name: name, Directory: s.Directory, Namespaces: slices.Clone(s.Namespaces), Kinds: slices.Clone(s.Kinds)}
		if s.Kinds == nil {
			d.Kinds = slices.Clone(v1alpha1.SourceKinds)
		}
		slices.Sort(d.Namespaces)
		slices.Sort(d.Kinds)
		out = append(out, d)
	}
	return out, findings
}

// checkVendored compares a repository's copy of the schema with the VERSION beside it. An older but intact copy is
// fine, since Heddle validates with its own; one that was edited by hand would make the pull request's check lie.
func checkVendored(files map[string][]byte) diag.List {
	if len(files) == 0 {
		return nil
	}
	finding := func(base, message string) diag.List {
		return diag.List{{ID: diag.StaleSchema, Message: message, Hint: "run `heddle policy upgrade`; never edit the copy by hand",
			Pos: diag.Pos{File: v1alpha1.VendorDir + "/" + base}}}
	}
	raw, ok := files[v1alpha1.VersionFile]
	if !ok {
		return finding(v1alpha1.VersionFile, "the vendored schema has no VERSION file")
	}
	version, want, err := v1alpha1.ParseVersion(raw)
	if err != nil {
		return finding(v1alpha1.VersionFile, err.Error())
	}
	if got := v1alpha1.DigestOf(files); got != want {
		return finding(v1alpha1.VersionFile, fmt.Sprintf("the vendored schema is not the %s that VERSION names: its SHA-256 is %s…, not %s…",
			version, got[:12], want[:12]))
	}
	return nil
}
