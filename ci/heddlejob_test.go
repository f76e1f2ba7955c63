package ci_test

import (
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// forge is the part of GitHub's and GitLab's API that keeps the comments of one pull request, over real HTTP.
type forge struct {
	*httptest.Server
	collection string           // path of the comments
	one        func(int) string // path of one
	edit       string           // the method that edits one
	header     string           // the header that carries the token
	token      string
	author     [2]string // where a comment says whose it is
	me         string

	mu       sync.Mutex // guards comments
	comments []*comment
}

type comment struct {
	id           int
	author, body string
	edits        int
}

const token = "secret-of-the-forge"

func newForge(t *testing.T, f *forge) *forge {
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	// More than one page of what others said; one quotes the first line of our comment.
	for i := range 120 {
		f.comments = append(f.comments, &comment{id: 1000 + i, author: "reviewer", body: fmt.Sprintf("remark %d", i)})
	}
	f.comments[0].body = "<!-- heddle:plan:mesh-policy -->\nI quote."
	return f
}

func newGitHub(t *testing.T) *forge {
	return newForge(t, &forge{
		collection: "/repos/acme/mesh-policy/issues/7/comments",
		one:        func(id int) string { return fmt.Sprintf("/repos/acme/mesh-policy/issues/comments/%d", id) },
		edit:       http.MethodPatch, header: "Authorization", token: "Bearer " + token,
		author: [2]string{"user", "login"}, me: "github-actions[bot]",
	})
}

func newGitLab(t *testing.T) *forge {
	const collection = "/projects/5/merge_requests/7/notes"
	return newForge(t, &forge{
		collection: collection,
		one:        func(id int) string { return fmt.Sprintf("%s/%d", collection, id) },
		edit:       http.MethodPut, header: "PRIVATE-TOKEN", token: token,
		author: [2]string{"author", "username"}, me: "project_5_bot",
	})
}

func (f *forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	if r.Header.Get(f.header) != f.token {
		answer(http.StatusUnauthorized, map[string]string{"message": "Bad credentials"})
		return
	}
	show := func(c *comment) map[string]any {
		return map[string]any{"id": c.id, "body": c.body, f.author[0]: map[string]string{f.author[1]: c.author}}
	}
	var in struct{ Body string }
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Body == "" {
			answer(http.StatusUnprocessableEntity, map[string]string{"message": "no body"})
			return
		}
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/user":
		answer(http.StatusOK, map[string]string{"username": f.me})
		return
	case r.Method == http.MethodGet && r.URL.Path == f.collection:
		size, _ := strconv.Atoi(r.URL.Query().Get("per_page"))
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		out := []any{}
		for i, c := range f.comments {
			if i/max(size, 1)+1 == page {
				out = append(out, show(c))
			}
		}
		answer(http.StatusOK, out)
		return
	case r.Method == http.MethodPost && r.URL.Path == f.collection:
		c := &comment{id: 2000 + len(f.comments), author: f.me, body: in.Body}
		f.comments = append(f.comments, c)
		answer(http.StatusCreated, show(c))
		return
	case r.Method == f.edit:
		for _, c := range f.comments {
			if r.URL.Path == f.one(c.id) && c.author == f.me {
				c.body, c.edits = in.Body, c.edits+1
				answer(http.StatusOK, show(c))
				return
			}
		}
	}
	answer(http.StatusNotFound, map[string]string{"message": "Not Found"})
}

// ours are the comments of the job.
func (f *forge) ours() (out []comment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.comments {
		if c.author == f.me {
			out = append(out, *c)
		}
	}
	return out
}

// request is a pull request: a repository with main and a branch that wants to be merged.
type request struct {
	dir   string
	forge *forge
	gate  string // the setting GATE
	fork  bool   // it comes from a fork
}

// outcome is what a run of the optional job left.
type outcome struct {
	log    string // all that its steps said
	shown  string // what stands in the summary, or in the log where there is none
	failed string // the script that failed, if one did
}

