package source_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
)

// TestJudge: a work tree is judged as the commit of it would be, in the same words.
func TestJudge(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	blob := func(content string) string { return r.gitIn(content, "hash-object", "-w", "--stdin") }
	mktree := func(lines ...string) string { return r.gitIn(strings.Join(lines, "\x00")+"\x00", "mktree", "-z") }
	ok := blob("fine")
	shop := mktree("100644 blob "+ok+"\tweb.cue", "100644 blob "+ok+"\tWeb.cue", "100644 blob "+ok+"\tπ.cue", "100644 blob "+ok+"\tΠ.cue")
	deep := shop
	for range 1500 {
		deep = mktree("040000 tree " + deep + "\tnn")
	}
	tree := mktree(
		"040000 tree "+mktree("040000 tree "+shop+"\tshop")+"\tservices",
		"040000 tree "+mktree("040000 tree "+shop+"\tshop", "100644 blob "+ok+"\tall.cue")+"\tServices",
		"040000 tree "+deep+"\tdeep",
		"040000 tree "+shop+"\tbad\x07name",
		"120000 blob "+blob("mesh.cue")+"\tmesh.cue",
		"160000 commit "+first+"\tvendored",
		"100644 blob "+ok+"\tREADME", "100644 blob "+ok+"\treadme", "100644 blob "+ok+"\tReadme.d",
		"100644 blob "+blob(strings.Repeat("x", 1<<20+1))+"\tlarge",
		"100644 blob "+ok+"\tnot-\xff-utf8",
	)
	commit := r.commitTree(tree)
	s := open(t, source.Options{URL: r.dir})
	sn, want, err := s.Snapshot(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}

	var entries []source.Entry
	for line := range strings.SplitSeq(strings.TrimSuffix(r.git("ls-tree", "-rlz", commit), "\x00"), "\x00") {
		head, path, _ := strings.Cut(line, "\t")
		fields := strings.Fields(head)
		e := source.Entry{Path: path}
		switch fields[0] {
		case "120000":
			e.Kind = source.Link
		case "160000":
			e.Kind = source.Module
		}
		e.Size, _ = strconv.ParseInt(fields[3], 10, 64)
		entries = append(entries, e)
	}
	keep, got := source.Limits{}.Judge(entries)
	if d := cmp.Diff(want.Error(), got.Error()); d != "" {
		t.Errorf("findings (-commit +work tree):\n%s", d)
	}
	var files, kept []string
	for _, f := range sn.Files {
		files = append(files, f.Path)
	}
	for _, e := range keep {
		kept = append(kept, e.Path)
	}
	if d := cmp.Diff(files, kept); d != "" {
		t.Errorf("files (-commit +work tree):\n%s", d)
	}
	collisions := 0
	for _, f := range got {
		if f.ID == diag.CaseCollision {
			collisions++
			t.Log(f)
		}
	}
	if collisions != 6 {
		t.Errorf("%d collisions, want services, readme, and two in each of the directories under the two services: %v", collisions, got)
	}

	for name, tt := range map[string]struct {
		limits source.Limits
		id     string
	}{
		"many":  {source.Limits{Files: 3}, diag.TooManyFiles},
		"large": {source.Limits{TreeSize: 10}, diag.TreeTooLarge},
	} {
		if keep, got := tt.limits.Judge([]source.Entry{{Path: "a", Size: 4}, {Path: "b", Size: 4}, {Path: "c", Size: 4}, {Path: "d"}}); len(keep) != 0 || len(got) != 1 || got[0].ID != tt.id {
			t.Errorf("%s: %v %v", name, keep, got)
		}
	}
}
