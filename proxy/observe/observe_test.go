package observe_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/proxy/observe"
)

var out = observe.Key{
	Direction: observe.Outbound, TLS: true, Peer: "spiffe://shop.test/ns/shop/sa/api", Service: "shop/api", Port: 80,
	Authority: "api.shop.mesh:80", Route: "shop/api/httpRoutes/split", Backend: "shop/api-v2",
}

var in = observe.Key{Direction: observe.Inbound, TLS: true, Peer: "spiffe://shop.test/ns/shop/sa/web", Service: "shop/api", Port: 80}

// clock is moved by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func text(t *testing.T, r *observe.Registry) string {
	t.Helper()
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// lines are the samples of the families that are named, without the buckets.
func lines(text string, names ...string) (got []string) {
	for l := range strings.Lines(text) {
		for _, n := range names {
			if strings.HasPrefix(l, n) && !strings.Contains(l, "_bucket") {
				got = append(got, strings.TrimSuffix(l, "\n"))
			}
		}
	}
	return got
}

func TestText(t *testing.T) {
	c := &clock{time.Unix(1_700_000_000, 0)}
	r := observe.New(c.now)
	r.Collect(func(w *observe.Writer) {
		w.Family("heddle_config_info", "gauge", "A \\ and a\nline.")
		w.Sample("heddle_config_info", observe.Labels("commit", `a"b\c`+"\n", "none", "", "epoch", "7"), 1)
	})
	h := r.HTTP(out)
	h.Request()
	h.Response(200, true, 3*time.Millisecond)
	h.Request()
	h.Response(503, false, 2500*time.Microsecond)
	r.TCP(in).Open()
	r.TCP(in).Read(5)
	r.TCP(in).Write(7)
	r.TCP(in).Open()
	r.TCP(in).Close("ECONNRESET", time.Second, true)
	r.Authz(in, "shop/api/deny/web", false, false)
	r.Authz(in, "shop/api/default/http", false, false)
	r.Authz(in, "shop/api/allow/web", true, true)
	r.Error(observe.Outbound, false, "no-endpoints")
	r.Refused(observe.Key{Direction: observe.Outbound, Service: "shop/ledger", Port: 9000}, "shop/ledger/deny/x", true)

	const o = `direction="outbound",tls="true",server_id="spiffe://shop.test/ns/shop/sa/api",authority="api.shop.mesh:80",` +
		`dst_service="api",dst_namespace="shop",dst_port="80",backend="shop/api-v2",route_namespace="shop",route_name="shop/api/httpRoutes/split"`
	const i = `direction="inbound",tls="true",client_id="spiffe://shop.test/ns/shop/sa/web",dst_service="api",dst_namespace="shop",dst_port="80"`
	want := []string{
		`request_total{` + o + `} 2`,
		`response_total{` + o + `,status_code="200",classification="success"} 1`,
		`response_total{` + o + `,status_code="503",classification="failure"} 1`,
		`response_latency_ms_sum{` + o + `} 5.5`,
		`response_latency_ms_count{` + o + `} 2`,
		`tcp_open_total{` + i + `,peer="src"} 2`,
		`tcp_open_connections{` + i + `,peer="src"} 1`,
		`tcp_read_bytes_total{` + i + `,peer="src"} 5`,
		`tcp_write_bytes_total{` + i + `,peer="src"} 7`,
		`tcp_close_total{` + i + `,peer="src",errno="ECONNRESET"} 1`,
		`tcp_connection_duration_ms_sum{` + i + `,peer="src"} 1000`,
		`tcp_connection_duration_ms_count{` + i + `,peer="src"} 1`,
		`inbound_http_authz_deny_total{` + i + `,authz_kind="default",authz_name="shop/api/default/http"} 1`,
		`inbound_http_authz_deny_total{` + i + `,authz_kind="deny",authz_name="shop/api/deny/web"} 1`,
		`inbound_tcp_authz_allow_total{` + i + `,authz_kind="allow",authz_name="shop/api/allow/web"} 1`,
		`outbound_tcp_authz_deny_total{direction="outbound",tls="no_identity",dst_service="ledger",dst_namespace="shop",dst_port="9000",authz_kind="deny",authz_name="shop/ledger/deny/x"} 1`,
		`outbound_http_errors_total{error="no-endpoints"} 1`,
		`process_start_time_seconds 1.7e+09`,
		`heddle_config_info{commit="a\"b\\c\n",epoch="7"} 1`,
	}
	got := text(t, r)
	if diff := cmp.Diff(want, lines(got, "request_", "response_", "tcp_", "inbound_", "outbound_", "process_", "heddle_")); diff != "" {
		t.Errorf("exposition (-want +got):\n%s", diff)
	}
	for _, l := range []string{
		`response_latency_ms_bucket{` + o + `,le="2"} 0`, `response_latency_ms_bucket{` + o + `,le="3"} 2`,
		`response_latency_ms_bucket{` + o + `,le="50000"} 2`, `response_latency_ms_bucket{` + o + `,le="+Inf"} 2`,
		`# HELP heddle_config_info A \\ and a\nline.`, `# TYPE response_latency_ms histogram`,
	} {
		if !strings.Contains(got, l+"\n") {
			t.Errorf("the exposition lacks %s", l)
		}
	}
}

