package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/internal/durable"
)

// A remote's clone is Dir/clone.git, a bare repository that the git command can read too. It has one ref of its own,
// where the last fetch ended. Clones being made, and old ones on their way out, have a suffix and mean nothing.
const (
	cloneName   = "clone.git"
	incoming    = plumbing.ReferenceName("refs/heads/incoming")
	originFile  = "heddle-origin" // in the clone: the masked URL that it is a clone of
	haveCommits = 64              // commits named to the server as known, nearest to the last tip first
)

func (s *Source) clonePath() string { return filepath.Join(s.opts.Dir, cloneName) }

// prepareClone removes what is no use: half-made clones, packs half received, the clone of another repository.
func (s *Source) prepareClone() error {
	left, err := filepath.Glob(s.clonePath() + ".*")
	if err != nil {
		return err
	}
	packs, err := filepath.Glob(filepath.Join(s.clonePath(), "objects", "pack", "tmp_*"))
	if err != nil {
		return err
	}
	left = append(left, packs...)
	origin, err := os.ReadFile(filepath.Join(s.clonePath(), originFile))
	if err != nil || string(origin) != s.masked+"\n" {
		left = append(left, s.clonePath())
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clearing the directory of source %s: %w", s.masked, err)
		}
	}
	return nil
}

// errNotFetched is returned when a remote is read before the first fetch ended well.
var errNotFetched = errors.New("nothing was fetched yet")

// openClone opens the clone for reading. s.mu is held.
func (s *Source) openClone() (*store, error) {
	if _, err := os.Stat(filepath.Join(s.clonePath(), "objects")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errNotFetched
		}
		return nil, err
	}
	return newStore(osfs.New(s.clonePath()), nil, true)
}

// fetchRemote brings the clone up to date. s.fetching is held.
func (s *Source) fetchRemote(ctx context.Context) (Commit, error) {
	if s.usable() {
		c, err := s.update(ctx)
		if !isDamage(err) && !errors.Is(err, ErrUnknownCommit) {
			return c, err
		}
		zerolog.Ctx(ctx).Warn().Err(err).Msg("the clone is damaged; making a new one")
	}
	return s.clone(ctx)
}

// renew makes a new clone in place of a damaged one.
func (s *Source) renew(ctx context.Context) (Commit, error) {
	s.fetching.Lock()
	defer s.fetching.Unlock()
	return s.clone(ctx)
}

// usable reports whether there is a clone that nobody found damaged, or deleted.
func (s *Source) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damaged {
		return false
	}
	for _, need := range []string{"objects/pack", originFile} {
		if _, err := os.Stat(filepath.Join(s.clonePath(), need)); err != nil {
			s.closeStore()
			return false
		}
	}
	return true
}

// update fetches into the clone that is there.
func (s *Source) update(ctx context.Context) (Commit, error) {
	sess, err := s.remote.dial(ctx)
	if err != nil {
		return Commit{}, s.fault(ctx, "reaching", err)
	}
	defer sess.Close()
	adv, want, err := s.advertised(ctx, sess)
	if err != nil {
		return Commit{}, err
	}

	// A force-push to an older commit, a revert of a ref, a tag moved back: all is here already.
	var present bool
	var haves []plumbing.Hash
	if err := s.read(ctx, func(st *store) (err error) {
		if present, err = st.has(want.commit); err == nil && !present {
			haves, err = st.haves(adv)
		}
		return err
	}); err != nil {
		return Commit{}, err
	}
	if !present {
		if err := s.receive(ctx, sess, adv, want.ref, haves, s.clonePath()); err != nil {
			return Commit{}, err
		}
		s.mu.Lock()
		s.closeStore() // The open store does not see the new pack.
		s.mu.Unlock()
	}
	var tip plumbing.Hash
	if err := s.read(ctx, func(st *store) (err error) {
		tip, err = st.peel(cmp.Or(want.commit, want.ref))
		return err
	}); err != nil {
		return Commit{}, fmt.Errorf("ref %s of %s: %w", s.opts.Ref, s.masked, err)
	}
	c, err := s.tip(ctx, tip)
	if err != nil {
		return Commit{}, err
	}
	if err := setIncoming(s.clonePath(), tip); err != nil {
		return Commit{}, fmt.Errorf("noting the fetched commit of %s: %w", s.masked, err)
	}
	if !present {
		s.tidy(ctx, c)
	}
	return c, nil
}

