package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/proxy/detect"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/l4"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Inbound is the stack for connections to this workload. From top to bottom: accept → mutual TLS (or, on an exposed
// port, whatever the first bytes are) → which port is meant → HTTP or bytes → may this caller → the application.
//
// The order matters. Identity comes before the port, because who asks decides what may be learned. The port comes
// before the protocol, because its declaration says what the bytes must be. The check of the path comes before the
// verdict, because rules judge paths by their one canonical spelling. The verdict is taken for each request, by the
// policy of that moment; and only after it are identity headers written, over whatever the caller sent.
type Inbound struct {
	*stack
	tls     *tls.Config
	denials denials
	outside slots    // of all exposed listeners: strangers must not keep the mesh out
	secret  [32]byte // makes the ids that strangers get for a denial
}

// NewInbound makes the stack. Run, the listeners' serving and at last Drain are the caller's to start and wait for.
func NewInbound(env Env) *Inbound {
	in := &Inbound{stack: newStack(env)}
	in.outside = make(slots, max(1, cap(in.slots)/2))
	rand.Read(in.secret[:])
	known := func(sni string) bool { return in.Current.Load().InboundBySNI(sni) != nil }
	in.tls = env.Identity.ServerTLS(known, spiffe.ALPNHTTP1, spiffe.ALPNTCP)
	return in
}

// ServeMesh serves a listener on which only sidecars of the mesh are heard: mutual TLS, whose server name says which
// port is meant. It returns nil when ctx ends or Drain is called; its connections last until Drain ends them.
func (in *Inbound) ServeMesh(ctx context.Context, ln net.Listener) error {
	return in.serve(ctx, ln, nil, in.mesh)
}

// ServeExposed serves a listener for one port, by its name: what ServeMesh takes for that port, and plaintext where the
// port is permissive. It is how the outside comes in.
func (in *Inbound) ServeExposed(ctx context.Context, ln net.Listener, port string) error {
	return in.serve(ctx, ln, in.outside, func(ctx context.Context, c *client) { in.exposed(ctx, c, port) })
}

// Run watches until ctx ends: tunnels that are no longer allowed, by a new policy, at the end of a rule, or since the
// policy is too old to be believed, are closed, connections whose peer's identity no longer holds too, and denials that
// were held back are logged.
func (in *Inbound) Run(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	pl, _ := in.Current.Changed()
	material, _ := in.Identity.Changed()
	judged, stale := time.Now(), false
	rejudge := func() {
		in.each(func(c *client) {
			if !c.allowed() {
				log.Info().Str("component", "inbound").Str("peer", c.peer).Str("commit", pl.Commit).Msg("tunnel closed by policy")
				c.Abort()
			}
		})
	}
	for {
		now, changed := in.Current.Changed()
		if now != pl {
			pl = now
			rejudge()
		}
		m, renewed := in.Identity.Changed()
		if m.Bundle != nil && (material.Bundle == nil || !identity.SameRoots(material.Bundle, m.Bundle)) {
			in.each(func(c *client) { in.verify(c, m) })
		}
		material = m
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-renewed:
		case t := <-tick.C:
			in.denials.flush(log, t)
			// A clock that was set back makes rules hold again that had ended.
			was := stale
			stale = pl.Stale(t)
			if pl.Ended(judged, t) || pl.Ended(t, judged) || stale && !was {
				rejudge()
			}
			judged = t
			in.each(func(c *client) {
				c.age(t)
				c.watch(t)
				c.meter()
			})
		}
	}
}

// verify ends a connection whose peer the new trust bundle no longer vouches for.
func (in *Inbound) verify(c *client, m *identity.Material) {
	c.mu.Lock()
	chain, tunnel := c.chain, c.judge != nil
	c.mu.Unlock()
	if chain == nil {
		return
	}
	switch {
	case vouched(m, chain):
	case tunnel:
		c.Abort()
	default:
		c.retire()
	}
}

// vouched reports whether the trust bundle vouches for a client's certificates.
func vouched(m *identity.Material, chain []*x509.Certificate) bool {
	_, err := m.Bundle.Verify(chain, time.Now(), x509.ExtKeyUsageClientAuth)
	return err == nil
}

// age ends a connection with the life of its peer's SVID.
func (c *client) age(now time.Time) {
	c.mu.Lock()
	expires, retireAt := c.expires, c.retireAt
	c.mu.Unlock()
	switch {
	case expires.IsZero():
	case !now.Before(expires):
		if c.retire(); c.state.Load() == busy {
			c.Abort()
		}
	case !now.Before(retireAt):
		c.retire()
	}
}

