// Package config keeps the sidecar's config the one that its control plane wants: it owns the stream. What comes is
// decoded, checked by pipeline.Build, published, and only then acknowledged; what fails is refused with a reason and
// leaves everything as it was. What was acknowledged is kept on disk, signed, and served from at a start without a
// control plane. The package also renews the certificate over the stream, enrols where there is none, asks for
// destinations on demand and reports traffic. It is the one place of the sidecar that speaks proxyapi.
package config

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Waits between attempts, doubled from the first to the last, with jitter of half.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 4 * time.Second
	// askOperator is the wait after an enrolment's refusal that stays until somebody does something.
	askOperator = 20 * time.Second
	// attempt bounds one enrolment, and one dialling of the stream.
	attempt = 10 * time.Second
	// confirmEvery is how often an unchanged config is written again, so that a restart knows how fresh it is.
	confirmEvery = time.Minute
	// warnEvery is how often the coming end of the certificate is told.
	warnEvery = 10 * time.Minute
)

// Config is what the sidecar's operator says.
type Config struct {
	// ControlPlane is the stream port, "host:port".
	ControlPlane string
	Version      string
	// Declared are the destinations of --listen.
	Declared []mesh.ServiceName
	// MeshAddress is where other sidecars reach this one, "IP:port".
	MeshAddress string
	// Applications are the addresses of the application by port name, as given.
	Applications map[string]string
	// Dir is the state directory.
	Dir string
	// JoinToken reads the join token that lies ready now; no token is no error. nil: there never is one. One that was not
	// used yet is used at the next connection, whatever certificate there is.
	JoinToken func() (*identity.Token, error)
}

// Deps are what the client works on. All are required.
type Deps struct {
	State     *identity.State
	Source    *identity.Source
	Enroller  *identity.Enroller
	Current   *pipeline.Current
	Clusters  *pipeline.Clusters
	Freshness *pipeline.Freshness
	Metrics   *observe.Registry
}

// Client is the sidecar's end of the stream. Use [New]; Run once.
type Client struct {
	Config
	Deps
	instance string
	saves    chan snapshot // the newest one that waits
	unsaved  bool          // the saver's own
	asked    chan struct{} // size 1: wanted or failures grew

	// What follows belongs to Run's goroutine, and to Start before.
	store     *store
	refusals  map[mesh.ServiceName]pipeline.Refusal
	who       identity.Enrolment
	renewal   identity.Renewal
	reenrol   bool   // the control plane asked for it
	fresh     bool   // the next hello has nothing
	spent     string // the id of a new token that was refused
	complaint string // about the token's file, as last logged

	mu       sync.Mutex // guards what follows
	wanted   map[mesh.ServiceName]bool
	failures []failure
	reported map[string]time.Time // last connect-failure report by address
	status   Status
}

// failure is an endpoint that could not be reached.
type failure struct{ service, address, err string }

// Status is how things stand, for the admin port.
type Status struct {
	Workload string           `json:"workload,omitempty"`
	Service  mesh.ServiceName `json:"service,omitempty"`
	// Connected reports whether the stream is up; Since is the last change of that.
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	// Waiting says what the sidecar waits for, in words for an operator; empty: nothing.
	Waiting string `json:"waiting,omitempty"`
	// Error is why the last attempt to enrol or connect failed.
	Error string `json:"error,omitempty"`
	// Nack is why the last transaction was refused, until one is applied.
	Nack    string   `json:"nack,omitempty"`
	Epoch   uint64   `json:"epoch"`
	Commit  string   `json:"commit,omitempty"`
	Objects []Object `json:"objects"`
	// Subscribed are the destinations asked for on demand.
	Subscribed []mesh.ServiceName `json:"subscribed,omitempty"`
}

// Object names an object of the effective config.
type Object struct {
	Kind string    `json:"kind"`
	Name string    `json:"name"`
	Hash mesh.Hash `json:"hash"`
}

// New makes a client that holds nothing yet.
func New(c Config, d Deps) *Client {
	return &Client{
		Config: c, Deps: d, instance: rand.Text(), saves: make(chan snapshot, 1), asked: make(chan struct{}, 1),
		store: emptyStore(), refusals: map[mesh.ServiceName]pipeline.Refusal{},
		wanted: map[mesh.ServiceName]bool{}, reported: map[string]time.Time{},
		status: Status{Since: time.Now(), Waiting: "the first contact with the control plane", Objects: []Object{}},
	}
}

