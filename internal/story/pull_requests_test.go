package story

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what the guide to pull requests says that commands print")

// The guide to pull requests is one session: its commands are run in their order, its edits are applied, and what it says
// that commands print is what they print, but for hashes and times.
func TestGuideToPullRequests(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	at := filepath.Join("..", "..", "docs", "guide", "pull-requests.md")
	page, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	env := append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+dir, "TZ=UTC", "LC_ALL=C.UTF-8",
		"HEDDLE_STATE=", "NO_COLOR=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=ann", "GIT_AUTHOR_EMAIL=ann@example.org",
		"GIT_COMMITTER_NAME=ann", "GIT_COMMITTER_EMAIL=ann@example.org", "GIT_EDITOR=true")
	run := func(stdin string, args ...string) (string, int) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdin = dir, env, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}

	var written, printed strings.Builder // the page as it should be; what the commands since the last output printed
	commands, outputs := 0, 0
	rest := string(page)
	fence := regexp.MustCompile("(?s)```(sh|diff|text)\n(.*?)```\n")
	for {
		m := fence.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		kind, body, block := rest[m[2]:m[3]], rest[m[4]:m[5]], rest[m[0]:m[1]]
		written.WriteString(rest[:m[0]])
		rest = rest[m[1]:]
		switch kind {
		case "diff":
			if out, code := run(body, "git", "apply", "--unidiff-zero", "-"); code != 0 {
				t.Fatalf("the edit does not apply: %s\n%s", out, body)
			}
		case "sh":
			printed.Reset()
			for line := range strings.Lines(body) {
				line, note, _ := strings.Cut(strings.TrimSpace(line), "   # exit code ")
				want, _ := strconv.Atoi(note)
				if to, ok := strings.CutPrefix(line, "cd "); ok {
					dir = filepath.Join(dir, to)
					continue
				}
				out, code := run("", "sh", "-c", line)
				if code != want {
					t.Fatalf("%s: exit code %d, want %d\n%s", line, code, want, out)
				}
				printed.WriteString(out)
				commands++
			}
		case "text":
			outputs++
			if normal(body) != normal(printed.String()) {
				if !*update {
					t.Errorf("the page says\n%s\nand the commands print\n%s\nif that is right: go test ./internal/story -run TestGuideToPullRequests -update",
						body, printed.String())
				}
				block = "```text\n" + printed.String() + "```\n"
			}
		}
		written.WriteString(block)
	}
	written.WriteString(rest)
	if commands < 20 || outputs < 5 {
		t.Errorf("the page has %d commands and %d outputs; are they still marked as sh and text?", commands, outputs)
	}
	if *update && !bytes.Equal(page, []byte(written.String())) {
		if err := os.WriteFile(at, []byte(written.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var changing = regexp.MustCompile(`\b[0-9a-f]{7,40}\b|\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}(:\d{2}Z)?`)

// normal takes out of an output what differs from run to run.
func normal(s string) string { return changing.ReplaceAllString(s, "…") }
