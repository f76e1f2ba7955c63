package source

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// This file says what a repository may hold, by names, kinds and sizes alone. The walk of a commit and [Limits.Judge],
// which does it for a work tree, share it: what the one refuses the other refuses, in the same words.

// Kind is what an entry of a repository is.
type Kind int

// The kinds that git knows; a directory is no entry of its own.
const (
	Regular Kind = iota
	Link         // a symbolic link
	Module       // a submodule, or a repository inside the repository
)

// Entry is one entry of a tree that is not read yet.
type Entry struct {
	Path string // slash-separated, relative to the root, as the disk or git has it: perhaps not UTF-8
	Kind Kind
	Size int64 // bytes; of a regular file
}

// Judge sorts the entries of a work tree into those that may be read, by path, and findings about the others: exactly
// what [Source.Snapshot] would say of a commit that holds them. Zero fields of the limits take their defaults. Entries
// beyond the number or the sum of sizes that a repository may have are not returned.
func (l Limits) Judge(entries []Entry) ([]Entry, diag.List) {
	l = l.withDefaults()
	var findings diag.List
	sorted := slices.SortedFunc(slices.Values(entries), func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	keep := make([]Entry, 0, min(len(entries), l.Files))
	dirs := map[string]*folder{}
	refused := map[string]bool{} // directories whose own name is refused: told once, and nothing in them is read
	var sum int64
	over := false
	last := ""
next:
	for _, e := range sorted {
		// What an entry that is kept shares with the one before it is judged already.
		for i := shared(last, e.Path); i <= len(e.Path); i++ {
			if i < len(e.Path) && e.Path[i] != '/' {
				continue
			}
			full, leaf := e.Path[:i], i == len(e.Path)
			if refused[full] && !leaf {
				continue next
			}
			parent, name := "", full
			if j := strings.LastIndexByte(full, '/'); j >= 0 {
				parent, name = full[:j], full[j+1:]
			}
			if dirs[parent] == nil {
				dirs[parent] = &folder{}
			}
			finding := refuse(name, full)
			if finding == nil && leaf {
				finding = refuseKind(e.Kind, full)
			}
			if finding == nil && leaf && e.Size > l.FileSize {
				finding = tooLarge(full, e.Size, l)
			}
			if finding == nil {
				var collision *diag.Finding
				if finding, collision = dirs[parent].add(name, full, !leaf); collision != nil {
					collision.Pos.File = full
					findings.Add(*collision)
				}
			}
			if finding == nil {
				continue
			}
			if !refused[full] {
				finding.Pos.File = cmp.Or(finding.Pos.File, full)
				findings.Add(*finding)
			}
			refused[full] = true
			continue next
		}
		if len(keep) >= l.Files {
			return nil, diag.List{tooMany(l)}
		}
		if sum += e.Size; sum > l.TreeSize {
			over = true
		}
		keep = append(keep, e)
		last = e.Path
	}
	if over {
		files := make([]File, len(keep))
		for i, e := range keep {
			files[i] = File{Path: e.Path, Size: e.Size}
		}
		findings.Add(treeTooLarge(files, sum, l))
		keep = nil
	}
	return keep, findings.Sorted()
}

// shared is the length of the directories that two paths have in common, without the slash behind them.
func shared(a, b string) int {
	n := 0
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			break
		}
		if a[i] == '/' {
			n = i
		}
	}
	return n
}

// folder finds names of one directory that are one, everywhere or on a disk that folds case.
type folder struct {
	names map[string]string // the first of each, by what they fold to
	more  map[string]bool   // those that collide with it
}

// add takes in a name that is not refused by itself. A directory may come again. A name that is there already may not be
// read; one that only collides may, so that what is in it is judged too.
func (d *folder) add(name, full string, directory bool) (double, collision *diag.Finding) {
	if d.names == nil {
		d.names = map[string]string{}
	}
	key := fold(name)
	other, known := d.names[key]
	if !known {
		d.names[key] = name
		return nil, nil
	}
	if other == name || d.more[name] {
		if directory {
			return nil, nil
		}
		return &diag.Finding{
			ID: diag.FileName, Message: "the name occurs twice in its directory",
			Hint: "write the directory again with git: git rm --cached the path, and add it",
		}, nil
	}
	if d.more == nil {
		d.more = map[string]bool{}
	}
	d.more[name] = true
	sibling := full[:len(full)-len(name)] + other
	return nil, &diag.Finding{
		ID: diag.CaseCollision, Related: []diag.Pos{{File: sibling}},
		Message: fmt.Sprintf("the name differs from %s in case only: a disk that folds case (macOS, Windows) holds only one of the two", sibling),
		Hint:    "rename one of them, or merge the two",
	}
}

