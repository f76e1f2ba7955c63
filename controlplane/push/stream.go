package push

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/heddle-mesh/heddle/controlplane/assign"
	"github.com/heddle-mesh/heddle/controlplane/enroll"
	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

var (
	errRevoked  = status.Error(codes.PermissionDenied, "the workload's enrolment was revoked; `heddle token create` makes a join token to enrol it again")
	errReplaced = status.Error(codes.Aborted, "the workload opened another stream")
	errStopping = status.Error(codes.Unavailable, "the control plane stops; reconnect")
	errExpired  = status.Error(codes.Unauthenticated, "the certificate of this connection has ended; reconnect with the new one")
	errStuck    = status.Error(codes.DeadlineExceeded, "the sidecar does not read; reconnect")
)

// stream is one connected sidecar. Its loop owns everything but ended.
type stream struct {
	server *Server
	proxy  *proxy // its fields are the server's to guard
	id     spiffe.ID
	leaf   *x509.Certificate
	name   string // of the workload
	book   *book
	ended  chan error // size 1

	subscribed map[mesh.ServiceName]bool
	subscribes bucket
	certifies  bucket
	mail       []*proxyapi.ControlMessage // small things to send: certificates, refusals, heartbeats, the bundle
	generation uint64                     // of the bundle that was sent last
}

// end makes the loop return err, unless it is to return something else already.
func (c *stream) end(err error) {
	select {
	case c.ended <- err:
	default:
	}
}

// Stream implements proxyapi.ConfigServer. It returns when the sidecar goes, its certificate ends, its enrolment is
// revoked, it opens another stream or the control plane stops.
func (s *Server) Stream(wire grpc.BidiStreamingServer[proxyapi.ProxyMessage, proxyapi.ControlMessage]) error {
	ctx := wire.Context()
	leaf, id, err := caller(ctx)
	if err != nil {
		return err
	}
	// Receive and Send block until the handler has returned, so each has a goroutine, which the server waits for.
	inbox, failed := make(chan *proxyapi.ProxyMessage), make(chan error, 2)
	s.streams.Go(func() { receive(wire, inbox, failed) })

	hello, err := s.hello(ctx, inbox, failed)
	if err != nil {
		return err
	}
	if err := s.admission.wait(ctx); err != nil {
		return status.FromContextError(err).Err()
	}
	c, err := s.open(hello, id, leaf)
	if err != nil {
		zerolog.Ctx(ctx).Warn().Str("workload", clip(hello.GetWorkload(), 128)).Str("peer", string(id)).Err(err).Msg("stream refused")
		return err
	}
	disconnect := s.inventory.Connect(c.name, c.book.workload.Service, netip.MustParseAddrPort(hello.GetMeshAddress()))
	defer s.close(c, disconnect)
	log := zerolog.Ctx(ctx).With().Str("workload", c.name).Logger()
	log.Info().Str("peer", string(id)).Str("version", clip(hello.GetVersion(), 64)).Uint64("epoch", hello.GetEpoch()).Msg("sidecar connected")

	outbox, sent := make(chan *proxyapi.ControlMessage), make(chan struct{})
	s.streams.Go(func() { send(wire, outbox, sent, failed) })
	err = c.run(log.WithContext(ctx), inbox, outbox, sent, failed)
	log.Info().AnErr("err", err).Msg("sidecar disconnected")
	return err
}

// caller is who proved what in the handshake, which package controlplane's TLS settings have judged.
func caller(ctx context.Context) (*x509.Certificate, spiffe.ID, error) {
	p, ok := peer.FromContext(ctx)
	if ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			leaf := info.State.PeerCertificates[0]
			id, err := spiffe.LeafID(leaf)
			if err != nil {
				return nil, "", status.Error(codes.Unauthenticated, err.Error())
			}
			return leaf, id, nil
		}
	}
	return nil, "", status.Error(codes.Unauthenticated, "the stream needs mutual TLS")
}

func receive(wire grpc.BidiStreamingServer[proxyapi.ProxyMessage, proxyapi.ControlMessage], inbox chan<- *proxyapi.ProxyMessage, failed chan<- error) {
	for {
		m, err := wire.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case inbox <- m:
		case <-wire.Context().Done():
			return
		}
	}
}

