// Package push serves the config stream: one for each sidecar, over mutual TLS. It takes releases from package mirror
// (as views) and endpoints from package inventory, has package assign say what a sidecar should hold, and sends the
// difference to what it holds, one transaction at a time, each with the hash of the whole state after it.
//
// A stream never queues: while a transaction is on its way, what changes meanwhile only changes the next one, which is
// computed when the answer is there. So a sidecar that reads slowly costs its own goroutines and delays nobody, and it
// gets the newest state next, never the ones between. What is sent is shared: a stream owns names and hashes only.
//
// What a sidecar refuses stays refused until a release changes; until then it is served the last one that it took.
// The bookkeeping of one stream is in book.go, which is pure; stream.go moves messages; this file knows all streams.
package push

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/controlplane/assign"
	"github.com/heddle-mesh/heddle/controlplane/enroll"
	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/controlplane/inventory"
	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

const (
	// admitEvery and admitBurst pace the streams that open: two thousand reconnects are served within two seconds, and
	// none of them makes the others time out.
	admitEvery = time.Millisecond
	admitBurst = 250
	// subscribeEvery and subscribeBurst pace the subscriptions of one sidecar, certifyEvery and certifyBurst its
	// certificate requests.
	subscribeEvery, subscribeBurst = 20 * time.Millisecond, 100
	certifyEvery, certifyBurst     = time.Second, 10
	// maxSubscribed bounds the destinations that one sidecar may ask for, maxHave the objects that it may claim.
	maxSubscribed = 10_000
	maxHave       = 100_000
	// helloWithin is how long a stream may be silent before hello.
	helloWithin = 10 * time.Second
	// stuck is how long one message may take to be accepted by the sidecar's flow control before the stream is ended.
	stuck = 30 * time.Second
	// young is how long after its start a control plane takes a sidecar that has config for one that was running before.
	young = time.Minute
)

// Server is the stream service and what it knows of every sidecar. Its methods are safe for concurrent use.
type Server struct {
	proxyapi.UnimplementedConfigServer

	input     *live.Value[assign.Input]
	inventory *inventory.Inventory
	ca        *identity.CA
	register  *enroll.Register
	traffic   *observe.Traffic
	started   time.Time
	admission bucket
	changed   chan struct{} // size 1: progress may have changed
	streams   sync.WaitGroup
	stop      chan struct{} // closed when the control plane stops

	mu      sync.Mutex // guards what follows
	stopped bool
	proxies map[string]*proxy
}

// proxy is what is known of a workload's sidecar, across its streams. The server's mu guards it.
type proxy struct {
	Proxy
	stream *stream // nil: disconnected
	// good and refused are those of the last book, so that a reconnect does not offer again what was refused.
	good, refused *assign.View
	instance      string
}

// State is how far a sidecar is.
type State string

const (
	OK           State = "ok"           // it acknowledged the newest release
	Behind       State = "behind"       // it has not acknowledged it yet
	Nack         State = "nack"         // it refused it, or cannot enforce it
	Disconnected State = "disconnected" // it has no stream
)

// Proxy is what an operator sees of one sidecar.
type Proxy struct {
	Workload  string    `json:"workload"`
	Service   string    `json:"service"`
	Identity  string    `json:"identity,omitempty"`
	Address   string    `json:"address,omitempty"` // of its inbound mesh listener
	Version   string    `json:"version,omitempty"`
	State     State     `json:"state"`
	Commit    string    `json:"commit,omitempty"` // acknowledged
	Epoch     uint64    `json:"epoch,omitempty"`  // acknowledged
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // of Connected
	// CertificateExpires is when the SVID ends that it holds, as far as this control plane knows.
	CertificateExpires time.Time `json:"certificateExpires,omitzero"`
	Nack               string    `json:"nack,omitempty"`
}

// New returns a server. It does not own what it is given.
func New(input *live.Value[assign.Input], inv *inventory.Inventory, ca *identity.CA, register *enroll.Register, traffic *observe.Traffic) *Server {
	return &Server{
		input: input, inventory: inv, ca: ca, register: register, traffic: traffic, started: time.Now(),
		admission: bucket{every: admitEvery, burst: admitBurst},
		changed:   make(chan struct{}, 1), stop: make(chan struct{}), proxies: map[string]*proxy{},
	}
}

