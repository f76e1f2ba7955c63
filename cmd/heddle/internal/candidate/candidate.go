// Package candidate turns a policy repository on this machine into what the reconciler would make of it: files, the
// evaluated document, the compiled mesh with its origins, and the findings of every stage. The files are those of a work
// tree as they lie there, or of any revision of the Git repository around it; no mesh needs to run. All commands that
// look at policy look through it, so that they cannot disagree.
//
// It writes nothing, but for the cache that its caller names. Errors are faults of the world (what an author wrote is
// a finding), and say what to do. What a reconciler has published is package published's.
package candidate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Options say how to judge. The zero Options are what the reconciler of this version does.
type Options struct {
	// Proxy is the version of heddle-proxy whose enforcement counts; see compile.Options.
	Proxy string
	// Now is when it is judged. The zero time warns of no rule that ends, and is before every end.
	Now time.Time
	// CacheDir keeps evaluations from one process to the next; empty: nothing does. See policy.Options.
	CacheDir string
}

// Repository is a directory with policy in it. Evaluations are remembered from one revision to the next, so that a walk
// through history costs what each commit changed. It is for one goroutine. Close it after use.
type Repository struct {
	dir       string
	opts      Options
	evaluator *policy.Evaluator
	compiled  compile.Cache
	local     *source.Local // nil until a revision is asked for
}

// Open prepares to read a directory. It may lie below the root of a Git repository, or in none.
func Open(dir string, opts Options) *Repository {
	return &Repository{dir: dir, opts: opts, evaluator: policy.New(policy.Options{CacheDir: opts.CacheDir})}
}

// Close lets go of the Git repository.
func (r *Repository) Close() error {
	if r.local == nil {
		return nil
	}
	return r.local.Close()
}

// Dir is the directory as it was named.
func (r *Repository) Dir() string { return r.dir }

// Git opens the Git repository that the directory is part of.
func (r *Repository) Git() (*source.Local, error) {
	if r.local == nil {
		local, err := source.OpenLocal(r.dir)
		if err != nil {
			return nil, err
		}
		r.local = local
	}
	return r.local, nil
}

// Files are those of one state of a repository.
type Files struct {
	// Commit is the zero Commit for a work tree.
	Commit source.Commit
	// Findings are about what a repository may not hold; what they refuse is not among the files.
	Findings diag.List

	repo     *Repository
	lenient  bool
	snapshot *source.Snapshot
	content  map[string][]byte // of a work tree, by slash-separated path
}

// Len is the number of files.
func (f *Files) Len() int { return len(f.snapshot.Files) }

// Has reports whether there is a file.
func (f *Files) Has(name string) bool { return f.Hash(name) != "" }

// Hash is git's hash of a file's content, "" where there is no such file.
func (f *Files) Hash(name string) string {
	i, ok := f.find(name)
	if !ok {
		return ""
	}
	return f.snapshot.Files[i].Hash
}

func (f *Files) find(name string) (int, bool) {
	return slices.BinarySearchFunc(f.snapshot.Files, name, func(file source.File, name string) int { return strings.Compare(file.Path, name) })
}

// Name is "commit" and its first digits, or "the work tree".
func (f *Files) Name() string {
	if f.Commit.Hash == "" {
		return "the work tree"
	}
	return "commit " + f.Commit.Hash[:min(7, len(f.Commit.Hash))]
}

