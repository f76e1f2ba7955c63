package compile

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// maxBody bounds a response that policy holds: it travels in every sidecar's config.
const maxBody = 4096

// answers reports whether the caller's sidecar answers by itself, so that no backend is asked.
func answers(filters []v1alpha1.Filter) bool {
	return slices.ContainsFunc(filters, func(f v1alpha1.Filter) bool { return f.Redirect != nil || f.Respond != nil })
}

// checkAnswered finds what stands beside an answer and would never be used.
func (c *compiler) checkAnswered(r *route) {
	what := "redirect"
	i := slices.IndexFunc(r.src.filters, func(f v1alpha1.Filter) bool { return f.Redirect != nil || f.Respond != nil })
	if r.src.filters[i].Respond != nil {
		what = "respond"
	}
	answer := c.pos(r.at.at("filters").index(i))
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"backends", r.src.backends != nil}, {"timeout", r.src.timeout != ""}, {"responseTimeout", r.src.response != ""},
		{"idleTimeout", r.src.idle != ""}, {"retry", r.src.retry != nil}, {"breaker", r.src.breaker != nil},
	} {
		if f.set {
			c.find(diag.BadFilter, r.at.at(f.field), fmt.Sprintf("the route answers by itself (%s), so field %s is never used", what, f.field),
				"delete it, or the filter", answer)
		}
	}
}

// filters compiles the filters of a route or, with of set, of one of its backends.
func (c *compiler) filters(s *service, r *route, at path, src []v1alpha1.Filter, of *v1alpha1.Backend) []mesh.Filter {
	if c.empty(at, len(src), src == nil) {
		c.find(diag.WrongValue, at, "an empty list of filters changes nothing", "leave the field out")
	}
	if len(src) == 0 {
		return nil
	}
	out := make([]mesh.Filter, 0, len(src))
	seen := map[string]path{} // the kinds that stand once, and the mirrors' targets
	answered, mirrors := path(""), 0
	for i := range src {
		f, at := &src[i], at.index(i)
		if n := count(f.RequestHeaders != nil, f.ResponseHeaders != nil, f.Redirect != nil, f.Rewrite != nil, f.Mirror != nil,
			f.Cors != nil, f.Respond != nil, f.Fault != nil); n != 1 {
			c.find(diag.WrongValue, at, fmt.Sprintf("a filter is exactly one change; %d are set", n), "write one list element for each")
			continue
		}
		kind, compiled := "", mesh.Filter{}
		switch {
		case f.RequestHeaders != nil:
			c.need(&s.out.Needs, mesh.CapFilterHeaders, at, "a header filter")
			compiled.RequestHeaders = c.headerEdit(at.at("requestHeaders"), f.RequestHeaders)
		case f.ResponseHeaders != nil:
			c.need(&s.out.Needs, mesh.CapFilterHeaders, at, "a header filter")
			compiled.ResponseHeaders = c.headerEdit(at.at("responseHeaders"), f.ResponseHeaders)
		case f.Redirect != nil:
			kind = "redirect"
			c.need(&s.out.Needs, mesh.CapFilterRedirect, at, "a redirect")
			compiled.Redirect = c.redirect(r, at.at(kind), f.Redirect)
		case f.Rewrite != nil:
			kind = "rewrite"
			c.need(&s.out.Needs, mesh.CapFilterRewrite, at, "a rewrite")
			compiled.Rewrite = c.rewrite(r, at.at(kind), f.Rewrite)
		case f.Mirror != nil:
			mirrors++
			c.need(&s.out.Needs, mesh.CapFilterMirror, at, "a mirror")
			if compiled.Mirror = c.mirror(r, at.at("mirror"), f.Mirror); compiled.Mirror != nil {
				c.once(seen, "mirror to "+string(compiled.Mirror.Service)+":"+compiled.Mirror.Port, at, "filter")
			}
		case f.Cors != nil:
			kind = "cors"
			c.need(&s.out.Needs, mesh.CapFilterCORS, at, "CORS")
			compiled.CORS = c.cors(at.at(kind), f.Cors)
		case f.Respond != nil:
			kind = "respond"
			c.need(&s.out.Needs, mesh.CapFilterRespond, at, "a direct response")
			compiled.Respond = c.respond(at.at(kind), f.Respond)
		case f.Fault != nil:
			kind = "fault"
			c.need(&s.out.Needs, mesh.CapFilterFault, at, "a fault")
			compiled.Fault = c.fault(at.at(kind), f.Fault)
		}
		out = append(out, compiled)
		if kind == "" {
			continue
		}
		if other, ok := seen[kind]; ok {
			c.find(diag.BadFilter, at, fmt.Sprintf("a second %s: only one can be done", kind), "write one", c.pos(other))
			continue
		}
		seen[kind] = at
		if of != nil && (kind == "redirect" || kind == "respond" || kind == "cors") {
			c.find(diag.BadFilter, at, kind+" answers before a backend is chosen", "put it on the route")
		}
		if r.src.kind.field == grpcKind.field && (kind == "redirect" || kind == "rewrite" || kind == "cors" || kind == "respond") {
			c.find(diag.BadFilter, at, kind+" is for HTTP, and the route is of gRPC calls", "write an HTTP route, or leave it out")
		}
		if kind == "redirect" || kind == "respond" {
			if answered != "" {
				c.find(diag.BadFilter, at, "redirect and respond are both an answer: only one can be given", "write one", c.pos(answered))
			}
			answered = at
		}
	}
	if answered != "" {
		for _, f := range []string{"rewrite"} {
			if at, ok := seen[f]; ok {
				c.find(diag.BadFilter, at, "no request goes on from here to be rewritten: the route answers by itself",
					"write the new address into the redirect", c.pos(answered))
			}
		}
		if mirrors > 0 {
			c.find(diag.BadFilter, at, "the route answers by itself, so there is nothing to mirror", "delete the mirror", c.pos(answered))
		}
	}
	return out
}

