package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler/plan"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
)

// comparison is what plan and diff compare, and how they show it.
type comparison struct {
	target
	from, to string // revisions; to: "" is the work tree
	failOn   string
	name     string
	url      string // of the repository, for links
	subdir   string // of the policy in it
	detailed bool
	full     bool // every line is shown
	judges   bool // whether what is wrong with the new side is shown
}

func (c *cli) planCommand() *cobra.Command {
	var p comparison
	cmd := &cobra.Command{
		Use:   "plan [DIR]",
		Short: "Say what a change of policy will do: who may newly call whom",
		Long: `Plan compiles two states of a policy repository and compares what they do, not how they are written: who may call
what and may no longer, encryption that appears or goes, traffic that moves, timeouts, retries and limits. Each line
has a risk, the deciding lines of both sides, and one call that the two judge or route differently, as arguments for
heddle explain. The comparison is exact over all canonical requests and all identities that policy tells apart; what it
cannot decide "may change".

It compares the commit where HEAD left the main branch (upstream's, else origin's, else the local one) with the files as
they lie there; --from and --to name other revisions. The findings of the new side are printed. The old side may have
been written for another version of Heddle, and is judged as mildly as can be. Where it has errors all the same, no
mesh serves it, and the newest commit before it that has none is compared instead.

Exit code 0: compared. 1: a line has a risk of --fail-on, or the new side has errors. 3: a side could not be read, or the
old one not compiled. With --detailed-exitcode, 10: compared, and something changes.`,
		Example: `  heddle plan
  heddle plan --from v1.4 --to main
  heddle plan --fail-on widens,drops-encryption
  heddle plan -o markdown --name mesh-policy --repository-url https://git.example.org/acme/mesh-policy > comment.md`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.dir, p.judges = c.policyDir(args), true
			return c.plan(cmd.Context(), &p)
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.from, "from", "", "the old side's `revision`; default: where HEAD left the main branch")
	f.StringVar(&p.to, "to", "", "the new side's `revision`; default: the files as they lie there")
	f.StringVar(&p.failOn, "fail-on", "", "exit with 1 where a line has one of these comma-separated `risks`: "+riskNames())
	p.fullFlag(cmd)
	f.BoolVar(&p.detailed, "detailed-exitcode", false, "exit with 10 where something changes")
	f.StringVar(&p.name, "name", "mesh-policy", "the plan's `name`, by which a later comment finds an earlier one")
	f.StringVar(&p.url, "repository-url", "", "the repository's `address` on its forge, for links to lines")
	p.flags(cmd, "env", "all-envs", "proxy-version")
	names := make([]string, len(plan.Risks))
	for i, r := range plan.Risks {
		names[i] = string(r)
	}
	complete(cmd, "fail-on", names...)
	c.outputFlag(cmd, "text", "markdown", "json")
	return cmd
}

// fullFlag adds --full.
func (p *comparison) fullFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.full, "full", false, "show every line, also those about calls that are refused before and after")
}

