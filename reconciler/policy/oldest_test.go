package policy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// said is a line with words of the schema's own.
var said = regexp.MustCompile(`^\S.*: (?:want|weights|unknown top-level) .*:$`)

// TestRulesWithTheOldestCUE runs the archives of testdata/rules through the oldest stock CLI that policy repositories may
// use: it refuses what the newest one refuses, and says all that the schema has words for. (It tells fewer positions, and
// words of CUE's own differ.) It accepts what uses the whole language.
func TestRulesWithTheOldestCUE(t *testing.T) {
	find := exec.Command("go", "tool", "-n", "cue")
	find.Dir = filepath.Join("..", "..", "tools", "oldest")
	out, err := find.Output()
	if err != nil {
		if os.Getenv("HEDDLE_REQUIRE_CUE") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: the oldest cue CLI could not be built: %v", err)
	}
	exe := strings.TrimSpace(string(out))
	dir := t.TempDir()
	writeFiles(t, dir, repository(map[string][]byte{"mesh.cue": []byte(wholeMesh), "services/shop/all.cue": []byte(wholeNamespace)}))
	for _, exe := range []string{requireCUE(t), exe} {
		if out, ok := vet(t, exe, dir); !ok || out != "" {
			t.Fatalf("%s, of a repository without a fault:\n%s", exe, out)
		}
	}
	archives, err := filepath.Glob("testdata/rules/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("no archives", err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string][]byte{}, ""
			for _, f := range a.Files {
				switch f.Name {
				case "findings":
				case "vet":
					want = string(f.Data)
				default:
					files[f.Name] = f.Data
				}
			}
			dir := t.TempDir()
			writeFiles(t, dir, repository(files))
			got, ok := vet(t, exe, dir)
			if ok != (want == "") {
				t.Errorf("the newest CLI says %q; the oldest:\n%s", want, got)
			}
			for line := range strings.Lines(want) {
				if said.MatchString(line) && !strings.Contains(got, strings.TrimSuffix(line, "\n")) {
					t.Errorf("it does not say %q:\n%s", line, got)
				}
			}
		})
	}
}

// wholeMesh and wholeNamespace use the whole language without a fault: every field that a rule of the schema looks at.
const wholeMesh = `package policy

import "github.com/heddle-mesh/heddle/schema/v1alpha1"

v1alpha1.#Repository

mesh: {
	trustDomain: "shop.example"
	environments: ["staging"]
	defaults: {
		inboundPolicy: "deny", mtls: "strict", protocol: "http1", timeout: "15s", responseTimeout: "10s", idleTimeout: "1m"
		retry: {retries: 2, on: ["5xx", "500-504", "unavailable"], timeout: "1s", backoff: {min: "25ms", max: "250ms"}, budget: percent: 20}
		balancer: {policy: "consistent-hash", hash: header: "x-user", warmup: "10s"}
		breaker: {consecutive: 5, successRate: 90, penalty: {min: "1s", max: "1m"}, ejectionFloor: 50}
		limits: {connections: 100, requests: 1000, pending: 10}
		rateLimit: {total: 100, overrides: [{from: [{service: "shop/web"}], requestsPerSecond: 10}]}
	}
	mandates: {mtls: "strict", inboundPolicy: "deny", egressPolicy: "deny", maxTimeout: "60s", maxRetries: 3, exempt: ["shop/web"]}
	clusterNetworks: ["10.0.0.0/8"]
	opaquePorts: [25]
	skipPorts: inbound: [4567]
	telemetry: {labels: ["route"], tracing: 0.1, accessLog: "json"}
	rollout: {strategy: "staged", steps: [10, 50, 100], halt: {nacks: 1, denials: 0.5}}
	sources: team: {repository: "https://git.example/team/policy", ref: "main", namespaces: ["pay-*"], kinds: ["services"]}
	sources: dir: {directory: "team", namespaces: ["ops"]}
	jwtIssuers: login: {issuer: "https://login.example", audiences: ["shop"], jwksURL: "https://login.example/keys"}
}

invariants: {
	"dev never reaches pci": never: {from: namespace: "dev", to: namespace: "pci"}
	"only the web": only: {from: services: ["shop/web"], to: {service: "shop/api", ports: ["http"], methods: ["GET"], paths: [{prefix: "/a"}, {template: "/u/{id}"}]}}
	"only pay": only: {from: authenticated: true, to: services: ["shop/api", "shop/web"]}
	"strangers": never: {from: unauthenticated: true, to: {service: "shop/api", paths: [{exact: "/admin"}]}}
	"nobody": never: {from: anyone: true, to: {service: "shop/api", paths: [{exact: "/debug"}]}}
	"always": {always: "mtls", to: namespace: "shop"}
	"everywhere": always: "mtls"
}
`