// fold maps names to one value that a file system without case takes for one.
func fold(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return strings.ToLower(name)
	}
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, name)
}

func tooMany(l Limits) diag.Finding {
	return diag.Finding{
		ID:      diag.TooManyFiles,
		Message: fmt.Sprintf("the repository holds more than %d files", l.Files),
		Hint:    "keep policy in a repository of its own, without other code or data",
	}
}

func tooLarge(full string, size int64, l Limits) *diag.Finding {
	return &diag.Finding{
		ID:      diag.FileTooLarge,
		Message: fmt.Sprintf("the file has %d bytes; at most %d are read", size, l.FileSize),
		Hint:    "split it, or keep it in another repository: git rm " + shellWord(full),
	}
}

func treeTooLarge(files []File, sum int64, l Limits) diag.Finding {
	slices.SortStableFunc(files, func(a, b File) int { return cmp.Compare(b.Size, a.Size) })
	var largest []string
	for _, f := range files[:min(3, len(files))] {
		largest = append(largest, fmt.Sprintf("%s (%d)", f.Path, f.Size))
	}
	return diag.Finding{
		ID:      diag.TreeTooLarge,
		Message: fmt.Sprintf("the files have %d bytes together; at most %d are read", sum, l.TreeSize),
		Hint:    "keep other data out of the policy repository; the largest files are " + strings.Join(largest, ", "),
	}
}

// maxPath bounds the length of a path in bytes, and so the depth of the walk. It is Linux's PATH_MAX.
const maxPath = 4096

// refuse says why no entry may have this name, at this path, whatever it is; nil when one may.
func refuse(name, full string) *diag.Finding {
	if why := badName(name); why != "" {
		return &diag.Finding{
			ID: diag.FileName, Message: why, Pos: diag.Pos{File: printable(full)},
			Hint: "rename it: letters, digits, '.', '_' and '-' are safe everywhere",
		}
	}
	if len(full) > maxPath {
		return &diag.Finding{
			ID: diag.FileName, Message: fmt.Sprintf("the path has %d bytes; at most %d are allowed", len(full), maxPath),
			Hint: "nest fewer directories, or give them shorter names", Pos: diag.Pos{File: full[:200] + "…"},
		}
	}
	return nil
}

// refuseKind says why an entry that is no regular file may not be there.
func refuseKind(k Kind, full string) *diag.Finding {
	switch k {
	case Link:
		return &diag.Finding{
			ID: diag.Symlink, Message: "a symbolic link; only regular files are read",
			Hint: "put a copy of the file that it points to in its place, or remove it: git rm " + shellWord(full),
		}
	case Module:
		return &diag.Finding{
			ID: diag.Submodule, Message: "a submodule; only files of this repository are read",
			Hint: "copy the files that are needed into this repository, and remove it: git rm " + shellWord(full),
		}
	}
	return nil
}

// badName says what is wrong with one name of a path; "" when nothing is.
func badName(name string) string {
	switch {
	case name == "." || name == "..":
		return "the name stands for a directory that is already there"
	case strings.EqualFold(name, ".git"):
		return "the name is git's own"
	case !utf8.ValidString(name):
		return "the name is not valid UTF-8"
	case strings.HasPrefix(name, "/"):
		return "the name is an absolute path"
	case strings.ContainsRune(name, '/'):
		return "the name contains a slash"
	case strings.ContainsRune(name, '\\'):
		return "the name contains a backslash"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "the name contains a control character"
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.Is(unicode.Bidi_Control, r) }):
		return "the name contains a character that reverses the direction of reading"
	}
	return ""
}

// printable shows what cannot be seen in a name as Go escapes.
func printable(path string) string {
	q := strconv.Quote(path)
	return q[1 : len(q)-1]
}

// shellWord makes a path one word of a command that an author can paste.
func shellWord(path string) string {
	if path != "" && strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
