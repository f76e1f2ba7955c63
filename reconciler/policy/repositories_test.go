package policy

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-mesh/heddle/reconciler/source"
)

// TestRepositories runs the archives of testdata/repositories: what a repository may hold, and what an evaluation may
// take. They go the way of a work tree, names, kinds and sizes first; package source says the same of commits. The part
// `findings` is what comes of it, rewritten by -update. What no archive can hold stands in a part `entries`, one a line:
//
//	link PATH            a symbolic link
//	submodule PATH
//	size PATH BYTES      a file that large; its content is not read
//	sizes FORMAT N BYTES N files, named by a format such as data/%d.txt
//	hex PATH BYTES       a file with these bytes
//	alone                without the files that every repository has
func TestRepositories(t *testing.T) {
	archives, err := filepath.Glob("testdata/repositories/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("no archives", err)
	}
	e := New(Options{CPU: time.Second, Wall: 5 * time.Minute})
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files, want, more := map[string][]byte{}, "", ""
			for _, f := range a.Files {
				switch f.Name {
				case "findings":
					want = string(f.Data)
				case "entries":
					more = string(f.Data)
				default:
					files[f.Name] = f.Data
				}
			}
			if slices.ContainsFunc(a.Files, func(f txtar.File) bool { return f.Name == "no mesh.cue" }) {
				delete(files, "no mesh.cue")
				files["mesh.cue"] = nil
			}
			var entries []source.Entry
			repo := repository(files)
			for line := range strings.Lines(more) {
				word := strings.Fields(line)
				switch word[0] {
				case "link":
					entries = append(entries, source.Entry{Path: word[1], Kind: source.Link})
				case "submodule":
					entries = append(entries, source.Entry{Path: word[1], Kind: source.Module})
				case "size":
					entries = append(entries, source.Entry{Path: word[1], Size: number(t, word[2])})
				case "sizes":
					for i := range number(t, word[2]) {
						entries = append(entries, source.Entry{Path: fmt.Sprintf(word[1], i), Size: number(t, word[3])})
					}
				case "hex":
					b, err := hex.DecodeString(strings.Join(word[2:], ""))
					if err != nil {
						t.Fatal(err)
					}
					repo[word[1]] = b
				case "alone":
					repo = files
				default:
					t.Fatalf("unknown entry %q", line)
				}
			}
			for name, b := range repo {
				entries = append(entries, source.Entry{Path: name, Size: int64(len(b))})
			}
			keep, findings := source.Limits{}.Judge(entries)
			kept := map[string][]byte{}
			for _, k := range keep {
				if b, ok := repo[k.Path]; ok {
					kept[k.Path] = b
				}
			}
			if len(kept) > 0 {
				_, more, err := e.LoadFiles(t.Context(), kept, "")
				if err != nil {
					t.Fatal(err)
				}
				findings = append(findings, more...).Sorted()
			}
			got := digest.ReplaceAllString(findings.Error()+"\n", "0123456789ab…")
			if *update {
				a.Files = append(slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "findings" }),
					txtar.File{Name: "findings", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got; -update rewrites it):\n%s", d)
			}
		})
	}
}

// digest is the beginning of a SHA-256 as a message shows it: that of the schema changes with it.
var digest = regexp.MustCompile(`\b[0-9a-f]{12}…`)

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
