// Package policy turns the files of a commit into a policy document, plain Go values with the author's position of
// every field, or into findings about what is wrong with them.
//
// It is the only home of CUE. CUE is a language in which a page of text can ask for an hour or a terabyte, and its
// evaluation cannot be cancelled; so all of it, from the first parse on, happens in a child process: this same program,
// started again under limits, with an empty environment, which gets the files over a pipe and opens nothing. What
// comes back is judged as data from outside. The parent only sorts files by name, compares hashes and decodes JSON.
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
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

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
}

// key is a hash over everything that decides a directory's result: its files, its ancestors', the schema, the
// environment and the language version. Those of the program itself (the version of CUE, the limits) are the same as
// long as the cache lives.
type key [sha256.Size]byte

// part is what one unit came to. Parts are shared by documents and never written again, but for used.
type part struct {
	findings  diag.List
	rawMesh   string
	mesh      *v1alpha1.Mesh
	namespace *v1alpha1.Namespace
	services  map[string]v1alpha1.Service
	workloads map[string]v1alpha1.Workload
	positions map[string]diag.Pos
	names     []string

	used uint64 // the last turn that asked for it; guarded by Evaluator.mu
}

// keep is for how many loads a part that is not asked for is remembered: reverting a commit, or going to and fro between
// branches, evaluates nothing.
const keep = 16

// New makes an Evaluator. The program must call [MaybeRunChild] first thing in main.
func New(opts Options) *Evaluator {
	return &Evaluator{opts: opts.withDefaults(), cache: map[key]*part{}}
}

// LoadFiles evaluates the files of a repository, by slash-separated path. env is the value for the field tagged
// @tag(env); empty leaves the field's own default.
//
// It returns the document, or all findings. Where some directories have findings and others not, it returns both: a
// document with what could be read, whose Unread names the rest, so that later stages can look for more findings in it.
// Such a document must never be published. The error is a fault of this machine, not of the policy: the same call may
// succeed later.
func (e *Evaluator) LoadFiles(ctx context.Context, files map[string][]byte, env string) (*v1alpha1.Document, diag.List, error) {
	if !hooked.Load() {
		return nil, nil, errors.New("policy cannot be evaluated: this program does not call policy.MaybeRunChild first thing in main")
	}
	t, findings := layout(files)
	language, found := checkModule(t.module)
	findings = append(findings, found...)
	if len(t.mesh) == 0 && len(t.above) == 0 && len(t.dirs) == 0 {
		return nil, findings.Sorted(), nil
	}

	units, keys := t.units(language, env)
	parts, err := e.parts(ctx, request{Language: language, Env: env, Mesh: t.mesh, Above: t.above}, units, keys)
	if err != nil {
		return nil, nil, err
	}
	doc, found := assemble(units, parts)
	findings = append(findings, found...).Sorted()
	return doc, findings, nil
}

// units lists what is to be evaluated, the ancestors first, and the key of each.
func (t tree) units(language, env string) ([]unit, []key) {
	sum := func(seed key, files ...[]file) key {
		h := sha256.New()
		h.Write(seed[:])
		var n [8]byte
		for _, fs := range files {
			for _, f := range fs {
				for _, b := range [][]byte{[]byte(f.Name), f.Data} {
					binary.BigEndian.PutUint64(n[:], uint64(len(b)))
					h.Write(n[:])
					h.Write(b)
				}
			}
		}
		return key(h.Sum(nil))
	}
	seed := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", v1alpha1.Digest(), language, env))
	var units []unit
	var keys []key
	if len(t.mesh) > 0 {
		units = append(units, unit{Dir: "", Files: t.mesh})
		keys = append(keys, sum(seed, t.mesh))
	}
	if len(t.above) > 0 {
		units = append(units, unit{Dir: "services", Files: t.above})
		keys = append(keys, sum(seed, t.mesh, t.above))
	}
	above := sum(seed, t.mesh, t.above)
	for _, u := range t.dirs {
		units = append(units, u)
		keys = append(keys, sum(above, u.Files))
	}
	return units, keys
}

