package source

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// What one object may take in memory. A directory of 50,000 entries with names of 255 bytes needs 14 MiB; a commit
// message has no reason to be longer than a file.
const (
	maxTree   = 16 << 20
	maxCommit = 1 << 20

	objectCache = 8 * cache.MiByte // delta bases that were read lately
)

// damage marks an error of the object store: something that should be there is missing or is not what its hash says.
type damage struct{ err error }

func (d *damage) Error() string { return d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

func isDamage(err error) bool {
	var d *damage
	return errors.As(err, &d)
}

func damaged(h plumbing.Hash, err error) error {
	if isDamage(err) {
		return err
	}
	return &damage{fmt.Errorf("object %.12s: %w", h, err)}
}

// store reads the objects of one repository as it was when it was opened: later packs are not seen. It checks every
// object against its hash. It is not safe for concurrent use: go-git's object storage is not.
type store struct {
	*filesystem.Storage                        // the repository's refs, configuration and objects
	others              []objects              // those of repositories that it borrows from
	shallow             bool                   // the history is cut off
	cut                 map[plumbing.Hash]bool // at the parents of these commits
	reads               int                    // objects whose content was read
}

// objects are those of one repository, with the file system that they lie in.
type objects struct {
	*filesystem.ObjectStorage
	files billy.Filesystem
}

// size is EncodedObjectSize, which leaves the file of a loose object open until the collector finds it.
func (o objects) size(h plumbing.Hash) (int64, error) {
	name := h.String()
	f, err := o.files.Open(o.files.Join("objects", name[:2], name[2:]))
	if errors.Is(err, fs.ErrNotExist) {
		return o.EncodedObjectSize(h) // in a pack, or not there
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := objfile.NewReader(f)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	_, n, err := r.Header()
	return n, err
}

// newStore opens a repository's files. With exclusive, nobody else changes them while they are open.
func newStore(files billy.Filesystem, alternates []billy.Filesystem, exclusive bool) (*store, error) {
	lru := cache.NewObjectLRU(objectCache)
	opts := filesystem.Options{
		ExclusiveAccess:      exclusive,
		KeepDescriptors:      true,
		LargeObjectThreshold: maxTree,
	}
	st := &store{Storage: filesystem.NewStorageWithOptions(files, lru, opts)}
	for _, files := range alternates {
		st.others = append(st.others, objects{&filesystem.NewStorageWithOptions(files, lru, opts).ObjectStorage, files})
	}
	cut, err := st.Shallow()
	if err != nil {
		return nil, err
	}
	st.shallow = len(cut) > 0
	st.cut = make(map[plumbing.Hash]bool, len(cut))
	for _, h := range cut {
		st.cut[h] = true
	}
	return st, nil
}

func (st *store) close() {
	_ = st.Storage.Close() // Files that were only read: there is nothing that a failure could lose.
	for _, o := range st.others {
		_ = o.Close()
	}
}

func (st *store) objectStores(yield func(objects) bool) {
	if !yield(objects{&st.ObjectStorage, st.Filesystem()}) {
		return
	}
	for _, o := range st.others {
		if !yield(o) {
			return
		}
	}
}

// has reports whether an object is there, without reading it. (go-git's own HasEncodedObject does not look into packs
// when access is exclusive.)
func (st *store) has(h plumbing.Hash) (bool, error) {
	_, err := st.size(h)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, nil
	}
	return err == nil, err
}

// size is what a blob's header says about its length in bytes; [store.content] holds it to that.
func (st *store) size(h plumbing.Hash) (int64, error) {
	for o := range st.objectStores {
		n, err := o.size(h)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, plumbing.ErrObjectNotFound) {
			return 0, damaged(h, err)
		}
	}
	return 0, damaged(h, plumbing.ErrObjectNotFound)
}

// object finds an object, wherever it is stored.
func (st *store) object(h plumbing.Hash) (plumbing.EncodedObject, error) {
	for o := range st.objectStores {
		obj, err := o.EncodedObject(plumbing.AnyObject, h)
		if err == nil {
			return obj, nil
		}
		if !errors.Is(err, plumbing.ErrObjectNotFound) {
			return nil, damaged(h, err)
		}
	}
	return nil, damaged(h, plumbing.ErrObjectNotFound)
}

