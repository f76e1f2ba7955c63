// Package policy turns the files of a commit into a policy document, plain Go values with the author's position of
// every field, or into findings about what is wrong with them.
//
// It is the only home of CUE. CUE is a language in which a page of text can ask for an hour or a terabyte, and its
// evaluation cannot be cancelled; so all of it, from the first parse on, happens in a child process: this same program,
// started again under limits, with an empty environment, which gets the files over a pipe and opens nothing. What
// comes back is judged as data from outside. The parent only sorts files by name, compares hashes, decodes JSON and reads
// the few lines of module.cue, whose size it bounds and of which it evaluates nothing.
//
// A repository is evaluated one directory at a time, each with its ancestors' files and the schema that is embedded in
// this program, whatever copy the repository carries. Results are kept by the hash of everything that went into them,
// so that a commit costs what it changed. From each directory only what is its own is taken: see fence.go.
//
// It logs nothing and knows nothing of compiled meshes; package compile checks what CUE cannot, such as references
// between services.
package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/literal"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Options bound an [Evaluator]. Zero fields take their defaults.
type Options struct {
	// CPU is how much processor time one directory may take, in whole seconds. Default: 10 s. A directory of twenty
	// services takes some 40 ms.
	CPU time.Duration
	// Heap is how many bytes of objects a child may have. Default: 512 MiB.
	Heap int64
	// Output is how many bytes a directory may evaluate to. Default: 64 MiB.
	Output int
	// Wall is how long to wait for one directory. It is a fault of the machine, not a finding, when it passes before
	// CPU is used up. Default: one minute, or six times CPU if that is longer.
	Wall time.Duration
	// Workers is how many children may run at once. Default: one for each processor, at most 4.
	Workers int
	// CacheDir is a directory that keeps what was evaluated from one process to the next; it is made if need be. Empty, the
	// default, keeps nothing. What is there is believed, so that it must be the caller's own: one in which others may write is
	// not used. The reconciler has none, since it trusts nothing on disk but its own state.
	CacheDir string
	// CacheBytes is how large that directory may grow, before what was not used for longest goes. Default: 512 MiB.
	CacheBytes int64
}

func (o Options) withDefaults() Options {
	if o.CPU <= 0 {
		o.CPU = 10 * time.Second
	}
	o.CPU = max(o.CPU.Round(time.Second), time.Second)
	if o.Heap <= 0 {
		o.Heap = 512 << 20
	}
	if o.Output <= 0 {
		o.Output = 64 << 20
	}
	if o.Wall <= 0 {
		o.Wall = max(time.Minute, 6*o.CPU)
	}
	if o.Workers <= 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), 4)
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	return o
}

// Evaluator evaluates policy repositories and remembers what it has evaluated. Its methods may be called at the same
// time from several goroutines. It holds no process and no file between calls.
type Evaluator struct {
	opts Options
	disk *disk // nil: none

	mu    sync.Mutex // guards what follows
	cache map[key]*part
	scans map[string]*scan // by a content's hash
	turn  uint64           // counts loads, for forgetting

	lastModule    module
	lastModuleKey key
}

// key is a hash over everything that decides a directory's result: its files, its ancestors', the schema, the
// environment and the language version. Those of the program itself (the version of CUE, the limits) are the same as
// long as the cache lives.
type key [sha256.Size]byte

// part is what one unit came to. Parts are shared by documents and never written again, but for used.
type part struct {
	findings   diag.List
	echoes     diag.List // of the ancestors' findings
	meshHash   string
	touches    diag.Pos // where it writes a field that files above share, if it does
	mesh       *v1alpha1.Mesh
	invariants map[string]v1alpha1.Invariant
	namespace  *v1alpha1.Namespace
	services   map[string]v1alpha1.Service
	workloads  map[string]v1alpha1.Workload
	groups     map[string]v1alpha1.WorkloadGroup
	egress     map[string]v1alpha1.Egress
	tests      map[string]v1alpha1.Test
	places     *v1alpha1.Places
	broken     []string // services that could not be read, where the others could
	skipped    bool     // not evaluated, since too much else ran away; never remembered

	used uint64 // the last turn that asked for it; guarded by Evaluator.mu
}

