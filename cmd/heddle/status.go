package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/reconciler"
)

// askWithin bounds one question to a program on this machine.
const askWithin = 10 * time.Second

func (c *cli) reconcilerAPI() *operator.Client {
	return operator.NewClient(filepath.Join(c.state, "reconciler", operator.SocketName))
}

func (c *cli) controlplaneAPI() *operator.Client {
	return operator.NewClient(filepath.Join(c.state, "controlplane", operator.SocketName))
}

// statusReport is what `heddle status` prints: the reconciler's status, or what its directory tells of it.
type statusReport struct {
	reconciler.Status
	// Reachable is false when the reconciler did not answer; then only the applied release is known, as of AsOf.
	Reachable bool      `json:"reachable"`
	AsOf      time.Time `json:"asOf"`
}

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which commit serves and how far the newest one has come",
		Long: `Status shows the newest commit that the reconciler has seen, its state, and the release that serves.
A rejected commit comes with every finding.

Exit code 0: all is well, or on its way. 1: the commit is rejected or held, or a sidecar refused it.
3: the reconciler does not answer; then the last known release is shown from disk.`,
		Example: `  heddle status
  heddle status -o json | jq .observed.state`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			return c.status(ctx)
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

func (c *cli) status(ctx context.Context) error {
	report := statusReport{Reachable: true, AsOf: time.Now()}
	failed := c.reconcilerAPI().Get(ctx, "/v1/status", &report.Status)
	if failed != nil {
		if !errors.Is(failed, operator.ErrUnreachable) {
			return failed
		}
		r, err := published.Open(c.state)
		if err != nil {
			return failed
		}
		last, err := r.Latest()
		if err != nil {
			return failed
		}
		d := describeRelease(last)
		report.Reachable, report.APIVersion, report.AsOf = false, apiVersion, d.Published
		report.Applied = &reconciler.Applied{Epoch: d.Epoch, Commit: d.Commit, Subject: d.Subject, Author: d.Author,
			Behaviour: last.Record.Behaviour, Published: d.Published}
		if len(last.Record.Sources) > 0 {
			s := last.Record.Sources[0]
			report.Source = reconciler.StatusSource{URL: s.URL, Ref: s.Ref, Env: last.Record.Env}
		}
	}
	var err error
	if c.output == "json" {
		err = writeJSON(c.stdout, report)
	} else {
		err = c.printStatus(&report)
	}
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case troubled(&report.Status):
		return errProblems
	}
	return nil
}

// troubled reports whether something needs a person.
func troubled(s *reconciler.Status) bool {
	o := s.Observed
	return len(s.Push.Nacks) > 0 || s.Fault != "" ||
		o != nil && (o.State == reconciler.Rejected || o.State == reconciler.Held)
}

