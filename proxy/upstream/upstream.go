// Package upstream is the sidecar's connections to others: for each endpoint of a port a pool of idle HTTP/1.1
// connections under mutual TLS, and the same in plaintext to the own application. It dials, proves and checks
// identities through proxy/identity, and decides which idle connection is still good. Which endpoint to take is the
// balancer's business; it only learns here whether connecting worked.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/l4"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Times and bounds of upstream connections.
const (
	// DialTimeout bounds a TCP connect (Linkerd's outbound value; there is no shorter one for the application, since on
	// hosts it may be starting).
	DialTimeout = time.Second
	// HandshakeTimeout bounds TLS.
	HandshakeTimeout = 5 * time.Second
	// IdleMesh is how long a connection to a sidecar is kept idle. It must be shorter than the idle timeout of the
	// inbound stack, so that reuse and the other end's close do not race.
	IdleMesh = 90 * time.Second
	// IdleApp is the same for the application, whose own idle timeout is unknown; common servers have 2 to 5 s.
	IdleApp = 1500 * time.Millisecond
	// MaxIdle bounds the idle connections of one pool.
	MaxIdle = 256
	// expiryMargin is how long before the peer's SVID expires its connections are given up, or a quarter of what is left
	// when they are made: nobody should be in the middle of something when the other end must close.
	expiryMargin = 10 * time.Second
)

// Transport makes pools and sweeps them. Use [NewTransport].
type Transport struct {
	source *identity.Source
	dialer net.Dialer

	mu    sync.Mutex // guards pools and apps
	pools map[*Pool]struct{}
	apps  map[string]*Pool
}

// NewTransport makes pools that prove what source has.
func NewTransport(source *identity.Source) *Transport {
	return &Transport{
		source: source,
		dialer: net.Dialer{Timeout: DialTimeout, KeepAliveConfig: l4.KeepAlive, Control: l4.Control},
		pools:  map[*Pool]struct{}{},
		apps:   map[string]*Pool{},
	}
}

// NewPool makes the pool of an endpoint; it is what pipeline.NewClusters asks for.
func (t *Transport) NewPool(to pipeline.Target) pipeline.Pool {
	p := &Pool{
		transport: t,
		network:   "tcp",
		addr:      to.Addr.String(),
		idleFor:   IdleMesh,
		http:      t.source.ClientTLS(to.SNI, to.Identities, spiffe.ALPNHTTP1),
		tcp:       t.source.ClientTLS(to.SNI, to.Identities, spiffe.ALPNTCP),
	}
	t.mu.Lock()
	t.pools[p] = struct{}{}
	t.mu.Unlock()
	return p
}

// App is the pool of plaintext connections to the own application at "host:port".
func (t *Transport) App(addr string) *Pool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.apps[addr]
	if p == nil {
		p = &Pool{transport: t, network: "tcp", addr: addr, idleFor: IdleApp}
		t.apps[addr] = p
		t.pools[p] = struct{}{}
	}
	return p
}

// Run closes idle connections whose time is over, until ctx ends; then it closes all idle ones.
func (t *Transport) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.each(func(p *Pool) { p.sweep(time.Time{}) })
			return nil
		case now := <-tick.C:
			t.each(func(p *Pool) { p.sweep(now) })
		}
	}
}

func (t *Transport) each(f func(*Pool)) {
	t.mu.Lock()
	pools := make([]*Pool, 0, len(t.pools))
	for p := range t.pools {
		pools = append(pools, p)
	}
	t.mu.Unlock()
	for _, p := range pools {
		f(p)
	}
}

// Pool is the connections to one address. All methods may be called by any number of goroutines.
type Pool struct {
	transport *Transport
	network   string
	addr      string
	idleFor   time.Duration
	http, tcp *tls.Config // nil: plaintext

	retired atomic.Bool
	mu      sync.Mutex // guards idle
	idle    []*Conn    // the longest idle first
}

// Conn is one connection of a pool. One exchange at a time has it.
type Conn struct {
	*l4.Conn
	// Peer is the SPIFFE ID that the server proved; empty to the application.
	Peer spiffe.ID
	// Reused is set where an exchange went over it before.
	Reused bool

	pool     *Pool
	material *identity.Material // what it was made with
	proven   time.Time          // until when the peer's SVID proves it; zero to the application
	expires  time.Time          // a little earlier: the last moment to begin something
	since    time.Time          // idle since
}