// sound reports whether all that the unit writes could be read.
func (p *part) sound() bool { return len(p.findings)+len(p.echoes) == 0 && !p.skipped }

// has reports whether a unit wrote a namespace's settings, or something of it by its name.
func (p *part) has(path []string) bool {
	name := path[len(path)-1]
	found := false
	switch path[0] {
	case "namespaces":
		found = p.namespace != nil
	case "services":
		_, found = p.services[name]
	case "workloads":
		_, found = p.workloads[name]
	case "groups":
		_, found = p.groups[name]
	case "egress":
		_, found = p.egress[name]
	}
	return found
}

// keep is for how many loads a part that is not asked for is remembered: reverting a commit, or going to and fro between
// branches, evaluates nothing.
const keep = 16

// New makes an Evaluator. The program must call [MaybeRunChild] first thing in main.
func New(opts Options) *Evaluator {
	opts = opts.withDefaults()
	return &Evaluator{opts: opts, disk: openDisk(opts), cache: map[key]*part{}, scans: map[string]*scan{}}
}

// Load evaluates the files of a commit. env is the value for the field tagged @tag(env); empty leaves the field's own
// default.
//
// It returns a document without findings, or all findings. Where some directories have findings and others not, it
// returns both: a document with what could be read, whose Unread names the rest, so that later stages can look for more
// findings in it. Such a document must never be published. The document is nil where nothing could be read.
//
// The error is a fault of this machine or of the repository's store, not of the policy: the same call may succeed later.
func (e *Evaluator) Load(ctx context.Context, sn *source.Snapshot, env string) (*v1alpha1.Document, diag.List, error) {
	blobs := make([]blob, len(sn.Files))
	for i, f := range sn.Files {
		blobs[i] = blob{f.Path, "git " + f.Hash, func() ([]byte, error) { return sn.Read(f) }}
	}
	return e.load(ctx, blobs, env)
}

// LoadFiles does what [Evaluator.Load] does, for files that are not committed, by slash-separated path.
func (e *Evaluator) LoadFiles(ctx context.Context, files map[string][]byte, env string) (*v1alpha1.Document, diag.List, error) {
	blobs := make([]blob, 0, len(files))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		sum := sha256.Sum256(files[name])
		blobs = append(blobs, blob{name, string(sum[:]), func() ([]byte, error) { return files[name], nil }})
	}
	return e.load(ctx, blobs, env)
}

func (e *Evaluator) load(ctx context.Context, blobs []blob, env string) (*v1alpha1.Document, diag.List, error) {
	if !hooked.Load() {
		return nil, nil, errors.New("policy cannot be evaluated: this program does not call policy.MaybeRunChild first thing in main")
	}
	e.mu.Lock()
	e.turn++
	turn := e.turn
	maps.DeleteFunc(e.cache, func(_ key, p *part) bool { return p.used+keep < turn })
	e.mu.Unlock()

	findings, err := e.secrets(blobs, turn)
	if err != nil {
		return nil, nil, err
	}
	mod, err := e.module(blobs)
	if err != nil {
		return nil, nil, err
	}
	findings = append(findings, mod.findings...)

	// mesh.cue says who writes what, so that it is read before the layout is known.
	seed := key(sha256.Sum256(fmt.Appendf(nil, "%q %q %q", v1alpha1.Digest(), mod.language, env)))
	req := request{Language: mod.language, Env: env}
	stops := &stops{}
	var root *part
	if mesh := findMesh(blobs); len(mesh) > 0 {
		first := tree{mesh: mesh, units: []directory{{unit{Roots: kindRoots("")}, mesh}}}
		parts, err := e.parts(ctx, first, seed, req, turn, stops)
		if err != nil {
			return nil, nil, err
		}
		root = parts[0]
	}
	var delegated []v1alpha1.Delegation
	known := root != nil && root.mesh != nil
	if known {
		doc := v1alpha1.Document{Places: map[string][]*v1alpha1.Places{"": {root.places}}}
		var found diag.List
		delegated, found = delegations(root.mesh.Sources, doc.Pos)
		findings = append(findings, found...)
	}
	t, found := layout(blobs, delegated, known)
	findings = append(findings, found...)
	if root == nil && len(t.units) == 0 {
		return nil, findings.Sorted(), nil
	}
	parts, err := e.parts(ctx, t, seed, req, turn, stops)
	if err != nil {
		return nil, nil, err
	}
	doc, found := assemble(root, t, parts)
	doc.Delegated = delegated
	return doc, append(findings, found...).Sorted(), nil
}

