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

var update = flag.Bool("update", false, "rewrite what the guides say that commands print")

// A guide is one session: its commands are run in their order, its files are written and its edits applied, and what it
// says that commands print is what they print, but for hashes and times. Blocks are marked by their kind: sh, diff, text,
// and cue with the name of the file.
func TestGuides(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	for _, c := range []struct {
		page              string
		commands, outputs int // at least
	}{
		{"pull-requests.md", 20, 5},
		{"writing-policy.md", 20, 12},
	} {
		t.Run(c.page, func(t *testing.T) {
			t.Parallel()
			at := filepath.Join("..", "..", "docs", "guide", c.page)
			page, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			s := newSession(t)
			written := s.play(string(page))
			if s.commands < c.commands || s.outputs < c.outputs {
				t.Errorf("the page has %d commands and %d outputs; are they still marked as sh and text?", s.commands, s.outputs)
			}
			if *update && !bytes.Equal(page, []byte(written)) {
				if err := os.WriteFile(at, []byte(written), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// session is a shell in a directory of its own, as the author of a guide sees it.
type session struct {
	t                 *testing.T
	dir               string
	env               []string
	commands, outputs int
}

func newSession(t *testing.T) *session {
	dir := t.TempDir()
	return &session{t: t, dir: dir, env: append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+dir, "TZ=UTC",
		"LC_ALL=C.UTF-8", "HEDDLE_STATE=", "NO_COLOR=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=ann", "GIT_AUTHOR_EMAIL=ann@example.org",
		"GIT_COMMITTER_NAME=ann", "GIT_COMMITTER_EMAIL=ann@example.org", "GIT_EDITOR=true")}
}

func (s *session) run(stdin string, args ...string) (string, int) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = s.dir, s.env, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

var (
	fence = regexp.MustCompile("(?s)```(sh|diff|text|cue)(?: ([^\n]+))?\n(.*?)```\n")
	// changing is what differs from run to run.
	changing = regexp.MustCompile(`\b[0-9a-f]{7,40}\b|\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}(:\d{2}Z)?`)
)

// normal takes out of an output what differs from run to run.
func normal(s string) string { return changing.ReplaceAllString(s, "…") }

// play goes through a page, and returns it as it should be.
func (s *session) play(page string) string {
	t := s.t
	var written, printed strings.Builder // the page; what the commands since the last output printed
	for {
		m := fence.FindStringSubmatchIndex(page)
		if m == nil {
			return written.String() + page
		}
		kind, name, body, block := page[m[2]:m[3]], "", page[m[6]:m[7]], page[m[0]:m[1]]
		if m[4] >= 0 {
			name = page[m[4]:m[5]]
		}
		written.WriteString(page[:m[0]])
		page = page[m[1]:]
		switch kind {
		case "cue":
			if name == "" {
				t.Fatalf("an example names no file:\n%s", body)
			}
			at := filepath.Join(s.dir, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, code := s.run("", "sh", "-c", "heddle policy fmt --check"); code != 0 {
				t.Errorf("heddle policy fmt would change %s:\n%s", name, out)
			}
		case "diff":
			if out, code := s.run(body, "git", "apply", "--unidiff-zero", "-"); code != 0 {
				t.Fatalf("the edit does not apply: %s\n%s", out, body)
			}
		case "sh":
			printed.Reset()
			for line := range strings.Lines(body) {
				line, note, _ := strings.Cut(strings.TrimSpace(line), "   # exit code ")
				want, _ := strconv.Atoi(note)
				if to, ok := strings.CutPrefix(line, "cd "); ok {
					s.dir = filepath.Join(s.dir, to)
					continue
				}
				out, code := s.run("", "sh", "-c", line)
				if code != want {
					t.Fatalf("%s: exit code %d, want %d\n%s", line, code, want, out)
				}
				printed.WriteString(out)
				s.commands++
			}
		case "text":
			s.outputs++
			if normal(body) != normal(printed.String()) {
				if !*update {
					t.Errorf("the page says\n%s\nand the commands print\n%s\nif that is right: go test ./internal/story -run TestGuides -update",
						body, printed.String())
				}
				block = "```text\n" + printed.String() + "```\n"
			}
		}
		written.WriteString(block)
	}
}
