package pipeline_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	webID  = "spiffe://shop.test/ns/shop/sa/web"
	apiID  = "spiffe://shop.test/ns/shop/sa/api"
	commit = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// pool notes when it is retired.
type pool struct {
	pipeline.Target
	retired int
}

func (p *pool) Retire() { p.retired++ }

// world is what outlives a config.
type world struct {
	*pipeline.Current
	deps  pipeline.Deps
	pools []*pool
	now   time.Time
}

func newWorld() *world {
	w := &world{Current: pipeline.NewCurrent(), now: time.Unix(1_700_000_000, 0)}
	w.deps = pipeline.Deps{Freshness: &pipeline.Freshness{}, Clusters: pipeline.NewClusters(func(t pipeline.Target) pipeline.Pool {
		p := &pool{Target: t}
		w.pools = append(w.pools, p)
		return p
	}, func() time.Time { return w.now })}
	w.deps.Freshness.Confirm(w.now)
	return w
}

// use builds and publishes.
func (w *world) use(t *testing.T, c pipeline.Config) *pipeline.Pipeline {
	t.Helper()
	p, err := pipeline.Build(c, w.deps)
	if err != nil {
		t.Fatal(err)
	}
	w.Publish(p, w.deps.Clusters)
	if w.Load() != p {
		t.Fatal("what was published is not current")
	}
	return p
}

func addr(s string) balance.Address { return balance.Address{Addr: netip.MustParseAddrPort(s)} }

func out(s mesh.ServiceName, ports ...mesh.OutboundPort) *mesh.Outbound {
	return &mesh.Outbound{Service: s, Identities: []string{"spiffe://shop.test/ns/" + s.Namespace() + "/sa/" + s.Local()}, Ports: ports}
}

func port(name string, n uint16, p mesh.Protocol) mesh.OutboundPort {
	return mesh.OutboundPort{Name: name, Port: n, Protocol: p}
}

// config is that of shop/web. shop/api splits /v2 to shop/api-v2; shop/ledger is not subscribed; shop/vault is refused.
func config() pipeline.Config {
	http := port("http", 80, mesh.HTTP1)
	split := http
	split.Matches = []mesh.Match{{Route: "shop/api/httpRoutes/v2", Path: mesh.PathMatch{Prefix: "/v2"}}}
	api := out("shop/api", port("admin", 9000, mesh.TCP), split)
	api.Routes = []mesh.Route{{ID: "shop/api/httpRoutes/v2", Port: "http", Backends: []mesh.Backend{
		{Service: "shop/api-v2", Port: "http", Weight: 3}, {Service: "shop/api", Port: "http", Weight: 1}}}}
	return pipeline.Config{
		Epoch: 3, Commit: commit, Service: "shop/web", Settings: &mesh.Settings{TrustDomain: "shop.test", MaxStale: time.Hour},
		Indexes: []*mesh.Index{{Namespace: "shop", Services: []mesh.IndexService{
			{Name: "api", Ports: []mesh.IndexPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}},
			{Name: "ledger", Ports: []mesh.IndexPort{{Name: "tcp", Port: 5432, Protocol: mesh.TCP}}},
			{Name: "two", Ports: []mesh.IndexPort{{Name: "a", Port: 1, Protocol: mesh.HTTP1}, {Name: "b", Port: 2, Protocol: mesh.HTTP1}, {Name: "c", Port: 3, Protocol: mesh.Detect}}},
			{Name: "maybe", Ports: []mesh.IndexPort{{Name: "x", Port: 7, Protocol: mesh.TCP}, {Name: "y", Port: 8, Protocol: mesh.Detect}}},
			{Name: "vault", Ports: []mesh.IndexPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}},
		}}},
		Inbound: []*mesh.Inbound{{
			Service: "shop/web", Identities: []string{webID},
			Ports: []mesh.InboundPort{
				{Name: "http", Port: 8080, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: "shop/web/default/http"},
				{Name: "open", Port: 8081, Protocol: mesh.Detect, MTLS: mesh.Permissive, Default: mesh.AllUnauthenticated, DefaultID: "shop/web/default/open"},
			},
			Rules: []mesh.Rule{
				{ID: "shop/web/allow/api", Action: mesh.Allow, From: []mesh.Peer{{Identity: apiID}}, Ports: []string{"http"}},
				{ID: "shop/web/deny/cron", Action: mesh.DenyRule, From: []mesh.Peer{{Identity: "spiffe://shop.test/ns/shop/sa/cron"}}},
			},
			Needs: []mesh.Capability{mesh.CapAuthorize},
		}},
		Outbound:  []*mesh.Outbound{api, out("shop/api-v2", http)},
		Endpoints: map[mesh.ServiceName][]balance.Address{"shop/api": {addr("10.0.0.1:4143"), addr("10.0.0.2:4143")}, "shop/api-v2": {addr("10.0.0.3:4143")}},
		Origins:   []mesh.Origins{{"shop/web/allow/api": {File: "shop/web.cue", Line: 12, Column: 4}}},
		Refusals:  []pipeline.Refusal{{Service: "shop/vault", Reason: "denied", Rule: "shop/vault/default/http", Origin: "mesh.cue:1"}, {Service: "shop/api", Reason: "denied"}, {Service: "no/where", Reason: "unknown"}},
		Apps:      map[string]string{"http": "127.0.0.1:18080"},
	}
}

