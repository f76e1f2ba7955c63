package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/terminal"
)

// commands walks the whole tree, so that a new command is held to the manners without being listed anywhere.
func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	c := &cli{stdout: new(bytes.Buffer), stderr: new(bytes.Buffer)}
	root := c.root()
	root.InitDefaultHelpCmd()
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		all = append(all, cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return all
}

type ran struct {
	code           int
	stdout, stderr string
}

// heddle runs the real program, in a directory without a mesh.
func heddle(t *testing.T, dir string, env []string, args ...string) ran {
	t.Helper()
	exe, err := exec.LookPath("heddle") // put there by testscript.Main
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); !ok {
			t.Fatal(err)
		}
	}
	return ran{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func words(cmd *cobra.Command, more ...string) []string {
	return append(strings.Fields(cmd.CommandPath())[1:], more...)
}

// arguments that get each command past its own checks, to where it needs a mesh.
var arguments = map[string][]string{
	"heddle explain":      {"shop/web", "shop/api"},
	"heddle at":           {"2h", "shop/web", "shop/api"},
	"heddle wait":         {"3f9c2ab", "--timeout=50ms"},
	"heddle resume":       {"--accept-rewind"},
	"heddle revoke":       {"shop/web-1"},
	"heddle token create": {"--workload=shop/web-1", "--service=shop/web"},
	"heddle up kill":      {"web-1"},
}

// needsMesh are the commands that ask a running mesh, with the exit code where there is none.
var needsMesh = map[string]int{
	"heddle status": exitNoLook, "heddle history": exitNoLook, "heddle proxies": exitNoLook, "heddle edges": exitNoLook,
	"heddle explain": exitNoLook, "heddle at": exitNoLook, "heddle resume": exitNoLook, "heddle hint": exitNoLook, "heddle token create": exitNoLook,
	"heddle enrolments": exitNoLook, "heddle revoke": exitNoLook, "heddle up kill": exitNoLook, "heddle wait": exitTimeout,
}

func TestManners(t *testing.T) {
	for _, cmd := range commands(t) {
		t.Run(strings.ReplaceAll(cmd.CommandPath(), " ", "-"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if help := heddle(t, dir, nil, words(cmd, "--help")...); help.code != exitOK || help.stderr != "" ||
				!strings.Contains(help.stdout, "Examples:\n  ") || !strings.Contains(help.stdout, "Usage:") {
				t.Errorf("--help exits %d, says on stderr %q, and shows\n%s", help.code, help.stderr, help.stdout)
			}
			if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
				t.Errorf("its one line is %q", cmd.Short)
			}
			bad := heddle(t, dir, nil, words(cmd, "--no-such-flag")...)
			if bad.code != exitUsage || bad.stdout != "" || !strings.Contains(bad.stderr, "no-such-flag") || !strings.Contains(bad.stderr, "--help") {
				t.Errorf("an unknown flag: %+v", bad)
			}
			if cmd.HasSubCommands() && cmd.Name() != "up" {
				bad = heddle(t, dir, nil, words(cmd, "no-such-command")...)
				if bad.code != exitUsage || bad.stdout != "" || !strings.Contains(bad.stderr, "try: ") {
					t.Errorf("an unknown command: %+v", bad)
				}
			}
			cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" {
					t.Errorf("flag --%s has no usage", f.Name)
				}
			})
			output := cmd.Flags().Lookup("output")
			if output != nil {
				bad = heddle(t, dir, nil, words(cmd, "-o", "no-such-format")...)
				if bad.code != exitUsage || bad.stdout != "" || !strings.Contains(bad.stderr, "json") {
					t.Errorf("an unknown format: %+v", bad)
				}
				if !strings.Contains(output.Usage, "json") {
					t.Errorf("-o knows no json: %q", output.Usage)
				}
			}
			code, ok := needsMesh[cmd.CommandPath()]
			if !ok {
				return
			}
			args := words(cmd, arguments[cmd.CommandPath()]...)
			lost := heddle(t, dir, nil, args...)
			if lost.code != code || lost.stdout != "" || !strings.Contains(lost.stderr, "error: ") || !strings.Contains(lost.stderr, "  try: ") {
				t.Errorf("without a mesh: %+v", lost)
			}
			lost = heddle(t, dir, nil, append(args, "-o", "json")...)
			var e struct {
				APIVersion, Error, Hint string
				Code                    int
			}
			if err := json.Unmarshal([]byte(lost.stderr), &e); err != nil || lost.stdout != "" {
				t.Fatalf("without a mesh, with -o json: %+v, %v", lost, err)
			}
			if e.APIVersion != "heddle/v1" || e.Error == "" || e.Hint == "" || e.Code != code || lost.code != code {
				t.Errorf("without a mesh, with -o json: %+v, exit code %d", e, lost.code)
			}
		})
	}
}