func (c *cli) printStatus(r *statusReport) error {
	var b strings.Builder
	field := func(name, text string) { fmt.Fprintf(&b, "%-9s%s\n", name, text) }
	source := terminal.Clean(r.Source.URL) + " " + terminal.Clean(r.Source.Ref)
	if r.Source.Env != "" {
		source += " (" + terminal.Clean(r.Source.Env) + ")"
	}
	field("Policy", source)
	if o := r.Observed; o != nil {
		field("Commit", fmt.Sprintf("%s %q (%s), %s ago", short(o.Commit), terminal.Clean(o.Subject), terminal.Clean(person(o.Author)), since(o.Time)))
		mark := terminal.Fine
		switch o.State {
		case reconciler.Converged:
			mark = terminal.Good
		case reconciler.Rejected, reconciler.Held:
			mark = terminal.Trouble
		case reconciler.Pushing:
			mark = terminal.Warning
		}
		field("State", fmt.Sprintf("%s %s", c.out.Paint(mark, c.out.Glyph(mark)+" "+string(o.State)), "for "+since(o.Since)))
	}
	if a := r.Applied; a != nil {
		field("Serving", fmt.Sprintf("%s %q (%s), epoch %d, behaviour %s", short(a.Commit), terminal.Clean(a.Subject),
			terminal.Clean(person(a.Author)), a.Epoch, a.Behaviour.Short()))
		if r.Reachable {
			acked := fmt.Sprintf("%d/%d acknowledged", r.Push.Acked, r.Push.Total)
			if r.Push.ControlPlanes == 0 {
				acked = c.out.Paint(terminal.Warning, c.out.Glyph(terminal.Warning)+" "+acked+", as last reported: no control plane is connected")
			}
			field("Sidecars", acked)
		} else {
			field("As of", fmt.Sprintf("%s ago, from disk: the reconciler does not answer", since(r.AsOf)))
		}
	} else if r.Served > 0 {
		field("Serving", fmt.Sprintf("epoch %d goes on, but cannot be trusted to judge a commit", r.Served))
	} else {
		field("Serving", "nothing yet")
	}
	if r.Fault != "" {
		field("Fault", c.out.Paint(terminal.Trouble, terminal.Clean(r.Fault))+", for "+since(r.FaultSince))
	}
	for _, n := range r.Push.Nacks {
		fmt.Fprintf(&b, "\n%s %s refused it: %s\n", c.out.Paint(terminal.Trouble, c.out.Glyph(terminal.Trouble)),
			terminal.Clean(n.Workload), terminal.Clean(n.Reason))
		fmt.Fprintf(&b, "  heddle proxies\n")
	}
	if o := r.Observed; o != nil {
		switch o.State {
		case reconciler.Held:
			fmt.Fprintf(&b, "\n%s\n", terminal.Clean(o.Reason))
			if o.Accept != "" {
				fmt.Fprintf(&b, "  heddle resume --accept-%s\n", o.Accept)
			}
		case reconciler.Rejected:
			b.WriteString("\n")
			for _, f := range o.Findings {
				fmt.Fprintln(&b, terminal.Clean(f.String()))
				if advice := f.Advice(); advice != "" {
					fmt.Fprintf(&b, "  hint: %s\n", terminal.Clean(advice))
				}
			}
			fmt.Fprintf(&b, "%s\n", count(len(o.Findings), "finding"))
		}
		if n := len(o.Warnings); n > 0 {
			fmt.Fprintf(&b, "\n%s; the first: %s\n  heddle check\n", count(n, "warning"), terminal.Clean(o.Warnings[0].String()))
		}
	}
	_, err := io.WriteString(c.stdout, b.String())
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// history asks the reconciler, else its directory. damaged says what could not be read.
func (c *cli) history(ctx context.Context) (items []reconciler.HistoryEntry, damaged string, err error) {
	var reply reconciler.History
	failed := c.reconcilerAPI().Get(ctx, "/v1/history", &reply)
	if failed == nil || !errors.Is(failed, operator.ErrUnreachable) {
		return reply.Items, reply.Damaged, failed
	}
	r, err := published.Open(c.state)
	if err != nil {
		return nil, "", failed
	}
	epochs, err := r.Epochs()
	if err != nil {
		return nil, "", err
	}
	for _, epoch := range epochs {
		record, err := r.Record(epoch)
		if err != nil {
			damaged = err.Error()
			continue
		}
		e := reconciler.HistoryEntry{Epoch: epoch, Commit: record.Commit(), Behaviour: record.Behaviour, Published: record.Published,
			Applied: len(items) == 0}
		if len(record.Sources) > 0 {
			e.Subject, e.Author = record.Sources[0].Subject, record.Sources[0].Author
		}
		if n := len(items); n > 0 && items[n-1].Behaviour == e.Behaviour {
			items[n-1].Unchanged = true
		}
		items = append(items, e)
	}
	return items, damaged, nil
}

func (c *cli) waitCommand() *cobra.Command {
	var timeout time.Duration
	until := "all"
	cmd := &cobra.Command{
		Use:   "wait COMMIT",
		Short: "Wait until every sidecar enforces a commit",
		Long: `Wait ends with exit code 0 when every sidecar has acknowledged the commit (--for=applied: when it is published);
with 1 when the commit is rejected or held, and with 5 when the time is over.`,
		Example: `  heddle wait "$(git rev-parse HEAD)" --timeout 30s
  heddle wait "$(git rev-parse HEAD)" --for applied && heddle history`,
		Args: argsBetween(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args[0]) < 4 || strings.Trim(strings.ToLower(args[0]), "0123456789abcdef") != "" {
				return usagef("COMMIT %q: want at least 4 hexadecimal digits of a commit's hash", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return c.wait(ctx, strings.ToLower(args[0]), until == "all")
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how `long` to wait")
	cmd.Flags().Var(&choice{value: &until, of: []string{"all", "applied"}, kind: "what"}, "for", "`what` to wait for: all (sidecars have acknowledged it), applied")
	complete(cmd, "for", "all", "applied")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

// wait polls: a reconciler may restart meanwhile, so that not answering is not the end.
func (c *cli) wait(ctx context.Context, commit string, everywhere bool) error {
	last := fmt.Errorf("%s has not been seen", short(commit))
	for {
		var s reconciler.Status
		if err := c.reconcilerAPI().Get(ctx, "/v1/status", &s); err == nil {
			done, why := reached(&s, commit, everywhere)
			switch {
			case done:
				if c.output == "json" {
					return writeJSON(c.stdout, statusReport{Status: s, Reachable: true, AsOf: time.Now()})
				}
				state := "applied"
				if everywhere {
					state = "converged"
				}
				_, err := fmt.Fprintf(c.stdout, "%s %s epoch %d acked %d/%d\n", state, short(s.Applied.Commit), s.Applied.Epoch, s.Push.Acked, s.Push.Total)
				return err
			case why != nil:
				last = why
			}
			if errors.Is(why, errSettled) {
				return &hinted{why, "heddle status"}
			}
		} else if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &hinted{fmt.Errorf("%w waiting for %s: %w", errTimeout, short(commit), last), "heddle status"}
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var errSettled = errors.New("it will not converge")

// reached reports whether the commit is applied or, if so asked, enforced everywhere, and why not.
func reached(s *reconciler.Status, commit string, everywhere bool) (bool, error) {
	o, a := s.Observed, s.Applied
	if o != nil && strings.HasPrefix(o.Commit, commit) {
		switch o.State {
		case reconciler.Rejected:
			return false, fmt.Errorf("%s is rejected with %s: %w", short(commit), count(len(o.Findings), "finding"), errSettled)
		case reconciler.Held:
			return false, fmt.Errorf("%s is held: %s: %w", short(commit), o.Reason, errSettled)
		}
	}
	if a == nil || !strings.HasPrefix(a.Commit, commit) {
		return false, fmt.Errorf("%s is not applied yet", short(commit))
	}
	if everywhere && (o == nil || o.State != reconciler.Converged && o.Commit == a.Commit) {
		return false, fmt.Errorf("%d of %d sidecars have acknowledged %s", s.Push.Acked, s.Push.Total, short(commit))
	}
	return true, nil
}

func (c *cli) resumeCommand() *cobra.Command {
	accepts := []struct {
		accept reconciler.Accept
		usage  string
		set    bool
	}{
		{accept: reconciler.AcceptRewind, usage: "the branch was moved back, or its history rewritten"},
		{accept: reconciler.AcceptFirst, usage: "there is no applied release to judge by"},
		{accept: reconciler.AcceptEmpty, usage: "the commit deletes every service"},
		{accept: reconciler.AcceptTrustDomain, usage: "the commit renames every identity"},
		{accept: reconciler.AcceptInvariants, usage: "the commit breaks an invariant and drops it at once"},
		{accept: reconciler.AcceptFences, usage: "the commit delegates to a directory and uses it at once"},
	}
	var commit string
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Let a held commit pass",
		Long: `A commit that a guard holds waits for a person. Resume lets it pass, for the reason it is held for; "heddle
status" names both.`,
		Example: `  heddle resume --accept-rewind
  heddle resume --accept-empty --commit 3f9c2ab4`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request := reconciler.ResumeRequest{Commit: commit}
			for _, a := range accepts {
				if a.set {
					request.Accept = a.accept
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			var reply reconciler.ResumeReply
			if err := c.reconcilerAPI().Post(ctx, "/v1/resume", request, &reply); err != nil {
				return err
			}
			if c.output == "json" {
				return writeJSON(c.stdout, reply)
			}
			_, err := fmt.Fprintf(c.stdout, "resumed %s, accepting %s\n", short(reply.Commit), reply.Accept)
			return err
		},
	}
	var names []string
	for i := range accepts {
		name := "accept-" + string(accepts[i].accept)
		cmd.Flags().BoolVar(&accepts[i].set, name, false, accepts[i].usage)
		names = append(names, name)
	}
	cmd.MarkFlagsMutuallyExclusive(names...)
	cmd.MarkFlagsOneRequired(names...)
	cmd.Flags().StringVar(&commit, "commit", "", "refuse if another `commit` than this one is held")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}

func (c *cli) hintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hint",
		Short: "Have the reconciler look at the repository now",
		Long:  `The reconciler polls; a hint makes it look at once. It changes nothing else.`,
		Example: `  git push && heddle hint
  heddle hint --state /var/lib/heddle`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			if err := c.reconcilerAPI().Post(ctx, "/v1/hint", nil, nil); err != nil {
				return err
			}
			if c.output == "json" {
				return writeJSON(c.stdout, map[string]any{"apiVersion": apiVersion, "hinted": true})
			}
			_, err := fmt.Fprintln(c.stdout, "the reconciler looks now")
			return err
		},
	}
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json")
	return cmd
}
