package compile

import (
	"go/ast"
	goparser "go/parser"
	gotoken "go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// proofs has, for every field of the language that takes no capability, is no finding and has no other reader, the test
// that sees a program do what it says: it is compiled into something that every sidecar, or the control plane, must then
// really go by. What takes a capability has its test by proxy/pipeline's table of those.
var proofs = map[string]string{
	"Policy.mesh": "proxy/TestInboundAnswers", "Policy.services": "proxy/TestDestination", "Policy.workloads": "controlplane/enroll/TestPolicyGrants",
	"Policy.invariants": "reconciler/plan/TestInvariantsAgainstBruteForce",

	"Mesh.trustDomain": "controlplane/identity/TestSign", "Mesh.maxStale": "proxy/TestTunnelsAreJudgedAgain",
	"Defaults.inboundPolicy": "proxy/TestObserved",

	"Service.ports": "proxy/TestDestination", "Service.identities": "proxy/identity/TestHandshake", "Port.port": "proxy/TestDestination",

	"Rule.from": "proxy/TestInboundAnswers", "Rule.ports": "proxy/TestObserved",
	"From.service": "proxy/TestInboundAnswers", "From.identity": "proxy/TestInboundAnswers", "From.authenticated": "proxy/TestRules",
	"From.unauthenticated": "proxy/TestRules",

	"HTTPRoute.port": "proxy/TestDestination", "HTTPRoute.match": "proxy/TestRoutes", "HTTPRoute.backends": "proxy/TestRoutes",
	"HTTPMatch.path": "proxy/TestRoutes", "HTTPMatch.method": "proxy/TestRoutes", "HTTPMatch.headers": "proxy/TestRoutes",
	"PathMatch.exact": "proxy/TestRoutes", "PathMatch.prefix": "proxy/TestRoutes", "HeaderMatch.exact": "proxy/TestRoutes",
	"Backend.service": "proxy/TestRoutes", "Backend.port": "proxy/TestRoutes", "Backend.weight": "proxy/TestRoutes",

	"Workload.service": "controlplane/inventory/TestStaticWorkloads", "Workload.address": "controlplane/inventory/TestStaticWorkloads",
	"Workload.port": "controlplane/inventory/TestStaticWorkloads", "Workload.identity": "controlplane/enroll/TestPolicyGrants",
}

// TestEveryFieldIsProved wants a test in the tree that sees each accepted field enforced.
func TestEveryFieldIsProved(t *testing.T) {
	has := map[string]map[string]bool{}
	for f, c := range fields {
		kind, _, _ := strings.Cut(f, ".")
		if c.capability != "" || c.finding != "" || c.reader != "" || slices.Contains([]string{"Invariant", "Flow", "Caller", "Target"}, kind) {
			continue // invariants are proved as a whole
		}
		if proofs[f] == "" {
			t.Errorf("%s is compiled, and no test is named that sees it enforced", f)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(proofs)) {
		dir, name := filepath.Split(proofs[f])
		if has[dir] == nil {
			has[dir] = testsOf(t, filepath.Join("..", "..", dir))
		}
		if c, ok := fields[f]; !ok || c.capability != "" || c.finding != "" || c.reader != "" {
			t.Errorf("%s needs no proof here", f)
		}
		if !has[dir][name] {
			t.Errorf("%s: there is no %s in %s", f, name, dir)
		}
	}
}

func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	for _, name := range files {
		file, err := goparser.ParseFile(gotoken.NewFileSet(), name, nil, goparser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				found[f.Name.Name] = true
			}
		}
	}
	return found
}

// TestRefusedEverywhere writes what this version does not enforce wherever the language has a place for it, and wants it
// refused there, also where no service goes by it: it would hold for the next one.
func TestRefusedEverywhere(t *testing.T) {
	routes := []string{
		`services: shop: web: httpRoutes: new: {port: "http", %}`,
		`services: shop: web: httpRoutes: new: {port: "http", match: [{path: prefix: "/x"}], %}`,
		`namespaces: other: calls: "shop/web": httpRoutes: new: {port: "http", %}`,
	}
	levels := []string{
		`mesh: defaults: %`, `namespaces: shop: defaults: %`, `namespaces: none: defaults: %`, `services: shop: web: defaults: %`,
		// Overridden by all that there is.
		`mesh: defaults: %
			namespaces: shop: defaults: {timeout: "1s"}`,
	}
	for _, c := range []struct {
		set    string
		places []string
		cap    mesh.Capability
	}{
		{`responseTimeout: "1s"`, slices.Concat(levels, routes), mesh.CapResponseTimeout},
		{`idleTimeout: "1s"`, slices.Concat(levels, routes), mesh.CapIdleTimeout},
		{`retry: {}`, slices.Concat(levels, routes), mesh.CapRetry},
		{`breaker: consecutive: 3`, slices.Concat(levels, routes), mesh.CapBreaker},
		{`rateLimit: total: 3`, slices.Concat(levels, routes[:2], []string{`services: shop: web: ports: http: %`}), mesh.CapRateLimit},
		{`balancer: {policy: "consistent-hash", hash: source: true}`, levels, mesh.CapHash},
		{`balancer: warmup: "1m"`, levels, mesh.CapWarmUp},
		{`limits: connections: 3`, levels, mesh.CapLimits},
		{`limits: pending: 3`, levels, mesh.CapLimits},
		{`protocol: "http2"`, slices.Concat(levels[:3], []string{`services: shop: api: ports: http: %`}), mesh.CapHTTP2},
		{`egressPolicy: "allow"`, levels[:3], mesh.CapEgress},
		{`filters: [{requestHeaders: set: a: "b"}]`, slices.Concat(routes, []string{
			`services: shop: web: httpRoutes: new: {port: "http", backends: [{service: "shop/api", port: "http", %}]}`}), mesh.CapFilterHeaders},
		{`filters: [{mirror: service: "shop/api"}]`, routes, mesh.CapFilterMirror},
	} {
		if slices.Contains(mesh.Enforced, c.cap) {
			continue // and nothing is refused any more
		}
		for _, place := range c.places {
			policy := strings.ReplaceAll(place, "%", c.set)
			_, _, findings := Compile(parse(t, map[string]string{"0.cue": base, "1.cue": policy}), Options{})
			if !slices.ContainsFunc(findings.Errors(), func(f diag.Finding) bool { return f.ID == diag.NotEnforced && f.Pos.File == "1.cue" }) {
				t.Errorf("%s is accepted: %v", policy, findings)
			}
		}
	}
}
