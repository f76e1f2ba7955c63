package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ErrLocked is matched (errors.Is) by the error of [Lock] when another process, or another part of this one, holds it.
var ErrLocked = errors.New("locked")

// LockedError says who holds a lock. PID is 0 when the holder has not written its number yet.
type LockedError struct {
	Path string
	PID  int
}

// Error names the holder and the way out.
func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is held by another process: wait for it to end, or use another state directory", e.Path)
	}
	return fmt.Sprintf("%s is held by process %d: stop that process, or use another state directory", e.Path, e.PID)
}

// Is makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Lock makes this process the owner of whatever path stands for, until unlock is called or the process ends, however it
// ends. It does not wait: when somebody else owns it, the error is a [*LockedError]. The file stays behind after unlock,
// empty: removing it would let two processes each lock a file of that name. Its directory must exist.
//
// The lock is flock(2): it is not shared with child processes, and a second Lock by the same process is refused too.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Path: path, PID: holder(f)}
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	// The number is for the people who are refused; the lock holds without it, so a full disk does not matter here.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() error {
		_ = f.Truncate(0)
		return f.Close()
	}, nil
}

// holder reads the process number that the owner wrote, 0 when there is none.
func holder(f *os.File) int {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// flock is flock(2), begun again when a signal interrupts it.
func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
