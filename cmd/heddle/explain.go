package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/decide"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// questionHelp explains the arguments of the commands that judge a call.
const questionHelp = `FROM is a service ("shop/web"), a SPIFFE ID, or "-" for a caller that proves no identity.
TO is a service, with a port by name or number where it has several ("shop/ledger:tcp").
Without METHOD and PATH the connection is judged; rules about requests then match nothing. PATH may have a query.`

// ask is how a call is written on a command line.
type ask struct {
	headers, claims, query []string
	address, sni, at       string
	direct                 bool
}

func (a *ask) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&a.headers, "header", nil, "a request header, as `name=value`; may be repeated")
	f.StringArrayVar(&a.query, "query", nil, "a parameter of the query, as `name=value`; may be repeated")
	f.StringArrayVar(&a.claims, "claim", nil, "a claim of a valid token, as `issuer:name=value`; may be repeated, also for one name")
	f.StringVar(&a.address, "address", "", "the caller's IP `address`; default: one outside every network that policy names")
	f.StringVar(&a.sni, "sni", "", "the `name` that a connection to a port that speaks tls asks for")
	f.BoolVar(&a.direct, "direct", false, "judge at the service's own door, as for a caller that does not go by its routes")
	f.StringVar(&a.at, "at", "", "judge as of this `time`, for rules that end; default: now")
}

// methods are those of HTTP (RFC 9110, 9.3; RFC 5789).
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}

// question reads the arguments FROM TO [METHOD PATH].
func (a *ask) question(args []string) (*expect.Question, error) {
	q := &expect.Question{From: args[0], To: args[1], Address: a.address, SNI: a.sni, At: time.Now()}
	if a.at != "" {
		var err error
		if q.At, err = parseTime(a.at, q.At); err != nil {
			return nil, usagef("--at: %w", err)
		}
	}
	if len(args) == 4 {
		q.Method, q.Path = args[2], args[3]
		// Methods are told apart by case (RFC 9110, 9.1): "get" is another one, which nobody means.
		if upper := strings.ToUpper(q.Method); upper != q.Method && slices.Contains(methods, upper) {
			return nil, &usageError{err: &hinted{fmt.Errorf("METHOD %q is not %s: case counts", q.Method, upper), "write " + upper}}
		}
		path, query, _ := strings.Cut(q.Path, "?")
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, usagef("PATH %q: its query cannot be read: %w", q.Path, err)
		}
		q.Path, q.Query = path, map[string]string{}
		for name, v := range values {
			q.Query[name] = v[0]
		}
	}
	pairs := func(flag string, from []string, to *map[string]string) error {
		for _, text := range from {
			name, value, ok := strings.Cut(text, "=")
			if !ok || name == "" || q.Method == "" {
				return usagef("--%s %q: want name=value, with METHOD and PATH", flag, text)
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[name] = value
		}
		return nil
	}
	if err := cmp.Or(pairs("header", a.headers, &q.Headers), pairs("query", a.query, &q.Query)); err != nil {
		return nil, err
	}
	for _, text := range a.claims {
		issuer, claim, ok := strings.Cut(text, ":")
		name, value, ok2 := strings.Cut(claim, "=")
		if !ok || !ok2 || issuer == "" || name == "" {
			return nil, usagef("--claim %q: want issuer:name=value, the issuer as policy names it", text)
		}
		if q.JWT == nil {
			q.JWT = map[string]map[string][]string{}
		}
		if q.JWT[issuer] == nil {
			q.JWT[issuer] = map[string][]string{}
		}
		q.JWT[issuer][name] = append(q.JWT[issuer][name], value)
	}
	return q, nil
}

// questionArgs takes FROM TO [METHOD PATH].
func questionArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 2 && len(args) != 4 {
		return fmt.Errorf("%s given, which does not fit: %s", count(len(args), "argument"), cmd.UseLine())
	}
	return nil
}

