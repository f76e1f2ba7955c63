// Package source turns a Git repository into commits and the files of one commit: the first stage of a release.
//
// A [Source] watches one ref of one repository. Fetch says which commit the ref names now, Snapshot gives the regular
// files of a commit (read lazily, through Git's object store: there is no work tree, so no path of an author ever
// becomes a path on this machine), together with the findings about what a policy repository may not hold. Whether a
// commit may be followed, and when to look again, is the business of the loop that owns the Source.
//
// A repository on this machine is opened where it lies, read only: nothing is ever written into it, and git may repack
// or collect it meanwhile. A remote one is kept as a bare, single-branch, full-history clone, clone.git in the Source's
// own directory, which may be deleted at any time: a lost or damaged clone is made again.
//
// It is the only home of go-git. It imports no CUE and does not look inside files.
package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/heddle-mesh/heddle/internal/durable"
)

// Options says which ref of which repository a [Source] follows, and where it keeps what it needs to remember.
type Options struct {
	// URL is https://…, http://…, ssh://…, user@host:path, file:///path or a path. A path may be that of a work tree or
	// of a bare repository.
	URL string
	// Ref is a branch ("main"), a tag ("v1"; a branch of the same name wins), a full name ("refs/heads/main"), or HEAD:
	// the branch that is checked out, or a remote's default one. Default: "main".
	Ref string
	// Dir is this source's own directory; it is created with permissions 0700. Its owner holds the lock of the state
	// directory above: two processes must not share it.
	Dir string
	// Limits bounds what is accepted; zero fields take their defaults.
	Limits Limits
	// Auth is how to prove who we are to a remote.
	Auth Auth
}

// Limits bounds a repository, so that no commit can exhaust the reconciler. The defaults are far above any policy and
// far below any machine.
type Limits struct {
	Files     int   // regular files in a commit; default 50,000; directory entries of all kinds may be twice as many
	FileSize  int64 // bytes in one file; default 1 MiB
	TreeSize  int64 // bytes in all files of a commit; default 64 MiB
	FetchSize int64 // bytes received in one fetch; default 1 GiB
	Packs     int   // packs of a remote's clone, above which it is cloned afresh; default 200
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.FileSize, 1<<20)
	set(&l.TreeSize, 64<<20)
	set(&l.FetchSize, 1<<30)
	if l.Files <= 0 {
		l.Files = 50_000
	}
	if l.Packs <= 0 {
		l.Packs = 200
	}
	return l
}

// Commit is what is said about a commit. It holds no control characters, so that it can be printed as it is.
type Commit struct {
	Hash    string    // 40 hexadecimal digits
	Subject string    // the first line of the message, at most 200 characters
	Author  string    // name and address, "Ada <ada@example.org>"
	Time    time.Time // when it was committed, by the committer's clock; in UTC, so that Commits can be compared by ==
}

// ErrUnknownCommit is wrapped when a commit is not in the repository, or not any more: after a force-push, git collects
// what no ref reaches.
var ErrUnknownCommit = errors.New("the commit is not in the repository")

// How often to look. Looking at a local ref costs two system calls; a remote is spared, and its clients are spread.
const (
	localInterval  = 200 * time.Millisecond
	remoteInterval = 30 * time.Second
)

// Source follows one ref of one repository. Its methods may be called at the same time from several goroutines; a Fetch
// in progress delays no reader.
type Source struct {
	opts   Options
	masked string  // URL without credentials, for people
	local  *layout // where a local repository lies; nil for a remote
	remote *remote // how to reach a remote; nil for a local repository

	fetching sync.Mutex // held during Fetch and the making of a new clone

	mu      sync.Mutex // guards what follows, and every read of the store
	store   *store     // nil until it is needed, and after it turned out to be stale
	root    *dir       // the root of the latest snapshot, whose unchanged directories the next one takes over
	rootAt  string     // the directory of the repository that root is
	damaged bool       // a remote's clone turned out to be damaged: the next Fetch makes a new one
}

// Open prepares to follow a ref. It touches no network; a local repository must exist. Close the Source after use.
func Open(_ context.Context, opts Options) (*Source, error) {
	if opts.Ref == "" {
		opts.Ref = "main"
	}
	if err := checkRef(opts.Ref); err != nil {
		return nil, err
	}
	if opts.Dir == "" {
		return nil, errors.New("a source needs a directory of its own")
	}
	opts.Limits = opts.Limits.withDefaults()
	s := &Source{opts: opts, masked: MaskedURL(opts.URL)}

	where, err := parseURL(opts.URL)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of source %s: %w", s.masked, err)
	}
	if err := durable.Clean(opts.Dir); err != nil {
		return nil, err
	}
	if where.path != "" {
		if s.local, err = findRepository(where.path); err != nil {
			return nil, err
		}
		return s, nil
	}
	if s.remote, err = newRemote(where, opts); err != nil {
		return nil, err
	}
	return s, s.prepareClone()
}

// Local reports whether the repository lies on this machine.
func (s *Source) Local() bool { return s.local != nil }

// URL is the repository's address without credentials.
func (s *Source) URL() string { return s.masked }

// Interval is how long to wait before the next Fetch: 200 ms for a local repository; for a remote 30 s, give or take a
// fifth at random, so that many reconcilers do not call at once.
func (s *Source) Interval() time.Duration {
	if s.Local() {
		return localInterval
	}
	return time.Duration(float64(remoteInterval) * (0.8 + 0.4*rand.Float64()))
}

