// Package proxy is the sidecar: it stands beside one workload, carries what comes for it (inbound.go) and what it sends
// (outbound.go), and enforces the policy that its control plane hands out. [Run] is the whole of it, from top to bottom:
// state, identity, last known good config, listeners, stream, admin port, drain.
//
// Its parts: detect, http1, l4 and upstream move bytes; pipeline is the published policy that they read; balance picks
// endpoints; identity proves and judges; config holds the stream; observe and admin show. The package imports neither
// the reconciler nor the control plane.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/proxy/admin"
	"github.com/heddle-mesh/heddle/proxy/config"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Config is what the sidecar's operator says; everything else is policy, and lives in Git. Addresses are "host:port";
// port 0 takes a free one.
type Config struct {
	// Version of this program, as in "v0.1.0".
	Version string
	// StateDir is the sidecar's own directory.
	StateDir string
	// ControlPlane is the stream port, Enrolment the enrolment port of a control plane.
	ControlPlane string
	Enrolment    string
	// JoinTokenFile is needed for the first start on a host; a file that is gone later is no error. Another token in it is
	// used at the next connection to the control plane.
	JoinTokenFile string
	// Inbound is where other sidecars connect, with mTLS only. Advertise is that address as they see it, "IP:port" (port
	// 0: the one that Inbound got); empty: Inbound's, which must then name an IP.
	Inbound   string
	Advertise string
	// Apps is where the application listens, by port name; a port without an entry is at 127.0.0.1:<declared port>.
	Apps map[string]string
	// Expose are listeners for the outside, by port name.
	Expose map[string]string
	// Outbound is the HTTP proxy for the application, on loopback; empty: none.
	Outbound string
	// Upstreams are listeners on loopback for one upstream each.
	Upstreams []Upstream
	// Admin is the admin port; empty: none.
	Admin string
	// Drain bounds the wait for what is under way at the end.
	Drain time.Duration
}

// Upstream is a listener for one port of a service.
type Upstream struct {
	Service mesh.ServiceName
	Port    string // by name or number
	Listen  string
}

// ConfigError is a mistake in Config: the operator's to mend.
type ConfigError struct{ msg string }

// Error says what is wrong and what to do.
func (e *ConfigError) Error() string { return e.msg }

func wrong(format string, args ...any) error { return &ConfigError{fmt.Sprintf(format, args...)} }

// Run runs a sidecar until ctx ends or the admin port is asked to shut down; then it drains, and returns nil when all
// that was under way has ended or Drain is over. A ConfigError is returned before anything is served.
func Run(ctx context.Context, c Config) error {
	log := zerolog.Ctx(ctx)
	if err := c.check(); err != nil {
		return err
	}
	limitMemory()

	// State: one process owns the directory.
	state, err := identity.OpenState(c.StateDir)
	if err != nil {
		return err
	}
	unlock, err := durable.Lock(filepath.Join(c.StateDir, "lock"))
	if err != nil {
		return fmt.Errorf("use the state directory %s: %w", c.StateDir, err)
	}
	defer unlock()
	if err := durable.Clean(c.StateDir); err != nil {
		return fmt.Errorf("use the state directory %s: %w", c.StateDir, err)
	}

	// Identity, and what both stacks share.
	token, err := readToken(c.JoinTokenFile)
	if err != nil {
		return err
	}
	source := identity.NewSource(nil)
	metrics := observe.New(nil)
	transport := upstream.NewTransport(source)
	clusters := pipeline.NewClusters(transport.NewPool, nil)
	current := pipeline.NewCurrent()
	freshness := &pipeline.Freshness{}

	// Listeners come before the first contact: the address that they got is told there. Until there is an identity and a
	// config, every connection is refused.
	ls, err := c.listen()
	if err != nil {
		return err
	}
	defer ls.close()
	own := ls.own()
	for _, name := range sortedKeys(c.Apps) {
		if own.named(c.Apps[name]) {
			return wrong("--app %s=%s is one of this sidecar's own listeners: what came in would come in again and again; "+
				"give where the application itself listens", name, c.Apps[name])
		}
	}
	advertise, err := c.advertise(ls.inbound.Addr())
	if err != nil {
		return err
	}
	for _, l := range ls.all {
		log.Info().Str("component", l.what).Str("address", l.Addr().String()).Msg("listening")
	}

	// The last known good config serves at once.
	client := config.New(config.Config{
		ControlPlane: c.ControlPlane, Version: c.Version, Declared: c.declared(), MeshAddress: advertise,
		Applications: c.Apps, Dir: c.StateDir, JoinToken: func() (*identity.Token, error) { return readToken(c.JoinTokenFile) },
	}, config.Deps{
		State: state, Source: source, Enroller: &identity.Enroller{Address: c.Enrolment, Token: token, State: state, Source: source},
		Current: current, Clusters: clusters, Freshness: freshness, Metrics: metrics,
	})
	if err := client.Start(ctx); err != nil {
		return err
	}

	env := Env{
		Current: current, Identity: source, Metrics: metrics, Transport: transport,
		Want: client.Want, ConnectFailed: client.ConnectFailed, Own: own,
	}
	s := &sidecar{
		Config: c, client: client, source: source, current: current, metrics: metrics, advertise: advertise, listeners: ls,
		inbound: NewInbound(env), outbound: NewOutbound(env), stop: make(chan struct{}), draining: make(chan struct{}),
	}
	metrics.Collect(s.collect)
	return s.run(ctx)
}

