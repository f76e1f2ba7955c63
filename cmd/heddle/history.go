package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
	"github.com/heddle-mesh/heddle/reconciler/plan"
	"github.com/heddle-mesh/heddle/reconciler/source"
)

// committed is a commit that changed what a mesh does.
type committed struct {
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
func committedHistory(ctx context.Context, t *target, limit int) (items []committed, rejected int, err error) {
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
			before.Mesh, before.Origins = older.Mesh, older.Origins
		}
		p := plan.Compare(before, &plan.Side{Mesh: newer.Mesh, Origins: newer.Origins}, plan.Options{})
		if p.Empty() {
			return
		}
		commit := newer.Files.Commit
		c := committed{Commit: commit.Hash, Subject: commit.Subject, Author: commit.Author, Time: commit.Time, Changes: map[plan.Risk]int{}, worst: p.Worst()}
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

func committedTable(items []committed) *terminal.Table {
	t := &terminal.Table{Columns: []terminal.Column{
		{Title: "COMMIT"}, {Title: "DATE", Drop: 3}, {Title: "CHANGES"}, {Title: "AUTHOR", Drop: 2}, {Title: "SUBJECT", Drop: 1},
	}}
	for i := range items {
		c := &items[i]
		t.Add(markOf(c.worst), short(c.Commit), c.Time.Format("2006-01-02 15:04"), c.Summary, person(c.Author), c.Subject)
	}
	return t
}
