package compile

import (
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// base is policy that every case of TestEveryField adds to.
const base = `
mesh: trustDomain: "corp.example"
services: shop: {
	web: {
		ports: {http: {port: 80, protocol: "http1"}, tcp: {port: 81, protocol: "tcp"}}
		allow: api: from: [{service: "shop/api"}]
		httpRoutes: cart: {port: "http", match: [{path: prefix: "/cart"}]}
	}
	api: ports: {http: port: 80, alt: port: 81}
}
`

const (
	addRoute = `services: shop: web: httpRoutes: new: {port: "http", `
	addMatch = addRoute + `match: [{`
	addRule  = `services: shop: web: allow: new: {from: [{authenticated: true}], `
	addFrom  = `services: shop: web: allow: new: from: [{`
)

// fields has, for every field of the language, policy that sets it and what becomes of it: "" for a field that is
// compiled (what it says changes the mesh), or the finding that must name it. before is policy that the field is added
// to where base does not do.
var fields = map[string]struct{ before, set, finding string }{
	"Policy.mesh":       {set: `mesh: maxStale: "1h"`},
	"Policy.namespaces": {before: `mesh: {}`, set: `namespaces: shop: defaults: mtls: "permissive"`},
	"Policy.services":   {set: `services: shop: new: ports: {}`},
	"Policy.workloads":  {set: `workloads: shop: w: service: "web"`},

	"Mesh.trustDomain": {before: `mesh: trustDomain: "a.example"`, set: `mesh: trustDomain: "b.example"`},
	"Mesh.defaults":    {set: `mesh: defaults: timeout: "1s"`},
	"Mesh.mandates":    {before: `mesh: defaults: mtls: "permissive"`, set: `mesh: mandates: mtls: "strict"`, finding: diag.MandateMTLS},
	"Mesh.maxStale":    {set: `mesh: maxStale: "1h"`},

	"Namespace.defaults": {set: `namespaces: shop: defaults: timeout: "1s"`},

	"Defaults.inboundPolicy": {set: `services: shop: web: defaults: inboundPolicy: "all-authenticated"`},
	"Defaults.mtls":          {set: `services: shop: web: defaults: mtls: "permissive"`},
	"Defaults.timeout":       {set: `services: shop: web: defaults: timeout: "1s"`},

	"Mandates.mtls":          {before: `mesh: defaults: mtls: "permissive"`, set: `mesh: mandates: mtls: "strict"`, finding: diag.MandateMTLS},
	"Mandates.inboundPolicy": {before: `mesh: defaults: inboundPolicy: "all-authenticated"`, set: `mesh: mandates: inboundPolicy: "deny"`, finding: diag.MandatePolicy},
	"Mandates.maxTimeout":    {set: `mesh: mandates: maxTimeout: "1s"`, finding: diag.MandateTimeout},
	"Mandates.exempt": {before: `mesh: mandates: mtls: "strict"
		services: shop: api: defaults: mtls: "permissive"`, set: `mesh: mandates: exempt: ["shop/api"]`},

	"Service.ports":      {set: `services: shop: web: ports: new: port: 82`},
	"Service.identities": {set: `services: shop: web: identities: ["spiffe://corp.example/x"]`},
	"Service.allow":      {set: addRule + `}`},
	"Service.deny":       {set: `services: shop: web: deny: new: from: [{authenticated: true}]`},
	"Service.httpRoutes": {set: addRoute + `match: [{path: prefix: "/x"}]}`},
	"Service.defaults":   {set: `services: shop: web: defaults: timeout: "1s"`},

	"Port.port":          {before: `services: shop: web: ports: new: port: 82`, set: `services: shop: web: ports: new: port: 83`},
	"Port.protocol":      {set: `services: shop: api: ports: http: protocol: "http1"`},
	"Port.mtls":          {set: `services: shop: web: ports: http: mtls: "permissive"`},
	"Port.inboundPolicy": {set: `services: shop: web: ports: http: inboundPolicy: "all-authenticated"`},

	"Rule.from":    {before: addFrom + `authenticated: true}]`, set: addFrom + `service: "shop/web"}]`},
	"Rule.ports":   {before: addRule + `}`, set: `services: shop: web: allow: new: ports: ["http"]`},
	"Rule.routes":  {before: addRule + `}`, set: `services: shop: web: allow: new: routes: ["cart"]`},
	"Rule.until":   {before: addRule + `}`, set: `services: shop: web: allow: new: until: "2030-01-01T00:00:00Z"`, finding: diag.NotEnforced},
	"Rule.enforce": {before: addRule + `}`, set: `services: shop: web: allow: new: enforce: false`, finding: diag.NotEnforced},

	"From.service":         {set: addFrom + `service: "shop/web"}]`},
	"From.identity":        {set: addFrom + `identity: "spiffe://corp.example/x"}]`},
	"From.authenticated":   {set: addFrom + `authenticated: true}]`},
	"From.unauthenticated": {before: `services: shop: web: defaults: mtls: "permissive"`, set: addFrom + `unauthenticated: true}]`},

	"HTTPRoute.port":     {before: `services: shop: api: httpRoutes: new: port: "http"`, set: `services: shop: api: httpRoutes: new: port: "alt"`},
	"HTTPRoute.match":    {before: addRoute + `timeout: "1s"}`, set: addRoute + `match: [{method: "GET"}]}`},
	"HTTPRoute.backends": {before: addRoute + `timeout: "1s"}`, set: addRoute + `backends: [{service: "shop/api"}]}`},
	"HTTPRoute.timeout":  {before: addRoute + `match: [{method: "GET"}]}`, set: addRoute + `timeout: "1s"}`},
	"HTTPRoute.retry":    {before: addRoute + `match: [{method: "GET"}]}`, set: addRoute + `retry: {}}`, finding: diag.NotEnforced},
	"HTTPRoute.filters":  {before: addRoute + `match: [{method: "GET"}]}`, set: addRoute + `filters: [{}]}`, finding: diag.NotEnforced},

	"HTTPMatch.path":    {before: addMatch + `}]}`, set: addMatch + `path: prefix: "/x"}]}`},
	"HTTPMatch.method":  {before: addMatch + `}]}`, set: addMatch + `method: "GET"}]}`},
	"HTTPMatch.headers": {before: addMatch + `}]}`, set: addMatch + `headers: x: exact: "1"}]}`},

	"PathMatch.exact":  {before: addMatch + `}]}`, set: addMatch + `path: exact: "/x"}]}`},
	"PathMatch.prefix": {before: addMatch + `}]}`, set: addMatch + `path: prefix: "/x"}]}`},
	"PathMatch.regex":  {before: addMatch + `}]}`, set: addMatch + `path: regex: "x"}]}`, finding: diag.NotEnforced},

	"HeaderMatch.exact": {before: addMatch + `headers: x: exact: "1"}]}`, set: addMatch + `headers: x: exact: "2"}]}`},
	"HeaderMatch.regex": {before: addMatch + `}]}`, set: addMatch + `headers: x: regex: "2"}]}`, finding: diag.NotEnforced},

	"Backend.service": {before: addRoute + `backends: [{service: "shop/web"}]}`, set: addRoute + `backends: [{service: "shop/api"}]}`},
	"Backend.port":    {before: addRoute + `backends: [{service: "shop/api"}]}`, set: addRoute + `backends: [{service: "shop/api", port: "alt"}]}`},
	"Backend.weight": {before: addRoute + `backends: [{service: "shop/api", weight: 50}, {service: "shop/web", weight: 50}]}`,
		set: addRoute + `backends: [{service: "shop/api", weight: 40}, {service: "shop/web", weight: 60}]}`},

	"Retry.retries": {before: addMatch + `method: "GET"}]}`, set: addRoute + `retry: retries: 2}`, finding: diag.NotEnforced},
	"Retry.on":      {before: addMatch + `method: "GET"}]}`, set: addRoute + `retry: on: ["5xx"]}`, finding: diag.NotEnforced},

	"HTTPFilter.requestHeaders":  {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{requestHeaders: a: "b"}]}`, finding: diag.NotEnforced},
	"HTTPFilter.responseHeaders": {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{responseHeaders: a: "b"}]}`, finding: diag.NotEnforced},
	"HTTPFilter.redirect":        {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{redirect: "/x"}]}`, finding: diag.NotEnforced},
	"HTTPFilter.rewrite":         {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{rewrite: "/x"}]}`, finding: diag.NotEnforced},
	"HTTPFilter.mirror":          {before: addMatch + `method: "GET"}]}`, set: addRoute + `filters: [{mirror: "shop/api"}]}`, finding: diag.NotEnforced},

	"Workload.service": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: service: "api"`},
	"Workload.address": {before: `workloads: shop: w: service: "web"`, set: `workloads: shop: w: address: "10.0.0.1"`},
	"Workload.port":    {before: `workloads: shop: w: {service: "web", address: "10.0.0.1"}`, set: `workloads: shop: w: port: 1`},
	"Workload.identity": {before: `services: shop: web: identities: ["spiffe://corp.example/x", "spiffe://corp.example/y"]
		workloads: shop: w: {service: "web", identity: "spiffe://corp.example/x"}`,
		set: `workloads: shop: w: identity: "spiffe://corp.example/y"`},
}

// TestEveryField walks the language's Go types and wants each field either to change what is compiled or to be refused,
// by name. A field added to types.cue fails here until the compiler knows it: nothing is ignored in silence.
func TestEveryField(t *testing.T) {
	known := languageFields(reflect.TypeFor[v1alpha1.Policy]())
	for _, f := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, f) {
			t.Errorf("%s is not a field of the language any more; delete its case", f)
		}
	}
	for _, f := range known {
		c, ok := fields[f]
		if !ok {
			t.Errorf("%s is a new field: compile it or refuse it, and say here how it shows", f)
			continue
		}
		t.Run(f, func(t *testing.T) {
			before := outcome(t, map[string]string{"0.cue": base, "1.cue": c.before})
			after := outcome(t, map[string]string{"0.cue": base, "1.cue": c.before, "2.cue": c.set})
			if c.finding == "" && (after == before || strings.Contains(after, "HDL")) {
				t.Errorf("setting the field changes nothing, or is refused:\n%s", after)
			}
			if c.finding == "" {
				return
			}
			if strings.Contains(before, "HDL") || !strings.Contains(after, "["+c.finding+"]") {
				t.Errorf("want %s; before:\n%s\nafter:\n%s", c.finding, before, after)
			}
			if name := f[strings.IndexByte(f, '.')+1:]; c.finding == diag.NotEnforced &&
				!strings.Contains(after, name) && !strings.Contains(after, ".retry: ") && !strings.Contains(after, ".filters: ") {
				t.Errorf("the finding does not name the field: %s", after)
			}
		})
	}
}

// outcome is all that is seen of a compilation: the mesh, or the findings.
func outcome(t *testing.T, files map[string]string) string {
	t.Helper()
	m, _, findings := Compile(parse(t, files), Options{})
	if len(findings.Errors()) > 0 {
		return findings.Error()
	}
	return string(mesh.Canonical(m))
}

// languageFields lists "Type.field" for all structs that a type reaches.
func languageFields(t reflect.Type) (out []string) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			if seen[t] {
				return
			}
			seen[t] = true
			for f := range t.Fields() {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				out = append(out, t.Name()+"."+name)
				walk(f.Type)
			}
		}
	}
	walk(t)
	return out
}

// TestEveryValue wants each value of the language's enumerations either compiled or refused as not enforced, and never
// to be unknown to the compiler.
func TestEveryValue(t *testing.T) {
	types := string(v1alpha1.Files()["types.cue"])
	for _, c := range []struct {
		typ, set string
		least    int
	}{
		{"Protocol", "services: shop: api: ports: http: protocol: ", 7},
		{"MTLS", "services: shop: api: ports: http: mtls: ", 2},
		{"InboundPolicy", "services: shop: api: ports: http: inboundPolicy: ", 6},
	} {
		line := regexp.MustCompile(`(?m)^#` + c.typ + `: (("[a-z0-9-]+"|[ |])+)`).FindStringSubmatch(types)
		if line == nil {
			t.Fatalf("types.cue has no #%s", c.typ)
		}
		values := regexp.MustCompile(`"[^"]*"`).FindAllString(line[1], -1)
		if len(values) < c.least {
			t.Errorf("#%s has only %s", c.typ, values)
		}
		for _, v := range values {
			_, _, findings := Compile(parse(t, map[string]string{"0.cue": base, "1.cue": c.set + v}), Options{})
			for _, f := range findings.Errors() {
				if f.ID != diag.NotEnforced {
					t.Errorf("%s%s: %s", c.set, v, f)
				}
			}
		}
	}
}

