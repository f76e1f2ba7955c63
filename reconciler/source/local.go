package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/config"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"
)

// layout is where the parts of a repository on this machine lie. A linked work tree (git worktree add) has a HEAD of
// its own and shares the rest, common, with the repository that it was made from; elsewhere the two are the same.
type layout struct {
	path        string // as the user named it
	git, common string
}

// findRepository finds the repository whose work tree or bare directory path is.
func findRepository(path string) (*layout, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the repository: %w; name the root of an existing git repository", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("opening the repository: %s is not a directory; name the root of a git repository", path)
	}
	git := path
	dot := filepath.Join(path, ".git")
	switch st, err := os.Stat(dot); {
	case err == nil && st.IsDir():
		git = dot
	case err == nil: // a file that says where: linked work trees and submodules have one
		b, err := os.ReadFile(dot)
		if err != nil {
			return nil, fmt.Errorf("opening the repository: %w", err)
		}
		to, ok := strings.CutPrefix(string(b), "gitdir: ")
		if !ok {
			return nil, fmt.Errorf("opening the repository: %s does not say where it is; git worktree repair mends that", dot)
		}
		git = relativeTo(path, strings.TrimSpace(to))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	common := git
	if b, err := os.ReadFile(filepath.Join(git, "commondir")); err == nil {
		common = relativeTo(git, strings.TrimSpace(string(b)))
	}
	for _, need := range []string{filepath.Join(git, "HEAD"), filepath.Join(common, "objects")} {
		if _, err := os.Stat(need); err != nil {
			hint := "make one there with git init, or name another path"
			for up := filepath.Dir(path); up != filepath.Dir(up); up = filepath.Dir(up) {
				if _, err := os.Stat(filepath.Join(up, ".git")); err == nil {
					hint = "did you mean " + up + ", the repository around it?"
					break
				}
			}
			return nil, fmt.Errorf("%s is not a git repository (%w); %s", path, err, hint)
		}
	}
	l := &layout{path: path, git: git, common: common}
	return l, l.supported()
}

func relativeTo(base, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(base, path)
}