// mesh is a connection to the mesh listener.
func (in *Inbound) mesh(ctx context.Context, c *client) {
	in.prove(ctx, c, "")
}

// prove lets the peer of a connection prove its identity, and goes on with the port it asks for; only restricts it to
// one port.
func (in *Inbound) prove(ctx context.Context, c *client, only string) {
	before := in.Identity.Load().Bundle
	hctx, cancel := context.WithTimeout(ctx, in.Limits.Head)
	err := c.Server(hctx, in.tls)
	cancel()
	if err != nil {
		zerolog.Ctx(ctx).Debug().Str("component", "inbound").Stringer("peer", c.RemoteAddr()).Err(err).Msg("no mutual tls")
		in.Metrics.Error(observe.Inbound, true, "handshake")
		c.Abort()
		return
	}
	cs := c.TLS()
	id, expires, err := identity.Peer(cs)
	port := in.Current.Load().InboundBySNI(cs.ServerName)
	if err != nil || port == nil || only != "" && port.Port.Name != only {
		in.Metrics.Error(observe.Inbound, true, "unknown-port")
		c.Abort()
		return
	}
	c.mu.Lock()
	c.peer, c.chain, c.expires = string(id), cs.PeerCertificates, expires
	c.retireAt = expires.Add(-min(5*time.Second, time.Until(expires)/2))
	c.mu.Unlock()
	if m := in.Identity.Load(); m.Bundle != before && !vouched(m, cs.PeerCertificates) {
		c.Abort() // the bundle changed during the handshake, before Run could see this connection
		return
	}
	if cs.NegotiatedProtocol == spiffe.ALPNTCP {
		in.serveTCP(ctx, c, port.Port.Name, nil, 0)
	} else {
		in.serveHTTP(ctx, c, port.Port.Name, nil, 0)
	}
}

// exposed is a connection to the listener of one port.
func (in *Inbound) exposed(ctx context.Context, c *client, name string) {
	proto, b, n, err := c.peek()
	if err != nil {
		c.Abort()
		return
	}
	if proto == detect.TLS {
		if sni, _ := detect.ServerName(b.B[:n]); spiffe.IsSNI(sni) {
			c.Unread(b.B[:n])
			l4.Return(b)
			in.prove(ctx, c, name)
			return
		}
	}
	// From here on the caller is a stranger. TLS that is not the mesh's own is opaque bytes of a stranger too.
	port := in.Current.Load().InboundByName(name)
	switch {
	case port == nil && proto == detect.HTTP1: // before the first policy: let the request be told
	case port == nil:
		l4.Return(b)
		c.Abort()
		return
	case port.Port.MTLS != mesh.Permissive:
		pl, id := in.Current.Load(), port.Port.DefaultID
		in.denials.note(zerolog.Ctx(ctx), time.Now(), denial{denialKey: denialKey{rule: id}, commit: pl.Commit, pos: pl.Origin(id),
			id: in.denialID(pl.Epoch, id), tcp: true, why: "plaintext, and the port takes mutual TLS only"})
		in.Metrics.Error(observe.Inbound, true, "plaintext")
		l4.Return(b)
		c.Abort()
		return
	}
	if port == nil || port.Port.Protocol == mesh.HTTP1 || port.Port.Protocol == mesh.Detect && proto == detect.HTTP1 {
		in.serveHTTP(ctx, c, name, b, n)
	} else {
		in.serveTCP(ctx, c, name, b, n)
	}
}

// carriesHTTP and carriesBytes say what a port's declaration lets pass. Where any rule looks above L4, bytes that cannot
// be judged do not pass (decisions.md, 12).
func carriesHTTP(p *pipeline.InboundPort) bool {
	return p.Port.Protocol == mesh.HTTP1 || p.Port.Protocol == mesh.Detect
}

func carriesBytes(p *pipeline.InboundPort) bool { return decide.CarriesBytes(p.Inbound, p.Port) }

// inboundKey is the labels of what a caller does to a port.
func inboundKey(c *client, p *pipeline.InboundPort) observe.Key {
	return observe.Key{Direction: observe.Inbound, TLS: c.peer != "", Peer: c.peer, Service: p.Service, Port: p.Port.Port}
}