// parseTime reads a time as people write it: RFC 3339; a date, with or without a time of day, in local time; or how long
// ago, as in "90m", "36h" or "7d".
func parseTime(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	ago := strings.TrimSuffix(text, " ago")
	var days int
	if n, err := fmt.Sscanf(ago, "%dd", &days); err == nil && n == 1 && ago == fmt.Sprintf("%dd", days) && days >= 0 {
		return now.AddDate(0, 0, -days), nil
	}
	if d, err := time.ParseDuration(ago); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf(`%q is no time; write "2026-11-23", "2026-11-23 14:00", "2026-11-23T14:00:00Z", or "2h" for two hours ago`, text)
}

// view is a compiled mesh that can be asked, with what it comes from: a release, a commit or the work tree.
type view struct {
	mesh    *mesh.Mesh
	origins mesh.Origins
	issuers []string // of tokens, as policy names them; nil: those of the mesh
	release *published.Release
	commit  source.Commit // of a revision; the zero Commit is a work tree, or a release
	line    func(diag.Pos) string
	direct  bool // calls do not go by routes
}

// answer judges a question for each identity of the caller. A question about nothing is an error of usage.
func (v *view) answer(q *expect.Question) ([]*expect.Answer, error) {
	calls, err := expect.Calls(v.mesh, q, v.issuers)
	if miss := new(expect.Miss); errors.As(err, &miss) {
		field, _, _ := strings.Cut(miss.Field, ".")
		err := fmt.Errorf("%s: %s in %s", strings.ToUpper(field), miss.Message, v.name())
		if field != "from" && field != "to" {
			err = errors.New(miss.Message)
		}
		if miss.Hint != "" {
			return nil, &usageError{err: &hinted{err, miss.Hint}}
		}
		return nil, &usageError{err: err}
	}
	if err != nil {
		return nil, err
	}
	answers := make([]*expect.Answer, len(calls))
	for i := range calls {
		judge := expect.Judge
		if v.direct {
			judge = expect.JudgeDirect
		}
		answers[i] = judge(v.mesh, v.origins, &calls[i])
	}
	return answers, nil
}

// name is what the view is of, as a part of a sentence.
func (v *view) name() string {
	switch {
	case v.release != nil:
		return "the release that is applied"
	case v.commit.Hash != "":
		return "commit " + short(v.commit.Hash)
	}
	return "the work tree"
}

// look compiles the policy of a target.
func (c *cli) look(ctx context.Context, t *target) (*view, error) {
	repo := t.open()
	defer repo.Close()
	files, err := t.files(ctx, repo)
	if err != nil {
		return nil, err
	}
	one, err := files.Evaluate(ctx, t.env)
	if err != nil {
		return nil, noLook(err)
	}
	if one.Mesh == nil {
		return nil, c.rejected(files.Name(), one)
	}
	return viewOf(one), nil
}

// stateGiven reports whether the state directory was named, by the flag or in the environment; an empty name is none.
func (c *cli) stateGiven(cmd *cobra.Command) bool {
	if c.state == "" {
		c.state = defaultState
		return false
	}
	return cmd.Flags().Changed("state")
}

// nothingToAsk is what to do where there is neither a mesh nor policy.
const nothingToAsk = "start a mesh with `heddle up`, say where its state is with --state DIR, or name a policy repository with --dir DIR"

// view is of the repository where --dir or --rev ask for it, or where there is no mesh on this machine and policy lies
// here; else it is of the release that is applied. releases is nil for the repository.
func (c *cli) view(cmd *cobra.Command, t *target) (v *view, releases *published.Releases, err error) {
	given := c.stateGiven(cmd)
	if t.dir == "" && t.rev == "" && t.env == "" {
		releases, err = published.Open(c.state)
		if err == nil {
			latest, err := releases.Latest()
			if err != nil {
				return nil, nil, err
			}
			return &view{mesh: latest.Mesh, origins: latest.Origins, release: latest}, releases, nil
		}
		if !errors.Is(err, published.ErrNone) || given {
			return nil, nil, err
		}
		if !hasPolicy(home()) {
			return nil, nil, &hinted{err, nothingToAsk}
		}
	}
	v, err = c.look(cmd.Context(), t)
	return v, nil, err
}

