// Package durable turns bytes into files that survive a crash: a reader sees the old content or the new, whole, and
// never a mixture, whatever moment the writer died at.
//
// It is the one home of temp + fsync + rename, of checksummed ("sealed") files and of the lock by which one process
// owns a state directory. Everything may import it; it imports nothing of Heddle. The caller owns its directories:
// it creates them (0700), takes [Lock] before it writes, and calls [Clean] then to sweep what a killed predecessor
// left behind.
package durable

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrCorrupt is wrapped by [ReadSealed] when a file is not what WriteSealed wrote.
var ErrCorrupt = errors.New("the file is corrupt")

// Unfinished files are named .NAME.heddle-tmp-RANDOM, in the directory of the file that they would become: a rename
// is atomic only within one file system.
const tempMark = ".heddle-tmp-"

// WriteFile replaces the file at path by data, with exactly the permissions perm (the umask does not apply). When it
// returns nil, the new content survives a power cut; when it fails, or the process dies in the middle, the file is whole:
// the old content, or, if only its directory could not be synced, the new. Concurrent writers of one path are safe: the last rename wins.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	return write(path, data, perm, true)
}

// write is WriteFile, or without sync the same but for power cuts.
func write(path string, data []byte, perm os.FileMode, sync bool) (err error) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+name+tempMark+"*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			f.Close() // A second Close only repeats an error that nobody needs.
			os.Remove(f.Name())
			err = fmt.Errorf("writing %s: %w", path, cause(err))
		}
	}()
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	return SyncDir(dir)
}

// cause is an error without the name of the unfinished file, which is gone when somebody reads the error, and another at
// each try: a loop that tries again can tell that nothing changed.
func cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w; make room there", err)
	}
	return err
}

// SyncDir makes renames, creations and removals in a directory survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// File systems that cannot sync a directory (some network and FUSE ones) say EINVAL: nothing more can be done there.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// IsTemp reports whether a file name (without its directory) is that of an unfinished write. Whoever lists a directory
// that this package writes to skips these.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, tempMark)
}

// Clean removes the unfinished files that writers which died left in dir (not in its subdirectories). Only the owner of
// dir may call it, before it writes: it cannot tell a dead writer's file from a live one's. A missing dir is clean.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cleaning %s: %w", dir, err)
	}
	for _, e := range entries {
		if !IsTemp(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cleaning %s: %w", dir, err)
		}
	}
	return nil
}

// A sealed file is one header line, "heddle-sealed-1 <sha256 of the data in hex> <length of the data>\n", and the data.
const sealedMagic = "heddle-sealed-1"

// WriteSealed is [WriteFile] with a checksum in front of the data, for [ReadSealed].
func WriteSealed(path string, data []byte, perm os.FileMode) error {
	return WriteFile(path, seal(data), perm)
}

// WriteSealedUnsynced is [WriteSealed] for what can be made again: it waits for no disk. After a power cut the file may be
// the old one, or torn, which [ReadSealed] notices.
func WriteSealedUnsynced(path string, data []byte, perm os.FileMode) error {
	return write(path, seal(data), perm, false)
}

func seal(data []byte) []byte {
	sum := sha256.Sum256(data)
	var b bytes.Buffer
	b.Grow(len(data) + 100)
	fmt.Fprintf(&b, "%s %s %d\n", sealedMagic, hex.EncodeToString(sum[:]), len(data))
	b.Write(data)
	return b.Bytes()
}

// ReadSealed returns the data that [WriteSealed] wrote. A file that was cut short, changed or never sealed gives an
// error that wraps [ErrCorrupt]; a missing one wraps fs.ErrNotExist.
func ReadSealed(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	corrupt := func(why string) error { return fmt.Errorf("reading %s: %w: %s", path, ErrCorrupt, why) }
	header, data, ok := bytes.Cut(b, []byte{'\n'})
	fields := strings.Split(string(header), " ")
	if !ok || len(fields) != 3 || fields[0] != sealedMagic {
		return nil, corrupt("it does not begin with a whole " + sealedMagic + " header")
	}
	if n, err := strconv.Atoi(fields[2]); err != nil || n != len(data) {
		return nil, corrupt(fmt.Sprintf("the header promises %s bytes and there are %d", fields[2], len(data)))
	}
	if sum := sha256.Sum256(data); fields[1] != hex.EncodeToString(sum[:]) {
		return nil, corrupt("its checksum does not match its content")
	}
	return data, nil
}
