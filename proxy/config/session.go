package config

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	// silence is how long the control plane may say nothing before the sidecar reconnects.
	silence = 4 * proxyapi.HeartbeatEvery
	// answerIn is how long a certificate request may go unanswered.
	answerIn = 30 * time.Second
	// window is HTTP/2's default flow-control window, fixed so that gRPC does not measure and grow it.
	window = 1<<16 - 1
)

// drainError is a control plane's request to reconnect.
type drainError struct{ within time.Duration }

func (*drainError) Error() string { return "the control plane asks to reconnect" }

// session is one stream. Its loop owns everything but the receiving end.
type session struct {
	*Client
	stream     grpc.BidiStreamingClient[proxyapi.ProxyMessage, proxyapi.ControlMessage]
	subscribed map[mesh.ServiceName]bool
	key        *ecdsa.PrivateKey // of the certificate request that is not answered; nil: there is none
	renew      *time.Timer
	edges      []observe.Edge // as last reported
	reported   time.Time      // when that was
	kept       time.Time      // when the last known good config was last handed to the saver
}

// session connects, says hello and handles what comes until the stream ends. The error is never nil.
func (c *Client) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Nothing below may take longer than this without a sign of life: not the handshake, not a blocked send.
	dog := time.AfterFunc(attempt, func() {
		cancel(errors.New("the control plane says nothing"))
	})
	defer dog.Stop()
	svid := c.Source.Load().SVID
	tls := c.Source.ClientTLS("", []spiffe.ID{spiffe.ControlPlaneID(svid.ID.TrustDomain())})
	conn, err := grpc.NewClient("passthrough:///"+c.ControlPlane, append(identity.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(proxyapi.MaxMessage)))...)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", c.ControlPlane, err)
	}
	defer conn.Close()
	s := &session{Client: c, subscribed: map[mesh.ServiceName]bool{}, renew: time.NewTimer(0), kept: time.Now()}
	defer s.renew.Stop()
	s.scheduleRenewal()
	if s.stream, err = proxyapi.NewConfigClient(conn).Stream(ctx); err != nil {
		return s.ended(ctx, err)
	}
	if err := s.hello(); err != nil {
		return s.ended(ctx, err)
	}

	inbox, failed := make(chan *proxyapi.ControlMessage), make(chan error, 1)
	received := make(chan struct{})
	go s.receive(ctx, dog, inbox, failed, received)
	defer func() { cancel(nil); <-received }()
	return s.ended(ctx, s.loop(ctx, inbox, failed))
}

// ended says why a stream ended, and that it did.
func (s *session) ended(ctx context.Context, err error) error {
	s.set(func(st *Status) {
		if st.Connected {
			st.Connected, st.Since = false, time.Now()
		}
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	var d *drainError
	var m mismatchError
	if errors.As(err, &d) || errors.As(err, &m) {
		return err
	}
	return fmt.Errorf("stream to %s: %w", s.ControlPlane, err)
}

// receive feeds the loop, and the watchdog.
func (s *session) receive(ctx context.Context, dog *time.Timer, inbox chan<- *proxyapi.ControlMessage,
	failed chan<- error, done chan<- struct{}) {
	defer close(done)
	for {
		m, err := s.stream.Recv()
		if err != nil {
			failed <- err
			return
		}
		dog.Reset(silence)
		select {
		case inbox <- m:
		case <-ctx.Done():
			return
		}
	}
}

func (s *session) hello() error {
	h := &proxyapi.Hello{
		Workload: s.who.Workload, Version: s.Version, Epoch: s.store.epoch,
		MeshAddress: s.MeshAddress, Applications: s.Applications, Instance: s.instance,
	}
	for _, c := range mesh.Enforced {
		h.Capabilities = append(h.Capabilities, string(c))
	}
	if !s.fresh {
		h.Have = s.store.versions()
	}
	for _, d := range s.Declared {
		h.Declared = append(h.Declared, string(d))
	}
	s.mu.Lock()
	for w := range s.wanted {
		s.subscribed[w] = true
		h.Subscribed = append(h.Subscribed, string(w))
	}
	s.mu.Unlock()
	slices.Sort(h.Subscribed)
	return s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Hello{Hello: h}})
}

func (s *session) send(m *proxyapi.ProxyMessage) error { return s.stream.Send(m) }

