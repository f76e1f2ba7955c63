package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/build"
	"cuelang.org/go/cue/cuecontext"
	cueerrors "cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// frame is unified with every instance, so that a file that does not name the schema is judged by it all the same.
const frame = `package policy

import "` + v1alpha1.ImportPath + `"

v1alpha1.#Repository
`

// The files that Heddle itself adds to an instance; nobody is shown a place in them.
const (
	frameFile = schemaFile + "frame.cue"
	stubsFile = schemaFile + "stubs.cue"
)

// evaluate runs CUE over one unit. It is what happens inside the child process; it reads nothing but its arguments.
//
// A fresh context serves each unit, since a context keeps all that it ever built. Instances are put together from
// syntax, without CUE's module loader: nothing is looked up on a disk or in a registry, and an import that is neither
// the schema nor a standard package has nowhere to come from.
func evaluate(req *request, u unit) result {
	r := result{Dir: u.Dir}
	at := newSites()
	var findings diag.List
	var own []file
	ready := map[string]*ast.File{} // their syntax, to be used once: CUE changes it
	computed := false
	above, sharedNames, whole := ancestors(req, u)
	for _, f := range u.Files {
		syntax, errs := parse(req, f)
		findings = append(findings, errs...)
		if syntax == nil {
			continue
		}
		numbers := checkNumbers(syntax)
		if head := checkHead(syntax); len(head) > 0 {
			findings = append(append(findings, head...), numbers...)
			continue
		}
		found, c := checkFields(u, syntax, at)
		findings = append(append(findings, found...), at.inside(numbers, f.Name)...)
		computed = computed || c
		if r.Touches.IsZero() {
			hiddenNames(syntax, func(name string, fd *ast.Field) {
				if r.Touches.IsZero() && sharedNames[name] {
					r.Touches = position(fd.Label.Pos())
				}
			})
		}
		own = append(own, f)
		ready[f.Name] = syntax
	}
	whole = whole && len(own) == len(u.Files)
	if u.Dir == "" && req.Env != "" && !slices.ContainsFunc(own, func(f file) bool { return hasEnv(req, f) }) && len(own) > 0 {
		findings.Add(diag.Finding{ID: diag.MissingField, Path: "_env", Pos: diag.Pos{File: meshFile},
			Message: fmt.Sprintf("the source asks for environment %q, and mesh.cue has no field for it", req.Env),
			Hint:    "write `_env: *\"default\" | string @tag(env)` in mesh.cue, or drop the environment from the source"})
	}

	said := slices.Clone(findings)
	v, stubs, errs := instance(req, append(above, own...), ready, whole, at)
	findings = append(findings, slices.DeleteFunc(errs, func(f diag.Finding) bool {
		return slices.ContainsFunc(said, func(g diag.Finding) bool { return f.Path != "" && f.Path == g.Path && f.Pos == g.Pos })
	})...)
	if v.Exists() {
		known := map[string]bool{}
		for _, f := range findings {
			if f.Path != "" {
				known[f.Path] = true
			}
		}
		if whole {
			for _, f := range (fence{u}).value(v, known) {
				findings.Add(f)
				known[f.Path] = true
			}
		}
		found := slices.DeleteFunc(fromCUE(validate(v, u), at, known), func(f diag.Finding) bool {
			return f.ID == diag.MissingField && slices.ContainsFunc(findings, func(by diag.Finding) bool { return misspells(by, f) })
		})
		if len(stubs) > 0 {
			found = slices.DeleteFunc(found, func(f diag.Finding) bool { return f.ID == diag.Incomplete })
		}
		findings = append(findings, found...)
	}
	// What an ancestor's file is to blame for is said once, by the ancestor's own unit. Where a file of this unit takes
	// part, it is the one that contradicts.
	mine := map[string]bool{}
	for _, f := range u.Files {
		mine[f.Name] = true
	}
	if u.Dir != "" {
		own := findings[:0]
		for _, f := range findings {
			above := !mine[f.Pos.File] && !isSchema(f.Pos) && !f.Pos.IsZero()
			if i := slices.IndexFunc(f.Related, func(p diag.Pos) bool { return mine[p.File] }); above && i >= 0 {
				f.Pos, f.Related[i] = f.Related[i], f.Pos
				above = false
			}
			if root, _, _ := strings.Cut(f.Path, "."); above || slices.Contains(meshOnly, root) {
				if isSchema(f.Pos) || f.Pos.IsZero() {
					f.Pos = diag.Pos{File: u.Files[0].Name, Line: 1, Column: 1}
				}
				r.Echoes.Add(f)
				continue
			}
			own = append(own, f)
		}
		findings = own
	}
	for i := range findings {
		if findings[i].Pos.IsZero() || isSchema(findings[i].Pos) {
			if !findings[i].Pos.IsZero() {
				findings[i].Related = append(findings[i].Related, findings[i].Pos)
			}
			findings[i].Pos = diag.Pos{File: u.Files[0].Name, Line: 1, Column: 1}
		}
	}
	r.Findings = bounded(findings.Sorted(), u)
	r.Echoes = bounded(r.Echoes, u)
	if v.Exists() {
		r.Mesh = meshHash(v)
	}
	switch {
	case len(r.Findings)+len(r.Echoes) == 0:
		take(&r, u, v, at, computed)
	case whole && v.Exists() && u.Namespace != "":
		salvage(&r, u, v)
	case whole && v.Exists() && u.Dir == "":
		salvageSources(&r, v)
	}
	r.setPlaces(at.first)
	return r
}

