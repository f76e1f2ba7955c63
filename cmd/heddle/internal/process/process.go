// Package process keeps child processes running: it starts them, writes down what they say, starts them again with
// back-off when they exit, and stops them within a bound. It knows nothing of what they do. Children die with their
// parent, however it dies, where the operating system can promise that (Linux).
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec is one program to keep running.
type Spec struct {
	Name string
	Path string
	Args []string // without the program's own name
	Env  []string // the whole environment
	Dir  string
	Log  string // the file that its output goes to
}

// State is what is known of a child.
type State struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"` // 0: not running at the moment
	Since    time.Time `json:"since,omitzero"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
	Log      string    `json:"log"`
}

// Event is a change of a child.
type Event struct {
	Name string
	PID  int           // it runs now; 0: it exited
	Exit string        // how it exited
	Wait time.Duration // until it is started again
	Err  error         // it could not be started
	Code int           // its exit code; -1: a signal ended it, or it was never started
	Last string        // the end of what it wrote in this run, at most lastSaid bytes of it
}

// Back-off between restarts, doubled each time; a child that ran for stable starts over with the least.
const (
	leastWait = 100 * time.Millisecond
	mostWait  = 5 * time.Second
	stable    = 10 * time.Second
)

// Group is a set of children. Make one with [NewGroup].
type Group struct {
	drain  time.Duration
	notify func(Event)
	spawn  chan func()
	done   chan struct{} // closed when no child will be started any more
	mu     sync.Mutex    // guards states
	states map[string]State
}

// NewGroup makes a group whose children get drain between SIGTERM and SIGKILL. notify is called for every change, from
// several goroutines; it must not block. Close the group when every Run has returned.
func NewGroup(drain time.Duration, notify func(Event)) *Group {
	g := &Group{drain: drain, notify: notify, spawn: make(chan func()), done: make(chan struct{}), states: map[string]State{}}
	go func() {
		// The parent-death signal is sent when the *thread* that forked ends, so one thread forks all children and
		// lives as long as the group.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			select {
			case f := <-g.spawn:
				f()
			case <-g.done:
				return
			}
		}
	}()
	return g
}

// Close ends the thread that starts children.
func (g *Group) Close() { close(g.done) }

// States are the children by name.
func (g *Group) States() []State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(maps.Values(g.states), func(a, b State) int { return strings.Compare(a.Name, b.Name) })
}

// Run keeps a child running until ctx ends, then stops it: SIGTERM to its process group, and SIGKILL after the group's
// drain. It returns when the child is gone.
func (g *Group) Run(ctx context.Context, spec Spec) error {
	log, err := openLog(spec.Log)
	if err != nil {
		return fmt.Errorf("log of %s: %w", spec.Name, err)
	}
	defer log.Close()
	g.set(spec.Name, func(s *State) { *s = State{Name: spec.Name, Log: spec.Log} })
	for wait := leastWait; ; {
		started := time.Now()
		log.begin()
		err := g.once(ctx, spec, log)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) >= stable {
			wait = leastWait
		}
		e := Event{Name: spec.Name, Exit: describe(err), Wait: wait, Code: exitCode(err), Last: log.last()}
		if errors.As(err, new(startError)) {
			e.Err = err
		}
		fmt.Fprintf(log, "--- heddle up: %s; starting again in %s\n", e.Exit, wait)
		g.notify(e)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, mostWait)
		g.set(spec.Name, func(s *State) { s.Restarts++ })
	}
}

type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

func describe(err error) string {
	if err == nil {
		return "exited by itself"
	}
	return err.Error()
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func (g *Group) set(name string, change func(*State)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.states[name]
	change(&s)
	g.states[name] = s
}

// once runs the child to its end.
func (g *Group) once(ctx context.Context, spec Spec, log io.Writer) error {
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = spec.Env, spec.Dir, log, log
	cmd.WaitDelay = time.Second // a grandchild that keeps the pipe open delays nobody
	cmd.SysProcAttr = attributes()
	started := make(chan error, 1)
	select {
	case g.spawn <- func() { started <- cmd.Start() }:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := <-started; err != nil {
		return startError{err}
	}
	pid := cmd.Process.Pid
	g.set(spec.Name, func(s *State) { s.PID, s.Since = pid, time.Now() })
	g.notify(Event{Name: spec.Name, PID: pid})
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	var err error
	select {
	case err = <-exited:
	case <-ctx.Done():
		signalGroup(pid, syscall.SIGTERM)
		select {
		case err = <-exited:
		case <-time.After(g.drain):
			signalGroup(pid, syscall.SIGKILL)
			err = <-exited
		}
	}
	signalGroup(pid, syscall.SIGKILL) // what it started and left behind
	g.set(spec.Name, func(s *State) { s.PID, s.Since, s.LastExit = 0, time.Time{}, describe(err) })
	return err
}

// signalGroup signals the process group that a child leads. A group that is gone already is fine.
func signalGroup(pid int, sig syscall.Signal) {
	_ = syscall.Kill(-pid, sig)
}

// maxLog bounds a log file, in bytes; the one before it is kept beside it as NAME.1.
const maxLog = 4 << 20

// lastSaid bounds what an Event has of a child's output, in bytes: an error, and what to do about it.
const lastSaid = 2 << 10

// logFile is a file that starts over when it is full.
type logFile struct {
	path string
	mu   sync.Mutex // guards what follows
	f    *os.File
	size int64
	said []byte // the end of what was written since begin
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &logFile{path: path, f: f, size: info.Size()}, nil
}

// Write never fails for want of disk: a child must not stop because its output has nowhere to go.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > maxLog && l.size > 0 {
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			if f, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err == nil {
				l.f.Close()
				l.f, l.size = f, 0
			}
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	l.said = append(l.said, p[max(0, len(p)-lastSaid):]...)
	l.said = l.said[max(0, len(l.said)-lastSaid):]
	return len(p), nil
}

// begin forgets what was said so far.
func (l *logFile) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = nil
}

func (l *logFile) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.said)
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
