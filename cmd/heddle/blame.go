package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/reconciler/expect"
	"github.com/heddle-mesh/heddle/reconciler/source"
)

// viewOf makes a view of a candidate that is compiled.
func viewOf(one *candidate.Candidate) *view {
	v := &view{mesh: one.Mesh, origins: one.Origins, commit: one.Files.Commit, issuers: []string{}, line: one.Files.Line}
	if m := one.Document.Policy.Mesh; m != nil {
		for name := range m.JwtIssuers {
			v.issuers = append(v.issuers, name)
		}
	}
	return v
}

func (c *cli) blameCommand() *cobra.Command {
	var a ask
	var t target
	cmd := &cobra.Command{
		Use:   "blame FROM TO [METHOD PATH]",
		Short: "Find the commit that made a call allowed, or denied",
		Long: `Blame walks the history of the policy repository in this directory back, along first parents, and judges the call
by each commit that changed policy, until the verdict or the line that decides is another one. It prints that commit,
what was decided before it, and the deciding line then and now. Commits with findings are passed over: no reconciler
ever applied them.

` + questionHelp + `

Exit code 0: it was found. 3: the repository could not be read, or its history is cut off before the answer.`,
		Example: `  heddle blame shop/web shop/api GET /orders
  heddle blame shop/web shop/ledger:tcp --rev v2.1 --dir policy -o json`,
		Args: questionArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := a.question(args)
			if err != nil {
				return err
			}
			return c.blame(cmd.Context(), q, &t, a.direct)
		},
		ValidArgsFunction: c.completeServices(2),
	}
	a.flags(cmd)
	t.flags(cmd, "rev", "dir", "env")
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// blamed is what blame prints: the explanation of what holds, and the commit that made it so.
type blamed struct {
	explanation
	// Commit made it so; none: it is in the work tree only.
	Commit *explainedRevision `json:"commit,omitempty"`
	// Line is the deciding line as it stands, Then as the commit wrote it.
	Line string      `json:"line,omitempty"`
	Then *blamedLine `json:"then,omitempty"`
	// Was is what was decided before, and nothing where it is so since the beginning of history.
	Was *blamedWas `json:"was,omitempty"`
	// Rejected counts the commits between the two that had findings.
	Rejected int `json:"rejected,omitempty"`

	direct bool
}

type blamedLine struct {
	Place string `json:"place"`
	Line  string `json:"line"`
}

type blamedWas struct {
	Commit   *explainedRevision `json:"commit"`
	Decision expect.Decision    `json:"decision"`
	Line     string             `json:"line,omitempty"`
}

func (c *cli) blame(ctx context.Context, q *expect.Question, t *target, direct bool) error {
	repo := t.open()
	defer repo.Close()
	tip, err := repo.Resolve(ctx, "HEAD")
	if t.rev != "" {
		tip, err = repo.Resolve(ctx, t.rev)
	}
	if err != nil {
		return noLook(err)
	}
	files, err := t.files(ctx, repo)
	if err != nil {
		return err
	}
	now, err := files.Evaluate(ctx, t.env)
	if err != nil {
		return noLook(err)
	}
	if now.Mesh == nil {
		return c.rejected(files.Name(), now)
	}
	v := viewOf(now)
	v.direct = direct
	answers, err := v.answer(q)
	if err != nil {
		return err
	}
	a := answers[0]
	x := blamed{explanation: describe(q, v, answers), Line: v.line(a.Pos), direct: direct}
	for commit, err := range repo.Log(ctx, tip) {
		if err != nil {
			var shallow *source.ShallowError
			if errors.As(err, &shallow) && x.Commit != nil {
				err = fmt.Errorf("it is so since %s at least, and perhaps longer: %w", short(x.Commit.Commit), err)
			}
			return noLook(err)
		}
		done, err := x.step(ctx, q, t, repo, commit, a)
		if err != nil {
			return noLook(err)
		}
		if done {
			break
		}
	}
	if c.output == "json" {
		return writeJSON(c.stdout, x)
	}
	return c.printBlame(&x)
}