// tidy clones afresh when incremental fetches have left more packs than is good for reading. The clone that is there
// remains when that fails, or when it alone still holds the commit that is applied.
func (s *Source) tidy(ctx context.Context, tip Commit) {
	packs, err := filepath.Glob(filepath.Join(s.clonePath(), "objects", "pack", "*.pack"))
	if err != nil || len(packs) <= s.opts.Limits.Packs {
		return
	}
	applied, err := s.Applied()
	if err == nil && applied != "" {
		kept, err := s.IsAncestor(ctx, applied, tip.Hash)
		if err != nil || !kept {
			return
		}
	}
	if _, err := s.clone(ctx); err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("could not clone afresh to be rid of many packs; trying again later")
	}
}

// clone fetches everything into a new directory, checks it, and puts it in the place of what was there. s.fetching is
// held. Until all is well, the old clone stays.
func (s *Source) clone(ctx context.Context) (Commit, error) {
	sess, err := s.remote.dial(ctx)
	if err != nil {
		return Commit{}, s.fault(ctx, "reaching", err)
	}
	defer sess.Close()
	adv, want, err := s.advertised(ctx, sess)
	if err != nil {
		return Commit{}, err
	}
	fresh, err := os.MkdirTemp(s.opts.Dir, cloneName+".new-")
	if err != nil {
		return Commit{}, fmt.Errorf("cloning %s: %w", s.masked, err)
	}
	defer os.RemoveAll(fresh) // It is gone already when all went well.
	sto := filesystem.NewStorage(osfs.New(fresh), cache.NewObjectLRU(objectCache))
	if err := sto.Init(); err != nil {
		return Commit{}, fmt.Errorf("cloning %s: %w", s.masked, err)
	}
	if err := s.receive(ctx, sess, adv, want.ref, nil, fresh); err != nil {
		return Commit{}, err
	}

	st, err := newStore(osfs.New(fresh), nil, true)
	if err != nil {
		return Commit{}, fmt.Errorf("opening the new clone of %s: %w", s.masked, err)
	}
	c, err := func() (*commit, error) {
		tip, err := st.peel(want.ref)
		if err != nil {
			return nil, err
		}
		c, err := st.commit(tip)
		if err == nil {
			_, err = st.tree(c.tree)
		}
		return c, err
	}()
	if err == nil {
		err = setIncoming(fresh, c.hash)
	}
	if err == nil {
		err = durable.WriteFile(filepath.Join(fresh, originFile), []byte(s.masked+"\n"), 0o600)
	}
	if err == nil {
		err = s.install(fresh, st)
	}
	if err != nil {
		st.close()
		return Commit{}, fmt.Errorf("cloning %s: %w", s.masked, err)
	}
	return c.describe(), nil
}

// install puts a new clone, open as st, in the place of the old one.
func (s *Source) install(fresh string, st *store) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := fresh + ".old"
	if err := os.Rename(s.clonePath(), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(fresh, s.clonePath()); err != nil {
		if back := os.Rename(old, s.clonePath()); back != nil && !errors.Is(back, fs.ErrNotExist) {
			return errors.Join(err, back)
		}
		return err
	}
	s.closeStore()
	st.close() // It knows its files by their old names.
	s.damaged = false
	return errors.Join(durable.SyncDir(s.opts.Dir), os.RemoveAll(old))
}

// setIncoming notes where a fetch ended, so that the next one can say what is there, and so that git shows it as HEAD.
func setIncoming(clone string, h plumbing.Hash) error {
	sto := filesystem.NewStorage(osfs.New(clone), cache.NewObjectLRU(0))
	if ref, err := sto.Reference(incoming); err == nil && ref.Hash() == h {
		return nil
	}
	if err := sto.SetReference(plumbing.NewHashReference(incoming, h)); err != nil {
		return err
	}
	return sto.SetReference(plumbing.NewSymbolicReference(plumbing.HEAD, incoming))
}

// wanted is a ref as the server advertises it: the object that it names, and the commit behind it when the server says
// so (for a lightweight ref, the object itself).
type wanted struct{ ref, commit plumbing.Hash }

// advertised asks the server for its refs and finds ours among them.
func (s *Source) advertised(ctx context.Context, sess session) (*packp.AdvRefs, wanted, error) {
	adv, err := sess.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return nil, wanted{}, s.noRef(nil, "")
	}
	if err != nil {
		return nil, wanted{}, s.fault(ctx, "asking for the refs of", err)
	}
	for _, name := range candidates(s.opts.Ref) {
		h, ok := adv.References[name.String()]
		if name == plumbing.HEAD && adv.Head != nil {
			h, ok = *adv.Head, true
		}
		if ok {
			commit := h
			if peeled, ok := adv.Peeled[name.String()]; ok {
				commit = peeled
			}
			return adv, wanted{ref: h, commit: commit}, nil
		}
	}
	var names []plumbing.ReferenceName
	for name := range adv.References {
		names = append(names, plumbing.ReferenceName(name))
	}
	return nil, wanted{}, s.noRef(names, "")
}

