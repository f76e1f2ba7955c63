package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/candidate"
	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// target is the policy that a command looks at.
type target struct {
	dir, rev, env, proxy string
	allEnvs, noCache     bool
}

// flags adds those flags that a command has of --rev, --env, --all-envs and --proxy-version, and --no-cache.
func (t *target) flags(cmd *cobra.Command, names ...string) {
	f := cmd.Flags()
	f.BoolVar(&t.noCache, "no-cache", false, "evaluate everything, and keep nothing for the next time")
	for _, name := range names {
		switch name {
		case "dir":
			f.StringVar(&t.dir, "dir", "", "the policy repository's `directory`")
			if err := cmd.MarkFlagDirname("dir"); err != nil {
				panic(err) // the flag was not defined: a fault of this program
			}
		case "rev":
			f.StringVar(&t.rev, "rev", "", "look at this `revision` of Git, as in main or HEAD~1, and not at the files as they lie there")
		case "env":
			f.StringVar(&t.env, "env", "", "the `environment` to evaluate for; default: the repository's own")
		case "all-envs":
			f.BoolVar(&t.allEnvs, "all-envs", false, "evaluate for the default environment and each of mesh.environments")
			cmd.MarkFlagsMutuallyExclusive("env", "all-envs")
		case "proxy-version":
			f.StringVar(&t.proxy, "proxy-version", "", "judge by what this `version` of heddle-proxy enforces; \"any\" asks none")
		}
	}
}

// open prepares to read the target's repository.
func (t *target) open() *candidate.Repository {
	spendMemory()
	return candidate.Open(cmp.Or(t.dir, home()), candidate.Options{Proxy: t.proxy, Now: time.Now(), CacheDir: cacheDir(t.noCache)})
}

// spendMemory puts the first collection off until there is much to collect: a command ends soon, and in a repository of
// ten thousand services collecting costs a quarter of a plan.
var spendMemory = sync.OnceFunc(func() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return // somebody knows better
	}
	const enough = 320 << 20 // beside its children the whole stays below 512 MiB
	was, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(enough)
	mark := new([16]byte)
	runtime.AddCleanup(mark, func(int) {
		debug.SetGCPercent(was)
		debug.SetMemoryLimit(limit)
	}, 0)
})

// cacheDir is the directory that keeps evaluations from one command to the next, "" if none is to: HEDDLE_CACHE, which may
// be "off", else a directory of Heddle's among the user's caches.
func cacheDir(off bool) string {
	dir, named := os.LookupEnv("HEDDLE_CACHE")
	switch {
	case off || named && (dir == "off" || dir == ""):
		return ""
	case named:
		return dir
	}
	caches, err := os.UserCacheDir()
	if err != nil {
		return "" // a machine user without a home keeps nothing
	}
	return filepath.Join(caches, "heddle", "policy")
}

// files reads the target.
func (t *target) files(ctx context.Context, repo *candidate.Repository) (*candidate.Files, error) {
	if _, ok := mesh.EnforcedBy(t.proxy); t.proxy != "" && !ok {
		return nil, &usageError{err: &hinted{fmt.Errorf("--proxy-version: no heddle-proxy %q is known to this heddle", t.proxy),
			fmt.Sprintf("%s, or any", mesh.Version)}}
	}
	if t.rev != "" {
		return filesAt(ctx, repo, t.rev)
	}
	f, err := repo.WorkTree(ctx)
	if err != nil {
		return nil, unread(repo, err)
	}
	return f, nil
}

// filesAt reads a revision.
func filesAt(ctx context.Context, repo *candidate.Repository, rev string) (*candidate.Files, error) {
	commit, err := repo.Resolve(ctx, rev)
	if err != nil {
		return nil, noLook(err)
	}
	f, err := repo.At(ctx, commit)
	if err != nil {
		return nil, unread(repo, err)
	}
	return f, nil
}

// unread is an error about a repository that cannot be read, with what to do.
func unread(repo *candidate.Repository, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, source.ErrNoDirectory) || strings.HasSuffix(err.Error(), "not a directory") {
		return &hinted{noLook(err), "name the directory that holds mesh.cue"}
	}
	return noLook(err)
}

// candidates evaluates files for the environments that were asked for, the default one first.
func (t *target) candidates(ctx context.Context, files *candidate.Files) ([]*candidate.Candidate, error) {
	first, err := files.Evaluate(ctx, t.env)
	if err != nil {
		return nil, noLook(err)
	}
	all := []*candidate.Candidate{first}
	if !t.allEnvs {
		return all, nil
	}
	for _, env := range first.Environments() {
		if env == first.Env {
			continue
		}
		c, err := files.Evaluate(ctx, env)
		if err != nil {
			return nil, noLook(err)
		}
		all = append(all, c)
	}
	return all, nil
}

// envName is an environment as people read it.
func envName(env string) string { return cmp.Or(env, "the default one") }

// merge puts the findings of several environments together: what all of them have once, and what only some have with
// their names.
func merge(all []*candidate.Candidate) diag.List {
	if len(all) == 1 {
		return all[0].Findings
	}
	type key struct {
		id, path, message string
		pos               diag.Pos
	}
	in := map[key][]string{}
	for _, c := range all {
		seen := map[key]bool{}
		for _, f := range c.Findings {
			k := key{f.ID, f.Path, f.Message, f.Pos}
			if !seen[k] {
				in[k] = append(in[k], envName(c.Env))
			}
			seen[k] = true
		}
	}
	var out diag.List
	for _, c := range all {
		for _, f := range c.Findings {
			if envs := in[key{f.ID, f.Path, f.Message, f.Pos}]; len(envs) < len(all) {
				f.Message += fmt.Sprintf(" (in environment %s)", strings.Join(envs, ", "))
			}
			out = append(out, f)
		}
	}
	return out.Sorted()
}

