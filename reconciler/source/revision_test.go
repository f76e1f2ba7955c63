package source_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/source"
)

func openLocal(t testing.TB, dir string) *source.Local {
	t.Helper()
	l, err := source.OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// history is a repository with branches, merges, tags, a remote's branches, and policy in a directory.
func history(t testing.TB) *repo {
	r := newRepo(t)
	r.commit("one", map[string]string{"README": "1"})
	r.commit("two: policy", map[string]string{"policy/mesh.cue": "a", "policy/services/shop/web.cue": "b"})
	r.git("tag", "-a", "v1", "-m", "first")
	r.commit("three: other", map[string]string{"README": "2"})
	r.git("switch", "-q", "-c", "side")
	r.commit("side", map[string]string{"policy/mesh.cue": "side"})
	r.git("switch", "-q", "main")
	r.commit("four", map[string]string{"main.go": "x"})
	r.git("merge", "-q", "--no-ff", "side", "-m", "merge side")
	r.commit("five", map[string]string{"policy/services/shop/web.cue": "c"})
	r.git("rm", "-rq", "policy")
	r.commit("six: gone", nil)
	r.commit("seven: back", map[string]string{"policy/mesh.cue": "a"})
	r.git("update-ref", "refs/remotes/origin/main", "HEAD~1")
	r.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main")
	r.git("tag", "light", "side")
	r.git("branch", "beef", "HEAD~2") // a branch that looks like a hash
	return r
}

// TestResolve: what git rev-parse says.
func TestResolve(t *testing.T) {
	r := history(t)
	r.git("worktree", "add", "-q", "--detach", filepath.Join(filepath.Dir(r.dir), "linked"), "HEAD~1")
	bare := filepath.Join(filepath.Dir(r.dir), "bare.git")
	r.git("clone", "-q", "--mirror", r.dir, bare)
	r.git("gc", "-q") // one repository with packs, one with loose objects
	head := r.git("rev-parse", "HEAD")
	revs := []string{"HEAD", "@", "main", "side", "v1", "light", "beef", "HEAD~1", "HEAD~3", "@^", "main^^", "main~3^2", "HEAD^0",
		"v1^{commit}", "v1~1", "heads/main", "tags/v1", "refs/heads/side", "origin/main", "origin", "refs/remotes/origin/main",
		head, head[:7], head[:5], strings.ToUpper(head[:9]), head[:8] + "~2", "v1-5-g" + head[:8]}
	for _, dir := range []string{r.dir, filepath.Join(r.dir, "policy"), filepath.Join(filepath.Dir(r.dir), "linked"), bare} {
		l := openLocal(t, dir)
		for _, rev := range revs {
			out, err := (&repo{t, dir}).try("", "rev-parse", "--verify", "-q", rev+"^{commit}")
			got, failed := l.Resolve(t.Context(), rev)
			if err != nil || failed != nil || got.Hash != out {
				t.Errorf("%s in %s is %s (%v); git says %s (%v)", rev, filepath.Base(dir), got.Hash, failed, out, err)
			}
		}
	}

	l := openLocal(t, r.dir)
	for rev, want := range map[string]string{
		"mian":       `did you mean "main"?`,
		"HEAD~40":    "has 0 parents",
		"HEAD^2":     "has 1 parents, and no 2th",
		"main@{1}":   "reflogs and upstreams are not read",
		"main..side": "names a range",
		"HEAD:a":     "not a revision",
		"":           "not a revision",
		"-x":         "not a revision",
		"../main":    "names a range",
		"HEAD~x":     "not a revision",
		"fedcba9876543210fedcba9876543210fedcba98": "not in the repository",
	} {
		if _, err := l.Resolve(t.Context(), rev); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", rev, err, want)
		}
	}
	if _, err := openLocal(t, newRepo(t).dir).Resolve(t.Context(), "HEAD"); err == nil || !strings.Contains(err.Error(), "no commit yet") {
		t.Errorf("an empty repository: %v", err)
	}
	if _, err := source.OpenLocal(t.TempDir()); err == nil || !strings.Contains(err.Error(), "git init") {
		t.Errorf("no repository: %v", err)
	}
}

