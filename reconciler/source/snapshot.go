package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Snapshot is the files of one commit. It is never written again after [Source.Snapshot] returned it; the contents are
// read on demand.
type Snapshot struct {
	Commit Commit
	// Files are the regular files, executable or not, sorted by path. What a finding refuses is not among them.
	Files []File

	src  *Source
	root *dir
	text map[string][]byte // of files that are not committed, by path; nil: they are in src
}

// Uncommitted makes a snapshot, of no commit, of files that lie in memory, by slash-separated path. They must not be
// written after it. What is wrong with their names is for the caller to find; see [Limits.Judge].
func Uncommitted(text map[string][]byte) *Snapshot {
	sn := &Snapshot{text: text, Files: make([]File, 0, len(text))}
	for name, b := range text {
		sn.Files = append(sn.Files, File{Path: name, Hash: plumbing.ComputeHash(plumbing.BlobObject, b).String(), Size: int64(len(b))})
	}
	slices.SortFunc(sn.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return sn
}

// File is a regular file of a commit.
type File struct {
	Path string // slash-separated, relative to the root of the repository, clean
	Hash string // git's hash of the content: the same content has the same hash wherever it lies
	Size int64  // bytes
}

// Read returns the content of a file of this snapshot; it belongs to the caller. Content that does not have the file's
// size and hash is an error: the repository is damaged.
func (sn *Snapshot) Read(f File) ([]byte, error) {
	if sn.text != nil {
		b, ok := sn.text[f.Path]
		if !ok {
			return nil, fmt.Errorf("reading %s: %w", f.Path, fs.ErrNotExist)
		}
		return slices.Clone(b), nil
	}
	h, err := parseHash(f.Hash)
	if err != nil {
		return nil, err
	}
	var b []byte
	err = sn.src.read(context.Background(), func(st *store) (err error) {
		b, err = st.content(h, plumbing.BlobObject, sn.src.opts.Limits.FileSize)
		if err == nil && int64(len(b)) != f.Size {
			err = damaged(h, fmt.Errorf("it has %d bytes, not %d", len(b), f.Size))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Path, sn.src.about(plumbing.NewHash(sn.Commit.Hash), err))
	}
	return b, nil
}

// Directory returns git's hash of a directory, "" for the root: the same hash means the same files below it, refused
// ones included. ok is false when there is no such directory, or it was refused.
func (sn *Snapshot) Directory(path string) (hash string, ok bool) {
	d := sn.root
	if d == nil {
		return "", false // they are in memory, in no directory
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" && path == "" {
			break
		}
		i := slices.IndexFunc(d.entries, func(e entry) bool { return e.sub != nil && e.name == name })
		if i < 0 {
			return "", false
		}
		d = d.entries[i].sub
	}
	return d.hash.String(), true
}

// dir is a directory that was walked, with its place: paths are whole. It is immutable, so that the next snapshot takes
// over those that did not change.
type dir struct {
	hash     plumbing.Hash
	entries  []entry   // regular files and directories, in git's order
	findings diag.List // about its own entries
	below    count     // all that is in and under it
}

type entry struct {
	name string
	sub  *dir // nil for a file
	file File
}

type count struct {
	files, entries, findings int
	bytes                    int64
}

func (c *count) add(d count) {
	c.files += d.files
	c.entries += d.entries
	c.findings += d.findings
	c.bytes += d.bytes
}

// Snapshot returns the files of a commit, and findings about what a policy repository may not hold: symbolic links,
// submodules, files and trees beyond the limits, names that are no file names everywhere. All findings are collected,
// except when there are more files than the limit: then the walk ends there. Directories that are as they were in the
// previous snapshot are not read again.
//
// An error is about the repository, not about what an author wrote; it wraps [ErrUnknownCommit] when there is no such
// commit. When a remote's clone turns out to be damaged it is made anew once, before an error is returned.
func (s *Source) Snapshot(ctx context.Context, commit string) (*Snapshot, diag.List, error) {
	h, err := parseHash(commit)
	if err != nil {
		return nil, nil, err
	}
	sn, findings, err := s.snapshot(ctx, h, "")
	if isDamage(err) && !s.Local() {
		if _, again := s.renew(ctx); again != nil {
			return nil, nil, fmt.Errorf("%w; cloning it anew failed too: %w", s.about(h, err), again)
		}
		sn, findings, err = s.snapshot(ctx, h, "")
	}
	if err != nil {
		return nil, nil, s.about(h, err)
	}
	return sn, findings, nil
}

// snapshot reads what a commit holds below subdir, "" for all of it.
func (s *Source) snapshot(ctx context.Context, h plumbing.Hash, subdir string) (*Snapshot, diag.List, error) {
	sn := &Snapshot{src: s}
	var findings diag.List
	var missing error
	err := s.read(ctx, func(st *store) error {
		c, err := st.commit(h)
		if err != nil {
			return err
		}
		tree, ok, err := st.below(c.tree, subdir)
		if err != nil {
			return err
		}
		if !ok {
			missing = fmt.Errorf("%s: %w", subdir, ErrNoDirectory)
			return nil
		}
		if s.rootAt != subdir {
			s.root = nil // paths in it are relative to another place
		}
		w := walker{ctx: ctx, store: st, limits: s.opts.Limits}
		root, err := w.walk("", tree, s.root)
		if errors.Is(err, errTooMany) {
			root = &dir{hash: tree}
			findings = diag.List{tooMany(w.limits)}
			err = nil
		} else if err == nil {
			s.root, s.rootAt = root, subdir
			findings = w.judge(root)
		}
		sn.Commit, sn.root = c.describe(), root
		return err
	})
	if err = cmp.Or(missing, err); err != nil {
		return nil, nil, err
	}
	sn.Files = make([]File, 0, sn.root.below.files)
	sn.root.each(func(f File) { sn.Files = append(sn.Files, f) })
	return sn, findings, nil
}

func (d *dir) each(f func(File)) {
	for _, e := range d.entries {
		if e.sub != nil {
			e.sub.each(f)
		} else {
			f(e.file)
		}
	}
}

func (d *dir) collect(to *diag.List) {
	if d.below.findings == 0 {
		return
	}
	*to = append(*to, d.findings...)
	for _, e := range d.entries {
		if e.sub != nil {
			e.sub.collect(to)
		}
	}
}

// errTooMany ends a walk that a commit could otherwise make endless: ten directories of ten directories each, nested
// twenty times, are twenty small objects.
var errTooMany = errors.New("too many files")

type walker struct {
	ctx    context.Context
	store  *store
	limits Limits
	seen   count
}

// walk reads the directory at path, taking over from prev, the directory that was there before, what did not change.
func (w *walker) walk(path string, h plumbing.Hash, prev *dir) (*dir, error) {
	if prev != nil && prev.hash == h {
		w.seen.add(prev.below)
		return prev, w.bounded()
	}
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	tree, err := w.store.tree(h)
	if err != nil {
		return nil, err
	}
	var before map[string]entry
	if prev != nil {
		before = make(map[string]entry, len(prev.entries))
		for _, e := range prev.entries {
			before[e.name] = e
		}
	}
	d := &dir{hash: h, entries: make([]entry, 0, len(tree))}
	var names folder
	for _, t := range tree {
		own := count{entries: 1}
		full := t.Name
		if path != "" {
			full = path + "/" + t.Name
		}
		was, known := before[t.Name]
		finding := refuse(t.Name, full)
		if finding == nil {
			finding = refuseKind(kind(t.Mode), full)
		}
		if finding == nil {
			var collision *diag.Finding
			if finding, collision = names.add(t.Name, full, false); collision != nil {
				collision.Pos.File = full
				d.findings.Add(*collision)
				own.findings++
			}
		}
		switch {
		case finding != nil:
		case t.Mode == filemode.Dir:
			sub, err := w.walk(full, t.Hash, was.sub)
			if err != nil {
				return nil, err
			}
			d.entries = append(d.entries, entry{name: t.Name, sub: sub})
			d.below.add(sub.below)
		case known && was.sub == nil && was.file.Hash == t.Hash.String():
			own.files, own.bytes = 1, was.file.Size
			d.entries = append(d.entries, was)
		default:
			own.files = 1
			size, err := w.store.size(t.Hash)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", full, err)
			}
			if size > w.limits.FileSize {
				finding = tooLarge(full, size, w.limits)
				break
			}
			own.bytes = size
			d.entries = append(d.entries, entry{name: t.Name, file: File{Path: full, Hash: t.Hash.String(), Size: size}})
		}
		if finding != nil {
			finding.Pos.File = cmp.Or(finding.Pos.File, full)
			d.findings.Add(*finding)
			own.findings++
		}
		d.below.add(own)
		w.seen.add(own)
		if err := w.bounded(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func kind(m filemode.FileMode) Kind {
	switch m {
	case filemode.Symlink:
		return Link
	case filemode.Submodule:
		return Module
	}
	return Regular
}

func (w *walker) bounded() error {
	if w.seen.files > w.limits.Files || w.seen.entries > 2*w.limits.Files {
		return errTooMany
	}
	return nil
}

// judge collects the findings of a whole tree.
func (w *walker) judge(root *dir) diag.List {
	var l diag.List
	root.collect(&l)
	if root.below.bytes > w.limits.TreeSize {
		var files []File
		root.each(func(f File) { files = append(files, f) })
		l.Add(treeTooLarge(files, root.below.bytes, w.limits))
	}
	return l.Sorted()
}