// headerEdit compiles changes to headers: lower case, sorted.
func (c *compiler) headerEdit(at path, src *v1alpha1.HeaderEdit) *mesh.HeaderEdit {
	if len(src.Set)+len(src.Add)+len(src.Remove) == 0 {
		c.find(diag.BadFilter, at, "the filter changes no header", "write set, add or remove")
	}
	name := func(at path, n string) (string, bool) {
		lower := strings.ToLower(n)
		switch why := notPassedOn(lower); {
		case !token(n):
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no header name", n), `write a name as in "x-tenant"`)
		case why != "":
			c.find(diag.BadFilter, at, fmt.Sprintf("header %s %s, so policy cannot change it", lower, why), "use another header")
		case lower == "host":
			c.find(diag.BadFilter, at, "Host says where a request goes, which a header filter does not change", `write rewrite: host: "name"`)
		default:
			return lower, true
		}
		return lower, false
	}
	out := &mesh.HeaderEdit{}
	fields := func(at path, m map[string]string) (out []mesh.HeaderField) {
		seen := map[string]path{}
		for _, n := range sortedKeys(m) {
			lower, ok := name(at.at(n), n)
			c.once(seen, lower, at.at(n), "header")
			if v := m[n]; !headerValue(v) {
				c.find(diag.WrongValue, at.at(n), fmt.Sprintf("no header has the value %q", v),
					"leave out control characters, and spaces at the ends, and write UTF-8")
			} else if ok {
				out = append(out, mesh.HeaderField{Name: lower, Value: v})
			}
		}
		slices.SortFunc(out, func(a, b mesh.HeaderField) int { return strings.Compare(a.Name, b.Name) })
		return out
	}
	out.Set, out.Add = fields(at.at("set"), src.Set), fields(at.at("add"), src.Add)
	seen := map[string]path{}
	for i, n := range src.Remove {
		at := at.at("remove").index(i)
		lower, ok := name(at, n)
		c.once(seen, lower, at, "header")
		if slices.ContainsFunc(out.Set, func(f mesh.HeaderField) bool { return f.Name == lower }) {
			c.find(diag.BadFilter, at, fmt.Sprintf("header %s is removed and set: set replaces it already", lower), "leave it out of remove")
		}
		if ok {
			out.Remove = append(out.Remove, lower)
		}
	}
	out.Remove = set(out.Remove)
	return out
}

// pathEdit compiles a change of the path. A prefix can be replaced only where every condition of the route names one.
func (c *compiler) pathEdit(r *route, at path, src *v1alpha1.PathEdit) (out mesh.PathEdit) {
	if src == nil {
		return out
	}
	switch n := count(src.Full != "", src.Prefix != ""); {
	case n != 1:
		c.find(diag.WrongValue, at, fmt.Sprintf("a path edit is exactly one of full, prefix; %d are set", n), `write prefix: "/new"`)
	case src.Full != "":
		out.Full = c.spelling(at.at("full"), string(src.Full))
	default:
		out.Prefix = c.spelling(at.at("prefix"), string(src.Prefix))
		for i, m := range r.src.http {
			if m.Path == nil || m.Path.Prefix == "" {
				c.find(diag.BadFilter, at.at("prefix"), "a condition of the route names no prefix, so there is none to replace",
					`match by path: prefix, or write full`, c.pos(r.at.at("match").index(i)))
				break
			}
		}
	}
	return out
}

