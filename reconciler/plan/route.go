package plan

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// outcomeText says what becomes of a call: where it goes, by which shares, and who refuses it.
func outcomeText(o *decide.Outcome) string {
	switch o.Handling {
	case decide.Unknown:
		return "not there"
	case decide.Unroutable:
		if o.Status == 0 {
			return "closed, no route"
		}
		return fmt.Sprintf("%d, no route", o.Status)
	case decide.Answered:
		return answerText(o)
	}
	parts := partsOf(o, "")
	if len(parts) == 0 {
		return "503, no backend"
	}
	var words []string
	for _, p := range parts {
		w := string(p.service) + ":" + p.port
		switch {
		case p.mirror:
			w = "a copy of " + share(p.weight, p.total) + " to " + w
		case p.weight != p.total:
			w = share(p.weight, p.total) + " " + w
		}
		switch {
		case p.status != 0:
			w += fmt.Sprintf(" (answered with %d)", p.status)
		case p.refused == decide.NoBackend:
			w += " (not there)"
		case !p.allowed:
			w += " (denied)"
		}
		words = append(words, w)
	}
	text := strings.Join(words, ", ")
	if o.Route != nil {
		for _, f := range allFilters(o.Route) {
			if f.Rewrite != nil {
				text += ", " + filterText(&f)
			}
		}
	}
	return text
}

// allFilters are a route's filters and its backends'.
func allFilters(r *mesh.Route) []mesh.Filter {
	out := slices.Clone(r.Filters)
	for i := range r.Backends {
		out = append(out, r.Backends[i].Filters...)
	}
	return out
}

func answerText(o *decide.Outcome) string {
	if o.Route != nil {
		for i := range o.Route.Filters {
			if f := &o.Route.Filters[i]; f.Redirect != nil && f.Redirect.Status == o.Status || f.Respond != nil && f.Respond.Status == o.Status {
				return filterText(f)
			}
		}
	}
	return fmt.Sprintf("answered with %d", o.Status)
}

// share is a part in percent.
func share(weight, total uint64) string {
	p := 100 * float64(weight) / float64(max(total, 1))
	return strconv.FormatFloat(math.Round(p*10_000)/10_000, 'f', -1, 64) + " %"
}

// outcomeIDs are what decided: the route, then the rules that refuse, then those that allow.
func outcomeIDs(o *decide.Outcome) string {
	var ids []string
	if o.Route != nil {
		ids = append(ids, o.Route.ID)
	}
	parts := partsOf(o, "")
	for _, allowed := range []bool{false, true} {
		for _, p := range parts {
			if p.rule != "" && p.allowed == allowed {
				ids = append(ids, p.rule)
			}
		}
	}
	if len(ids) > 4 {
		ids = ids[:4]
	}
	if len(ids) == 0 {
		for _, p := range parts {
			ids = append(ids, string(p.service))
		}
	}
	return strings.Join(ids, " ")
}

// routes are two that are compared, and whether what they do to the path is told already.
type routes struct {
	was, is *mesh.Route
	told    bool
}

// param is something about a route, other than where it leads, that differs.
type param struct {
	kind          Kind
	risk          Risk
	subject       string
	before, after string
}

