package durable_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/durable"
)

// The test binary doubles as the processes that these tests kill and compete with.
func TestMain(m *testing.M) {
	switch path := os.Getenv("DURABLE_TEST_PATH"); os.Getenv("DURABLE_TEST_ROLE") {
	case "lock": // Hold the lock until stdin closes.
		unlock, err := durable.Lock(path)
		fmt.Println(err)
		bufio.NewReader(os.Stdin).ReadString('\n')
		if err == nil {
			unlock()
		}
	case "write": // Write without end, alternating two contents.
		for i := 0; ; i++ {
			if err := durable.WriteSealed(path, content(i), 0o600); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if i == 1 {
				fmt.Println("ready")
			}
		}
	default:
		os.Exit(m.Run())
	}
}

func content(i int) []byte { return bytes.Repeat([]byte{'a' + byte(i%2)}, 1<<20) }

func child(t *testing.T, role, path string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DURABLE_TEST_ROLE="+role, "DURABLE_TEST_PATH="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, bufio.NewReader(out)
}

func TestWriteFileReplacesWholeAndSetsPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, perm := range []os.FileMode{0o644, 0o600, 0o666} { // 0666: the umask must not apply
		data := []byte(perm.String())
		if err := durable.WriteFile(path, data, perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read %q, %v", got, err)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != perm {
			t.Errorf("permissions %v, want %v", st.Mode().Perm(), perm)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("leftovers: %v", entries)
	}
}

func TestWriteFileFailureKeepsTheOldAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "f") // a directory that is not empty: the rename onto it fails
	if err := os.MkdirAll(filepath.Join(target, "kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := durable.WriteFile(target, []byte("x"), 0o600)
	if err == nil || !strings.Contains(err.Error(), target) {
		t.Fatalf("error %v, want one that names %s", err, target)
	}
	if strings.Contains(err.Error(), "heddle-tmp") {
		t.Errorf("%v names a file that is gone, and differs each time", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("leftovers: %v", entries)
	}
	if err := durable.WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// Several goroutines replace one file while others read it: a reader sees one writer's whole content, always.
func TestReadersSeeOldOrNewNeverAMixture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := durable.WriteSealed(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range 10 {
				if err := durable.WriteSealed(path, content(i), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, err := durable.ReadSealed(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestReadSealedRefusesEveryDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := durable.ReadSealed(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
	for _, data := range [][]byte{nil, []byte("one\ntwo\n")} {
		if err := durable.WriteSealed(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := durable.ReadSealed(path); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read %q, %v; want %q", got, err, data)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := durable.ReadSealed(path); !errors.Is(err, durable.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %q, %v; want ErrCorrupt naming the file", name, got, err)
		}
	}
	for n := range whole {
		refused(fmt.Sprintf("cut to %d bytes", n), whole[:n])
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		refused(fmt.Sprintf("bit flipped in byte %d", i), b)
	}
	refused("grown", append(bytes.Clone(whole), 'x'))
	refused("never sealed", []byte("{}\n"))
}

// A writer is killed in the middle, several times: what it was replacing is whole, and Clean removes only its leftovers.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for range 5 {
		cmd, out := child(t, "write", path)
		if line, err := out.ReadString('\n'); line != "ready\n" {
			t.Fatalf("writer said %q, %v", line, err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		got, err := durable.ReadSealed(path)
		if err != nil || (!bytes.Equal(got, content(0)) && !bytes.Equal(got, content(1))) {
			t.Fatalf("after the kill: %d bytes, %v", len(got), err)
		}
	}
	// Whether a kill above fell between create and rename is luck: this leftover is certain.
	left := filepath.Join(dir, ".f.heddle-tmp-123")
	keep := filepath.Join(dir, ".profile")
	for _, p := range []string{left, keep} {
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !durable.IsTemp(filepath.Base(left)) || durable.IsTemp(filepath.Base(keep)) || durable.IsTemp("f") {
		t.Error("IsTemp cannot tell a leftover from a file")
	}
	if err := durable.Clean(dir); err != nil {
		t.Fatal(err)
	}
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".profile f" {
		t.Errorf("after Clean: %s", got)
	}
	if err := durable.Clean(filepath.Join(dir, "none")); err != nil {
		t.Errorf("cleaning a directory that does not exist: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	cmd, out := child(t, "lock", path)
	if line, err := out.ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("the child could not lock: %q, %v", line, err)
	}

	_, err := durable.Lock(path)
	var locked *durable.LockedError
	if !errors.Is(err, durable.ErrLocked) || !errors.As(err, &locked) {
		t.Fatalf("Lock: %v, want ErrLocked", err)
	}
	want := fmt.Sprintf("process %d", cmd.Process.Pid)
	if locked.PID != cmd.Process.Pid || !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not name %s", err, want)
	}

	cmd.Process.Kill() // The kernel gives the lock back, whatever the holder could still do.
	cmd.Wait()
	unlock, err := durable.Lock(path)
	if err != nil {
		t.Fatalf("after the holder died: %v", err)
	}
	if _, err := durable.Lock(path); !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("second Lock in one process: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = durable.Lock(path); err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Lock(filepath.Join(path, "under-a-file")); err == nil || errors.Is(err, durable.ErrLocked) {
		t.Errorf("impossible path: %v", err)
	}
}