func (c *cli) checkCommand() *cobra.Command {
	var t target
	var strict bool
	cmd := &cobra.Command{
		Use:   "check [DIR]",
		Short: "Validate a policy repository as the reconciler would",
		Long: `Check runs the reconciler's own pipeline: it loads the files, evaluates and compiles them, runs the
expectations and proves the invariants, and prints the findings of all stages at once. It looks at the files of a
directory as they lie there, committed or not, without those that Git ignores; or with --rev at a revision. Without
DIR it looks for mesh.cue in this directory and in those above it, as all commands about policy do.

Exit code 0: no errors. 1: errors, or with --strict warnings. 3: something could not be read, so nothing is said.`,
		Example: `  heddle check
  heddle check --all-envs --strict
  heddle check policy --rev origin/main
  heddle check policy -o sarif > heddle.sarif
  heddle check -o github            # annotations in a pull request`,
		Args: argsBetween(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.dir = c.policyDir(args)
			return c.check(cmd.Context(), &t, strict)
		},
	}
	t.flags(cmd, "env", "all-envs", "rev", "proxy-version")
	cmd.Flags().BoolVar(&strict, "strict", false, "let warnings count as errors")
	c.outputFlag(cmd, "text", "json", "sarif", "github", "gitlab")
	return cmd
}

func (c *cli) check(ctx context.Context, t *target, strict bool) error {
	repo := t.open()
	defer repo.Close()
	files, err := t.files(ctx, repo)
	if err != nil {
		return err
	}
	all, err := t.candidates(ctx, files)
	if err != nil {
		return err
	}
	for _, one := range all {
		one.Prove()
	}
	findings := merge(all)
	if err := c.printFindings(findings, repo); err != nil {
		return err
	}
	bad := len(findings.Errors()) > 0 || strict && len(findings) > 0
	if c.output == "text" || c.output == "" {
		c.summarize(all, findings)
	}
	if bad {
		return errProblems
	}
	return nil
}

// summarize says on stderr what was looked at.
func (c *cli) summarize(all []*candidate.Candidate, findings diag.List) {
	if errors := len(findings.Errors()); errors > 0 {
		fmt.Fprint(c.stderr, count(errors, "error"))
		if warnings := len(findings) - errors; warnings > 0 {
			fmt.Fprintf(c.stderr, ", %s", count(warnings, "warning"))
		}
		fmt.Fprintln(c.stderr)
		return
	}
	services := 0
	if m := all[0].Mesh; m != nil {
		services = len(m.Inbound)
	}
	text := count(services, "service") + " checked"
	if len(all) > 1 {
		text += " in " + count(len(all), "environment")
	}
	if len(findings) == 0 {
		text += ", nothing found"
	} else {
		text += ", " + count(len(findings), "warning")
	}
	fmt.Fprintln(c.stderr, text)
}

// printFindings renders findings in the format that was asked for. Formats that a forge reads name files as the forge
// does, from the root of the Git repository.
func (c *cli) printFindings(l diag.List, repo *candidate.Repository) error {
	switch c.output {
	case "json":
		return diag.JSON(c.stdout, l)
	case "sarif":
		return diag.SARIF(c.stdout, fromRoot(l, repo), version)
	case "github":
		return diag.GitHub(c.stdout, fromRoot(l, repo))
	case "gitlab":
		return diag.GitLab(c.stdout, fromRoot(l, repo))
	}
	return diag.Text(c.stdout, l, c.out.Color)
}

// fromRoot lets positions start at the root of the Git repository, where there is one.
func fromRoot(l diag.List, repo *candidate.Repository) diag.List {
	git, err := repo.Git()
	if err != nil || git.Subdir() == "" || len(l) == 0 {
		return l // what lies in no repository has no other root than its own
	}
	move := func(p diag.Pos) diag.Pos {
		if p.File != "" {
			p.File = path.Join(git.Subdir(), p.File)
		}
		return p
	}
	out := slices.Clone(l)
	for i := range out {
		out[i].Pos = move(out[i].Pos)
		out[i].Related = slices.Clone(out[i].Related)
		for j := range out[i].Related {
			out[i].Related[j] = move(out[i].Related[j])
		}
	}
	return out
}

// rejected says on stderr what is wrong with policy that a command needs compiled. side is how to name it.
func (c *cli) rejected(side string, one *candidate.Candidate) error {
	if err := diag.Text(c.stderr, one.Findings.Errors(), c.err.Color); err != nil {
		return err
	}
	return &hinted{noLook(fmt.Errorf("%s has %s, so it is not compiled", side, count(len(one.Findings.Errors()), "finding"))),
		"mend them; heddle check shows them all"}
}

// home is the policy repository that is meant where none is named: the nearest directory from here upwards that has a
// mesh.cue, within the same Git repository.
func home() string {
	at, err := os.Getwd()
	if err != nil {
		return "."
	}
	for up := "."; ; up = filepath.Join(up, "..") {
		if hasPolicy(up) {
			return up
		}
		_, err := os.Lstat(filepath.Join(up, ".git"))
		if err == nil || filepath.Dir(at) == at {
			return "."
		}
		at = filepath.Dir(at)
	}
}

// policyDir is the policy repository that a command's arguments name. One that lies further up is said on stderr: the
// positions of findings start there.
func (c *cli) policyDir(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	dir := home()
	if dir != "." && (c.output == "" || c.output == "text" || c.output == "table") {
		fmt.Fprintf(c.stderr, "policy repository: %s\n", dir)
	}
	return dir
}

// hasPolicy reports whether a directory looks like a policy repository.
func hasPolicy(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "mesh.cue"))
	return err == nil
}