func TestResolveAmbiguous(t *testing.T) {
	r := newRepo(t)
	tree := r.git("mktree")
	seen := map[string]string{}
	for i := range 5000 { // two of them share four digits with near certainty: 5000² / 2 / 65536 pairs do
		h := r.git("commit-tree", tree, "-m", fmt.Sprint(i))
		if other, ok := seen[h[:4]]; ok {
			_, err := openLocal(t, r.dir).Resolve(t.Context(), h[:4])
			if err == nil || !strings.Contains(err.Error(), "write more digits") || !strings.Contains(err.Error(), other[:12]) {
				t.Errorf("%s: %v", h[:4], err)
			}
			return
		}
		seen[h[:4]] = h
	}
	t.Fatal("no two hashes share four digits")
}

// TestLog: what git log --first-parent says of a directory.
func TestLog(t *testing.T) {
	r := history(t)
	l := openLocal(t, filepath.Join(r.dir, "policy"))
	if l.Root() == "" || l.Subdir() != "policy" {
		t.Errorf("root %q, subdir %q", l.Root(), l.Subdir())
	}
	head, err := l.Resolve(t.Context(), "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	for _, subdir := range []string{"", "policy", "policy/services", "policy/services/shop/", "nothing"} {
		var got []string
		for c, err := range l.Log(t.Context(), head.Hash, subdir) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, c.Subject)
		}
		args := []string{"log", "--first-parent", "--format=%s", "HEAD", "--"}
		if subdir != "" {
			args = append(args, subdir)
		}
		if d := cmp.Diff(r.git(args...), strings.Join(got, "\n")); d != "" {
			t.Errorf("%q (-git +got):\n%s", subdir, d)
		}
	}
}

func TestAt(t *testing.T) {
	r := history(t)
	l := openLocal(t, r.dir)
	at := func(rev, subdir string) (string, error) {
		c, err := l.Resolve(t.Context(), rev)
		if err != nil {
			t.Fatal(err)
		}
		sn, findings, err := l.At(t.Context(), c.Hash, subdir)
		if err != nil || len(findings) > 0 {
			return "", errors.Join(err, findings)
		}
		var all []string
		for _, f := range sn.Files {
			b, err := sn.Read(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, f.Path+"="+string(b))
		}
		return strings.Join(all, " "), nil
	}
	for _, tt := range []struct{ rev, subdir, want string }{
		{"v1", "policy", "mesh.cue=a services/shop/web.cue=b"},
		{"v1", "", "README=1 policy/mesh.cue=a policy/services/shop/web.cue=b"},
		{"HEAD~2", "policy", "mesh.cue=side services/shop/web.cue=c"},
		{"HEAD~2", "policy/services", "shop/web.cue=c"},
		{"v1", "./policy/", "mesh.cue=a services/shop/web.cue=b"},
	} {
		if got, err := at(tt.rev, tt.subdir); err != nil || got != tt.want {
			t.Errorf("%s below %q: %s, %v", tt.rev, tt.subdir, got, err)
		}
	}
	for _, subdir := range []string{"policy", "README", "../x"} {
		if _, err := at("HEAD~1", subdir); !errors.Is(err, source.ErrNoDirectory) {
			t.Errorf("%q: %v", subdir, err)
		}
	}
}

func TestAtTime(t *testing.T) {
	r := newRepo(t)
	start := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	hour := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	var script strings.Builder
	for i, change := range []string{"README", "policy/mesh.cue", "README", "policy/mesh.cue"} {
		fmt.Fprintf(&script, "commit refs/heads/main\ncommitter Ada <ada@example.org> %d +0000\ndata 1\n%d\nM 100644 inline %s\ndata 1\n%d\n",
			hour(i).Unix(), i, change, i)
	}
	r.gitIn(script.String(), "fast-import", "--quiet")
	l := openLocal(t, r.dir)
	head, err := l.Resolve(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at           time.Time
		subdir, want string
	}{
		{hour(9), "policy", "3"}, {hour(3), "policy", "3"}, {hour(3).Add(-time.Second), "policy", "1"}, {hour(2), "policy", "1"},
		{hour(2), "", "2"}, {hour(1), "policy", "1"}, {hour(0), "", "0"},
	} {
		if c, err := l.AtTime(t.Context(), head.Hash, tt.subdir, tt.at); err != nil || c.Subject != tt.want {
			t.Errorf("at %s below %q: %v, %v; want %s", tt.at, tt.subdir, c, err, tt.want)
		}
	}
	for _, at := range []time.Time{hour(0), hour(-1)} {
		if _, err := l.AtTime(t.Context(), head.Hash, "policy", at); !errors.Is(err, source.ErrNoDirectory) {
			t.Errorf("at %s: %v", at, err)
		}
	}
}