// send takes one message at a time and says when it is sent, so that the loop makes each as late as it can.
func send(wire grpc.BidiStreamingServer[proxyapi.ProxyMessage, proxyapi.ControlMessage], outbox <-chan *proxyapi.ControlMessage, sent chan<- struct{}, failed chan<- error) {
	for {
		select {
		case m := <-outbox:
			if err := wire.Send(m); err != nil {
				failed <- err
				return
			}
		case <-wire.Context().Done():
			return
		}
		select {
		case sent <- struct{}{}:
		case <-wire.Context().Done():
			return
		}
	}
}

func (s *Server) hello(ctx context.Context, inbox <-chan *proxyapi.ProxyMessage, failed <-chan error) (*proxyapi.Hello, error) {
	t := time.NewTimer(helloWithin)
	defer t.Stop()
	select {
	case m := <-inbox:
		if h := m.GetHello(); h != nil {
			return h, nil
		}
		return nil, status.Error(codes.InvalidArgument, "the first message of a stream is hello")
	case err := <-failed:
		return nil, err
	case <-t.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no hello within %v", helloWithin)
	case <-s.stop:
		return nil, errStopping
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// open judges a hello and makes the stream that its workload has from now on.
func (s *Server) open(h *proxyapi.Hello, id spiffe.ID, leaf *x509.Certificate) (*stream, error) {
	grant, err := s.register.Grant(h.GetWorkload())
	switch {
	case errors.Is(err, enroll.ErrUnknown):
		// Its service was taken out of policy. It is told so, by a config without what it enforced.
	case errors.Is(err, identity.ErrUnbound):
		return nil, status.Errorf(codes.Unavailable, "%v; reconnect", err)
	case errors.Is(err, enroll.ErrNotEnrolled):
		return nil, status.Error(codes.PermissionDenied, err.Error())
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if grant.Identity != id {
		return nil, status.Errorf(codes.Unauthenticated, "workload %s is %s, the certificate says %s; enrol again", h.GetWorkload(), grant.Identity, id)
	}
	if err := s.register.Bound(h.GetWorkload(), leaf); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	addr, err := netip.ParseAddrPort(h.GetMeshAddress())
	if err != nil || addr.Port() == 0 || addr.Addr().IsUnspecified() || addr.Addr().IsMulticast() || addr.Addr().Zone() != "" {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no IP:port that other sidecars could connect to; start the sidecar with --advertise",
			clip(h.GetMeshAddress(), 64))
	}
	if len(h.GetHave()) > maxHave || len(h.GetDeclared())+len(h.GetSubscribed()) > maxSubscribed {
		return nil, status.Errorf(codes.ResourceExhausted, "hello names more than %d objects or %d destinations", maxHave, maxSubscribed)
	}
	w := assign.Workload{Service: grant.Service, Identity: string(id)}
	for _, k := range h.GetCapabilities() {
		w.Capabilities = append(w.Capabilities, mesh.Capability(k))
	}
	for _, d := range h.GetDeclared() {
		w.Declared = append(w.Declared, mesh.ServiceName(d))
	}
	b, err := newBook(w, h.GetEpoch(), h.GetHave())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "hello: %v", err)
	}
	c := &stream{
		server: s, id: id, leaf: leaf, name: h.GetWorkload(), book: b, ended: make(chan error, 1),
		subscribed: map[mesh.ServiceName]bool{},
		subscribes: bucket{every: subscribeEvery, burst: subscribeBurst},
		certifies:  bucket{every: certifyEvery, burst: certifyBurst},
	}
	c.subscribe(&proxyapi.Subscribe{Add: h.GetSubscribed()})

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopping
	}
	// Again, under the lock: who takes the enrolment away from now on finds this stream.
	if err := s.register.Bound(c.name, leaf); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	p := s.proxies[c.name]
	if p == nil {
		p = &proxy{}
		s.proxies[c.name] = p
	}
	if p.stream != nil {
		p.stream.end(errReplaced)
	}
	if p.instance == h.GetInstance() && p.Version == h.GetVersion() {
		b.good, b.refused, b.why = p.good, p.refused, p.Nack
	}
	p.stream, p.instance = c, h.GetInstance()
	p.Proxy = Proxy{
		Workload: c.name, Service: string(grant.Service), Identity: string(id), Address: addr.String(),
		Version: clip(h.GetVersion(), 64), Since: time.Now(), CertificateExpires: leaf.NotAfter, Epoch: p.Epoch, Commit: p.Commit, Nack: b.why,
	}
	c.proxy = p
	s.traffic.Connect(c.name, string(grant.Service), h.GetInstance(), len(h.GetHave()) > 0 && time.Since(s.started) < young)
	return c, nil
}