// maxFindings bounds what is told of one directory: a page of text can make a hundred thousand of them.
const maxFindings = 200

// bounded cuts findings off, and says so.
func bounded(findings diag.List, u unit) diag.List {
	more := len(findings) - maxFindings
	if more <= 0 {
		return findings
	}
	next := findings[maxFindings]
	findings = findings[:maxFindings:maxFindings]
	findings.Add(diag.Finding{ID: next.ID, Pos: next.Pos,
		Message: fmt.Sprintf("from here on there are %d findings more in %s", more, name(u)), Hint: "mend the ones above first"})
	return findings
}

// lookup follows field names. On the way, a value with a default is what its default is, as it is in all that is read of
// it: [cue.Value.LookupPath] by itself does not see the fields of a default.
func lookup(v cue.Value, path ...string) cue.Value {
	for _, name := range path {
		v, _ = v.Default()
		v = v.LookupPath(cue.MakePath(cue.Str(name)))
	}
	v, _ = v.Default()
	return v
}

// salvage reads the sound services of a unit that has findings, so that compile can look for more. It leaves the unit
// unread where findings may be about more than services: then nothing is certain about those either.
func salvage(r *result, u unit, v cue.Value) {
	broken := map[string]bool{}
	for _, f := range r.Findings {
		rest, ok := strings.CutPrefix(f.Path, "services."+u.Namespace+".")
		if !ok {
			return
		}
		name, _, _ := strings.Cut(rest, ".")
		broken[name] = true
	}
	it, err := lookup(v, "services", u.Namespace).Fields()
	if err != nil {
		return
	}
	sound := map[string]json.RawMessage{}
	for it.Next() {
		name := it.Selector().Unquoted()
		if broken[name] {
			continue
		}
		b, err := it.Value().MarshalJSON()
		if err != nil {
			return
		}
		sound[name] = b
	}
	services, err := json.Marshal(sound)
	if err != nil {
		return
	}
	r.Values = map[string]json.RawMessage{"services": services}
	for _, root := range u.Roots {
		if root == "services" {
			continue
		}
		if b, err := lookup(v, root, u.Namespace).MarshalJSON(); err == nil {
			r.Values[root] = b
		}
	}
	r.Broken = slices.Sorted(maps.Keys(broken))
}

// salvageSources reads who else writes policy out of a mesh.cue that has findings elsewhere, so that the files of others
// are judged too.
func salvageSources(r *result, v cue.Value) {
	for _, f := range r.Findings {
		if f.Path == "" || f.Path == "mesh" || f.Path == "mesh.sources" || strings.HasPrefix(f.Path, "mesh.sources.") {
			return
		}
	}
	sources := lookup(v, "mesh", "sources")
	b, err := sources.MarshalJSON()
	switch {
	case !sources.Exists():
		b = []byte("{}")
	case err != nil:
		return
	}
	r.Values = map[string]json.RawMessage{"mesh": fmt.Appendf(nil, `{"sources": %s}`, b)}
}

// validate returns all errors of an instance. CUE looks for missing fields and values that are still open only where
// nothing else is wrong, so that one service's slip would hide another's: each is looked at by itself, too.
func validate(v cue.Value, u unit) []cueerrors.Error {
	options := []cue.Option{cue.Attributes(true), cue.Definitions(true), cue.Hidden(true), cue.Concrete(true)}
	errs := cueerrors.Errors(v.Validate(options...))
	if len(errs) == 0 {
		return nil
	}
	for _, root := range u.Roots {
		path := []string{root}
		if slices.Contains(namespaced, root) {
			path = append(path, u.Namespace)
		}
		it, err := lookup(v, path...).Fields()
		if err != nil {
			continue
		}
		for it.Next() {
			errs = append(errs, within(it.Value(), options)...)
		}
	}
	return errs
}

