package ci_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// workflow is what of a GitHub workflow is looked at here. Fields that are not here are refused by #Workflow of ci/github.cue.
type workflow struct {
	On          map[string]any    `yaml:"on"`
	Permissions map[string]string `yaml:"permissions"`
	Jobs        map[string]struct {
		If          string            `yaml:"if"`
		Permissions map[string]string `yaml:"permissions"`
		Env         map[string]string `yaml:"env"`
		Steps       []step            `yaml:"steps"`
	} `yaml:"jobs"`
}

type step struct {
	Name string            `yaml:"name"`
	If   string            `yaml:"if"`
	Uses string            `yaml:"uses"`
	With map[string]any    `yaml:"with"`
	Env  map[string]string `yaml:"env"`
	Run  string            `yaml:"run"`
}

// gitlabJob is what of a GitLab job is looked at here.
type gitlabJob struct {
	Variables    map[string]string `yaml:"variables"`
	BeforeScript []string          `yaml:"before_script"`
	Script       []string          `yaml:"script"`
}

func githubWorkflow(t *testing.T, name string) workflow {
	t.Helper()
	var w workflow
	if err := yaml.Unmarshal(read(t, template, ".github/workflows/"+name), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

func gitlabPipeline(t *testing.T) map[string]gitlabJob {
	t.Helper()
	var nodes map[string]yaml.Node
	if err := yaml.Unmarshal(read(t, template, ".gitlab-ci.yml"), &nodes); err != nil {
		t.Fatal(err)
	}
	jobs := map[string]gitlabJob{}
	for name, node := range nodes {
		if node.Kind != yaml.MappingNode {
			continue // stages
		}
		var j gitlabJob
		if err := node.Decode(&j); err != nil {
			t.Fatal(err)
		}
		jobs[name] = j
	}
	return jobs
}

// variables is an environment as a list.
func variables(maps ...map[string]string) []string {
	var out []string
	for _, m := range maps {
		for k, v := range m {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return out
}

// TestDefaultJobs runs the scripts of the jobs that every copy of the template has, on a copy, and on one with a mistake:
// they are stock `cue vet` and nothing else, and it decides.
func TestDefaultJobs(t *testing.T) {
	w := githubWorkflow(t, "policy.yaml")
	job := w.Jobs["vet"]
	if len(w.Jobs) != 1 || job.If != "" || len(job.Permissions) != 0 || len(w.Permissions) != 1 || w.Permissions["contents"] != "read" {
		t.Errorf("want one job, always run, that may only read: %+v", w)
	}
	if _, ok := w.On["pull_request"]; !ok {
		t.Errorf("not run for pull requests: %v", w.On)
	}
	var github []string
	for _, s := range job.Steps {
		if s.Uses == "" && s.If == "" {
			github = append(github, s.Run)
		}
	}
	pipeline := gitlabPipeline(t)["policy"]
	jobs := map[string]struct {
		env     map[string]string
		scripts []string
	}{
		"GitHub": {job.Env, github},
		"GitLab": {pipeline.Variables, slices.Concat(pipeline.BeforeScript, pipeline.Script)},
	}
	for name, j := range jobs {
		t.Run(name, func(t *testing.T) {
			cue := requireCUE(t, pinned)
			good, bad, refused := copied(t), copied(t), 0
			edit(t, bad, "mesh.cue", `staging: {timeout: "30s"`, `staging: {timeout: "soon"`) // wrong in one environment
			vets := 0
			for _, script := range j.scripts {
				if strings.HasPrefix(script, "go install ") {
					continue // TestVersions says of what
				}
				if !strings.HasPrefix(script, "cue vet -c ") {
					t.Errorf("the default job runs %q, which is not the stock CLI", script)
				}
				vets++
				if out, err := shell(t, good, script, variables(j.env), cue); err != nil || out != "" {
					t.Errorf("%s: %v\n%s", script, err, out)
				}
				if _, err := shell(t, bad, script, variables(j.env), cue); err != nil {
					refused++
				}
			}
			if vets < 2 || refused != 1 {
				t.Errorf("of %d commands %d refuse a fault of one environment; want 1 of at least 2", vets, refused)
			}
		})
	}
}

// TestPreCommit commits in a real repository with the template's hook: what is staged decides, not what lies around.
func TestPreCommit(t *testing.T) {
	for name, tools := range map[string][]string{
		"cue alone":      {requireCUE(t, pinned)},
		"cue and heddle": {requireCUE(t, pinned), heddle(t)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copied(t)
			git := func(script string) (string, error) { return shell(t, dir, script, nil, tools...) }
			must := func(script string) {
				t.Helper()
				if out, err := git(script); err != nil {
					t.Fatalf("%s: %v\n%s", script, err, out)
				}
			}
			must("git init -q -b main && git config core.hooksPath .githooks && git add -A && git commit -q -m first")

			edit(t, dir, "services/shop/api.cue", "weight: 90", "weight: 80")
			if out, err := git("git commit -q -a -m bad"); err == nil || !strings.Contains(out, "weights sum to 90") ||
				!strings.Contains(out, "services/shop/api.cue:") {
				t.Errorf("a bad commit: %v\n%s", err, out)
			}
			must("git reset -q") // the fault stays in the file, and is not staged
			edit(t, dir, "services/shop/web.cue", "The shop's front end", "Our front end")
			must("git commit -q -m good services/shop/web.cue")
			must("test $(git rev-list --count HEAD) = 2 && test -z \"$(git ls-files --others)\"")

			must("git checkout -q services && git rm -q services/shop/api-v2.cue") // what cue cannot see
			out, err := git("git commit -q -m dangling")
			if sees := len(tools) > 1; (err != nil) != sees || sees && !strings.Contains(out, "shop/api-v2") {
				t.Errorf("a backend that does not exist: %v\n%s", err, out)
			}
		})
	}
	t.Run("no cue", func(t *testing.T) {
		dir := copied(t)
		// A PATH with git and what hooks need, and no cue.
		tools := t.TempDir()
		for _, name := range []string{"git", "sh", "bash", "mktemp", "rm", "unshare"} {
			out, err := shell(t, dir, "command -v "+name, nil)
			if err != nil {
				continue
			}
			if err := os.Symlink(strings.TrimSpace(out), filepath.Join(tools, name)); err != nil {
				t.Fatal(err)
			}
		}
		const commit = "git init -q -b main && git config core.hooksPath .githooks && git add -A && git commit -q -m first"
		out, err := shell(t, dir, commit, []string{"PATH=" + tools})
		if err == nil || !strings.Contains(out, "go install cuelang.org/go/cmd/cue@") {
			t.Errorf("a commit that nobody checked: %v\n%s", err, out)
		}
	})
}
