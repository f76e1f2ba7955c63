package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/proxy/detect"
	"github.com/heddle-mesh/heddle/proxy/l4"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Outbound is the stack for connections that the own application opens. From top to bottom: accept → HTTP or bytes →
// which service is meant → which route → which backend → which endpoint → mutual TLS to its sidecar.
//
// The order matters. The destination comes from the request alone (or from the listener), and is one of the mesh's or
// none: this is no relay. The route comes before the endpoint, because a route chooses between services. The endpoint is
// chosen last and anew for each try, so that the choice is never older than the wait for it.
type Outbound struct {
	*stack
	denials denials
}

// NewOutbound makes the stack. Run, the listeners' serving and at last Drain are the caller's to start and wait for.
func NewOutbound(env Env) *Outbound {
	if env.Want == nil {
		env.Want = func(mesh.ServiceName) {}
	}
	if env.ConnectFailed == nil {
		env.ConnectFailed = func(mesh.ServiceName, string, error) {}
	}
	return &Outbound{stack: newStack(env)}
}

// ServeProxy serves an HTTP proxy: requests in absolute form or with the Host of a service, and CONNECT for ports that
// carry bytes. The listener should be on loopback. It returns nil when ctx ends or Drain is called; its connections last
// until Drain ends them.
func (o *Outbound) ServeProxy(ctx context.Context, ln net.Listener) error {
	return o.serve(ctx, ln, nil, func(ctx context.Context, c *client) { o.serveHTTP(ctx, c, destination{}, nil, 0) })
}

// ServeUpstream serves a listener for one port of a service, by the port's name or number: whatever connects there is
// connected to that service. Host is left as the client sends it.
func (o *Outbound) ServeUpstream(ctx context.Context, ln net.Listener, service mesh.ServiceName, port string) error {
	d := destination{service: service, port: port}
	return o.serve(ctx, ln, nil, func(ctx context.Context, c *client) { o.listener(ctx, c, d) })
}

