package up

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// makeRepository makes the demo's policy repository at dir, unless it is there: the example's policy and the vendored
// schema in one commit, by a user that only this repository knows. It is made under another name and renamed, so that
// a half-made one is never taken for a repository.
func makeRepository(ctx context.Context, dir, ref string, policy fs.FS, schema map[string][]byte) error {
	if exists(filepath.Join(dir, ".git")) {
		return nil
	}
	git, err := exec.LookPath("git")
	if err != nil {
		return errors.New("heddle up makes a policy repository with git, and there is no git in PATH; " +
			"install git, or name a repository of yours with --repo")
	}
	temporary := dir + ".new"
	if err := os.RemoveAll(temporary); err != nil {
		return fmt.Errorf("making the policy repository: %w", err)
	}
	files := map[string][]byte{"cue.mod/module.cue": []byte(moduleFile)}
	for name, b := range schema {
		files[name] = b
	}
	err = fs.WalkDir(policy, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[name], err = fs.ReadFile(policy, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the example's policy: %w", err)
	}
	for name, b := range files {
		at := filepath.Join(temporary, filepath.FromSlash(path.Clean(name)))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return fmt.Errorf("making the policy repository: %w", err)
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			return fmt.Errorf("making the policy repository: %w", err)
		}
	}
	for _, args := range [][]string{
		{"init", "--quiet"},
		{"symbolic-ref", "HEAD", "refs/heads/" + ref},
		{"config", "user.name", "heddle up"},
		{"config", "user.email", "heddle@localhost"},
		{"config", "commit.gpgSign", "false"},
		{"add", "--all"},
		{"commit", "--quiet", "-m", "Start the shop"},
	} {
		cmd := exec.CommandContext(ctx, git, append([]string{"-C", temporary}, args...)...)
		cmd.Env = gitEnvironment()
		if out, err := cmd.CombinedOutput(); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("making the policy repository: git %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
	}
	if err := errors.Join(durable.SyncDir(temporary), os.Rename(temporary, dir)); err != nil {
		return fmt.Errorf("making the policy repository: %w", err)
	}
	return nil
}

// gitEnvironment keeps a surrounding repository, or a hook that heddle runs in, out of the way.
func gitEnvironment() []string {
	env := []string{"GIT_TERMINAL_PROMPT=0"}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "GIT_") {
			env = append(env, e)
		}
	}
	return env
}

// moduleFile makes the repository a CUE module, as the stock cue CLI wants it.
const moduleFile = `module: "policy.example/mesh@v0"
language: version: "` + v1alpha1.LowestLanguage + `"
`
