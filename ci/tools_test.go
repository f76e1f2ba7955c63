// Package ci_test does with policy-repo-template what a team does: copies it out, runs the commands of its workflows and of
// its hook, makes the mistakes that they are there for, upgrades its schema. The commands come from the generated YAML
// itself, so that a workflow which no longer works fails here first.
package ci_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/meshtest"
)

// root is the top of the source tree, seen from here.
const root = ".."

// template is the repository under test.
var template = filepath.Join(root, "policy-repo-template")

// Where the cue CLIs are pinned: the one that policy repositories install, and the oldest that they may use.
const pinned, oldest = "tools", "tools/oldest"

// cueIn builds the stock CLI that a tools module pins, and returns its directory and what the module calls its version.
func cueIn(module string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		cmd := exec.Command("go", "tool", "-n", "cue")
		cmd.Dir = filepath.Join(root, filepath.FromSlash(module))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go tool -n cue, in %s: %w\n%s", module, err, &stderr)
		}
		return filepath.Dir(strings.TrimSpace(string(out))), nil
	})
}

var cues = map[string]func() (string, error){pinned: cueIn(pinned), oldest: cueIn(oldest)}

// requireCUE returns the directory of a stock CLI. Where it cannot be built (no network, no module cache) the test is
// skipped, unless HEDDLE_REQUIRE_CUE is set, as CI does.
func requireCUE(t *testing.T, module string) string {
	t.Helper()
	consult(t)
	dir, err := cues[module]()
	require(t, err, "the stock cue CLI could not be built, so nothing says that the template passes it")
	return dir
}

// require skips a test that lacks a tool, saying so; in CI it fails it.
func require(t *testing.T, err error, lost string) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("HEDDLE_REQUIRE_CUE") != "":
		t.Fatal(err)
	default:
		t.Skipf("SKIPPED: %s: %v", lost, err)
	}
}

var (
	bin         string // a directory for the binary of this source tree, removed at the end
	buildHeddle = sync.OnceValue(func() error {
		cmd := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "./cmd/heddle")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building heddle: %w\n%s", err, out)
		}
		return nil
	})
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "heddle-ci")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		return m.Run()
	}())
}

// consult makes go test judge anew when a source file has changed: it does not see what other programs read.
func consult(t *testing.T) {
	t.Helper()
	if err := meshtest.Consult(root); err != nil {
		t.Fatal(err)
	}
}

// heddle returns the directory with the binary of this source tree.
func heddle(t *testing.T) string {
	t.Helper()
	consult(t)
	if err := buildHeddle(); err != nil {
		t.Fatal(err)
	}
	return bin
}

// copied is a copy of the template.
func copied(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "policy")
	err := filepath.WalkDir(template, func(from string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(template, from)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, info.Mode().Perm()) // a hook is executable
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// edit replaces a text that stands in a file exactly once.
func edit(t *testing.T, dir, name, old, new string) {
	t.Helper()
	at := filepath.Join(dir, filepath.FromSlash(name))
	b, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), old); n != 1 {
		t.Fatalf("%s holds %q %d times, want once", name, old, n)
	}
	if err := os.WriteFile(at, []byte(strings.Replace(string(b), old, new, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// netless is whether commands can be run where there is no network at all.
var netless = sync.OnceValue(func() bool { return exec.Command("unshare", "-rn", "true").Run() == nil })

// shell runs a script as GitHub runs the step of a job, with the network cut, an empty home and cache, and PATH led by the
// given directories. env is added to what little environment there is.
func shell(t *testing.T, dir, script string, env []string, path ...string) (out string, err error) {
	t.Helper()
	cmd := []string{"bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script}
	if netless() {
		cmd = append([]string{"unshare", "-rn"}, cmd...)
	}
	return run(t, dir, cmd, env, path)
}

// online is shell, where the loopback interface is needed.
func online(t *testing.T, dir, script string, env []string, path ...string) (out string, err error) {
	t.Helper()
	return run(t, dir, []string{"bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script}, env, path)
}

func run(t *testing.T, dir string, args, env, path []string) (string, error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"HOME=" + home, "CUE_CACHE_DIR=" + home, "CUE_CONFIG_DIR=" + home, "TMPDIR=" + home,
		"PATH=" + strings.Join(append(path, os.Getenv("PATH")), string(filepath.ListSeparator)),
		// Where the network cannot be cut, nobody answers there.
		"HTTP_PROXY=http://127.0.0.1:9", "HTTPS_PROXY=http://127.0.0.1:9", "NO_PROXY=127.0.0.1", "GOPROXY=off",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.com",
		"GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.com",
	}, env...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return string(out), err
}

// moduleVersion is the version of the cue module that a tools module requires.
func moduleVersion(t *testing.T, module string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(module), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*cuelang\.org/go (v\S+)`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s/go.mod requires no cuelang.org/go", module)
	}
	return string(m[1])
}