func (s *session) loop(ctx context.Context, inbox <-chan *proxyapi.ControlMessage, failed <-chan error) error {
	traffic := time.NewTicker(proxyapi.TrafficEvery)
	defer traffic.Stop()
	heard := false
	for {
		var err error
		select {
		case m := <-inbox:
			if !heard {
				heard = true
				zerolog.Ctx(ctx).Info().Str("peer", s.ControlPlane).Uint64("epoch", s.store.epoch).Msg("connected to the control plane")
				s.set(func(st *Status) { st.Connected, st.Since, st.Error, st.Waiting = true, time.Now(), "", "" })
			}
			err = s.take(ctx, m)
		case <-s.asked:
			err = s.ask()
		case <-s.renew.C:
			err = s.requestCertificate(ctx)
		case <-traffic.C:
			err = s.report()
		case err = <-failed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// take handles one message. An error ends the stream.
func (s *session) take(ctx context.Context, m *proxyapi.ControlMessage) error {
	switch m := m.GetMessage().(type) {
	case *proxyapi.ControlMessage_Transaction:
		return s.transaction(ctx, m.Transaction)
	case *proxyapi.ControlMessage_Heartbeat:
		if len(m.Heartbeat.GetState()) > 0 && !bytes.Equal(m.Heartbeat.GetState(), s.store.state) {
			return mismatchError{}
		}
		s.confirmed(false)
	case *proxyapi.ControlMessage_Bundle:
		return s.bundle(ctx, m.Bundle)
	case *proxyapi.ControlMessage_Certificate:
		s.certificate(ctx, m.Certificate)
	case *proxyapi.ControlMessage_Refused:
		return s.refused(ctx, m.Refused)
	case *proxyapi.ControlMessage_Drain:
		return &drainError{max(m.Drain.GetWithin().AsDuration(), 0)}
	}
	return nil // a newer control plane's message without config in it
}

// transaction applies all of it or nothing, and says which.
func (s *session) transaction(ctx context.Context, t *proxyapi.Transaction) error {
	log := zerolog.Ctx(ctx)
	began := time.Now()
	next, err := s.store.apply(t)
	var m mismatchError
	if errors.As(err, &m) {
		return err
	}
	if err == nil {
		before := s.store
		if err = s.publish(ctx, next); err == nil {
			s.fresh = false
			for _, u := range t.GetUpserts() {
				if u.GetKind() == string(mesh.KindOutbound) { // what is served is refused no longer
					delete(s.refusals, mesh.ServiceName(u.GetName()))
				}
			}
			s.confirmed(true)
			event := log.Debug()
			if before.commit != next.commit {
				event = log.Info()
			}
			event.Str("commit", next.commit).Uint64("epoch", next.epoch).Int("objects", len(next.objects)).
				Dur("dur", time.Since(began)).Msg("config applied")
		}
	}
	ack := &proxyapi.Ack{Transaction: t.GetId(), Epoch: t.GetEpoch(), Commit: t.GetCommit()}
	if err != nil {
		ack.Nack = err.Error()
		s.set(func(st *Status) { st.Nack = ack.Nack })
		log.Error().Err(err).Str("commit", t.GetCommit()).Uint64("epoch", t.GetEpoch()).
			Msg("config refused; the one before goes on serving")
	}
	return s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Ack{Ack: ack}})
}

// confirmed notes that the control plane and the sidecar agree, and has the config written where it changed or where
// the file's word about its age gets old.
func (s *session) confirmed(changed bool) {
	now := time.Now()
	s.Freshness.Confirm(now)
	if changed || now.Sub(s.kept) >= confirmEvery {
		s.kept = now
		s.keep(snapshot{s.store, s.who, now})
	}
}

func (s *session) refused(ctx context.Context, r *proxyapi.Refused) error {
	name := mesh.ServiceName(r.GetService())
	s.refusals[name] = pipeline.Refusal{Service: name, Reason: r.GetReason(), Rule: r.GetRule(), Origin: r.GetOrigin()}
	zerolog.Ctx(ctx).Debug().Str("backend", r.GetService()).Str("policy", r.GetRule()).Str("pos", r.GetOrigin()).
		Str("reason", r.GetReason()).Msg("destination refused")
	if s.store.commit == "" {
		return nil // there is no config yet that it could be added to
	}
	if err := s.publish(ctx, s.store); err != nil {
		return fmt.Errorf("build the config with a refusal: %w", err)
	}
	return nil
}

// bundle takes new roots over at once, so that anchors rotate without a restart.
func (s *session) bundle(ctx context.Context, b *proxyapi.Bundle) error {
	m := s.Source.Load()
	next, err := identity.ParseBundle(m.Bundle.TrustDomain, b.GetGeneration(), b.GetRoots())
	if err != nil {
		return fmt.Errorf("the trust bundle that came: %w", err)
	}
	same := identity.SameRoots(m.Bundle, next)
	if same && m.Bundle.Generation == next.Generation {
		return nil
	}
	s.Source.Set(nil, next)
	if err := s.State.SaveBundle(next); err != nil {
		zerolog.Ctx(ctx).Error().Err(err).Msg("a restart would have the old trust bundle; free the disk")
	}
	if !same {
		zerolog.Ctx(ctx).Info().Uint64("generation", next.Generation).Int("roots", len(next.Roots)).Msg("trust bundle replaced")
		if !m.SVID.VerifiedBy(next, time.Now()) { // our own certificate is of a root that left
			s.renew.Reset(0)
		}
	}
	return nil
}

func (s *session) scheduleRenewal() { s.renew.Reset(time.Until(s.renewal.At(mrand.Float64()))) }

// requestCertificate asks for the next SVID, for a new key.
func (s *session) requestCertificate(ctx context.Context) error {
	if s.key != nil {
		s.renewalFailed(ctx, fmt.Errorf("no answer within %v", answerIn))
		return nil
	}
	key, csr, err := identity.NewRequest(s.Source.Load().SVID.ID)
	if err != nil {
		s.renewalFailed(ctx, err)
		return nil
	}
	s.key = key
	s.renew.Reset(answerIn)
	return s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_CertificateRequest{
		CertificateRequest: &proxyapi.CertificateRequest{Csr: csr}}})
}