func TestByHost(t *testing.T) {
	p := newWorld().use(t, config())
	long := strings.Repeat("a", 63)
	for _, test := range []struct{ host, want string }{
		{"api.shop.mesh", "known api.shop.mesh:80"},
		{"API.Shop.MESH", "known api.shop.mesh:80"},
		{"api.shop.mesh.", "known api.shop.mesh:80"},
		{"api.shop.mesh:80", "known api.shop.mesh:80"},
		{"api.shop.mesh.:80", "known api.shop.mesh:80"},
		{"api.shop.mesh:9000", "known api.shop.mesh:9000"},
		{"api.shop.mesh:81", "unknown-port api.shop.mesh"},
		{"ledger.shop.mesh:5432", "pending ledger.shop.mesh:5432"},
		{"ledger.shop.mesh", "unknown-port ledger.shop.mesh"}, // it has no HTTP port
		{"two.shop.mesh", "unknown-port two.shop.mesh"},       // it has two
		{"two.shop.mesh:2", "pending two.shop.mesh:2"},
		{"maybe.shop.mesh", "pending maybe.shop.mesh:8"},
		{"vault.shop.mesh", "refused vault.shop.mesh:80"},
		{"vault.shop.mesh:99", "refused vault.shop.mesh"},
		{"nowhere.shop.mesh", "unknown-host "},
		{"where.no.mesh", "unknown-host "},
		{"api.shop", "unknown-host "},
		{"api.shop.mesh..", "unknown-host "},
		{"api..shop.mesh", "unknown-host "},
		{".api.shop.mesh", "unknown-host "},
		{"api.shop.mesh:", "unknown-host "},
		{"api.shop.mesh:080", "unknown-host "},
		{"api.shop.mesh:80:80", "unknown-host "},
		{"api.shop.mesh:65616", "unknown-host "}, // 80 modulo 65536
		{"api.shop.mesh:+80", "unknown-host "},
		{"api.shop.mesh:-1", "unknown-host "},
		{"user@api.shop.mesh", "unknown-host "},
		{"api.shop.mesh/", "unknown-host "},
		{"api.shop.mesh ", "unknown-host "},
		{"api.shop.mesh\x00", "unknown-host "},
		{"ap\u0131.shop.mesh", "unknown-host "},
		{"[::1]:80", "unknown-host "},
		{"127.0.0.1", "unknown-host "},
		{"localhost", "unknown-host "},
		{"", "unknown-host "},
		{":80", "unknown-host "},
		{strings.Repeat(long+".", 40), "unknown-host "},
	} {
		u := p.ByHost([]byte(test.host))
		if got := u.State.String() + " " + u.Authority; got != test.want {
			t.Errorf("%q: %s, want %s", test.host, got, test.want)
		}
	}
	if u := (&pipeline.Pipeline{}).ByHost([]byte("api.shop.mesh")); u.State != pipeline.NoConfig {
		t.Errorf("before the first config: %v", u.State)
	}
	if r := p.ByHost([]byte("vault.shop.mesh")).Refusal; r == nil || r.Rule != "shop/vault/default/http" || r.Origin != "mesh.cue:1" {
		t.Errorf("shop/vault is refused by %+v", r)
	}
}

