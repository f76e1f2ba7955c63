package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/published"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler"
	"github.com/heddle-mesh/heddle/reconciler/plan"
	"github.com/heddle-mesh/heddle/reconciler/source"
)

func (c *cli) historyCommand() *cobra.Command {
	var t target
	limit := 20
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the releases, or the commits that changed what the mesh does",
		Long: `History lists the kept releases, newest first. A revert is a new release with an old behaviour; a commit that only
moves lines has the behaviour of the one before it. It is read from disk where the reconciler does not run.

Where the state directory has no mesh and policy lies here, or with --dir, it lists the commits of the repository that
changed what the mesh does, with how many changes of which risk; heddle diff shows them.`,
		Example: `  heddle history
  heddle history --dir policy --limit 5
  heddle history -o json | jq -r '.items[] | "\(.epoch) \(.behaviour)"'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usagef("--limit %d: want a number of commits, 0 for all", limit)
			}
			given := c.stateGiven(cmd)
			_, err := published.Open(c.state)
			if none := errors.Is(err, published.ErrNone) && !given; t.dir != "" || t.env != "" || none && hasPolicy(home()) {
				return c.committed(cmd.Context(), &t, limit)
			} else if none {
				return &hinted{err, nothingToAsk}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
			defer cancel()
			items, damaged, err := c.history(ctx)
			if err != nil {
				return err
			}
			err = list(c, items, func(e reconciler.HistoryEntry) string { return e.Commit }, func(items []reconciler.HistoryEntry) *terminal.Table {
				t := &terminal.Table{Columns: []terminal.Column{
					{Title: "EPOCH", Right: true}, {Title: "COMMIT"}, {Title: "BEHAVIOUR", Drop: 2}, {Title: "AGE", Right: true},
					{Title: "STATE"}, {Title: "AUTHOR", Drop: 3}, {Title: "SUBJECT", Drop: 1},
				}}
				for _, e := range items {
					mark, state := terminal.Fine, "kept"
					if e.Applied {
						mark, state = terminal.Good, "serving"
					}
					behaviour := e.Behaviour.Short()
					if e.Unchanged {
						behaviour += " ="
					}
					t.Add(mark, fmt.Sprint(e.Epoch), short(e.Commit), behaviour, since(e.Published), state, person(e.Author), e.Subject)
				}
				return t
			})
			if err == nil && damaged != "" {
				return noLook(fmt.Errorf("some releases could not be read: %s", damaged))
			}
			return err
		},
	}
	t.flags(cmd, "dir", "env")
	cmd.Flags().IntVar(&limit, "limit", limit, "the most `commits` of a repository to list; 0: all")
	c.stateFlag(cmd)
	c.outputFlag(cmd, "table", "json", "jsonl", "name")
	return cmd
}

// committed lists the commits of a repository that changed what the mesh does.
func (c *cli) committed(ctx context.Context, t *target, limit int) error {
	items, rejected, err := committedHistory(ctx, t, limit)
	if len(items) == 0 && err != nil {
		return err
	}
	failed := list(c, items, func(e change) string { return e.Commit }, committedTable)
	if rejected > 0 && (c.output == "" || c.output == "table") {
		fmt.Fprintf(c.stderr, "%s had errors, and changed nothing\n", count(rejected, "commit"))
	}
	return cmp.Or(failed, err)
}

// change is a commit that changed what a mesh does.
type change struct {
	Commit  string    `json:"commit"`
	Subject string    `json:"subject"`
	Author  string    `json:"author"`
	Time    time.Time `json:"time"`
	// Changes counts the lines of the commit's plan by risk.
	Changes map[plan.Risk]int `json:"changes"`
	Summary string            `json:"summary"`
	worst   plan.Risk
}

// committedHistory lists the commits of a repository that changed behaviour, newest first, at most limit of them (0:
// all). rejected counts the commits between them that have findings, and were never applied.
func committedHistory(ctx context.Context, t *target, limit int) (items []change, rejected int, err error) {
	repo := t.open()
	defer repo.Close()
	tip, err := repo.Resolve(ctx, "HEAD")
	if err != nil {
		return nil, 0, noLook(err)
	}
	var newer *candidate.Candidate
	add := func(older *candidate.Candidate) {
		before := &plan.Side{}
		if older != nil {
			before = sideOf(older)
		}
		p := plan.Compare(before, sideOf(newer), plan.Options{})
		if p.Empty() {
			return
		}
		commit := newer.Files.Commit
		c := change{Commit: commit.Hash, Subject: commit.Subject, Author: commit.Author, Time: commit.Time, Changes: map[plan.Risk]int{}, worst: p.Worst()}
		for i := range p.Lines {
			c.Changes[p.Lines[i].Risk]++
		}
		c.Summary = summary(c.Changes)
		if older == nil {
			c.Summary, c.worst = "the beginning: "+count(len(newer.Mesh.Inbound), "service"), plan.Neutral
		}
		items = append(items, c)
	}
	for commit, err := range repo.Log(ctx, tip) {
		if err != nil {
			var shallow *source.ShallowError
			if errors.As(err, &shallow) && len(items) > 0 {
				return items, rejected, noLook(fmt.Errorf("what is older cannot be told: %w", err))
			}
			return nil, 0, noLook(err)
		}
		files, err := repo.At(ctx, commit)
		if errors.Is(err, source.ErrNoDirectory) {
			continue // it removed all policy
		}
		if err != nil {
			return nil, 0, noLook(err)
		}
		one, err := files.Lenient().Evaluate(ctx, t.env)
		if err != nil {
			return nil, 0, noLook(err)
		}
		if one.Mesh == nil {
			rejected++
			continue
		}
		if newer != nil {
			add(one)
		}
		if newer = one; limit > 0 && len(items) >= limit {
			return items, rejected, nil
		}
	}
	if newer != nil {
		add(nil)
	}
	return items, rejected, nil
}

// summary is how many lines of which risk a plan has, worst first.
func summary(changes map[plan.Risk]int) string {
	var words []string
	for _, r := range plan.Risks {
		if n := changes[r]; n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, r))
		}
	}
	return strings.Join(words, ", ")
}

// markOf is how serious a risk is.
func markOf(r plan.Risk) terminal.Mark {
	switch r {
	case plan.DropsEncryption:
		return terminal.Trouble
	case plan.Widens, plan.Deletes:
		return terminal.Warning
	}
	return terminal.Fine
}

func committedTable(items []change) *terminal.Table {
	t := &terminal.Table{Columns: []terminal.Column{
		{Title: "COMMIT"}, {Title: "DATE", Drop: 3}, {Title: "CHANGES"}, {Title: "AUTHOR", Drop: 2}, {Title: "SUBJECT", Drop: 1},
	}}
	for i := range items {
		c := &items[i]
		t.Add(markOf(c.worst), short(c.Commit), c.Time.Format("2006-01-02 15:04"), c.Summary, person(c.Author), c.Subject)
	}
	return t
}
