// Package controlplane turns releases and what runs into the configuration and the identity of every sidecar. It mirrors
// the releases of a reconciler (package mirror), knows who runs where (inventory), works out what each sidecar is to
// hold (assign), keeps one stream to each (push), gives out identities (identity, enroll) and sums up what sidecars
// report (observe). [Run] ties them together; nothing else here knows all of them.
//
// It imports neither the reconciler nor the proxy: releases come over the wire, verified by the reconciler's key. It can
// stop and start at any time, in any order with the others: sidecars serve on, and what it must know again is in its
// state directory:
//
//	key            its own Ed25519 key, by which the reconciler knows it
//	ca/            the certificate authority
//	releases/      the mirrored releases
//	enrolments/    join tokens (hashed) and registered host keys
//	inventory      addresses of workloads, so that a restart takes away no endpoint
//	operator.sock  the operator's API
package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/heddle-mesh/heddle/controlplane/assign"
	"github.com/heddle-mesh/heddle/controlplane/enroll"
	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/controlplane/inventory"
	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/controlplane/mirror"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/controlplane/push"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// Config is what an operator says; what is policy is in Git.
type Config struct {
	StateDir        string // made with mode 0700; one control plane at a time owns it
	Listen          string // of the config stream; mutual TLS
	ListenEnrolment string // of enrolment; server-authenticated TLS
	ListenMetrics   string // of /live, /ready and /metrics; plain HTTP; empty: none
	Reconciler      string // its releases port, "host:port"
	ReconcilerKey   string // its public key as `heddle key` prints it, or "@FILE" with that in it
	LeafTTL         time.Duration
	Version         string
}

const (
	// drain is how long Run waits for calls under way when it stops. Streams end at once: sidecars serve on without.
	drain = 2 * time.Second
	// retryBind is how soon a release is tried again that could not be served.
	retryBind = 5 * time.Second
)

// Run serves until ctx is done, then drains and returns nil. An error says what could not be started, or what broke.
func Run(ctx context.Context, cfg Config) (err error) {
	log := zerolog.Ctx(ctx).With().Str("component", "controlplane").Logger()
	ctx = log.WithContext(ctx)
	in := func(name string) string { return filepath.Join(cfg.StateDir, name) }

	// The state directory, and who we are.
	reconcilerKey, err := publicKey(cfg.ReconcilerKey)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	unlock, err := durable.Lock(in("lock"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := durable.Clean(cfg.StateDir); err != nil {
		return err
	}
	key, err := pinned.LoadOrCreateKey(in("key"))
	if err != nil {
		return err
	}

	// What was kept.
	releases, err := mirror.Open(in("releases"), key, reconcilerKey, cfg.Reconciler)
	if err != nil {
		return err
	}
	ca, err := identity.Open(in("ca"), cfg.LeafTTL)
	if err != nil {
		return err
	}
	endpoints, err := inventory.Open(in("inventory"))
	if err != nil {
		return err
	}
	input := new(live.Value[assign.Input])
	register, err := enroll.Open(in("enrolments"), ca, func() *mesh.Mesh {
		if v := input.Get().View; v != nil {
			return v.Mesh
		}
		return nil
	})
	if err != nil {
		return err
	}
	traffic := observe.New()
	streams := push.New(input, endpoints, ca, register, traffic)
	cp := &controlPlane{cfg: cfg, started: time.Now(), releases: releases, ca: ca, endpoints: endpoints, input: input,
		register: register, traffic: traffic, streams: streams}

	// What others reach us by. All ports are taken before anything runs, so that a taken one is said at once.
	stream, err := listen("config stream", cfg.Listen)
	if err != nil {
		return err
	}
	defer stream.Close()
	enrolment, err := listen("enrolment", cfg.ListenEnrolment)
	if err != nil {
		return err
	}
	defer enrolment.Close()
	socket, err := operator.Listen(in(operator.SocketName))
	if err != nil {
		return err
	}
	defer socket.Close()
	cp.addresses = Addresses{Stream: stream.Addr().String(), Enrolment: enrolment.Addr().String()}
	var metrics net.Listener
	if cfg.ListenMetrics != "" {
		if metrics, err = listen("metrics", cfg.ListenMetrics); err != nil {
			return err
		}
		defer metrics.Close()
		cp.addresses.Metrics = metrics.Addr().String()
	}

	// What the mirror has is served before anybody can ask: a sidecar that comes back at once is to find its release.
	cp.serveNewest(&log)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return releases.Run(ctx, mirror.Progress{Get: streams.Progress, Changed: streams.Changed()})
	})
	group.Go(func() error { return ca.Run(ctx) })
	group.Go(func() error { return endpoints.Run(ctx) })
	group.Go(func() error { return cp.publish(ctx) })
	group.Go(func() error { return streams.Run(ctx) })
	group.Go(func() error { return cp.serveStreams(ctx, stream) })
	group.Go(func() error { return cp.serveEnrolment(ctx, enrolment) })
	group.Go(func() error { return operator.Serve(ctx, socket, cp.operatorAPI()) })
	if metrics != nil {
		group.Go(func() error { return serveHTTP(ctx, metrics, cp.metricsAPI()) })
	}
	log.Info().Str("version", cfg.Version).Str("stream", cp.addresses.Stream).Str("enrolment", cp.addresses.Enrolment).
		Str("key", release.FormatKey(pinned.Public(key))).Msg("control plane started")
	err = group.Wait()
	log.Info().Msg("control plane stopped")
	return err
}

