package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/reconciler/source"
)

// repo is a repository made by the git command, which no configuration of this machine reaches.
type repo struct {
	t   testing.TB
	dir string
}

func newRepo(t testing.TB, args ...string) *repo {
	t.Helper()
	r := &repo{t, filepath.Join(t.TempDir(), "policy")}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.git(append([]string{"init", "-q", "-b", "main"}, args...)...)
	return r
}

var gitEnv = []string{
	"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
	"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada",
	"GIT_COMMITTER_EMAIL=ada@example.org", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C", "TZ=XXX-5:30",
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	return r.gitIn("", args...)
}

func (r *repo) gitIn(stdin string, args ...string) string {
	r.t.Helper()
	out, err := r.try(stdin, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// try is for other goroutines than the test's.
func (r *repo) try(stdin string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = r.dir, gitEnv, strings.NewReader(stdin)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, msg.Bytes())
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

func (r *repo) write(files map[string]string) {
	r.t.Helper()
	for path, content := range files {
		full := filepath.Join(r.dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

// commit writes files, commits all that changed and returns the hash.
func (r *repo) commit(subject string, files map[string]string) string {
	r.t.Helper()
	r.write(files)
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", subject)
	return r.git("rev-parse", "HEAD")
}

// commitTree commits a tree of git mktree's making, whatever is in it, on main.
func (r *repo) commitTree(tree string) string {
	r.t.Helper()
	h := r.git("commit-tree", tree, "-m", "tree")
	r.git("update-ref", "refs/heads/main", h)
	return h
}

func open(t testing.TB, opts source.Options) *source.Source {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	s, err := source.Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fetch(t testing.TB, s *source.Source) source.Commit {
	t.Helper()
	c, err := s.Fetch(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// contents reads every file of a commit that has no findings.
func contents(t testing.TB, s *source.Source, commit string) map[string]string {
	t.Helper()
	sn, findings, err := s.Snapshot(context.Background(), commit)
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) > 0 {
		t.Fatalf("findings:\n%v", findings)
	}
	if !slices.IsSortedFunc(sn.Files, func(a, b source.File) int { return strings.Compare(a.Path, b.Path) }) {
		t.Error("files are not sorted by path")
	}
	all := map[string]string{}
	for _, f := range sn.Files {
		b, err := sn.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		if f.Size != int64(len(b)) {
			t.Errorf("%s: size %d, content %d", f.Path, f.Size, len(b))
		}
		all[f.Path] = string(b)
	}
	return all
}

// state is every file of a directory with its size, mode and time of change.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = fmt.Sprint(st.Mode(), st.ModTime().UnixNano())
		if !d.IsDir() {
			all[path] += fmt.Sprint(" ", st.Size())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var policy = map[string]string{
	"mesh.cue": "package policy\n", "services/shop/web.cue": "web", "services/shop/api.cue": "api",
	"services.cue": "sorts before services/", "empty": "", "services/deep/er/x": strings.Repeat("x", 1<<16),
}

// One repository, in every shape in which it may lie on this machine. Nothing is written into any.
func TestLocalRepositories(t *testing.T) {
	origin := newRepo(t)
	origin.commit("first", policy)
	origin.git("tag", "-a", "v1", "-m", "a tag")
	origin.git("tag", "-a", "v2", "-m", "a tag of a tag", "v1")
	second := maps(policy, "services/shop/web.cue", "web, changed")
	tip := origin.commit("Second\tcommit \x1b[31m\n\nbody", second)
	origin.git("branch", "other/dev", "v1")
	clone := func(args ...string) func(*testing.T) string {
		return func(t *testing.T) string {
			to := filepath.Join(t.TempDir(), "clone")
			origin.git(append(append([]string{"clone", "-q"}, args...), origin.dir, to)...)
			return to
		}
	}
	for _, tt := range []struct {
		name string
		path func(*testing.T) string
		ref  string
		want map[string]string
	}{
		{"work tree, default branch", func(*testing.T) string { return origin.dir }, "", second},
		{"file URL, full name", func(*testing.T) string { return "file://" + origin.dir }, "refs/heads/main", second},
		{"its .git", func(*testing.T) string { return origin.dir + "/.git" }, "main", second},
		{"HEAD", func(*testing.T) string { return origin.dir }, "HEAD", second},
		{"annotated tag", func(*testing.T) string { return origin.dir }, "v1", policy},
		{"tag of a tag", func(*testing.T) string { return origin.dir }, "refs/tags/v2", policy},
		{"branch with a slash", func(*testing.T) string { return origin.dir }, "other/dev", policy},
		{"bare", clone("--bare"), "main", second},
		{"packed refs and objects", func(t *testing.T) string {
			dir := clone("--no-local")(t)
			(&repo{t, dir}).git("gc", "-q")
			return dir
		}, "main", second},
		{"borrowed objects", clone("--shared"), "main", second},
		{"borrowed twice", func(t *testing.T) string {
			a, to := clone("--shared")(t), filepath.Join(t.TempDir(), "b")
			origin.git("clone", "-q", "--shared", a, to)
			return to
		}, "main", second},
		{"linked work tree", func(t *testing.T) string {
			to := filepath.Join(t.TempDir(), "linked")
			origin.git("worktree", "add", "-q", "--detach", to)
			return to
		}, "main", second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path(t)
			s := open(t, source.Options{URL: path, Ref: tt.ref})
			before := state(t, filepath.Dir(origin.dir))
			if !s.Local() || s.Interval() != 200*time.Millisecond {
				t.Errorf("Local %v, Interval %v", s.Local(), s.Interval())
			}
			c := fetch(t, s)
			if diff := cmp.Diff(tt.want, contents(t, s, c.Hash)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if err := s.MarkApplied(c.Hash); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, state(t, filepath.Dir(origin.dir))); diff != "" {
				t.Errorf("the user's repository changed (-before +after):\n%s", diff)
			}
		})
	}

	t.Run("description", func(t *testing.T) {
		s := open(t, source.Options{URL: origin.dir})
		got := fetch(t, s)
		when := origin.git("show", "-s", "--format=%ct")
		if got.Hash != tip || got.Subject != "Second commit  [31m" || got.Author != "Ada <ada@example.org>" ||
			fmt.Sprint(got.Time.Unix()) != when {
			t.Errorf("%+q", got)
		}
		again, err := s.Commit(tip)
		if err != nil || again != got {
			t.Errorf("Commit: %v, %v", again, err)
		}
		if _, err := s.Commit(strings.Repeat("1", 40)); !errors.Is(err, source.ErrUnknownCommit) {
			t.Errorf("unknown commit: %v", err)
		}
		if _, err := s.Commit("main"); err == nil || errors.Is(err, source.ErrUnknownCommit) {
			t.Errorf("a name instead of a hash: %v", err)
		}
	})
}

// maps is a copy of m with some values set.
func maps(m map[string]string, set ...string) map[string]string {
	c := map[string]string{}
	for k, v := range m {
		c[k] = v
	}
	for i := 0; i < len(set); i += 2 {
		c[set[i]] = set[i+1]
	}
	return c
}

func TestLocalFollowsTheRef(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	s := open(t, source.Options{URL: r.dir})
	if got := fetch(t, s).Hash; got != first {
		t.Fatalf("tip %s, want %s", got, first)
	}
	for i := range 3 { // new commits, each in another kind of storage
		h := r.commit("next", map[string]string{"mesh.cue": fmt.Sprint(i)})
		switch i {
		case 1:
			r.git("gc", "-q", "--prune=now")
		case 2:
			r.git("pack-refs", "--all")
		}
		if got := fetch(t, s).Hash; got != h {
			t.Fatalf("tip %s, want %s", got, h)
		}
		if got := contents(t, s, h)["mesh.cue"]; got != fmt.Sprint(i) {
			t.Errorf("mesh.cue is %q", got)
		}
	}
	r.git("reset", "-q", "--hard", first)
	if got := fetch(t, s).Hash; got != first {
		t.Errorf("after a reset: tip %s, want %s", got, first)
	}
}

func TestRefErrors(t *testing.T) {
	full := newRepo(t)
	full.commit("first", policy)
	full.git("tag", "v1")
	full.git("branch", "staging")
	empty := newRepo(t)
	unborn := newRepo(t)
	unborn.commit("first", policy)
	unborn.git("branch", "-m", "main", "trunk")
	unborn.git("checkout", "-q", "--orphan", "main")
	detached := newRepo(t)
	detached.commit("first", policy)
	detached.git("checkout", "-q", "--detach")
	detached.git("branch", "-m", "main", "old")
	tree := newRepo(t)
	tree.commit("first", policy)
	tree.git("tag", "t", "HEAD^{tree}")

	for _, tt := range []struct {
		name string
		repo *repo
		ref  string
		want string
	}{
		{"misspelt", full, "mian", `has no branch or tag "mian"; did you mean "main"? it has main, staging, v1`},
		{"nothing like it", full, "release-7", `has no branch or tag "release-7": it has main, staging, v1`},
		{"full name", full, "refs/heads/stagin", `did you mean "staging"?`},
		{"empty", empty, "main", "has no commit yet; branch main is checked out and has no commit: commit the policy to"},
		{"unborn", unborn, "main", "branch main is checked out and has no commit: it has trunk"},
		{"detached", detached, "main", "its HEAD is detached at "},
		{"not a commit", tree, "t", "it names a tree, not a commit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, remote := range []bool{false, true} {
				url := tt.repo.dir
				want := tt.want
				if remote {
					url = serve(t, tt.repo).URL
					want, _, _ = strings.Cut(want, "; branch main")
					want, _, _ = strings.Cut(want, "branch main is")
					want, _, _ = strings.Cut(want, "its HEAD")
				}
				s := open(t, source.Options{URL: url, Ref: tt.ref})
				if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("remote %v: error\n%v\ndoes not say\n%s", remote, err, want)
				}
			}
		})
	}
	for _, ref := range []string{"a b", "refs/heads/..", "x\n", strings.Repeat("a", 40), "-x\x7f"} {
		if _, err := source.Open(t.Context(), source.Options{URL: full.dir, Ref: ref, Dir: t.TempDir()}); err == nil {
			t.Errorf("ref %q is accepted", ref)
		}
	}
}

// Loose objects are files, and there may be more of them than a process may have open.
func TestDescriptors(t *testing.T) {
	opened := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("cannot count open files here: %v", err)
		}
		return len(entries)
	}
	r := newRepo(t)
	files := map[string]string{}
	for i := range 100 {
		files[fmt.Sprintf("f%d.cue", i)] = fmt.Sprintf("package policy // %d\n", i)
	}
	commit := r.commit("many", files)
	s := open(t, source.Options{URL: r.dir})
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes what was forgotten
	before := opened()
	contents(t, s, commit)
	if after := opened(); after > before+10 {
		t.Errorf("%d files were left open", after-before)
	}
}

// A repository that was moved away is not one without commits.
func TestLocalGone(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	s := open(t, source.Options{URL: r.dir})
	fetch(t, s)
	away := r.dir + ".away"
	if err := os.Rename(r.dir, away); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file or directory") ||
		!strings.Contains(err.Error(), "bring it back") {
		t.Errorf("gone: %v", err)
	}
	if err := os.Rename(away, r.dir); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, s).Hash; got != first {
		t.Errorf("back again: tip %s, want %s", got, first)
	}
}

func TestOpenErrors(t *testing.T) {
	r := newRepo(t)
	r.commit("first", policy)
	sha256 := newRepo(t, "--object-format=sha256")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"":                                 "name a path or a URL",
		filepath.Join(r.dir, "no"):         "no such file or directory",
		file:                               "not a directory",
		t.TempDir():                        "is not a git repository",
		filepath.Join(r.dir, "services"):   "did you mean " + r.dir,
		sha256.dir:                         "objectformat = sha256",
		"git://example.org/x":              "git:// is not supported",
		"ext::sh -c id":                    "",
		"https://example.org":              "a host and a path are needed",
		"file://host/x":                    "three slashes",
		"http://u:p@example.org/x.git":     "use https",
		"https://a:b%zz@example.org/x.git": "not a valid URL",
		"us/er:b%zz@example.org:x.git":     "nor a valid URL",
	} {
		_, err := source.Open(t.Context(), source.Options{URL: url, Dir: t.TempDir()})
		if url == "ext::sh -c id" { // an SSH host of a strange name, never a command
			if err == nil {
				continue
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not say %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "b%zz") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
}

func TestApplied(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", policy)
	opts := source.Options{URL: r.dir, Dir: t.TempDir()}
	s := open(t, opts)
	if got, err := s.Applied(); got != "" || err != nil {
		t.Fatalf("at first: %q, %v", got, err)
	}
	if err := s.MarkApplied("main"); err == nil {
		t.Error("a name is accepted as a commit")
	}
	if err := s.MarkApplied(h); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, opts).Applied(); got != h || err != nil {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	if err := os.Truncate(filepath.Join(opts.Dir, "applied"), 90); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Applied(); !errors.Is(err, durable.ErrCorrupt) {
		t.Errorf("a damaged record: %q, %v", got, err)
	}
}

// git commits, packs, prunes and collects while the repository is read: no read fails, and each sees whole commits.
func TestGitCollectsUnderUs(t *testing.T) {
	r := newRepo(t)
	r.commit("first", maps(policy, "n", "0"))
	s := open(t, source.Options{URL: r.dir})

	const commits = 12
	done := make(chan error)
	go func() {
		done <- func() error {
			for i := 1; i <= commits; i++ {
				if err := os.WriteFile(filepath.Join(r.dir, "n"), []byte(fmt.Sprint(i)), 0o600); err != nil {
					return err
				}
				for _, args := range [][]string{{"commit", "-qam", "next"}, [][]string{
					{"gc", "-q", "--prune=now"}, {"repack", "-q", "-a", "-d", "-f"},
					{"pack-refs", "--all", "--prune"}, {"repack", "-q", "-d"},
				}[i%4]} {
					if _, err := r.try("", args...); err != nil {
						return err
					}
				}
			}
			return nil
		}()
	}()
	last, reads := "", 0
	var err error
	for running := true; running; reads++ {
		select {
		case err = <-done:
			running = false
		default:
		}
		if reads%2 == 0 {
			s.Close() // so that nothing is in memory
		}
		c, ferr := s.Fetch(t.Context())
		if ferr != nil {
			t.Error(ferr)
			continue
		}
		got := contents(t, s, c.Hash)
		last = got["n"]
		if diff := cmp.Diff(maps(policy, "n", last), got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if err != nil || last != fmt.Sprint(commits) {
		t.Errorf("at the end: commit %s, %v", last, err)
	}
	t.Logf("%d whole reads", reads)
}

func TestIsAncestorAndChanged(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a", policy)
	b := r.commit("b", map[string]string{"services/shop/web.cue": "b", "new/dir/x": "x"})
	r.git("checkout", "-q", "-b", "side", a)
	side := r.commit("side", map[string]string{"mesh.cue": "side"})
	r.git("checkout", "-q", "main")
	r.git("merge", "-q", "-m", "merge", "side")
	merge := r.git("rev-parse", "HEAD")
	os.RemoveAll(filepath.Join(r.dir, "services"))
	replaced := r.commit("a file where a directory was", map[string]string{"services": "file"})
	r.git("checkout", "-q", "--orphan", "unrelated")
	unrelated := r.commit("unrelated", nil)
	unknown := strings.Repeat("1", 40)
	url := serve(t, r).URL

	for _, opts := range []source.Options{{URL: r.dir}, {URL: url}} {
		s := open(t, opts)
		fetch(t, s)
		for _, tt := range []struct {
			name     string
			old, new string
			want     bool
		}{
			{"itself", a, a, true}, {"parent", a, b, true}, {"child", b, a, false}, {"first parent", b, merge, true},
			{"merged", side, merge, true}, {"far", a, replaced, true}, {"sibling", b, side, false},
			{"gone", unknown, merge, false},
		} {
			got, err := s.IsAncestor(t.Context(), tt.old, tt.new)
			if err != nil || got != tt.want {
				t.Errorf("%s (local %v): %v, %v, want %v", tt.name, s.Local(), got, err, tt.want)
			}
		}
		if _, err := s.IsAncestor(t.Context(), a, unknown); !errors.Is(err, source.ErrUnknownCommit) {
			t.Errorf("unknown tip: %v", err)
		}
		if s.Local() {
			if got, err := s.IsAncestor(t.Context(), a, unrelated); err != nil || got {
				t.Errorf("unrelated history: %v, %v", got, err)
			}
		}
		for _, pair := range [][2]string{{a, b}, {b, a}, {a, side}, {side, merge}, {merge, replaced}, {a, a}} {
			got, err := s.Changed(t.Context(), pair[0], pair[1])
			want := strings.Fields(r.git("diff-tree", "-r", "--no-renames", "--name-only", pair[0], pair[1]))
			slices.Sort(want)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("changed: %q, %v; git says %q", got, err, want)
			}
		}
	}

	shallow := filepath.Join(t.TempDir(), "shallow")
	r.git("clone", "-q", "--depth=2", "-b", "main", "file://"+r.dir, shallow)
	s := open(t, source.Options{URL: shallow})
	if got, err := s.IsAncestor(t.Context(), merge, replaced); err != nil || !got {
		t.Errorf("within a shallow clone: %v, %v", got, err)
	}
	if got, err := s.IsAncestor(t.Context(), a, replaced); err == nil || !strings.Contains(err.Error(), "--unshallow") {
		t.Errorf("beyond a shallow clone: %v, %v", got, err)
	}
}

func TestMaskedURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://example.org/a/b.git":                "https://example.org/a/b.git",
		"https://user:secret@example.org/a":          "https://***@example.org/a",
		"https://secret@example.org/a":               "https://***@example.org/a",
		"https://user:sec/ret@example.org/a":         "https://***@example.org/a",
		"https://user:1/secret@example.org/a":        "https://***@example.org/a",
		"https://user:sec@ret@example.org/a":         "https://***@example.org/a",
		"https://user:sec%zzret@example.org/a":       "https://***@example.org/a",
		"https://user:sec?ret@example.org/a":         "https://***@example.org/a",
		"https://example.org/a?private_token=secret": "https://example.org/a",
		"https://example.org/@scope/a#secret":        "https://***@scope/a",
		"ssh://git@example.org:22/a":                 "ssh://git@example.org:22/a",
		"ssh://git:secret@example.org/a":             "ssh://***@example.org/a",
		"git@example.org:team/a.git":                 "git@example.org:team/a.git",
		"git:secret@example.org:team/a.git":          "***@example.org:team/a.git",
		"/srv/policy":                                "/srv/policy",
		"file:///srv/policy":                         "file:///srv/policy",
		"HTTPS://user:secret@example.org/a":          "HTTPS://***@example.org/a",
		"https://user:secret@[::1]:8443/a":           "https://***@[::1]:8443/a",
	} {
		if got := source.MaskedURL(url); got != want {
			t.Errorf("MaskedURL(%s) = %s, want %s", url, got, want)
		}
	}
}

// However a secret is written into the userinfo of a URL, with or without escapes, it is not in what people see.
func FuzzMaskedURL(f *testing.F) {
	f.Add("https", "user:", "", "example.org/a")
	f.Add("ssh", "git:a/b?c#d@", "%zz", "[::1]:22/~/a")
	f.Add("http", "1/@", "@/", "h:80/p?q@r")
	f.Fuzz(func(t *testing.T, scheme, before, after, rest string) {
		raw := scheme + "://" + before + "s3cr3t" + after + "@" + rest
		if strings.Contains(scheme+rest, "s3cr3t") || strings.EqualFold(scheme, "file") || strings.Contains(scheme, "://") {
			t.Skip()
		}
		if strings.EqualFold(scheme, "ssh") { // a login name is no secret
			raw = scheme + "://u:" + before + "s3cr3t" + after + "@" + rest
		}
		if got := source.MaskedURL(raw); strings.Contains(got, "s3cr3t") {
			t.Errorf("MaskedURL(%q) = %q", raw, got)
		}
	})
}
