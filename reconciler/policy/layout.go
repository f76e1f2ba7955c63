package policy

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// blob is a file that is not read yet. Two blobs with one hash have one content.
type blob struct {
	name string
	hash string
	read func() ([]byte, error)
}

// directory is the files of a unit.
type directory struct {
	dir   string // as in unit.Dir
	blobs []blob
}

// tree is a repository sorted by what its files are, before any of them is read.
type tree struct {
	units  []directory // what is to be evaluated, ancestors first, then services/<namespace> in order
	mesh   []blob      // mesh.cue
	above  []blob      // services/*.cue
	module []blob      // all of cue.mod that counts: module.cue and the vendored schema
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// later names directories that the design gives a meaning and this version does not read.
var later = []string{"tests", "external", "egress", "overlays"}

// layout sorts the files of a repository. Whatever looks like policy and would not be read is a finding: a file that
// silently does nothing is worse than one that is refused.
func layout(blobs []blob) (tree, diag.List) {
	var t tree
	var findings diag.List
	dirs := map[string][]blob{}
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
				"remove "+name[:strings.Index("/"+name, "/cue.mod/")]+"/cue.mod")
			continue
		}
		under := dir == "services" || strings.HasPrefix(dir, "services/")
		switch ext := path.Ext(base); {
		case ext == ".cue":
		case strings.EqualFold(ext, ".cue"):
			add(diag.FileName, "the extension of policy files is .cue, in lower case", "rename it to "+
				strings.TrimSuffix(base, ext)+".cue")
			continue
		case under && slices.Contains([]string{".yaml", ".yml", ".json", ".toml"}, ext):
			add(diag.FileName, "only .cue files are read as policy", "write it as CUE, or move it out of services/")
			continue
		default:
			continue // README, CODEOWNERS, workflows: free
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
		switch {
		case name == "mesh.cue":
			t.mesh = append(t.mesh, b)
		case dir == "":
			add(diag.FileName, "at the top of a policy repository only mesh.cue is policy",
				"move its content into mesh.cue or into services/<namespace>/")
		case dir == "services":
			t.above = append(t.above, b)
		case under && strings.Count(dir, "/") == 1:
			ns := path.Base(dir)
			if !dnsLabel.MatchString(ns) {
				add(diag.FileName, fmt.Sprintf("%q is not a namespace: want a DNS label (lower-case letters, digits, -)", ns),
					"rename the directory")
				continue
			}
			dirs[dir] = append(dirs[dir], b)
		case under:
			add(diag.FileName, "policy files stand directly in services/<namespace>/, not deeper",
				"move it to services/"+strings.Split(name, "/")[1]+"/")
		default:
			top, _, _ := strings.Cut(name, "/")
			if strings.HasPrefix(top, ".") {
				continue // .github and the like
			}
			message := fmt.Sprintf("policy files in %s/ are not understood by this version of Heddle", top)
			hint := "policy is mesh.cue and services/<namespace>/*.cue; move or remove this file"
			if slices.Contains(later, top) {
				hint = "remove it until Heddle reads it, or upgrade Heddle"
			}
			add(diag.FileName, message, hint)
		}
	}
	if len(t.mesh) > 0 {
		t.units = append(t.units, directory{"", t.mesh})
	}
	if len(t.above) > 0 {
		t.units = append(t.units, directory{"services", t.above})
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		t.units = append(t.units, directory{dir, dirs[dir]})
	}
	if len(t.mesh) == 0 {
		findings.Add(diag.Finding{ID: diag.NoPolicy, Message: "there is no mesh.cue: this is not a policy repository",
			Hint: "run `heddle policy init`, or check that the source's ref is the right one"})
	}
	return t, findings
}

const moduleFile = "cue.mod/module.cue"

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
