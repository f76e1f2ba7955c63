// Package reconciler turns the commits of a policy repository into published releases. It is the only loop: source
// fetches, policy evaluates, compile compiles, release signs and serves; each is a package of its own, and this one
// decides what happens when.
//
//	fetched → verified → valid → compiled → pushing → converged
//	              ↘ held     ↘ rejected ↙
//
// Two goroutines share the work: one looks at the repository, the other takes the newest commit through the stages. A
// newer commit cancels the work on an older one. What serves is replaced only by a commit that passed every stage; it
// is the applied release, and its guards judge the next commit. Nothing that a candidate says decides about itself.
//
// The reconciler owns its state directory: key, releases, applied pointer, the clone of the repository. It never writes
// to the repository. It must not import controlplane or proxy; control planes come to it.
package reconciler

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/reconciler/compile"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/reconciler/release"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	record "github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// Config is all that a reconciler is told. The zero values of optional fields are good.
type Config struct {
	// StateDir is its own directory, made with mode 0700; one process may use it.
	StateDir string
	// Repo is the policy repository: a URL or a local path. Required.
	Repo string
	// Ref is a branch, a tag or a full ref name; empty: main.
	Ref string
	// Env selects the environment that policy is evaluated for; empty: the repository's own default.
	Env string
	// Auth is how to prove who we are to a remote repository.
	Auth source.Auth
	// Interval is how long to wait between looks at the repository, give or take a fifth; 0: 200 ms for a local
	// repository, about 30 s for a remote one.
	Interval time.Duration
	// ListenReleases is the TCP address for control planes; empty: none.
	ListenReleases string
	// ListenHint is the TCP address that takes POST /hint; empty: none.
	ListenHint string
	// ControlPlaneKeys are the public keys of control planes that may connect, as `heddle key` prints them, or "@file"
	// for a file with one a line, read again at every connection. None: every control plane is refused.
	ControlPlaneKeys []string
	// TrustFirstCommit lets the first commit of a new mesh pass: when the state directory never held a release. Without
	// it, and whenever the applied pointer is lost, an operator says `heddle resume --accept-first`.
	TrustFirstCommit bool
	// Keep is the number of releases that stay; 0: releasedir.Keep (20).
	Keep int
	// Version is that of Heddle; it is written into every release.
	Version string
}

const (
	// fetchTimeout bounds one look at the repository, clone included.
	fetchTimeout = 5 * time.Minute
	// After a fault the wait doubles from faultFirst up to faultMost, give or take a fifth.
	faultFirst, faultMost = time.Second, 5 * time.Minute
	// hintGap is the least time between two looks that strangers can provoke at a remote repository.
	hintGap = time.Second
)

// Run reconciles until ctx is done, then drains and returns nil. Every other return is an error that no retry heals: a
// state directory in use, an address taken, a repository that cannot be named. The logger is the context's.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.StateDir == "" || cfg.Repo == "" {
		return errors.New("the reconciler needs a state directory and a policy repository; name them with --state and --repo")
	}
	log := zerolog.Ctx(ctx).With().Str("component", "reconciler").Logger()
	ctx = log.WithContext(ctx)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	unlock, err := durable.Lock(filepath.Join(cfg.StateDir, "lock"))
	if err != nil {
		return fmt.Errorf("another reconciler runs here: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := durable.Clean(cfg.StateDir); err != nil {
		return err
	}

	allowed, err := parseAllowed(cfg.ControlPlaneKeys)
	if err != nil {
		return err
	}
	key, err := pinned.LoadOrCreateKey(filepath.Join(cfg.StateDir, "key"))
	if err != nil {
		return err
	}
	store, err := release.Open(cfg.StateDir, key, cfg.Keep)
	if err != nil {
		return err
	}
	src, err := source.Open(ctx, source.Options{
		URL: cfg.Repo, Ref: cfg.Ref, Dir: filepath.Join(cfg.StateDir, "repos", "policy"), Auth: cfg.Auth,
	})
	if err != nil {
		return err
	}
	defer src.Close()

	r := &reconciler{
		cfg: cfg, src: src, store: store, policy: policy.New(policy.Options{}),
		server: release.NewServer(store.Dir()),
		wake:   make(chan struct{}, 1), hints: make(chan struct{}, 1), asked: make(chan struct{}, 1),
	}
	r.status = Status{APIVersion: APIVersion, Version: cfg.Version, Key: record.FormatKey(pinned.Public(key)),
		Source: StatusSource{URL: src.URL(), Ref: r.ref(), Env: cfg.Env}}
	if err := r.restore(ctx); err != nil {
		return err
	}
	return r.run(ctx, key, allowed)
}

