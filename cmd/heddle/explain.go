package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

func (c *cli) explainCommand() *cobra.Command {
	var headers []string
	cmd := &cobra.Command{
		Use:   "explain FROM TO [METHOD PATH]",
		Short: "Say who may call whom, and which line of which commit says so",
		Long: `Explain judges a call by the release that is applied, with the very code that sidecars decide with.
It needs no running program. Exit code 0 is an allowed call, 1 a denied one.

FROM is a service ("shop/web"), a SPIFFE ID, or "-" for a caller that proves no identity.
TO is a service, with a port by name or number where it has several ("shop/ledger:tcp").
Without METHOD and PATH the connection is judged; rules about routes then match nothing.`,
		Example: `  heddle explain shop/web shop/api GET /orders
  heddle explain shop/api shop/ledger:tcp
  heddle explain - shop/web GET / -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 && len(args) != 4 {
				return fmt.Errorf("%d arguments do not fit: %s", len(args), cmd.UseLine())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			q := question{from: args[0], to: args[1], headers: map[string]string{}}
			if len(args) == 4 {
				q.http, q.method, q.path = true, args[2], args[3]
				if !strings.HasPrefix(q.path, "/") && q.path != "*" {
					return usagef("PATH %q does not start with /", q.path)
				}
				q.path, _, _ = strings.Cut(q.path, "?")
			}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, "=")
				if !ok || !q.http {
					return usagef("--header %q: want name=value, with METHOD and PATH", h)
				}
				q.headers[strings.ToLower(name)] = value
			}
			return c.explain(q)
		},
		ValidArgsFunction: c.completeServices(2),
	}
	cmd.Flags().StringSliceVar(&headers, "header", nil, "a request header, as `name=value`; may be repeated")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// question is a call to judge.
type question struct {
	from, to     string
	http         bool
	method, path string
	headers      map[string]string
}

// decision is what decided about one service, with where that was written.
type decision struct {
	Service mesh.ServiceName `json:"service"`
	Verdict string           `json:"verdict"` // "allow" or "deny"
	Reason  string           `json:"reason"`  // one line
	Rule    string           `json:"rule,omitempty"`
	Default bool             `json:"default,omitempty"` // no rule matched
	Pos     diag.Pos         `json:"pos,omitzero"`
	Weight  *uint32          `json:"weight,omitempty"` // of a backend
}

// same reports whether two releases decide alike, for the same reason.
func (d *decision) same(other *decision) bool {
	return d.Verdict == other.Verdict && d.Rule == other.Rule
}

// answer is a judged call.
type answer struct {
	decision
	identity string // of the caller; empty: none
	port     *mesh.InboundPort
	route    *mesh.Route
	routePos diag.Pos
	backends []decision
	timeout  time.Duration
	also     []string // the caller's other identities
}

// explanation is what is printed.
type explanation struct {
	APIVersion string           `json:"apiVersion"`
	Verdict    string           `json:"verdict"`
	From       explainedCaller  `json:"from"`
	To         explainedPort    `json:"to"`
	Method     string           `json:"method,omitempty"`
	Path       string           `json:"path,omitempty"`
	Because    decision         `json:"because"`
	Route      *explainedRoute  `json:"route,omitempty"`
	Release    explainedRelease `json:"release"`
	// Since is the earliest of the consecutive kept releases that decide so, by the same rule.
	Since explainedRelease `json:"since"`
	// Before is what the release before that one decided; none: it is no longer kept, or there was none.
	Before  *decision `json:"before,omitempty"`
	Nearest *nearest  `json:"nearest,omitempty"`
}

type explainedCaller struct {
	Name     string   `json:"name"`
	Identity string   `json:"identity,omitempty"`
	Others   []string `json:"others,omitempty"` // further identities of the service, judged on their own
}

type explainedPort struct {
	Service mesh.ServiceName `json:"service"`
	Port    string           `json:"port"`
	Number  uint16           `json:"number"`
}

type explainedRoute struct {
	ID       string     `json:"id"`
	Pos      diag.Pos   `json:"pos,omitzero"`
	Timeout  string     `json:"timeout,omitempty"`
	Backends []decision `json:"backends"`
}

type explainedRelease struct {
	Epoch     uint64    `json:"epoch"`
	Commit    string    `json:"commit"`
	Subject   string    `json:"subject"`
	Author    string    `json:"author"`
	Published time.Time `json:"published"`
}

// nearest is the allow rule that a denied call came closest to.
type nearest struct {
	Rule   string   `json:"rule"`
	Pos    diag.Pos `json:"pos,omitzero"`
	Allows []string `json:"allows"`
}

func (c *cli) explain(q question) error {
	r, err := published.Open(c.state)
	if err != nil {
		return err
	}
	now, err := r.Latest()
	if err != nil {
		return err
	}
	a, err := q.judge(now)
	if err != nil {
		return err
	}
	x := explanation{
		APIVersion: apiVersion, Verdict: a.Verdict,
		From:    explainedCaller{Name: q.from, Identity: a.identity, Others: a.also},
		To:      explainedPort{Service: a.Service, Port: a.port.Name, Number: a.port.Port},
		Method:  q.method,
		Path:    q.path,
		Because: a.decision,
		Release: describeRelease(now),
		Since:   describeRelease(now),
	}
	if q.from == "-" {
		x.From.Name = "a caller without identity"
	}
	if a.route != nil {
		x.Route = &explainedRoute{ID: a.route.ID, Pos: a.routePos, Backends: a.backends}
		if a.timeout > 0 {
			x.Route.Timeout = a.timeout.String()
		}
	}
	if a.Verdict == "deny" {
		x.Nearest = q.nearest(now, a)
	}
	if err := q.history(r, now, a, &x); err != nil {
		return err
	}
	if c.output == "json" {
		err = writeJSON(c.stdout, x)
	} else {
		err = c.printExplanation(x)
	}
	if err == nil && a.Verdict == "deny" {
		err = errProblems
	}
	return err
}

func describeRelease(a *published.Release) explainedRelease {
	x := explainedRelease{Epoch: a.Record.Epoch, Commit: a.Record.Commit(), Published: a.Record.Published}
	if len(a.Record.Sources) > 0 {
		x.Subject, x.Author = a.Record.Sources[0].Subject, a.Record.Sources[0].Author
	}
	return x
}

// history finds since when the answer holds.
func (q question) history(r *published.Releases, now *published.Release, a *answer, x *explanation) error {
	epochs, err := r.Epochs()
	if err != nil {
		return err
	}
	for _, epoch := range epochs {
		if epoch >= now.Record.Epoch {
			continue
		}
		older, err := r.Load(epoch)
		if err != nil {
			return nil // what is kept no longer reaches further back
		}
		was, err := q.judge(older)
		if err != nil {
			x.Before = &decision{Service: a.Service, Verdict: "deny", Reason: err.Error()}
			return nil
		}
		if !was.same(&a.decision) {
			x.Before = &was.decision
			return nil
		}
		x.Since = describeRelease(older)
	}
	return nil
}

// judge answers a question by a release.
func (q question) judge(r *published.Release) (*answer, error) {
	service, portName, _ := strings.Cut(q.to, ":")
	in, ok := r.Mesh.InboundOf(mesh.ServiceName(service))
	if !ok {
		return nil, unknownService(r.Mesh, "TO", service)
	}
	port, err := pickPort(in, portName, q.http)
	if err != nil {
		return nil, err
	}
	a := &answer{port: port, decision: decision{Service: in.Service}}
	switch {
	case q.from == "-":
	case strings.HasPrefix(q.from, "spiffe://"):
		id, err := spiffe.ParseID(q.from)
		if err != nil {
			return nil, usagef("FROM: %w", err)
		}
		a.identity = string(id)
	default:
		caller, ok := r.Mesh.InboundOf(mesh.ServiceName(q.from))
		if !ok {
			return nil, unknownService(r.Mesh, "FROM", q.from)
		}
		a.identity, a.also = caller.Identities[0], caller.Identities[1:]
	}
	request := &decide.Request{Peer: a.identity, HTTP: q.http, Method: q.method, Path: q.path,
		Header: func(name string) (string, bool) { v, ok := q.headers[name]; return v, ok }}

	// The caller's sidecar routes first; a caller without one comes to the service's own door.
	if a.identity != "" && q.http {
		if out, ok := r.Mesh.OutboundOf(in.Service); ok {
			if p, ok := out.Port(port.Name); ok && p.Protocol != mesh.TCP && p.Protocol != mesh.Opaque {
				route, ok := decide.MatchRoute(out, p, request)
				if !ok {
					a.Verdict, a.Reason = "deny", fmt.Sprintf("no route of %s matches the request: 404", in.Service)
					return a, nil
				}
				a.route = route
			}
		}
	}
	if a.route == nil {
		a.decision = authorize(r, in, port, request)
		return a, nil
	}
	a.routePos, a.timeout = r.Origins[a.route.ID], a.route.Timeouts.Request
	for _, b := range a.route.Backends {
		d := decision{Service: b.Service, Verdict: "deny", Reason: "it does not exist"}
		if in, ok := r.Mesh.InboundOf(b.Service); ok {
			if p, ok := in.Port(b.Port); ok {
				d = authorize(r, in, p, request)
			}
		}
		d.Weight = &b.Weight
		a.backends = append(a.backends, d)
	}
	// The call is allowed where every backend that takes requests allows it; what denies is what a reader looks for.
	takes := func(d decision) bool { return *d.Weight > 0 }
	at := slices.IndexFunc(a.backends, func(d decision) bool { return takes(d) && d.Verdict == "deny" })
	if at < 0 {
		at = slices.IndexFunc(a.backends, takes)
	}
	if at < 0 {
		a.Verdict, a.Reason = "deny", fmt.Sprintf("route %s sends requests nowhere: every weight is 0", a.route.ID)
		return a, nil
	}
	a.decision = a.backends[at]
	a.decision.Weight = nil
	return a, nil
}

// authorize is the verdict of a service's own sidecar.
func authorize(r *published.Release, in *mesh.Inbound, port *mesh.InboundPort, request *decide.Request) decision {
	d := decision{Service: in.Service, Verdict: "deny"}
	if request.Peer == "" && port.MTLS != mesh.Permissive {
		d.Rule, d.Pos = port.DefaultID, r.Origins[port.DefaultID]
		d.Reason = fmt.Sprintf("port %s takes mTLS only, and the caller proves no identity", port.Name)
		return d
	}
	if request.HTTP && port.CanonicalPaths && !decide.CanonicalPath(request.Path) {
		d.Reason = "the path is not in canonical form, and rules of the port judge by path: 400"
		return d
	}
	v := decide.Authorize(in, port, request)
	d.Rule, d.Default, d.Pos = v.Rule, v.Default, r.Origins[v.Rule]
	switch {
	case v.Allowed && v.Default:
		d.Verdict, d.Reason = "allow", fmt.Sprintf("no rule matches, and the port's default is %s", port.Default)
	case v.Allowed:
		d.Verdict, d.Reason = "allow", "rule "+v.Rule
	case v.Default && request.Peer == "":
		d.Reason = "no rule allows a caller without identity (default deny)"
	case v.Default:
		d.Reason = fmt.Sprintf("no rule allows %s (default deny)", request.Peer)
	default:
		d.Reason = "rule " + v.Rule
	}
	return d
}

func pickPort(in *mesh.Inbound, name string, http bool) (*mesh.InboundPort, error) {
	var names []string
	var fits []*mesh.InboundPort
	for i := range in.Ports {
		p := &in.Ports[i]
		names = append(names, p.Name)
		switch {
		case name == p.Name || name == strconv.Itoa(int(p.Port)):
			return p, nil
		case name == "" && (!http || p.Protocol != mesh.TCP && p.Protocol != mesh.Opaque):
			fits = append(fits, p)
		}
	}
	switch {
	case len(names) == 0:
		return nil, usagef("TO: %s has no ports: nobody calls it", in.Service)
	case name != "":
		return nil, usagef("TO: %s has no port %q; it has %s", in.Service, name, strings.Join(names, ", "))
	case len(fits) == 1:
		return fits[0], nil
	case len(fits) == 0:
		return nil, usagef("TO: no port of %s speaks HTTP; leave METHOD and PATH out, or name one of %s", in.Service, strings.Join(names, ", "))
	}
	return nil, usagef("TO: %s has several ports; write %s:%s, with one of %s", in.Service, in.Service, names[0], strings.Join(names, ", "))
}

func unknownService(m *mesh.Mesh, what, name string) error {
	var names []string
	for i := range m.Inbound {
		names = append(names, string(m.Inbound[i].Service))
	}
	err := fmt.Errorf("%s: there is no service %q in the release that is applied", what, name)
	if near := diag.Nearest(name, names); near != "" {
		return &usageError{err: &hinted{err, fmt.Sprintf("did you mean %s?", near)}}
	}
	return &usageError{err: &hinted{err, "write it as namespace/name; there are " + strings.Join(names[:min(len(names), 8)], ", ")}}
}

// nearest looks for the allow rule of the denying service that comes closest: one that knows the caller but not the
// request, else the first on the port.
func (q question) nearest(r *published.Release, a *answer) *nearest {
	in, ok := r.Mesh.InboundOf(a.Service)
	if !ok {
		return nil
	}
	var best *mesh.Rule
	known := false
	for i := range in.Rules {
		rule := &in.Rules[i]
		if rule.Action != mesh.Allow || len(rule.Ports) > 0 && !slices.Contains(rule.Ports, a.port.Name) {
			continue
		}
		knows := slices.ContainsFunc(rule.From, func(p mesh.Peer) bool {
			return p.Unauthenticated || a.identity != "" && (p.Authenticated || p.Identity == a.identity)
		})
		if best == nil || knows && !known {
			best, known = rule, knows
		}
	}
	if best == nil {
		return nil
	}
	n := &nearest{Rule: best.ID, Pos: r.Origins[best.ID]}
	for _, p := range best.From {
		switch {
		case p.Unauthenticated:
			n.Allows = append(n.Allows, "everybody")
		case p.Authenticated:
			n.Allows = append(n.Allows, "every proven identity")
		default:
			n.Allows = append(n.Allows, nameOf(r.Mesh, p.Identity))
		}
	}
	for _, id := range best.Routes {
		n.Allows = append(n.Allows, "on route "+id)
	}
	return n
}

// nameOf is the service with an identity, or the identity.
func nameOf(m *mesh.Mesh, identity string) string {
	for i := range m.Inbound {
		if slices.Contains(m.Inbound[i].Identities, identity) {
			return string(m.Inbound[i].Service)
		}
	}
	return identity
}

func (c *cli) printExplanation(x explanation) error {
	mark, verdict := terminal.Good, "ALLOW"
	if x.Verdict == "deny" {
		mark, verdict = terminal.Trouble, "DENY"
	}
	var b strings.Builder
	line := func(field, text string) { fmt.Fprintf(&b, "  %-9s%s\n", field, terminal.Clean(text)) }
	head := fmt.Sprintf("%s %s %s:%d", x.From.Name, c.out.Arrow(), x.To.Service, x.To.Number)
	if x.Method != "" {
		head += "  " + x.Method + " " + x.Path
	}
	fmt.Fprintf(&b, "%s  %s\n", c.out.Paint(mark, verdict), terminal.Clean(head))
	line("because", x.Because.Reason)
	if !x.Because.Pos.IsZero() {
		line("", x.Because.Pos.Short())
	}
	if r := x.Route; r != nil {
		text := r.ID
		if r.Timeout != "" {
			text += ", timeout " + r.Timeout
		}
		line("route", text)
		if !r.Pos.IsZero() {
			line("", r.Pos.Short())
		}
		for _, d := range r.Backends {
			line("", strings.TrimSpace(fmt.Sprintf("%3d%% %s  %s  %s", *d.Weight, d.Service, d.Verdict, place(d))))
		}
	}
	line("release", releaseLine(x.Release))
	if x.Since.Epoch != x.Release.Epoch {
		line("since", releaseLine(x.Since))
	}
	if x.Before != nil {
		if x.Since.Epoch == x.Release.Epoch {
			line("since", "this release")
		}
		line("", fmt.Sprintf("before it: %s by %s", strings.ToUpper(x.Before.Verdict), place(*x.Before)))
	}
	if n := x.Nearest; n != nil {
		line("nearest", fmt.Sprintf("%s allows %s", n.Rule, strings.Join(n.Allows, ", ")))
		if !n.Pos.IsZero() {
			line("", n.Pos.Short())
		}
	}
	if len(x.From.Others) > 0 {
		line("note", fmt.Sprintf("judged as %s; the service also has %s", x.From.Identity, strings.Join(x.From.Others, ", ")))
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

// place is where a decision was written or, where no line says it, why.
func place(d decision) string {
	if d.Pos.IsZero() {
		return d.Reason
	}
	return d.Pos.Short()
}

func releaseLine(r explainedRelease) string {
	return fmt.Sprintf("%s %q (%s), epoch %d, %s ago", short(r.Commit), r.Subject, person(r.Author), r.Epoch, since(r.Published))
}