// inboundHTTP is a client connection that carries requests to one port.
type inboundHTTP struct {
	session
	in   *Inbound
	log  *zerolog.Logger
	name string // of the port
	// extra is the field lines that tell the application who its client is; set once the connection is known.
	extra []byte
	// What pl says about the port, looked up again when there is another Pipeline.
	pl   *pipeline.Pipeline
	port *pipeline.InboundPort
	app  *upstream.Pool
}

// serveHTTP serves requests until the connection ends. The bytes of b that were read already come first.
func (in *Inbound) serveHTTP(ctx context.Context, c *client, name string, b *l4.Buffer, n int) {
	h := &inboundHTTP{session: session{client: c, buf: b, w: n}, in: in, log: zerolog.Ctx(ctx), name: name}
	if c.peer != "" {
		h.extra = clientIdentity(in.Identity.Load(), c)
	}
	h.requests(ctx, h)
}

// series is the connection's own, once it is known what it is for; else nil.
//
//go:noinline
func (h *inboundHTTP) series() *observe.TCP {
	if h.port == nil {
		return nil
	}
	return h.in.Metrics.TCP(inboundKey(h.client, h.port))
}

// clientIdentity is what the application is told about a caller that proved who it is.
func clientIdentity(own *identity.Material, c *client) []byte {
	b := append([]byte("heddle-client-id: "), c.peer...)
	b = append(b, "\r\nx-forwarded-client-cert: "...)
	if own != nil && own.SVID != nil {
		b = append(append(append(b, "By="...), own.SVID.ID...), ';')
	}
	sum := sha256.Sum256(c.chain[0].Raw)
	b = hex.AppendEncode(append(b, "Hash="...), sum[:])
	b = append(append(b, ";URI="...), c.peer...)
	return append(b, "\r\n"...)
}

// request is one request, from its head to the end of its response. It reports whether the connection goes on. What
// needs much stack is in methods of its own, here and in the outbound stack: a stack that never grew past 4 KiB is what
// makes an idle connection cheap.
func (h *inboundHTTP) request(ctx context.Context, x *exchange, head []byte) (keep bool) {
	if err := x.req.Parse(head); err != nil {
		x.blank()
		return h.malformed(x, err)
	}
	x.begin(h.peer, time.Now())
	x.ask.Addr = addrPort(h.RemoteAddr()).Addr()
	if pl := h.in.Current.Load(); pl != h.pl {
		h.pl, h.port, h.app = pl, pl.InboundByName(h.name), nil
		if h.port != nil {
			h.app = h.in.Transport.App(h.port.App)
		}
	}
	if f := h.impossible(x); f != nil {
		return h.refuse(x, f)
	}
	x.req.DropAliases(h.port.Judged)
	if rule, allowed := h.authorize(x); !allowed {
		return h.denied(x, rule)
	}
	m := h.count()
	keep = h.forward(ctx, x, h, way{extra: h.extra, upgrade: true, fromApp: true})
	m.Response(x.status, x.whole && x.status < 500, time.Since(x.start))
	return keep
}

// impossible is why a request cannot even be judged; nil where it can.
//
//go:noinline
func (h *inboundHTTP) impossible(x *exchange) *failure {
	port := h.port
	switch {
	case port == nil && h.pl.TrustDomain == "":
		return &failure{503, "no-policy", "this workload has no policy yet, and nothing is allowed without; " +
			"ask `heddle proxies` whether it reaches a control plane"}
	case port == nil:
		return &failure{403, "unknown-port", "the service has no port " + h.name}
	case !carriesHTTP(port):
		return &failure{403, "not-http", "port " + h.name + " is declared " + string(port.Port.Protocol)}
	case h.peer == "" && port.Port.MTLS != mesh.Permissive:
		return &failure{403, "mtls-required", "port " + h.name + " takes mutual TLS only"}
	case x.req.Connect:
		return &failure{405, "connect", "CONNECT ends at the client's own sidecar"}
	case port.Port.CanonicalPaths && !decide.CanonicalPath(x.ask.Path):
		return &failure{400, "non-canonical-path", "rules of this service judge by path, so a path must be canonical: " +
			"no empty or dot segments, no escaped slash, backslash, dot or NUL"}
	}
	return nil
}