// Fetch looks at the ref and returns the commit that it names now. The commit and its root directory are then at hand;
// nothing is said about whether it descends from an earlier one, or about what it holds.
//
// For a remote it asks the server, and receives what is new; ctx bounds that. An error leaves what was fetched earlier
// as it is. A clone that was deleted or damaged is replaced by a new one before an error is reported.
func (s *Source) Fetch(ctx context.Context) (Commit, error) {
	s.fetching.Lock()
	defer s.fetching.Unlock()
	if s.Local() {
		return s.fetchLocal(ctx)
	}
	return s.fetchRemote(ctx)
}

// Commit describes a commit by its full hash. The error wraps [ErrUnknownCommit] when it is not there.
func (s *Source) Commit(hash string) (Commit, error) {
	h, err := parseHash(hash)
	if err != nil {
		return Commit{}, err
	}
	var c *commit
	err = s.read(context.Background(), func(st *store) (err error) {
		c, err = st.commit(h)
		return err
	})
	if err != nil {
		return Commit{}, s.about(h, err)
	}
	return c.describe(), nil
}

// Close closes the files that are open. A call after it opens again what it needs.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeStore()
	return nil
}

// MarkApplied remembers the commit that was applied last, durably, in Dir: nothing is written into the repository.
func (s *Source) MarkApplied(commit string) error {
	if _, err := parseHash(commit); err != nil {
		return err
	}
	return durable.WriteSealed(s.appliedPath(), []byte(commit+"\n"), 0o600)
}

// Applied returns the commit that [Source.MarkApplied] remembered, "" when there is none yet. A damaged record is an
// error that wraps durable.ErrCorrupt: guessing what was applied would let a rewound branch through.
func (s *Source) Applied() (string, error) {
	b, err := durable.ReadSealed(s.appliedPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the record of the applied commit: %w; remove the file to start as a new mesh", err)
	}
	commit := strings.TrimSpace(string(b))
	_, err = parseHash(commit)
	return commit, err
}

func (s *Source) appliedPath() string { return filepath.Join(s.opts.Dir, "applied") }

// tries is how often a local repository is opened again when reading it fails: git may pack, prune and collect at any
// moment, and then an object moves from a file that we know to one that we do not. Each try sees a newer state, so a
// second nearly always succeeds.
const tries = 5

// read runs f on the open store. For a local repository it opens the store again and repeats f when objects were not
// where they had been; for a remote's clone, which nobody else touches, that means damage.
func (s *Source) read(ctx context.Context, f func(*store) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range tries {
		if err = ctx.Err(); err != nil {
			return err
		}
		if err = s.openStore(); err != nil {
			return err
		}
		if err = f(s.store); !isDamage(err) && !errors.Is(err, ErrUnknownCommit) {
			return err
		}
		if isDamage(err) {
			s.root = nil // The sizes in it may come from what is damaged.
		}
		if !s.Local() {
			if isDamage(err) {
				s.damaged = true
				s.closeStore() // It may have loaded half of an index.
			}
			return err
		}
		s.closeStore()
	}
	return err
}

// openStore opens the store unless it is open. s.mu is held.
func (s *Source) openStore() error {
	if s.store != nil {
		return nil
	}
	var err error
	if s.Local() {
		s.store, err = s.local.open()
	} else {
		s.store, err = s.openClone()
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", s.masked, err)
	}
	return nil
}

// closeStore forgets the open store. s.mu is held.
func (s *Source) closeStore() {
	if s.store != nil {
		s.store.close()
		s.store = nil
	}
}

// tip describes the commit that a ref names, after checking that its root directory is there too.
func (s *Source) tip(ctx context.Context, h plumbing.Hash) (Commit, error) {
	var c *commit
	err := s.read(ctx, func(st *store) (err error) {
		if c, err = st.commit(h); err != nil {
			return err
		}
		_, err = st.tree(c.tree)
		return err
	})
	if err != nil {
		return Commit{}, s.about(h, err)
	}
	return c.describe(), nil
}

// about says which commit could not be read, where.
func (s *Source) about(h plumbing.Hash, err error) error {
	switch {
	case isDamage(err) && s.Local() && s.local.partial():
		return fmt.Errorf("reading commit %.12s of %s: %w; this is a partial clone, without all contents: "+
			"git fetch --refetch --no-filter there brings them", h, s.masked, err)
	case isDamage(err) && s.Local():
		return fmt.Errorf("reading commit %.12s of %s: %w; run git fsck there", h, s.masked, err)
	case isDamage(err):
		return fmt.Errorf("reading commit %.12s of the clone of %s: %w; it is cloned anew at the next look", h, s.masked, err)
	}
	return fmt.Errorf("reading commit %.12s of %s: %w", h, s.masked, err)
}

// parseHash accepts a full SHA-1 in lower-case hexadecimal digits, and nothing else.
func parseHash(s string) (plumbing.Hash, error) {
	if len(s) != 40 || strings.Trim(s, "0123456789abcdef") != "" {
		return plumbing.ZeroHash, fmt.Errorf("%q is not the full hash of a commit (40 hexadecimal digits)", s)
	}
	return plumbing.NewHash(s), nil
}