// reconciler is the state of a running loop.
type reconciler struct {
	cfg    Config
	src    *source.Source
	policy *policy.Evaluator
	store  *release.Store
	server *release.Server

	compiled compile.Cache // of the goroutine that works, and of nobody else: see work

	wake  chan struct{} // size 1: there is a commit to work on
	hints chan struct{} // size 1: somebody on the network says that the repository changed
	asked chan struct{} // size 1: an operator says so

	mu     sync.Mutex // guards what follows
	status Status
	// base is the applied release, by which candidates are judged; nil if none can be trusted, and lost says why.
	base    *release.Release
	lost    error
	tip     source.Commit      // the newest commit seen
	next    *source.Commit     // the commit to work on; nil: it is being worked on, or settled
	cancel  context.CancelFunc // ends the work under way; nil: none is
	permit  permit
	fetchBy fault // why the repository cannot be looked at
	workBy  fault // why the newest commit cannot be taken further
	mendBy  fault // why the applied release, whose blobs are damaged, cannot be mended
}

// fault is something in the world that keeps from working; the zero fault is none.
type fault struct {
	err   error
	since time.Time
}

// restore reads what a predecessor left: control planes get the last good release before the first look at Git.
func (r *reconciler) restore(ctx context.Context) error {
	if err := r.reload(); err != nil {
		return err
	}
	log := zerolog.Ctx(ctx)
	if r.base == nil {
		// What sidecars enforce already goes on being served: it was signed by us. It judges nothing.
		if newest, err := r.store.Newest(); err == nil {
			r.server.Announce(newest)
			log.Warn().Err(r.lost).Uint64("epoch", newest.Record.Epoch).Msg("applied release unknown; serving the newest")
		}
		return nil
	}
	if r.store.Whole(r.base) != nil {
		return nil // work mends it first
	}
	r.server.Announce(r.base)
	log.Info().Str("commit", r.base.Record.Commit()).Uint64("epoch", r.base.Record.Epoch).Msg("applied release restored")
	return nil
}

// reload takes the applied release from disk.
func (r *reconciler) reload() error {
	base, err := r.store.Applied()
	var applied *Applied
	switch {
	case err == nil:
		applied = r.describe(base, nil)
	case !errors.Is(err, release.ErrNoPointer) && !errors.Is(err, release.ErrBadPointer):
		return fmt.Errorf("reading the applied release: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.lost, r.status.Applied = base, err, applied
	return nil
}

// describe makes the status of an applied release. before is what it followed; nil: looked up.
func (r *reconciler) describe(a, before *release.Release) *Applied {
	rec := a.Record
	out := &Applied{Epoch: rec.Epoch, Commit: rec.Commit(), Behaviour: rec.Behaviour, Published: rec.Published}
	if len(rec.Sources) > 0 {
		out.Subject, out.Author = rec.Sources[0].Subject, rec.Sources[0].Author
	}
	if before != nil {
		out.Unchanged = before.Record.Behaviour == rec.Behaviour
	} else if entries, _ := r.store.History(); entries != nil { // damaged entries make nothing of this one unknown
		for _, e := range entries {
			out.Unchanged = out.Unchanged || e.Epoch == rec.Epoch && e.Unchanged
		}
	}
	return out
}

// run owns every goroutine of the reconciler.
func (r *reconciler) run(ctx context.Context, key ed25519.PrivateKey, allowed *allowed) error {
	sock, err := operator.Listen(filepath.Join(r.cfg.StateDir, operator.SocketName))
	if err != nil {
		return err
	}
	defer sock.Close()
	listen := func(what, addr string) (net.Listener, error) {
		if addr == "" {
			return nil, nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listening for %s: %w; choose another address", what, err)
		}
		return l, nil
	}
	releases, err := listen("control planes", r.cfg.ListenReleases)
	if err != nil {
		return err
	}
	if releases != nil {
		defer releases.Close()
		r.status.Listen.Releases = releases.Addr().String()
		if allowed.none() {
			zerolog.Ctx(ctx).Warn().Msg("no control plane may connect: no key is allowed; give them with --control-plane-key")
		}
	}
	hint, err := listen("hints", r.cfg.ListenHint)
	if err != nil {
		return err
	}
	if hint != nil {
		defer hint.Close()
		r.status.Listen.Hint = hint.Addr().String()
	}
	zerolog.Ctx(ctx).Info().Str("version", r.cfg.Version).Str("source", r.status.Source.URL).Str("ref", r.status.Source.Ref).
		Str("releases", r.status.Listen.Releases).Str("hint", r.status.Listen.Hint).Msg("reconciler started")

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return operator.Serve(ctx, sock, r.operatorAPI()) })
	if releases != nil {
		g.Go(func() error { return r.server.Serve(ctx, releases, key, allowed.allow(ctx)) })
	}
	if hint != nil {
		g.Go(func() error { return serveHints(ctx, hint, r.hints) })
	}
	g.Go(func() error { return r.look(ctx) })
	g.Go(func() error { return r.work(ctx) })
	g.Go(func() error { return r.follow(ctx) })
	err = g.Wait()
	zerolog.Ctx(ctx).Info().Err(err).Msg("reconciler stopped")
	return err
}

