package v1alpha1

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// ImportPath is how policy files import the schema.
const ImportPath = "github.com/heddle-mesh/heddle/schema/v1alpha1"

// VendorDir is where a policy repository keeps its copy of the schema, relative to the repository's root.
const VendorDir = "cue.mod/pkg/" + ImportPath

// VersionFile stands in VendorDir and says which copy it is; see [Vendored].
const VersionFile = "VERSION"

// Version is the version of this schema. It changes with every released change of the .cue files.
const Version = "v0.1.0"

// LowestLanguage and HighestLanguage bound the `language: version:` of a policy repository's module: the range in
// which the stock CLI and Heddle are known to read a file alike.
const (
	LowestLanguage  = "v0.14.0"
	HighestLanguage = "v0.17.1"
)

//go:embed *.cue
var embedded embed.FS

// Files returns the schema's CUE files by base name. The caller owns the map; the bytes are shared and not to be
// written.
func Files() map[string][]byte { return maps.Clone(files) }

var files = read()

func read() map[string][]byte {
	out := map[string][]byte{}
	entries, err := embedded.ReadDir(".")
	if err != nil {
		panic(err) // the embedded root always reads
	}
	for _, e := range entries {
		b, err := embedded.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		out[e.Name()] = b
	}
	return out
}

// Digest is the SHA-256 of the embedded schema, as [DigestOf] computes it.
func Digest() string { return digest }

var digest = DigestOf(files)

// DigestOf is the SHA-256, in hexadecimal, over the .cue files of a copy of the schema: for each, in the order of
// their names, the name, its length in bytes and its content. Other files do not count.
func DigestOf(files map[string][]byte) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Ext(name) == ".cue" {
			fmt.Fprintf(h, "%s %d\n", name, len(files[name]))
			h.Write(files[name])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Vendored returns what a policy repository holds so that the stock cue CLI finds the schema without a network: the
// .cue files and VERSION, keyed by their path relative to the repository's root. The caller writes them as they are.
func Vendored() map[string][]byte {
	out := make(map[string][]byte, len(files)+1)
	for name, b := range files {
		out[VendorDir+"/"+name] = bytes.Clone(b)
	}
	out[VendorDir+"/"+VersionFile] = []byte("version " + Version + "\nsha256 " + Digest() + "\n")
	return out
}

// ParseVersion reads a VERSION file.
func ParseVersion(b []byte) (version, sha256 string, err error) {
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "version":
			version = value
		case "sha256":
			sha256 = value
		}
	}
	if version == "" || len(sha256) != 64 {
		return "", "", fmt.Errorf("%s does not hold a line \"version …\" and a line \"sha256 …\"", VersionFile)
	}
	return version, sha256, nil
}
