package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/proxy/detect"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/l4"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Env is what both stacks work with. All of it is shared and lives as long as the sidecar.
type Env struct {
	Current   *pipeline.Current
	Identity  *identity.Source
	Metrics   *observe.Registry
	Transport *upstream.Transport
	// Want asks for a destination that the config does not have yet; it returns at once. The stack then waits for the
	// next Pipeline. Outbound only.
	Want func(mesh.ServiceName)
	// ConnectFailed is told of endpoints that could not be reached; it returns at once. Outbound only.
	ConnectFailed func(service mesh.ServiceName, address string, err error)
	// Own is where this sidecar listens itself, so that it is never taken for the application. Inbound only.
	Own Own
	// Limits bound what a connection may take; zero fields are the defaults.
	Limits Limits
}

// Limits bound a connection in time and the stack in connections.
type Limits struct {
	Head      time.Duration // to send a whole request head, and to finish a handshake; 10 s
	Idle      time.Duration // an inbound or outbound keep-alive connection without a request; 5 min
	Body      time.Duration // between two reads of a request's body; 5 min
	Write     time.Duration // for a client to take in one write of ours; 60 s
	Detect    time.Duration // to show a protocol; detect.Window
	Pending   time.Duration // for a destination to become known; 3 s
	Tunnel    time.Duration // without a byte in either direction; l4.Idle
	Conns     int           // open client connections of one stack; 20,000, or a quarter of the descriptors: see conns
	Interim   int           // 1xx responses to one request; 16
	Endpoints int           // endpoints tried for one request; 3
}

func (l *Limits) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&l.Head, 10*time.Second)
	set(&l.Idle, 5*time.Minute)
	set(&l.Body, 5*time.Minute)
	set(&l.Write, time.Minute)
	set(&l.Detect, detect.Window)
	set(&l.Pending, 3*time.Second)
	set(&l.Tunnel, l4.Idle)
	for _, n := range []struct {
		p *int
		v int
	}{{&l.Conns, conns(openFiles())}, {&l.Interim, 16}, {&l.Endpoints, 3}} {
		if *n.p == 0 {
			*n.p = n.v
		}
	}
}

// conns is how many client connections a stack may have, where the process may have so many descriptors. Each may need
// another one upstream, and there are two stacks: clients that take all they can get must not keep the sidecar from its
// control plane.
func conns(files uint64) int {
	const most = 20_000
	if files == 0 || files/4 > most {
		return most
	}
	return max(int(files/4), 1)
}

// stack is what inbound and outbound have in common: listeners, the client connections that are open, and the end.
type stack struct {
	Env

	slots    slots // one is taken for each open connection
	draining atomic.Bool
	conns    sync.WaitGroup

	mu        sync.Mutex // guards the rest
	live      map[*client]struct{}
	listeners []net.Listener
	kills     []context.CancelFunc // end the connections' own waits, as for a dial or for config
}

func newStack(env Env) *stack {
	env.Limits.defaults()
	s := &stack{Env: env, slots: make(slots, env.Limits.Conns), live: map[*client]struct{}{}}
	return s
}

// slots bounds a number of connections. A nil slots has no bound.
type slots chan struct{}

// take waits for a slot; false: ctx ended first.
func (s slots) take(ctx context.Context) bool {
	if s == nil {
		return ctx.Err() == nil
	}
	select {
	case s <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// give gives a slot back.
func (s slots) give() {
	if s != nil {
		<-s
	}
}

// client is one connection that was accepted. Its goroutine owns it; others may only retire or abort it.
type client struct {
	*l4.Conn
	stack *stack

	// state says whether its goroutine waits for a request, so that it may be woken without harm.
	state   atomic.Int32
	closing atomic.Bool // no further request after the one at hand
	left    atomic.Bool // the client vanished while its answer was waited for

	mu sync.Mutex // guards the rest, but its goroutine may read peer and chain without

	up *upstream.Conn // that an exchange or a tunnel of it has now; nil: none

	// Of a connection under mutual TLS, else zero: who it is and until when that holds.
	peer     string
	chain    []*x509.Certificate
	expires  time.Time
	retireAt time.Time   // a little earlier, so that nobody is in the middle of something
	judge    func() bool // of a tunnel: whether it is still allowed

	// Of a connection that carries bytes: where they are counted, and how many were.
	tcp           *observe.TCP
	read, written int64
}

const (
	busy int32 = iota
	idle
	woken
)

// retire lets the connection end at the next moment at which no request is lost.
func (c *client) retire() {
	c.closing.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock() // see awake
	if c.state.CompareAndSwap(idle, woken) {
		c.Wake()
	}
}

// awake ends the wait for a request, and reports whether retire ended it. Then its Wake is over too: one that came later
// would break the request that came with it.
func (c *client) awake() (retired bool) {
	if c.state.CompareAndSwap(idle, busy) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Store(busy)
	return true
}

// holds notes the upstream connection that the client's exchange or tunnel has, or none, for watch to end it. It must be
// none before the connection is another's.
func (c *client) holds(up *upstream.Conn) {
	c.mu.Lock()
	c.up = up
	c.mu.Unlock()
}

// watch ends an exchange that nobody waits for any more, so that the application need not work for nobody: its own
// goroutine waits for the upstream and does not look at the client. It also ends what goes to a server whose SVID has
// expired: no connection lives longer than the proof of its peer.
func (c *client) watch(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.up == nil:
	case c.judge == nil && c.Gone(): // a tunnel reads from both sides, and sees it
		c.left.Store(true)
		c.up.Abort()
	case c.up.Expired(now):
		c.up.Abort()
	}
}

// tunnelled marks the connection as a tunnel that allowed decides about.
func (c *client) tunnelled(allowed func() bool) {
	c.mu.Lock()
	c.judge = allowed
	c.mu.Unlock()
}

// metered makes meter count the connection's bytes.
func (c *client) metered(t *observe.TCP) {
	c.mu.Lock()
	c.tcp = t
	c.mu.Unlock()
}

// meter counts the bytes since the last time; a tunnel may live for days.
func (c *client) meter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tcp != nil {
		c.read, c.written = count(c.tcp, c.Conn, c.read, c.written)
	}
}