// content reads an object of the given type and at most limit bytes, and checks that its hash is h.
func (st *store) content(h plumbing.Hash, typ plumbing.ObjectType, limit int64) ([]byte, error) {
	st.reads++
	obj, err := st.object(h)
	if err != nil {
		return nil, err
	}
	if obj.Type() != typ {
		return nil, fmt.Errorf("object %.12s is a %s where a %s is expected", h, obj.Type(), typ)
	}
	if obj.Size() > limit {
		return nil, fmt.Errorf("%s %.12s has %d bytes; at most %d are read", typ, h, obj.Size(), limit)
	}
	r, err := obj.Reader()
	if err != nil {
		return nil, damaged(h, err)
	}
	defer r.Close()
	buf := bytes.NewBuffer(make([]byte, 0, obj.Size()+bytes.MinRead))
	if _, err := buf.ReadFrom(io.LimitReader(r, limit+1)); err != nil {
		return nil, damaged(h, err)
	}
	if int64(buf.Len()) != obj.Size() {
		return nil, damaged(h, fmt.Errorf("its header promises %d bytes and there are others", obj.Size()))
	}
	if got := plumbing.ComputeHash(typ, buf.Bytes()); got != h {
		return nil, damaged(h, fmt.Errorf("its content has the hash %.12s", got))
	}
	return buf.Bytes(), nil
}

// memory gives bytes that were checked to go-git's decoders.
func memory(typ plumbing.ObjectType, b []byte) (*plumbing.MemoryObject, error) {
	o := &plumbing.MemoryObject{}
	o.SetType(typ)
	_, err := o.Write(b)
	return o, err
}

// commit is what this package needs of a commit.
type commit struct {
	hash    plumbing.Hash
	tree    plumbing.Hash
	parents []plumbing.Hash
	message string
	author  string
	time    time.Time
}

// commit reads a commit. A missing one is [ErrUnknownCommit]: the callers' hashes may be of another time.
func (st *store) commit(h plumbing.Hash) (*commit, error) {
	b, err := st.content(h, plumbing.CommitObject, maxCommit)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, ErrUnknownCommit
	}
	if err != nil {
		return nil, err
	}
	o, err := memory(plumbing.CommitObject, b)
	if err != nil {
		return nil, err
	}
	var c object.Commit
	if err := c.Decode(o); err != nil {
		return nil, fmt.Errorf("commit %.12s: %w", h, err)
	}
	return &commit{
		hash: h, tree: c.TreeHash, parents: c.ParentHashes, message: c.Message,
		author: c.Author.Name + " <" + c.Author.Email + ">", time: c.Committer.When.UTC(),
	}, nil
}

func (c *commit) describe() Commit {
	subject, _, _ := strings.Cut(strings.TrimLeft(c.message, "\n"), "\n")
	return Commit{Hash: c.hash.String(), Subject: oneLine(subject), Author: oneLine(c.author), Time: c.time}
}

// oneLine makes a foreign text safe to print: no control characters (a terminal obeys them), no reversal of the
// direction of reading, valid UTF-8, at most 200 characters.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	s = strings.TrimSpace(s)
	if utf8.RuneCountInString(s) > 200 {
		s = string([]rune(s)[:199]) + "…"
	}
	return s
}

// tree reads a directory, its entries in git's order.
func (st *store) tree(h plumbing.Hash) ([]object.TreeEntry, error) {
	b, err := st.content(h, plumbing.TreeObject, maxTree)
	if err != nil {
		return nil, err
	}
	o, err := memory(plumbing.TreeObject, b)
	if err != nil {
		return nil, err
	}
	var t object.Tree
	if err := t.Decode(o); err != nil {
		return nil, fmt.Errorf("directory %.12s: %w", h, err)
	}
	// Every git writes directories sorted, but nobody is forced to use git.
	slices.SortStableFunc(t.Entries, func(a, b object.TreeEntry) int { return cmp.Compare(sortName(a), sortName(b)) })
	return t.Entries, nil
}

// sortName is what git sorts directories by; it makes a walk in order visit files in the order of their whole paths.
func sortName(e object.TreeEntry) string {
	if e.Mode == filemode.Dir {
		return e.Name + "/"
	}
	return e.Name
}

// peel follows annotated tags to the commit that they name.
func (st *store) peel(h plumbing.Hash) (plumbing.Hash, error) {
	for range 10 { // tags of tags are possible and rare
		obj, err := st.object(h)
		if err != nil {
			return h, err
		}
		switch obj.Type() {
		case plumbing.CommitObject:
			return h, nil
		case plumbing.TagObject:
		default:
			return h, fmt.Errorf("it names a %s, not a commit", obj.Type())
		}
		b, err := st.content(h, plumbing.TagObject, maxCommit)
		if err != nil {
			return h, err
		}
		o, err := memory(plumbing.TagObject, b)
		if err != nil {
			return h, err
		}
		var t object.Tag
		if err := t.Decode(o); err != nil {
			return h, fmt.Errorf("tag %.12s: %w", h, err)
		}
		h = t.Target
	}
	return h, errors.New("it is a tag of a tag of a tag, and so on")
}
