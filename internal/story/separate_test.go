package story

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSeparate runs the archives in testdata/separate: each program is started by its own command line, with its own
// state directory, as an operator starts it on its own machine. Nothing but the network connects them.
func TestSeparate(t *testing.T) {
	consult(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "separate"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("HEDDLE_CACHE", "off") // there is no home to keep anything in
			e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
			e.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
			e.Setenv("GIT_AUTHOR_NAME", "Ada")
			e.Setenv("GIT_AUTHOR_EMAIL", "ada@example.org")
			e.Setenv("GIT_COMMITTER_NAME", "Ada")
			e.Setenv("GIT_COMMITTER_EMAIL", "ada@example.org")
			e.Setenv("NO_COLOR", "1")
			h := &hosts{dir: e.WorkDir, programs: map[string]*program{}}
			e.Values["hosts"] = h
			e.Defer(h.stop)
			return os.Mkdir(filepath.Join(e.WorkDir, "logs"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ports": ports, "save": save, "start": start, "crash": crashHost, "quit": quit, "exits": exits,
			"until": untilHost, "get": get, "ask": ask,
		},
	})
}

// hosts are the programs of one archive, by the names that it gave them.
type hosts struct {
	dir      string
	programs map[string]*program
}

// program is one command line, and its process while it runs.
type program struct {
	name string
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited; nil before the first start
}

func (p *program) running() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// wait returns false where the program does not exit in time.
func (p *program) wait() bool {
	select {
	case <-p.done:
		return true
	case <-time.After(hostPatience):
		return false
	}
}

// hostPatience bounds every wait. It is generous: it decides how long a failure takes, never a success.
const hostPatience = 60 * time.Second

// stop kills what still runs.
func (h *hosts) stop() {
	for _, p := range h.programs {
		if p.running() {
			_ = p.cmd.Process.Kill() // it may just have exited
			<-p.done
		}
	}
}

func hostsOf(ts *testscript.TestScript) *hosts { return ts.Value("hosts").(*hosts) }

func (h *hosts) log(name string) string { return filepath.Join(h.dir, "logs", name+".log") }

// named returns the programs of a command's arguments.
func (h *hosts) named(ts *testscript.TestScript, names []string) []*program {
	if len(names) == 0 {
		ts.Fatalf("which program?")
	}
	var out []*program
	for _, name := range names {
		p := h.programs[name]
		if p == nil {
			ts.Fatalf("no program %q was started", name)
		}
		out = append(out, p)
	}
	return out
}

// Ports come from below the range of which the system gives ports to clients, so that a program that is down for a while
// finds its port free when it is back, and from below those of `heddle up`, which other stories run at the same time.
const (
	portLeast = 5_000
	portMost  = 10_000
)

// given holds the ports that a script of this run has: they look free until it starts the program.
var given sync.Map

// ports VARIABLE… sets each variable to a loopback address whose port is free, and given to no other.
func ports(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	for _, name := range args {
		var l net.Listener
		err := errors.New("no port is free")
		for range 100 {
			port := portLeast + rand.IntN(portMost-portLeast)
			if _, taken := given.LoadOrStore(port, true); taken {
				continue
			}
			if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				break
			}
		}
		ts.Check(err)
		ts.Check(l.Close())
		ts.Setenv(name, l.Addr().String())
	}
}

