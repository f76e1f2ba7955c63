package mesh

import (
	"crypto/sha256"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// byValue compares what has its own notion of equality, and fields that nobody sees.
var byValue = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// sample fills every field of every type of the mesh, so that a round trip that loses one is seen.
func sample(t testing.TB) *Mesh {
	m := &Mesh{}
	fill(t, reflect.ValueOf(m).Elem(), new(int))
	m.Inbound[0].Service, m.Inbound[1].Service = "a/x", "b/y"
	m.Outbound[0].Service, m.Outbound[1].Service = "a/x", "b/y"
	m.Workloads[0].Name, m.Workloads[1].Name = "a/x-1", "c/z-1"
	m.Groups[0].Name, m.Groups[1].Name = "a/group", "c/group"
	m.Egress[0].Namespace, m.Egress[1].Namespace = "b", "c"
	return m
}

func fill(t testing.TB, v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(*n), 0, 0}), 16)))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(int64(*n), 0).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, elem, n)
		v.SetMapIndex(key, elem)
	case reflect.String:
		v.SetString("s<&>\u2028" + strings.Repeat("x", *n%7))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(int64(time.Second) + int64(*n))
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(*n))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	default:
		t.Fatalf("a mesh value has a %s; teach fill about it", v.Type())
	}
}

func TestCanonicalRoundTrip(t *testing.T) {
	m := sample(t)
	b := Canonical(m)
	var got Mesh
	if err := Decode(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, &got, byValue); d != "" {
		t.Errorf("lost in the encoding:\n%s", d)
	}
	if again := Canonical(got); string(again) != string(b) {
		t.Errorf("a second encoding differs:\n%s\n%s", b, again)
	}
	if strings.ContainsAny(string(b), "\n\t") || strings.Contains(string(b), `\u003c`) {
		t.Errorf("not compact, or escaped for HTML: %s", b)
	}
}

// TestCanonicalIsStable pins the encoding itself: its hashes stand in signed records and agree between versions.
func TestCanonicalIsStable(t *testing.T) {
	in := Inbound{
		Service: "shop/web", Identities: []string{"spiffe://a.example/b"},
		Ports: []InboundPort{{Name: "http", Port: 80, Protocol: HTTP1, MTLS: Strict, Default: Deny, DefaultID: "shop/web/default/http"}},
		Rules: []Rule{{ID: "shop/web/allow/a", Action: Allow, From: []Peer{{Authenticated: true}}}},
	}
	const want = `{"service":"shop/web","identities":["spiffe://a.example/b"],` +
		`"ports":[{"name":"http","port":80,"protocol":"http1","mtls":"strict","default":"deny","defaultID":"shop/web/default/http"}],` +
		`"rules":[{"id":"shop/web/allow/a","action":"allow","from":[{"authenticated":true}]}]}`
	o := NewObject(KindInbound, "shop/web", in)
	if string(o.Bytes) != want || o.Hash != Hash(sha256.Sum256([]byte(want))) || o.Kind != KindInbound || o.Name != "shop/web" {
		t.Errorf("got  %s\nwant %s", o.Bytes, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"an unknown field":        `{"trustDomain":"a","retryBudget":1}`,
		"an unknown inner field":  `{"trustDomain":"a","x":{}}`,
		"bytes after the value":   `{"trustDomain":"a"}{}`,
		"a half value":            `{"trustDomain":"a"`,
		"nothing":                 ``,
		"another type":            `{"trustDomain":1}`,
		"garbage after the value": `{"trustDomain":"a"} x`,
	} {
		var s Settings
		if err := Decode([]byte(in), &s); err == nil {
			t.Errorf("%s was taken: %s", name, in)
		}
	}
	var p InboundPort
	if err := Decode([]byte(`{"port":65536}`), &p); err == nil {
		t.Errorf("a port number too large became %d", p.Port)
	}
}

func TestChunks(t *testing.T) {
	m := sample(t)
	chunks := m.Chunks()
	var names []string
	for _, c := range chunks {
		names = append(names, c.Namespace)
	}
	if d := cmp.Diff([]string{"", "a", "b", "c"}, names); d != "" {
		t.Fatal(d)
	}
	got, err := Join(chunks)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got, byValue); d != "" {
		t.Errorf("Join(Chunks(m)) is not m:\n%s", d)
	}
	slices.Reverse(chunks)
	if got, err = Join(chunks); err != nil || !cmp.Equal(m, got, byValue) {
		t.Errorf("the order of chunks changed the mesh: %v\n%s", err, cmp.Diff(m, got, byValue))
	}
	if _, err := Join(slices.DeleteFunc(chunks, func(c Chunk) bool { return c.Settings != nil })); err == nil {
		t.Error("a mesh without settings was joined")
	}
	// Only what changed has another hash: chunks are what releases share.
	other := sample(t)
	other.Inbound[1].Rules[0].Action = DenyRule
	for i, c := range other.Chunks() {
		same := string(Canonical(c)) == string(Canonical(m.Chunks()[i]))
		if same != (c.Namespace != "b") {
			t.Errorf("chunk %q: unchanged is %t", c.Namespace, same)
		}
	}
}