func (s *session) renewalFailed(ctx context.Context, err error) {
	s.key = nil
	s.renewal.Failures++
	s.renewal.Last = time.Now()
	s.scheduleRenewal()
	zerolog.Ctx(ctx).Warn().Err(err).Time("until", s.renewal.NotAfter).Msg("the certificate was not renewed; trying again")
}

func (s *session) certificate(ctx context.Context, cert *proxyapi.Certificate) {
	if s.key == nil {
		return // an answer that came too late
	}
	if cert.GetError() != "" {
		s.renewalFailed(ctx, errors.New(cert.GetError()))
		return
	}
	m := s.Source.Load()
	svid, err := identity.NewSVID(cert.GetChain(), s.key, m.Bundle, time.Now())
	if err == nil && svid.ID != m.SVID.ID {
		err = fmt.Errorf("it is for %s, and this is %s", svid.ID, m.SVID.ID)
	}
	if err != nil {
		s.renewalFailed(ctx, fmt.Errorf("the certificate that came: %w", err))
		return
	}
	s.key = nil
	s.Source.Set(svid, nil)
	s.enrolled(s.who)
	s.scheduleRenewal()
	if err := s.State.Save(s.who, svid); err != nil {
		zerolog.Ctx(ctx).Error().Err(err).Msg("a restart would have the old certificate; free the disk")
	}
	zerolog.Ctx(ctx).Info().Str("serial", svid.Serial()).Time("until", svid.NotAfter).Msg("certificate renewed")
}

// ask sends what the stacks asked for since the last time.
func (s *session) ask() error {
	s.mu.Lock()
	sub := &proxyapi.Subscribe{}
	for w := range s.wanted {
		if !s.subscribed[w] {
			s.subscribed[w] = true
			sub.Add = append(sub.Add, string(w))
		}
	}
	failures := s.failures
	s.failures = nil
	s.mu.Unlock()
	if len(sub.Add) > 0 {
		slices.Sort(sub.Add)
		if err := s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Subscribe{Subscribe: sub}}); err != nil {
			return err
		}
	}
	for _, f := range failures {
		if err := s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_ConnectFailure{
			ConnectFailure: &proxyapi.ConnectFailure{Service: f.service, Address: f.address, Error: f.err}}}); err != nil {
			return err
		}
	}
	return nil
}

// report sends the traffic summary where it has changed, and again now and then while connections are open: a control
// plane cannot tell a quiet connection from a sidecar that is gone.
func (s *session) report() error {
	edges := s.Metrics.Edges()
	now := time.Now()
	open := slices.ContainsFunc(edges, func(e observe.Edge) bool { return e.Open > 0 })
	if slices.EqualFunc(edges, s.edges, sameEdge) && !(open && now.Sub(s.reported) >= proxyapi.OpenEvery) {
		return nil
	}
	s.edges, s.reported = edges, now
	r := &proxyapi.TrafficReport{}
	for _, e := range edges {
		r.Edges = append(r.Edges, &proxyapi.EdgeTraffic{
			Service: e.Service, Inbound: e.Inbound, Requests: e.Requests, Successes: e.Successes, Denied: e.Denied, Open: e.Open,
			Mtls: e.MTLS, Tcp: e.TCP, Latency: e.Latency, Rule: e.Rule,
		})
	}
	return s.send(&proxyapi.ProxyMessage{Message: &proxyapi.ProxyMessage_Traffic{Traffic: r}})
}

func sameEdge(a, b observe.Edge) bool {
	return a.Service == b.Service && a.Inbound == b.Inbound && a.Requests == b.Requests && a.Successes == b.Successes &&
		a.Denied == b.Denied && a.Open == b.Open && a.MTLS == b.MTLS && a.TCP == b.TCP && a.Rule == b.Rule
}