func TestByName(t *testing.T) {
	p := newWorld().use(t, config())
	for _, test := range []struct {
		service mesh.ServiceName
		port    string
		want    string
	}{
		{"shop/api", "http", "known api.shop.mesh:80"},
		{"shop/api", "9000", "known api.shop.mesh:9000"},
		{"shop/api", "grpc", "unknown-port api.shop.mesh"},
		{"shop/ledger", "tcp", "pending ledger.shop.mesh:5432"},
		{"shop/nowhere", "http", "unknown-host "},
		{"", "", "unknown-host "},
	} {
		u := p.ByName(test.service, test.port)
		if got := u.State.String() + " " + u.Authority; got != test.want {
			t.Errorf("%s %s: %s, want %s", test.service, test.port, got, test.want)
		}
	}
}

func TestInboundAndRoutes(t *testing.T) {
	w := newWorld()
	p := w.use(t, config())
	http := p.InboundBySNI(spiffe.SNI("shop/web", "http"))
	if http == nil || http != p.InboundByName("http") || http.App != "127.0.0.1:18080" || p.InboundByName("open").App != "127.0.0.1:8081" {
		t.Errorf("the port http is %+v", http)
	}
	if p.InboundBySNI(spiffe.SNI("shop/api", "http")) != nil || p.InboundBySNI("") != nil || p.InboundByName("grpc") != nil {
		t.Error("a port of another service, or of none, was found")
	}
	if got, want := p.PolicyHeader("shop/web/allow/api"), commit+" shop/web/allow/api shop/web.cue:12"; got != want {
		t.Errorf("heddle-policy is %q, want %q", got, want)
	}
	if got, want := p.PolicyHeader("shop/web/default/http"), commit+" shop/web/default/http -"; got != want {
		t.Errorf("heddle-policy is %q, want %q", got, want)
	}

	u := p.ByName("shop/api", "http")
	r, ok := u.Match(&decide.Request{HTTP: true, Method: "GET", Path: "/v2/x"})
	if !ok || r.ID != "shop/api/httpRoutes/v2" || r.Upstreams[0] != p.ByName("shop/api-v2", "http") || r.Upstreams[1] != u {
		t.Errorf("the route of /v2/x is %+v, %v", r, ok)
	}
	if r, ok := u.Match(&decide.Request{HTTP: true, Method: "GET", Path: "/v1"}); ok || r != nil {
		t.Errorf("/v1 matches %+v", r)
	}
	if r, ok := p.ByName("shop/api-v2", "http").Match(&decide.Request{HTTP: true, Path: "/v1"}); !ok || r != nil {
		t.Errorf("without routes the service itself takes it: %+v, %v", r, ok)
	}
}

// TestStale: old config allows no identity; denials and what strangers may do hold.
func TestStale(t *testing.T) {
	w := newWorld()
	c := config()
	p := w.use(t, c)
	old := w.now.Add(time.Hour + time.Second)
	for _, test := range []struct {
		port, peer string
		at         time.Time
		allowed    bool
		rule       string
	}{
		{"http", apiID, w.now, true, "shop/web/allow/api"},
		{"http", apiID, w.now.Add(time.Hour), true, "shop/web/allow/api"},
		{"http", apiID, old, false, "shop/web/default/http"},
		{"http", "", old, false, "shop/web/default/http"},
		{"open", apiID, old, true, "shop/web/default/open"},
		{"open", "spiffe://shop.test/ns/shop/sa/cron", old, false, "shop/web/deny/cron"},
	} {
		v := p.Authorize(p.InboundByName(test.port), &decide.Request{Peer: test.peer, HTTP: true, Path: "/"}, test.at)
		if v.Allowed != test.allowed || v.Rule != test.rule {
			t.Errorf("%s to %s after %v: %+v, want %v by %s", test.peer, test.port, test.at.Sub(w.now), v, test.allowed, test.rule)
		}
	}
	// Without a bound in policy it is the life of the SVID.
	c.Settings = &mesh.Settings{TrustDomain: "shop.test"}
	p = w.use(t, c)
	if p.Stale(old) {
		t.Error("stale without any bound")
	}
	w.deps.Freshness.SetLifetime(time.Minute)
	if p.Stale(w.now.Add(time.Minute)) || !p.Stale(w.now.Add(time.Minute+1)) {
		t.Error("the SVID's life is not the bound")
	}
	w.deps.Freshness.Confirm(old)
	if p.Stale(old) {
		t.Error("stale although confirmed")
	}
}