// within looks on where CUE stops: beside a value that is wrong, one that is missing or left open goes unsaid until the
// first is mended.
func within(v cue.Value, options []cue.Option) []cueerrors.Error {
	errs := cueerrors.Errors(v.Validate(options...))
	if len(errs) == 0 {
		return nil
	}
	if it, err := v.Fields(); err == nil {
		for it.Next() {
			errs = append(errs, within(it.Value(), options)...)
		}
	} else if it, err := v.List(); err == nil {
		for it.Next() {
			errs = append(errs, within(it.Value(), options)...)
		}
	}
	return errs
}

// take reads the fenced part of a sound instance.
func take(r *result, u unit, v cue.Value, at sites, computed bool) {
	get := func(path ...string) []byte {
		w := lookup(v, path...)
		if !w.Exists() {
			return nil
		}
		if computed {
			at.complete(strings.Join(path, "."), w)
		}
		b, err := w.MarshalJSON()
		if err != nil {
			r.Findings = append(r.Findings, fromCUE(cueerrors.Errors(err), at, nil)...)
		}
		return b
	}
	r.Values = map[string]json.RawMessage{}
	for _, root := range u.Roots {
		path := []string{root}
		if slices.Contains(namespaced, root) {
			path = append(path, u.Namespace)
		}
		if b := get(path...); b != nil {
			r.Values[root] = b
		}
	}
}

// ancestors returns the files above a unit that CUE can use, the names in them that the unit can share, and whether these
// are all of the files.
func ancestors(req *request, u unit) (files []file, names map[string]bool, whole bool) {
	whole = true
	names = map[string]bool{}
	for _, dir := range u.Above {
		above := unit{Dir: dir, Files: req.Shared[dir]}
		if dir == "" {
			above.Roots = meshOnly
		}
		for _, f := range above.Files {
			syntax, errs := parse(req, f)
			if syntax == nil || len(errs) > 0 || len(checkHead(syntax)) > 0 {
				whole = false
				continue
			}
			if outside, _ := checkFields(above, syntax, newSites()); len(outside) > 0 {
				whole = false
			}
			hiddenNames(syntax, func(name string, _ *ast.Field) { names[name] = true })
			files = append(files, f)
		}
	}
	return files, names, whole
}

// hiddenNames calls do for the hidden fields and definitions at the top of a file: what other files can share.
func hiddenNames(f *ast.File, do func(name string, f *ast.Field)) {
	for _, d := range f.Decls {
		if fd, ok := d.(*ast.Field); ok && isIdent(fd.Label) {
			if name, ok := label(fd.Label); ok && shared.MatchString(name) {
				do(name, fd)
			}
		}
	}
}

// parse reads one file. The syntax is nil if it cannot be used.
func parse(req *request, f file) (*ast.File, diag.List) {
	if bad := checkText(f); len(bad) > 0 {
		return nil, bad
	}
	syntax, err := parser.ParseFile(f.Name, f.Data, parser.Version(req.Language), parser.AllErrors)
	if err == nil {
		return syntax, nil
	}
	var findings diag.List
	for _, e := range cueerrors.Errors(err) {
		format, args := e.Msg()
		pos := position(e.Position())
		if pos.File == "" {
			pos = diag.Pos{File: f.Name, Line: 1, Column: 1}
		}
		if slices.ContainsFunc(findings, func(g diag.Finding) bool { return g.Pos.Line == pos.Line }) {
			continue // one slip of the hand gives several errors on its line; the first is the one to mend
		}
		findings.Add(diag.Finding{ID: diag.Syntax, Message: clip(fmt.Sprintf(format, args...)), Pos: pos,
			Hint: "this is not CUE; `cue vet` shows the same"})
	}
	return nil, findings
}