// Every command that asks a mesh is in the table above: what is added later cannot be forgotten.
func TestEveryCommandThatAsksIsHeld(t *testing.T) {
	for _, cmd := range commands(t) {
		_, ok := needsMesh[cmd.CommandPath()]
		switch cmd.CommandPath() {
		case "heddle up", "heddle key", "heddle reconciler", "heddle controlplane":
			continue // they make what they need
		}
		if asks := cmd.Flags().Lookup("state") != nil; asks != ok {
			t.Errorf("%s: has --state: %t, held by TestManners: %t", cmd.CommandPath(), asks, ok)
		}
	}
}

// Commands that need no mesh print JSON that says what version it is.
func TestJSON(t *testing.T) {
	dir := t.TempDir()
	if r := heddle(t, dir, nil, "policy", "init", "repo", "-o", "json"); !versioned(r) || r.code != exitOK {
		t.Fatalf("policy init: %+v", r)
	}
	for _, args := range [][]string{
		{"version"}, {"key", "reconciler"}, {"check", "repo"}, {"policy", "upgrade", "repo"}, {"help", "HDL0206"}, {"test", "repo"},
		{"policy", "new", "namespace", "extra", "--dir", "repo"}, {"policy", "show", "--dir", "repo"}, {"policy", "fmt", "repo"},
		{"policy", "explain", "services"}, {"explain", "-", "shop/web", "GET", "/", "--dir", "repo"},
	} {
		if r := heddle(t, dir, nil, append(args, "-o", "json")...); !versioned(r) || r.code != exitOK {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "repo", "services", "shop", "broken.cue"), []byte("package policy\n\n{"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The code is the same for every format, and every format has the finding.
	for _, format := range []string{"text", "json", "sarif", "github", "gitlab"} {
		r := heddle(t, dir, nil, "check", "repo", "-o", format)
		if r.code != exitProblems || !strings.Contains(r.stdout, "broken.cue") || !strings.Contains(r.stdout, "HDL0201") {
			t.Errorf("check -o %s: %+v", format, r)
		}
	}
}

func versioned(r ran) bool {
	var v struct{ APIVersion string }
	return json.Unmarshal([]byte(r.stdout), &v) == nil && v.APIVersion == "heddle/v1"
}

func TestColour(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		env  []string
		want bool
	}{
		{nil, false}, // a pipe is no terminal
		{[]string{"CLICOLOR_FORCE=1"}, true},
		{[]string{"CLICOLOR_FORCE=0"}, false},
		{[]string{"CLICOLOR_FORCE=1", "NO_COLOR=1"}, false},
		{[]string{"CLICOLOR_FORCE=1", "TERM=dumb"}, true}, // forced is forced
	} {
		r := heddle(t, dir, c.env, "status")
		if got := strings.Contains(r.stderr, "\x1b["); got != c.want {
			t.Errorf("%v: colour is %t in %q", c.env, got, r.stderr)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := heddle(t, t.TempDir(), nil, "completion", shell)
		if r.code != exitOK || !strings.Contains(r.stdout, "heddle") || r.stderr != "" {
			t.Errorf("%s: exit code %d, %d bytes, %q", shell, r.code, len(r.stdout), r.stderr)
		}
	}
	if r := heddle(t, t.TempDir(), nil, "__complete", "status", "-o", ""); !strings.Contains(r.stdout, "json\n") {
		t.Errorf("completing -o: %+v", r)
	}
	if r := heddle(t, t.TempDir(), nil, "__complete", "help", "HDL02"); !strings.Contains(r.stdout, "HDL0206") {
		t.Errorf("completing a finding: %+v", r)
	}
}

// What keeps a program from running is said on one line, with the code that says that nobody looked.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"reconciler", "--repo", "nowhere", "--state", "rs"}, exitNoLook, "nowhere"},
		{[]string{"reconciler"}, exitUsage, "--repo"},
		{[]string{"controlplane"}, exitUsage, "--reconciler"},
		{[]string{"controlplane", "--reconciler", "127.0.0.1:1", "--reconciler-key", "secret"}, exitNoLook, "heddle key"},
		{[]string{"up"}, exitNoLook, "heddle-proxy"}, // there is none beside the test's binary
		{[]string{"up", "nowhere"}, exitUsage, "shop"},
		{[]string{"up", "--log-level", "loud"}, exitUsage, "want debug"},
	} {
		r := heddle(t, dir, nil, c.args...)
		first, _, _ := strings.Cut(r.stderr, "\n")
		if r.code != c.code || r.stdout != "" || !strings.HasPrefix(first, "error: ") || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: %+v", c.args, r)
		}
	}
}

