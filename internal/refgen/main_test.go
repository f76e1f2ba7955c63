package main

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// unseen are the checks without an input and its exact output in the tests, each with the reason.
var unseen = map[string]string{
	diag.EvalCrashed: "a crash that is known is mended; a test kills a child instead",
}

// TestEveryFindingIsSeen: each check of the catalogue has an archive somewhere in the tests that expects it, and the
// reference shows one of them.
func TestEveryFindingIsSeen(t *testing.T) {
	found, err := examples("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range diag.Catalogue {
		e, ok := found[c.ID]
		reason, excepted := unseen[c.ID]
		switch {
		case !ok && !excepted:
			t.Errorf("%s (%s): no archive of the tests expects it", c.ID, c.Title)
		case ok && excepted:
			t.Errorf("%s is seen in %s: it is no exception any more (%s)", c.ID, e.archive, reason)
		case ok && (!strings.Contains(e.output, "["+c.ID+"]") || e.snippet == "" && strings.Contains(e.output, ".cue:")):
			t.Errorf("%s: the example from %s shows %q for %q", c.ID, e.archive, e.output, e.snippet)
		}
		delete(found, c.ID)
	}
	for id, e := range found {
		t.Errorf("%s is expected in %s, and the catalogue does not explain it", id, e.archive)
	}
}

// TestAround: a long file is shown where the finding is.
func TestAround(t *testing.T) {
	long := strings.Split("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", " ")
	for n, want := range map[int]string{
		0: "1 2 3 4 5 …", 1: "1 2 3 4 5 …", 10: "… 5 6 7 8 9 10 11 12 13 14 …", 20: "… 15 16 17 18 19 20",
	} {
		if got := strings.ReplaceAll(around(long, n), "\n", " "); got != want {
			t.Errorf("around line %d: %s, want %s", n, got, want)
		}
	}
	if got := around(long[:3], 2); got != "1\n2\n3" {
		t.Errorf("a short file is shown as %q", got)
	}
}
