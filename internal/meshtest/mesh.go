// Package meshtest is a whole mesh in one call: the real binaries, a real repository, real sockets, for the stories and
// for the bench. It drives `heddle up` from outside, as a person would, and offers the few things that a test needs and
// a person does by hand: a steady load, a kill, a wait.
package meshtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/operator"
)

// patience bounds every wait for a real process. It is generous: it decides how long a failure takes, never a success.
const patience = 60 * time.Second

// poll is how often a condition is looked at.
const poll = 10 * time.Millisecond

// Build makes the binaries of this module in dir. root is the module's directory.
func Build(root, dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+string(filepath.Separator), "./cmd/heddle", "./cmd/heddle-proxy", "./examples/shop/cmd/shop")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the binaries: %w\n%s", err, out)
	}
	return nil
}

// Consult looks at every source file, so that `go test` knows that a test which runs the binaries depends on them: it
// remembers a result for as long as the files that the test looked at stay as they were. It counts what happens inside a
// test only, not what TestMain does.
func Consult(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch name := d.Name(); {
		case d.IsDir() && (name == ".git" || name == ".cache" || name == ".heddle" || name == "bin" || name == "docs"):
			return filepath.SkipDir
		case !d.IsDir() && !strings.HasSuffix(name, "_test.go"):
			_, err = os.Stat(path)
		}
		return err
	})
}

// Mesh is a running `heddle up`.
type Mesh struct {
	State string // its state directory
	bin   string
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has exited

	mu  sync.Mutex // guards out and err
	out bytes.Buffer
	err error
}

// ready is the line that heddle up prints once every sidecar has acknowledged, with the entry's URL if there is one.
var ready = regexp.MustCompile(`(?m)^ready( |$)`)

// file is what we read of up.json.
type file struct {
	Repository string            `json:"repository"`
	Entry      string            `json:"entry"`
	Addresses  map[string]string `json:"addresses"`
	Processes  []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	} `json:"processes"`
}

// Status is what we read of the reconciler's status.
type Status struct {
	Observed *struct {
		Commit string `json:"commit"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"observed"`
	Applied *struct {
		Epoch     uint64 `json:"epoch"`
		Commit    string `json:"commit"`
		Behaviour string `json:"behaviour"`
	} `json:"applied"`
	Push struct {
		Acked int `json:"acked"`
		Total int `json:"total"`
	} `json:"push"`
}

// Start runs `heddle up --state state args…` with the binaries in bin and waits until every sidecar has acknowledged.
func Start(bin, state string, env []string, args ...string) (*Mesh, error) {
	m := &Mesh{State: state, bin: bin, done: make(chan struct{})}
	m.cmd = exec.Command(filepath.Join(bin, "heddle"), append([]string{"up", "--state", state}, args...)...)
	m.cmd.Env = append(os.Environ(), env...)
	m.cmd.Stdout, m.cmd.Stderr = (*output)(m), (*output)(m)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := m.cmd.Wait()
		m.mu.Lock()
		m.err = err
		m.mu.Unlock()
		close(m.done)
	}()
	if err := m.Until("every sidecar acknowledges", func() bool {
		return ready.MatchString(m.Output())
	}); err != nil {
		_ = m.Stop()
		return nil, err
	}
	return m, nil
}

// output collects what heddle up prints.
type output Mesh

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.out.Write(b)
}

// Output is all that heddle up printed so far.
func (m *Mesh) Output() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

// Until waits for a condition.
func (m *Mesh) Until(what string, ok func() bool) error {
	deadline := time.Now().Add(patience)
	for !ok() {
		select {
		case <-m.done:
			return fmt.Errorf("heddle up ended while waiting until %s: %v\n%s", what, m.err, m.Output())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s until %s\n%s", patience, what, m.Output())
		}
		time.Sleep(poll)
	}
	return nil
}

func (m *Mesh) file() file {
	var f file
	if b, err := os.ReadFile(filepath.Join(m.State, "up.json")); err == nil {
		_ = json.Unmarshal(b, &f) // it is replaced atomically
	}
	return f
}

// Repository is the policy repository's directory.
func (m *Mesh) Repository() string { return m.file().Repository }

// Entry is the URL for callers from outside.
func (m *Mesh) Entry() string { return m.file().Entry }

// Address is the loopback address that heddle up gave to a name, as up.json lists them.
func (m *Mesh) Address(name string) string { return m.file().Addresses[name] }

// PID is that of a child, 0 while it does not run.
func (m *Mesh) PID(name string) int {
	for _, p := range m.file().Processes {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// Kill sends SIGKILL to a child and waits until heddle up has started it again.
func (m *Mesh) Kill(name string) error {
	pid := m.PID(name)
	if pid == 0 {
		return fmt.Errorf("%s does not run", name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return m.Until(name+" is started again", func() bool { p := m.PID(name); return p != 0 && p != pid })
}

// Status asks the reconciler; the zero Status where it does not answer.
func (m *Mesh) Status() (s Status) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = operator.NewClient(filepath.Join(m.State, "reconciler", operator.SocketName)).Get(ctx, "/v1/status", &s)
	return s
}

// Converged waits until every sidecar has acknowledged a commit.
func (m *Mesh) Converged(commit string) error {
	return m.Until("commit "+commit+" is acknowledged", func() bool {
		s := m.Status()
		return s.Observed != nil && s.Observed.Commit == commit && s.Observed.State == "converged" && s.Push.Acked == s.Push.Total
	})
}

// Git runs git in the policy repository.
func (m *Mesh) Git(args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", m.Repository()}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Commit commits everything in the repository's work tree and returns the commit.
func (m *Mesh) Commit(subject string) (string, error) {
	if _, err := m.Git("add", "-A"); err != nil {
		return "", err
	}
	if _, err := m.Git("commit", "-q", "-m", subject); err != nil {
		return "", err
	}
	return m.Git("rev-parse", "HEAD")
}

// Edit replaces text in a file of the repository; the text must be there.
func (m *Mesh) Edit(file, old, new string) error {
	path := filepath.Join(m.Repository(), file)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(old)) {
		return fmt.Errorf("%s does not hold %q", file, old)
	}
	return os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(new), 1), 0o644)
}

// Stop interrupts heddle up, as Ctrl-C does, and checks that it left no process and no listener behind.
func (m *Mesh) Stop() error {
	f := m.file()
	select {
	case <-m.done:
	default:
		_ = m.cmd.Process.Signal(os.Interrupt)
		select {
		case <-m.done:
		case <-time.After(patience):
			_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
			<-m.done
			return fmt.Errorf("heddle up did not stop within %s of Ctrl-C\n%s", patience, m.Output())
		}
	}
	var errs []error
	for _, p := range f.Processes {
		if p.PID != 0 && syscall.Kill(p.PID, 0) == nil {
			errs = append(errs, fmt.Errorf("%s (pid %d) still runs", p.Name, p.PID))
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	for name, a := range f.Addresses {
		if c, err := net.DialTimeout("tcp", a, time.Second); err == nil {
			c.Close()
			errs = append(errs, fmt.Errorf("%s still listens on %s", name, a))
		}
	}
	return errors.Join(errs...)
}
