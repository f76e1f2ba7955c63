package observe

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

// ContentType is that of [Registry.WriteText]: the Prometheus text format 0.0.4.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Writer writes one family after another. Labels of a sample must be those of Labels.
type Writer struct {
	b []byte
}

// Family starts a family; kind is "counter", "gauge" or "histogram".
func (w *Writer) Family(name, kind, help string) {
	w.b = append(w.b, "# HELP "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = append(w.b, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help)...)
	w.b = append(w.b, "\n# TYPE "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = append(w.b, kind...)
	w.b = append(w.b, '\n')
}

// Sample writes one value. labels come from Labels, or are empty.
func (w *Writer) Sample(name, labels string, value float64) {
	w.head(name, labels)
	w.b = strconv.AppendFloat(w.b, value, 'g', -1, 64)
	w.b = append(w.b, '\n')
}

func (w *Writer) count(name, labels string, n uint64) {
	w.head(name, labels)
	w.b = strconv.AppendUint(w.b, n, 10)
	w.b = append(w.b, '\n')
}

func (w *Writer) head(name, labels string) {
	w.b = append(w.b, name...)
	if labels != "" {
		w.b = append(w.b, '{')
		w.b = append(w.b, labels...)
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ' ')
}

func (w *Writer) histogram(name, labels string, h *Histogram) {
	sep := ""
	if labels != "" {
		sep = ","
	}
	n := uint64(0)
	for i, c := range h.counts() {
		n += c
		le := "+Inf"
		if i < len(proxyapi.LatencyBounds) {
			le = strconv.FormatFloat(proxyapi.LatencyBounds[i], 'g', -1, 64)
		}
		w.count(name+"_bucket", labels+sep+Labels("le", le), n)
	}
	w.Sample(name+"_sum", labels, float64(h.micros.Load())/1000)
	w.count(name+"_count", labels, n)
}

// Labels renders name-value pairs, leaving out those without a value. Values are escaped as the format asks, and what
// is not UTF-8 is replaced.
func Labels(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i])
		b.WriteString(`="`)
		escaper.WriteString(&b, strings.ToValidUTF8(pairs[i+1], "\ufffd"))
		b.WriteByte('"')
	}
	return b.String()
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// Collect adds a function that writes families of its own at the end of each exposition.
func (r *Registry) Collect(f func(*Writer)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collectors = append(r.collectors, f)
}

// WriteText writes all series in the Prometheus text format, sorted.
func (r *Registry) WriteText(out io.Writer) error {
	r.Sweep()
	w := &Writer{}
	r.writeHTTP(w)
	r.writeTCP(w)
	r.writeAuthz(w)
	r.writeErrors(w)
	w.Family("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970.")
	w.Sample("process_start_time_seconds", "", float64(r.started.UnixNano())/float64(time.Second))
	r.mu.Lock()
	collectors := slices.Clone(r.collectors)
	r.mu.Unlock()
	for _, f := range collectors {
		f(w)
	}
	_, err := out.Write(w.b)
	return err
}

// row is a series with its labels as text.
type row[V any] struct {
	labels string
	value  V
}

func sorted[K comparable, V any](f *family[K, V], labels func(K) string) []row[*V] {
	var rows []row[*V]
	for k, v := range f.all() {
		rows = append(rows, row[*V]{labels(k), v})
	}
	slices.SortFunc(rows, func(a, b row[*V]) int { return strings.Compare(a.labels, b.labels) })
	return rows
}

// labels are those of all traffic series; the names are Linkerd's.
func (k Key) labels() string {
	if k.overflow {
		return Labels("direction", string(k.Direction), "overflow", "true")
	}
	tls, client, server, backend := "no_identity", "", "", ""
	if k.TLS {
		tls = "true"
	}
	if k.Direction == Inbound {
		client = k.Peer
	} else {
		server = k.Peer
	}
	if k.Backend != "" && k.Backend != k.Service {
		backend = string(k.Backend)
	}
	return Labels("direction", string(k.Direction), "tls", tls, "client_id", client, "server_id", server,
		"authority", k.Authority, "dst_service", k.Service.Local(), "dst_namespace", namespace(k.Service), "dst_port", port(k.Port),
		"backend", backend, "route_namespace", routeNamespace(k.Route), "route_name", k.Route)
}

func namespace(s mesh.ServiceName) string {
	if s.Local() == "" {
		return ""
	}
	return s.Namespace()
}

// routeNamespace is the first element of a route's id, "<namespace>/<service>/httpRoutes/<name>".
func routeNamespace(id string) string {
	ns, _, _ := strings.Cut(id, "/")
	return ns
}

func port(n uint16) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

func (r *Registry) writeHTTP(w *Writer) {
	rows := sorted(&r.http, Key.labels)
	if len(rows) == 0 {
		return
	}
	w.Family("request_total", "counter", "Requests whose head was read.")
	for _, x := range rows {
		w.count("request_total", x.labels, x.value.requests.Load())
	}
	w.Family("response_total", "counter", "Finished exchanges, by status and class.")
	for _, x := range rows {
		list := slices.Clone(x.value.codes.all())
		slices.SortFunc(list, func(a, b *code) int { return cmp.Compare(a.status, b.status) })
		for _, c := range list {
			class := "failure"
			if c.success {
				class = "success"
			}
			w.count("response_total", x.labels+","+Labels("status_code", strconv.Itoa(c.status), "classification", class), c.n.Load())
		}
	}
	w.Family("response_latency_ms", "histogram", "From a request's head to its response's last byte, in milliseconds.")
	for _, x := range rows {
		w.histogram("response_latency_ms", x.labels, &x.value.latency)
	}
}

