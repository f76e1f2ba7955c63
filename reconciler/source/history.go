package source

import (
	"context"
	"fmt"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// IsAncestor reports whether ancestor is tip or one of the commits that tip was built on: whether going from ancestor to
// tip is a fast-forward. A commit that is not in the repository is no ancestor: the history of tip is there as a whole,
// unless a local repository is a shallow clone, and then an answer that the missing part could change is an error.
func (s *Source) IsAncestor(ctx context.Context, ancestor, tip string) (bool, error) {
	from, err := parseHash(ancestor)
	if err != nil {
		return false, err
	}
	to, err := parseHash(tip)
	if err != nil {
		return false, err
	}
	found := false
	err = s.read(ctx, func(st *store) (err error) {
		found, err = st.reaches(ctx, to, from)
		return err
	})
	if err != nil {
		return false, s.about(to, err)
	}
	return found, nil
}

// reaches walks the history of tip, nearest commits first, until it meets old or the end.
func (st *store) reaches(ctx context.Context, tip, old plumbing.Hash) (bool, error) {
	seen := map[plumbing.Hash]bool{tip: true}
	for queue := []plumbing.Hash{tip}; len(queue) > 0; queue = queue[1:] {
		h := queue[0]
		if h == old {
			return true, nil
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		c, err := st.commit(h)
		switch {
		case err == nil:
		case h == tip:
			return false, err
		case st.shallow:
			return false, fmt.Errorf("its history is cut off before commit %.12s: make it whole with git fetch --unshallow", h)
		default:
			// The commit is missing in the middle of the history, which is more than not knowing it.
			return false, damaged(h, plumbing.ErrObjectNotFound)
		}
		for _, p := range c.parents {
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
	return false, nil
}

// Changed returns the paths that differ between two commits, sorted: files, links and submodules that were added,
// removed or changed. A rename is a removal and an addition. Directories that are equal are not read.
func (s *Source) Changed(ctx context.Context, from, to string) ([]string, error) {
	a, err := parseHash(from)
	if err != nil {
		return nil, err
	}
	b, err := parseHash(to)
	if err != nil {
		return nil, err
	}
	var paths []string
	err = s.read(ctx, func(st *store) error {
		before, err := st.commit(a)
		if err != nil {
			return err
		}
		after, err := st.commit(b)
		if err != nil {
			return err
		}
		d := differ{ctx: ctx, store: st, budget: 4 * s.opts.Limits.Files}
		if err := d.diff("", before.tree, after.tree); err != nil {
			return err
		}
		paths = d.paths
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("comparing commits %.12s and %.12s of %s: %w", from, to, s.masked, err)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

type differ struct {
	ctx    context.Context
	store  *store
	budget int // entries that may still be looked at: the same bound as for a walk, for two trees
	paths  []string
}

// diff compares two directories at one path; the zero hash is an absent one.
func (d *differ) diff(path string, before, after plumbing.Hash) error {
	if before == after {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	a, err := d.entries(before)
	if err != nil {
		return err
	}
	b, err := d.entries(after)
	if err != nil {
		return err
	}
	names := make(map[string][2]object.TreeEntry, max(len(a), len(b)))
	for i, side := range [][]object.TreeEntry{a, b} {
		for _, e := range side {
			pair := names[e.Name]
			pair[i] = e
			names[e.Name] = pair
		}
	}
	for name, pair := range names {
		if pair[0].Hash == pair[1].Hash && pair[0].Mode == pair[1].Mode {
			continue
		}
		full := name
		if path != "" {
			full = path + "/" + name
		}
		if len(full) > maxPath {
			return errTooMany
		}
		var subs [2]plumbing.Hash
		leaf := false
		for i, e := range pair {
			switch {
			case e.Name == "": // not on this side
			case e.Mode == filemode.Dir:
				subs[i] = e.Hash
			default:
				leaf = true
			}
		}
		if leaf {
			d.paths = append(d.paths, full)
		}
		if err := d.diff(full, subs[0], subs[1]); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) entries(h plumbing.Hash) ([]object.TreeEntry, error) {
	if h.IsZero() {
		return nil, nil
	}
	t, err := d.store.tree(h)
	if d.budget -= len(t) + 1; err == nil && d.budget < 0 {
		return nil, errTooMany
	}
	return t, err
}
