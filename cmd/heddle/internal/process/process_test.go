package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own child: what it does is named by CHILD.
func TestMain(m *testing.M) {
	switch os.Getenv("CHILD") {
	case "":
		os.Exit(m.Run())
	case "exits":
		os.Stderr.WriteString("going\n")
		os.Exit(7)
	case "stays": // and ignores SIGTERM, with a child of its own
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{"CHILD=grandchild"}
		if err := cmd.Start(); err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("grandchild " + itoa(cmd.Process.Pid) + "\n")
		stay()
	case "grandchild":
		stay()
	case "supervisor": // runs a child that stays, until it is killed
		g := NewGroup(time.Second, func(Event) {})
		_ = g.Run(context.Background(), Spec{Name: "c", Path: os.Args[0], Env: []string{"CHILD=stays"}, Log: os.Getenv("LOG")})
	}
}

func TestRestartsAndStops(t *testing.T) {
	log := filepath.Join(t.TempDir(), "c.log")
	events := make(chan Event, 64)
	g := NewGroup(100*time.Millisecond, func(e Event) { events <- e })
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		ran <- g.Run(ctx, Spec{Name: "c", Path: os.Args[0], Env: []string{"CHILD=exits"}, Log: log})
	}()
	var waits []time.Duration
	for len(waits) < 2 {
		if e := <-events; e.PID == 0 {
			waits = append(waits, e.Wait)
			if !strings.Contains(e.Exit, "exit status 7") {
				t.Errorf("exit is %q", e.Exit)
			}
			if e.Code != 7 || e.Last != "going\n" {
				t.Errorf("it said %q and exited with %d", e.Last, e.Code)
			}
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if waits[0] != 100*time.Millisecond || waits[1] != 200*time.Millisecond {
		t.Errorf("waits are %v", waits)
	}
	if b, err := os.ReadFile(log); err != nil || strings.Count(string(b), "going\n") < 2 {
		t.Errorf("log is %q, %v", b, err)
	}
}

func TestStopKillsTheWholeGroup(t *testing.T) {
	log := filepath.Join(t.TempDir(), "c.log")
	g := NewGroup(50*time.Millisecond, func(Event) {})
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		ran <- g.Run(ctx, Spec{Name: "c", Path: os.Args[0], Env: []string{"CHILD=stays"}, Log: log})
	}()
	grandchild := waitForGrandchild(t, log)
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	gone(t, grandchild)
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	if !diesWithParent {
		t.Skip("this operating system cannot kill the children of a killed parent")
	}
	log := filepath.Join(t.TempDir(), "c.log")
	parent := exec.Command(os.Args[0])
	parent.Env = []string{"CHILD=supervisor", "LOG=" + log}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	grandchild := waitForGrandchild(t, log)
	child, err := parentOf(grandchild)
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	gone(t, child)
	_ = syscall.Kill(grandchild, syscall.SIGKILL) // a grandchild is its own parent's business
}

func waitForGrandchild(t *testing.T, log string) int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(log)
		if _, rest, ok := strings.Cut(string(b), "grandchild "); ok {
			if pid, _, ok := strings.Cut(rest, "\n"); ok {
				return atoi(pid)
			}
		}
	}
	t.Fatal("the child did not start")
	return 0
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) {
			return
		}
	}
	t.Errorf("process %d still runs", pid)
}