// parts returns the part of each unit, from the cache or from children.
func (e *Evaluator) parts(ctx context.Context, req request, units []unit, keys []key) ([]*part, error) {
	out := make([]*part, len(units))
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

	// A child costs some 20 ms to start: a few directories are not worth a second one.
	const enough = 4
	workers := max(1, min(e.opts.Workers, len(todo)/enough))
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		batch := todo[w*len(todo)/workers : (w+1)*len(todo)/workers]
		g.Go(func() error {
			us := make([]unit, len(batch))
			for i, j := range batch {
				us[i] = units[j]
			}
			return e.run(ctx, req, us, func(i int, r result) error {
				p, err := decode(r)
				if err != nil {
					return fmt.Errorf("reading what %s evaluates to: %w", name(us[i]), err)
				}
				p.used = turn
				j := batch[i]
				out[j] = p
				e.mu.Lock()
				defer e.mu.Unlock()
				e.cache[keys[j]] = p
				return nil
			})
		})
	}
	return out, g.Wait()
}

// decode reads a child's answer, as strictly as anything from outside.
func decode(r result) (*part, error) {
	p := &part{findings: r.Findings, rawMesh: string(r.Mesh), positions: r.Positions, names: r.Names}
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
func assemble(units []unit, parts []*part) (*v1alpha1.Document, diag.List) {
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
	for i, p := range parts {
		findings = append(findings, p.findings...)
		u := units[i]
		ns := u.namespace()
		if u.Dir == "" {
			root, doc.Policy.Mesh = p, p.mesh
		}
		for path, pos := range p.positions {
			if _, ok := doc.Positions[path]; !ok {
				doc.Positions[path] = pos
			}
		}
		if ns == "" {
			continue
		}
		if len(p.findings) > 0 {
			doc.Unread = append(doc.Unread, ns)
			continue
		}
		if root != nil && root.mesh != nil && p.rawMesh != root.rawMesh {
			findings.Add(diag.Finding{ID: diag.OutsideFence, Path: "mesh", Pos: diag.Pos{File: u.Files[0].Name, Line: 1, Column: 1},
				Message: fmt.Sprintf("%s/ may not write mesh: it belongs to mesh.cue", u.Dir), Hint: "a reference or comprehension in this directory sets a field of mesh; remove it"})
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
	return doc, findings
}

var languageVersion = regexp.MustCompile(`language\s*:\s*\{?\s*version\s*:\s*"([^"]*)"`)

// checkModule looks at cue.mod/module.cue. A repository without one is read in the lowest language version.
func checkModule(module []byte) (language string, findings diag.List) {
	const name = "cue.mod/module.cue"
	language = v1alpha1.LowestLanguage
	if i := strings.Index(string(module), "github.com/heddle-mesh/heddle"); i >= 0 {
		line := 1 + strings.Count(string(module[:i]), "\n")
		findings.Add(diag.Finding{ID: diag.ForeignImport, Pos: diag.Pos{File: name, Line: line},
			Message: "the schema is named as a dependency and also vendored under cue.mod/pkg: CUE calls that import ambiguous",
			Hint:    "remove it from module.cue; the copy under cue.mod/pkg is enough"})
	}
	m := languageVersion.FindSubmatchIndex(module)
	if m == nil {
		return language, findings
	}
	got := string(module[m[2]:m[3]])
	v, ok := version(got)
	low, _ := version(v1alpha1.LowestLanguage)
	high, _ := version(v1alpha1.HighestLanguage)
	if !ok || v < low || v > high {
		findings.Add(diag.Finding{ID: diag.WrongValue, Path: "language.version", Pos: diag.Pos{File: name, Line: 1 + strings.Count(string(module[:m[0]]), "\n")},
			Message: fmt.Sprintf("language version %q is not one this Heddle reads", clip(got)),
			Hint:    fmt.Sprintf("write %q; %s to %s are read", v1alpha1.LowestLanguage, v1alpha1.LowestLanguage, v1alpha1.HighestLanguage)})
		return language, findings
	}
	return got, findings
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