// TestEnforcedTable wants the two tables of what sidecars enforce to agree, and an older sidecar to be spared what it
// lacks.
func TestEnforcedTable(t *testing.T) {
	for _, p := range protocols {
		lacks := slices.ContainsFunc(carried[p], func(c mesh.Capability) bool { return !slices.Contains(mesh.Enforced, c) })
		if enforced := slices.Contains(mesh.EnforcedProtocols, p); enforced == lacks || len(carried[p]) == 0 {
			t.Errorf("protocol %s is enforced: %v; it needs %v", p, enforced, carried[p])
		}
	}
	doc := parse(t, map[string]string{"0.cue": base, "1.cue": `
		services: shop: web: {
			ports: http: mtls: "permissive"
			defaults: timeout: "1s"
			allow: l7: {from: [{authenticated: true}], routes: ["cart"]}
		}`})
	if _, _, findings := Compile(doc, Options{}); len(findings.Errors()) > 0 {
		t.Fatal(findings)
	}
	for _, cap := range []mesh.Capability{mesh.CapRoute, mesh.CapTimeout, mesh.CapAuthorize, mesh.CapAuthorizeL7, mesh.CapPermissive} {
		old := slices.DeleteFunc(slices.Clone(mesh.Enforced), func(c mesh.Capability) bool { return c == cap })
		m, _, findings := newCompiler(doc, Options{}, gateOf("0.0.1", old)).run()
		if m != nil || len(findings.Errors()) == 0 {
			t.Errorf("a sidecar without %s was given the policy", cap)
		}
		for _, f := range findings.Errors() {
			if f.ID != diag.NotEnforced || !strings.Contains(f.Message, "heddle-proxy 0.0.1") || f.Pos.IsZero() {
				t.Errorf("without %s: %s", cap, f)
			}
		}
	}
	if _, _, findings := Compile(doc, Options{ProxyVersion: "0.0.1"}); len(findings) != 1 || findings[0].ID != diag.NotEnforced {
		t.Errorf("a version that is not known: %v", findings)
	}
}