// supported refuses repository formats that go-git would misread.
func (l *layout) supported() error {
	b, err := os.ReadFile(filepath.Join(l.common, "config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // git, too, takes every default then.
	}
	if err != nil {
		return fmt.Errorf("opening the repository: %w", err)
	}
	cfg := config.New()
	if err := config.NewDecoder(bytes.NewReader(b)).Decode(cfg); err != nil {
		return fmt.Errorf("opening the repository %s: reading its config: %w; git config --list there says where", l.path, err)
	}
	if v := cfg.Section("core").Option("repositoryformatversion"); v != "" && v != "0" && v != "1" {
		return fmt.Errorf("%s has repository format %s; only 0 and 1 are known", l.path, v)
	}
	for _, o := range cfg.Section("extensions").Options {
		key, value := strings.ToLower(o.Key), strings.ToLower(o.Value)
		switch {
		case key == "noop", key == "noop-v1", key == "preciousobjects", key == "worktreeconfig", key == "partialclone",
			key == "relativeworktrees", key == "objectformat" && value == "sha1", key == "refstorage" && value == "files":
		default:
			return fmt.Errorf("%s uses git's extension %s = %s, which cannot be read here: use a repository with SHA-1 "+
				"objects and refs in files (git clone --ref-format=files makes one)", l.path, key, value)
		}
	}
	return nil
}

// partial reports whether git left contents on the server, to be fetched when they are needed (git clone --filter).
func (l *layout) partial() bool {
	packs, err := filepath.Glob(filepath.Join(l.common, "objects", "pack", "*.promisor"))
	return err == nil && len(packs) > 0
}

// open opens the repository as it is now.
func (l *layout) open() (*store, error) {
	fsys := readOnly{osfs.New(l.git), filepath.Join(l.common, "objects")}
	if l.common != l.git {
		fsys.Filesystem = dotgit.NewRepositoryFilesystem(osfs.New(l.git), osfs.New(l.common))
	}
	var borrowed []billy.Filesystem
	seen := map[string]bool{}
	if err := alternates(filepath.Join(l.common, "objects"), seen, func(objects string) {
		borrowed = append(borrowed, readOnly{osfs.New(filepath.Dir(objects)), objects})
	}); err != nil {
		return nil, err
	}
	return newStore(fsys, borrowed, false)
}

// alternates calls found for each object directory that the one at objects borrows from (git clone --shared and
// --reference), directly or not. go-git would find the objects there, but neither their sizes nor quickly.
func alternates(objects string, seen map[string]bool, found func(string)) error {
	f, err := os.Open(filepath.Join(objects, "info", "alternates"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		path := strings.TrimSpace(lines.Text())
		if path == "" || strings.HasPrefix(path, "#") {
			continue
		}
		path = filepath.Clean(relativeTo(objects, path))
		if seen[path] || filepath.Base(path) != "objects" {
			continue
		}
		seen[path] = true
		found(path)
		if err := alternates(path, seen, found); err != nil {
			return err
		}
	}
	return lines.Err()
}

// fetchLocal reads what the ref names now.
func (s *Source) fetchLocal(ctx context.Context) (Commit, error) {
	var h plumbing.Hash
	var missing error
	err := s.read(ctx, func(st *store) (err error) {
		missing = nil
		h, err = s.resolve(st)
		if errors.Is(err, plumbing.ErrReferenceNotFound) {
			missing = s.localNoRef(st)
			return nil
		}
		if err != nil {
			return err
		}
		if has, err := st.has(h); err != nil {
			return err
		} else if !has {
			return damaged(h, plumbing.ErrObjectNotFound) // newer than the open store, unless it is missing indeed
		}
		h, err = st.peel(h)
		return err
	})
	if err != nil {
		return Commit{}, fmt.Errorf("looking at ref %s of %s: %w", s.opts.Ref, s.masked, err)
	}
	if missing != nil {
		return Commit{}, missing
	}
	return s.tip(ctx, h)
}

// resolve finds the ref among the local ones. Refs are read from disk each time.
func (s *Source) resolve(st *store) (plumbing.Hash, error) {
	for _, name := range candidates(s.opts.Ref) {
		ref, err := st.Reference(name)
		// A symbolic ref may lead to another one; git follows five at most.
		for i := 0; err == nil && ref.Type() == plumbing.SymbolicReference && i < 5; i++ {
			ref, err = st.Reference(ref.Target())
		}
		switch {
		case errors.Is(err, plumbing.ErrReferenceNotFound):
			continue
		case err != nil:
			return plumbing.ZeroHash, err
		case ref.Type() != plumbing.HashReference:
			return plumbing.ZeroHash, fmt.Errorf("%s is a symbolic ref that leads nowhere", name)
		}
		return ref.Hash(), nil
	}
	return plumbing.ZeroHash, plumbing.ErrReferenceNotFound
}

// localNoRef says what is there instead of the ref.
func (s *Source) localNoRef(st *store) error {
	// To go-git a directory that is gone, or that may not be read, is a repository without refs.
	if _, err := os.ReadFile(filepath.Join(s.local.git, "HEAD")); err != nil {
		return fmt.Errorf("there is no repository to read at %s any more: %w; bring it back, or name another one", s.masked, err)
	}
	var names []plumbing.ReferenceName
	refs, err := st.IterReferences()
	if err != nil {
		return err
	}
	if err := refs.ForEach(func(r *plumbing.Reference) error {
		names = append(names, r.Name())
		return nil
	}); err != nil {
		return err
	}
	detail := ""
	head, err := st.Reference(plumbing.HEAD)
	switch {
	case err != nil:
	case head.Type() == plumbing.HashReference:
		detail = fmt.Sprintf("its HEAD is detached at %.12s, on no branch (git switch -c %s makes one of it)",
			head.Hash(), plumbing.ReferenceName(s.opts.Ref).Short())
	default:
		if _, err := st.Reference(head.Target()); errors.Is(err, plumbing.ErrReferenceNotFound) {
			detail = fmt.Sprintf("branch %s is checked out and has no commit", head.Target().Short())
		}
	}
	return s.noRef(names, detail)
}

// readOnly is a file system that refuses every change: the promise never to write into a user's repository does not
// rest on knowing what a library does. It also hides the list of borrowed object directories, see alternates.
type readOnly struct {
	billy.Filesystem
	objects string // the path of its object directory, "" where it has none
}

var errReadOnly = errors.New("a user's repository is only read")

func (r readOnly) Open(name string) (billy.File, error) {
	return r.OpenFile(name, os.O_RDONLY, 0)
}

func (r readOnly) OpenFile(name string, flag int, perm os.FileMode) (billy.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_TRUNC) != 0 {
		return nil, errReadOnly
	}
	if strings.HasSuffix(filepath.ToSlash(name), "objects/info/alternates") {
		return nil, fs.ErrNotExist
	}
	// go-git looks for every object in a file of its own first, one directory for each first byte, and the file system under
	// it for symbolic links in all of the path. Most objects are in packs, and most such directories are not there.
	if rest, ok := strings.CutPrefix(filepath.ToSlash(name), "objects/"); ok && r.objects != "" && len(rest) > 3 && rest[2] == '/' {
		if _, err := os.Lstat(filepath.Join(r.objects, rest[:2])); errors.Is(err, fs.ErrNotExist) {
			return nil, fs.ErrNotExist
		}
	}
	return r.Filesystem.OpenFile(name, flag, perm)
}

func (r readOnly) Create(string) (billy.File, error)           { return nil, errReadOnly }
func (r readOnly) Rename(string, string) error                 { return errReadOnly }
func (r readOnly) Remove(string) error                         { return errReadOnly }
func (r readOnly) TempFile(string, string) (billy.File, error) { return nil, errReadOnly }
func (r readOnly) MkdirAll(string, os.FileMode) error          { return errReadOnly }
func (r readOnly) Symlink(string, string) error                { return errReadOnly }

func (r readOnly) Chroot(path string) (billy.Filesystem, error) {
	inner, err := r.Filesystem.Chroot(path)
	return readOnly{Filesystem: inner}, err
}