// controlPlane is the parts of one running control plane. Each part guards itself; only served and fault are written here.
type controlPlane struct {
	cfg       Config
	started   time.Time
	addresses Addresses
	releases  *mirror.Mirror
	ca        *identity.CA
	endpoints *inventory.Inventory
	input     *live.Value[assign.Input]
	register  *enroll.Register
	traffic   *observe.Traffic
	streams   *push.Server
	served    *mirror.Release    // serveNewest's own: the last one that it published
	fault     live.Value[string] // why the newest release is not served; empty: it is
}

// publish makes each release, and the endpoints of each moment, what sidecars are served, the two always together.
func (cp *controlPlane) publish(ctx context.Context) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		_, releaseStale := cp.releases.Watch()
		_, endpointsStale := cp.endpoints.Watch()
		if !cp.serveNewest(zerolog.Ctx(ctx)) {
			retry.Reset(retryBind)
		}
		select {
		case <-releaseStale:
		case <-endpointsStale:
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// serveNewest publishes the newest release and endpoints; false: the newest release cannot be served, and fault says why.
// One goroutine at a time calls it.
func (cp *controlPlane) serveNewest(log *zerolog.Logger) bool {
	r, _ := cp.releases.Watch()
	snap, _ := cp.endpoints.Watch()
	view, ok := cp.input.Get().View, true
	if r != nil && r != cp.served {
		if err := cp.ca.Bind(r.Mesh.Settings.TrustDomain); err != nil {
			ok = false
			if fault := err.Error(); cp.fault.Get() != fault {
				cp.fault.Set(fault)
				log.Error().Err(err).Str("commit", r.Record.Commit()).Uint64("epoch", r.Record.Epoch).Msg("the release is not served")
			}
		} else {
			cp.served = r
			cp.fault.Set("")
			snap = cp.endpoints.SetMesh(r.Mesh)
			view = assign.NewView(r.Record, r.Mesh, r.Origins, view)
			log.Info().Str("commit", view.Commit).Uint64("epoch", view.Epoch).Msg("serving release")
		}
	}
	if next := (assign.Input{View: view, Endpoints: snap}); next != cp.input.Get() {
		cp.input.Set(next)
	}
	return ok
}

func (cp *controlPlane) serveStreams(ctx context.Context, l net.Listener) error {
	tlsConfig := &tls.Config{
		MinVersion:             spiffe.TLSVersion,
		GetCertificate:         cp.ca.ServerCertificate,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			bundle, _ := cp.ca.Bundle()
			if bundle == nil {
				return identity.ErrUnbound
			}
			_, err := bundle.Verify(cs.PeerCertificates, time.Now(), x509.ExtKeyUsageClientAuth)
			return err
		},
	}
	server := newServer(tlsConfig, grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		return h(srv, &loggedStream{ss, zerolog.Ctx(ctx).WithContext(ss.Context())})
	}))
	proxyapi.RegisterConfigServer(server, cp.streams)
	defer cp.streams.Wait()
	return serve(ctx, server, l, cp.streams.Stop)
}

func (cp *controlPlane) serveEnrolment(ctx context.Context, l net.Listener) error {
	server := newServer(&tls.Config{
		MinVersion: spiffe.TLSVersion, GetCertificate: cp.ca.EnrolmentCertificate, SessionTicketsDisabled: true,
	}, grpc.MaxRecvMsgSize(64<<10), grpc.ConnectionTimeout(10*time.Second),
		grpc.UnaryInterceptor(func(c context.Context, q any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			return h(zerolog.Ctx(ctx).WithContext(c), q)
		}))
	proxyapi.RegisterEnrolmentServer(server, cp.register)
	return serve(ctx, server, l, func() {})
}

// loggedStream carries our logger to the handler of a stream.
type loggedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *loggedStream) Context() context.Context { return s.ctx }

func newServer(t *tls.Config, more ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(t)),
		grpc.MaxRecvMsgSize(proxyapi.MaxMessage),
		grpc.MaxSendMsgSize(proxyapi.MaxMessage),
		// One connection is one sidecar, which has one stream.
		grpc.MaxConcurrentStreams(4),
		// A half-open partition is found within twenty seconds, from both ends.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 4 * time.Second, PermitWithoutStream: true}),
	}, more...)...)
}

// serve runs a gRPC server until ctx is done; then it calls stopping, waits for calls under way, and bounds the wait.
func serve(ctx context.Context, server *grpc.Server, l net.Listener, stopping func()) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		stopping()
		hurry := time.AfterFunc(drain, server.Stop)
		defer hurry.Stop()
		server.GracefulStop()
	})
	err := server.Serve(l)
	if stop() { // ctx is not done: the listener failed by itself
		stopping()
		server.Stop()
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.Close()
	})
	err := s.Serve(l)
	if stop() {
		s.Close()
		return fmt.Errorf("serving metrics on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

func listen(what, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("the port of the %s: %w; stop what uses it, or choose another address", what, err)
	}
	return l, nil
}

// publicKey reads the form of Config.ReconcilerKey.
func publicKey(s string) (ed25519.PublicKey, error) {
	if file, ok := strings.CutPrefix(s, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the reconciler's public key: %w", err)
		}
		s = string(b)
	}
	key, err := release.ParseKey(s)
	if err != nil {
		return nil, fmt.Errorf("the reconciler's public key: %w", err)
	}
	return key, nil
}