// WorkTree reads the files of the directory that a commit of all of it would hold: what Git ignores is left out.
func (r *Repository) WorkTree(ctx context.Context) (*Files, error) {
	if info, err := os.Stat(r.dir); err != nil {
		return nil, fmt.Errorf("reading %s: %w", r.dir, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("reading %s: it is not a directory", r.dir)
	}
	names, err := treeNames(ctx, r.dir)
	if err != nil {
		return nil, err
	}
	entries := make([]source.Entry, 0, len(names))
	for _, name := range names {
		info, err := os.Lstat(r.at(name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted, and not committed yet
			continue
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", r.at(name), err)
		}
		e := source.Entry{Path: name, Size: info.Size()}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			e.Kind = source.Link
		case info.IsDir(): // git names a directory only where it is a repository of its own
			e.Kind = source.Module
		case !info.Mode().IsRegular():
			continue // git does not commit it
		}
		entries = append(entries, e)
	}
	f := &Files{repo: r}
	entries, f.Findings = source.Limits{}.Judge(entries)
	f.content = make(map[string][]byte, len(entries))
	for _, e := range entries {
		if f.content[e.Path], err = os.ReadFile(r.at(e.Path)); err != nil {
			return nil, fmt.Errorf("reading %s: %w", r.at(e.Path), err)
		}
	}
	f.snapshot = source.Uncommitted(f.content)
	return f, nil
}

func (r *Repository) at(name string) string { return filepath.Join(r.dir, filepath.FromSlash(name)) }

// treeNames are the slash-separated names of a directory's files: those that git tracks or would add and, outside a
// repository, all.
func treeNames(ctx context.Context, dir string) ([]string, error) {
	if git, err := exec.LookPath("git"); err == nil {
		cmd := exec.CommandContext(ctx, git, "-C", dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
		if out, err := cmd.Output(); err == nil {
			var names []string
			for name := range bytes.SplitSeq(out, []byte{0}) {
				if len(name) > 0 {
					names = append(names, strings.TrimSuffix(string(name), "/"))
				}
			}
			slices.Sort(names)
			return slices.Compact(names), nil
		}
	}
	var names []string
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("reading %s: %w", at, err)
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		rel, err := filepath.Rel(dir, at)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	return names, err
}

// Resolve finds the commit that a revision names.
func (r *Repository) Resolve(ctx context.Context, rev string) (source.Commit, error) {
	local, err := r.Git()
	if err != nil {
		return source.Commit{}, err
	}
	return local.Resolve(ctx, rev)
}

// At reads the files of a commit below the directory.
func (r *Repository) At(ctx context.Context, commit source.Commit) (*Files, error) {
	local, err := r.Git()
	if err != nil {
		return nil, err
	}
	sn, findings, err := local.At(ctx, commit.Hash, local.Subdir())
	if err != nil {
		return nil, err
	}
	return &Files{Commit: commit, Findings: findings, repo: r, snapshot: sn}, nil
}

// Names are the slash-separated paths of all files, sorted.
func (f *Files) Names() []string {
	names := make([]string, len(f.snapshot.Files))
	for i, file := range f.snapshot.Files {
		names[i] = file.Path
	}
	return names
}

// Content is a work tree's file. It is not to be written.
func (f *Files) Content(name string) []byte { return f.content[name] }

// With is the files of a work tree with one more, which is not on the disk.
func (f *Files) With(name string, text []byte) *Files {
	out := *f
	out.content = maps.Clone(f.content)
	out.content[name] = text
	out.snapshot = source.Uncommitted(out.content)
	return &out
}

// Line is a line of a file, without the white space around it; "" where there is none.
func (f *Files) Line(p diag.Pos) string {
	i, ok := f.find(p.File)
	if !ok {
		return ""
	}
	text, err := f.snapshot.Read(f.snapshot.Files[i])
	if err != nil {
		return "" // a place without its text is still a place
	}
	n := 1
	for line := range bytes.Lines(text) {
		if n == p.Line {
			return string(bytes.TrimSpace(line))
		}
		n++
	}
	return ""
}

// Log walks first parents from a commit, newest first, through those that changed the directory.
func (r *Repository) Log(ctx context.Context, from source.Commit) iter.Seq2[source.Commit, error] {
	return func(yield func(source.Commit, error) bool) {
		local, err := r.Git()
		if err != nil {
			yield(source.Commit{}, err)
			return
		}
		local.Log(ctx, from.Hash, local.Subdir())(yield)
	}
}

// AtTime is the commit that made the directory what it was at a time, along the first parents of HEAD.
func (r *Repository) AtTime(ctx context.Context, t time.Time) (source.Commit, error) {
	head, err := r.Resolve(ctx, "HEAD")
	if err != nil {
		return source.Commit{}, err
	}
	commit, err := r.local.AtTime(ctx, head.Hash, r.local.Subdir(), t)
	if errors.Is(err, source.ErrNoDirectory) {
		return commit, fmt.Errorf("there was no policy in %s at %s: git log shows when it came", r.dir, t.Format(time.RFC3339))
	}
	return commit, err
}

// Head is the commit that is checked out, and whether the files of the work tree differ from it.
func (r *Repository) Head(ctx context.Context, tree *Files) (head source.Commit, dirty bool, err error) {
	if head, err = r.Resolve(ctx, "HEAD"); err != nil {
		return head, false, err
	}
	committed, err := r.At(ctx, head)
	if errors.Is(err, source.ErrNoDirectory) {
		return head, true, nil
	}
	if err != nil {
		return head, false, err
	}
	same := slices.EqualFunc(tree.snapshot.Files, committed.snapshot.Files, func(a, b source.File) bool { return a.Path == b.Path && a.Hash == b.Hash })
	return head, len(tree.Findings) > 0 || !same, nil
}

// mainline are the names of what a pull request usually goes to, most telling first.
var mainline = []string{"refs/remotes/upstream/main", "refs/remotes/origin/HEAD", "refs/remotes/origin/main", "refs/remotes/origin/master",
	"refs/heads/main", "refs/heads/master"}

// Base is what the work tree is compared with where nobody says: the commit where HEAD left the main branch, which is
// HEAD itself on that branch, and where there is none.
func (r *Repository) Base(ctx context.Context) (source.Commit, error) {
	head, err := r.Resolve(ctx, "HEAD")
	if err != nil {
		return head, err
	}
	return r.base(ctx, head, "HEAD")
}

// HasMain reports whether there is a main branch to compare with.
func (r *Repository) HasMain(ctx context.Context) bool {
	return slices.ContainsFunc(mainline, func(ref string) bool {
		_, err := r.local.Resolve(ctx, ref)
		return err == nil
	})
}

// BaseOf is what a commit is compared with where nobody says: where it left the main branch and, if it is on it, its
// first parent.
func (r *Repository) BaseOf(ctx context.Context, commit source.Commit) (source.Commit, error) {
	base, err := r.base(ctx, commit, commit.Hash)
	if err != nil || base.Hash != commit.Hash {
		return base, err
	}
	return r.Resolve(ctx, commit.Hash+"~1")
}

func (r *Repository) base(ctx context.Context, tip source.Commit, name string) (source.Commit, error) {
	for _, ref := range mainline {
		main, err := r.local.Resolve(ctx, ref)
		if err != nil {
			continue
		}
		base, err := r.local.MergeBase(ctx, tip.Hash, main.Hash)
		if err != nil {
			return base, fmt.Errorf("looking for where %s left %s: %w; name the old side with --from", name, ref, err)
		}
		return base, nil
	}
	return tip, nil
}

// Lenient is the same files, judged as mildly as can be: they may have been written for another version of Heddle. What
// compiles is compiled, whatever else is said about it, and no sidecar is asked what it enforces.
func (f *Files) Lenient() *Files {
	out := *f
	out.lenient = true
	return &out
}

// Candidate is what the files are for one environment.
type Candidate struct {
	Files *Files
	Env   string // "" is the repository's own default
	// Document is nil where nothing could be read.
	Document *v1alpha1.Document
	// Mesh and Origins are nil where a finding rejects it.
	Mesh    *mesh.Mesh
	Origins mesh.Origins
	// Findings are those of all stages so far, sorted.
	Findings diag.List
	// Results are those of the expectations, after [Candidate.Prove].
	Results []expect.Result
}

// Evaluate evaluates and compiles the files for an environment.
func (f *Files) Evaluate(ctx context.Context, env string) (*Candidate, error) {
	c := &Candidate{Files: f, Env: env, Findings: slices.Clone(f.Findings)}
	var found diag.List
	var err error
	c.Document, found, err = f.repo.evaluator.Load(ctx, f.snapshot, env)
	if err != nil {
		return nil, fmt.Errorf("evaluating %s: %w", f.Name(), err)
	}
	c.Findings = append(c.Findings, found...)
	if c.Document != nil {
		o := compile.Options{ProxyVersion: f.repo.opts.Proxy, Now: f.repo.opts.Now}
		c.Mesh, c.Origins, found = f.repo.compiled.Compile(c.Document, o)
		if f.lenient && c.Mesh == nil { // what the chosen version enforces is the same for every version that enforces it all
			o.ProxyVersion = "any"
			c.Mesh, c.Origins, found = compile.Compile(c.Document, o)
		}
		c.Findings = append(c.Findings, found...)
	}
	c.Findings = c.Findings.Sorted()
	if len(c.Findings.Errors()) > 0 && !f.lenient {
		c.Mesh, c.Origins = nil, nil
	}
	return c, nil
}

// Prove adds what the repository says of itself: its expectations are run and its invariants proved. A candidate with
// errors has no mesh to prove anything of, and is left as it is.
func (c *Candidate) Prove() {
	if c.Mesh == nil {
		return
	}
	results, found := expect.Run(c.Document, c.Mesh, c.Origins, c.Files.repo.opts.Now)
	c.Results = results
	found = append(found, c.prove()...)
	c.Findings = append(c.Findings, found...).Sorted()
}

// Environments are "", the repository's own default, and those that mesh.environments names.
func (c *Candidate) Environments() []string {
	envs := []string{""}
	if c.Document != nil && c.Document.Policy.Mesh != nil {
		for _, env := range c.Document.Policy.Mesh.Environments {
			if env != "" && !slices.Contains(envs, env) {
				envs = append(envs, env)
			}
		}
	}
	return envs
}