// step judges by an older commit, and reports whether it decides otherwise.
func (x *blamed) step(ctx context.Context, q *expect.Question, t *target, repo *candidate.Repository, commit source.Commit, a *expect.Answer) (bool, error) {
	files, err := repo.At(ctx, commit)
	if errors.Is(err, source.ErrNoDirectory) {
		x.Was = &blamedWas{Commit: describeCommit(commit), Decision: expect.Decision{Verdict: expect.Deny, Reason: "there was no policy"}}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	older, err := files.Evaluate(ctx, t.env)
	if err != nil {
		return false, err
	}
	if older.Mesh == nil {
		x.Rejected++
		return false, nil
	}
	v := viewOf(older)
	v.direct = x.direct
	was, err := v.answer(q)
	if miss := new(usageError); errors.As(err, &miss) {
		x.Was = &blamedWas{Commit: describeCommit(commit), Decision: expect.Decision{Verdict: expect.Deny,
			Reason: strings.TrimPrefix(strings.TrimPrefix(miss.Error(), "FROM: "), "TO: ")}}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if !was[0].Same(a) {
		x.Was = &blamedWas{Commit: describeCommit(commit), Decision: was[0].Decision, Line: v.line(was[0].Pos)}
		return true, nil
	}
	x.Commit, x.Then, x.Rejected = describeCommit(commit), nil, 0
	if !was[0].Pos.IsZero() {
		x.Then = &blamedLine{was[0].Pos.Short(), v.line(was[0].Pos)}
	}
	return false, nil
}

func (c *cli) printBlame(x *blamed) error {
	b := fields{width: c.out.Width}
	b.WriteString(c.headLine(&x.explanation))
	b.line("because", x.Because.Reason)
	quote := func(field, place, line string) {
		b.line(field, place)
		if line != "" {
			b.line("", "  "+line)
		}
	}
	switch {
	case x.Commit == nil:
		b.line("since", "the work tree: it is not committed")
	case x.Was == nil:
		b.line("since", commitLine(x.Commit)+", where history begins")
	default:
		b.line("since", commitLine(x.Commit))
	}
	if x.Rejected > 0 {
		b.line("", fmt.Sprintf("or one of the %s before it that had findings", count(x.Rejected, "commit")))
	}
	if x.Then != nil && !x.Because.Pos.IsZero() && x.Then.Place == x.Because.Pos.Short() && x.Then.Line == x.Line {
		quote("line", x.Then.Place, x.Line)
	} else {
		if x.Then != nil {
			quote("then", x.Then.Place, x.Then.Line)
		}
		if !x.Because.Pos.IsZero() {
			quote("now", x.Because.Pos.Short(), x.Line)
		}
	}
	if w := x.Was; w != nil {
		b.line("before", fmt.Sprintf("%s: %s", strings.ToUpper(w.Decision.Verdict), w.Decision.Reason))
		if !w.Decision.Pos.IsZero() {
			quote("", w.Decision.Pos.Short(), w.Line)
		}
		b.line("", "in "+commitLine(w.Commit))
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

func (c *cli) atCommand() *cobra.Command {
	var a ask
	var t target
	cmd := &cobra.Command{
		Use:   "at TIME [explain] FROM TO [METHOD PATH]",
		Short: "Judge a call by the policy of another time",
		Long: `At answers what explain would have answered at another time. Where the state directory has releases it asks the
one that served then, by the time when it was published; else, or with --dir, it asks the policy repository: the commit
that was the newest then, along the first parents of HEAD and by the committers' clocks.

TIME is a date ("2026-11-23"), with a time of day ("2026-11-23 14:00") in this machine's zone, RFC 3339, or how long ago
("90m", "36h", "7d").

` + questionHelp + `

Exit code 0 is an allowed call, 1 a denied one.`,
		Example: `  heddle at 2h explain shop/web shop/api GET /orders
  heddle at "2026-11-20 14:00" shop/web shop/api GET /orders
  heddle at 7d shop/api shop/ledger:tcp --dir policy`,
		Args: func(cmd *cobra.Command, args []string) error {
			n := len(args)
			if n > 1 && args[1] == "explain" {
				n--
			}
			if n != 3 && n != 5 {
				return fmt.Errorf("%s given, which does not fit: %s", count(len(args), "argument"), cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			when, err := parseTime(args[0], time.Now())
			if err != nil {
				return usagef("TIME: %w", err)
			}
			args = args[1:]
			if args[0] == "explain" {
				args = args[1:]
			}
			q, err := a.question(args)
			if err != nil {
				return err
			}
			if a.at == "" {
				q.At = when
			}
			v, releases, err := c.viewAt(cmd, &t, when)
			if err != nil {
				return err
			}
			v.direct = a.direct
			return c.explain(q, v, releases)
		},
	}
	a.flags(cmd)
	cmd.Flag("at").Usage = "judge as of this `time`, for rules that end; default: TIME"
	t.flags(cmd, "dir", "env")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// viewAt is view for another time.
func (c *cli) viewAt(cmd *cobra.Command, t *target, when time.Time) (*view, *published.Releases, error) {
	given := c.stateGiven(cmd)
	if t.dir == "" && t.env == "" {
		releases, err := published.Open(c.state)
		if err == nil {
			release, err := releaseAt(releases, when)
			if err != nil {
				return nil, nil, err
			}
			return &view{mesh: release.Mesh, origins: release.Origins, release: release}, releases, nil
		}
		if !errors.Is(err, published.ErrNone) || given {
			return nil, nil, err
		}
		if !hasPolicy(home()) {
			return nil, nil, &hinted{err, nothingToAsk}
		}
	}
	repo := t.open()
	defer repo.Close()
	commit, err := repo.AtTime(cmd.Context(), when)
	if err != nil {
		return nil, nil, noLook(err)
	}
	files, err := repo.At(cmd.Context(), commit)
	if err != nil {
		return nil, nil, unread(repo, err)
	}
	one, err := files.Evaluate(cmd.Context(), t.env)
	if err != nil {
		return nil, nil, noLook(err)
	}
	if one.Mesh == nil {
		return nil, nil, c.rejected(files.Name(), one)
	}
	return viewOf(one), nil, nil
}

// releaseAt is the kept release that served at a time.
func releaseAt(r *published.Releases, when time.Time) (*published.Release, error) {
	epochs, err := r.Epochs()
	if err != nil {
		return nil, err
	}
	oldest := time.Time{}
	for _, epoch := range epochs {
		record, err := r.Record(epoch)
		if err != nil {
			break // what is kept no longer reaches further back
		}
		if !record.Published.After(when) {
			return r.Load(epoch)
		}
		oldest = record.Published
	}
	return nil, &hinted{noLook(fmt.Errorf("no release that is kept served at %s; the oldest is of %s", when.Format(time.RFC3339), oldest.Format(time.RFC3339))),
		"ask the repository: --dir DIR"}
}