// git runs a script in the repository.
func (r *request) git(t *testing.T, script string) string {
	t.Helper()
	out, err := shell(t, r.dir, script, nil)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

// github runs the optional workflow as GitHub does: on a merge of the branch, each step a shell of its own.
func (r *request) github(t *testing.T) outcome {
	r.git(t, "git checkout -q -B merge main && git merge -q --no-ff -m merge change")
	defer r.git(t, "git checkout -q change")
	temp := t.TempDir()
	summary := filepath.Join(temp, "summary.md")
	expressions := strings.NewReplacer(
		"${{ github.token }}", token,
		"${{ github.event.pull_request.number }}", "7",
	)
	conditions := map[string]bool{
		"": true,
		"github.event.pull_request.head.repo.full_name == github.repository": !r.fork,
		"env.GATE != ''": r.gate != "",
	}
	base := map[string]string{"GITHUB_API_URL": r.forge.URL, "GITHUB_REPOSITORY": "acme/mesh-policy", "GITHUB_STEP_SUMMARY": summary, "RUNNER_TEMP": temp,
		"GITHUB_SERVER_URL": "https://git.example.com"}
	job := githubWorkflow(t, "heddle.yaml").Jobs["heddle"]
	if job.If != "false" {
		t.Errorf("the job is on by default: if is %q", job.If)
	}
	var o outcome
	for _, s := range job.Steps {
		run, known := conditions[s.If]
		if !known {
			t.Fatalf("step %q runs if %q: what is that?", s.Name, s.If)
		}
		if !run || s.Uses != "" || strings.HasPrefix(s.Run, "go install ") {
			continue
		}
		env := map[string]string{}
		for _, m := range []map[string]string{base, job.Env, {"GATE": r.gate}, s.Env} {
			for k, v := range m {
				env[k] = expressions.Replace(v)
				if strings.Contains(env[k], "${{") {
					t.Fatalf("step %q: %s is %s: what is that?", s.Name, k, v)
				}
			}
		}
		out, err := online(t, r.dir, s.Run, variables(env), heddle(t))
		if o.log += out; err != nil {
			o.failed = s.Run
			break
		}
	}
	if b, err := os.ReadFile(summary); err == nil {
		o.shown = string(b)
	}
	return o
}

// gitlab runs the optional job as GitLab does: on the branch itself, all lines in one shell.
func (r *request) gitlab(t *testing.T) outcome {
	job := gitlabPipeline(t)[".heddle"] // the dot keeps it off
	var lines []string
	for _, l := range slices.Concat(job.BeforeScript, job.Script) {
		if !strings.HasPrefix(l, "apt-get ") && !strings.HasPrefix(l, "go install ") {
			lines = append(lines, l)
		}
	}
	env := maps.Clone(job.Variables)
	maps.Copy(env, map[string]string{
		"CI_API_V4_URL": r.forge.URL, "CI_PROJECT_URL": "https://git.example.com/acme/mesh-policy", "CI_PROJECT_ID": "5", "CI_MERGE_REQUEST_IID": "7",
		"CI_MERGE_REQUEST_DIFF_BASE_SHA": r.git(t, "git merge-base main change"),
		"GATE":                           r.gate,
	})
	if !r.fork { // the fork's project has no such variable
		env["HEDDLE_NOTES_TOKEN"] = token
	}
	out, err := online(t, r.dir, strings.Join(lines, "\n"), variables(env), heddle(t))
	o := outcome{log: out, shown: out}
	if err != nil {
		o.failed = err.Error() + "\n" + out
	}
	return o
}

// TestHeddleJob runs the scripts of the optional jobs through the life of a pull request, on a real repository and against
// a server that speaks the forge's API.
func TestHeddleJob(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq", "git"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: the jobs run on machines that have %s, and this one has not: nothing says here that they work", tool)
		}
	}
	forges := map[string]struct {
		forge func(*testing.T) *forge
		run   func(*request, *testing.T) outcome
		blob  string // where the forge shows a file
	}{
		"GitHub": {newGitHub, (*request).github, "blob/"},
		"GitLab": {newGitLab, (*request).gitlab, "-/blob/"},
	}
	// Two changes of who may call whom that break no promise of the template.
	const (
		api  = "services/shop/api.cue"
		old  = `routes: ["admin"]`
		wide = `routes: ["admin", "rest"]`
	)
	for name, test := range forges {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &request{dir: copied(t), forge: test.forge(t)}
			run := func(t *testing.T) outcome { t.Helper(); return test.run(r, t) }
			r.git(t, "git init -q -b main && git add -A && git commit -q -m policy && git checkout -q -b change")

			// Nothing that means anything: nothing is said.
			edit(t, r.dir, api, "The shop's API.", "Our API.")
			r.git(t, "git commit -q -a -m comment")
			if o := run(t); o.failed != "" || len(r.forge.ours()) != 0 {
				t.Fatalf("a comment in policy: failed %q, said %v\n%s", o.failed, r.forge.ours(), o.log)
			}

			// Somebody gains access: said once, with links to the lines, and where it comes from a fork in the summary alone.
			edit(t, r.dir, api, old, wide)
			r.git(t, "git commit -q -a -m widen")
			r.fork = true
			if o := run(t); o.failed != "" || len(r.forge.ours()) != 0 || !strings.Contains(o.shown, "shop/api") {
				t.Fatalf("from a fork: failed %q, said %v, shown %s\n%s", o.failed, r.forge.ours(), o.shown, o.log)
			}
			r.fork = false
			if o := run(t); o.failed != "" {
				t.Fatalf("failed %s\n%s", o.failed, o.log)
			}
			said := r.forge.ours()
			if link := "https://git.example.com/acme/mesh-policy/" + test.blob; len(said) != 1 ||
				!strings.Contains(said[0].body, "console") || !strings.Contains(html.UnescapeString(said[0].body), link) {
				t.Fatalf("want one comment that names the console and links to the line, got %v", said)
			}
			marker, _, _ := strings.Cut(said[0].body, "\n")
			if !strings.HasPrefix(marker, "<!-- heddle:plan:") {
				t.Errorf("the first line is no marker: %q", marker)
			}

			// A gate, and a job that is run again.
			r.gate = "widens,drops-encryption"
			if o := run(t); o.failed == "" {
				t.Errorf("a plan that widens passes a gate that refuses it\n%s", o.log)
			}
			r.gate = "drops-encryption"
			if o := run(t); o.failed != "" {
				t.Errorf("a plan that drops no encryption fails: %s\n%s", o.failed, o.log)
			}
			r.gate = ""

			// Taken back: the same comments say so.
			edit(t, r.dir, api, wide, old)
			r.git(t, "git commit -q -a -m back")
			if o := run(t); o.failed != "" {
				t.Fatalf("failed %s\n%s", o.failed, o.log)
			}
			now := r.forge.ours()
			if len(now) != 1 || now[0].edits != 3 || strings.Contains(now[0].body, "console") {
				t.Errorf("want the same comment, edited by each run since, got %+v", now)
			}

			// A fault is said at its line, and nothing is planned.
			edit(t, r.dir, api, `"shop/api-v2"`, `"shop/api-v3"`)
			r.git(t, "git commit -q -a -m dangling")
			o := run(t)
			if o.failed == "" || len(r.forge.ours()) != 1 {
				t.Errorf("a backend that does not exist: failed %q, said %v\n%s", o.failed, r.forge.ours(), o.log)
			}
			if !strings.Contains(o.log, "shop/api-v3") {
				t.Errorf("the log does not say what is wrong:\n%s", o.log)
			}
			if name == "GitLab" {
				var report []struct {
					Location struct{ Path string }
				}
				b := read(t, r.dir, "gl-code-quality-report.json")
				if err := json.Unmarshal(b, &report); err != nil || len(report) == 0 || report[0].Location.Path != api {
					t.Errorf("the report: %v\n%s", err, b)
				}
			} else if !strings.Contains(o.log, "file="+api) {
				t.Errorf("no annotation at %s:\n%s", api, o.log)
			}
		})
	}
}