// Start takes up what the state directory has: identity and last known good config, which serve at once. It returns
// an error only where starting on would do harm; what is damaged is logged and enrolled or fetched again.
func (c *Client) Start(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	who, m, err := c.State.Load(time.Now())
	if err != nil {
		log.Error().Err(err).Msg("the identity that was kept is not usable; enrolling again")
	}
	if t := c.Enroller.Token; t != nil && who.Workload != "" && who.Workload != t.Workload {
		return fmt.Errorf("the state directory %s is of workload %s and the join token of %s; use another --state, or no token",
			c.Dir, who.Workload, t.Workload)
	}
	c.Source.Set(m.SVID, m.Bundle)
	last, err := readLastGood(c.Dir, c.State, who.Workload)
	if err != nil {
		log.Error().Err(err).Msg("starting without a config; traffic waits for the control plane")
	}
	switch {
	case who.Workload != "":
		c.enrolled(who)
	case last.store != nil && m.Bundle != nil: // the host key is registered: it gets a new identity by itself
		c.who = last.who
		c.set(func(s *Status) {
			s.Workload, s.Service, s.Waiting = c.who.Workload, c.who.Service, "an enrolment by the host key"
		})
	case c.Enroller.Token == nil:
		return identity.ErrNoToken
	default:
		c.set(func(s *Status) { s.Waiting = "the first enrolment of workload " + c.Enroller.Token.Workload })
		return nil
	}
	st, saved := last.store, last.saved
	if st == nil {
		return nil
	}
	c.Freshness.Confirm(saved)
	if err := c.publish(ctx, st); err != nil {
		log.Error().Err(err).Msg("the last known good config is not used; traffic waits for the control plane")
		return nil
	}
	log.Info().Str("commit", st.commit).Uint64("epoch", st.epoch).Stringer("stale", time.Since(saved).Truncate(time.Second)).
		Msg("serving from the last known good config")
	if c.Current.Load().Stale(time.Now()) {
		log.Error().Msg("that config is too old to be believed: identities are allowed nothing until a control plane confirms it")
	}
	return nil
}

// enrolled notes who this is and when to renew.
func (c *Client) enrolled(who identity.Enrolment) {
	c.who = who
	svid := c.Source.Load().SVID
	c.renewal = identity.Renewal{Received: svid.Received, NotAfter: svid.NotAfter}
	c.Freshness.SetLifetime(svid.Lifetime())
	c.set(func(s *Status) { s.Workload, s.Service, s.Waiting = who.Workload, who.Service, "" })
}

// publish makes a store the one that serves, or says why it cannot be.
func (c *Client) publish(ctx context.Context, st *store) error {
	conf := st.config()
	conf.AppliedAt, conf.Service, conf.Apps = time.Now(), c.who.Service, c.Applications
	for _, r := range c.refusals {
		conf.Refusals = append(conf.Refusals, r)
	}
	p, err := pipeline.Build(conf, pipeline.Deps{Clusters: c.Clusters, Freshness: c.Freshness})
	if err != nil {
		return err
	}
	c.Current.Publish(p, c.Clusters)
	c.store = st
	objects := make([]Object, 0, len(st.objects))
	for _, o := range st.sorted() {
		objects = append(objects, Object{o.kind, o.name, mesh.Hash(o.hash)})
	}
	c.set(func(s *Status) {
		s.Epoch, s.Commit, s.Objects, s.Nack, s.Service = st.epoch, st.commit, objects, "", p.Service
	})
	return nil
}

// Run holds the stream until ctx ends: it enrols where there is no valid certificate, connects, and starts over with
// back-off when the stream ends. It returns nil after the last known good config is on disk.
func (c *Client) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.save(gctx) })
	g.Go(func() error { c.loop(gctx); return nil })
	return g.Wait()
}

func (c *Client) loop(ctx context.Context) {
	log := zerolog.Ctx(ctx)
	wait, said, warned := time.Duration(0), "", time.Time{}
	for {
		began, proven := time.Now(), !c.reenrol
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		var moved *drainError
		if errors.As(err, &moved) {
			wait = time.Duration(float64(moved.within) * mrand.Float64())
			log.Info().Dur("dur", wait).Msg("the control plane asks to reconnect")
		} else {
			// What has lasted starts over at once; what fails at once is left in peace for longer and longer.
			if time.Since(began) > retryMax {
				wait, said = 0, ""
			}
			wait = min(max(2*wait, retryMin), retryMax)
			// A stream that is denied is no last word: the host key may get another certificate.
			if identity.Permanent(err) && !(proven && c.reenrol) {
				wait = askOperator
			}
			c.set(func(s *Status) { s.Error = err.Error() })
			if line := err.Error(); line != said { // the same fault again is no news
				said = line
				if c.store.commit == "" {
					log.Warn().Err(err).Str("waiting", c.Status().Waiting).
						Msg("waiting for the control plane; nothing is served before the first config")
				} else {
					log.Warn().Err(err).Str("commit", c.store.commit).Msg("no control plane; the config at hand goes on serving")
				}
			}
			if time.Since(warned) >= warnEvery && c.warnOfExpiry(log) {
				warned = time.Now()
			}
		}
		select {
		case <-time.After(wait/2 + time.Duration(float64(wait)/2*mrand.Float64())):
		case <-ctx.Done():
			return
		}
	}
}