// TestSwap: clusters, their pools and what was learned outlive a swap; what is gone is retired once, after the swap.
func TestSwap(t *testing.T) {
	w := newWorld()
	first := w.use(t, config())
	cl := first.ByName("shop/api", "http").Cluster
	ep := cl.Endpoints()[0]
	if len(w.pools) != 5 { // two endpoints on two ports, and one
		t.Fatalf("%d pools", len(w.pools))
	}
	tgt := ep.Pool.(*pool).Target
	want := pipeline.Target{Service: "shop/api", Port: "http", Protocol: mesh.HTTP1, SNI: spiffe.SNI("shop/api", "http"),
		Identities: []spiffe.ID{apiID}, Addr: netip.MustParseAddrPort("10.0.0.1:4143")}
	if diff := cmp.Diff(want, tgt, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("target (-want +got):\n%s", diff)
	}
	_, changed := w.Changed()
	c := config()
	c.Endpoints["shop/api"] = []balance.Address{addr("10.0.0.1:4143"), addr("10.0.0.9:4143"), addr("10.0.0.1:4143")}
	second := w.use(t, c)
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if second.ByName("shop/api", "http").Cluster != cl || cl.Endpoints()[0] != ep || cl.Len() != 2 {
		t.Error("the swap lost a cluster or an endpoint")
	}
	retired := func() (list []string) {
		for _, p := range w.pools {
			for range p.retired {
				list = append(list, fmt.Sprintf("%s:%s %s", p.Service, p.Port, p.Addr))
			}
		}
		slices.Sort(list)
		return list
	}
	if diff := cmp.Diff([]string{"shop/api:admin 10.0.0.2:4143", "shop/api:http 10.0.0.2:4143"}, retired()); diff != "" {
		t.Errorf("retired (-want +got):\n%s", diff)
	}
	// Other identities are other connections, and a service that goes takes its pools along.
	c.Outbound = []*mesh.Outbound{c.Outbound[0], out("shop/api-v2", port("http", 80, mesh.HTTP1))}
	c.Outbound[1].Identities = []string{"spiffe://shop.test/vm/9"}
	third := w.use(t, c)
	if third.ByName("shop/api-v2", "http").Cluster == second.ByName("shop/api-v2", "http").Cluster {
		t.Error("connections that proved a former identity serve on")
	}
	if got := retired(); len(got) != 3 || got[0] != "shop/api-v2:http 10.0.0.3:4143" {
		t.Errorf("retired %v", got)
	}
	// A build that is refused changes nothing.
	c.Outbound = nil
	c.Settings = nil
	if _, err := pipeline.Build(c, w.deps); err == nil || len(retired()) != 3 || w.Load() != third {
		t.Errorf("a refused config: %v, retired %v", err, retired())
	}
	w.use(t, pipeline.Config{Settings: &mesh.Settings{TrustDomain: "shop.test"}})
	if n := len(retired()); n != len(w.pools) {
		t.Errorf("%d of %d pools retired at the end", n, len(w.pools))
	}
}

func TestRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*pipeline.Config)
		want   string
	}{
		{"no trust domain", func(c *pipeline.Config) { c.Settings = &mesh.Settings{} }, "trust domain"},
		{"capability", func(c *pipeline.Config) { c.Inbound[0].Needs = []mesh.Capability{"jwt"} }, `"jwt"`},
		{"protocol in", func(c *pipeline.Config) { c.Inbound[0].Ports[0].Protocol = mesh.GRPC }, `"grpc"`},
		{"protocol out", func(c *pipeline.Config) { c.Outbound[0].Ports[0].Protocol = mesh.HTTP2 }, `"http2"`},
		{"mTLS mode", func(c *pipeline.Config) { c.Inbound[0].Ports[0].MTLS = "" }, "mTLS mode"},
		{"default", func(c *pipeline.Config) { c.Inbound[0].Ports[0].Default = "open" }, `"open"`},
		{"action", func(c *pipeline.Config) { c.Inbound[0].Rules[0].Action = "record" }, `"record"`},
		{"rule by token", func(c *pipeline.Config) { c.Inbound[0].Rules[0].JWT = &mesh.JWTMatch{Issuer: "login"} }, "which this sidecar does not have"},
		{"rule by sni", func(c *pipeline.Config) { c.Inbound[0].Rules[0].SNI = []string{"a.example"} }, "which this sidecar does not have"},
		{"rule for no network", func(c *pipeline.Config) { c.Inbound[0].Rules[0].Networks = make([]mesh.Network, 1) }, "no range"},
		{"rule for a path of no kind", func(c *pipeline.Config) { c.Inbound[0].Rules[0].Paths = []mesh.PathMatch{{Regex: "/.*"}} }, "path 0"},
		{"rule for a header of no kind", func(c *pipeline.Config) { c.Inbound[0].Rules[0].Headers = []mesh.HeaderMatch{{Name: "x", Regex: ".*"}} }, "header 0"},
		{"rule from nobody", func(c *pipeline.Config) { c.Inbound[0].Rules[0].From = nil }, "nobody"},
		{"peer of two kinds", func(c *pipeline.Config) { c.Inbound[0].Rules[0].From[0].Unauthenticated = true }, "2 fields"},
		{"rule for a port that is not", func(c *pipeline.Config) { c.Inbound[0].Rules[1].Ports = []string{"grpc"} }, `"grpc"`},
		{"rule for a route that is not", func(c *pipeline.Config) { c.Inbound[0].Rules[1].Routes = []string{"shop/web/httpRoutes/x"} }, "shop/web/httpRoutes/x"},
		{"two services", func(c *pipeline.Config) { c.Inbound = append(c.Inbound, &mesh.Inbound{Service: "shop/api"}) }, "one service"},
		{"match of no route", func(c *pipeline.Config) { c.Outbound[0].Routes = nil }, "shop/api/httpRoutes/v2"},
		{"backend without outbound", func(c *pipeline.Config) { c.Outbound = c.Outbound[:1] }, "shop/api-v2 has no outbound"},
		{"backend without port", func(c *pipeline.Config) { c.Outbound[0].Routes[0].Backends[0].Port = "grpc" }, `no port "grpc"`},
		{"twice", func(c *pipeline.Config) { c.Outbound = append(c.Outbound, c.Outbound[1]) }, "twice"},
		{"no identity", func(c *pipeline.Config) { c.Outbound[1].Identities = nil }, "no identity"},
		{"identity that is none", func(c *pipeline.Config) { c.Outbound[1].Identities = []string{"spiffe://shop.test/a//b"} }, "empty path segment"},
		{"name that is none", func(c *pipeline.Config) { c.Outbound[1].Service = "shop/API" }, "no legal name"},
		{"endpoint on port 0", func(c *pipeline.Config) { c.Endpoints["shop/api"] = []balance.Address{addr("10.0.0.1:0")} }, "10.0.0.1:0"},
		{"endpoint everywhere", func(c *pipeline.Config) { c.Endpoints["shop/api"] = []balance.Address{addr("[::]:1")} }, "[::]:1"},
	} {
		c := config()
		test.change(&c)
		if _, err := pipeline.Build(c, newWorld().deps); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %s", test.name, err, test.want)
		}
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	w := newWorld()
	p := w.use(t, config())
	host, sni := []byte("API.shop.mesh:80"), spiffe.SNI("shop/web", "http")
	r := &decide.Request{HTTP: true, Method: "GET", Path: "/v2", Peer: apiID}
	if n := testing.AllocsPerRun(100, func() {
		w.Load()
		u := p.ByHost(host)
		u.Match(r)
		p.ByName("shop/api", "80")
		p.Authorize(p.InboundBySNI(sni), r, w.now)
		p.PolicyHeader("shop/web/allow/api")
		p.Authorize(p.InboundByName("http"), r, w.now.Add(48*time.Hour))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