// paramsOf compares what else two routes for a call say; nil is the service itself, about which nothing is said. It
// remembers. Where the routing is told anyway, rewrites of paths are part of that.
func (c *comparison) paramsOf(call *decide.Call, was, is *mesh.Route, told bool) []param {
	if was == is {
		return nil
	}
	k := routes{was, is, told}
	if out, ok := c.params[k]; ok {
		return out
	}
	b, a := was, is
	own := &mesh.Route{Backends: []mesh.Backend{{Service: call.Service, Port: call.Port, Weight: 100}}}
	if b == nil {
		b = own
	}
	if a == nil {
		a = own
	}
	var out []param
	put := func(kind Kind, risk Risk, subject, before, after string, differs bool) {
		if !differs {
			return
		}
		if before == after { // what differs is not for a reader's eyes, such as the value of a header
			after += " (other values)"
		}
		out = append(out, param{kind, risk, subject, before, after})
	}
	put(KindTimeout, Neutral, "timeout", duration(b.Timeouts.Request), duration(a.Timeouts.Request), b.Timeouts.Request != a.Timeouts.Request)
	put(KindTimeout, Neutral, "response timeout", duration(b.Timeouts.Response), duration(a.Timeouts.Response), b.Timeouts.Response != a.Timeouts.Response)
	put(KindTimeout, Neutral, "idle timeout", duration(b.Timeouts.Idle), duration(a.Timeouts.Idle), b.Timeouts.Idle != a.Timeouts.Idle)
	put(KindRetry, Neutral, "retries", retryText(b.Retry), retryText(a.Retry), !same(b.Retry, a.Retry))
	put(KindBreaker, Neutral, "breaker", breakerText(b.Breaker), breakerText(a.Breaker), !same(b.Breaker, a.Breaker))
	put(KindFilter, Neutral, "gRPC", yes(b.GRPC), yes(a.GRPC), b.GRPC != a.GRPC)
	x, y := b.Filters, a.Filters
	if told {
		paths := func(f mesh.Filter) bool { return f.Rewrite != nil && f.Rewrite.Host == "" }
		x, y = slices.DeleteFunc(slices.Clone(x), paths), slices.DeleteFunc(slices.Clone(y), paths)
	}
	put(KindFilter, Reroutes, "filters", filtersText(x), filtersText(y), !sameFilters(x, y))
	for _, n := range targets(b, a) {
		x, y := filtersFor(b, n), filtersFor(a, n)
		if x.none || y.none { // where requests go differs, and is said so
			continue
		}
		put(KindFilter, Reroutes, "filters of "+n, x.text, y.text, x.key != y.key)
	}
	c.params[k] = out
	return out
}