// warnOfExpiry says, from half of the certificate's life on, what comes if no control plane does.
func (c *Client) warnOfExpiry(log *zerolog.Logger) bool {
	svid := c.Source.Load().SVID
	if svid == nil {
		return false
	}
	left := time.Until(svid.NotAfter)
	switch {
	case left > 0 && c.Current.Load().Stale(time.Now()):
		log.Error().Time("until", svid.NotAfter).
			Msg("the config is too old to be believed: identities are allowed nothing until a control plane confirms it")
	case left <= 0:
		log.Error().Time("until", svid.NotAfter).
			Msg("the certificate has expired: every connection of the mesh is refused until a control plane renews it")
	case left < svid.Lifetime()/2:
		log.Warn().Time("until", svid.NotAfter).Stringer("left", left.Truncate(time.Second)).
			Msg("the certificate is past half of its life and no control plane renews it; when it ends, connections are refused")
	default:
		return false
	}
	return true
}

// once makes sure of an identity, and holds one stream until it ends. The error is never nil.
func (c *Client) once(ctx context.Context) error {
	unused := c.unusedToken(ctx)
	if c.Source.Valid() != nil || c.reenrol {
		if err := c.enrol(ctx); err != nil {
			return err
		}
	} else if unused {
		if err := c.enrol(ctx); err != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("the new join token does not enrol; going on with the certificate at hand")
			if identity.Permanent(err) {
				c.spent = c.Enroller.Token.ID
			}
		}
	}
	err := c.session(ctx)
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		c.reenrol = true // as the control plane says: the certificate is no longer the workload's
	}
	var m mismatchError
	c.fresh = c.fresh || errors.As(err, &m)
	return err
}

// unusedToken takes up the join token that lies ready, and reports whether it was not used yet.
func (c *Client) unusedToken(ctx context.Context) bool {
	if c.JoinToken == nil {
		return false
	}
	t, err := c.JoinToken()
	if err == nil && t != nil && c.who.Workload != "" && t.Workload != c.who.Workload {
		err = fmt.Errorf("the join token is of workload %s, this sidecar is %s", t.Workload, c.who.Workload)
	}
	if err != nil {
		if line := err.Error(); line != c.complaint {
			c.complaint = line
			zerolog.Ctx(ctx).Warn().Err(err).Msg("the join token that lies ready is not used")
		}
		return false
	}
	c.complaint = ""
	if t == nil { // it was used, and is not needed again
		return false
	}
	c.Enroller.Token = t
	return t.ID != c.who.Token && t.ID != c.spent
}

func (c *Client) enrol(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	who, err := c.Enroller.Enrol(ctx, c.who)
	var lost *identity.NotKeptError
	if errors.As(err, &lost) {
		zerolog.Ctx(ctx).Error().Err(err).Msg("the next start will have to enrol again")
		err = nil
	}
	if err != nil {
		c.set(func(s *Status) {
			s.Waiting = "an enrolment"
			if c.who.Workload == "" && c.Enroller.Token != nil {
				s.Waiting = "the first enrolment of workload " + c.Enroller.Token.Workload
			}
		})
		return err
	}
	c.enrolled(who)
	c.reenrol = false
	svid := c.Source.Load().SVID
	zerolog.Ctx(ctx).Info().Str("workload", who.Workload).Str("peer", string(svid.ID)).Time("until", svid.NotAfter).Msg("enrolled")
	return nil
}

// Want asks for a destination, once; it returns at once. When the control plane has answered, pipeline.Current has a
// Pipeline in which it is no longer Pending.
func (c *Client) Want(s mesh.ServiceName) {
	c.mu.Lock()
	known := c.wanted[s]
	c.wanted[s] = true
	c.mu.Unlock()
	if !known {
		c.nudge()
	}
}

// Limits of connect-failure reports.
const (
	reportEvery    = 5 * time.Second // for one address
	maxReports     = 64              // that wait
	maxReportState = 1024            // addresses remembered
)

// ConnectFailed reports an endpoint that could not be reached; it returns at once. What comes too often is dropped.
func (c *Client) ConnectFailed(service mesh.ServiceName, address string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.reported[address]) < reportEvery || len(c.failures) >= maxReports {
		return
	}
	if len(c.reported) >= maxReportState {
		clear(c.reported)
	}
	c.reported[address] = now
	c.failures = append(c.failures, failure{string(service), address, err.Error()})
	c.nudge()
}

func (c *Client) nudge() {
	select {
	case c.asked <- struct{}{}:
	default:
	}
}

func (c *Client) set(f func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.status)
}

// Status is a copy.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	for w := range c.wanted {
		s.Subscribed = append(s.Subscribed, w)
	}
	return s
}