// module is what cue.mod says.
type module struct {
	language string
	findings diag.List
}

// module reads cue.mod, unless it is as it was.
func (e *Evaluator) module(all []blob) (module, error) {
	var blobs []blob
	for _, b := range all {
		if dir := path.Dir(b.name); b.name == moduleFile || dir == v1alpha1.VendorDir {
			blobs = append(blobs, b)
		}
	}
	k := sum(key{}, blobs)
	e.mu.Lock()
	last, known := e.lastModule, e.lastModuleKey == k
	e.mu.Unlock()
	if known {
		return last, nil
	}
	vendored := map[string][]byte{}
	var text []byte
	for _, b := range blobs {
		data, err := b.read()
		if err != nil {
			return module{}, err
		}
		if b.name == moduleFile {
			text = data
		} else {
			vendored[path.Base(b.name)] = data
		}
	}
	m := checkModule(text)
	m.findings = append(m.findings, checkVendored(vendored)...)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastModule, e.lastModuleKey = m, k
	return m, nil
}

// sum is a key over names and contents.
func sum(seed key, blobs []blob) key {
	h := sha256.New()
	buf := append(make([]byte, 0, 512), seed[:]...)
	for _, b := range blobs { // lengths first: no two lists are written alike
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(b.name)))
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(b.hash)))
		buf = append(append(buf, b.name...), b.hash...)
		h.Write(buf)
		buf = buf[:0]
	}
	h.Write(buf)
	return key(h.Sum(nil))
}

// parts returns the part of each unit, from the cache or from children.
func (e *Evaluator) parts(ctx context.Context, t tree, seed key, req request, turn uint64, stops *stops) ([]*part, error) {
	shared := map[string][]blob{"": t.mesh}
	for _, d := range t.units {
		if d.Namespace == "" && d.Dir != "tests" {
			shared[d.Dir] = d.blobs
		}
	}
	sums := map[string]key{} // of what is above a unit
	keys := make([]key, len(t.units))
	for i, d := range t.units {
		chain := strings.Join(d.Above, "\x00")
		if _, ok := sums[chain]; !ok {
			k := seed
			for _, dir := range d.Above {
				k = sum(k, shared[dir])
			}
			sums[chain] = k
		}
		keys[i] = sum(key(sha256.Sum256(fmt.Appendf(nil, "%x %q %q %q", sums[chain], d.Dir, d.Roots, d.Source))), d.blobs)
	}

	out := make([]*part, len(t.units))
	var todo []int
	e.mu.Lock()
	for i, k := range keys {
		if p := e.cache[k]; p != nil {
			p.used = turn
			out[i] = p
			continue
		}
		todo = append(todo, i)
	}
	e.mu.Unlock()
	if e.disk != nil {
		todo = e.recall(ctx, keys, todo, out, turn)
	}
	if len(todo) == 0 {
		return out, nil
	}

	req.Shared = map[string][]file{}
	for _, i := range todo {
		for _, dir := range t.units[i].Above {
			if _, ok := req.Shared[dir]; ok {
				continue
			}
			files, err := contents(shared[dir])
			if err != nil {
				return nil, err
			}
			req.Shared[dir] = files
		}
	}
	// A child costs some 10 ms to start: a few directories are not worth a second one.
	const batch = 4
	workers := max(1, min(e.opts.Workers, len(todo)/batch))
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		first, last := w*len(todo)/workers, (w+1)*len(todo)/workers
		units := make([]directory, last-first)
		for i := range units {
			units[i] = t.units[todo[first+i]]
		}
		g.Go(func() error {
			return e.run(ctx, req, units, stops, func(i int, r result) error {
				p, err := decode(r)
				if err != nil {
					return fmt.Errorf("reading what %s evaluates to: %w", name(units[i].unit), err)
				}
				j := todo[first+i]
				out[j] = p
				if p.skipped {
					return nil
				}
				p.used = turn
				e.mu.Lock()
				e.cache[keys[j]] = p
				e.mu.Unlock()
				if e.disk != nil {
					e.disk.put(keys[j], p, r)
				}
				return nil
			})
		})
	}
	err := g.Wait()
	if e.disk != nil {
		e.disk.sweep()
	}
	return out, err
}