// `heddle policy init` writes what policy-repo-template shows, to the byte.
func TestScaffold(t *testing.T) {
	template := filepath.Join("..", "..", "policy-repo-template")
	dir := t.TempDir()
	if r := heddle(t, dir, nil, "policy", "init", "repo"); r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	read := func(root string) map[string]string {
		files := map[string]string{}
		err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(filepath.Join(root, name))
			files[name] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	if diff := cmp.Diff(read(template), read(filepath.Join(dir, "repo"))); diff != "" {
		t.Errorf("policy-repo-template differs from what is written (-template +written):\n%s", diff)
	}
}

// On a terminal help breaks no word; what is longer than a line is there to be pasted.
func TestHelpFits(t *testing.T) {
	for _, cmd := range commands(t) {
		var out bytes.Buffer
		c := &cli{stdout: &out, stderr: &out, out: terminal.Style{Width: 80}}
		root := c.root()
		root.SetArgs(words(cmd, "--help"))
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		example := false
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSuffix(line, "\n"); line != "" && line[0] != ' ' {
				example = line == "Examples:" || line == "Usage:"
			}
			if utf8.RuneCountInString(line) > 80 && !example {
				t.Errorf("%s: %d columns: %s", cmd.CommandPath(), utf8.RuneCountInString(line), line)
			}
		}
	}
}

// An error is in the format that was asked for, also where the command line is wrong.
func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"check", "--nope", "-o", "json"}, {"check", "-ojson", "a", "b"}, {"nope", "--output=json"}, {"policy", "nope", "-o", "json"},
		{"explain", "a", "-o", "json"}, {"wait", "x", "-o", "json"}, {"plan", "--fail-on", "all", "-o", "json"}, {"help", "nope", "-o", "json"},
	} {
		var v struct {
			APIVersion, Error, Hint string
			Code                    int
		}
		r := heddle(t, dir, nil, args...)
		if err := json.Unmarshal([]byte(r.stderr), &v); err != nil || v.APIVersion != "heddle/v1" || v.Code != exitUsage || r.code != exitUsage || v.Error == "" || v.Hint == "" {
			t.Errorf("%v: %v: %+v", args, err, r)
		}
	}
	if r := heddle(t, dir, nil, "nope", "-o", "json"); !strings.Contains(r.stderr, `has no command`) {
		t.Errorf("a command that does not exist: %+v", r)
	}
	if r := heddle(t, dir, []string{"HEDDLE_OUTPUT=json"}, "check", "--nope"); !strings.HasPrefix(r.stderr, "{") {
		t.Errorf("HEDDLE_OUTPUT: %+v", r)
	}
}

// On a terminal each setting still has the line that set it, and no line is too long.
func TestShowFits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	if r := heddle(t, filepath.Dir(dir), nil, "policy", "init", "repo"); r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	for _, args := range [][]string{{"policy", "show"}, {"policy", "show", "payments/gateway"}, {"help", "HDL0402"},
		{"explain", "shop/web", "payments/gateway", "POST", "/charges"}} {
		var out bytes.Buffer
		c := &cli{stdout: &out, stderr: &out, out: terminal.Style{Width: 80}}
		root := c.root()
		if args[0] != "help" {
			args = append(args, "--dir", dir)
		}
		root.SetArgs(args)
		if err := root.Execute(); err != nil && !errors.Is(err, errProblems) {
			t.Fatalf("%v: %v\n%s", args, err, &out)
		}
		for line := range strings.Lines(out.String()) {
			if utf8.RuneCountInString(line) > 81 {
				t.Errorf("%v: %s", args, line)
			}
		}
		if args[0] == "policy" && !strings.Contains(out.String(), "services/payments/gateway.cue:28") {
			t.Errorf("%v does not say where a timeout was set:\n%s", args, &out)
		}
	}
}