// authorize judges a request by the policy of now, and counts the verdict.
//
//go:noinline
func (h *inboundHTTP) authorize(x *exchange) (rule string, allowed bool) {
	v := h.pl.Authorize(h.port, &x.ask, x.start)
	h.in.Metrics.Authz(inboundKey(h.client, h.port), v.Rule, v.Allowed, false)
	if h.port.Observes {
		h.in.observe(h.log, h.client, h.pl, h.port, &x.ask, v, false)
	}
	return v.Rule, v.Allowed
}

// observe records what rules that change nothing say to a request or a connection that was just judged: a count for each
// that matches, and a line now and then, as for denials.
func (in *Inbound) observe(log *zerolog.Logger, c *client, pl *pipeline.Pipeline, port *pipeline.InboundPort, ask *decide.Request, v decide.Verdict, tcp bool) {
	key := inboundKey(c, port)
	note := func(rule string) {
		in.Metrics.Observed(key, rule, tcp)
		in.denials.note(log, ask.Now, denial{denialKey: denialKey{rule: rule, peer: c.peer, observed: true}, commit: pl.Commit, pos: pl.Origin(rule), tcp: tcp})
	}
	if v.Default && v.Allowed && port.Port.Default == mesh.Audit {
		note(v.Rule)
	}
	decide.Observed(port.Inbound, port.Port, ask, func(rule *mesh.Rule, matched bool) {
		if matched {
			note(rule.ID)
		}
	})
}

// count counts a request that is sent on.
//
//go:noinline
func (h *inboundHTTP) count() *observe.HTTP {
	m := h.in.Metrics.HTTP(inboundKey(h.client, h.port))
	m.Request()
	return m
}

//go:noinline
func (h *inboundHTTP) refuse(x *exchange, f *failure) bool {
	h.in.Metrics.Error(observe.Inbound, false, f.reason)
	return h.fail(x, f)
}

// denied answers a request that policy does not allow: with rule, commit and line to a peer of the mesh, with an id that
// only this sidecar's log can explain to a stranger (decisions.md, 19).
//
//go:noinline
func (h *inboundHTTP) denied(x *exchange, rule string) bool {
	d := denial{denialKey: denialKey{rule: rule, peer: h.peer}, commit: h.pl.Commit, pos: h.pl.Origin(rule)}
	f := &failure{status: 403, reason: "denied"}
	var extra []byte
	if h.peer != "" {
		extra = append(append([]byte("heddle-policy: "), h.pl.PolicyHeader(rule)...), "\r\n"...)
		f.text = "denied by " + rule + " (commit " + d.commit + ", " + d.pos + ")"
	} else {
		d.id = h.in.denialID(h.pl.Epoch, rule)
		extra = []byte("heddle-id: " + d.id + "\r\n")
		f.text = "denied; the operator of this service can look up " + d.id
	}
	h.in.denials.note(h.log, x.start, d)
	return h.answer(x, f, extra)
}

// denialID stands for a rule towards those who must not learn its name. The same rule of the same epoch has the same id,
// in one sidecar's life.
func (in *Inbound) denialID(epoch uint64, rule string) string {
	m := hmac.New(sha256.New, in.secret[:])
	m.Write(binary.BigEndian.AppendUint64(nil, epoch))
	io.WriteString(m, rule)
	return hex.EncodeToString(m.Sum(nil)[:8])
}

// connect gets a connection to the application.
func (h *inboundHTTP) connect(ctx context.Context, x *exchange, again bool) (*upstream.Conn, *failure) {
	if !again {
		if c := h.app.Take(x.start); c != nil {
			return c, nil
		}
	}
	c, err := h.app.Dial(ctx)
	if err != nil {
		h.log.Debug().Str("component", "inbound").Err(err).Msg("application unreachable")
		h.in.Metrics.Error(observe.Inbound, false, "app-unreachable")
		return nil, &failure{502, "app-unreachable", "the application does not accept connections at " + h.app.Addr()}
	}
	if h.in.Own.reached(c.Conn) {
		c.Abort()
		h.in.looped(h.log, h.name, h.app.Addr())
		h.in.Metrics.Error(observe.Inbound, false, "loop")
		return nil, &failure{508, "loop", "the sidecar takes itself for the application; its log says more"}
	}
	return c, nil
}

// looped tells the operator that the application's address is wrong.
func (in *Inbound) looped(log *zerolog.Logger, port, app string) {
	log.Error().Str("component", "inbound").Str("address", app).
		Msg("the application's address of port " + port + " is one of this sidecar's own listeners; " +
			"give --app " + port + "=HOST:PORT, where the application listens")
}