func riskNames() string {
	names := make([]string, len(plan.Risks))
	for i, r := range plan.Risks {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

func (c *cli) diffCommand() *cobra.Command {
	var p comparison
	cmd := &cobra.Command{
		Use:   "diff REV [REV]",
		Short: "Say what two revisions of policy do differently",
		Long: `Diff is heddle plan between two revisions: what they do, not how they are written. With one revision it compares
that with the files as they lie there.

The exit codes are those of kubectl diff. 0: both do the same. 1: they differ. More: something could not be compared.`,
		Example: `  heddle diff v1.4 main
  heddle diff HEAD~3 --dir policy`,
		Args: argsBetween(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.dir == "" {
				p.dir = c.policyDir(nil)
			}
			p.from = args[0]
			if len(args) == 2 {
				p.to = args[1]
			}
			pairs, err := c.compare(cmd.Context(), &p)
			if err != nil {
				return err
			}
			for _, pair := range pairs {
				if pair.plan == nil {
					return c.rejected("the new side, "+pair.after.Files.Name()+",", pair.after)
				}
			}
			if err := c.printPlans(&p, pairs); err != nil {
				return err
			}
			for _, pair := range pairs {
				if !pair.plan.Empty() {
					return errProblems
				}
			}
			return nil
		},
	}
	p.fullFlag(cmd)
	p.flags(cmd, "dir", "env", "all-envs")
	c.outputFlag(cmd, "text", "json")
	return cmd
}

// pair is two candidates of one environment and what differs.
type pair struct {
	env           string
	before, after *candidate.Candidate
	plan          *plan.Plan // nil where the new side does not compile
	rewritten     int        // policy files that differ
}

// unchanged says what a plan is about in which nothing changes, not even for a sidecar.
func (p *pair) unchanged() string {
	if r := &p.plan.Reach; p.rewritten == 0 || len(p.plan.Refused)+len(r.Services)+len(r.Callers) > 0 {
		return ""
	}
	return count(p.rewritten, "policy file") + " changed without effect"
}

// rewritten counts the policy files that differ.
func rewritten(before, after *candidate.Files) int {
	names := slices.Concat(before.Names(), after.Names())
	slices.Sort(names)
	n := 0
	for _, name := range slices.Compact(names) {
		if path.Ext(name) == ".cue" && before.Hash(name) != after.Hash(name) {
			n++
		}
	}
	return n
}

// sideOf is what a plan compares of policy that compiled.
func sideOf(one *candidate.Candidate) *plan.Side {
	return &plan.Side{Mesh: one.Mesh, Origins: one.Origins, Document: one.Document}
}

// compare reads and compares both sides, for each environment.
func (c *cli) compare(ctx context.Context, p *comparison) ([]pair, error) {
	repo := p.open()
	defer repo.Close()
	p.rev = p.to
	after, err := p.files(ctx, repo)
	if err != nil {
		return nil, err
	}
	var base source.Commit
	if p.from != "" {
		base, err = repo.Resolve(ctx, p.from)
	} else if p.to != "" {
		base, err = repo.BaseOf(ctx, after.Commit)
	} else {
		base, err = repo.Base(ctx)
	}
	if err != nil {
		return nil, noLook(err)
	}
	before, err := repo.At(ctx, base)
	if err != nil && !errors.Is(err, source.ErrNoDirectory) {
		return nil, unread(repo, err)
	}
	if before != nil && !before.Has("mesh.cue") {
		before = nil // what was there was no policy
	}
	if before != nil {
		before = before.Lenient()
	}
	head, dirty := after.Commit, false
	if head.Hash == "" {
		if head, dirty, err = repo.Head(ctx, after); err != nil {
			return nil, noLook(err)
		}
	}
	if p.from == "" && !dirty && base.Hash == head.Hash && !repo.HasMain(ctx) {
		return nil, &hinted{noLook(fmt.Errorf("there is nothing to compare: HEAD has no changes, and no main branch is here that it could have left")),
			"fetch the main branch, or name the old side with --from"}
	}
	if git, err := repo.Git(); err == nil {
		p.subdir = git.Subdir()
	}
	all, err := p.candidates(ctx, after)
	if err != nil {
		return nil, err
	}
	var pairs []pair
	for _, new := range all {
		one := pair{env: new.Env, after: new}
		side := &plan.Side{}
		if before != nil {
			if one.before, err = before.Evaluate(ctx, new.Env); err != nil {
				return nil, noLook(err)
			}
			if one.before.Mesh == nil {
				good, err := p.lastGood(ctx, repo, base, new.Env)
				if err != nil {
					return nil, err
				}
				if good == nil {
					return nil, c.rejected(fmt.Sprintf("the old side, commit %s,", short(base.Hash)), one.before)
				}
				fmt.Fprintf(c.stderr, "commit %s has %s, so no mesh serves it; compared with %s, the newest before it without\n", short(base.Hash),
					count(len(one.before.Findings.Errors()), "error"), short(good.Files.Commit.Hash))
				one.before = good
			}
			side = sideOf(one.before)
			one.rewritten = rewritten(one.before.Files, after)
		}
		from := base
		if one.before != nil {
			from = one.before.Files.Commit
		}
		side.Commit, side.Subject = from.Hash, from.Subject
		if new.Mesh != nil {
			if p.judges {
				new.Prove()
			} else {
				new.Findings = nil
			}
			to := sideOf(new)
			to.Commit, to.Subject, to.Dirty = head.Hash, head.Subject, dirty
			one.plan = plan.Compare(side, to, plan.Options{Name: p.planName(new.Env), Now: candidate.Moment(time.Now(), side.Mesh, new.Mesh)})
		}
		pairs = append(pairs, one)
	}
	return pairs, nil
}

// lastGood is what a mesh still serves after a commit with errors: the newest one before it that has none, along first
// parents. It is nil where there is none, and where a revision was asked for by diff.
func (p *comparison) lastGood(ctx context.Context, repo *candidate.Repository, bad source.Commit, env string) (*candidate.Candidate, error) {
	if !p.judges {
		return nil, nil
	}
	for commit, err := range repo.Log(ctx, bad) {
		if err != nil {
			return nil, noLook(err)
		}
		if commit.Hash == bad.Hash {
			continue
		}
		files, err := repo.At(ctx, commit)
		if errors.Is(err, source.ErrNoDirectory) {
			continue
		}
		if err != nil {
			return nil, unread(repo, err)
		}
		if one, err := files.Lenient().Evaluate(ctx, env); err != nil {
			return nil, noLook(err)
		} else if one.Mesh != nil {
			return one, nil
		}
	}
	return nil, nil
}

func (c *cli) plan(ctx context.Context, p *comparison) error {
	risks, err := plan.ParseRisks(p.failOn)
	if err != nil {
		return usagef("--fail-on: %w", err)
	}
	pairs, err := c.compare(ctx, p)
	if err != nil {
		return err
	}
	if err := c.printPlans(p, pairs); err != nil {
		return err
	}
	bad, changes := false, false
	var hit []string
	for _, one := range pairs {
		bad = bad || len(one.after.Findings.Errors()) > 0
		if one.plan == nil {
			continue
		}
		changes = changes || !one.plan.Empty()
		for i := range one.plan.Lines {
			if l := &one.plan.Lines[i]; slices.Contains(risks, l.Risk) {
				hit = append(hit, lineText(l))
			}
		}
	}
	if len(hit) > 0 {
		slices.Sort(hit)
		hit = slices.Compact(hit)
		fmt.Fprintf(c.stderr, "--fail-on %s: %s\n", p.failOn, count(len(hit), "line"))
		for _, text := range hit {
			fmt.Fprintf(c.stderr, "  %s\n", text)
		}
	}
	switch {
	case bad || len(hit) > 0:
		return errProblems
	case changes && p.detailed:
		return errChanges
	}
	return nil
}

// lineText is a line of a plan on one line of a terminal.
func lineText(l *plan.Line) string {
	words := []string{string(l.Risk) + ":", l.Subject}
	if len(l.From) > 0 {
		words = append(words, strings.Join(l.From, ", "), "->")
	}
	words = append(words, l.To)
	if len(l.Requests) > 0 {
		words = append(words, strings.Join(l.Requests, ", "))
	}
	for _, w := range append(slices.Clone(l.WhereAfter), l.WhereBefore...) {
		if !w.Pos.IsZero() {
			words = append(words, "("+w.Pos.Short()+")")
			break
		}
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

// printPlans shows what was compared.
func (c *cli) printPlans(p *comparison, pairs []pair) error {
	one := &pairs[0]
	if others := one.after.Environments()[1:]; (c.output == "text" || c.output == "") && len(pairs) == 1 && len(others) > 0 && p.env == "" && one.plan != nil && one.plan.Empty() {
		fmt.Fprintf(c.stderr, "compared in the default environment only; --all-envs also compares %s\n", strings.Join(others, ", "))
	}
	if c.output == "json" {
		return c.plansJSON(pairs)
	}
	size := 0                  // of what was written, in characters: forges bound a comment
	shown := map[string]bool{} // environments that come to the same are shown once
	for i := range pairs {
		one := &pairs[i]
		var b strings.Builder
		var err error
		switch {
		case c.output == "markdown" && one.plan == nil:
			b.WriteString(rejectedMarkdown(plan.Marker(p.planName(one.env)), one.after.Findings.Errors()))
		case c.output == "markdown":
			o := plan.MarkdownOptions{Link: p.link(one.plan), Findings: one.after.Findings, Unchanged: one.unchanged()}
			if len(one.after.Results) > 0 {
				o.Tests = tests(one.after)
			}
			b.WriteString(one.plan.Markdown(o))
		case one.plan == nil:
			err = diag.Text(&b, one.after.Findings.Errors(), c.out.Color)
		default:
			if err = one.plan.Text(&b, plan.TextOptions{Width: c.out.Width, ASCII: !c.out.Unicode, Full: p.full, Unchanged: one.unchanged()}); err == nil {
				err = diag.Text(&b, one.after.Findings, c.out.Color)
			}
		}
		if err != nil {
			return err
		}
		text := b.String()
		_, body, _ := strings.Cut(text, "\n") // without the marker, which names the environment
		if c.output != "markdown" {
			body = text
		}
		if shown[body] {
			continue
		}
		shown[body] = true
		if i > 0 && c.output != "markdown" {
			text = fmt.Sprintf("\nIn environment %s:\n%s", terminal.Clean(one.env), text)
		} else if i > 0 {
			env := html.EscapeString(terminal.Clean(one.env))
			text = fmt.Sprintf("\n---\n\nIn environment <code>%s</code>:\n\n%s", env, text)
			if size+utf8.RuneCountInString(text) > plan.MaxMarkdown {
				text = fmt.Sprintf("\n---\n\nEnvironment <code>%s</code> differs: <code>heddle plan --env</code> shows how.\n", env)
			}
		}
		size += utf8.RuneCountInString(text)
		if _, err := io.WriteString(c.stdout, text); err != nil {
			return err
		}
	}
	return nil
}

// plansJSON writes one plan as it is, and those of several environments as a list. Where the new side does not compile
// its findings stand in the plan's place.
func (c *cli) plansJSON(pairs []pair) error {
	type item struct {
		Environment string     `json:"environment"`
		Plan        *plan.Plan `json:"plan,omitempty"`
		Findings    diag.List  `json:"findings,omitempty"`
	}
	if len(pairs) > 1 {
		items := make([]item, 0, len(pairs))
		for _, one := range pairs {
			items = append(items, item{one.env, one.plan, one.after.Findings})
		}
		return writeJSON(c.stdout, struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Items      []item `json:"items"`
		}{apiVersion, "PlanList", items})
	}
	one := pairs[0]
	if one.plan == nil {
		return diag.JSON(c.stdout, one.after.Findings)
	}
	if err := one.plan.JSON(c.stdout); err != nil {
		return err
	}
	return diag.Text(c.stderr, one.after.Findings, c.err.Color)
}

// planName tells the plans of several environments apart.
func (p *comparison) planName(env string) string {
	if p.allEnvs && env != "" {
		return p.name + "/" + env
	}
	return p.name
}

// link makes addresses of lines on the forge, in the form that GitHub, GitLab, Gitea and Forgejo all understand.
func (p *comparison) link(of *plan.Plan) func(diag.Pos, bool) string {
	base := strings.TrimSuffix(strings.TrimSuffix(p.url, "/"), ".git")
	return func(at diag.Pos, before bool) string {
		side := of.After
		if before {
			side = of.Before
		}
		if base == "" || at.File == "" || side.Commit == "" || side.Dirty {
			return "" // what is in no commit has no address
		}
		words := strings.Split(path.Join(p.subdir, at.File), "/")
		for i := range words {
			words[i] = url.PathEscape(words[i])
		}
		link := base + "/blob/" + side.Commit + "/" + strings.Join(words, "/")
		if at.Line > 0 {
			link += fmt.Sprintf("#L%d", at.Line)
		}
		return link
	}
}

// rejectedMarkdown is the comment where the new side does not compile: the findings stand in a block in which no name
// acts.
func rejectedMarkdown(marker string, findings diag.List) string {
	const most = 100 // so that it stays far below what a comment may hold
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n### ■ The policy has %s: nothing is compared\n\n<pre>", marker, count(len(findings), "error"))
	for _, f := range findings[:min(len(findings), most)] {
		b.WriteString(html.EscapeString(f.String()) + "\n")
		if hint := f.Advice(); hint != "" {
			b.WriteString("  hint: " + html.EscapeString(terminal.Clean(hint)) + "\n")
		}
	}
	b.WriteString("</pre>\n")
	if len(findings) > most {
		fmt.Fprintf(&b, "… and %d more: <code>heddle check</code> shows them all\n", len(findings)-most)
	}
	return b.String()
}