// close says that a stream has ended.
func (s *Server) close(c *stream, disconnect func()) {
	s.mu.Lock()
	if c.proxy.stream == c {
		c.proxy.stream, c.proxy.Since = nil, time.Now()
	}
	s.mu.Unlock()
	disconnect()
	s.note()
}

// run moves messages until the stream ends.
func (c *stream) run(ctx context.Context, inbox <-chan *proxyapi.ProxyMessage, outbox chan<- *proxyapi.ControlMessage, sent <-chan struct{}, failed <-chan error) error {
	beat := time.NewTicker(proxyapi.HeartbeatEvery)
	defer beat.Stop()
	// A connection lives no longer than what its peer proved. The sidecar is asked to reconnect shortly before.
	left := time.Until(c.leaf.NotAfter)
	expiry := time.NewTimer(left)
	defer expiry.Stop()
	drain := time.NewTimer(max(0, left-min(time.Minute, left/10)))
	defer drain.Stop()
	patience := time.NewTimer(stuck) // runs while a message is being sent
	patience.Stop()
	defer patience.Stop()
	resume := time.NewTimer(0) // ends a pause of reading
	defer resume.Stop()

	from, idle, dirty := inbox, true, true
	var last assign.Input
	for {
		input, inputStale := c.server.input.Watch()
		bundle, bundleStale := c.server.ca.Bundle()
		if dirty || input != last {
			last, dirty = input, false
			c.regrant()
			c.book.update(input)
			for _, r := range c.book.refusals() {
				c.post(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Refused{Refused: r}})
			}
			c.publish()
		}
		if bundle != nil && bundle.Generation != c.generation {
			c.generation = bundle.Generation
			c.post(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Bundle{Bundle: enroll.WireBundle(bundle)}})
		}
		if idle {
			if m := c.next(); m != nil {
				select {
				case outbox <- m: // the sender waits for it
				case <-ctx.Done():
					return status.FromContextError(ctx.Err()).Err()
				}
				idle = false
				patience.Reset(stuck)
			}
		}
		select {
		case <-sent:
			idle = true
			patience.Stop()
		case <-patience.C:
			return errStuck
		case m := <-from:
			again, pause := c.take(ctx, m)
			dirty = dirty || again
			if pause > 0 {
				from = nil
				resume.Reset(pause)
			}
		case <-resume.C:
			from = inbox
		case <-beat.C:
			c.beat()
		case <-inputStale:
		case <-bundleStale:
		case <-drain.C:
			c.post(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Drain{Drain: &proxyapi.Drain{
				Within: durationpb.New(time.Until(c.leaf.NotAfter) / 2)}}})
		case <-expiry.C:
			return errExpired
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil // the sidecar took its leave
			}
			return err
		case err := <-c.ended:
			return err
		case <-c.server.stop:
			return errStopping
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// regrant takes over the service that a new release gives the workload. Its identity is that of the connection.
func (c *stream) regrant() {
	grant, err := c.server.register.Grant(c.name)
	if err == nil || errors.Is(err, enroll.ErrUnknown) {
		c.book.workload.Service = grant.Service
	}
}

func (c *stream) post(m *proxyapi.ControlMessage) { c.mail = append(c.mail, m) }

// next is the message to send now, nil: none. Small ones go first; a transaction is computed only here, from the newest
// there is.
func (c *stream) next() *proxyapi.ControlMessage {
	if len(c.mail) > 0 {
		m := c.mail[0]
		c.mail = c.mail[1:]
		return m
	}
	if c.book.pending() {
		return &proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Transaction{Transaction: c.book.transaction()}}
	}
	return nil
}

// beat posts a heartbeat, unless something is on its way anyway: what waits to be sent proves life as well, and of what
// is not answered yet nobody knows the outcome.
func (c *stream) beat() {
	if h, ok := c.book.heartbeat(); ok && !c.book.pending() && len(c.mail) == 0 {
		c.post(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Heartbeat{Heartbeat: h}})
	}
}