// instance builds the value of a unit, if it has one. Files that do not compile are named in findings and left out, so
// that one of them does not hide what is wrong with the others. Where files are left out, what they may have defined is
// stood in for: stubs holds these names, and what is still open in the value may be their doing.
func instance(req *request, files []file, ready map[string]*ast.File, whole bool, at sites) (v cue.Value, stubs map[string]bool, findings diag.List) {
	stubs = map[string]bool{}
	for len(files) > 0 {
		use := files
		if len(stubs) > 0 {
			text := "package policy\n"
			for _, name := range slices.Sorted(maps.Keys(stubs)) {
				text += name + ": _\n"
			}
			use = append([]file{{stubsFile, []byte(text)}}, files...)
		}
		v, errs := attempt(req, use, ready)
		bad := map[string]bool{}
		stood := len(stubs)
		for _, e := range errs {
			f := convert(e, at)
			format, args := e.Msg()
			if m := notFound.FindStringSubmatch(fmt.Sprintf(format, args...)); m != nil && !whole && shared.MatchString(m[1]) && !stubs[m[1]] {
				stubs[m[1]] = true
				continue
			}
			if f.ID == diag.SchemaRule || f.ID == diag.Conflict {
				f.ID = diag.Syntax
			}
			for _, p := range append([]diag.Pos{f.Pos}, f.Related...) {
				bad[p.File] = true
			}
			findings.Add(f)
		}
		if v.Exists() {
			return v, stubs, findings
		}
		n := len(files)
		files = slices.DeleteFunc(slices.Clone(files), func(f file) bool { return bad[f.Name] })
		if len(files) == n && len(stubs) == stood {
			break
		}
		if len(files) < n {
			whole = false
		}
	}
	return cue.Value{}, stubs, findings
}

// shared are the names by which one file uses another's.
var shared = regexp.MustCompile(`^(_#?|#)[A-Za-z0-9_]+$`)

// attempt builds one instance out of files, taking from ready what is parsed already.
func attempt(req *request, files []file, ready map[string]*ast.File) (cue.Value, []cueerrors.Error) {
	schema := func(_ token.Pos, path string) *build.Instance {
		if bare, _, _ := strings.Cut(path, ":"); bare != v1alpha1.ImportPath {
			return nil // a standard package, which the runtime knows
		}
		return schemaInstance()
	}
	bc := build.NewContext()
	inst := bc.NewInstance("", schema)
	inst.PkgName = packageName
	for _, f := range append(slices.Clone(files), file{frameFile, []byte(frame)}) {
		syntax := ready[f.Name]
		delete(ready, f.Name)
		if syntax == nil {
			var err error
			if syntax, err = parser.ParseFile(f.Name, f.Data, parser.Version(req.Language)); err != nil {
				return cue.Value{}, cueerrors.Errors(err)
			}
		}
		if f.Name == meshFile {
			inject(syntax, req.Env)
		}
		if err := inst.AddSyntax(syntax); err != nil {
			return cue.Value{}, cueerrors.Errors(err)
		}
	}
	if err := inst.Complete(); err != nil {
		return cue.Value{}, cueerrors.Errors(err)
	}
	// An unused import is a fault, but none that keeps the rest from being evaluated.
	unused := cueerrors.Errors(inst.ResolutionErr)
	inst.ResolutionErr = nil
	vs, err := cuecontext.New(cuecontext.CUE_DEBUG("sortfields=1")).BuildInstances([]*build.Instance{inst})
	if err != nil {
		return cue.Value{}, append(unused, cueerrors.Errors(err)...)
	}
	return vs[0], unused
}

// schemaInstance is the embedded schema, parsed once: a context compiles it and leaves the syntax as it is.
var schemaInstance = sync.OnceValue(func() *build.Instance {
	inst := build.NewContext().NewInstance("", func(token.Pos, string) *build.Instance { return nil }) // it imports standard packages
	inst.ImportPath = v1alpha1.ImportPath
	inst.PkgName = schemaName
	for _, name := range schemaNames {
		f, err := parser.ParseFile(schemaFile+name, schemaFiles[name], parser.Version(v1alpha1.LowestLanguage))
		if err != nil {
			panic(err) // the embedded schema parses: every test says so
		}
		if err := inst.AddSyntax(f); err != nil {
			panic(err)
		}
	}
	inst.Complete()
	return inst
})

var (
	schemaFiles = v1alpha1.Files()
	schemaNames = slices.Sorted(maps.Keys(schemaFiles))
)

// envField finds the field that carries @tag(env), and the attribute.
func envField(f *ast.File) (*ast.Field, *ast.Attribute) {
	for _, d := range f.Decls {
		fd, ok := d.(*ast.Field)
		if !ok {
			continue
		}
		for _, a := range fd.Attrs {
			name, body := a.Split()
			key, _, _ := strings.Cut(body, ",")
			if name == "tag" && strings.TrimSpace(key) == "env" {
				return fd, a
			}
		}
	}
	return nil, nil
}

func hasEnv(req *request, f file) bool {
	syntax, _ := parse(req, f)
	if syntax == nil {
		return false
	}
	fd, _ := envField(syntax)
	return fd != nil
}

// inject does what `cue -t env=VALUE` does.
func inject(f *ast.File, env string) {
	if fd, _ := envField(f); fd != nil && env != "" {
		fd.Value = &ast.BinaryExpr{X: &ast.ParenExpr{X: fd.Value}, Op: token.AND, Y: ast.NewString(env)}
	}
}
