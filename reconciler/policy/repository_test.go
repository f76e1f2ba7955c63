package policy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/source"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// change is one entry of a commit: content, or with another mode than a file's what git keeps there.
type change struct {
	path, data string
	mode       string // default 100644; "-" removes
}

// hostileCommits are commits that a repository must survive, by what they try. Each is one change to a sound repository,
// which is pushed as git has it, not as a work tree could hold it.
var hostileCommits = []struct {
	name    string
	changes []change
	want    []string // "ID path:line", all of them
	nothing bool     // is read of the rest, since mesh.cue cannot be read
}{
	// What git can hold and a policy repository may not.
	{name: "symbolic link to a file of the machine", changes: []change{{"services/evil/link.cue", "/etc/passwd", "120000"}}, want: []string{"HDL0101 services/evil/link.cue"}},
	{name: "symbolic link in the place of a directory", changes: []change{{"services/other", "evil", "120000"}}, want: []string{"HDL0101 services/other"}},
	{name: "symbolic link in the place of mesh.cue", nothing: true, changes: []change{{"mesh.cue", "/dev/zero", "120000"}}, want: []string{"HDL0109 -", "HDL0101 mesh.cue"}},
	{name: "submodule", changes: []change{{"services/other", "1111111111111111111111111111111111111111", "160000"}}, want: []string{"HDL0102 services/other"}},
	{name: "huge file", changes: []change{{path: "services/evil/huge.cue", data: header + "_x: \"" + strings.Repeat("x", 1<<20) + "\"\n"}}, want: []string{"HDL0103 services/evil/huge.cue"}},
	{name: "huge file that is no policy", changes: []change{{path: "docs/video.mp4", data: strings.Repeat("x", 1<<20+1)}}, want: []string{"HDL0103 docs/video.mp4"}},
	{name: "deep path", changes: []change{{path: "services/evil/" + strings.Repeat("d/", 2100) + "x.cue", data: header}},
		want: []string{"HDL0106 " + ("services/evil/" + strings.Repeat("d/", 2100))[:200] + "…"}},
	{name: "name that is not UTF-8", changes: []change{{path: "services/evil/\xff.cue", data: header}}, want: []string{`HDL0106 services/evil/\xff.cue`}},
	{name: "name with a control character", changes: []change{{path: "services/evil/a\x1b[2Jb.cue", data: header}}, want: []string{`HDL0106 services/evil/a\x1b[2Jb.cue`}},
	{name: "name with a line break", changes: []change{{path: "services/evil/a\nb.cue", data: header}}, want: []string{`HDL0106 services/evil/a\nb.cue`}},
	{name: "name that reads backwards", changes: []change{{path: "services/evil/\u202eeuc.web", data: header}}, want: []string{`HDL0106 services/evil/\u202eeuc.web`}},
	{name: "directories that differ in case", changes: []change{{path: "Services/evil/more.cue", data: header}},
		want: []string{"HDL0116 Services/evil/more.cue", "HDL0113 services"}},
	{name: "files that differ in case", changes: []change{{path: "services/evil/Web.cue", data: header}}, want: []string{"HDL0113 services/evil/web.cue"}},
	{name: "documents that differ in case", changes: []change{{path: "readme.md", data: "b"}}, want: []string{"HDL0113 readme.md"}},

	// What a file may not be.
	{name: "tool file", changes: []change{{path: "services/evil/run_tool.cue", data: header + "import \"tool/exec\"\ncommand: x: exec.Run & {cmd: \"id\"}\n"}}, want: []string{"HDL0106 services/evil/run_tool.cue"}},
	{name: "test file", changes: []change{{path: "services/evil/a_test.cue", data: header}}, want: []string{"HDL0106 services/evil/a_test.cue"}},
	{name: "file that CUE passes over", changes: []change{{path: "services/evil/_a.cue", data: header}}, want: []string{"HDL0106 services/evil/_a.cue"}},
	{name: "policy in YAML", changes: []change{{path: "services/evil/a.yaml", data: "a: 1"}}, want: []string{"HDL0106 services/evil/a.yaml"}},
	{name: "overlay", changes: []change{{path: "overlays/evil/kustomization.yaml", data: "resources: []"}}, want: []string{"HDL0116 overlays/evil/kustomization.yaml"}},
	{name: "policy where nobody reads it", changes: []change{{path: "staging/services/evil/a.cue", data: header}}, want: []string{"HDL0116 staging/services/evil/a.cue"}},
	{name: "nested module", changes: []change{{path: "services/evil/cue.mod/module.cue", data: "module: \"evil.example\"\n"}}, want: []string{"HDL0107 services/evil/cue.mod/module.cue"}},
	{name: "another package", changes: []change{{path: "services/evil/a.cue", data: "package other\n"}}, want: []string{"HDL0112 services/evil/a.cue:1"}},

	// Contents that are shown otherwise than they are read.
	{name: "bytes that are not UTF-8", changes: []change{{path: "services/evil/a.cue", data: header + "_x: \"\xff\"\n"}}, want: []string{"HDL0114 services/evil/a.cue:3"}},
	{name: "UTF-16", changes: []change{{path: "services/evil/a.cue", data: "\xff\xfep\x00a\x00"}}, want: []string{"HDL0114 services/evil/a.cue:1"}},
	{name: "byte order mark", changes: []change{{path: "services/evil/a.cue", data: "\xef\xbb\xbf" + header}}, want: []string{"HDL0114 services/evil/a.cue:1"}},
	{name: "NUL byte", changes: []change{{path: "services/evil/a.cue", data: header + "_x: 1\n// \x00\n"}}, want: []string{"HDL0114 services/evil/a.cue:4"}},
	{name: "terminal escape", changes: []change{{path: "services/evil/a.cue", data: header + "// \x1b[8m hidden\n"}}, want: []string{"HDL0114 services/evil/a.cue:3"}},
	{name: "text that reads backwards", changes: []change{{path: "services/evil/a.cue", data: header + "// \u202e }\u2066 begin\n"}}, want: []string{"HDL0114 services/evil/a.cue:3"}},
	{name: "mesh.cue in UTF-16", nothing: true, changes: []change{{path: "mesh.cue", data: "\xfe\xff\x00p"}}, want: []string{"HDL0114 mesh.cue:1"}},
	{name: "module.cue that is no text", changes: []change{{path: "cue.mod/module.cue", data: "\xff"}}, want: []string{"HDL0114 cue.mod/module.cue:1"}},

	// Reaching out.
	{name: "embedded file", changes: []change{{path: "services/evil/a.cue", data: "@extern(embed)\n" + header + "_x: _ @embed(file=\"/etc/passwd\",type=text)\n"}},
		want: []string{"HDL0111 services/evil/a.cue:1", "HDL0111 services/evil/a.cue:4"}},
	{name: "file of another build", changes: []change{{path: "services/evil/a.cue", data: "@if(prod)\n" + header}}, want: []string{"HDL0111 services/evil/a.cue:1"}},
	{name: "environment in a namespace", changes: []change{{path: "services/evil/a.cue", data: header + "_e: *\"x\" | string @tag(env)\n"}}, want: []string{"HDL0111 services/evil/a.cue:3"}},
	{name: "import from elsewhere", changes: []change{{path: "services/evil/a.cue", data: header + "import \"evil.example/x\"\n_x: x.X\n"}}, want: []string{"HDL0110 services/evil/a.cue:3"}},
	{name: "import of another directory", changes: []change{{path: "services/evil/a.cue", data: header + "import \"policy.example/mesh/services/zzz:policy\"\n_x: policy.services\n"}}, want: []string{"HDL0110 services/evil/a.cue:3"}},
	{name: "import that runs commands", changes: []change{{path: "services/evil/a.cue", data: header + "import \"tool/exec\"\n_x: exec.Run\n"}}, want: []string{"HDL0110 services/evil/a.cue:3"}},
	{name: "dependency", changes: []change{{path: "cue.mod/module.cue", data: "module: \"policy.example/mesh@v0\"\nlanguage: version: \"v0.14.0\"\ndeps: \"evil.example@v0\": v: \"v0.0.1\"\n"}}, want: []string{"HDL0110 cue.mod/module.cue:3"}},
	{name: "weakened schema", changes: []change{{path: v1alpha1.VendorDir + "/rules.cue", data: "package v1alpha1\n#Repository: {...}\n"}}, want: []string{"HDL0108 " + v1alpha1.VendorDir + "/" + v1alpha1.VersionFile}},
	{name: "schema without its version", changes: []change{{v1alpha1.VendorDir + "/" + v1alpha1.VersionFile, "", "-"}}, want: []string{"HDL0108 " + v1alpha1.VendorDir + "/" + v1alpha1.VersionFile}},
	{name: "addition to the schema", changes: []change{{path: v1alpha1.VendorDir + "/more.cue", data: "package v1alpha1\n#Service: {...}\n"}}, want: []string{"HDL0108 " + v1alpha1.VendorDir + "/" + v1alpha1.VersionFile}},

	// Writing what is another's.
	{name: "another namespace", changes: []change{{path: "services/evil/a.cue", data: header + "services: zzz: web: allow: all: from: [{unauthenticated: true}]\n"}}, want: []string{"HDL0211 services/evil/a.cue:3"}},
	{name: "the mesh", changes: []change{{path: "services/evil/a.cue", data: header + "mesh: mandates: exempt: [\"evil/web\"]\n"}}, want: []string{"HDL0211 services/evil/a.cue:3"}},
	{name: "another namespace, by somebody's directory", changes: []change{{path: "guests/services/guest/a.cue", data: header + "services: zzz: web: allow: all: from: [{unauthenticated: true}]\n"}},
		want: []string{"HDL0211 guests/services/guest/a.cue:3"}},
	{name: "a directory for another namespace, by somebody's directory", changes: []change{{path: "guests/services/zzz/a.cue", data: header + "services: zzz: web: allow: all: from: [{unauthenticated: true}]\n"}},
		want: []string{"HDL0211 guests/services/zzz/a.cue"}},
	{name: "a kind that was not given, by somebody's directory", changes: []change{{path: "guests/egress/guest/a.cue", data: header + "egress: guest: all: networks: [{cidr: \"0.0.0.0/0\"}]\n"}},
		want: []string{"HDL0211 guests/egress/guest/a.cue:3"}},
	{name: "expectations for others, by somebody's directory", changes: []change{{path: "guests/tests/a.cue", data: header}}, want: []string{"HDL0116 guests/tests/a.cue"}},

	// Programs without a bound; more of them in TestHostile.
	{name: "bomb", changes: []change{{path: "services/evil/a.cue", data: header + "import \"list\"\n_x: list.Range(0, 1000000000, 1)\n"}}, want: []string{"HDL0209 services/evil"}},
	{name: "bomb in somebody's directory", changes: []change{{path: "guests/services/guest/a.cue", data: header + "import \"list\"\n_x: list.Range(0, 1000000000, 1)\n"}}, want: []string{"HDL0209 guests/services/guest/a.cue"}},
	{name: "bomb in the expectations", changes: []change{{path: "tests/a.cue", data: header + "import \"list\"\n_x: list.Range(0, 1000000000, 1)\n"}}, want: []string{"HDL0209 tests/a.cue"}},
	{name: "number that reads as another", changes: []change{{path: "services/evil/a.cue", data: header + "_x: 1e100000000\n"}}, want: []string{"HDL0203 services/evil/a.cue:3"}},
	{name: "huge number", changes: []change{{path: "services/evil/web.cue", data: header + "services: evil: web: ports: http: port: " + strings.Repeat("9", 500_000) + "\n"}}, want: []string{"HDL0203 services/evil/web.cue:3"}},

	// Secrets, wherever they stand.
	{name: "private key", changes: []change{{path: "docs/key.pem", data: "x\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEISECRETISECRET\n-----END EC PRIVATE KEY-----\n"}}, want: []string{"HDL0115 docs/key.pem:2"}},
	{name: "private key in policy", changes: []change{{path: "services/evil/a.cue", data: header + "_k: \"-----BEGIN PRIVATE KEY-----\\nISECRETISECRET\"\n"}}, want: []string{"HDL0115 services/evil/a.cue:3"}},
	{name: "join token", changes: []change{{path: ".github/workflows/a.yaml", data: "env:\n  T: heddle-join-1.ISECRETISECRETISECRET\n"}}, want: []string{"HDL0115 .github/workflows/a.yaml:2"}},
	{name: "AWS key", changes: []change{{path: "notes.txt", data: "AKIAISECRETISECRET12\n"}}, want: []string{"HDL0115 notes.txt:1"}},
	{name: "GitHub token", changes: []change{{path: "notes.txt", data: "\nghp_ISECRETISECRETISECRETISECRETISECRETISECRET\n"}}, want: []string{"HDL0115 notes.txt:2"}},
	{name: "password in an address", changes: []change{{path: "mesh.cue", data: header + "mesh: {trustDomain: \"a.example\", sources: a: {repository: \"https://bot:ISECRET@git.example/x\", namespaces: [\"a\"]}}\n"}},
		want: []string{"HDL0115 mesh.cue:3"}},
	{name: "password in an address, explained", changes: []change{{path: "notes.txt", data: "https://user:password@git.example/x or https://git.example:443/a@b\n"}}},
	{name: "JSON Web Token", changes: []change{{path: "notes.txt", data: "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.ISECRETISECRETISECRETISECRET\n"}}, want: []string{"HDL0115 notes.txt:1"}},
	{name: "Slack token", changes: []change{{path: "notes.txt", data: "xoxb-123456789012-ISECRET\n"}}, want: []string{"HDL0115 notes.txt:1"}},
	{name: "private JSON Web Key", changes: []change{{path: "services/evil/a.cue", data: header + `_j: "{\"kty\":\"EC\",\"d\":\"ISECRETISECRETISECRETISECRETISECRETISECRET12\"}"` + "\n"}}, want: []string{"HDL0115 services/evil/a.cue:3"}},
	{name: "what only looks like a secret", changes: []change{{path: "README.md", data: "a token begins with heddle-join-1. and is high; AKIAIOSFODNN7EXAMPLE, ghp_x, BEGIN CERTIFICATE\n"}}},
}