// targets are the services and ports that take requests from one of two routes.
func targets(routes ...*mesh.Route) (out []string) {
	for _, r := range routes {
		for i := range r.Backends {
			if b := &r.Backends[i]; b.Weight > 0 {
				out = append(out, string(b.Service)+":"+b.Port)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// targeted is what the filters of a route's backends do to the requests of one service and port.
type targeted struct {
	none      bool
	text, key string
}

func filtersFor(r *mesh.Route, target string) targeted {
	type way struct {
		Weight  uint64
		Filters []mesh.Filter
	}
	var ways []way
	sum := uint64(0)
	for i := range r.Backends {
		b := &r.Backends[i]
		if b.Weight == 0 || string(b.Service)+":"+b.Port != target {
			continue
		}
		sum += uint64(b.Weight)
		at := slices.IndexFunc(ways, func(w way) bool { return sameFilters(w.Filters, b.Filters) })
		if at < 0 {
			at = len(ways)
			ways = append(ways, way{Filters: b.Filters})
		}
		ways[at].Weight += uint64(b.Weight)
	}
	t := targeted{none: len(ways) == 0}
	var texts []string
	for i := range ways {
		w := &ways[i]
		text := filtersText(w.Filters)
		if len(ways) > 1 {
			text = share(w.Weight, sum) + " " + text
		}
		texts = append(texts, text)
		x, y := w.Weight, sum
		for y != 0 {
			x, y = y, x%y
		}
		w.Weight = w.Weight/x<<32 | sum/x
		if len(w.Filters) == 0 {
			w.Filters = nil
		}
	}
	slices.SortFunc(ways, func(a, b way) int { return strings.Compare(string(mesh.Canonical(a)), string(mesh.Canonical(b))) })
	t.text, t.key = strings.Join(texts, " or "), string(mesh.Canonical(ways))
	return t
}

func sameFilters(b, a []mesh.Filter) bool {
	return slices.EqualFunc(b, a, func(x, y mesh.Filter) bool { return same(&x, &y) })
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// duration is a time span as policy writes it.
func duration(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func percent(p mesh.PPM) string { return share(uint64(p), uint64(mesh.AllPPM)) }

func retryText(r *mesh.Retry) string {
	if r == nil {
		return "none"
	}
	s := fmt.Sprintf("%d more", r.Tries)
	var on []string
	for _, st := range r.Statuses {
		if st.From == st.To {
			on = append(on, fmt.Sprint(st.From))
		} else {
			on = append(on, fmt.Sprintf("%d-%d", st.From, st.To))
		}
	}
	for _, g := range r.GRPC {
		on = append(on, fmt.Sprintf("gRPC %d", g))
	}
	if len(on) > 0 {
		s += " on " + strings.Join(on, " ")
	}
	if r.Timeout > 0 {
		s += ", " + duration(r.Timeout) + " a try"
	}
	s += fmt.Sprintf(", back-off %s-%s, budget %s + %d/s over %s", duration(r.BackoffMin), duration(r.BackoffMax), percent(r.Budget), r.MinPerSecond, duration(r.Window))
	if r.Idempotent {
		s += ", every method"
	}
	return s
}

func breakerText(b *mesh.Breaker) string {
	if b == nil {
		return "the service's"
	}
	var parts []string
	if b.Consecutive > 0 {
		parts = append(parts, fmt.Sprintf("%d failures in a row", b.Consecutive))
	}
	if b.SuccessRate > 0 {
		parts = append(parts, fmt.Sprintf("under %s of %d over %s", percent(b.SuccessRate), b.MinRequests, duration(b.Window)))
	}
	if len(parts) == 0 {
		return "off"
	}
	return strings.Join(parts, ", ") + fmt.Sprintf(", out for %s-%s, floor %s", duration(b.PenaltyMin), duration(b.PenaltyMax), percent(b.EjectionFloor))
}

func filtersText(fs []mesh.Filter) string {
	if len(fs) == 0 {
		return "none"
	}
	words := make([]string, len(fs))
	for i := range fs {
		words[i] = filterText(&fs[i])
	}
	return strings.Join(words, "; ")
}

// filterText names no value of a header: it may be a secret.
func filterText(f *mesh.Filter) string {
	edit := func(of string, e *mesh.HeaderEdit) string {
		var words []string
		names := func(verb string, list []string) {
			if len(list) > 0 {
				words = append(words, verb+" "+strings.Join(list, " "))
			}
		}
		fields := func(fs []mesh.HeaderField) (out []string) {
			for _, f := range fs {
				out = append(out, f.Name)
			}
			return out
		}
		names("remove", e.Remove)
		names("set", fields(e.Set))
		names("add", fields(e.Add))
		return of + " headers: " + strings.Join(words, ", ")
	}
	path := func(e mesh.PathEdit) string {
		switch {
		case e.Full != "":
			return " path " + e.Full
		case e.Prefix != "":
			return " prefix " + e.Prefix
		}
		return ""
	}
	switch {
	case f.RequestHeaders != nil:
		return edit("request", f.RequestHeaders)
	case f.ResponseHeaders != nil:
		return edit("response", f.ResponseHeaders)
	case f.Redirect != nil:
		r := f.Redirect
		s := fmt.Sprintf("redirected with %d to", r.Status)
		if r.Scheme != "" {
			s += " " + r.Scheme
		}
		if r.Host != "" {
			s += " host " + r.Host
		}
		if r.Port != 0 {
			s += fmt.Sprintf(" port %d", r.Port)
		}
		return s + path(r.Path)
	case f.Rewrite != nil:
		s := "rewritten to"
		if f.Rewrite.Host != "" {
			s += " host " + f.Rewrite.Host
		}
		return s + path(f.Rewrite.Path)
	case f.Mirror != nil:
		return fmt.Sprintf("a copy of %s to %s:%s", percent(f.Mirror.Share), f.Mirror.Service, f.Mirror.Port)
	case f.CORS != nil:
		s := "CORS for " + strings.Join(f.CORS.AllowOrigins, " ")
		if f.CORS.AllowCredentials {
			s += " with credentials"
		}
		return s
	case f.Respond != nil:
		return fmt.Sprintf("answered with %d", f.Respond.Status)
	case f.Fault != nil:
		var words []string
		if f.Fault.DelayShare > 0 {
			words = append(words, fmt.Sprintf("%s delayed by %s", percent(f.Fault.DelayShare), duration(f.Fault.Delay)))
		}
		if f.Fault.AbortShare > 0 {
			words = append(words, fmt.Sprintf("%s fail with %d", percent(f.Fault.AbortShare), f.Fault.Abort))
		}
		return "faults: " + strings.Join(words, ", ")
	}
	return "nothing"
}