func TestBehaviourHash(t *testing.T) {
	ref := func(ns string, b byte) ChunkRef { return ChunkRef{Namespace: ns, Hash: Hash{b}, Size: 1} }
	base := BehaviourHash([]ChunkRef{ref("", 1), ref("a", 2)})
	for name, refs := range map[string][]ChunkRef{
		"another chunk":     {ref("", 1), ref("a", 3)},
		"another namespace": {ref("", 1), ref("b", 2)},
		"another order":     {ref("a", 2), ref("", 1)},
		"one less":          {ref("", 1)},
		"one more":          {ref("", 1), ref("a", 2), ref("b", 1)},
		"none":              {},
	} {
		if BehaviourHash(refs) == base {
			t.Errorf("%s has the same behaviour hash", name)
		}
	}
	sized := []ChunkRef{{Namespace: "", Hash: Hash{1}, Size: 7}, {Namespace: "a", Hash: Hash{2}, Size: 8}}
	if BehaviourHash(sized) != base {
		t.Error("the size is not part of the hash; the content's hash stands for it")
	}
	if got, want := BehaviourHash(nil).String(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Errorf("of nothing: %s, want the SHA-256 of nothing", got)
	}
}

func TestHash(t *testing.T) {
	h := Hash(sha256.Sum256([]byte("x")))
	got, err := ParseHash(h.String())
	if err != nil || got != h || len(h.Short()) != 12 || !strings.HasPrefix(h.String(), h.Short()) {
		t.Errorf("%v %v", got, err)
	}
	for _, s := range []string{"", "zz", h.String()[1:], h.String() + "00", strings.Replace(h.String(), h.String()[:1], "g", 1)} {
		if _, err := ParseHash(s); err == nil {
			t.Errorf("%q is a hash", s)
		}
	}
	var back struct{ H Hash }
	if err := Decode(Canonical(struct{ H Hash }{h}), &back); err != nil || back.H != h {
		t.Errorf("in JSON: %v %v", back.H, err)
	}
}

func TestNames(t *testing.T) {
	n := Name("shop", "web")
	if n != "shop/web" || n.Namespace() != "shop" || n.Local() != "web" || n.Host() != "web.shop.mesh" || DefaultID(n, "http") != "shop/web/default/http" {
		t.Errorf("%s %s %s %s", n, n.Namespace(), n.Local(), n.Host())
	}
}

func TestLookups(t *testing.T) {
	m := sample(t)
	for _, n := range []ServiceName{"a/x", "b/y"} {
		in, ok := m.InboundOf(n)
		out, ok2 := m.OutboundOf(n)
		if !ok || !ok2 || in.Service != n || out.Service != n {
			t.Errorf("%s is not found", n)
		}
	}
	for _, n := range []ServiceName{"", "a/w", "a/y", "c/z", "b/yy"} {
		if _, ok := m.InboundOf(n); ok {
			t.Errorf("%s is found", n)
		}
		if _, ok := m.OutboundOf(n); ok {
			t.Errorf("%s is found", n)
		}
	}
	in, out := &m.Inbound[0], &m.Outbound[0]
	in.Ports[1].Name, out.Ports[1].Name, out.Routes[1].ID = "other", "other", "other"
	if p, ok := in.Port("other"); !ok || p != &in.Ports[1] {
		t.Error("inbound port")
	}
	if p, ok := out.Port("other"); !ok || p != &out.Ports[1] {
		t.Error("outbound port")
	}
	if r, ok := out.Route("other"); !ok || r != &out.Routes[1] {
		t.Error("route")
	}
	if _, ok := in.Port("none"); ok {
		t.Error("a port that is not there")
	}
	if _, ok := out.Port("none"); ok {
		t.Error("a port that is not there")
	}
	if _, ok := out.Route("none"); ok {
		t.Error("a route that is not there")
	}
}

func TestIndexes(t *testing.T) {
	m := &Mesh{Outbound: []Outbound{
		{Service: "a/x", Ports: []OutboundPort{{Name: "http", Port: 80, Protocol: HTTP1}, {Name: "sql", Port: 5432, Protocol: TCP}}},
		{Service: "a/y"},
		{Service: "b/x", Ports: []OutboundPort{{Name: "p", Port: 1, Protocol: Detect}}},
	}}
	want := []Index{
		{Namespace: "a", Services: []IndexService{{Name: "x", Ports: []IndexPort{{"http", 80, HTTP1}, {"sql", 5432, TCP}}}, {Name: "y"}}},
		{Namespace: "b", Services: []IndexService{{Name: "x", Ports: []IndexPort{{"p", 1, Detect}}}}},
	}
	if d := cmp.Diff(want, m.Indexes()); d != "" {
		t.Error(d)
	}
	if got := (&Mesh{}).Indexes(); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestOriginsBuiltIn(t *testing.T) {
	at := diag.Pos{File: "services/shop/web.cue", Line: 3, Column: 1}
	o := Origins{"shop/web": at, "shop/web/default/http": at, "shop/web/default/own": {File: at.File, Line: 4, Column: 20}}
	for port, want := range map[string]bool{"http": true, "own": false, "gone": false} {
		if o.BuiltIn("shop/web", port) != want {
			t.Errorf("%s: %t", port, !want)
		}
	}
}