func TestEdges(t *testing.T) {
	r := observe.New(nil)
	h := r.HTTP(out)
	h.Response(200, true, time.Millisecond)
	h.Response(500, false, time.Hour)
	r.Refused(observe.Key{Direction: observe.Outbound, Service: "shop/ledger"}, "shop/ledger/deny/x", false)
	tcp := out
	tcp.Service, tcp.Backend, tcp.Route = "shop/db", "", ""
	r.TCP(tcp).Open()
	r.TCP(tcp).Open()
	r.TCP(tcp).Close("", time.Second, false)
	quiet := tcp
	quiet.Service = "shop/api-v2" // which has an HTTP port too
	r.TCP(quiet).Open()
	app := out
	app.Peer, app.TLS = "", false
	r.TCP(app).Open() // of the application, to speak HTTP: its requests were counted
	r.Authz(in, "shop/api/deny/web", false, false)
	odd := in
	odd.Peer, odd.TLS = "spiffe://shop.test/vm/7", false
	r.Authz(odd, "shop/api/default/http", false, true)
	odd.Peer = ""
	r.Authz(odd, "shop/api/default/http", false, false)
	r.Authz(in, "shop/api/allow/x", true, false) // allowed calls are the caller's to report

	lat := func(at ...int) []uint64 {
		l := make([]uint64, 26)
		for _, i := range at {
			l[i]++
		}
		return l
	}
	want := []observe.Edge{
		{Service: "shop/api-v2", Requests: 2, Successes: 1, MTLS: true, Latency: lat(0, 25)},
		{Service: "shop/api-v2", Open: 1, MTLS: true, TCP: true, Latency: lat()},
		{Service: "shop/db", Requests: 1, Successes: 1, Open: 1, MTLS: true, TCP: true, Latency: lat()},
		{Service: "shop/ledger", Denied: 1, Rule: "shop/ledger/deny/x", Latency: lat()},
		{Service: "shop/web", Inbound: true, Denied: 1, MTLS: true, Rule: "shop/api/deny/web", Latency: lat()},
		{Service: "spiffe://shop.test/vm/7", Inbound: true, Denied: 1, TCP: true, Rule: "shop/api/default/http", Latency: lat()},
		{Service: "unauthenticated", Inbound: true, Denied: 1, Rule: "shop/api/default/http", Latency: lat()},
	}
	if diff := cmp.Diff(want, r.Edges()); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
}

// TestBounds: whoever chooses label values at will fills one series, not the memory.
func TestBounds(t *testing.T) {
	r := observe.New(nil)
	k := in
	for n := range observe.MaxSeries + 500 {
		k.Peer = fmt.Sprintf("spiffe://shop.test/vm/%d", n)
		r.HTTP(k).Request()
		r.Authz(k, "shop/api/default/http", false, false)
	}
	for code := range 900 {
		r.HTTP(in).Response(100+code, code%2 == 0, 0)
	}
	got := text(t, r)
	series := lines(got, "request_total")
	if n := len(series); n != observe.MaxSeries+1 {
		t.Errorf("%d series, want %d and the overflow", n, observe.MaxSeries)
	}
	if want := `request_total{direction="inbound",overflow="true"} 500`; !strings.Contains(got, want+"\n") {
		t.Errorf("the exposition lacks %s", want)
	}
	if n := len(lines(got, "response_total")); n > 32 {
		t.Errorf("%d status codes of one label set", n)
	}
	if n := len(r.Edges()); n > observe.MaxEdges+1 {
		t.Errorf("%d edges", n)
	}
}

func TestIdleSeriesLeave(t *testing.T) {
	c := &clock{time.Unix(1_700_000_000, 0)}
	r := observe.New(c.now)
	r.HTTP(in).Request()
	r.HTTP(out).Request()
	r.TCP(in).Open() // and stays open
	r.Sweep()
	c.t = c.t.Add(observe.IdleAfter - time.Second)
	r.HTTP(out).Request()
	r.Sweep()
	c.t = c.t.Add(time.Second)
	got := text(t, r)
	if n := len(lines(got, "request_total")); n != 1 || !strings.Contains(got, `request_total{direction="outbound"`) {
		t.Errorf("after ten idle minutes:\n%s", strings.Join(lines(got, "request_total"), "\n"))
	}
	if len(lines(got, "tcp_open_connections")) != 1 {
		t.Error("the series of an open connection left")
	}
	r.TCP(in).Close("", time.Minute, false)
	r.Sweep()
	c.t = c.t.Add(observe.IdleAfter)
	if got := text(t, r); strings.Contains(got, "tcp_open") || strings.Contains(got, "request_total") {
		t.Errorf("idle series stay:\n%s", got)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	r := observe.New(nil)
	if n := testing.AllocsPerRun(100, func() {
		h := r.HTTP(out)
		h.Request()
		h.Response(200, true, time.Millisecond)
		r.TCP(in).Read(1)
		r.Authz(in, "shop/api/allow/web", true, false)
		r.Authz(in, "shop/api/deny/web", false, false)
		r.Error(observe.Inbound, false, "denied")
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