// TestEveryFinding wants each ID of compile's own (03xx, 04xx, 05xx) in a golden archive.
func TestEveryFinding(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range archives {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			if f.Name == "findings" {
				all.Write(f.Data)
			}
		}
	}
	for _, c := range diag.Catalogue {
		if c.ID >= "HDL0300" && c.ID < "HDL0600" && !strings.Contains(all.String(), "["+c.ID+"]") {
			t.Errorf("no archive of testdata has %s (%s)", c.ID, c.Title)
		}
	}
}

// TestHeadersOfSidecars: a condition on what the sidecars themselves write or take off would never match a mesh peer, and
// match whatever a stranger claims.
func TestHeadersOfSidecars(t *testing.T) {
	for name, refused := range map[string]bool{
		"heddle-client-id": true, "Heddle_Client_Id": true, "X-Forwarded-Client-Cert": true, "Connection": true,
		"transfer-encoding": true, "upgrade": true, "host": false, "x-tenant": false, "authorization": false,
	} {
		_, _, all := Compile(parse(t, map[string]string{"base.cue": base, "set.cue": addMatch + `headers: "` + name + `": exact: "1"}]}`}), Options{})
		findings := all.Errors()
		if got := len(findings) == 1 && findings[0].ID == diag.WrongValue; got != refused || !refused && len(findings) > 0 {
			t.Errorf("%s: refused is %v, want %v: %v", name, got, refused, findings)
		}
	}
}
