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
	"context"
	"crypto/sha256"
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
	return o
}

// Evaluator evaluates policy repositories and remembers what it has evaluated. Its methods may be called at the same
// time from several goroutines. It holds no process and no file between calls.
type Evaluator struct {
	opts Options

	mu    sync.Mutex // guards what follows
	cache map[key]*part
	turn  uint64 // counts loads, for forgetting

	lastModule    module
	lastModuleKey key
}

// key is a hash over everything that decides a directory's result: its files, its ancestors', the schema, the
// environment and the language version. Those of the program itself (the version of CUE, the limits) are the same as
// long as the cache lives.
type key [sha256.Size]byte

// part is what one unit came to. Parts are shared by documents and never written again, but for used.
type part struct {
	findings  diag.List
	echoes    diag.List // of the ancestors' findings
	rawMesh   string
	touches   diag.Pos // where it writes a field that files above share, if it does
	mesh      *v1alpha1.Mesh
	namespace *v1alpha1.Namespace
	services  map[string]v1alpha1.Service
	workloads map[string]v1alpha1.Workload
	positions map[string]diag.Pos
	broken    []string // services that could not be read, where the others could
	skipped   bool     // not evaluated, since too much else ran away; never remembered

	used uint64 // the last turn that asked for it; guarded by Evaluator.mu
}

// keep is for how many loads a part that is not asked for is remembered: reverting a commit, or going to and fro between
// branches, evaluates nothing.
const keep = 16

// New makes an Evaluator. The program must call [MaybeRunChild] first thing in main.
func New(opts Options) *Evaluator {
	return &Evaluator{opts: opts.withDefaults(), cache: map[key]*part{}}
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
	t, findings := layout(blobs)
	mod, err := e.module(t.module)
	if err != nil {
		return nil, nil, err
	}
	findings = append(findings, mod.findings...)
	if len(t.units) == 0 {
		return nil, findings.Sorted(), nil
	}
	parts, err := e.parts(ctx, t, mod.language, env)
	if err != nil {
		return nil, nil, err
	}
	doc, found := assemble(t.units, parts)
	return doc, append(findings, found...).Sorted(), nil
}

// module is what cue.mod says.
type module struct {
	language string
	findings diag.List
}