// save VARIABLE sets a variable to the last stdout, without its line feed.
func save(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	if len(args) != 1 {
		ts.Fatalf("usage: save VARIABLE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// start NAME COMMAND… starts a program; its output is added to logs/NAME.log. start NAME… starts programs again, by the
// same command lines.
func start(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	h := hostsOf(ts)
	if len(args) > 1 && h.programs[args[1]] == nil {
		if p := h.programs[args[0]]; p != nil && p.running() {
			ts.Fatalf("%s runs already", args[0])
		}
		h.programs[args[0]] = &program{name: args[0], args: args[1:]}
		args = args[:1]
	}
	for _, p := range h.named(ts, args) {
		if p.running() {
			ts.Fatalf("%s runs already", p.name)
		}
		log, err := os.OpenFile(h.log(p.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		ts.Check(err)
		path := p.args[0]
		if own := filepath.Join(bin, path); executable(own) {
			path = own
		}
		cmd := exec.Command(path, p.args[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), log, log
		for _, name := range []string{"PATH", "HOME", "TMPDIR", "NO_COLOR", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"} {
			if v := ts.Getenv(name); v != "" {
				cmd.Env = append(cmd.Env, name+"="+v)
			}
		}
		err = cmd.Start()
		log.Close() // the child has its own
		ts.Check(err)
		p.cmd, p.done = cmd, make(chan struct{})
		go func(done chan struct{}) {
			defer close(done)
			_ = cmd.Wait() // ProcessState says it
		}(p.done)
	}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// crash NAME… kills programs as a power cut would, all before the first is waited for.
func crashHost(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	programs := hostsOf(ts).named(ts, args)
	for _, p := range programs {
		if !p.running() {
			ts.Fatalf("%s does not run: %v", p.name, p.cmd.ProcessState)
		}
		ts.Check(p.cmd.Process.Kill())
	}
	for _, p := range programs {
		if !p.wait() {
			ts.Fatalf("%s does not die", p.name)
		}
	}
}

// quit NAME… stops programs by SIGTERM; each must drain and exit with 0.
func quit(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	h := hostsOf(ts)
	programs := h.named(ts, args)
	for _, p := range programs {
		if !p.running() {
			ts.Fatalf("%s does not run: %v", p.name, p.cmd.ProcessState)
		}
		ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, p := range programs {
		if !p.wait() {
			ts.Fatalf("%s does not stop", p.name)
		}
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			ts.Fatalf("%s ended with %d:\n%s", p.name, code, ts.ReadFile(h.log(p.name)))
		}
	}
}

// exits NAME CODE waits until a program ends by itself, with an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	if len(args) != 2 {
		ts.Fatalf("usage: exits NAME CODE")
	}
	p := hostsOf(ts).named(ts, args[:1])[0]
	if !p.wait() {
		ts.Fatalf("%s does not end", p.name)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != number(ts, args[1]) {
		ts.Fatalf("%s ended with %d, not %s:\n%s", p.name, code, args[1], ts.ReadFile(hostsOf(ts).log(p.name)))
	}
}

// until REGEXP COMMAND… runs a program, or `get [-proxy ADDRESS] URL`, until its output matches, and puts that on
// stdout. It fails as soon as a program that runs ends by itself with a failure.
func untilHost(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg)
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND…")
	}
	h, re := hostsOf(ts), regexp.MustCompile("(?m)"+args[0])
	args = args[1:]
	last := ""
	for deadline := time.Now().Add(hostPatience); ; time.Sleep(20 * time.Millisecond) {
		switch args[0] {
		case "get":
			proxy := ""
			if len(args) == 4 && args[1] == "-proxy" {
				proxy = args[2]
			}
			var err error
			if last, err = fetch(proxy, args[len(args)-1], nil); err != nil {
				last = err.Error()
			}
		default:
			path := args[0]
			if own := filepath.Join(bin, path); executable(own) {
				path = own
			}
			cmd := exec.Command(path, args[1:]...)
			cmd.Dir, cmd.Env = ts.Getenv("WORK"), append(os.Environ(), "NO_COLOR=1")
			out, err := cmd.CombinedOutput()
			if last = string(out); err != nil && !errors.As(err, new(*exec.ExitError)) {
				ts.Fatalf("%v", err)
			}
		}
		if re.MatchString(last) {
			fmt.Fprint(ts.Stdout(), last)
			return
		}
		if time.Now().After(deadline) {
			for name := range h.programs {
				ts.Logf("logs/%s.log:\n%s", name, tail(h.log(name)))
			}
			ts.Fatalf("waited %s for %s to print %s; it printed last:\n%s", hostPatience, strings.Join(args, " "), re, last)
		}
	}
}

// tail is the end of a log.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// ask ADDRESS LINE connects by TCP, waits for the server's greeting, sends a line, and puts greeting and answer on
// stdout. It fails where the server closes without an answer.
func ask(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: ask ADDRESS LINE")
	}
	out, err := exchange(args[0], args[1])
	if neg {
		if err == nil {
			ts.Fatalf("there was an answer:\n%s", out)
		}
		return
	}
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), out)
}

func exchange(address, line string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	greeting, err := r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no greeting: %w", err)
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	answer, err := r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no answer: %w", err)
	}
	return greeting + answer, nil
}
