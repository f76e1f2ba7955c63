package mesh

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// plainFields are the fields of what sidecars are sent that every sidecar knows, or that say nothing by themselves: names,
// ids, and conditions of the kinds that came with what holds them.
var plainFields = []string{
	"Settings.TrustDomain", "Settings.MaxStale", "Settings.Needs",
	"Inbound.Service", "Inbound.Identities", "Inbound.Needs", "InboundPort.Name", "InboundPort.Port", "InboundPort.DefaultID",
	"InboundPort.CanonicalPaths", // it only refuses more
	"Rule.ID", "Rule.Ports", "Peer.Identity", "Peer.Authenticated", "Peer.Unauthenticated",
	"Match.Route", "Match.Method", "PathMatch.Exact", "PathMatch.Prefix", "PathMatch.Template", "HeaderMatch.Name", "HeaderMatch.Exact",
	"HeaderMatch.OneOf", "HeaderMatch.Present", // the last two, and templates, of rules only
	"Outbound.Service", "Outbound.Identities", "Outbound.Needs", "OutboundPort.Name", "OutboundPort.Port",
	"Route.ID", "Route.Port", "Backend.Service", "Backend.Port", "Backend.Weight",
}

// wholeFields are those whose capability covers all that is inside.
var wholeFields = []string{
	"Settings.JWTIssuers", "InboundPort.RateLimit", "Inbound.Routes", "Rule.Networks", "Rule.Paths", "Rule.Headers", "Rule.JWT",
	"OutboundPort.Hosts", "Outbound.Consumers", "Outbound.Breaker", "Balancer.Hash", "Route.Retry", "Route.Breaker", "Route.RateLimit",
	"Backend.Filters", "Filter.RequestHeaders", "Filter.ResponseHeaders", "Filter.Redirect", "Filter.Rewrite", "Filter.Mirror", "Filter.CORS",
	"Filter.Respond", "Filter.Fault",
}

// TestEveryFieldIsRequired sets each field of what sidecars are sent alone, and wants it to take a capability that is not
// taken without it, unless it is plain: a sidecar that does not know what the field means must be told that it does not.
func TestEveryFieldIsRequired(t *testing.T) {
	seen := map[string]bool{}
	settings, in, out := &Settings{}, &Inbound{}, &Outbound{}
	for _, c := range []struct {
		object   any
		requires func() []Capability
	}{{settings, settings.Requires}, {in, in.Requires}, {out, out.Requires}} {
		var each func(v reflect.Value)
		each = func(v reflect.Value) {
			before := c.requires()
			for i := range v.NumField() {
				f, name := v.Field(i), v.Type().Name()+"."+v.Type().Field(i).Name
				was := reflect.New(f.Type()).Elem()
				was.Set(f)
				set(f)
				inner := inside(f)
				now := c.requires()
				more := slices.ContainsFunc(now, func(n Capability) bool { return !slices.Contains(before, n) })
				whole := slices.Contains(wholeFields, name)
				seen[name] = true
				switch {
				case slices.Contains(plainFields, name):
					if more {
						t.Errorf("%s takes %v: it is not plain", name, now)
					}
				case !more && (whole || !inner.IsValid()):
					t.Errorf("%s of a %T is set, and takes nothing that was not taken before: %v", name, c.object, now)
				}
				if inner.IsValid() && !whole {
					each(inner)
				}
				f.Set(was)
			}
		}
		each(reflect.ValueOf(c.object).Elem())
	}
	for _, name := range slices.Concat(plainFields, wholeFields) {
		if !seen[name] {
			t.Errorf("%s is no field of what sidecars are sent", name)
		}
	}
}

// set gives a field a value beyond what is usual: lists and pointers get one element, as yet empty where it is a struct.
func set(f reflect.Value) {
	switch f.Interface().(type) {
	case time.Time:
		f.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	case Protocol:
		f.SetString(string(HTTP2))
		return
	case MTLSMode:
		f.SetString(string(Permissive))
		return
	case InboundMode, Action:
		f.SetString("audit")
		return
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString("x")
	case reflect.Bool:
		f.SetBool(true)
	case reflect.Int64:
		f.SetInt(1)
	case reflect.Uint16, reflect.Uint32:
		f.SetUint(1)
	case reflect.Pointer:
		f.Set(reflect.New(f.Type().Elem()))
	case reflect.Slice:
		f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		if f.Type().Elem().Kind() != reflect.Struct {
			set(f.Index(0))
		}
	case reflect.Map:
		f.Set(reflect.ValueOf(map[string]string{"a": "b"}))
	}
}

// inside is the struct of ours that a field holds, if any.
func inside(f reflect.Value) (none reflect.Value) {
	switch {
	case f.Kind() == reflect.Pointer:
		return inside(f.Elem())
	case f.Kind() == reflect.Slice && f.Len() > 0:
		return inside(f.Index(0))
	case f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]() && f.Type() != reflect.TypeFor[netip.Prefix]():
		return f
	}
	return none
}

// TestRequires: what takes no capability of its own takes that of what it is in, and unknown protocols what nobody has.
func TestRequires(t *testing.T) {
	in := Inbound{Ports: []InboundPort{{Protocol: "quic"}}, Rules: []Rule{{From: []Peer{{Prefix: "spiffe://a/"}}, Shadow: true}}}
	var got []string
	for _, c := range in.Requires() {
		got = append(got, string(c))
	}
	if want := "audit authorize authorize-pattern protocol quic"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}