func (c *cli) explainCommand() *cobra.Command {
	var a ask
	var t target
	cmd := &cobra.Command{
		Use:   "explain FROM TO [METHOD PATH]",
		Short: "Say who may call whom, and which line of which commit says so",
		Long: `Explain judges a call with the very code that sidecars decide with: the caller's routes and the rules of every
backend together. It needs no running program. It asks the release that is applied where the state directory has one,
else the policy repository in this directory; --dir asks the files of another directory, --rev a revision.

` + questionHelp + `

Exit code 0 is an allowed call, 1 a denied one.`,
		Example: `  heddle explain shop/web shop/api GET /orders
  heddle explain shop/api shop/ledger:tcp
  heddle explain shop/web shop/api GET /orders --rev origin/main
  heddle explain shop/web shop/api GET /orders --claim corp:role=admin --header x-tenant=blue
  heddle explain - shop/web GET / -o json`,
		Args: questionArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := a.question(args)
			if err != nil {
				return err
			}
			v, releases, err := c.view(cmd, &t)
			if err != nil {
				return err
			}
			v.direct = a.direct
			return c.explain(q, v, releases)
		},
		ValidArgsFunction: c.completeServices(2),
	}
	a.flags(cmd)
	t.flags(cmd, "rev", "dir", "env")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// explanation is what is printed.
type explanation struct {
	APIVersion string          `json:"apiVersion"`
	Verdict    string          `json:"verdict"`
	From       explainedCaller `json:"from"`
	To         explainedPort   `json:"to"`
	Method     string          `json:"method,omitempty"`
	Path       string          `json:"path,omitempty"`
	Because    expect.Decision `json:"because"`
	Route      *explainedRoute `json:"route,omitempty"`
	// Release is set where a release was asked, Revision where the repository was.
	Release  *explainedRelease  `json:"release,omitempty"`
	Revision *explainedRevision `json:"revision,omitempty"`
	// Since is the earliest of the consecutive kept releases that decide so, by the same rule.
	Since *explainedRelease `json:"since,omitempty"`
	// Before is what the release before that one decided; none: it is no longer kept, or there was none.
	Before  *expect.Decision `json:"before,omitempty"`
	Nearest *nearest         `json:"nearest,omitempty"`
}

type explainedCaller struct {
	Name     string `json:"name"`
	Identity string `json:"identity,omitempty"`
	// Others are further identities of the service, each judged on its own.
	Others []explainedIdentity `json:"others,omitempty"`
}

type explainedIdentity struct {
	Identity string `json:"identity"`
	Verdict  string `json:"verdict"`
}

type explainedPort struct {
	Service mesh.ServiceName `json:"service"`
	Port    string           `json:"port"`
	Number  uint16           `json:"number"`
}

type explainedRoute struct {
	ID       string            `json:"id"`
	Pos      diag.Pos          `json:"pos,omitzero"`
	Timeout  string            `json:"timeout,omitempty"`
	Backends []expect.Decision `json:"backends,omitempty"`
}

type explainedRelease struct {
	Epoch     uint64    `json:"epoch"`
	Commit    string    `json:"commit"`
	Subject   string    `json:"subject"`
	Author    string    `json:"author"`
	Published time.Time `json:"published"`
}