// Take returns an idle connection that may still be used, or nil: then Dial. Whether its peer has closed it meanwhile is
// for l4.Conn's Ask or Dead to say, at the last moment.
func (p *Pool) Take(now time.Time) *Conn {
	for {
		c := p.pop()
		if c == nil || c.usable(now) {
			return c
		}
		c.Close()
	}
}

func (p *Pool) pop() *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1] // the last used: the others may age out
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c
}

// usable reports whether a connection may carry another exchange: our identity and the bundle are still those it was
// made with, and the peer's SVID holds.
func (c *Conn) usable(now time.Time) bool {
	p := c.pool
	if p.retired.Load() {
		return false
	}
	if p.http == nil {
		return true
	}
	return c.material == p.transport.source.Load() && now.Before(c.expires)
}

// Expired reports whether the server's SVID has expired since it was shown.
func (c *Conn) Expired(now time.Time) bool { return !c.proven.IsZero() && !now.Before(c.proven) }

// Put gives a connection back whose exchange ended in order; it is kept for the next one, or closed.
func (c *Conn) Put(now time.Time) {
	p := c.pool
	c.Reused, c.since = true, now
	if !c.usable(now) {
		c.Close()
		return
	}
	var over *Conn
	p.mu.Lock()
	if len(p.idle) >= MaxIdle {
		over = p.idle[0]
		p.idle = slices.Delete(p.idle, 0, 1)
	}
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	if over != nil {
		over.Close()
	}
	if p.retired.Load() { // Retire may have come between
		p.sweep(time.Time{})
	}
}

// Dial makes a new connection for HTTP/1.1.
func (p *Pool) Dial(ctx context.Context) (*Conn, error) { return p.dial(ctx, p.http) }

// DialTCP makes a new connection for opaque bytes; it is never pooled.
func (p *Pool) DialTCP(ctx context.Context) (*Conn, error) { return p.dial(ctx, p.tcp) }

// ErrIdentity is a server that did not prove who it is, or refused us: the endpoint is there but not to be talked to.
var ErrIdentity = errors.New("mutual TLS failed")

func (p *Pool) dial(ctx context.Context, config *tls.Config) (*Conn, error) {
	material := p.transport.source.Load()
	nc, err := p.transport.dialer.DialContext(ctx, p.network, p.addr)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", p.addr, err)
	}
	c := &Conn{Conn: l4.New(nc.(*net.TCPConn)), pool: p, material: material}
	if config == nil {
		return c, nil
	}
	hctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	if err := c.Client(hctx, config); err != nil {
		c.Abort()
		return nil, fmt.Errorf("%w with %s: %w", ErrIdentity, p.addr, err)
	}
	if c.Peer, c.proven, err = identity.Peer(c.TLS()); err != nil {
		c.Abort()
		return nil, fmt.Errorf("%w with %s: %w", ErrIdentity, p.addr, err)
	}
	c.expires = c.proven.Add(-min(expiryMargin, time.Until(c.proven)/4))
	return c, nil
}

// Retire closes the idle connections and keeps no more. Exchanges under way finish.
func (p *Pool) Retire() {
	p.retired.Store(true)
	p.transport.mu.Lock()
	delete(p.transport.pools, p)
	p.transport.mu.Unlock()
	p.sweep(time.Time{})
}

// sweep closes what is idle too long, good no more or closed by its peer; with the zero time everything.
func (p *Pool) sweep(now time.Time) {
	var out []*Conn
	p.mu.Lock()
	kept := p.idle[:0]
	for _, c := range p.idle {
		if now.IsZero() || now.Sub(c.since) > p.idleFor || !c.usable(now) || c.Dead() {
			out = append(out, c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	p.mu.Unlock()
	for _, c := range out {
		c.Close()
	}
}

// Idle is the number of idle connections, for reports.
func (p *Pool) Idle() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// Addr is where the pool connects to.
func (p *Pool) Addr() string { return p.addr }
