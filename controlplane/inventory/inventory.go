// Package inventory turns what the mesh declares (static workloads) and what is seen (streams of sidecars, failures to
// connect that their peers report) into the endpoints of every service, published as immutable snapshots.
//
// # When an endpoint is listed
//
// A workload whose sidecar is connected is listed. Everything else is a guess about a silent peer, and the guesses err
// towards keeping it: a sidecar that lost only its stream still serves, and callers skip an endpoint that they cannot
// connect to. So a silent workload stays listed, until
//   - the grace has passed since its stream ended, provided that at least half of the workloads known are connected: a
//     control plane that hears few was restarted or cut off itself, and its silence says nothing about them; or
//   - a peer reported that it cannot connect to it, after this control plane saw its stream end: two independent signs
//     need no grace. A report alone, as after a restart, is the word of one sidecar, which may be cut off itself.
//
// The one that was heard last stays even then where its service would have no endpoint at all: an error that names the
// address helps more than one that names none, and it may be there. A static workload with an address in policy that
// never connected is listed, for policy says that it is there. An address in policy beats the one that a sidecar
// reports. Addresses and verdicts are kept on disk, so that a restart of the control plane takes away no endpoint and
// brings back none that was found dead.
//
// The package knows nothing of streams or certificates; its owner is controlplane.Run, and package push tells it who
// connects. It must not import push.
package inventory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

const (
	// Grace is how long a workload stays listed after its stream ended. A sidecar that lost its stream reconnects within
	// a few seconds; one that does not is most likely gone.
	Grace = 10 * time.Second
	// memory is how long a silent workload counts as known when the share of connected ones is taken.
	memory = time.Hour
	// settle is how long changes are collected before a snapshot is published: a thousand sidecars that connect at once
	// make a few snapshots, not a thousand.
	settle = 20 * time.Millisecond
)

// Endpoint is where a workload's sidecar takes mesh connections.
type Endpoint struct {
	Workload string
	Address  netip.AddrPort
}

// Service is the endpoints of one service. It is never written again.
type Service struct {
	Endpoints []Endpoint // sorted by address
	// Object is the endpoints as the config stream carries them, encoded once and shared by all who are sent it.
	Object *proxyapi.Object
}

// Snapshot is the endpoints of every service at one time. It is never written again.
type Snapshot struct {
	services map[mesh.ServiceName]*Service
	// Present are the workloads that are expected to answer: connected, or silent for so short that they count as there.
	Present map[string]bool
}

// empty is the endpoints of a service that has none; their encoding is the same for every name.
var emptyHash = sha256.Sum256(nil)

// Service returns the endpoints of a service; of one that has none, an empty list.
func (s *Snapshot) Service(n mesh.ServiceName) *Service {
	if s != nil {
		if svc := s.services[n]; svc != nil {
			return svc
		}
	}
	return &Service{Object: &proxyapi.Object{Kind: proxyapi.KindEndpoints, Name: string(n), Hash: emptyHash[:]}}
}

// workload is what is known of one workload.
type workload struct {
	service   mesh.ServiceName
	reported  netip.AddrPort // by its sidecar
	declared  netip.AddrPort // by policy
	static    bool           // named by policy
	streams   int            // open ones; a reconnect may overlap the stream that it replaces
	seen      bool           // connected at least once, ever
	silent    time.Time      // when it was last heard, while streams is 0; zero: never
	left      bool           // this process saw its last stream end, and none begin since
	unreached bool           // a peer could not connect since it was last heard
	gone      bool           // judged dead; it stays so until it connects
	revoked   bool           // not listed on any account until it connects
}

func (w *workload) address() netip.AddrPort {
	if w.declared.IsValid() {
		return w.declared
	}
	return w.reported
}

// Inventory is the owner of the workloads. Its methods are safe for concurrent use.
type Inventory struct {
	path     string
	damaged  error // of the file, when it was opened
	snapshot live.Value[*Snapshot]
	wake     chan struct{} // size 1: something changed

	mu        sync.Mutex // guards what follows
	workloads map[string]*workload
	mesh      *mesh.Mesh
	written   []byte // what is on disk
}

// record is a workload on disk.
type record struct {
	Workload string           `json:"workload"`
	Service  mesh.ServiceName `json:"service"`
	Address  string           `json:"address,omitempty"`
	Gone     bool             `json:"gone,omitempty"`
	Revoked  bool             `json:"revoked,omitempty"`
}

