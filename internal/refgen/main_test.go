package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
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

// TestFieldsExist: the fields that the tables of the reference name are fields of the language.
func TestFieldsExist(t *testing.T) {
	for _, e := range elsewhere {
		if !known(reflect.TypeFor[v1alpha1.Policy](), e.field) && !known(reflect.TypeFor[v1alpha1.Service](), e.field) {
			t.Errorf("there is no field %s", e.field)
		}
	}
	for _, v := range mesh.BuiltIn {
		// A value is of the object that its path names, whatever level that stands at.
		path := strings.NewReplacer("filters.", "httpRoutes.*.filters.#.", "workloads.*", "workloads.*.*", "egress.*", "egress.*.*").Replace(v.Path)
		if !known(reflect.TypeFor[v1alpha1.Policy](), path) && !known(reflect.TypeFor[v1alpha1.Service](), path) {
			t.Errorf("there is no field %s", v.Path)
		}
	}
	if known(reflect.TypeFor[v1alpha1.Service](), "httpRoutes.*.tmeout") {
		t.Error("a misspelt field is known")
	}
}

// known follows a path of fields, with * for a name and # for an element.
func known(t reflect.Type, path string) bool {
	for name := range strings.SplitSeq(path, ".") {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case name == "*" && t.Kind() == reflect.Map, name == "#" && t.Kind() == reflect.Slice:
			t = t.Elem()
		case t.Kind() == reflect.Struct:
			f, ok := fieldByJSON(t, name)
			if !ok {
				return false
			}
			t = f
		default:
			return false
		}
	}
	return true
}

func fieldByJSON(t reflect.Type, name string) (reflect.Type, bool) {
	for f := range t.Fields() {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return f.Type, true
		}
	}
	return nil, false
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