func (h *inboundHTTP) answered(*exchange, time.Time) {}
func (h *inboundHTTP) lost(*exchange)                {}

// judge keeps of the request what rules look at, for as long as its tunnel lives.
func (h *inboundHTTP) judge(x *exchange) func() bool {
	kept := newAsk(x)
	in, name := h.in, h.name
	return func() bool {
		pl := in.Current.Load()
		port := pl.InboundByName(name)
		ask := kept // judged in more than one goroutine, each with its own time
		return port != nil && carriesHTTP(port) && (ask.Peer != "" || port.Port.MTLS == mesh.Permissive) &&
			(!port.Port.CanonicalPaths || decide.CanonicalPath(ask.Path)) &&
			pl.Authorize(port, &ask, time.Now()).Allowed
	}
}

// newAsk is the question that an exchange asks, with copies of what it points into.
func newAsk(x *exchange) decide.Request {
	fields := x.req.Clone()
	return decide.Request{Peer: x.ask.Peer, Addr: x.ask.Addr, HTTP: true, Method: string(x.req.Method), Path: string(x.req.Path),
		Header: func(name string) (string, bool) { v, ok := fields.Get(name); return string(v), ok }}
}

// serveTCP carries bytes to a port, if the caller may. Those of b that were read already come first.
func (in *Inbound) serveTCP(ctx context.Context, c *client, name string, b *l4.Buffer, n int) {
	defer func() { l4.Return(b) }()
	log := zerolog.Ctx(ctx)
	ask := decide.Request{Peer: c.peer, Addr: addrPort(c.RemoteAddr()).Addr()}
	judge := func() (*pipeline.Pipeline, *pipeline.InboundPort, decide.Verdict) {
		pl := in.Current.Load()
		port := pl.InboundByName(name)
		if port == nil || !carriesBytes(port) || c.peer == "" && port.Port.MTLS != mesh.Permissive {
			return pl, port, decide.Verdict{}
		}
		mine := ask // judged in more than one goroutine, each with its own time
		return pl, port, pl.Authorize(port, &mine, time.Now())
	}
	pl, port, v := judge()
	if port == nil {
		c.Abort()
		return
	}
	key := inboundKey(c, port)
	if v.Rule == "" {
		v.Rule = port.Port.DefaultID
	}
	in.Metrics.Authz(key, v.Rule, v.Allowed, true)
	now := time.Now()
	if port.Observes {
		asked := ask
		asked.Now = now
		in.observe(log, c, pl, port, &asked, v, true)
	}
	if !v.Allowed {
		d := denial{denialKey: denialKey{rule: v.Rule, peer: c.peer}, commit: pl.Commit, pos: pl.Origin(v.Rule), tcp: true}
		if !carriesBytes(port) {
			d.why = "bytes that are no HTTP, and the port or a rule of it is for HTTP"
		}
		if c.peer == "" {
			d.id = in.denialID(pl.Epoch, v.Rule)
		}
		in.denials.note(log, now, d)
		c.Abort()
		return
	}
	tcp := in.Metrics.TCP(key)
	tcp.Open()
	up, err := in.Transport.App(port.App).DialTCP(ctx)
	if err != nil {
		log.Debug().Str("component", "inbound").Err(err).Msg("application unreachable")
		tcp.Close(l4.Errno(err), time.Since(now), true)
		c.Abort()
		return
	}
	if in.Own.reached(up.Conn) {
		up.Abort()
		in.looped(log, name, port.App)
		in.Metrics.Error(observe.Inbound, true, "loop")
		tcp.Close("", time.Since(now), true)
		c.Abort()
		return
	}
	c.metered(tcp)
	failed, err := c.carry(up.Conn, b, n, func() bool { _, _, v := judge(); return v.Allowed })
	b = nil
	c.meter()
	tcp.Close(l4.Errno(err), time.Since(now), failed == up.Conn)
}

// carry sends on what was read already, gives the buffer back, and goes on as a tunnel.
func (c *client) carry(up *l4.Conn, b *l4.Buffer, n int, judge func() bool) (failed *l4.Conn, err error) {
	if n > 0 {
		up.ArmWrite(time.Now(), c.stack.Limits.Write)
		_, err = up.Write(b.B[:n])
	}
	l4.Return(b)
	if err != nil {
		up.Abort()
		c.Abort()
		return up, err
	}
	return c.tunnel(up, judge)
}