func (c *compiler) redirect(r *route, at path, src *v1alpha1.Redirect) *mesh.Redirect {
	out := &mesh.Redirect{Scheme: src.Scheme, Host: c.host(at.at("host"), string(src.Host), false), Path: c.pathEdit(r, at.at("path"), src.Path),
		Status: mesh.BuiltInRedirectStatus}
	switch src.Scheme {
	case "", "http", "https":
	default:
		c.find(diag.WrongValue, at.at("scheme"), fmt.Sprintf("%q is no scheme to redirect to", src.Scheme), `write "http" or "https"`)
	}
	if src.Port != 0 {
		out.Port = c.portNumber(at.at("port"), src.Port)
	}
	switch src.Status {
	case 0:
	case 301, 302, 303, 307, 308:
		out.Status = uint16(src.Status)
	default:
		c.find(diag.WrongValue, at.at("status"), fmt.Sprintf("%d is no status of a redirect", src.Status), "write 301, 302, 303, 307 or 308")
	}
	if out.Scheme == "" && out.Host == "" && out.Port == 0 && src.Path == nil {
		c.find(diag.RouteLoop, at, "the redirect changes nothing, so the client comes back for ever", "say what is different there: scheme, host, port or path")
	}
	return out
}

// checkRedirects finds redirects that lead back to themselves. It goes by paths: what else a request asks for, the client
// asks for again.
func (c *compiler) checkRedirects(s *service, matches []mesh.Match, byID map[string]*route) {
	for i := range matches {
		m := &matches[i]
		r := byID[m.Route]
		j := slices.IndexFunc(r.compiled.Filters, func(f mesh.Filter) bool { return f.Redirect != nil })
		if j < 0 || r.broken || r.port == nil {
			continue
		}
		to := r.compiled.Filters[j].Redirect
		if to.Scheme == "https" || to.Host != "" && to.Host != s.name.Host() || to.Port != 0 && to.Port != r.port.number {
			continue
		}
		var lands string // a path that the client asks for next
		switch {
		case to.Path.Full != "":
			lands = to.Path.Full
		case to.Path.Prefix != "" && decide.HasPathPrefix(to.Path.Prefix, m.Path.Prefix+"/"), to.Path.Prefix != "" && m.Path.Prefix == "":
			lands = to.Path.Prefix
		case to.Path.Prefix != "" && decide.HasPathPrefix(to.Path.Prefix, m.Path.Prefix):
			lands = to.Path.Prefix
		case to.Path == mesh.PathEdit{} && (to.Host != "" || to.Port != 0 || to.Scheme != ""):
			lands = m.Path.Exact
			if lands == "" {
				lands = m.Path.Prefix
			}
			if lands == "" {
				lands = "/"
			}
		default:
			continue
		}
		takes := slices.IndexFunc(matches, func(by mesh.Match) bool {
			return by.Path.Regex == "" && pathTakes(by.Path, lands) && fieldsInside(by.Headers, m.Headers) && fieldsInside(by.Query, m.Query)
		})
		if takes < 0 || matches[takes].Route != m.Route {
			continue
		}
		c.find(diag.RouteLoop, r.at.at("filters").index(j).at("redirect"), "the redirect leads back to this route",
			"redirect to a path that the route does not match, or to another host")
	}
}

func pathTakes(m mesh.PathMatch, p string) bool {
	return (m.Exact == "" || m.Exact == p) && (m.Prefix == "" || decide.HasPathPrefix(p, m.Prefix))
}

func (c *compiler) rewrite(r *route, at path, src *v1alpha1.Rewrite) *mesh.Rewrite {
	if src.Host == "" && src.Path == nil {
		c.find(diag.BadFilter, at, "the rewrite changes nothing", "write host or path")
	}
	return &mesh.Rewrite{Host: c.host(at.at("host"), string(src.Host), false), Path: c.pathEdit(r, at.at("path"), src.Path)}
}

func (c *compiler) mirror(r *route, at path, src *v1alpha1.Mirror) *mesh.Mirror {
	out := &mesh.Mirror{Share: mesh.AllPPM}
	if src.Percent != nil {
		out.Share, _ = c.share(at.at("percent"), *src.Percent)
	}
	target := c.lookup(at.at("service"), src.Service)
	if target == nil {
		return nil
	}
	kind := httpKind
	if r.compiled.GRPC {
		kind = grpcKind
	}
	p := c.backendPort(target, r, at, src.Port, kind)
	if p == nil {
		return nil
	}
	out.Service, out.Port = target.name, p.name
	if slices.ContainsFunc(r.compiled.Backends, func(b mesh.Backend) bool {
		return b.Service == out.Service && b.Port == out.Port && b.Weight > 0
	}) {
		c.selfMirror(at, out.Service, r.at.at("backends"))
	}
	return out
}

