package source_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
)

// Every kind of thing that a policy repository may not hold, in one commit: all are found, and the rest is read.
func TestFindings(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	blob := func(content string) string { return r.gitIn(content, "hash-object", "-w", "--stdin") }
	mktree := func(lines ...string) string { return r.gitIn(strings.Join(lines, "\x00")+"\x00", "mktree", "-z") }
	ok := blob("fine")
	inner := mktree("120000 blob "+blob("/etc/passwd")+"\tlink.cue", "100644 blob "+ok+"\tok.cue")
	tree := mktree(
		"040000 tree "+inner+"\tinner",
		"040000 tree "+inner+"\t..",
		"040000 tree "+inner+"\t.GIT",
		"100755 blob "+ok+"\texecutable",
		"100644 blob "+ok+"\ta\\b",
		"100644 blob "+ok+"\ttab\there",
		"100644 blob "+ok+"\tnot-\xff-utf8",
		"100644 blob "+ok+"\tabc\u202ecba",
		"100644 blob "+ok+"\tit's fine.cue",
		"160000 commit "+first+"\tvendored",
		"120000 blob "+blob("mesh.cue")+"\talias.cue",
		"100644 blob "+blob(strings.Repeat("x", 1<<20))+"\tjust-fits",
		"100644 blob "+blob(strings.Repeat("x", 1<<20+1))+"\ttoo-large.cue",
		"120000 blob "+blob("x")+"\tit's a link",
	)
	commit := r.commitTree(tree)

	s := open(t, source.Options{URL: r.dir})
	sn, findings, err := s.Snapshot(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	const want = `..: the name stands for a directory that is already there [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
.GIT: the name is git's own [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
a\\b: the name contains a backslash [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
abc\u202ecba: the name contains a character that reverses the direction of reading [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
alias.cue: a symbolic link; only regular files are read [HDL0101]
  hint: put a copy of the file that it points to in its place, or remove it: git rm alias.cue
inner/link.cue: a symbolic link; only regular files are read [HDL0101]
  hint: put a copy of the file that it points to in its place, or remove it: git rm inner/link.cue
it's a link: a symbolic link; only regular files are read [HDL0101]
  hint: put a copy of the file that it points to in its place, or remove it: git rm 'it'\''s a link'
not-\xff-utf8: the name is not valid UTF-8 [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
tab\there: the name contains a control character [HDL0106]
  hint: rename it: letters, digits, '.', '_' and '-' are safe everywhere
too-large.cue: the file has 1048577 bytes; at most 1048576 are read [HDL0103]
  hint: split it, or keep it in another repository: git rm too-large.cue
vendored: a submodule; only files of this repository are read [HDL0102]
  hint: copy the files that are needed into this repository, and remove it: git rm vendored`
	if diff := cmp.Diff(want, findings.Error()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	var paths []string
	for _, f := range sn.Files {
		paths = append(paths, f.Path)
		if _, err := sn.Read(f); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"executable", "inner/ok.cue", "it's fine.cue", "just-fits"}, paths); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if hash, ok := sn.Directory("inner"); !ok || hash != inner {
		t.Errorf("Directory(inner) = %s, %v", hash, ok)
	}
	if hash, ok := sn.Directory(""); !ok || hash != tree {
		t.Errorf("Directory() = %s, %v", hash, ok)
	}
	for _, path := range []string{"inner/no", "executable", "..", "../inner"} {
		if hash, ok := sn.Directory(path); ok {
			t.Errorf("Directory(%s) = %s", path, hash)
		}
	}

	// The findings of directories that are taken over from the last snapshot are not lost.
	more := r.commitTree(mktree("040000 tree "+tree+"\tall", "100644 blob "+ok+"\tnew"))
	for _, commit := range []string{more, commit, more} {
		if _, again, err := s.Snapshot(t.Context(), commit); err != nil || len(again) != len(findings) {
			t.Errorf("%d findings, %v; want %d", len(again), err, len(findings))
		}
	}
}

// Directories as no git would write them: names with slashes, repeated names, a wrong order.
func TestHandmadeDirectories(t *testing.T) {
	r := newRepo(t)
	r.commit("first", policy)
	hash := r.gitIn("fine", "hash-object", "-w", "--stdin")
	var bin strings.Builder
	for i := 0; i < 40; i += 2 {
		var b byte
		fmt.Sscanf(hash[i:i+2], "%02x", &b)
		bin.WriteByte(b)
	}
	var tree strings.Builder
	for _, name := range []string{"z", "/etc/cron.d/x", "a/b", "dup", "dup", "b"} {
		tree.WriteString("100644 " + name + "\x00" + bin.String())
	}
	file := filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(file, []byte(tree.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	commit := r.commitTree(r.git("hash-object", "-t", "tree", "-w", "--literally", file))
	s := open(t, source.Options{URL: r.dir})
	sn, findings, err := s.Snapshot(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range findings {
		got = append(got, f.String())
	}
	if diff := cmp.Diff([]string{
		"/etc/cron.d/x: the name is an absolute path [HDL0106]",
		"a/b: the name contains a slash [HDL0106]",
		"dup: the name occurs twice in its directory [HDL0106]",
	}, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	var paths []string
	for _, f := range sn.Files {
		paths = append(paths, f.Path)
	}
	if got := strings.Join(paths, " "); got != "b dup z" {
		t.Errorf("files %q", got)
	}
}

func TestLimits(t *testing.T) {
	r := newRepo(t)
	fits := r.commit("fits", map[string]string{"a": "12345", "b": "1234", "c/d": "1"})
	large := r.commit("too large together", map[string]string{"c/e": "1"})
	many := r.commit("too many", map[string]string{"b": "", "f": ""})
	s := open(t, source.Options{URL: r.dir, Limits: source.Limits{Files: 4, TreeSize: 10}})
	for _, tt := range []struct{ commit, id, hint string }{
		{fits, "", ""},
		{large, diag.TreeTooLarge, "the largest files are a (5), b (4), c/d (1)"},
		{many, diag.TooManyFiles, "a repository of its own"},
		{fits, "", ""},
	} {
		sn, findings, err := s.Snapshot(t.Context(), tt.commit)
		switch {
		case err != nil:
			t.Error(err)
		case tt.id == "" && (len(findings) > 0 || len(sn.Files) != 3):
			t.Errorf("%d files, findings %v", len(sn.Files), findings)
		case tt.id != "" && (len(findings) != 1 || findings[0].ID != tt.id || !strings.Contains(findings[0].Hint, tt.hint)):
			t.Errorf("findings %v, want %s", findings, tt.id)
		}
	}

	// Thirty small objects that stand for 10^29 files, and as many that stand for directories without any.
	for _, leaf := range []string{
		"100644 blob " + r.gitIn("x", "hash-object", "-w", "--stdin"), "040000 tree " + r.gitIn("", "mktree"),
	} {
		for range 29 {
			var lines strings.Builder
			for i := range 10 {
				fmt.Fprintf(&lines, "%s\t%d\n", leaf, i)
			}
			leaf = "040000 tree " + r.gitIn(lines.String(), "mktree")
		}
		bomb := r.commitTree(strings.TrimPrefix(leaf, "040000 tree "))
		s := open(t, source.Options{URL: r.dir, Limits: source.Limits{Files: 1000}})
		_, findings, err := s.Snapshot(t.Context(), bomb)
		if err != nil || len(findings) != 1 || findings[0].ID != diag.TooManyFiles {
			t.Errorf("bomb: %v, %v", findings, err)
		}
	}
}

// What did not change is not read again: counted in objects, not in time.
func TestUnchangedDirectoriesAreNotReadAgain(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{}
	for i := range 200 {
		files[fmt.Sprintf("services/ns%d/svc%d.cue", i%20, i)] = fmt.Sprint(i)
	}
	first := r.commit("first", files)
	second := r.commit("second", map[string]string{"services/ns3/svc3.cue": "changed"})
	s := open(t, source.Options{URL: r.dir})
	cost := func(commit string) int {
		before := source.ObjectsRead(s)
		sn, _, err := s.Snapshot(t.Context(), commit)
		if err != nil || len(sn.Files) != 200 {
			t.Fatalf("%d files, %v", len(sn.Files), err)
		}
		return source.ObjectsRead(s) - before
	}
	if got, want := cost(first), 1+22; got != want { // the commit; the root, services and 20 namespaces
		t.Errorf("first snapshot read %d objects, want %d", got, want)
	}
	if got, want := cost(second), 1+3; got != want { // the commit; the root, services and one namespace
		t.Errorf("snapshot after one change read %d objects, want %d", got, want)
	}
	if got, want := cost(second), 1; got != want {
		t.Errorf("snapshot of the same commit read %d objects, want %d", got, want)
	}
}

// A repository whose objects are not what their names say, or are gone, is an error that says so; no damaged file is
// ever handed out.
func TestDamagedLocalRepository(t *testing.T) {
	for name, hurt := range map[string]func(r *repo, object string) error{
		"removed": func(_ *repo, object string) error { return os.Remove(object) },
		"cut":     func(_ *repo, object string) error { return os.Truncate(object, 12) },
		"replaced": func(r *repo, object string) error {
			other := r.gitIn("another content, of the same length", "hash-object", "-w", "--stdin")
			b, err := os.ReadFile(filepath.Join(r.dir, ".git/objects", other[:2], other[2:]))
			return errors.Join(err, os.WriteFile(object, b, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			commit := r.commit("first", map[string]string{"f": "the content that was committed here"})
			s := open(t, source.Options{URL: r.dir})
			sn, _, err := s.Snapshot(t.Context(), commit)
			if err != nil {
				t.Fatal(err)
			}
			h := sn.Files[0].Hash
			object := filepath.Join(r.dir, ".git/objects", h[:2], h[2:])
			if err := os.Chmod(object, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := hurt(r, object); err != nil {
				t.Fatal(err)
			}
			if b, err := sn.Read(sn.Files[0]); err == nil || !strings.Contains(err.Error(), "git fsck") {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
}

func TestSnapshotHonoursTheContext(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", policy)
	s := open(t, source.Options{URL: r.dir})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Snapshot(ctx, h); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// One changed file in 1,000, from looking at the ref to the list of files and the content of the one that changed.
func BenchmarkOneChangedFile(b *testing.B) {
	r := newRepo(b)
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("services/ns%d/svc%d.cue", i%50, i)] = strings.Repeat(fmt.Sprintln("line", i), 50)
	}
	r.commit("first", files)
	r.git("gc", "-q")
	bench := func(b *testing.B, url string) {
		s := open(b, source.Options{URL: url})
		old, _, err := s.Snapshot(b.Context(), fetch(b, s).Hash)
		if err != nil {
			b.Fatal(err)
		}
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			r.commit("next", map[string]string{"services/ns7/svc7.cue": fmt.Sprint(url, i)})
			b.StartTimer()
			sn, _, err := s.Snapshot(b.Context(), fetch(b, s).Hash)
			if err != nil {
				b.Fatal(err)
			}
			changed := 0
			for j, f := range sn.Files {
				if f != old.Files[j] {
					changed++
					if _, err := sn.Read(f); err != nil {
						b.Fatal(err)
					}
				}
			}
			if changed != 1 {
				b.Fatalf("%d files changed", changed)
			}
			old = sn
		}
	}
	b.Run("local", func(b *testing.B) { bench(b, r.dir) })
	b.Run("remote", func(b *testing.B) { bench(b, serve(b, r).URL) })
}

// Looking at a local ref that did not move, which happens five times a second.
func BenchmarkPollLocal(b *testing.B) {
	r := newRepo(b)
	r.commit("first", policy)
	s := open(b, source.Options{URL: r.dir})
	for b.Loop() {
		fetch(b, s)
	}
}

// 1,000 files read from a packed repository by a Source that starts.
func BenchmarkColdRead(b *testing.B) {
	r := newRepo(b)
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("services/ns%d/svc%d.cue", i%50, i)] = strings.Repeat(fmt.Sprintln("line", i), 100)
	}
	r.commit("first", files)
	r.git("gc", "-q")
	for b.Loop() {
		s := open(b, source.Options{URL: r.dir})
		if got := contents(b, s, fetch(b, s).Hash); len(got) != len(files) {
			b.Fatalf("%d files", len(got))
		}
		s.Close()
	}
}