// module reads cue.mod, unless it is as it was.
func (e *Evaluator) module(blobs []blob) (module, error) {
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
func sum(seed key, lists ...[]blob) key {
	h := sha256.New()
	h.Write(seed[:])
	for _, blobs := range lists {
		fmt.Fprintf(h, "%d files\n", len(blobs))
		for _, b := range blobs {
			fmt.Fprintf(h, "%q %q\n", b.name, b.hash)
		}
	}
	return key(h.Sum(nil))
}

// parts returns the part of each unit, from the cache or from children.
func (e *Evaluator) parts(ctx context.Context, t tree, language, env string) ([]*part, error) {
	seed := key(sha256.Sum256(fmt.Appendf(nil, "%q %q %q", v1alpha1.Digest(), language, env)))
	above := sum(seed, t.mesh, t.above)
	keys := make([]key, len(t.units))
	for i, d := range t.units {
		switch {
		case d.dir == "":
			keys[i] = sum(seed, t.mesh)
		case d.dir == "services":
			keys[i] = above
		default:
			keys[i] = sum(above, d.blobs)
		}
	}

	out := make([]*part, len(t.units))
	var todo []int
	e.mu.Lock()
	e.turn++
	turn := e.turn
	for i, k := range keys {
		if p := e.cache[k]; p != nil {
			p.used = turn
			out[i] = p
			continue
		}
		todo = append(todo, i)
	}
	maps.DeleteFunc(e.cache, func(_ key, p *part) bool { return p.used+keep < turn })
	e.mu.Unlock()
	if len(todo) == 0 {
		return out, nil
	}

	req := request{Language: language, Env: env}
	var err error
	if req.Mesh, err = contents(t.mesh); err != nil {
		return nil, err
	}
	if req.Above, err = contents(t.above); err != nil {
		return nil, err
	}
	units := make([]unit, len(todo))
	for i, j := range todo {
		units[i].Dir = t.units[j].dir
		if units[i].Files, err = contents(t.units[j].blobs); err != nil {
			return nil, err
		}
	}
	stops := &stops{}
	// A child costs some 10 ms to start: a few directories are not worth a second one.
	const batch = 4
	workers := max(1, min(e.opts.Workers, len(todo)/batch))
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		first, last := w*len(todo)/workers, (w+1)*len(todo)/workers
		g.Go(func() error {
			return e.run(ctx, req, units[first:last], stops, func(i int, r result) error {
				p, err := decode(r)
				if err != nil {
					return fmt.Errorf("reading what %s evaluates to: %w", name(units[first+i]), err)
				}
				j := todo[first+i]
				out[j] = p
				if p.skipped {
					return nil
				}
				p.used = turn
				e.mu.Lock()
				defer e.mu.Unlock()
				e.cache[keys[j]] = p
				return nil
			})
		})
	}
	return out, g.Wait()
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
	p := &part{findings: r.Findings, echoes: r.Echoes, touches: r.Touches, rawMesh: string(r.Mesh), positions: r.Positions, broken: r.Broken, skipped: r.skipped}
	for _, f := range []struct {
		raw  json.RawMessage
		into any
	}{{r.Mesh, &p.mesh}, {r.Namespace, &p.namespace}, {r.Services, &p.services}, {r.Workloads, &p.workloads}} {
		if len(f.raw) == 0 {
			continue
		}
		d := json.NewDecoder(strings.NewReader(string(f.raw)))
		d.DisallowUnknownFields()
		if err := d.Decode(f.into); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// assemble joins the parts of a repository into a document.
func assemble(units []directory, parts []*part) (*v1alpha1.Document, diag.List) {
	var findings diag.List
	size := 0
	for _, p := range parts {
		size += len(p.positions)
	}
	doc := &v1alpha1.Document{Positions: make(map[string]diag.Pos, size), Policy: v1alpha1.Policy{
		Namespaces: map[string]v1alpha1.Namespace{},
		Services:   map[string]map[string]v1alpha1.Service{},
		Workloads:  map[string]map[string]v1alpha1.Workload{},
	}}
	var root *part
	skipped := 0
	above := 0 // findings of units above namespaces, which come first
	if units[0].dir != "" {
		above++ // there is no mesh.cue, which is said
	}
	for i, p := range parts {
		findings = append(findings, p.findings...)
		if above+len(p.findings) == 0 { // else it is told already
			findings = append(findings, p.echoes...)
		}
		u := units[i]
		ns := unit{Dir: u.dir}.namespace()
		if u.dir == "" {
			root, doc.Policy.Mesh = p, p.mesh
		}
		for path, pos := range p.positions {
			if _, ok := doc.Positions[path]; !ok {
				doc.Positions[path] = pos
			}
		}
		if ns == "" {
			above += len(p.findings)
			continue
		}
		if p.skipped {
			skipped++
		}
		if (len(p.findings)+len(p.echoes) > 0 || p.skipped) && len(p.broken) == 0 {
			doc.Unread = append(doc.Unread, ns)
			continue
		}
		for _, name := range p.broken {
			doc.Unread = append(doc.Unread, ns+"/"+name)
		}
		if len(p.broken) == 0 && root != nil && root.mesh != nil && p.rawMesh != root.rawMesh {
			pos := p.touches
			if pos.IsZero() {
				pos = diag.Pos{File: u.blobs[0].name, Line: 1, Column: 1}
			}
			findings.Add(diag.Finding{ID: diag.OutsideFence, Path: "mesh", Pos: pos,
				Message: fmt.Sprintf("%s/ may not write mesh: it belongs to mesh.cue", u.dir),
				Hint:    "a reference or comprehension in this directory sets a field of mesh; remove it"})
		}
		if p.namespace != nil {
			doc.Policy.Namespaces[ns] = *p.namespace
		}
		if p.services != nil {
			doc.Policy.Services[ns] = p.services
		}
		if p.workloads != nil {
			doc.Policy.Workloads[ns] = p.workloads
		}
	}
	if doc.Policy.Mesh == nil {
		doc.Unread = append(doc.Unread, meshFile) // what is wrong with it is said; no namespace has a dot in its name
	}
	if skipped > 0 {
		findings.Add(diag.Finding{ID: diag.Runaway, Pos: diag.Pos{File: "services"},
			Message: fmt.Sprintf("%d directories were not looked at, because what is named here ran away before", skipped),
			Hint:    "mend those first"})
	}
	return doc, findings
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