// sidecar is a running one.
type sidecar struct {
	Config
	client    *config.Client
	source    *identity.Source
	current   *pipeline.Current
	metrics   *observe.Registry
	advertise string
	listeners *listeners
	inbound   *Inbound
	outbound  *Outbound

	once     sync.Once
	stop     chan struct{} // closed by the admin port
	draining chan struct{} // closed when the drain begins
}

// run starts everything, waits for the end, and drains. What serves ends first; what it leans on (certificates, the
// stream, the admin port) ends last.
func (s *sidecar) run(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return s.client.Run(work) })
	g.Go(func() error { return s.inbound.Transport.Run(work) })
	g.Go(func() error { return s.inbound.Run(work) })
	g.Go(func() error { return s.outbound.Run(work) })
	g.Go(func() error { return s.sweep(work) })
	g.Go(func() error { return s.settle(work) })
	for _, l := range s.listeners.all {
		g.Go(func() error { return l.serve(s, work, l.Listener) })
	}
	g.Go(func() error {
		defer cancel()
		select {
		case <-ctx.Done():
		case <-s.stop:
		case <-work.Done(): // something failed
		}
		close(s.draining)
		began := time.Now()
		log.Info().Int("open", s.inbound.Open()+s.outbound.Open()).Dur("within", s.Drain).Msg("draining")
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Drain)
		defer cancel()
		var both errgroup.Group
		both.Go(func() error { return s.inbound.Drain(grace) })
		both.Go(func() error { return s.outbound.Drain(grace) })
		if err := both.Wait(); err != nil {
			log.Warn().Dur("dur", time.Since(began)).Msg("the drain is over; connections that were still open were cut")
		} else {
			log.Info().Dur("dur", time.Since(began)).Msg("drained")
		}
		return nil
	})
	return g.Wait()
}