// explainedRevision is a commit; without a hash it is the work tree.
type explainedRevision struct {
	Commit  string    `json:"commit,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Author  string    `json:"author,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

func describeCommit(c source.Commit) *explainedRevision {
	return &explainedRevision{Commit: c.Hash, Subject: c.Subject, Author: c.Author, Time: c.Time}
}

// nearest is the allow rule that a denied call came closest to.
type nearest struct {
	Rule   string   `json:"rule"`
	Pos    diag.Pos `json:"pos,omitzero"`
	Allows []string `json:"allows"`
}

// describe makes an explanation of answers, the first identity's first.
func describe(q *expect.Question, v *view, answers []*expect.Answer) explanation {
	a := answers[0]
	x := explanation{
		APIVersion: apiVersion, Verdict: a.Verdict,
		From:   explainedCaller{Name: q.From, Identity: a.Call.Peer},
		To:     explainedPort{Service: a.Call.Service, Port: a.Port.Name, Number: a.Port.Port},
		Method: q.Method, Path: q.Path, Because: a.Decision,
	}
	if q.From == expect.Stranger {
		x.From.Name = "a caller without identity"
	}
	for _, other := range answers[1:] {
		x.From.Others = append(x.From.Others, explainedIdentity{other.Call.Peer, other.Verdict})
	}
	if a.Route != nil {
		x.Route = &explainedRoute{ID: a.Route.ID, Pos: a.RoutePos, Backends: a.Backends}
		if a.Route.Timeouts.Request > 0 {
			x.Route.Timeout = a.Route.Timeouts.Request.String()
		}
	}
	if a.Verdict == expect.Deny {
		x.Nearest = nearestTo(v, a)
	}
	if v.release == nil {
		x.Revision = describeCommit(v.commit)
	}
	return x
}

func (c *cli) explain(q *expect.Question, v *view, releases *published.Releases) error {
	answers, err := v.answer(q)
	if err != nil {
		return err
	}
	x := describe(q, v, answers)
	if v.release != nil {
		x.Release, x.Since = describeRelease(v.release), describeRelease(v.release)
		if err := history(q, releases, v, answers[0], &x); err != nil {
			return err
		}
	}
	if c.output == "json" {
		err = writeJSON(c.stdout, x)
	} else {
		err = c.printExplanation(x)
	}
	if err == nil && slices.ContainsFunc(answers, func(a *expect.Answer) bool { return a.Verdict == expect.Deny }) {
		err = errProblems
	}
	return err
}

func describeRelease(a *published.Release) *explainedRelease {
	x := explainedRelease{Epoch: a.Record.Epoch, Commit: a.Record.Commit(), Published: a.Record.Published}
	if len(a.Record.Sources) > 0 {
		x.Subject, x.Author = a.Record.Sources[0].Subject, a.Record.Sources[0].Author
	}
	return &x
}

// history finds since when the answer holds.
func history(q *expect.Question, r *published.Releases, v *view, a *expect.Answer, x *explanation) error {
	epochs, err := r.Epochs()
	if err != nil {
		return err
	}
	for _, epoch := range epochs {
		if epoch >= v.release.Record.Epoch {
			continue
		}
		older, err := r.Load(epoch)
		if err != nil {
			return nil // what is kept no longer reaches further back
		}
		was, err := (&view{mesh: older.Mesh, origins: older.Origins, release: older, direct: v.direct}).answer(q)
		if err != nil {
			x.Before = &expect.Decision{Service: a.Service, Verdict: expect.Deny, Reason: err.Error()}
			return nil
		}
		if !was[0].Same(a) {
			x.Before = &was[0].Decision
			return nil
		}
		x.Since = describeRelease(older)
	}
	return nil
}

// nearestTo looks for the allow rule of the denying service that comes closest: one that knows the caller but not the
// request, else the first on the port.
func nearestTo(v *view, a *expect.Answer) *nearest {
	in, ok := v.mesh.InboundOf(a.Service)
	if !ok {
		return nil
	}
	var best *mesh.Rule
	known := false
	for i := range in.Rules {
		rule := &in.Rules[i]
		if rule.Action != mesh.Allow || rule.Shadow || len(rule.Ports) > 0 && !slices.Contains(rule.Ports, a.Port.Name) {
			continue
		}
		knows := slices.ContainsFunc(rule.From, func(p mesh.Peer) bool { return decide.PeerMatches(&p, a.Call.Peer) })
		if best == nil || knows && !known {
			best, known = rule, knows
		}
	}
	if best == nil {
		return nil
	}
	n := &nearest{Rule: best.ID, Pos: v.origins[best.ID]}
	for _, p := range best.From {
		switch {
		case p.Unauthenticated:
			n.Allows = append(n.Allows, "everybody")
		case p.Authenticated:
			n.Allows = append(n.Allows, "every proven identity")
		case p.Prefix != "":
			n.Allows = append(n.Allows, p.Prefix+"*")
		case p.Suffix != "":
			n.Allows = append(n.Allows, "*"+p.Suffix)
		default:
			n.Allows = append(n.Allows, nameOf(v.mesh, p.Identity))
		}
	}
	for _, id := range best.Routes {
		n.Allows = append(n.Allows, "on route "+id)
	}
	if len(best.Methods) > 0 {
		n.Allows = append(n.Allows, "with "+strings.Join(best.Methods, " or "))
	}
	for _, p := range best.Paths {
		n.Allows = append(n.Allows, "on "+cmp.Or(p.Exact, p.Template, p.Prefix+" and below"))
	}
	for _, h := range best.Headers {
		n.Allows = append(n.Allows, "by header "+h.Name)
	}
	for _, r := range best.Networks {
		n.Allows = append(n.Allows, "from "+r.CIDR.String())
	}
	switch {
	case decide.Ended(best, a.Call.Now):
		n.Allows = append(n.Allows, "until "+best.Until.Format(time.RFC3339)+", which is over")
	case !best.Until.IsZero():
		n.Allows = append(n.Allows, "until "+best.Until.Format(time.RFC3339))
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

// fields writes the lines of an explanation.
type fields struct {
	strings.Builder
	width int // 0: unlimited
}

// line writes a field. What is too long for a terminal goes on below it, broken between words.
func (b *fields) line(field, text string) {
	const indent = "           "
	text = terminal.Clean(text)
	if b.width > 0 && len(indent)+utf8.RuneCountInString(text) > b.width {
		text = strings.TrimPrefix(wrap(text, indent, b.width), indent)
	}
	fmt.Fprintf(b, "  %-9s%s\n", field, text)
}

// at writes a place under a field, if there is one.
func (b *fields) at(p diag.Pos) {
	if !p.IsZero() {
		b.line("", p.Short())
	}
}

// headLine is the verdict over the call.
func (c *cli) headLine(x *explanation) string {
	mark, verdict := terminal.Good, "ALLOW"
	if x.Verdict == expect.Deny {
		mark, verdict = terminal.Trouble, "DENY"
	}
	head := fmt.Sprintf("%s %s %s:%d", x.From.Name, c.out.Arrow(), x.To.Service, x.To.Number)
	if x.Method != "" {
		head += "  " + x.Method + " " + x.Path
	}
	return fmt.Sprintf("%s  %s\n", c.out.Paint(mark, verdict), terminal.Clean(head))
}

func (c *cli) printExplanation(x explanation) error {
	b := fields{width: c.out.Width}
	b.WriteString(c.headLine(&x))
	b.line("because", x.Because.Reason)
	b.at(x.Because.Pos)
	if r := x.Route; r != nil {
		text := r.ID
		if r.Timeout != "" {
			text += ", timeout " + r.Timeout
		}
		b.line("route", text)
		b.at(r.Pos)
		for _, d := range r.Backends {
			share := fmt.Sprintf("%3d%%", *d.Weight)
			if d.Mirror {
				share = "copy"
			}
			b.line("", strings.TrimSpace(fmt.Sprintf("%s %s  %s  %s", share, d.Service, d.Verdict, d.Place())))
		}
	}
	switch {
	case x.Release != nil:
		b.line("release", releaseLine(x.Release))
		if x.Since.Epoch != x.Release.Epoch {
			b.line("since", releaseLine(x.Since))
		}
		if x.Before != nil {
			if x.Since.Epoch == x.Release.Epoch {
				b.line("since", "this release")
			}
			b.line("", fmt.Sprintf("before it: %s by %s", strings.ToUpper(x.Before.Verdict), x.Before.Place()))
		}
	case x.Revision.Commit != "":
		b.line("commit", commitLine(x.Revision))
	default:
		b.line("policy", "the work tree, committed or not")
	}
	if n := x.Nearest; n != nil {
		b.line("nearest", fmt.Sprintf("%s allows %s", n.Rule, strings.Join(n.Allows, ", ")))
		b.at(n.Pos)
	}
	if len(x.From.Others) > 0 {
		b.line("note", "judged as "+x.From.Identity)
		for _, o := range x.From.Others {
			b.line("", fmt.Sprintf("%s as %s", strings.ToUpper(o.Verdict), o.Identity))
		}
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

func releaseLine(r *explainedRelease) string {
	return fmt.Sprintf("%s %q (%s), epoch %d, %s ago", short(r.Commit), r.Subject, person(r.Author), r.Epoch, since(r.Published))
}

func commitLine(r *explainedRevision) string {
	return fmt.Sprintf("%s %q (%s), %s", short(r.Commit), r.Subject, person(r.Author), r.Time.Format("2006-01-02 15:04"))
}
