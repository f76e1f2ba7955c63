// Package story holds the stories that matter most: scripts that do what a person would, with the real binaries, real
// Git and real sockets, and look at what the person would see. Each archive in testdata is one story.
package story

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/heddle-mesh/heddle/internal/meshtest"
)

var (
	bin string // where the binaries are
	cue string // where the stock cue CLI is; empty: it could not be built
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "heddle-story")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		root, err := filepath.Abs(filepath.Join("..", ".."))
		if err == nil {
			err = meshtest.Build(root, bin)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		tool := exec.Command("go", "tool", "-n", "cue")
		tool.Dir = filepath.Join(root, "tools")
		if out, err := tool.Output(); err == nil {
			cue = filepath.Dir(strings.TrimSpace(string(out)))
		} else if os.Getenv("HEDDLE_REQUIRE_CUE") != "" {
			fmt.Fprintln(os.Stderr, "building the stock cue CLI:", err)
			return 1
		} else {
			fmt.Fprintln(os.Stderr, "NOTE: no stock cue CLI (", err, "): the stories do not judge by it")
		}
		return m.Run()
	}())
}

func TestStories(t *testing.T) {
	consult(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HEDDLE_CACHE", "off") // there is no home to keep anything in
			e.Setenv("PATH", strings.Join([]string{bin, cue, os.Getenv("PATH")}, string(os.PathListSeparator)))
			e.Setenv("HEDDLE_STATE", filepath.Join(e.WorkDir, "state"))
			e.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
			e.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
			e.Setenv("NO_COLOR", "1")
			e.Values["story"] = &story{env: e, tunnels: map[string]*ledger{}}
			e.Defer(func() {
				if err := of(e).stop(); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "cue" {
				return cue != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up": up, "down": down, "commit": commit, "edit": edit, "converge": converge, "get": get, "share": share,
			"until": until, "load": load, "crash": crash, "address": address, "gone": gone,
			"call": call, "soon": soon, "past": past, "tunnel": tunnel, "write": write, "observed": observed,
		},
	})
}

// consult has go test run the stories again when any source file changed.
func consult(t *testing.T) {
	t.Helper()
	if err := meshtest.Consult(filepath.Join("..", "..")); err != nil {
		t.Fatal(err)
	}
}

// story is what one archive's commands share.
type story struct {
	env   *testscript.Env
	mesh  *meshtest.Mesh
	loads []*meshtest.Load
	// tunnels are connections to the ledger, by the upstream they go through.
	tunnels map[string]*ledger
}

type valued interface{ Value(any) any }

func of(v any) *story {
	if e, ok := v.(*testscript.Env); ok {
		return e.Values["story"].(*story)
	}
	return v.(valued).Value("story").(*story)
}

func (s *story) stop() error {
	for _, l := range s.loads {
		l.Stop()
	}
	if s.mesh == nil {
		return nil
	}
	err := s.mesh.Stop()
	s.mesh = nil
	return err
}

func plain(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("this command cannot be negated")
	}
}

// up [ARG…] runs heddle up and waits until it is ready; sets $ENTRY and $REPO.
func up(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	s := of(ts)
	m, err := meshtest.Start(bin, ts.Getenv("HEDDLE_STATE"), []string{"NO_COLOR=1"}, args...)
	ts.Check(err)
	s.mesh = m
	ts.Setenv("ENTRY", m.Entry())
	ts.Setenv("REPO", m.Repository())
}

// down stops heddle up as Ctrl-C does, and fails where a process or a listener is left.
func down(ts *testscript.TestScript, neg bool, _ []string) {
	plain(ts, neg)
	ts.Check(of(ts).stop())
}

// edit FILE OLD NEW replaces text in a file of the repository; \n in NEW is a line feed.
func edit(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	if len(args) != 3 {
		ts.Fatalf("usage: edit FILE OLD NEW")
	}
	ts.Check(of(ts).mesh.Edit(args[0], args[1], strings.ReplaceAll(args[2], `\n`, "\n")))
}

// commit SUBJECT commits the work tree; sets $COMMIT and $SHORT. `commit revert` reverts the last commit
// instead, `commit head` commits nothing.
func commit(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	m := of(ts).mesh
	switch args[0] {
	case "head":
	case "revert":
		_, err := m.Git("revert", "--no-edit", "HEAD")
		ts.Check(err)
	default:
		_, err := m.Commit(args[0])
		ts.Check(err)
	}
	head, err := m.Git("rev-parse", "HEAD")
	ts.Check(err)
	ts.Setenv("COMMIT", head)
	ts.Setenv("SHORT", head[:7])
}

// converge waits until every sidecar has acknowledged $COMMIT.
func converge(ts *testscript.TestScript, neg bool, _ []string) {
	plain(ts, neg)
	ts.Check(of(ts).mesh.Converged(ts.Getenv("COMMIT")))
}