// selfMirror finds a mirror to where the requests go.
func (c *compiler) selfMirror(at path, to mesh.ServiceName, backends path) {
	c.find(diag.SelfMirror, at, fmt.Sprintf("%s gets the requests already: it would see them twice", to),
		"mirror to a service that is not among the route's backends", c.pos(backends))
}

func (c *compiler) cors(at path, src *v1alpha1.CORS) *mesh.CORS {
	out := &mesh.CORS{AllowCredentials: src.AllowCredentials, MaxAge: mesh.BuiltInCORSMaxAge}
	if src.MaxAge != "" {
		out.MaxAge, _ = c.duration(at.at("maxAge"), src.MaxAge)
	}
	if len(src.AllowOrigins) == 0 {
		c.find(diag.WrongValue, at.at("allowOrigins"), "no origin is allowed, so the filter allows nothing", `name origins, as in ["https://shop.example"]`)
	}
	seen := map[string]path{}
	for i, o := range src.AllowOrigins {
		at := at.at("allowOrigins").index(i)
		c.once(seen, o, at, "origin")
		switch u, err := url.Parse(o); {
		case o == "*" && len(src.AllowOrigins) > 1:
			c.find(diag.BadFilter, at, `"*" allows every origin, so the others say nothing`, `write "*" alone, or the others`)
		case o == "*" && src.AllowCredentials:
			c.find(diag.BadFilter, at, `browsers refuse credentials where "*" is allowed (Fetch standard, 3.2.5)`,
				"name the origins, or leave allowCredentials out")
		case o == "*":
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Scheme+"://"+u.Host != o || strings.ToLower(o) != o:
			c.find(diag.WrongValue, at, fmt.Sprintf("%q is no origin", o), `write scheme, host and port if it is not the usual one, as in "https://shop.example"`)
		}
		out.AllowOrigins = append(out.AllowOrigins, o)
	}
	seen = map[string]path{}
	for i, m := range src.AllowMethods {
		c.once(seen, string(m), at.at("allowMethods").index(i), "method")
		if !token(string(m)) {
			c.find(diag.WrongValue, at.at("allowMethods").index(i), fmt.Sprintf("%q is no HTTP method", m), "write an HTTP method, in upper case")
		}
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	names := func(at path, names []string) (out []string) {
		seen := map[string]path{}
		for i, n := range names {
			c.once(seen, strings.ToLower(n), at.index(i), "header")
			if !token(n) {
				c.find(diag.WrongValue, at.index(i), fmt.Sprintf("%q is no header name", n), `write a name as in "x-tenant"`)
			}
			out = append(out, strings.ToLower(n))
		}
		return set(out)
	}
	out.AllowHeaders, out.ExposeHeaders = names(at.at("allowHeaders"), src.AllowHeaders), names(at.at("exposeHeaders"), src.ExposeHeaders)
	out.AllowOrigins, out.AllowMethods = set(out.AllowOrigins), set(out.AllowMethods)
	return out
}

func (c *compiler) respond(at path, src *v1alpha1.DirectResponse) *mesh.DirectResponse {
	switch {
	case src.Status < 200 || src.Status > 599:
		c.find(diag.WrongValue, at.at("status"), fmt.Sprintf("%d is no status of a response", src.Status), "write a status from 200 to 599")
		return &mesh.DirectResponse{}
	case src.Body != "" && (src.Status == 204 || src.Status == 304):
		c.find(diag.BadFilter, at.at("body"), fmt.Sprintf("a response with status %d has no body (RFC 9110, 6.4.1)", src.Status), "leave body out, or answer 200")
	case len(src.Body) > maxBody:
		c.find(diag.WrongValue, at.at("body"), fmt.Sprintf("the body has %d bytes; %d are the most", len(src.Body), maxBody), "serve it from a service")
	}
	return &mesh.DirectResponse{Status: uint16(src.Status), Body: src.Body}
}

func (c *compiler) fault(at path, src *v1alpha1.Fault) *mesh.Fault {
	out := &mesh.Fault{}
	if src.Delay == nil && src.Abort == nil {
		c.find(diag.BadFilter, at, "the fault does nothing", "write delay or abort")
	}
	if d := src.Delay; d != nil {
		out.Delay, _ = c.duration(at.at("delay", "duration"), d.Duration)
		out.DelayShare, _ = c.share(at.at("delay", "percent"), d.Percent)
	}
	if a := src.Abort; a != nil {
		if a.Status < 400 || a.Status > 599 {
			c.find(diag.WrongValue, at.at("abort", "status"), fmt.Sprintf("%d is no status of a failure", a.Status), "write a status from 400 to 599")
		} else {
			out.Abort = uint16(a.Status)
		}
		out.AbortShare, _ = c.share(at.at("abort", "percent"), a.Percent)
	}
	return out
}