// Stop ends all streams; new ones are refused. Wait returns when their goroutines have ended, which needs the gRPC
// server to be stopped too.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
}

// Wait waits for the goroutines of all streams.
func (s *Server) Wait() { s.streams.Wait() }

// Revoke ends the stream of a workload whose enrolment was revoked, and forgets the sidecar. It returns when the
// certificate ends that it was last seen with; zero: it was not seen.
func (s *Server) Revoke(workload string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.note()
	p := s.proxies[workload]
	if p == nil {
		return time.Time{}
	}
	delete(s.proxies, workload)
	if p.stream != nil {
		p.stream.end(errRevoked)
	}
	return p.CertificateExpires
}

// Changed is ready when what Progress returns may have changed.
func (s *Server) Changed() <-chan struct{} { return s.changed }

// Run notes releases and workloads that come and go, and ends the streams of hosts that a workload was moved away from,
// until ctx is done. It is called once.
func (s *Server) Run(ctx context.Context) error {
	for {
		_, stale := s.input.Watch()
		enrolments := s.register.Changed()
		s.evict()
		s.note()
		select {
		case <-stale:
		case <-enrolments:
		case <-ctx.Done():
			return nil
		}
	}
}

// evict ends the streams whose certificates are no longer of the enrolment of their workload.
func (s *Server) evict() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, p := range s.proxies {
		if p.stream == nil {
			continue
		}
		switch err := s.register.Bound(w, p.stream.leaf); {
		case errors.Is(err, enroll.ErrNotEnrolled):
			p.stream.end(errRevoked)
		case err != nil:
			p.stream.end(status.Error(codes.PermissionDenied, err.Error()))
		}
	}
}

func (s *Server) note() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Progress says how far the newest release has come, among the sidecars that are there: connected, or silent for so
// short that they count as there.
func (s *Server) Progress() *proxyapi.PushReport {
	r := &proxyapi.PushReport{}
	input := s.input.Get()
	view := input.View
	if view == nil {
		return r
	}
	r.Epoch, r.Commit = view.Epoch, view.Commit
	there := input.Endpoints.Present
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range there {
		if p := s.proxies[w]; p == nil || p.stream == nil {
			r.Total++
			if p != nil && p.Epoch == view.Epoch && p.Proxy.Nack == "" {
				r.Acked++
			}
		}
	}
	for w, p := range s.proxies {
		if p.stream == nil && !there[w] {
			continue
		}
		if p.stream != nil {
			r.Total++
			if p.Epoch == view.Epoch && p.Proxy.Nack == "" {
				r.Acked++
			}
		}
		if p.Proxy.Nack != "" {
			r.Nacks = append(r.Nacks, &proxyapi.ProxyNack{Workload: w, Reason: p.Proxy.Nack})
		}
	}
	slices.SortFunc(r.Nacks, func(a, b *proxyapi.ProxyNack) int { return cmp.Compare(a.Workload, b.Workload) })
	return r
}

// Proxies describes every enrolled workload's sidecar, sorted by workload.
func (s *Server) Proxies() []Proxy {
	view := s.input.Get().View
	enrolled, _ := s.register.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Proxy, 0, len(enrolled))
	for _, e := range enrolled {
		p := s.proxies[e.Workload]
		if p == nil { // never seen by this control plane process
			out = append(out, Proxy{Workload: e.Workload, Service: string(e.Service), State: Disconnected})
			continue
		}
		row := p.Proxy
		row.Connected = p.stream != nil
		switch {
		case !row.Connected:
			row.State = Disconnected
		case row.Nack != "":
			row.State = Nack
		case view == nil || row.Epoch != view.Epoch:
			row.State = Behind
		default:
			row.State = OK
		}
		out = append(out, row)
	}
	return out
}

// Connected reports how many sidecars are connected.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.proxies {
		if p.stream != nil {
			n++
		}
	}
	return n
}