// Open reads the inventory kept at path, where there is one. What is damaged is left out and said by Run: sidecars report
// their addresses again as soon as they connect, and nothing is served until they do.
func Open(path string) (*Inventory, error) {
	in := &Inventory{path: path, wake: make(chan struct{}, 1), workloads: map[string]*workload{}}
	in.snapshot.Set(&Snapshot{})
	b, err := durable.ReadSealed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return in, nil
	}
	var records []record
	if err == nil {
		err = json.Unmarshal(b, &records)
	}
	switch {
	case errors.Is(err, durable.ErrCorrupt), err != nil && b != nil:
		in.damaged, records = err, nil
	case err != nil:
		return nil, fmt.Errorf("read the inventory of workloads: %w", err)
	}
	now := time.Now()
	for _, r := range records {
		addr, _ := netip.ParseAddrPort(r.Address)
		in.workloads[r.Workload] = &workload{service: r.Service, reported: addr, seen: !r.Revoked, silent: now,
			gone: r.Gone, revoked: r.Revoked}
	}
	in.written = b
	in.publish(now)
	return in, nil
}

// Watch returns the newest snapshot, and a channel that closes when there is a newer one.
func (in *Inventory) Watch() (*Snapshot, <-chan struct{}) { return in.snapshot.Watch() }

// Snapshot returns the newest snapshot.
func (in *Inventory) Snapshot() *Snapshot { return in.snapshot.Get() }

// SetMesh takes over the static workloads of a mesh and returns a snapshot with them.
func (in *Inventory) SetMesh(m *mesh.Mesh) *Snapshot {
	in.change(func(time.Time) {
		in.mesh = m
		declared := map[string]bool{}
		for i := range m.Workloads {
			s := &m.Workloads[i]
			declared[s.Name] = true
			w := in.workloads[s.Name]
			if w == nil {
				w = &workload{}
				in.workloads[s.Name] = w
			}
			addr, _ := netip.ParseAddrPort(s.Address) // checked by the compiler; an address that is none is not listed
			if addr != w.declared {
				w.unreached, w.gone = false, false // what was found out was about another address
			}
			w.service, w.declared, w.static = s.Service, addr, true
		}
		for name, w := range in.workloads {
			if w.static && !declared[name] {
				w.static, w.declared = false, netip.AddrPort{}
				if !w.seen {
					delete(in.workloads, name)
				}
			}
		}
	})
	in.publish(time.Now()) // at once: a release whose routes name new workloads is pushed with their endpoints
	return in.snapshot.Get()
}

// Connect says that a workload's sidecar has opened a stream, where it serves and which service. The caller calls the
// returned function once, when the stream has ended.
func (in *Inventory) Connect(name string, service mesh.ServiceName, addr netip.AddrPort) (disconnect func()) {
	var w *workload
	in.change(func(time.Time) {
		w = in.workloads[name]
		if w == nil {
			w = &workload{}
			in.workloads[name] = w
		}
		w.service, w.reported, w.seen = service, addr, true
		w.streams++
		w.left, w.unreached, w.gone, w.revoked = false, false, false, false
	})
	return func() {
		in.change(func(now time.Time) {
			w.streams--
			w.silent, w.left = now, w.streams == 0
		})
	}
}

// Unreached says that a peer could not connect to an address of a service.
func (in *Inventory) Unreached(service mesh.ServiceName, addr netip.AddrPort) {
	in.change(func(time.Time) {
		for _, w := range in.workloads {
			if w.service == service && w.address() == addr && w.streams == 0 {
				w.unreached = true
			}
		}
	})
}

// Forget takes a workload away: its enrolment was revoked.
func (in *Inventory) Forget(name string) {
	in.change(func(time.Time) {
		if w := in.workloads[name]; w != nil {
			// A stream that is still open ends by its owner's hand, and takes leave of the old value.
			in.workloads[name] = &workload{service: w.service, declared: w.declared, static: w.static, gone: true, revoked: true}
			if !w.static {
				delete(in.workloads, name)
			}
		}
	})
}

func (in *Inventory) change(f func(now time.Time)) {
	in.mu.Lock()
	f(time.Now())
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// Run publishes changes and lets graces pass, until ctx ends. It is called once.
func (in *Inventory) Run(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	if in.damaged != nil {
		log.Warn().Err(in.damaged).Msg("the inventory of workloads is damaged; starting without it, sidecars report their addresses when they connect")
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			in.publish(time.Now())
			return in.write()
		case <-in.wake:
			select {
			case <-time.After(settle):
			case <-ctx.Done():
				continue
			}
		case <-timer.C:
		}
		next := in.publish(time.Now())
		if err := in.write(); err != nil { // serving goes on from memory; the next change tries again
			log.Error().Err(err).Msg("the inventory is not written to disk")
		}
		timer.Reset(next)
	}
}

