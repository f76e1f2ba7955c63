package source

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Local reads the revisions of a repository on this machine: what commands that compare, blame and look back need. It
// follows no ref and writes nothing, anywhere. Work trees (also linked ones), bare repositories and shallow clones are
// read; where a shallow clone lacks what is asked for, the error is a [ShallowError].
//
// A policy repository may be a directory of a larger one. Methods that take a subdir look at the tree below it only; ""
// is the whole repository, and [Local.Subdir] the directory that was opened.
//
// Its methods may be called at the same time from several goroutines.
type Local struct {
	src    *Source
	root   string
	subdir string
}

// ShallowError says that a history is cut off before the answer.
type ShallowError struct {
	Repository string // its path
	Commit     string // full hash of the last commit that is there
}

func (e *ShallowError) Error() string {
	return fmt.Sprintf("%s is a shallow clone, and its history is cut off before commit %.12s: make it whole with git fetch --unshallow",
		e.Repository, e.Commit)
}

// ErrNoDirectory is wrapped when a commit does not have the directory that was asked for.
var ErrNoDirectory = errors.New("the commit has no such directory")

// OpenLocal finds the repository that a directory is part of. The directory need not be the repository's root, nor need
// it exist in any commit. Close the result after use.
func OpenLocal(dir string) (*Local, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("opening the repository of %s: %w; name a directory inside a git repository", dir, err)
	}
	if st, err := os.Stat(real); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("opening the repository of %s: it is not a directory; name the one that holds mesh.cue", dir)
	}
	root := real
	for up := real; ; up = filepath.Dir(up) {
		if _, err := os.Lstat(filepath.Join(up, ".git")); err == nil || bare(up) {
			root = up
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening the repository of %s: %w", dir, err)
		}
		if up == filepath.Dir(up) {
			return nil, fmt.Errorf("%s is not inside a git repository, so it has no revisions; make one there with git init, and commit", dir)
		}
	}
	layout, err := findRepository(root)
	if err != nil {
		return nil, err
	}
	sub, err := filepath.Rel(root, real)
	if err != nil {
		return nil, err
	}
	if sub = filepath.ToSlash(sub); sub == "." || bare(root) {
		sub = ""
	}
	return &Local{
		src:  &Source{opts: Options{Ref: "HEAD", Limits: Limits{}.withDefaults()}, masked: root, local: layout},
		root: root, subdir: sub,
	}, nil
}

// bare reports whether a directory looks like a bare repository, as git judges it.
func bare(dir string) bool {
	for _, need := range []string{"HEAD", "objects", "refs"} {
		if _, err := os.Stat(filepath.Join(dir, need)); err != nil {
			return false
		}
	}
	return true
}

// Root is the absolute path of the repository: of its work tree, or of the bare directory.
func (l *Local) Root() string { return l.root }

// Subdir is the slash-separated path of the opened directory inside the repository, "" for the root.
func (l *Local) Subdir() string { return l.subdir }

// Close closes the files that are open. A call after it opens again what it needs.
func (l *Local) Close() error { return l.src.Close() }