// TestMergeBase: what git merge-base says, for random histories with merges, several roots and clocks that lie.
func TestMergeBase(t *testing.T) {
	r := newRepo(t)
	rng := rand.New(rand.NewPCG(7, 7))
	var script strings.Builder
	var marks []int
	for i := range 60 {
		fmt.Fprintf(&script, "commit refs/heads/c%d\nmark :%d\ncommitter Ada <ada@example.org> %d +0000\ndata 1\nx\n", i, i+1, 1_700_000_000+60*i-rng.IntN(200))
		if i >= 2 {
			first := rng.IntN(i)
			fmt.Fprintf(&script, "from :%d\n", first+1)
			if second := rng.IntN(i); rng.IntN(3) == 0 && second != first {
				fmt.Fprintf(&script, "merge :%d\n", second+1)
			}
		}
		fmt.Fprintf(&script, "M 100644 inline f\ndata <<E\n%d\nE\n", i)
		marks = append(marks, i)
	}
	r.gitIn(script.String(), "fast-import", "--quiet")
	l := openLocal(t, r.dir)
	none := 0
	for range 150 {
		a, b := r.git("rev-parse", fmt.Sprintf("c%d", marks[rng.IntN(len(marks))])), r.git("rev-parse", fmt.Sprintf("c%d", marks[rng.IntN(len(marks))]))
		out, failed := r.try("", "merge-base", "--all", a, b)
		got, err := l.MergeBase(t.Context(), a, b)
		if failed != nil {
			none++
			if err == nil {
				t.Errorf("%.7s %.7s: got %.7s, git finds none", a, b, got.Hash)
			}
			continue
		}
		if err != nil || !slices.Contains(strings.Fields(out), got.Hash) {
			t.Errorf("%.7s %.7s: got %.7s, %v; git says %s", a, b, got.Hash, err, out)
		}
	}
	if none == 0 || none == 150 {
		t.Errorf("%d of 150 pairs have nothing in common", none)
	}
}

// TestShallow: what is there is read, and what is not is asked for.
func TestShallow(t *testing.T) {
	r := history(t)
	dir := filepath.Join(t.TempDir(), "shallow")
	r.git("clone", "-q", "--depth", "3", "file://"+r.dir, dir)
	(&repo{t, dir}).git("fetch", "-q", "--depth", "1", "origin", "side:refs/remotes/origin/side")
	l := openLocal(t, dir)
	head, err := l.Resolve(t.Context(), "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := l.Resolve(t.Context(), "HEAD~2"); err != nil || c.Subject != "five" {
		t.Errorf("HEAD~2: %v %v", c, err)
	}
	shallow := func(what string, err error) {
		t.Helper()
		var e *source.ShallowError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "git fetch --unshallow") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = l.Resolve(t.Context(), "HEAD~3")
	shallow("HEAD~3", err)
	var subjects []string
	for c, err := range l.Log(t.Context(), head.Hash, "policy") {
		if err != nil {
			shallow("log", err)
			break
		}
		subjects = append(subjects, c.Subject)
	}
	if d := cmp.Diff([]string{"seven: back", "six: gone"}, subjects); d != "" {
		t.Errorf("log (-want +got):\n%s", d)
	}
	side, err := l.Resolve(t.Context(), "origin/side")
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.MergeBase(t.Context(), head.Hash, side.Hash)
	shallow("merge base", err)
	_, err = l.AtTime(t.Context(), head.Hash, "policy", time.Unix(0, 0))
	shallow("at a time", err)
}

// TestPartial: a clone without contents says what brings them, and is read after that.
func TestPartial(t *testing.T) {
	r := history(t)
	r.git("config", "uploadpack.allowFilter", "true")
	dir := filepath.Join(t.TempDir(), "partial")
	r.git("clone", "-q", "--filter=blob:none", "--no-checkout", "file://"+r.dir, dir)
	l := openLocal(t, dir)
	head, err := l.Resolve(t.Context(), "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = l.At(t.Context(), head.Hash, "policy")
	if err == nil || !strings.Contains(err.Error(), "git fetch --refetch --no-filter") {
		t.Fatalf("a partial clone: %v", err)
	}
	(&repo{t, dir}).git("fetch", "-q", "--refetch", "--no-filter")
	if sn, _, err := l.At(t.Context(), head.Hash, "policy"); err != nil || len(sn.Files) != 1 {
		t.Errorf("after it: %v %v", sn, err)
	}
}