// publish judges the workloads at a time, publishes a snapshot if the outcome differs from the last one, and returns
// how long it holds unless something changes.
func (in *Inventory) publish(now time.Time) time.Duration {
	in.mu.Lock()
	defer in.mu.Unlock()
	next := judge(in.workloads, now)
	old := in.snapshot.Get()
	fresh := list(in.workloads, old)
	if !maps.Equal(fresh.services, old.services) || !maps.Equal(fresh.Present, old.Present) {
		in.snapshot.Set(fresh)
	}
	return next
}

// judge marks the workloads that are gone at a time, and returns how long the verdicts hold unless something changes.
func judge(workloads map[string]*workload, now time.Time) time.Duration {
	connected, known := 0, 0
	for _, w := range workloads {
		switch {
		case w.streams > 0:
			connected++
			known++
		case w.seen && !w.gone && now.Sub(w.silent) < memory:
			known++
		}
	}
	heard := 2*connected >= known // else the silence is ours
	next := memory
	for _, w := range workloads {
		if w.streams > 0 || w.gone {
			continue
		}
		left := w.silent.Add(Grace).Sub(now)
		switch {
		case w.unreached && w.left:
			w.gone = true
		case !w.seen: // declared, and never heard
		case left > 0:
			next = min(next, left)
		case heard:
			w.gone = true
		default:
			next = min(next, Grace)
		}
	}
	return next
}

// list makes the snapshot of workloads that were judged, sharing what is as in the old one.
func list(workloads map[string]*workload, old *Snapshot) *Snapshot {
	s := &Snapshot{services: map[mesh.ServiceName]*Service{}, Present: map[string]bool{}}
	by := map[mesh.ServiceName][]Endpoint{}
	last := map[mesh.ServiceName]*struct {
		Endpoint
		heard time.Time
	}{}
	for name, w := range workloads {
		if w.seen && !w.gone {
			s.Present[name] = true
		}
		e := Endpoint{Workload: name, Address: w.address()}
		if !e.Address.IsValid() || w.service == "" || w.revoked {
			continue
		}
		if !w.gone {
			by[w.service] = append(by[w.service], e)
			continue
		}
		l := last[w.service]
		if l == nil {
			l = new(struct {
				Endpoint
				heard time.Time
			})
			l.Endpoint, l.heard = e, w.silent
			last[w.service] = l
		} else if c := w.silent.Compare(l.heard); c > 0 || c == 0 && name < l.Workload {
			l.Endpoint, l.heard = e, w.silent
		}
	}
	for n, l := range last {
		if len(by[n]) == 0 {
			by[n] = []Endpoint{l.Endpoint}
		}
	}
	for n, es := range by {
		slices.SortFunc(es, func(a, b Endpoint) int {
			return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Workload, b.Workload))
		})
		if o := old.services[n]; o != nil && slices.Equal(o.Endpoints, es) {
			s.services[n] = o
			continue
		}
		s.services[n] = &Service{Endpoints: es, Object: encode(n, es)}
	}
	return s
}

func encode(n mesh.ServiceName, es []Endpoint) *proxyapi.Object {
	m := &proxyapi.Endpoints{}
	for _, e := range es {
		m.Endpoints = append(m.Endpoints, &proxyapi.Endpoint{
			Ip: e.Address.Addr().AsSlice(), Port: uint32(e.Address.Port()), Workload: e.Workload,
		})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("inventory: endpoints of %s cannot be encoded: %v", n, err)) // names are UTF-8, checked at enrolment
	}
	sum := sha256.Sum256(b)
	return &proxyapi.Object{Kind: proxyapi.KindEndpoints, Name: string(n), Hash: sum[:], Bytes: b}
}

// write keeps on disk what a restart must know.
func (in *Inventory) write() error {
	in.mu.Lock()
	var records []record
	for name, w := range in.workloads {
		if w.seen || w.gone {
			r := record{Workload: name, Service: w.service, Gone: w.gone, Revoked: w.revoked}
			if w.reported.IsValid() {
				r.Address = w.reported.String()
			}
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b record) int { return cmp.Compare(a.Workload, b.Workload) })
	b := mesh.Canonical(records)
	same := string(b) == string(in.written)
	in.mu.Unlock()
	if same {
		return nil
	}
	if err := durable.WriteSealed(in.path, b, 0o600); err != nil {
		return fmt.Errorf("write the inventory: %w", err)
	}
	in.mu.Lock()
	in.written = b
	in.mu.Unlock()
	return nil
}