// fetch gets a URL and prints the status line, the headers sorted, an empty line and the body.
func fetch(proxy, target string, header http.Header) (string, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	if proxy != "" {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})
	}
	req, err := http.NewRequest("GET", target, nil)
	if err != nil {
		return "", err
	}
	maps.Copy(req.Header, header)
	resp, err := (&http.Client{Transport: tr, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintln(&b, resp.Status)
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, v := range resp.Header[k] {
			fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(k), v)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", body)
	return b.String(), nil
}

// get [-proxy ADDRESS] URL puts the response on stdout; it fails where there is none.
func get(ts *testscript.TestScript, neg bool, args []string) {
	proxy := ""
	if len(args) == 3 && args[0] == "-proxy" {
		proxy, args = args[1], args[2:]
	}
	out, err := fetch(proxy, args[0], nil)
	if neg {
		if err == nil {
			ts.Fatalf("there was a response:\n%s", out)
		}
		return
	}
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), out)
}

// share [-status N] [-proxy ADDRESS] URL N REGEXP LEAST MOST sends N requests, all of which must have the status (200),
// and counts the responses that match.
func share(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	proxy, status := "", "200"
	if args[0] == "-status" {
		status, args = args[1], args[2:]
	}
	if args[0] == "-proxy" {
		proxy, args = args[1], args[2:]
	}
	if len(args) != 5 {
		ts.Fatalf("usage: share [-status N] [-proxy ADDRESS] URL N REGEXP LEAST MOST")
	}
	n, least, most := number(ts, args[1]), number(ts, args[3]), number(ts, args[4])
	re := regexp.MustCompile(args[2])
	count := 0
	for range n {
		out, err := fetch(proxy, args[0], nil)
		ts.Check(err)
		if !strings.HasPrefix(out, status+" ") {
			ts.Fatalf("not a %s:\n%s", status, out)
		}
		if re.MatchString(out) {
			count++
		}
	}
	if count < least || count > most {
		ts.Fatalf("%d of %d responses match %s; want %d to %d", count, n, re, least, most)
	}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// until REGEXP COMMAND… runs a program, or `get …`, until its output matches, and puts that on stdout.
func until(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	re := regexp.MustCompile("(?m)" + args[0])
	args = args[1:]
	last := ""
	err := of(ts).mesh.Until(fmt.Sprintf("%s prints %s", strings.Join(args, " "), re), func() bool {
		if args[0] == "get" {
			proxy, target := "", args[len(args)-1]
			if len(args) == 4 {
				proxy = args[2]
			}
			last, _ = fetch(proxy, target, nil)
		} else {
			cmd := exec.Command(filepath.Join(bin, args[0]), args[1:]...)
			if args[0] != "heddle" {
				cmd = exec.Command(args[0], args[1:]...)
			}
			cmd.Env = append(os.Environ(), "NO_COLOR=1", "HEDDLE_STATE="+ts.Getenv("HEDDLE_STATE"))
			out, err := cmd.CombinedOutput()
			if last = string(out); err != nil && !errors.As(err, new(*exec.ExitError)) {
				last = err.Error()
			}
		}
		return re.MatchString(last)
	})
	if err != nil {
		ts.Fatalf("%v\nit printed last:\n%s", err, last)
	}
	fmt.Fprint(ts.Stdout(), last)
}

// load start RPS URL; load pass N waits until N more requests have returned; load stop fails on any failed request.
func load(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	s := of(ts)
	switch args[0] {
	case "start":
		s.loads = append(s.loads, meshtest.StartLoad(args[2], number(ts, args[1]), 16))
	case "pass":
		l := s.loads[len(s.loads)-1]
		want := l.Sent() + number(ts, args[1])
		ts.Check(s.mesh.Until("the load goes on", func() bool { return l.Sent() >= want }))
	case "stop":
		l := s.loads[len(s.loads)-1]
		s.loads = s.loads[:len(s.loads)-1]
		r := l.Stop()
		ts.Logf("%d requests, %d failed, p50 %s, p99 %s", r.Sent, r.Failed, r.P50, r.P99)
		if r.Failed > 0 || r.Sent == 0 {
			ts.Fatalf("%d of %d requests failed:\n%s", r.Failed, r.Sent, strings.Join(r.Failures, "\n"))
		}
	default:
		ts.Fatalf("load start|pass|stop")
	}
}

// crash NAME… sends SIGKILL to children and waits until they are started again.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	for _, name := range args {
		ts.Check(of(ts).mesh.Kill(name))
	}
}

// address NAME VARIABLE sets a variable to an address of up.json.
func address(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	a := of(ts).mesh.Address(args[0])
	if a == "" {
		ts.Fatalf("up.json has no address %q", args[0])
	}
	ts.Setenv(args[1], a)
}

// gone PID… fails where a process still runs.
func gone(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	for _, pid := range args {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			ts.Fatalf("process %s still runs", pid)
		}
	}
}