func (r *Registry) writeTCP(w *Writer) {
	rows := sorted(&r.tcp, func(k Key) string {
		peer := "src" // accepted; a proven server is one that was dialled
		if k.Direction == Outbound && k.Peer != "" {
			peer = "dst"
		}
		return k.labels() + "," + Labels("peer", peer)
	})
	if len(rows) == 0 {
		return
	}
	for _, f := range []struct {
		name, kind, help string
		value            func(*TCP) uint64
	}{
		{"tcp_open_total", "counter", "Connections opened.", func(t *TCP) uint64 { return t.opened.Load() }},
		{"tcp_open_connections", "gauge", "Connections that are open.", func(t *TCP) uint64 {
			closed := t.closed.Load() // first: what closes in between was opened before
			return t.opened.Load() - closed
		}},
		{"tcp_read_bytes_total", "counter", "Bytes read from the peer.", func(t *TCP) uint64 { return t.readBytes.Load() }},
		{"tcp_write_bytes_total", "counter", "Bytes written to the peer.", func(t *TCP) uint64 { return t.wroteAll.Load() }},
	} {
		w.Family(f.name, f.kind, f.help)
		for _, x := range rows {
			w.count(f.name, x.labels, f.value(x.value))
		}
	}
	w.Family("tcp_close_total", "counter", "Connections closed; errno says why, where it was not a clean end.")
	for _, x := range rows {
		by := map[string]uint64{}
		x.value.errnos.Range(func(errno, c any) bool { by[errno.(string)] = c.(*counter).n.Load(); return true })
		for _, errno := range slices.Sorted(maps.Keys(by)) {
			labels := x.labels
			if errno != "" {
				labels += "," + Labels("errno", errno)
			}
			w.count("tcp_close_total", labels, by[errno])
		}
	}
	w.Family("tcp_connection_duration_ms", "histogram", "How long connections lived, in milliseconds.")
	for _, x := range rows {
		w.histogram("tcp_connection_duration_ms", x.labels, &x.value.lived)
	}
}

func (r *Registry) writeAuthz(w *Writer) {
	type kind struct {
		d            Direction
		allowed, tcp bool
		observed     bool
	}
	by := map[kind][]row[*authz]{}
	for k, v := range r.authz.all() {
		at := kind{k.Direction, k.allowed, k.tcp, k.observed}
		by[at] = append(by[at], row[*authz]{k.Key.labels() + "," + Labels("authz_kind", authzKind(k.rule), "authz_name", k.rule), v})
	}
	for _, f := range []struct {
		kind
		name, help string
	}{
		{kind{Inbound, true, false, false}, "inbound_http_authz_allow_total", "Requests that a rule allowed; authz_name is its id."},
		{kind{Inbound, false, false, false}, "inbound_http_authz_deny_total", "Requests that a rule denied; authz_name is its id."},
		{kind{Inbound, true, true, false}, "inbound_tcp_authz_allow_total", "Connections that a rule allowed; authz_name is its id."},
		{kind{Inbound, false, true, false}, "inbound_tcp_authz_deny_total", "Connections that a rule denied; authz_name is its id."},
		{kind{Inbound, false, false, true}, "inbound_http_authz_observed_total",
			"Requests that a rule matched which only observes; authz_kind is what it would do, authz_name its id."},
		{kind{Inbound, false, true, true}, "inbound_tcp_authz_observed_total",
			"Connections that a rule matched which only observes; authz_kind is what it would do, authz_name its id."},
		{kind{Outbound, false, false, false}, "outbound_http_authz_deny_total",
			"Requests to a service that this workload may not call at all; authz_name is the rule's id."},
		{kind{Outbound, false, true, false}, "outbound_tcp_authz_deny_total",
			"Connections to a service that this workload may not call at all; authz_name is the rule's id."},
	} {
		rows := by[f.kind]
		if len(rows) == 0 {
			continue
		}
		slices.SortFunc(rows, func(a, b row[*authz]) int { return strings.Compare(a.labels, b.labels) })
		w.Family(f.name, "counter", f.help)
		for _, x := range rows {
			w.count(f.name, strings.TrimSuffix(x.labels, ","), x.value.n.Load())
		}
	}
}

// authzKind is the kind of rule that an id names: "<service>/allow/<name>", "…/deny/<name>" or "…/default/<port>".
func authzKind(rule string) string {
	parts := strings.Split(rule, "/")
	if len(parts) < 4 {
		return ""
	}
	return parts[2]
}

func (r *Registry) writeErrors(w *Writer) {
	type kind struct {
		d   Direction
		tcp bool
	}
	by := map[kind][]row[*counter]{}
	for k, v := range r.errors.all() {
		at := kind{k.direction, k.tcp}
		by[at] = append(by[at], row[*counter]{Labels("error", cmp.Or(k.reason, "other")), v})
	}
	for _, d := range []Direction{Inbound, Outbound} {
		for _, tcp := range []bool{false, true} {
			rows := by[kind{d, tcp}]
			if len(rows) == 0 {
				continue
			}
			slices.SortFunc(rows, func(a, b row[*counter]) int { return strings.Compare(a.labels, b.labels) })
			name, what := string(d)+"_http_errors_total", "Requests"
			if tcp {
				name, what = string(d)+"_tcp_errors_total", "Connections"
			}
			w.Family(name, "counter", what+" that the sidecar itself ended, by the reason in heddle-error.")
			for _, x := range rows {
				w.count(name, x.labels, x.value.n.Load())
			}
		}
	}
}