// sweep drops what is idle once a minute: series, while nobody scrapes, and pages of the program that ran for a
// handshake or a reconnect. (A busy sidecar maps its few hundred hot pages again within a millisecond.)
func (s *sidecar) sweep(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.metrics.Sweep()
			if s.inbound.Open()+s.outbound.Open() == 0 {
				settle() // nobody is there whom a collection could delay
			} else {
				dropProgram()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func readToken(path string) (*identity.Token, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it was used, and is not needed again; where it is, the enrolment says so
	}
	if err != nil {
		return nil, fmt.Errorf("read the join token: %w", err)
	}
	t, err := identity.ParseToken(string(b))
	if err != nil {
		return nil, wrong("%s: %v", path, err)
	}
	return t, nil
}

// declared are the services of the listeners for one upstream.
func (c *Config) declared() []mesh.ServiceName {
	var list []mesh.ServiceName
	for _, u := range c.Upstreams {
		list = append(list, u.Service)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// check finds mistakes before anything is touched. What a listener for the application binds must be loopback, or the
// sidecar would lend its identity to the network (decisions.md, 18).
func (c *Config) check() error {
	for _, a := range []struct{ flag, value string }{
		{"--control-plane", c.ControlPlane}, {"--enrolment", c.Enrolment}, {"--inbound", c.Inbound},
	} {
		if a.value == "" {
			return wrong("%s is missing; give it as HOST:PORT", a.flag)
		}
		if _, err := splitAddress(a.value); err != nil {
			return wrong("%s %v", a.flag, err)
		}
	}
	if c.StateDir == "" {
		return wrong("--state is missing; give a directory of this sidecar's own")
	}
	if c.Advertise != "" {
		if a, err := netip.ParseAddrPort(c.Advertise); err != nil || a.Addr().IsUnspecified() {
			return wrong("--advertise %q is not an IP:PORT that other sidecars could connect to", c.Advertise)
		}
	}
	for name, a := range c.Apps {
		if h, err := splitAddress(a); err != nil || h == "" {
			return wrong("--app %s=%s: give where the application listens, as in %s=127.0.0.1:8080", name, a, name)
		}
	}
	for name, a := range c.Expose {
		if _, err := splitAddress(a); err != nil {
			return wrong("--expose %s=%v", name, err)
		}
	}
	if c.Outbound != "" {
		if err := loopback(c.Outbound); err != nil {
			return wrong("--outbound %v", err)
		}
	}
	for _, u := range c.Upstreams {
		if err := loopback(u.Listen); err != nil {
			return wrong("--listen %s:%s=%v", u.Service, u.Port, err)
		}
	}
	if c.Admin != "" {
		if _, err := splitAddress(c.Admin); err != nil {
			return wrong("--admin %v", err)
		}
	}
	return nil
}

func splitAddress(a string) (host string, err error) {
	host, port, err := net.SplitHostPort(a)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not HOST:PORT", a)
	}
	return host, nil
}

func loopback(a string) error {
	host, err := splitAddress(a)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err != nil && host != "localhost" || err == nil && !ip.Unmap().IsLoopback() {
		return fmt.Errorf("%q is not on loopback: whoever reaches this listener speaks with this workload's identity; use 127.0.0.1", a)
	}
	return nil
}

// advertise is where other sidecars reach the inbound listener.
func (c *Config) advertise(inbound net.Addr) (string, error) {
	at := inbound.(*net.TCPAddr).AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if c.Advertise == "" {
		if at.Addr().IsUnspecified() {
			return "", wrong("--inbound %s is every address of this host: "+
				"say with --advertise IP:%d at which one other sidecars reach it", c.Inbound, at.Port())
		}
		return at.String(), nil
	}
	a := netip.MustParseAddrPort(c.Advertise) // checked before
	if a.Port() == 0 {
		a = netip.AddrPortFrom(a.Addr(), at.Port())
	}
	return a.String(), nil
}

// listeners are all that the sidecar listens on.
type listeners struct {
	inbound net.Listener
	all     []listener
}

type listener struct {
	net.Listener
	what  string
	serve func(*sidecar, context.Context, net.Listener) error
}

func (ls *listeners) close() {
	for _, l := range ls.all {
		l.Close()
	}
}

func (ls *listeners) own() Own {
	var own Own
	for _, l := range ls.all {
		own = append(own, addrPort(l.Addr()))
	}
	return own
}

// listen opens all listeners, or none.
func (c *Config) listen() (ls *listeners, err error) {
	ls = &listeners{}
	add := func(what, flag, address string, serve func(*sidecar, context.Context, net.Listener) error) net.Listener {
		if err != nil {
			return nil
		}
		ln, lerr := net.Listen("tcp", address)
		if lerr != nil {
			err = fmt.Errorf("%s: %w; choose another address, port 0 takes a free one", flag, lerr)
			return nil
		}
		ls.all = append(ls.all, listener{ln, what, serve})
		return ln
	}
	ls.inbound = add("inbound", "--inbound", c.Inbound, func(s *sidecar, ctx context.Context, ln net.Listener) error {
		return s.inbound.ServeMesh(ctx, ln)
	})
	for _, name := range sortedKeys(c.Expose) {
		add("expose "+name, "--expose "+name, c.Expose[name], func(s *sidecar, ctx context.Context, ln net.Listener) error {
			return s.inbound.ServeExposed(ctx, ln, name)
		})
	}
	if c.Outbound != "" {
		add("outbound", "--outbound", c.Outbound, func(s *sidecar, ctx context.Context, ln net.Listener) error {
			return s.outbound.ServeProxy(ctx, ln)
		})
	}
	for _, u := range c.Upstreams {
		what := string(u.Service) + ":" + u.Port
		add("upstream "+what, "--listen "+what, u.Listen, func(s *sidecar, ctx context.Context, ln net.Listener) error {
			return s.outbound.ServeUpstream(ctx, ln, u.Service, u.Port)
		})
	}
	if c.Admin != "" {
		add("admin", "--admin", c.Admin, func(s *sidecar, ctx context.Context, ln net.Listener) error { return s.serveAdmin(ctx, ln) })
	}
	if err != nil {
		ls.close()
		return nil, err
	}
	return ls, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// ParseUpstream reads "<namespace>/<service>:<port>=<address>", the form of --listen.
func ParseUpstream(s string) (Upstream, error) {
	to, at, ok := strings.Cut(s, "=")
	service, port, ok2 := strings.Cut(to, ":")
	ns, name, ok3 := strings.Cut(service, "/")
	if !ok || !ok2 || !ok3 || ns == "" || name == "" || port == "" || strings.Contains(name, "/") {
		return Upstream{}, fmt.Errorf("%q is not NAMESPACE/SERVICE:PORT=ADDRESS, as in shop/ledger:tcp=127.0.0.1:5432", s)
	}
	return Upstream{mesh.Name(ns, name), port, at}, nil
}

// serveAdmin answers on the admin port.
func (s *sidecar) serveAdmin(ctx context.Context, ln net.Listener) error {
	return admin.Serve(ctx, ln, admin.New(admin.Options{
		Metrics: s.metrics, Ready: s.ready, Config: func() any { return s.effective(time.Now()) },
		Shutdown: func() { s.once.Do(func() { close(s.stop) }) },
	}))
}
