package up

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/process"
	"github.com/heddle-mesh/heddle/controlplane/push"
	"github.com/heddle-mesh/heddle/examples"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

func TestProcesses(t *testing.T) {
	for _, name := range examples.Names() {
		example, _, err := examples.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readProcesses(example); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	workload := func(more string) string {
		return `{"apiVersion": "heddle/v1", "workloads": [{"name": "a/b-1", "service": "a/b", "run": ["b"]` + more + `}]}`
	}
	for _, c := range []struct{ name, file, want string }{
		{"good", workload(""), ""},
		{"a field of a later version", workload(`, "restart": false`), `unknown field "restart"`},
		{"another version", strings.Replace(workload(""), "heddle/v1", "heddle/v2", 1), "reads heddle/v1"},
		{"nothing to run", `{"apiVersion": "heddle/v1", "workloads": []}`, "no workloads"},
		{"no namespace", strings.Replace(workload(""), "a/b-1", "b-1", 1), "want namespace/name"},
		{"a path out of the logs", strings.Replace(workload(""), "a/b-1", "a/../b", 1), "want namespace/name"},
		{"a service of another namespace", strings.Replace(workload(""), `"a/b"`, `"c/b"`, 1), "not one of namespace a"},
		{"two of a name", strings.Replace(workload(`}, {"name": "c/b-1", "service": "c/b", "run": ["b"]`), "", "", 1), "two processes named b-1"},
		{"a name of ours", strings.Replace(workload(""), "a/b-1", "a/reconciler", 1), "two processes named reconciler"},
		{"an upstream without a port", workload(`, "upstreams": {"X": "a/c"}`), "want namespace/service:port"},
		{"an entry that nobody exposes", strings.Replace(workload(`, "ports": {"http": {}}`), `"workloads"`, `"entry": {"workload": "a/b-1", "port": "http", "path": "/"}, "workloads"`, 1), "no workload exposes it"},
	} {
		_, err := readProcesses(fstest.MapFS{"processes.json": {Data: []byte(c.file)}})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error is %v, want %q", c.name, err, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	b := newBook("/somewhere", nil)
	first, err := b.address("web")
	if err != nil {
		t.Fatal(err)
	}
	if low, high := ephemeral(); low > firstPort && portOf(first) >= low && portOf(first) <= high {
		t.Errorf("%s is an ephemeral port, of %d to %d", first, low, high)
	}
	if second, err := b.address("api"); err != nil || second == first {
		t.Errorf("two names have %s, %v", second, err)
	}
	again := newBook("/somewhere", b.addresses)
	if got, err := again.address("web"); err != nil || got != first {
		t.Errorf("the next run has %s, %v; the one before had %s", got, err, first)
	}
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := newBook("/somewhere", b.addresses)
	got, err := taken.address("web")
	if err != nil || got == first {
		t.Errorf("an address that another program took is given away again: %s, %v", got, err)
	}
	if got == b.addresses["api"] {
		t.Errorf("%s is the address of another name", got)
	}
}

func TestRepository(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	dir := filepath.Join(t.TempDir(), "repo")
	policy := fstest.MapFS{"mesh.cue": {Data: []byte("package policy\n")}, "services/a/b.cue": {Data: []byte("package policy\n")}}
	// Neither a surrounding repository nor the user's settings have a say.
	t.Setenv("GIT_DIR", filepath.Join(t.TempDir(), "elsewhere"))
	t.Setenv("HOME", t.TempDir())
	if err := makeRepository(t.Context(), dir, "trunk", policy, v1alpha1.Vendored()); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) string {
		cmd := exec.Command(git, append([]string{"-C", dir}, args...)...)
		cmd.Env = gitEnvironment()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := ask("rev-parse", "--abbrev-ref", "HEAD"); got != "trunk" {
		t.Errorf("the branch is %s", got)
	}
	if got := ask("status", "--porcelain"); got != "" {
		t.Errorf("not committed: %s", got)
	}
	if got := ask("ls-files"); !strings.Contains(got, "cue.mod/module.cue") || !strings.Contains(got, v1alpha1.VendorDir+"/VERSION") {
		t.Errorf("the repository holds\n%s", got)
	}
	head := ask("rev-parse", "HEAD")
	if err := os.WriteFile(filepath.Join(dir, "mesh.cue"), []byte("package policy // mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := makeRepository(t.Context(), dir, "trunk", policy, nil); err != nil {
		t.Fatal(err)
	}
	if got := ask("rev-parse", "HEAD"); got != head || ask("status", "--porcelain") == "" {
		t.Error("a repository that is there was touched")
	}
}

// Without git there is a way out.
func TestRepositoryWithoutGit(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := makeRepository(context.Background(), filepath.Join(t.TempDir(), "repo"), "main", fstest.MapFS{}, nil)
	if err == nil || !strings.Contains(err.Error(), "--repo") {
		t.Errorf("error is %v", err)
	}
}

// Ctrl-C while git runs is no failure of git.
func TestRepositoryInterrupted(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := makeRepository(ctx, filepath.Join(t.TempDir(), "repo"), "main", fstest.MapFS{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// A core program that says that it cannot run, and never did, ends the run; nothing else does.
func TestHopeless(t *testing.T) {
	failed := func(change func(*process.Event)) process.Event {
		e := process.Event{Name: "reconciler", Exit: "exit status 3", Code: 3,
			Last: "{\"message\":\"starting\"}\nerror: no repository \x1b[1m/x\n  try: git init\n"}
		change(&e)
		return e
	}
	for _, c := range []struct {
		name     string
		event    process.Event
		answered string
		want     string
	}{
		{name: "it says why", event: failed(func(*process.Event) {}), want: "reconciler: no repository  [1m/x; try: git init"},
		{name: "it ran before", event: failed(func(*process.Event) {}), answered: "reconciler"},
		{name: "the other one ran before", event: failed(func(*process.Event) {}), answered: "controlplane", want: "reconciler: no repository  [1m/x; try: git init"},
		{name: "it was killed", event: failed(func(e *process.Event) { e.Code = -1 })},
		{name: "it says nothing", event: failed(func(e *process.Event) { e.Last = "{}\n" })},
		{name: "an application", event: failed(func(e *process.Event) { e.Name = "api-1" })},
		{name: "it started", event: failed(func(e *process.Event) { e.PID = 7 })},
	} {
		u := &supervisor{hopeless: make(chan error, 1)}
		u.hasAnswered(c.answered)
		u.judge(c.event)
		u.judge(c.event) // a second reason waits for nobody
		got := ""
		select {
		case err := <-u.hopeless:
			got = err.Error()
		default:
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A workload counts as missing until its sidecar is enrolled and connected, and the line says where to look.
func TestMissing(t *testing.T) {
	state := t.TempDir()
	if err := os.Mkdir(filepath.Join(state, "controlplane"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(state, "controlplane", operator.SocketName)
	l, err := operator.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	var items []push.Proxy
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(map[string]any{"items": items}); err != nil {
			t.Error(err)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Close()
		<-served
	}()
	u := &supervisor{cfg: Config{State: state}, processes: &Processes{Workloads: []Workload{{Name: "a/b-1"}, {Name: "a/c-1"}}}}
	for _, c := range []struct {
		items []push.Proxy
		want  string
	}{
		{nil, "a/b-1 has not enrolled; see " + filepath.Join(state, "logs", "b-1-proxy.log")},
		{[]push.Proxy{{Workload: "a/b-1", Connected: true}, {Workload: "a/c-1"}}, "a/c-1 is not connected; see"},
		{[]push.Proxy{{Workload: "a/b-1", Connected: true}, {Workload: "a/c-1", Connected: true}}, ""},
	} {
		items = c.items
		got := u.missing(t.Context(), operator.NewClient(socket))
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%v: %q, want %q", c.items, got, c.want)
		}
	}
}