const wholeNamespace = `package policy

namespaces: shop: {
	defaults: timeout: "5s"
	calls: "pay/api": httpRoutes: all: {backends: [{service: "pay/api"}], retry: retries: 1}
}

services: shop: api: {
	ports: {
		http: {port: 80, protocol: "http1", mtls: "permissive", inboundPolicy: "cluster-authenticated", rateLimit: perIdentity: 5}
		grpc: {port: 81, protocol: "grpc"}
		tls: {port: 443, protocol: "tls"}
		tcp: {port: 5432, protocol: "tcp"}
	}
	identities: ["spiffe://shop.example/ns/shop/sa/api"]
	selector: app: "api"
	allow: a: {
		from: [{service: "shop/web"}, {namespace: "pay"}, {identityPrefix: "spiffe://shop.example/ns/pay/"}, {identitySuffix: "/sa/web"}, {authenticated: true}]
		networks: [{cidr: "10.0.0.0/8", except: ["10.1.0.0/16"]}]
		ports: ["http"], routes: ["items"], methods: ["GET"], paths: [{exact: "/a"}, {prefix: "/b"}, {template: "/u/{id}"}]
		headers: {"x-a": exact: "1", "x-b": oneOf: ["1", "2"], "x-c": present: true}
		jwt: {issuer: "login", claims: groups: ["admin"]}
		until: "2036-12-31T23:59:59Z"
		enforce: false
	}
	deny: b: {from: [{unauthenticated: true}], ports: ["tls"], sni: ["*.example.com"]}
	audit: c: from: [{identity: "spiffe://shop.example/ns/ops/sa/console"}]
	httpRoutes: items: {
		port: "http"
		match: [{path: prefix: "/items", method: "GET", headers: "x-a": exact: "1", query: q: regex: ".*"}, {path: regex: "/r.*"}]
		backends: [
			{service: "shop/api", weight: 90, filters: [{requestHeaders: set: "x-v": "1"}, {responseHeaders: remove: ["x-w"]}]},
			{service: "shop/api-v2", port: "http", weight: 10},
		]
		timeout: "2s"
		retry: {retries: 2, backoff: {min: "1ms", max: "2ms"}, idempotent: true}
		filters: [
			{rewrite: {host: "a.example", path: prefix: "/x"}},
			{mirror: {service: "shop/api-v2", percent: 1.5}},
			{cors: {allowOrigins: ["https://shop.example"], allowCredentials: true}},
			{fault: {delay: {duration: "1s", percent: 1}, abort: {status: 503, percent: 1}}},
		]
		rateLimit: total: 10
		breaker: consecutive: 3
	}
	httpRoutes: gone: filters: [{redirect: {scheme: "https", path: full: "/new", status: 301}}]
	httpRoutes: said: filters: [{respond: {status: 200, body: "ok"}}]
	grpcRoutes: orders: {match: [{service: "shop.v1.Orders", method: "Get", headers: "x-a": exact: "1"}], backends: [{service: "shop/api"}]}
	tlsRoutes: out: {hostnames: ["*.example.com"], backends: [{service: "shop/api"}]}
	tcpRoutes: db: {backends: [{service: "shop/api"}], idleTimeout: "1h"}
}

workloads: shop: "api-1": {service: "api", address: "192.0.2.1", port: 4143, labels: app: "api", weight: 50, zone: "a"}
groups: shop: fleet: {service: "api", max: 10}
egress: shop: stripe: {hosts: ["*.stripe.com"], networks: [{cidr: "192.0.2.0/24"}], ports: [443], services: ["api"], protocol: "tls"}
tests: "web reads": {from: "shop/web", to: "shop/api:http", method: "GET", path: "/items", query: q: "1", headers: a: "b", jwt: login: groups: ["admin"], expect: "allow", route: "items", backends: ["shop/api"]}
tests: "a connection": {from: "-", to: "shop/api:tcp", address: "10.0.0.1", at: "2030-01-01T00:00:00Z", expect: "deny"}
`