// TestHostileCommits: whatever a commit holds, there is one finding that names it, at its place, that can be printed and
// shows no secret; the rest of the repository is judged; and what was good before is as good after.
func TestHostileCommits(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("SKIPPED: no git on this machine")
	}
	dir := t.TempDir()
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command(git, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("", "init", "-q", "--bare", "-b", "main")

	sound := repository(map[string][]byte{
		"mesh.cue":                    []byte(sources(`guests: {directory: "guests", namespaces: ["guest"], kinds: ["services"]}`)),
		"services/aaa/web.cue":        []byte(header + "services: aaa: web: ports: http: port: 80\n"),
		"services/evil/web.cue":       []byte(header + "services: evil: web: ports: http: port: 80\n"),
		"services/zzz/web.cue":        []byte(header + "services: zzz: web: ports: http: port: 80\n"),
		"guests/services/guest/b.cue": []byte(header),
		"README.md":                   []byte("a"),
	})
	delete(sound, "guests/services/guest/b.cue")
	var script strings.Builder
	commit := func(ref string, changes []change) {
		mark := ""
		if ref == "main" {
			mark = "mark :1\n"
		}
		fmt.Fprintf(&script, "commit refs/heads/%s\n"+mark+"committer Ada <ada@example.org> 1700000000 +0000\ndata 1\nx\n", ref)
		if ref != "main" {
			script.WriteString("from :1\n")
		}
		for _, c := range changes {
			quoted := strings.ReplaceAll(strings.ReplaceAll(c.path, `\`, `\\`), "\n", `\n`)
			switch c.mode {
			case "-":
				fmt.Fprintf(&script, "D \"%s\"\n", quoted)
			case "160000":
				fmt.Fprintf(&script, "M 160000 %s \"%s\"\n", c.data, quoted)
			case "":
				c.mode = "100644"
				fallthrough
			default:
				fmt.Fprintf(&script, "M %s inline \"%s\"\ndata %d\n%s\n", c.mode, quoted, len(c.data), c.data)
			}
		}
	}
	var base []change
	for name, b := range sound {
		base = append(base, change{path: name, data: string(b)})
	}
	commit("main", base)
	for i, c := range hostileCommits {
		commit("case"+strconv.Itoa(i), c.changes)
	}
	run(script.String(), "fast-import", "--quiet")

	src, err := source.Open(t.Context(), source.Options{URL: dir, Ref: "main", Dir: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	e := New(Options{CPU: 2 * time.Second, Heap: 96 << 20, Wall: 5 * time.Minute})
	load := func(ref string) (*v1alpha1.Document, diag.List) {
		t.Helper()
		sn, findings, err := src.Snapshot(t.Context(), run("", "rev-parse", ref))
		if err != nil {
			t.Fatal(err)
		}
		doc, found, err := e.Load(t.Context(), sn, "")
		if err != nil {
			t.Fatal(err)
		}
		return doc, append(findings, found...).Sorted()
	}
	good, findings := load("main")
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	for i, c := range hostileCommits {
		t.Run(c.name, func(t *testing.T) {
			doc, findings := load("case" + strconv.Itoa(i))
			var got []string
			for _, f := range findings {
				got = append(got, strings.TrimSpace(f.ID+" "+f.Pos.Short()))
				text := f.String() + f.Hint
				if strings.Contains(text, "SECRET") || len(text) > 1200 || !utf8.ValidString(text) || strings.ContainsAny(f.Message, "\x1b\x00\r") {
					t.Errorf("a finding that cannot be shown: %q", text)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("findings (-want +got):\n%s\n%v", d, findings)
			}
			if c.nothing {
				return
			}
			for _, ns := range []string{"aaa", "zzz"} {
				if !slices.Contains(doc.Unread, ns) && len(doc.Policy.Services[ns]) != 1 {
					t.Errorf("%s is not judged: %v", ns, doc.Policy.Services)
				}
				if slices.Contains(doc.Unread, ns) && !strings.Contains(c.changes[0].path, "zzz") {
					t.Errorf("%s is unread", ns)
				}
			}
		})
	}
	again, findings := load("main")
	if d := cmp.Diff(good, again); d != "" || len(findings) > 0 {
		t.Errorf("what was good is not any more: %v\n%s", findings, d)
	}
}