// Resolve finds the commit that a revision names: a branch, tag or remote branch ("main", "v1", "origin/main"), HEAD or
// "@", a full or shortened hash (4 digits or more), what git describe prints, each perhaps followed by "~n" and "^n"
// (parents) or "^{commit}". Names are looked up in git's order. Reflogs ("main@{1}") are not read: what they say differs
// between clones.
//
// The error says what there is instead.
func (l *Local) Resolve(ctx context.Context, rev string) (Commit, error) {
	base, steps, err := parseRevision(rev)
	if err != nil {
		return Commit{}, err
	}
	var c *commit
	var missing error // said once, not tried again
	err = l.src.read(ctx, func(st *store) error {
		missing = nil
		h, err := l.base(st, base)
		var no *noRevision
		if errors.As(err, &no) {
			missing = err
			return nil
		}
		if err != nil {
			return err
		}
		if has, err := st.has(h); err != nil {
			return err
		} else if !has {
			return ErrUnknownCommit
		}
		if h, err = st.peel(h); err != nil {
			return err
		}
		if c, err = st.commit(h); err != nil {
			return err
		}
		for _, n := range steps {
			parents, err := l.parents(st, c)
			if err != nil {
				return err
			}
			if n > len(parents) {
				missing = fmt.Errorf("revision %q: commit %.12s has %d parents, and no %dth; git log --oneline --graph shows the history",
					rev, c.hash, len(parents), n)
				return nil
			}
			if c, err = st.commit(parents[n-1]); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrUnknownCommit) {
		err = fmt.Errorf("%w; git fetch brings what a remote has", err)
	}
	if err = cmp.Or(missing, err); err != nil {
		return Commit{}, fmt.Errorf("finding revision %q of %s: %w", rev, l.root, err)
	}
	return c.describe(), nil
}

// parseRevision splits a revision into a name and the parents to follow from it, each by its number from 1.
func parseRevision(rev string) (base string, steps []int, err error) {
	bad := func(hint string) (string, []int, error) {
		return "", nil, fmt.Errorf("%q is not a revision that can be read: %s", rev, hint)
	}
	const known = "write a branch, a tag, a commit's hash, or one of them followed by ~n, such as HEAD~2"
	if rev == "" || strings.ContainsFunc(rev, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return bad(known)
	}
	if strings.Contains(rev, "..") {
		return bad("it names a range; name one commit at a time")
	}
	end := strings.IndexAny(rev, "~^")
	if end < 0 {
		end = len(rev)
	}
	base, rest := rev[:end], rev[end:]
	if strings.Contains(base, "@{") {
		return bad("reflogs and upstreams are not read; " + known)
	}
	if strings.Contains(base, ":") || strings.HasPrefix(base, "-") || base == "" {
		return bad(known)
	}
	if base == "@" {
		base = "HEAD"
	}
	const most = 100_000
	for rest != "" {
		if after, ok := strings.CutPrefix(rest, "^{commit}"); ok {
			rest = after
			continue
		}
		op := rest[0]
		n := 1
		digits := len(rest[1:]) - len(strings.TrimLeft(rest[1:], "0123456789"))
		if digits > 0 {
			if n, err = strconv.Atoi(rest[1 : 1+digits]); err != nil || n > most {
				return bad(known)
			}
		}
		rest = rest[1+digits:]
		if rest != "" && rest[0] != '~' && rest[0] != '^' {
			return bad(known)
		}
		switch {
		case op == '~':
			for range n {
				steps = append(steps, 1)
			}
		case n > 0: // ^0 is the commit itself
			steps = append(steps, n)
		}
		if len(steps) > most {
			return bad(known)
		}
	}
	return base, steps, nil
}

// noRevision says that a name stands for nothing; it is no reason to look again.
type noRevision struct{ text string }

func (e *noRevision) Error() string { return e.text }

var (
	hashDigits = regexp.MustCompile(`^[0-9a-f]{4,40}$`)
	described  = regexp.MustCompile(`-g([0-9a-f]{4,40})$`)
)

// base finds the object that a name stands for, in git's order: full hash, ref, short hash.
func (l *Local) base(st *store, name string) (plumbing.Hash, error) {
	if h, err := parseHash(name); err == nil {
		return h, nil
	}
	for _, full := range []string{name, "refs/" + name, "refs/tags/" + name, "refs/heads/" + name, "refs/remotes/" + name, "refs/remotes/" + name + "/HEAD"} {
		if full == name && full != "HEAD" && !strings.HasPrefix(full, "refs/") && strings.Trim(full, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
			continue // only HEAD, ORIG_HEAD and the like stand beside refs/
		}
		ref := plumbing.ReferenceName(full)
		if strings.Contains(full, "//") || ref.Validate() != nil && strings.HasPrefix(full, "refs/") {
			continue
		}
		h, err := follow(st, ref)
		if err == nil {
			return h, nil
		}
		if !errors.Is(err, plumbing.ErrReferenceNotFound) && !errors.Is(err, fs.ErrNotExist) {
			return h, err
		}
	}
	short := strings.ToLower(name)
	if m := described.FindStringSubmatch(short); m != nil {
		short = m[1]
	}
	if hashDigits.MatchString(short) {
		found, err := st.commitsWithPrefix(short)
		switch {
		case err != nil:
			return plumbing.ZeroHash, err
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return plumbing.ZeroHash, &noRevision{fmt.Sprintf("%d commits begin with %s, such as %.12s and %.12s: write more digits",
				len(found), short, found[0], found[1])}
		}
	}
	return plumbing.ZeroHash, l.unknown(st, name)
}

// follow reads a ref, through symbolic ones.
func follow(st *store, name plumbing.ReferenceName) (plumbing.Hash, error) {
	ref, err := st.Reference(name)
	for i := 0; err == nil && ref.Type() == plumbing.SymbolicReference && i < 5; i++ {
		ref, err = st.Reference(ref.Target())
	}
	switch {
	case err != nil:
		return plumbing.ZeroHash, err
	case ref.Type() != plumbing.HashReference:
		return plumbing.ZeroHash, plumbing.ErrReferenceNotFound
	}
	return ref.Hash(), nil
}

// unknown names what there is instead of a name.
func (l *Local) unknown(st *store, name string) error {
	var names []string
	refs, err := st.IterReferences()
	if err != nil {
		return err
	}
	if err := refs.ForEach(func(r *plumbing.Reference) error {
		if n := r.Name(); n.IsBranch() || n.IsTag() || n.IsRemote() {
			names = append(names, n.Short())
		}
		return nil
	}); err != nil {
		return err
	}
	slices.Sort(names)
	names = slices.Compact(names)
	text := "there is no branch, tag or commit of that name"
	switch near := diag.Nearest(name, names); {
	case name == "HEAD" || len(names) == 0:
		text = "there is no commit yet: commit the policy first"
	case near != "":
		text += fmt.Sprintf("; did you mean %q?", near)
	case strings.Contains(name, "/"):
		text += "; git fetch brings what a remote has"
	default:
		const show = 8
		text += "; there are " + strings.Join(names[:min(show, len(names))], ", ")
		if more := len(names) - show; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	return &noRevision{text}
}

// commitsWithPrefix finds the commits, and the tags of commits, whose hash begins with hexadecimal digits.
func (st *store) commitsWithPrefix(digits string) ([]plumbing.Hash, error) {
	whole, err := hex.DecodeString(digits[:len(digits)/2*2])
	if err != nil {
		return nil, err
	}
	var found []plumbing.Hash
	for o := range st.objectStores {
		hashes, err := o.HashesWithPrefix(whole)
		if err != nil {
			return nil, err
		}
		for _, h := range hashes {
			if !strings.HasPrefix(h.String(), digits) || slices.Contains(found, h) {
				continue
			}
			obj, err := st.object(h)
			if err != nil {
				return nil, err
			}
			if obj.Type() == plumbing.CommitObject || obj.Type() == plumbing.TagObject {
				found = append(found, h)
			}
		}
	}
	slices.SortFunc(found, func(a, b plumbing.Hash) int { return strings.Compare(a.String(), b.String()) })
	return found, nil
}

// parents are those of a commit, as far as the history goes: where it is cut off, that is an error.
func (l *Local) parents(st *store, c *commit) ([]plumbing.Hash, error) {
	if st.cut[c.hash] && len(c.parents) > 0 {
		return nil, &ShallowError{Repository: l.root, Commit: c.hash.String()}
	}
	return c.parents, nil
}

// At returns the files of a commit (a full hash, as [Local.Resolve] gives it) below subdir, with paths relative to it,
// and findings as [Source.Snapshot] does. The error wraps [ErrNoDirectory] when the commit has no such directory.
func (l *Local) At(ctx context.Context, commit, subdir string) (*Snapshot, diag.List, error) {
	h, err := parseHash(commit)
	if err != nil {
		return nil, nil, err
	}
	sn, findings, err := l.src.snapshot(ctx, h, clean(subdir))
	if err != nil {
		return nil, nil, l.src.about(h, err)
	}
	return sn, findings, nil
}

func clean(subdir string) string {
	if subdir = path.Clean(filepath.ToSlash(subdir)); subdir == "." || subdir == "/" {
		return ""
	}
	return strings.Trim(subdir, "/")
}

// below finds the tree of a directory under a root tree. ok is false where there is none.
func (st *store) below(root plumbing.Hash, subdir string) (h plumbing.Hash, ok bool, err error) {
	h = root
	if subdir == "" {
		return h, true, nil
	}
	for name := range strings.SplitSeq(subdir, "/") {
		entries, err := st.tree(h)
		if err != nil {
			return h, false, err
		}
		i := -1
		for j, e := range entries {
			if e.Name == name && e.Mode == filemode.Dir {
				i = j
				break
			}
		}
		if i < 0 {
			return plumbing.ZeroHash, false, nil
		}
		h = entries[i].Hash
	}
	return h, true, nil
}

// Log walks from a commit (a full hash) along first parents, newest first, and yields those commits that changed what is
// below subdir, the one that made it and those that removed it included: a merge stands for all that it brought in. The
// trees are compared by their hashes, so that a walk reads no file. After an error, which is yielded last, it ends.
func (l *Local) Log(ctx context.Context, commit, subdir string) iter.Seq2[Commit, error] {
	subdir = clean(subdir)
	return func(yield func(Commit, error) bool) {
		h, err := parseHash(commit)
		if err != nil {
			yield(Commit{}, err)
			return
		}
		c, tree, err := l.look(ctx, h, subdir)
		for {
			if err != nil {
				yield(Commit{}, l.src.about(h, err))
				return
			}
			var parents []plumbing.Hash
			err = l.src.read(ctx, func(st *store) (err error) {
				parents, err = l.parents(st, c)
				return err
			})
			if err != nil {
				continue
			}
			if len(parents) == 0 {
				if !tree.IsZero() {
					yield(c.describe(), nil)
				}
				return
			}
			h = parents[0]
			older, was, failed := l.look(ctx, h, subdir)
			if failed == nil && was != tree && !yield(c.describe(), nil) {
				return
			}
			c, tree, err = older, was, failed
		}
	}
}

// look reads a commit and the tree of a directory in it, the zero hash where it has none.
func (l *Local) look(ctx context.Context, h plumbing.Hash, subdir string) (c *commit, tree plumbing.Hash, err error) {
	err = l.src.read(ctx, func(st *store) (err error) {
		if c, err = st.commit(h); err != nil {
			return err
		}
		tree, _, err = st.below(c.tree, subdir)
		return err
	})
	return c, tree, err
}

// AtTime returns the commit that made what was below subdir at a time what it was: of the first parents of tip (a full
// hash, itself included) the newest one that was committed at or before t, and from there the last one that changed
// subdir. Times are those of the committers' clocks. The error wraps [ErrNoDirectory] where there was nothing yet.
func (l *Local) AtTime(ctx context.Context, tip, subdir string, t time.Time) (Commit, error) {
	h, err := parseHash(tip)
	if err != nil {
		return Commit{}, err
	}
	var c *commit
	for {
		var parents []plumbing.Hash
		err := l.src.read(ctx, func(st *store) (err error) {
			if c, err = st.commit(h); err != nil || !c.time.After(t) {
				return err
			}
			parents, err = l.parents(st, c)
			return err
		})
		if err != nil {
			return Commit{}, l.src.about(h, err)
		}
		if !c.time.After(t) {
			break
		}
		if len(parents) == 0 {
			return Commit{}, fmt.Errorf("looking for what %s held at %s: its history begins at %s, with commit %.12s: %w",
				l.root, t.UTC().Format(time.RFC3339), c.time.Format(time.RFC3339), c.hash, ErrNoDirectory)
		}
		h = parents[0]
	}
	if _, tree, err := l.look(ctx, h, clean(subdir)); err != nil {
		return Commit{}, l.src.about(h, err)
	} else if tree.IsZero() {
		return Commit{}, fmt.Errorf("looking for %s at %s: commit %.12s, of that time: %w", cmp.Or(clean(subdir), l.root),
			t.UTC().Format(time.RFC3339), h, ErrNoDirectory)
	}
	for c, err := range l.Log(ctx, h.String(), subdir) {
		if shallow := (*ShallowError)(nil); errors.As(err, &shallow) {
			// What there was is known, only not since when: the oldest commit that is there stands for it.
			return l.src.Commit(shallow.Commit)
		}
		return c, err
	}
	return c.describe(), nil
}

// IsAncestor reports whether ancestor is tip or one of the commits that tip was built on; both are full hashes.
func (l *Local) IsAncestor(ctx context.Context, ancestor, tip string) (bool, error) {
	return l.src.IsAncestor(ctx, ancestor, tip)
}

// MergeBase returns the commit that two others (full hashes) were last in common: where their branches parted. Of
// several, after merges across, it is the newest. Histories without a common commit are an error.
func (l *Local) MergeBase(ctx context.Context, a, b string) (Commit, error) {
	from, err := parseHash(a)
	if err != nil {
		return Commit{}, err
	}
	to, err := parseHash(b)
	if err != nil {
		return Commit{}, err
	}
	var base *commit
	err = l.src.read(ctx, func(st *store) (err error) {
		base, err = l.mergeBase(ctx, st, from, to)
		return err
	})
	if err == nil && base == nil {
		err = errors.New("they have no commit in common; name two of one history")
	}
	if err != nil {
		return Commit{}, fmt.Errorf("finding where %.12s and %.12s parted, in %s: %w", from, to, l.root, err)
	}
	return base.describe(), nil
}

// Marks of a commit while two histories are walked together.
const (
	ofFirst  = 1 << iota // reached from the first commit
	ofSecond             // reached from the second
	older                // reached from a common one
)

// mergeBase walks both histories at once, newest commits first, until only what lies below common commits is left.
func (l *Local) mergeBase(ctx context.Context, st *store, a, b plumbing.Hash) (*commit, error) {
	marks := map[plumbing.Hash]int{}
	queue := &byTime{}
	fresh := 0 // of the queue, those that are not below a common commit
	known := map[plumbing.Hash]*commit{}
	mark := func(h plumbing.Hash, m int) error {
		if marks[h]|m == marks[h] {
			return nil
		}
		c := known[h]
		if c == nil {
			var err error
			if c, err = st.commit(h); err != nil {
				return err
			}
			known[h] = c
		}
		marks[h] |= m
		heap.Push(queue, queued{c, marks[h]})
		if marks[h]&older == 0 {
			fresh++
		}
		return nil
	}
	if err := cmp.Or(mark(a, ofFirst), mark(b, ofSecond)); err != nil {
		return nil, err
	}
	var common []*commit
	for fresh > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		q := heap.Pop(queue).(queued)
		if q.marks&older == 0 {
			fresh--
		}
		m := marks[q.hash]
		if m&(ofFirst|ofSecond) == ofFirst|ofSecond && m&older == 0 && !slices.Contains(common, q.commit) {
			common = append(common, q.commit)
		}
		if m&(ofFirst|ofSecond) == ofFirst|ofSecond {
			m |= older
		}
		parents, err := l.parents(st, q.commit)
		if err != nil && m&older == 0 {
			return nil, err // what was cut off may hold the answer
		}
		if err != nil {
			continue
		}
		for _, p := range parents {
			if err := mark(p, m); err != nil {
				return nil, err
			}
		}
	}
	common = slices.DeleteFunc(common, func(c *commit) bool { return marks[c.hash]&older != 0 })
	slices.SortStableFunc(common, func(a, b *commit) int { return b.time.Compare(a.time) })
	// Clocks that go wrong can leave one that another one descends from.
	for i := 0; i < len(common); i++ {
		for j := 0; j < len(common); j++ {
			if i == j {
				continue
			}
			reached, err := st.reaches(ctx, common[i].hash, common[j].hash)
			if err != nil {
				return nil, err
			}
			if reached {
				common = slices.Delete(common, j, j+1)
				i, j = 0, -1
			}
		}
	}
	if len(common) == 0 {
		return nil, nil
	}
	return common[0], nil
}

type queued struct {
	*commit
	marks int // when it was queued
}

// byTime is a heap of commits, newest first.
type byTime []queued

func (q byTime) Len() int           { return len(q) }
func (q byTime) Less(i, j int) bool { return q[i].time.After(q[j].time) }
func (q byTime) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *byTime) Push(x any)        { *q = append(*q, x.(queued)) }
func (q *byTime) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}