// look fetches, at the source's interval and when somebody asks, and offers what it sees.
func (r *reconciler) look(ctx context.Context) error {
	for faults := 0; ; {
		bound, cancel := context.WithTimeout(ctx, fetchTimeout)
		tip, err := r.src.Fetch(bound)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		wait := r.interval()
		if err != nil {
			wait = backoff(faults, wait)
			faults++
		} else {
			faults = 0
			r.offer(ctx, tip)
		}
		r.fault(ctx, &r.fetchBy, err, "repository cannot be read")

		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.asked:
			notify(r.wake) // a commit that waits after a fault is tried again too
		case <-r.hints:
			if !r.src.Local() {
				select { // an operator need not wait, a stranger does
				case <-ctx.Done():
				case <-r.asked:
				case <-time.After(hintGap):
				}
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// interval is how long to wait until the next look.
func (r *reconciler) interval() time.Duration {
	if r.cfg.Interval > 0 {
		return jitter(r.cfg.Interval)
	}
	return r.src.Interval()
}

// jitter is d, give or take a fifth.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// backoff is the wait after the n-th fault in a row, never shorter than the usual one.
func backoff(n int, usual time.Duration) time.Duration {
	return max(usual, jitter(min(faultFirst<<min(n, 20), faultMost)))
}

// offer makes tip the commit to work on, unless it is already. Work on an older one ends.
func (r *reconciler) offer(ctx context.Context, tip source.Commit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.status.Observed; o != nil && o.Commit == tip.Hash {
		return
	}
	zerolog.Ctx(ctx).Debug().Str("commit", tip.Hash).Msg("commit fetched")
	r.status.Observed = &Observed{Commit: tip.Hash, Subject: tip.Subject, Author: tip.Author, Time: tip.Time,
		State: Fetched, Since: time.Now()}
	r.tip, r.permit = tip, permit{}
	r.enqueue()
}

// enqueue has the newest commit worked on from the start; mu is held.
func (r *reconciler) enqueue() {
	tip := r.tip
	r.next = &tip
	if r.cancel != nil {
		r.cancel()
	}
	notify(r.wake)
}

// notify fills a channel of size 1.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// work takes the newest commit through the stages, one at a time, and tries again after a fault.
func (r *reconciler) work(ctx context.Context) error {
	var retry, remend <-chan time.Time // after a fault
	faults, unmended := 0, 0
	mend := true
	for {
		if mend {
			err := r.mend(ctx)
			if ctx.Err() != nil {
				return nil
			}
			r.fault(ctx, &r.mendBy, err, "applied release is damaged")
			if mend = err != nil; mend {
				remend = time.After(backoff(unmended, 0))
				unmended++
			} else {
				remend, unmended = nil, 0
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.server.Damaged():
			mend = true
			continue
		case <-remend:
			continue
		case <-r.wake:
			faults = 0
		case <-retry:
		}
		retry = nil
		r.mu.Lock()
		tip := r.next
		r.next = nil
		doing, cancel := context.WithCancel(ctx)
		r.cancel = cancel
		r.mu.Unlock()
		if tip == nil {
			cancel()
			continue
		}

		err := r.take(doing, *tip)

		r.mu.Lock()
		preempted := doing.Err() != nil
		r.cancel = nil
		cancel()
		if err != nil && !preempted && r.next == nil {
			r.next = tip
			retry = time.After(backoff(faults, 0))
			faults++
		}
		r.mu.Unlock()
		if preempted {
			continue // a fault of work that nobody wants any more is none
		}
		r.fault(ctx, &r.workBy, err, "commit cannot be taken further")
	}
}

// mend brings lost blobs of the applied release back by compiling its commit again, which gives the same bytes. Without
// it a control plane that comes anew would wait for the next commit that passes. It is nil if nothing is missing.
func (r *reconciler) mend(ctx context.Context) error {
	r.mu.Lock()
	base := r.base
	r.mu.Unlock()
	if base == nil || len(base.Record.Sources) == 0 {
		return nil
	}
	damage := r.store.Whole(base)
	if damage == nil {
		return nil
	}
	src := base.Record.Sources[0]
	candidate, _, findings, err := r.compile(ctx, base.Record.Env,
		source.Commit{Hash: src.Commit, Subject: src.Subject, Author: src.Author, Time: src.Time})
	if faults := findings.Errors(); err == nil && len(faults) > 0 {
		err = fmt.Errorf("this version of Heddle finds fault with it: %s", faults[0].Message)
	}
	if err == nil {
		_, blobs := release.Build(candidate)
		err = r.store.Mend(base, blobs)
	}
	if err != nil {
		return fmt.Errorf("%w; compiling commit %s again did not mend it: %w; the next commit that passes replaces it",
			damage, short(src.Commit), err)
	}
	zerolog.Ctx(ctx).Warn().AnErr("was", damage).Str("commit", src.Commit).Uint64("epoch", base.Record.Epoch).
		Msg("applied release was damaged; mended by compiling its commit again")
	r.server.Announce(base)
	return nil
}

// take judges one commit and publishes it if it passes. A nil error means that the commit is settled: applied, held or
// rejected; an error is a fault, to be tried again, unless ctx is done.
func (r *reconciler) take(ctx context.Context, tip source.Commit) error {
	start := time.Now()
	r.mu.Lock()
	base, lost, permit := r.base, r.lost, r.permit
	r.mu.Unlock()

	if base != nil && base.Record.Commit() == tip.Hash && base.Record.Env == r.cfg.Env &&
		base.Record.Compiler == r.cfg.Version && r.store.Whole(base) == nil {
		r.advance(tip, Pushing)
		r.progress(ctx)
		return nil
	}
	stop, err := r.judgeStart(ctx, base, lost, tip)
	if err != nil {
		return err
	}
	if stop != nil {
		if stop = permit.first(tip.Hash, *stop); stop != nil {
			return r.hold(ctx, tip, stop)
		}
	}
	r.advance(tip, Verified)

	candidate, doc, findings, err := r.compile(ctx, r.cfg.Env, tip)
	if err != nil {
		return err
	}
	if doc != nil && candidate.Mesh != nil {
		findings = append(findings, judgeClaims(ctx, doc, candidate.Mesh, candidate.Origins, time.Now())...)
	}
	switch {
	case len(findings.Errors()) > 0:
		return r.reject(ctx, tip, findings)
	case candidate.Mesh == nil:
		return fmt.Errorf("commit %s gave neither a mesh nor findings", short(tip.Hash))
	}
	rec, blobs := release.Build(candidate)
	r.mu.Lock()
	r.set(tip, Observed{State: Compiled, Warnings: findings.Sorted()})
	r.mu.Unlock()
	if base != nil {
		guards := &base.Record.Guards
		stops := slices.Concat(judgeMesh(*guards, rec.Guards), judgeFences(guards, candidate.Fences, doc.Uses),
			judgeInvariants(ctx, guards, candidate.Mesh, candidate.Origins, time.Now()))
		if stop := permit.first(tip.Hash, stops...); stop != nil {
			return r.hold(ctx, tip, stop)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}

	published, err := r.store.Publish(base, rec, blobs, time.Now())
	if errors.Is(err, release.ErrMoved) {
		// Somebody changed the state directory under us. If it names another release that can be trusted, the next try
		// judges by that one. If it names none, nothing is published until it is restored, or an operator starts again.
		if _, lost := r.store.Applied(); lost != nil {
			return fmt.Errorf("%w; restore the state directory, or restart the reconciler and accept a first commit", err)
		}
		return errors.Join(err, r.reload())
	}
	if err != nil {
		return err
	}
	applied := r.describe(published, base)
	applied.Unchanged = base != nil && applied.Unchanged
	r.mu.Lock()
	r.base, r.lost = published, nil
	r.status.Applied = applied
	r.set(tip, Observed{State: Pushing})
	r.mu.Unlock()
	r.server.Announce(published)
	event := zerolog.Ctx(ctx).Info().Str("commit", tip.Hash).Uint64("epoch", published.Record.Epoch).Dur("dur", time.Since(start))
	if applied.Unchanged {
		event.Msg("release published, behaviour unchanged")
	} else {
		event.Msg("release published")
	}
	if err := r.src.MarkApplied(tip.Hash); err != nil {
		// The applied pointer decides; the source's own mark only helps it to keep the commit at hand.
		zerolog.Ctx(ctx).Warn().Err(err).Str("commit", tip.Hash).Msg("source could not mark the applied commit")
	}
	r.progress(ctx)
	return nil
}

// judgeStart is what can be said before the commit is read.
func (r *reconciler) judgeStart(ctx context.Context, base *release.Release, lost error, tip source.Commit) (*hold, error) {
	if base == nil {
		empty, err := r.store.Empty()
		switch {
		case err != nil:
			return nil, err
		case empty && r.cfg.TrustFirstCommit:
			return nil, nil
		case empty:
			return &hold{AcceptFirst, "it is the first commit of this mesh, and nothing can judge it; " +
				"read it, then accept it as the first"}, nil
		}
		return &hold{AcceptFirst, fmt.Sprintf("the applied release is not known (%v), and nothing can judge the commit; "+
			"restore the state directory from a backup, or read the commit and accept it as the first", lost)}, nil
	}
	applied := base.Record.Commit()
	if applied == tip.Hash {
		return nil, nil
	}
	how := unrelated
	forward, err := r.src.IsAncestor(ctx, applied, tip.Hash)
	switch {
	case errors.Is(err, source.ErrUnknownCommit): // the applied commit is gone: nothing descends from it
	case err != nil:
		return nil, err
	case forward:
		how = descends
	default:
		back, err := r.src.IsAncestor(ctx, tip.Hash, applied)
		if err != nil && !errors.Is(err, source.ErrUnknownCommit) {
			return nil, err
		}
		if back {
			how = older
		}
	}
	return judgeHistory(base.Record, tip.Hash, how), nil
}

// compile takes a commit from its files to a mesh. Findings are the author's, an error is the world's. Every stage that
// can still say something about a commit with findings does, so that the author sees all of them at once.
func (r *reconciler) compile(ctx context.Context, env string, tip source.Commit) (release.Candidate, *v1alpha1.Document, diag.List, error) {
	none := release.Candidate{}
	snapshot, findings, err := r.src.Snapshot(ctx, tip.Hash)
	if err != nil {
		return none, nil, nil, err
	}
	if slices.ContainsFunc(findings, func(f diag.Finding) bool { return f.ID == diag.TooManyFiles }) {
		return none, nil, findings, nil // the snapshot has no files then: whatever else were said would be about that
	}
	doc, found, err := r.policy.Load(ctx, snapshot, env)
	if err != nil {
		return none, nil, nil, err
	}
	if findings = append(findings, found...); len(findings.Errors()) == 0 {
		r.advance(tip, Valid)
	}
	if doc == nil {
		if len(findings) == 0 {
			return none, nil, nil, fmt.Errorf("evaluating commit %s gave neither a policy nor findings", tip.Hash)
		}
		return none, nil, findings, nil
	}
	m, origins, found := r.compiled.Compile(doc, compile.Options{})
	if findings = append(findings, found...); m == nil || len(findings.Errors()) > 0 {
		return none, nil, findings, nil
	}
	return release.Candidate{
		Source: record.Source{Name: "policy", URL: r.src.URL(), Ref: r.ref(), Commit: tip.Hash,
			Subject: tip.Subject, Author: tip.Author, Time: tip.Time.UTC()},
		Env: env, Compiler: r.cfg.Version, Mesh: m, Origins: origins, Fences: fences(doc.Delegated),
	}, doc, findings, nil
}

// fences are a document's delegations as a release keeps them.
func fences(delegated []v1alpha1.Delegation) (out []record.Fence) {
	for _, d := range delegated {
		out = append(out, record.Fence{Name: d.Name, Directory: d.Directory, Namespaces: d.Namespaces, Kinds: d.Kinds})
	}
	slices.SortFunc(out, func(a, b record.Fence) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ref is the one that is followed.
func (r *reconciler) ref() string { return cmp.Or(r.cfg.Ref, "main") }

// hold settles a commit that a guard stopped.
func (r *reconciler) hold(ctx context.Context, tip source.Commit, h *hold) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(tip, Observed{State: Held, Reason: h.reason, Accept: h.accept})
	zerolog.Ctx(ctx).Warn().Str("commit", tip.Hash).Str("accept", string(h.accept)).Str("reason", h.reason).Msg("commit held")
	return nil
}

// reject settles a commit with findings.
func (r *reconciler) reject(ctx context.Context, tip source.Commit, findings diag.List) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	findings = findings.Sorted()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(tip, Observed{State: Rejected, Findings: findings})
	zerolog.Ctx(ctx).Warn().Str("commit", tip.Hash).Int("findings", len(findings)).Str("pos", findings[0].Pos.String()).
		Str("first", findings[0].Message).Msg("commit rejected")
	return nil
}

// advance notes that a commit reached a state.
func (r *reconciler) advance(tip source.Commit, s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(tip, Observed{State: s})
}

// set replaces what is known of the newest commit, unless a newer one was seen in the meantime; mu is held. The old
// Observed is left as it is: copies of Status share it.
func (r *reconciler) set(tip source.Commit, to Observed) {
	o := r.status.Observed
	if o == nil || o.Commit != tip.Hash {
		return
	}
	to.Commit, to.Subject, to.Author, to.Time, to.Since = o.Commit, o.Subject, o.Author, o.Time, time.Now()
	if o.State == to.State {
		to.Since = o.Since
	}
	if to.State != Rejected && to.Warnings == nil {
		to.Warnings = o.Warnings
	}
	r.status.Observed = &to
}

// fault notes a fault, or with nil that it is over, and logs each change once.
func (r *reconciler) fault(ctx context.Context, f *fault, err error, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	log := zerolog.Ctx(ctx)
	switch {
	case err == nil && f.err != nil:
		log.Info().Str("was", what).Dur("dur", time.Since(f.since)).Msg("fault is over")
		*f = fault{}
	case err != nil && f.err == nil:
		log.Warn().Err(err).Msg(what)
		*f = fault{err, time.Now()}
	case err != nil:
		if f.err.Error() != err.Error() {
			log.Warn().Err(err).Msg(what)
		}
		f.err = err
	}
}

// follow moves the newest commit between pushing and converged as control planes report.
func (r *reconciler) follow(ctx context.Context) error {
	for {
		changed := r.progress(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// progress takes over what control planes reported, and returns a channel that is closed when there is more.
func (r *reconciler) progress(ctx context.Context) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, changed := r.server.Progress()
	r.status.Served = p.Epoch
	r.status.Push = Push{ControlPlanes: p.ControlPlanes, Acked: p.Acked, Total: p.Total, Nacks: p.Nacks}
	o := r.status.Observed
	if r.base == nil || o == nil || o.Commit != r.base.Record.Commit() || p.Epoch != r.base.Record.Epoch ||
		o.State != Pushing && o.State != Converged {
		return changed
	}
	to := *o
	to.State, to.Reason = Pushing, ""
	switch {
	case p.Converged():
		to.State = Converged
	case !p.Reported && p.ControlPlanes == 0:
		to.Reason = "no control plane is connected"
	case !p.Reported:
		to.Reason = "no control plane has reported yet"
	case p.Total == 0:
		to.Reason = "no sidecar is connected"
	case len(p.Nacks) > 0:
		to.Reason = fmt.Sprintf("%s refused it: %s", p.Nacks[0].Workload, p.Nacks[0].Reason)
	}
	if to.State != o.State {
		to.Since = time.Now()
		if to.State == Converged {
			zerolog.Ctx(ctx).Info().Str("commit", o.Commit).Uint64("epoch", p.Epoch).Int("sidecars", p.Total).
				Dur("dur", to.Since.Sub(r.base.Record.Published)).Msg("commit converged")
		}
	}
	r.status.Observed = &to
	return changed
}

// Snapshot of the status: nothing in it is written again.
func (r *reconciler) snapshot() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	for _, f := range []fault{r.fetchBy, r.workBy, r.mendBy} {
		if f.err != nil && s.Fault == "" {
			s.Fault, s.FaultSince = f.err.Error(), f.since
		}
	}
	return s
}
