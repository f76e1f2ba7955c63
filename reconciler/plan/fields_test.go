package plan

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// TestEveryField changes each field of a mesh that says something everywhere, one at a time: each is in the plan. Fields
// that name things, or follow from others, change no behaviour.
func TestEveryField(t *testing.T) {
	quiet := func(path string) bool {
		for _, end := range []string{
			".ID", ".DefaultID", ".Route", ".Name", ".Service", // names: a mesh whose parts do not agree on them is none
			".Needs[0]", ".Routes[0].Port", ".Routes[1].Port", ".Routes[2].Port", // follow from the rest
		} {
			if strings.HasSuffix(path, end) {
				return true
			}
		}
		for _, begin := range []string{
			".Outbound[0].Identities", ".Outbound[1].Identities", ".Outbound[0].Ports[0].P", ".Outbound[1].Ports[0].P", ".Outbound[1].Consumers[0].Ports[0].P", // are the inbound's
			".Inbound[1].Ports[0].Default",                          // of a port that allow rules guard
			".Inbound[1].Routes[0].GRPC", ".Inbound[1].Routes[0].T", // are the outbound's
			".Outbound[1].Routes[0].GRPC", ".Outbound[1].Routes[0].T", // of a route that is answered at once
			".Outbound[1].Routes[2].GRPC", ".Outbound[1].Routes[2].T", // likewise
			".Outbound[1].Consumers[0].Routes[0].Backends[0].Weight", // of one backend
		} {
			if strings.HasPrefix(path, begin) {
				return true
			}
		}
		return false
	}
	checked := 0
	each(reflect.ValueOf(full()).Elem(), "", func(path string, change func(reflect.Value)) {
		if quiet(path) {
			return
		}
		m := full()
		v := reflect.ValueOf(m).Elem()
		at(v, path, change)
		checked++
		if p := Compare(&Side{Mesh: full()}, &Side{Mesh: m}, Options{Now: authorNow}); p.Empty() && len(p.Refused) == 0 {
			t.Errorf("%s: no line", path)
		}
	})
	if checked < 180 {
		t.Errorf("only %d fields", checked)
	}
}

// each yields the path of each plain field below a value, and how to change it.
func each(v reflect.Value, path string, yield func(string, func(reflect.Value))) {
	switch v.Interface().(type) {
	case netip.Prefix:
		yield(path, func(v reflect.Value) { v.Set(reflect.ValueOf(netip.MustParsePrefix("203.0.113.0/25"))) })
		return
	case time.Time:
		yield(path, func(v reflect.Value) { v.Set(reflect.ValueOf(v.Interface().(time.Time).Add(time.Hour))) })
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			each(v.Elem(), path, yield)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			each(v.Field(i), path+"."+v.Type().Field(i).Name, yield)
		}
	case reflect.Slice:
		for i := range v.Len() {
			each(v.Index(i), fmt.Sprintf("%s[%d]", path, i), yield)
		}
	case reflect.Map:
		yield(path, func(v reflect.Value) { v.Set(reflect.ValueOf(map[string]string{"other": "label"})) })
	case reflect.String:
		if v.String() != "" {
			yield(path, func(v reflect.Value) { v.SetString(another(v)) })
		}
	case reflect.Bool:
		yield(path, func(v reflect.Value) { v.SetBool(!v.Bool()) })
	case reflect.Int64:
		yield(path, func(v reflect.Value) { v.SetInt(v.Int() + 1) })
	case reflect.Uint16, reflect.Uint32:
		yield(path, func(v reflect.Value) { v.SetUint(v.Uint() + 1) })
	}
}

// another is another value of the same kind of text.
func another(v reflect.Value) string {
	switch mesh := v.Interface().(type) {
	case mesh.Protocol, mesh.Action, mesh.InboundMode, mesh.MTLSMode:
		return map[string]string{"http1": "detect", "tcp": "opaque", "deny": "allow", "allow": "deny", "audit": "all-authenticated", "strict": "permissive", "permissive": "strict",
			"cluster-authenticated": "deny", "tls": "tcp"}[fmt.Sprint(mesh)]
	}
	return v.String() + "x"
}