// haves are commits that are here, for the server to send the difference only: what it advertises and we have, and the
// last steps of the history that was fetched before. There is one round of asking, whatever the history looks like.
func (st *store) haves(adv *packp.AdvRefs) ([]plumbing.Hash, error) {
	known := map[plumbing.Hash]bool{}
	for _, h := range adv.References {
		has, err := st.has(h)
		if err != nil {
			return nil, err
		}
		if has {
			known[h] = true
		}
	}
	ref, err := st.Reference(incoming)
	if errors.Is(err, plumbing.ErrReferenceNotFound) {
		return nil, damaged(plumbing.ZeroHash, errors.New("the clone has lost its ref"))
	}
	if err != nil {
		return nil, damaged(plumbing.ZeroHash, err)
	}
	queue := []plumbing.Hash{ref.Hash()}
	for n := 0; n < len(queue) && n < haveCommits; n++ {
		known[queue[n]] = true
		c, err := st.commit(queue[n])
		if err != nil {
			return nil, err
		}
		for _, p := range c.parents {
			if !slices.Contains(queue, p) {
				queue = append(queue, p)
			}
		}
	}
	haves := make([]plumbing.Hash, 0, len(known))
	for h := range known {
		haves = append(haves, h)
	}
	return haves, nil
}

// receive asks for an object and all that it needs, less what haves bring, and writes the pack into a clone.
func (s *Source) receive(
	ctx context.Context, sess session, adv *packp.AdvRefs, want plumbing.Hash, haves []plumbing.Hash, clone string,
) error {
	req := packp.NewUploadPackRequestFromCapabilities(adv.Capabilities)
	if adv.Capabilities.Supports(capability.NoProgress) {
		if err := req.Capabilities.Set(capability.NoProgress); err != nil {
			return err
		}
	}
	req.Wants = []plumbing.Hash{want}
	req.Haves = slices.DeleteFunc(haves, func(h plumbing.Hash) bool { return h == want })
	resp, err := sess.UploadPack(ctx, req)
	if err != nil {
		return s.fault(ctx, "fetching from", err)
	}
	defer resp.Close()
	var r io.Reader = resp
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		r = sideband.NewDemuxer(sideband.Sideband64k, r)
	case req.Capabilities.Supports(capability.Sideband):
		r = sideband.NewDemuxer(sideband.Sideband, r)
	}
	r = &bounded{r: r, left: s.opts.Limits.FetchSize, limit: s.opts.Limits.FetchSize}

	sto := filesystem.NewStorage(osfs.New(clone), cache.NewObjectLRU(objectCache))
	defer sto.Close()
	if err := packfile.UpdateObjectStorage(sto, r); err != nil {
		left, _ := filepath.Glob(filepath.Join(clone, "objects", "pack", "tmp_*"))
		for _, path := range left {
			_ = os.Remove(path) // What remains is removed at the next start.
		}
		return s.fault(ctx, "receiving from", err)
	}
	return nil
}

// bounded ends a stream that is longer than anybody agreed to store.
type bounded struct {
	r           io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the server sent more than %d bytes", b.limit)
	}
	return n, err
}

// fault is an error about a remote: it says what was attempted, what to do about the usual causes, and no secrets.
func (s *Source) fault(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err() // What broke off because of it says less, and not everything wraps it.
	}
	hint := ""
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		hint = "; check the token or key that is configured for it, and that it may read the repository"
	case errors.Is(err, transport.ErrRepositoryNotFound):
		hint = "; check the URL, and that the credentials may see the repository: servers hide private ones"
	}
	return &maskedError{
		msg: fmt.Sprintf("%s %s: %s%s", doing, s.masked, s.remote.mask(err.Error()), hint),
		err: err,
	}
}

// maskedError prints without the secrets that the error inside it may hold.
type maskedError struct {
	msg string
	err error
}

func (e *maskedError) Error() string { return e.msg }
func (e *maskedError) Unwrap() error { return e.err }

// firstLine shortens what a server said to one printable line.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return oneLine(s)
}