// recall takes from disk what is there, and returns what is not. Once ctx is done the rest counts as missing.
func (e *Evaluator) recall(ctx context.Context, keys []key, todo []int, out []*part, turn uint64) []int {
	var g errgroup.Group
	workers := min(e.opts.Workers, len(todo))
	for w := range workers {
		g.Go(func() error {
			for i := w; i < len(todo) && ctx.Err() == nil; i += workers {
				out[todo[i]] = e.disk.get(keys[todo[i]])
			}
			return nil
		})
	}
	_ = g.Wait() // they do not fail
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(todo, func(i int) bool {
		if out[i] == nil {
			return false
		}
		out[i].used = turn
		e.cache[keys[i]] = out[i]
		return true
	})
}

func contents(blobs []blob) ([]file, error) {
	files := make([]file, len(blobs))
	for i, b := range blobs {
		data, err := b.read()
		if err != nil {
			return nil, err
		}
		files[i] = file{b.name, data}
	}
	return files, nil
}

// decode reads a child's answer, as strictly as anything from outside.
func decode(r result) (*part, error) {
	p := &part{findings: r.Findings, echoes: r.Echoes, touches: r.Touches, meshHash: r.Mesh, broken: r.Broken, skipped: r.skipped}
	var err error
	if p.places, err = r.places(); err != nil {
		return nil, err
	}
	into := map[string]any{
		"mesh": &p.mesh, "invariants": &p.invariants, "namespaces": &p.namespace, "services": &p.services, "workloads": &p.workloads,
		"groups": &p.groups, "egress": &p.egress, "tests": &p.tests,
	}
	for root, raw := range r.Values {
		if into[root] == nil {
			return nil, fmt.Errorf("it has a value for %q, of which nothing is known", root)
		}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(into[root]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// assemble joins the parts of a repository into a document. root is mesh.cue's, nil where there is none.
func assemble(root *part, t tree, parts []*part) (*v1alpha1.Document, diag.List) {
	var findings diag.List
	units := t.units
	if root != nil {
		units = append([]directory{{unit{}, t.mesh}}, units...)
		parts = append([]*part{root}, parts...)
	}
	doc := &v1alpha1.Document{Places: map[string][]*v1alpha1.Places{}, Policy: v1alpha1.Policy{
		Namespaces: map[string]v1alpha1.Namespace{},
		Services:   map[string]map[string]v1alpha1.Service{},
		Workloads:  map[string]map[string]v1alpha1.Workload{},
		Groups:     map[string]map[string]v1alpha1.WorkloadGroup{},
		Egress:     map[string]map[string]v1alpha1.Egress{},
	}}
	unread := map[string]bool{}
	for _, ns := range t.lost {
		unread[ns] = true
	}
	skipped := 0
	told := map[string]bool{} // directories whose files the ones below see, with findings of their own
	if root == nil {
		told[""] = true // there is no mesh.cue, which is said
	}
	for i, p := range parts {
		u := units[i]
		ns := u.Namespace
		findings = append(findings, p.findings...)
		if len(p.findings) == 0 && !slices.ContainsFunc(u.Above, func(dir string) bool { return told[dir] }) { // else it is told already
			findings = append(findings, p.echoes...)
		}
		switch {
		case u.Dir == "":
			doc.Policy.Mesh, doc.Policy.Invariants = p.mesh, p.invariants
		case u.Dir == "tests":
			doc.Policy.Tests = p.tests
		}
		double := join(doc, u, p, parts, units[:i])
		findings = append(findings, double...)
		if p.places.Len() > 0 {
			doc.Places[ns] = append(doc.Places[ns], p.places)
		}
		if p.skipped {
			skipped++
		}
		if ns == "" {
			if len(p.findings) > 0 {
				told[u.Dir] = true
			}
			if u.Dir == "tests" && !p.sound() {
				unread[testsUnread] = true
			}
			continue
		}
		if !p.sound() && len(p.broken) == 0 {
			unread[ns] = true
			continue
		}
		for _, name := range p.broken {
			unread[ns+"/"+name] = true
		}
	}
	for i, p := range parts {
		if u := units[i]; root != nil && root.sound() && u.Dir != "" && p.sound() && p.meshHash != root.meshHash {
			pos := p.touches
			if pos.IsZero() {
				pos = diag.Pos{File: u.blobs[0].name, Line: 1, Column: 1}
			}
			findings.Add(diag.Finding{ID: diag.OutsideFence, Path: "mesh", Pos: pos,
				Message: fmt.Sprintf("%s may not write mesh: it belongs to mesh.cue", name(u.unit)),
				Hint:    "a reference or comprehension in this directory sets a field of mesh or invariants; remove it"})
		}
	}
	if doc.Policy.Mesh == nil || root == nil || !root.sound() {
		doc.Policy.Mesh = nil
		unread[meshFile] = true // what is wrong with it is said; no namespace has a dot in its name
	}
	doc.Unread = slices.Sorted(maps.Keys(unread))
	if skipped > 0 {
		findings.Add(diag.Finding{ID: diag.Runaway, Pos: diag.Pos{File: "services"},
			Message: fmt.Sprintf("%d directories were not looked at, because what is named here ran away before", skipped),
			Hint:    "mend those first"})
	}
	return doc, findings
}

// testsUnread stands in [v1alpha1.Document.Unread] for expectations; no namespace has such a name.
const testsUnread = "tests/*.cue"

// join adds what a unit of a namespace wrote to a document. A name has one place that writes it: a second one, in another
// directory, is a finding.
func join(doc *v1alpha1.Document, u directory, p *part, parts []*part, before []directory) diag.List {
	ns := u.Namespace
	if ns == "" || !p.sound() && len(p.broken) == 0 {
		return nil
	}
	var findings diag.List
	double := func(path ...string) {
		mine := v1alpha1.Document{Places: map[string][]*v1alpha1.Places{ns: {p.places}}}
		f := diag.Finding{ID: diag.Conflict, Path: strings.Join(path, "."), Pos: mine.Pos(path...)}
		for i, other := range before { // the first that has it
			if other.Namespace == ns && parts[i].has(path) {
				theirs := v1alpha1.Document{Places: map[string][]*v1alpha1.Places{ns: {parts[i].places}}}
				f.Related = append(f.Related, theirs.Pos(path...))
				f.Message = fmt.Sprintf("%s is written by %s too: a name has one directory that writes it", f.Path, name(other.unit))
				f.Hint = "remove one of the two; the first is at " + f.Related[0].Short()
				break
			}
		}
		findings.Add(f)
	}
	if p.namespace != nil {
		if _, ok := doc.Policy.Namespaces[ns]; ok {
			double("namespaces", ns)
		} else {
			doc.Policy.Namespaces[ns] = *p.namespace
		}
	}
	add(doc.Policy.Services, ns, p.services, func(name string) { double("services", ns, name) })
	add(doc.Policy.Workloads, ns, p.workloads, func(name string) { double("workloads", ns, name) })
	add(doc.Policy.Groups, ns, p.groups, func(name string) { double("groups", ns, name) })
	add(doc.Policy.Egress, ns, p.egress, func(name string) { double("egress", ns, name) })
	return findings
}

// add adds the entries of a namespace to those that are there, which are never written: they may belong to a part.
func add[T any](all map[string]map[string]T, ns string, more map[string]T, double func(name string)) {
	if more == nil {
		return
	}
	if all[ns] == nil {
		all[ns] = more
		return
	}
	joined := maps.Clone(all[ns])
	for _, name := range slices.Sorted(maps.Keys(more)) {
		if _, ok := joined[name]; ok {
			double(name)
			continue
		}
		joined[name] = more[name]
	}
	all[ns] = joined
}

// maxModule bounds module.cue, in bytes; a real one has a hundred.
const maxModule = 16 << 10

// checkModule looks at cue.mod/module.cue. A repository without one is read in the lowest language version.
func checkModule(text []byte) module {
	m := module{language: v1alpha1.LowestLanguage}
	if len(text) == 0 {
		return m
	}
	if len(text) > maxModule {
		m.findings.Add(diag.Finding{ID: diag.FileTooLarge, Pos: diag.Pos{File: moduleFile},
			Message: fmt.Sprintf("module.cue has %d bytes; at most %d are read", len(text), maxModule),
			Hint:    "it names the module and the language version, and nothing else"})
		return m
	}
	f, errs := parse(&request{Language: v1alpha1.LowestLanguage}, file{moduleFile, text})
	if f == nil {
		m.findings = errs
		return m
	}
	v := visitor{
		field: func(path []string, fd *ast.Field) {
			switch strings.Join(path, ".") {
			case "deps":
				if s, ok := fd.Value.(*ast.StructLit); ok && len(s.Elts) == 0 {
					return
				}
				m.findings.Add(diag.Finding{ID: diag.ForeignImport, Path: "deps", Pos: position(fd.Label.Pos()),
					Message: "a policy repository depends on no other module: the schema stands under cue.mod/pkg, and nothing else may be imported",
					Hint:    "remove deps; `cue vet` then needs no registry"})
			case "language.version":
				m.setLanguage(fd)
			}
		},
		element: func([]string, ast.Expr) {},
		other:   func([]string, ast.Node) {},
	}
	v.decls(nil, f.Decls)
	return m
}

func (m *module) setLanguage(fd *ast.Field) {
	lit, ok := fd.Value.(*ast.BasicLit)
	got := ""
	if ok {
		got, _ = literal.Unquote(lit.Value)
	}
	v, ok := version(got)
	low, _ := version(v1alpha1.LowestLanguage)
	high, _ := version(v1alpha1.HighestLanguage)
	if !ok || v < low || v > high {
		m.findings.Add(diag.Finding{ID: diag.WrongValue, Path: "language.version", Pos: position(fd.Label.Pos()),
			Message: fmt.Sprintf("language version %q is not one that this Heddle reads", clip(got)),
			Hint: fmt.Sprintf("write %q; %s to %s are read", v1alpha1.LowestLanguage,
				v1alpha1.LowestLanguage, v1alpha1.HighestLanguage)})
		return
	}
	m.language = got
}

// version makes a number of "v0.17.1" that orders as versions do.
func version(s string) (n int64, ok bool) {
	parts := strings.Split(strings.TrimPrefix(s, "v"), ".")
	if len(parts) != 3 || !strings.HasPrefix(s, "v") {
		return 0, false
	}
	for _, p := range parts {
		d, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return 0, false
		}
		n = n<<16 | int64(d)
	}
	return n, true
}