// allowed asks again whether a tunnel may go on; what is no tunnel is judged by request.
func (c *client) allowed() bool {
	c.mu.Lock()
	judge := c.judge
	c.mu.Unlock()
	return judge == nil || judge()
}

// serve accepts until ctx ends, or Drain closes the listener. Each connection gets a goroutine of its own, which ends
// the connection and which Drain waits for: the connections outlive ctx, but keep its values. share bounds what this
// listener, and others with the same share, may take of the stack's connections; nil: all.
func (s *stack) serve(ctx context.Context, ln net.Listener, share slots, handle func(context.Context, *client)) error {
	conns, kill := context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		kill()
		ln.Close()
		return nil
	}
	s.listeners = append(s.listeners, ln)
	s.kills = append(s.kills, kill)
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	backoff := time.Duration(0)
	for {
		// Beyond the limits the kernel's backlog is the queue.
		if !share.take(ctx) {
			return nil
		}
		if !s.slots.take(ctx) {
			share.give()
			return nil
		}
		nc, err := ln.Accept()
		if err != nil {
			s.slots.give()
			share.give()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors, or the peer has gone again: neither may end the listener.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(backoff):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		backoff = 0
		c := &client{Conn: l4.New(nc.(*net.TCPConn)), stack: s}
		s.mu.Lock()
		if s.draining.Load() {
			s.mu.Unlock()
			c.Abort()
			s.slots.give()
			share.give()
			return nil
		}
		s.live[c] = struct{}{}
		s.conns.Add(1) // under mu and before draining is set, so that Drain waits for it
		s.mu.Unlock()
		go s.serveClient(conns, c, share, handle)
	}
}

// serveClient is the goroutine of one client connection.
func (s *stack) serveClient(ctx context.Context, c *client, share slots, handle func(context.Context, *client)) {
	defer func() {
		s.mu.Lock()
		delete(s.live, c)
		s.mu.Unlock()
		s.slots.give()
		share.give()
		s.conns.Done()
	}()
	handle(ctx, c)
}

// each calls f for the connections that are open now.
func (s *stack) each(f func(*client)) {
	s.mu.Lock()
	all := make([]*client, 0, len(s.live))
	for c := range s.live {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}

// Drain stops accepting, lets requests under way finish, closes idle connections and asks clients to close the others.
// It returns when none is open, or aborts those that are when ctx ends and returns ctx's error. Tunnels last until their
// ends close them, or until ctx ends.
func (s *stack) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for _, ln := range s.listeners {
		ln.Close()
	}
	kills := s.kills
	s.mu.Unlock()
	kill := func() {
		for _, k := range kills {
			k()
		}
	}
	s.each((*client).retire)
	done := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(done)
	}()
	defer kill()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		kill()
		s.each(func(c *client) { c.Abort() })
		<-done
		return ctx.Err()
	}
}

// Open is the number of open client connections.
func (s *stack) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// peek reads until the first bytes of a connection show what it speaks, or for as long as that may take. The bytes are
// in the returned buffer, which is the caller's; nil where there are none. Who says nothing is opaque.
func (c *client) peek() (detect.Protocol, *l4.Buffer, int, error) {
	c.ReadBy(time.Now().Add(c.stack.Limits.Detect))
	b, n, err := c.Await()
	for {
		if err != nil {
			if !l4.Timeout(err) || c.stack.draining.Load() {
				l4.Return(b)
				return detect.Opaque, nil, 0, err
			}
			c.ReadBy(time.Time{})
			return detect.Opaque, b, n, nil
		}
		p := detect.First(b.B[:n])
		if p == detect.TLS {
			if _, whole := detect.ServerName(b.B[:n]); !whole && n < len(b.B) {
				p = detect.NeedMore
			}
		}
		if p != detect.NeedMore || n == len(b.B) {
			c.ReadBy(time.Time{})
			return p, b, n, nil
		}
		var m int
		m, err = c.Read(b.B[n:])
		if n += m; m > 0 {
			err = nil
		}
	}
}