// at changes what a path of each leads to.
func at(v reflect.Value, path string, change func(reflect.Value)) {
	for path != "" {
		v = reflect.Indirect(v)
		switch path[0] {
		case '.':
			end := strings.IndexAny(path[1:], ".[") + 1
			if end == 0 {
				end = len(path)
			}
			v, path = v.FieldByName(path[1:end]), path[end:]
		case '[':
			var i int
			fmt.Sscanf(path, "[%d]", &i)
			v, path = v.Index(i), path[strings.IndexByte(path, ']')+1:]
		}
	}
	change(reflect.Indirect(v))
}

// full is a mesh in which every field that can be set in one mesh is.
func full() *mesh.Mesh {
	const web, db = mesh.ServiceName("s/web"), mesh.ServiceName("s/db")
	id := func(n mesh.ServiceName) []string { return []string{"spiffe://mesh.example/ns/s/sa/" + n.Local()} }
	retry := &mesh.Retry{Tries: 1, Statuses: []mesh.StatusRange{{From: 500, To: 599}}, GRPC: []uint32{14}, Timeout: 1, BackoffMin: 1, BackoffMax: 2, Budget: 3, MinPerSecond: 4, Window: 5}
	breaker := func() *mesh.Breaker {
		return &mesh.Breaker{Consecutive: 1, SuccessRate: 2, Window: 3, MinRequests: 4, PenaltyMin: 5, PenaltyMax: 6, EjectionFloor: 7}
	}
	limit := func() *mesh.RateLimit {
		return &mesh.RateLimit{Total: 1, PerIdentity: 2, Overrides: []mesh.RateOverride{{From: []mesh.Peer{{Identity: id(db)[0]}}, RequestsPerSecond: 3}}}
	}
	everyone := []mesh.Peer{{Authenticated: true}}
	filters := []mesh.Filter{
		{RequestHeaders: &mesh.HeaderEdit{Remove: []string{"a"}, Set: []mesh.HeaderField{{Name: "b", Value: "1"}}, Add: []mesh.HeaderField{{Name: "c", Value: "1"}}}},
		{ResponseHeaders: &mesh.HeaderEdit{Remove: []string{"a"}, Set: []mesh.HeaderField{{Name: "b", Value: "1"}}}},
		{Rewrite: &mesh.Rewrite{Host: "h", Path: mesh.PathEdit{Prefix: "/q"}}}, {Mirror: &mesh.Mirror{Service: db, Port: "http", Share: 1000}},
		{CORS: &mesh.CORS{AllowOrigins: []string{"o"}, AllowMethods: []string{"GET"}, AllowHeaders: []string{"h"}, ExposeHeaders: []string{"e"}, AllowCredentials: true, MaxAge: 1}},
		{Fault: &mesh.Fault{Delay: 1, DelayShare: 2, Abort: 500, AbortShare: 3}},
	}
	route := mesh.Route{ID: "s/web/httpRoutes/r", Port: "http", Backends: []mesh.Backend{{Service: web, Port: "http", Weight: 60}, {Service: db, Port: "http", Weight: 40}},
		Timeouts: mesh.Timeouts{Request: 1, Response: 2, Idle: 3}, Retry: retry, Filters: filters, Breaker: breaker()}
	redirect := mesh.Route{ID: "s/web/httpRoutes/to", Port: "http", Filters: []mesh.Filter{{Redirect: &mesh.Redirect{Scheme: "https", Host: "h", Port: 1, Path: mesh.PathEdit{Full: "/f"}, Status: 302}}}}
	respond := mesh.Route{ID: "s/web/httpRoutes/by", Port: "http", Filters: []mesh.Filter{{Respond: &mesh.DirectResponse{Status: 404, Body: "b"}}}}
	mine := mesh.Route{ID: "c/calls/s/web/httpRoutes/r", Port: "http", Backends: []mesh.Backend{{Service: db, Port: "http", Weight: 100}}}
	matches := []mesh.Match{
		{Route: route.ID, Path: mesh.PathMatch{Prefix: "/p"}, Method: "GET", Headers: []mesh.HeaderMatch{{Name: "x", Exact: "1"}}, Query: []mesh.HeaderMatch{{Name: "q", Exact: "1"}}},
		{Route: redirect.ID, Path: mesh.PathMatch{Exact: "/to"}}, {Route: respond.ID, Path: mesh.PathMatch{Exact: "/by"}}, {Route: route.ID},
	}
	weight := uint32(3)
	return &mesh.Mesh{
		Settings: mesh.Settings{TrustDomain: "mesh.example", MaxStale: 1, ClusterNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, OpaquePorts: []uint16{1}, SkipInbound: []uint16{2}, SkipOutbound: []uint16{3},
			Telemetry:  mesh.Telemetry{Labels: []string{"l"}, MaxSeries: 1, Tracing: 2, AccessLog: "json"},
			Rollout:    mesh.Rollout{Steps: []mesh.PPM{1, mesh.AllPPM - 1}, Pause: 1, HaltNacks: 2, HaltDenials: 3, HaltFailures: 4},
			JWTIssuers: []mesh.JWTIssuer{{Name: "idp", Issuer: "i", Audiences: []string{"a"}, URL: "https://u", Header: "h"}}},
		Inbound: []mesh.Inbound{
			{Service: db, Identities: id(db), Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Permissive, Default: mesh.ClusterAuthenticated, DefaultID: "s/db/default/http"}},
				ClusterNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Selector: map[string]string{"app": "db"}, MaxConnections: 1, MaxRequests: 2},
			{Service: web, Identities: id(web), Routes: []mesh.Route{{ID: route.ID, RateLimit: limit()}},
				Ports: []mesh.InboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, MTLS: mesh.Strict, Default: mesh.Deny, DefaultID: "s/web/default/http", CanonicalPaths: true, Matches: matches, RateLimit: limit()}},
				Rules: []mesh.Rule{
					{ID: "s/web/allow/all", Action: mesh.Allow, From: everyone, Routes: []string{route.ID}, Until: authorNow.Add(time.Hour)},
					{ID: "s/web/allow/some", Action: mesh.Allow, From: []mesh.Peer{{Identity: id(db)[0]}}, Ports: []string{"http"}, Methods: []string{"POST"}, Paths: []mesh.PathMatch{{Template: "/t/{x}"}},
						Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("198.51.100.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}}},
						Headers:  []mesh.HeaderMatch{{Name: "y", OneOf: []string{"1"}}, {Name: "z", Present: true}}, JWT: &mesh.JWTMatch{Issuer: "idp", Claims: []mesh.ClaimMatch{{Name: "c", Values: []string{"v"}}}}},
					{ID: "s/web/audit/a", Action: mesh.AuditRule, From: everyone, Methods: []string{"PUT"}},
				}},
		},
		Outbound: []mesh.Outbound{
			{Service: db, Identities: id(db), Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1}}, Balancer: mesh.Balancer{Hash: &mesh.HashKey{Header: "h"}, WarmUp: 1}, Breaker: breaker(), MaxPending: 1},
			{Service: web, Identities: id(web), Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, Matches: matches}}, Routes: []mesh.Route{respond, route, redirect},
				Consumers: []mesh.Consumer{{Namespace: "c", Ports: []mesh.OutboundPort{{Name: "http", Port: 80, Protocol: mesh.HTTP1, Matches: []mesh.Match{{Route: mine.ID, Path: mesh.PathMatch{Prefix: "/c"}}}}}, Routes: []mesh.Route{mine}}}},
		},
		Workloads:  []mesh.Workload{{Name: "s/w", Service: web, Identity: id(web)[0], Address: "192.0.2.1:1", Labels: map[string]string{"a": "b"}, Weight: &weight, Zone: "z"}},
		Groups:     []mesh.Group{{Name: "s/g", Service: web, Identity: id(web)[0], Labels: map[string]string{"a": "b"}, Zone: "z", Max: 1}},
		Egress:     []mesh.Egress{{Namespace: "s", Default: mesh.DenyRule, DefaultID: "s/egress-default", Rules: []mesh.EgressRule{{ID: "s/egress/a", Action: mesh.Allow, Services: []mesh.ServiceName{web}, Hosts: []string{"h.example"}, Networks: []mesh.Network{{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}, Ports: []uint16{443}, Protocol: mesh.TLS}}}},
		Invariants: []mesh.Invariant{{Name: "i", ID: "invariants/i", Never: &mesh.Flow{From: []mesh.Peer{{Identity: "x"}}, To: mesh.Target{Namespace: "n", Ports: []string{"p"}, Methods: []string{"GET"}, Paths: []mesh.PathMatch{{Exact: "/"}}}}}},
	}
}