// Run closes tunnels to destinations that a new config takes away, ends exchanges whose client is gone, counts what
// tunnels carry and logs the denials that were held back, until ctx ends.
func (o *Outbound) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	pl, _ := o.Current.Changed()
	for {
		now, changed := o.Current.Changed()
		if now != pl {
			pl = now
			o.each(func(c *client) {
				if !c.allowed() {
					c.Abort()
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case t := <-tick.C:
			o.denials.flush(zerolog.Ctx(ctx), t)
			o.each(func(c *client) {
				c.watch(t)
				c.meter()
			})
		}
	}
}

// destination is what a listener is for; the zero destination is what each request says.
type destination struct {
	service mesh.ServiceName
	port    string
}

func (d *destination) find(pl *pipeline.Pipeline, authority []byte) *pipeline.Upstream {
	if d.service != "" {
		return pl.ByName(d.service, d.port)
	}
	return pl.ByHost(authority)
}

// resolve finds an upstream, and waits a bounded time for one that is not known yet.
func (o *Outbound) resolve(ctx context.Context, d *destination, authority []byte) (*pipeline.Pipeline, *pipeline.Upstream) {
	pl := o.Current.Load()
	if u := d.find(pl, authority); u.State != pipeline.Pending && u.State != pipeline.NoConfig {
		return pl, u
	}
	timer := time.NewTimer(o.Limits.Pending)
	defer timer.Stop()
	for {
		pl, changed := o.Current.Changed()
		u := d.find(pl, authority)
		switch u.State {
		case pipeline.Pending:
			o.Want(u.Service)
		case pipeline.NoConfig:
		default:
			return pl, u
		}
		select {
		case <-changed:
		case <-timer.C:
			return pl, u
		case <-ctx.Done():
			return pl, u
		}
	}
}

// listener is a connection to a listener for one port of a service.
func (o *Outbound) listener(ctx context.Context, c *client, d destination) {
	_, u := o.resolve(ctx, &d, nil)
	switch u.Protocol {
	case mesh.HTTP1:
		o.serveHTTP(ctx, c, d, nil, 0)
		return
	case mesh.TCP, mesh.Opaque:
		o.serveTCP(ctx, c, d, nil, 0)
		return
	}
	// detect, or not known: then an HTTP client at least is told so.
	proto, b, n, err := c.peek()
	switch {
	case err != nil:
		c.Abort()
	case proto == detect.HTTP1:
		o.serveHTTP(ctx, c, d, b, n)
	default:
		o.serveTCP(ctx, c, d, b, n)
	}
}

// refusal is why there is no way to an upstream, as an answer; nil where there is one.
func refusal(pl *pipeline.Pipeline, u *pipeline.Upstream, authority []byte) (f *failure, extra []byte) {
	switch u.State {
	case pipeline.Known:
		return nil, nil
	case pipeline.NoConfig:
		return &failure{503, "no-policy", "this sidecar has no config yet; " +
			"ask `heddle proxies` whether it reaches a control plane"}, nil
	case pipeline.Pending:
		return &failure{503, "destination-pending", "the control plane has not sent " + u.Authority + " yet; try again"}, nil
	case pipeline.UnknownPort:
		return &failure{404, "unknown-port", fmt.Sprintf("%q names no port of %s, or none where it has not exactly one for HTTP; "+
			"say %s:<port>", authority, u.Service, u.Service.Host())}, nil
	case pipeline.Refused:
		if u.Refusal.Reason == "denied" {
			return &failure{403, "denied", "denied by " + u.Refusal.Rule + " (commit " + pl.Commit + ", " + u.Refusal.Origin + ")"},
				[]byte("heddle-policy: " + pl.Commit + " " + u.Refusal.Rule + " " + u.Refusal.Origin + "\r\n")
		}
	}
	return &failure{403, "unknown-destination", fmt.Sprintf("%q is no service of the mesh; write <service>.<namespace>%s[:port], "+
		"and take other hosts out of the proxy with no_proxy", authority, mesh.HostSuffix)}, nil
}

// outboundHTTP is a client connection that carries requests to services.
type outboundHTTP struct {
	session
	out *Outbound
	log *zerolog.Logger
	to  destination

	// Of the request at hand.
	pl     *pipeline.Pipeline
	u      *pipeline.Upstream // that was asked for
	route  *pipeline.Route    // nil: none
	target *pipeline.Upstream // where the request goes: u, or a backend of route
	ep     *pipeline.Endpoint // picked, not done yet; nil: none
	failed *pipeline.Endpoint // to be avoided
	proven string             // who the server of the last connection is; empty: there was none
	m      *observe.HTTP
}

// serveHTTP serves requests until the connection ends. The bytes of b that were read already come first.
func (o *Outbound) serveHTTP(ctx context.Context, c *client, to destination, b *l4.Buffer, n int) {
	h := &outboundHTTP{session: session{client: c, buf: b, w: n}, out: o, log: zerolog.Ctx(ctx), to: to}
	h.requests(ctx, h)
}

// series is the connection's own, once it is known what it is for; else nil.
//
//go:noinline
func (h *outboundHTTP) series() *observe.TCP {
	if h.u == nil || h.u.State != pipeline.Known {
		return nil
	}
	return h.out.Metrics.TCP(outboundKey(h.u, ""))
}

// outboundKey is the labels of what the application does to an upstream, proven by peer.
func outboundKey(u *pipeline.Upstream, peer string) observe.Key {
	return observe.Key{
		Direction: observe.Outbound, TLS: peer != "", Peer: peer,
		Service: u.Service, Port: u.PortNumber, Authority: u.Authority,
	}
}

func (h *outboundHTTP) key(peer string) observe.Key {
	k := outboundKey(h.u, peer)
	if h.route != nil {
		k.Route = h.route.ID
	}
	if h.target != nil && h.target.Service != h.u.Service {
		k.Backend = h.target.Service
	}
	return k
}

// request is one request, from its head to the end of its response. It reports whether the connection goes on.
func (h *outboundHTTP) request(ctx context.Context, x *exchange, head []byte) (keep bool) {
	if err := x.req.Parse(head); err != nil {
		x.blank()
		return h.malformed(x, err)
	}
	x.begin("", time.Now())
	h.route, h.target, h.ep, h.failed, h.proven, h.m = nil, nil, nil, nil, "", nil
	h.pl, h.u = h.out.resolve(ctx, &h.to, x.req.Authority)
	switch {
	case h.u.State != pipeline.Known:
		return h.nowhere(x)
	case x.req.Connect:
		return h.connectTunnel(ctx, x)
	}
	if f := h.choose(x); f != nil {
		return h.refuse(x, f)
	}
	keep = h.forward(ctx, x, h, way{upgrade: true})
	if h.m == nil { // nobody answered
		h.count(h.proven)
	}
	h.m.Response(x.status, x.whole && x.status < 500, time.Since(x.start))
	return keep
}

// nowhere answers a request whose destination is not known.
//
//go:noinline
func (h *outboundHTTP) nowhere(x *exchange) bool {
	f, extra := refusal(h.pl, h.u, x.req.Authority)
	if h.u.State == pipeline.Refused {
		h.out.refused(h.log, h.pl, h.u, false)
	}
	h.out.Metrics.Error(observe.Outbound, false, f.reason)
	return h.answer(x, f, extra)
}

// refused counts and logs a request or a connection to a service that this workload may not call at all, as the sidecar
// of the service would.
func (o *Outbound) refused(log *zerolog.Logger, pl *pipeline.Pipeline, u *pipeline.Upstream, tcp bool) {
	o.Metrics.Refused(outboundKey(u, ""), u.Refusal.Rule, tcp)
	o.denials.note(log, time.Now(), denial{
		denialKey: denialKey{rule: u.Refusal.Rule, backend: string(u.Service)},
		commit:    pl.Commit, pos: u.Refusal.Origin, tcp: tcp,
	})
}

// choose finds the route of a request and the service it goes to.
//
//go:noinline
func (h *outboundHTTP) choose(x *exchange) *failure {
	if h.u.Protocol != mesh.HTTP1 && h.u.Protocol != mesh.Detect {
		return &failure{400, "not-http", "port " + h.u.PortName + " of " + string(h.u.Service) + " is declared " +
			string(h.u.Protocol) + "; use CONNECT, or a listener (heddle-proxy run --listen)"}
	}
	route, ok := h.u.Match(&x.ask)
	if !ok {
		return &failure{404, "no-route", "no route of " + h.u.Authority + " matches this request"}
	}
	if h.target = h.u; route == nil {
		return nil
	}
	h.route = route
	i := decide.PickBackend(route.Route, rand.Uint64(), func(i int) bool { return route.Upstreams[i].Cluster.Len() > 0 })
	if i < 0 {
		h.target = nil
		return &failure{503, "no-endpoints", "no backend of " + route.ID + " that has weight has an endpoint; ask `heddle proxies`"}
	}
	h.target = route.Upstreams[i]
	if t := route.Timeouts.Request; t > 0 {
		x.deadline = x.start.Add(t)
	}
	return nil
}

// count counts a request that was sent on.
//
//go:noinline
func (h *outboundHTTP) count(peer string) {
	h.m = h.out.Metrics.HTTP(h.key(peer))
	h.m.Request()
}

//go:noinline
func (h *outboundHTTP) refuse(x *exchange, f *failure) bool {
	h.out.Metrics.Error(observe.Outbound, false, f.reason)
	return h.fail(x, f)
}

// connect gets a connection to an endpoint of the target, from another one where that fails.
func (h *outboundHTTP) connect(ctx context.Context, x *exchange, again bool) (*upstream.Conn, *failure) {
	var err error
	for range min(h.out.Limits.Endpoints, max(h.target.Cluster.Len(), 1)) {
		now := time.Now()
		ep := h.target.Cluster.Pick(now, rand.Uint64(), h.failed)
		if ep == nil {
			err = errNoEndpoint
			break
		}
		pool := ep.Pool.(*upstream.Pool)
		if !again {
			if c := pool.Take(now); c != nil {
				h.ep, h.proven = ep, string(c.Peer)
				return c, nil
			}
		}
		var c *upstream.Conn
		if c, err = h.out.dial(ctx, h.target.Cluster, ep, pool.Dial, x.deadline); err == nil {
			h.ep, h.proven = ep, string(c.Peer)
			return c, nil
		}
		if h.failed = ep; ctx.Err() != nil || x.late() {
			break
		}
	}
	return nil, h.unconnected(x, err)
}

// unconnected is the answer where no endpoint could be connected to.
//
//go:noinline
func (h *outboundHTTP) unconnected(x *exchange, err error) *failure {
	f := &failure{502, "connect-failed", "no endpoint of " + string(h.target.Service) + " accepts connections"}
	switch {
	case err == errNoEndpoint:
		f = &failure{503, "no-endpoints", string(h.target.Service) + " has no endpoint; ask `heddle proxies` which workloads run"}
	case x.late():
		f = &failure{504, "timeout", "the request took longer than its route's timeout"}
	case errors.Is(err, upstream.ErrIdentity):
		f = &failure{502, "identity-failed", "no endpoint of " + string(h.target.Service) + " could be authenticated by mutual TLS"}
	}
	h.log.Debug().Str("component", "outbound").Str("backend", string(h.target.Service)).Err(err).Msg("no connection")
	h.out.Metrics.Error(observe.Outbound, false, f.reason)
	return f
}

var errNoEndpoint = errors.New("no endpoint")

// dial makes a connection to an endpoint that was picked, and tells it, and the control plane, how that went: after an
// error it needs no Done. What the caller's own deadline ended is nobody's fault.
//
//go:noinline
func (o *Outbound) dial(ctx context.Context, cl *pipeline.Cluster, ep *pipeline.Endpoint,
	dial func(context.Context) (*upstream.Conn, error), deadline time.Time) (*upstream.Conn, error) {
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	c, err := dial(ctx)
	if err == nil {
		ep.Connected()
		return c, nil
	}
	now := time.Now()
	ep.Done(now, -1)
	if ctx.Err() == nil {
		ep.ConnectFailed(now, rand.Uint64())
		o.ConnectFailed(cl.Service, ep.Addr.String(), err)
	}
	return nil, err
}

func (h *outboundHTTP) answered(x *exchange, now time.Time) {
	h.ep.Done(now, now.Sub(x.sent))
	h.ep = nil
	h.count(h.proven)
}

func (h *outboundHTTP) lost(*exchange) {
	if h.ep != nil {
		h.ep.Done(time.Now(), -1)
		h.failed, h.ep = h.ep, nil
	}
}

func (h *outboundHTTP) judge(*exchange) func() bool {
	return h.out.stands(destination{h.u.Service, h.u.PortName})
}

// stands returns what tells whether a destination is still there, for tunnels.
func (o *Outbound) stands(d destination) func() bool {
	return func() bool {
		switch d.find(o.Current.Load(), nil).State {
		case pipeline.Known, pipeline.Pending:
			return true
		}
		return false
	}
}

// connectTunnel answers CONNECT to a port that carries bytes.
//
//go:noinline
func (h *outboundHTTP) connectTunnel(ctx context.Context, x *exchange) (keep bool) {
	x.keepAlive = false
	if h.to.service != "" || h.u.Protocol == mesh.HTTP1 {
		return h.refuse(x, &failure{405, "connect", "CONNECT is for ports that carry bytes; send HTTP requests in absolute form"})
	}
	h.target = h.u
	t, f := h.out.dialTCP(ctx, h.u)
	if f != nil {
		return h.refuse(x, f)
	}
	x.back = append(x.back[:0], "HTTP/1.1 200 Connection Established\r\n\r\n"...)
	x.status, x.started, x.whole = 200, true, true
	if !h.toClient(x, x.back) {
		t.up.Abort()
		t.close(h.client, nil, nil)
		return h.gone(x)
	}
	b, r, w := h.buf, h.r, h.w
	h.buf, h.r, h.w = nil, 0, 0
	w = copy(b.B, b.B[r:w])
	t.run(h.client, b, w, h.out.stands(destination{h.u.Service, h.u.PortName}))
	return false
}

// serveTCP carries bytes to a service. Those of b that were read already come first.
func (o *Outbound) serveTCP(ctx context.Context, c *client, d destination, b *l4.Buffer, n int) {
	pl, u := o.resolve(ctx, &d, nil)
	f, _ := refusal(pl, u, nil)
	if f == nil && u.Protocol == mesh.HTTP1 {
		f = &failure{400, "not-http", "bytes that are no HTTP"}
	}
	if f != nil && u.State == pipeline.Refused {
		o.refused(zerolog.Ctx(ctx), pl, u, true)
	}
	var t *tcpTunnel
	if f == nil {
		t, f = o.dialTCP(ctx, u)
	}
	if f != nil {
		o.Metrics.Error(observe.Outbound, true, f.reason)
		zerolog.Ctx(ctx).Debug().Str("component", "outbound").Str("backend", string(d.service)).Str("err", f.reason).
			Msg("connection refused")
		l4.Return(b)
		c.Abort()
		return
	}
	t.run(c, b, n, o.stands(d))
}

// tcpTunnel is the upstream's half of a connection that carries bytes.
type tcpTunnel struct {
	up     *upstream.Conn
	ep     *pipeline.Endpoint
	tcp    *observe.TCP
	opened time.Time
}

// dialTCP connects to an endpoint of an upstream, which may be another one where that fails. A service whose port has
// routes has none of them for bytes.
func (o *Outbound) dialTCP(ctx context.Context, u *pipeline.Upstream) (*tcpTunnel, *failure) {
	var avoid *pipeline.Endpoint
	var err error
	for range min(o.Limits.Endpoints, max(u.Cluster.Len(), 1)) {
		now := time.Now()
		ep := u.Cluster.Pick(now, rand.Uint64(), avoid)
		if ep == nil {
			return nil, &failure{503, "no-endpoints", string(u.Service) + " has no endpoint; ask `heddle proxies` which workloads run"}
		}
		var c *upstream.Conn
		if c, err = o.dial(ctx, u.Cluster, ep, ep.Pool.(*upstream.Pool).DialTCP, time.Time{}); err == nil {
			t := &tcpTunnel{up: c, ep: ep, tcp: o.Metrics.TCP(outboundKey(u, string(c.Peer))), opened: now}
			t.tcp.Open()
			return t, nil
		}
		if avoid = ep; ctx.Err() != nil {
			break
		}
	}
	zerolog.Ctx(ctx).Debug().Str("component", "outbound").Str("backend", string(u.Service)).Err(err).Msg("no connection")
	if errors.Is(err, upstream.ErrIdentity) {
		return nil, &failure{502, "identity-failed", "no endpoint of " + string(u.Service) + " could be authenticated by mutual TLS"}
	}
	return nil, &failure{502, "connect-failed", "no endpoint of " + string(u.Service) + " accepts connections"}
}

// run carries the bytes until both ends have closed.
func (t *tcpTunnel) run(c *client, b *l4.Buffer, n int, stands func() bool) {
	c.metered(t.tcp)
	c.holds(t.up)
	failed, err := c.carry(t.up.Conn, b, n, stands)
	t.close(c, failed, err)
}

func (t *tcpTunnel) close(c *client, failed *l4.Conn, err error) {
	now := time.Now()
	t.ep.Done(now, -1)
	c.meter()
	t.tcp.Close(l4.Errno(err), now.Sub(t.opened), failed == t.up.Conn && err != nil)
}