// take handles one message of the sidecar. again: what it should hold may have changed; pause is how long not to read.
func (c *stream) take(ctx context.Context, m *proxyapi.ProxyMessage) (again bool, pause time.Duration) {
	switch m := m.GetMessage().(type) {
	case *proxyapi.ProxyMessage_Ack:
		if !c.book.ack(m.Ack) {
			return false, 0
		}
		log := zerolog.Ctx(ctx).With().Str("commit", clip(m.Ack.GetCommit(), 40)).Uint64("epoch", m.Ack.GetEpoch()).Logger()
		if nack := m.Ack.GetNack(); nack != "" {
			log.Warn().Str("reason", clip(nack, 1024)).Msg("the sidecar refused the config and keeps what it had")
		} else {
			log.Debug().Msg("config acknowledged")
		}
		c.publish()
		c.beat()
	case *proxyapi.ProxyMessage_Subscribe:
		return c.subscribe(m.Subscribe), c.subscribes.reserve(time.Now())
	case *proxyapi.ProxyMessage_CertificateRequest:
		pause = c.certifies.reserve(time.Now())
		c.post(&proxyapi.ControlMessage{Message: &proxyapi.ControlMessage_Certificate{Certificate: c.certify(ctx, m.CertificateRequest.GetCsr())}})
		return false, pause
	case *proxyapi.ProxyMessage_Traffic:
		c.server.traffic.Report(c.name, m.Traffic, time.Now())
	case *proxyapi.ProxyMessage_ConnectFailure:
		f := m.ConnectFailure
		_, served := slices.BinarySearchFunc(c.book.have, &proxyapi.ObjectVersion{Kind: proxyapi.KindEndpoints, Name: f.GetService()}, versions)
		if addr, err := netip.ParseAddrPort(f.GetAddress()); err == nil && served { // of what it is not served it knows nothing
			c.server.inventory.Unreached(mesh.ServiceName(f.GetService()), addr)
		}
	}
	return false, 0
}

// subscribe takes over a change of subscriptions and reports whether it changed any.
func (c *stream) subscribe(q *proxyapi.Subscribe) bool {
	before := len(c.subscribed)
	changed := false
	for _, n := range q.GetRemove() {
		delete(c.subscribed, mesh.ServiceName(n))
	}
	changed = len(c.subscribed) != before
	for _, n := range q.GetAdd() {
		// Asking again for what was refused is a new question: policy may have answered in the meantime.
		c.book.told = slices.DeleteFunc(slices.Clone(c.book.told), func(r assign.Refused) bool { return string(r.Service) == n })
		if len(n) <= 2*64 && len(c.subscribed) < maxSubscribed {
			c.subscribed[mesh.ServiceName(n)] = true
			changed = true
		}
	}
	if changed {
		c.book.workload.Subscribed = slices.Sorted(maps.Keys(c.subscribed))
	}
	return changed
}

// certify signs a new certificate for the identity that this connection proved, as long as policy still gives it.
func (c *stream) certify(ctx context.Context, csr []byte) *proxyapi.Certificate {
	grant, err := c.server.register.Grant(c.name)
	if err == nil && grant.Identity != c.id {
		err = fmt.Errorf("policy gives workload %s the identity %s now, this connection proved %s; enrol again", c.name, grant.Identity, c.id)
	}
	if err == nil {
		err = c.server.register.Bound(c.name, c.leaf)
	}
	var chain [][]byte
	var notAfter time.Time
	if err == nil {
		// What the connection's certificate was issued for, not what the workload's is by now.
		chain, notAfter, err = c.server.ca.Sign(csr, c.id, c.leaf.Subject.SerialNumber)
	}
	log := zerolog.Ctx(ctx)
	if err != nil {
		log.Warn().Err(err).Msg("no certificate issued")
		return &proxyapi.Certificate{Error: err.Error()}
	}
	log.Info().Time("expires", notAfter).Msg("certificate issued")
	c.server.mu.Lock()
	c.proxy.CertificateExpires = notAfter
	c.server.mu.Unlock()
	return &proxyapi.Certificate{Chain: chain}
}

// publish shows operators how far the sidecar is.
func (c *stream) publish() {
	s := c.server
	s.mu.Lock()
	p := c.proxy
	current := p.stream == c
	changed := current && (p.Epoch != c.book.epoch || p.Commit != c.book.commit || p.Proxy.Nack != c.book.why)
	if current {
		p.Epoch, p.Commit, p.Proxy.Nack = c.book.epoch, c.book.commit, c.book.why
		p.good, p.refused = c.book.good, c.book.refused
	}
	s.mu.Unlock()
	if changed {
		s.note()
	}
}
