package reconciler

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/reconciler/policy"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	record "github.com/heddle-mesh/heddle/schema/release"
)

func TestMain(m *testing.M) {
	policy.MaybeRunChild()
	os.Exit(m.Run())
}

// rig is a policy repository, made with the git binary, and a reconciler that follows it.
type rig struct {
	testing.TB
	repo  string
	cfg   Config
	plane ed25519.PrivateKey // of the one control plane that may connect
	api   *operator.Client
	log   *logBuffer
	quit  func() error
}

func newRig(t testing.TB) *rig {
	t.Helper()
	_, plane, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, repo: t.TempDir(), plane: plane, log: &logBuffer{}}
	r.cfg = Config{StateDir: filepath.Join(t.TempDir(), "state"), Repo: r.repo, Version: "v0.1.0", TrustFirstCommit: true,
		ListenReleases: "127.0.0.1:0", ListenHint: "127.0.0.1:0", Interval: 5 * time.Millisecond,
		ControlPlaneKeys: []string{record.FormatKey(pinned.Public(plane))}}
	r.api = operator.NewClient(filepath.Join(r.cfg.StateDir, operator.SocketName))
	r.git("init", "--quiet", "--initial-branch=main")
	return r
}

func (r *rig) git(args ...string) string {
	r.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.repo
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// files are paths with their content; an empty content removes the file.
type files map[string]string

func meshFile(trustDomain string) string {
	return fmt.Sprintf("package policy\n\nmesh: trustDomain: %q\n", trustDomain)
}

func webFile(port int) string {
	return fmt.Sprintf("package policy\n\nservices: shop: web: {\n\tports: http: {port: %d, protocol: \"http1\"}\n"+
		"\tallow: api: from: [{authenticated: true}]\n}\n", port)
}

const web = "services/shop/web.cue"

// commit writes the files and commits them.
func (r *rig) commit(subject string, fs files) (hash string) {
	r.Helper()
	for name, content := range fs {
		path := filepath.Join(r.repo, name)
		var err error
		if content == "" {
			err = os.Remove(path)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			r.Fatal(err)
		}
	}
	r.git("add", "--all")
	r.git("commit", "--quiet", "--allow-empty", "-m", subject)
	return r.git("rev-parse", "HEAD")
}

// start runs the reconciler until stop, or the end of the test.
func (r *rig) start() {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(zerolog.New(r.log).WithContext(ctx), r.cfg) }()
	r.quit = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	r.Cleanup(r.stop)
	r.eventually("an answer", func() bool {
		select {
		case err := <-done:
			r.Fatalf("Run returned at once: %v", err)
		default:
		}
		return !errors.Is(r.api.Get(r.Context(), "/v1/status", nil), operator.ErrUnreachable)
	})
}

func (r *rig) stop() {
	r.Helper()
	if err := r.quit(); err != nil {
		r.Errorf("Run: %v", err)
	}
}

// eventually waits for what other processes and goroutines bring about.
func (r *rig) eventually(what string, holds func() bool) {
	r.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			var s Status
			err := r.api.Get(context.Background(), "/v1/status", &s)
			b, _ := json.MarshalIndent(s, "", "  ")
			r.Fatalf("waited in vain for %s\nstatus: %s %v\nlog:\n%s", what, b, err, r.log)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *rig) status() (s Status) {
	r.Helper()
	// The test's context is over during cleanup.
	if err := r.api.Get(context.Background(), "/v1/status", &s); err != nil {
		r.Fatal(err)
	}
	return s
}

// await waits until the newest commit is in a state.
func (r *rig) await(commit string, state State) (s Status) {
	r.Helper()
	r.eventually(short(commit)+" "+string(state), func() bool {
		s = r.status()
		return s.Observed != nil && s.Observed.Commit == commit && s.Observed.State == state
	})
	return s
}

func (r *rig) resume(req ResumeRequest) error {
	return r.api.Post(r.Context(), "/v1/resume", req, nil)
}

// watch is what a control plane sees.
type watch struct {
	*rig
	client proxyapi.ReleasesClient
	stream grpc.ServerStreamingClient[proxyapi.SignedRecord]
	key    ed25519.PublicKey
}

func (r *rig) watch() *watch {
	r.Helper()
	w := r.dial()
	var err error
	if w.stream, err = w.client.Watch(r.Context(), &proxyapi.WatchRequest{}); err != nil {
		r.Fatal(err)
	}
	return w
}

func (r *rig) dial() *watch {
	r.Helper()
	s := r.status()
	key, err := record.ParseKey(s.Key)
	if err != nil {
		r.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Listen.Releases, grpc.WithTransportCredentials(credentials.NewTLS(pinned.ClientTLS(r.plane, key))))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	return &watch{rig: r, client: proxyapi.NewReleasesClient(conn), key: key}
}

// next is the next release of the watch, verified and assembled.
func (w *watch) next() (*record.Record, *mesh.Mesh) {
	w.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		w.Fatal(err)
	}
	rec, err := record.Signed{Bytes: m.GetRecord(), Signature: m.GetSignature()}.Verify(w.key)
	if err != nil {
		w.Fatal(err)
	}
	compiled, _, err := rec.Assemble(func(h mesh.Hash) ([]byte, error) {
		blobs, err := w.client.Blobs(w.Context(), &proxyapi.BlobsRequest{Hashes: [][]byte{h[:]}})
		if err != nil {
			return nil, err
		}
		b, err := blobs.Recv()
		return b.GetBytes(), err
	})
	if err != nil {
		w.Fatal(err)
	}
	return rec, compiled
}

func (w *watch) report(epoch uint64, acked, total uint32, nacks ...*proxyapi.ProxyNack) {
	w.Helper()
	_, err := w.client.Report(w.Context(), &proxyapi.PushReport{ControlPlane: "cp", Epoch: epoch, Acked: acked, Total: total, Nacks: nacks})
	if err != nil {
		w.Fatal(err)
	}
}

// logBuffer keeps log lines.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lines counts the lines with a message about a commit.
func (l *logBuffer) lines(message, commit string) (n int) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, `"message":"`+message) && strings.Contains(line, commit) {
			n++
		}
	}
	return n
}

// A commit's way: published, rejected, mended, reverted, reformatted; and a restart in between.
func TestLifeOfACommit(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	r.await(first, Pushing)
	w := r.watch()
	one, m := w.next()
	if one.Epoch != 1 || one.Commit() != first || one.Sources[0].Subject != "Start" || one.Sources[0].Author != "Ada <ada@example.org>" {
		t.Fatalf("first release: %+v", one)
	}
	if in, ok := m.InboundOf("shop/web"); !ok || in.Ports[0].Port != 80 {
		t.Fatalf("its mesh: %+v", m)
	}

	// Both files are wrong: the author sees all findings at once, and nothing that serves changes.
	broken := r.commit("Break it", files{web: strings.Replace(webFile(80), "http1", "smtp", 1),
		"services/pay/api.cue": "package policy\n\nservices: pay: api: {ports: {}, colour: \"red\"}\n"})
	s := r.await(broken, Rejected)
	if s.Applied == nil || s.Applied.Commit != first || s.Applied.Epoch != 1 {
		t.Errorf("a rejected commit replaced what serves: %+v", s.Applied)
	}
	at := func(f diag.Finding) string { return f.Pos.Short() }
	for _, want := range []string{web + ":4", "services/pay/api.cue:3"} {
		if !slices.ContainsFunc(s.Observed.Findings, func(f diag.Finding) bool { return at(f) == want && f.ID != "" && f.Message != "" }) {
			t.Errorf("no finding at %s: %v", want, s.Observed.Findings)
		}
	}

	changed := r.commit("Mend it, and move the port", files{web: webFile(81), "services/pay/api.cue": ""})
	two, m := w.next()
	if two.Epoch != 2 || two.Commit() != changed || two.Behaviour == one.Behaviour {
		t.Fatalf("second release: %+v", two)
	}
	if in, _ := m.InboundOf("shop/web"); in.Ports[0].Port != 81 {
		t.Errorf("the port did not move: %+v", in)
	}

	r.git("revert", "--no-edit", "HEAD", "HEAD~1") // back to the first commit's tree
	reverted := r.git("rev-parse", "HEAD")
	r.await(reverted, Pushing)
	s = r.status()
	if s.Applied.Behaviour != one.Behaviour || s.Applied.Epoch <= 2 || s.Applied.Unchanged {
		t.Errorf("after the revert: %+v; want a new epoch with behaviour %s", s.Applied, one.Behaviour.Short())
	}

	comment := r.commit("Explain it", files{web: "// The shop window.\n" + webFile(80)})
	s = r.await(comment, Pushing)
	if !s.Applied.Unchanged || s.Applied.Behaviour != one.Behaviour || r.log.lines("release published, behaviour unchanged", comment) != 1 {
		t.Errorf("a comment changed behaviour: %+v", s.Applied)
	}

	// Restart: the applied commit makes no new release, and control planes have it back at once.
	epoch := s.Applied.Epoch
	r.stop()
	for err := error(nil); err == nil; { // the watch ends, after what was still on its way
		_, err = w.stream.Recv()
	}
	r.start()
	s = r.await(comment, Pushing)
	if d := cmp.Diff(epoch, s.Applied.Epoch); d != "" || !s.Applied.Unchanged {
		t.Errorf("applied after the restart: %+v (-want +got)\n%s", s.Applied, d)
	}
	if rec, _ := r.watch().next(); rec.Epoch != epoch {
		t.Errorf("served after the restart: %+v", rec)
	}

	// The findings of a rejected tip come back too.
	again := r.commit("Break it again", files{web: "package policy\n\nservices: shop: web: {"})
	want := r.await(again, Rejected)
	r.stop()
	r.start()
	got := r.await(again, Rejected)
	if d := cmp.Diff(want.Observed.Findings, got.Observed.Findings); d != "" || len(got.Observed.Findings) == 0 || got.Applied.Epoch != epoch {
		t.Errorf("after the restart: %+v (-want +got)\n%s", got.Applied, d)
	}

	// Another compiler, or another environment, may read the same commit otherwise: that is a release of its own.
	r.git("reset", "--quiet", "--hard", comment)
	r.stop()
	r.cfg.Version = "v0.2.0"
	r.start()
	r.eventually("a release by the new version", func() bool { s := r.status(); return s.Applied.Epoch == epoch+1 })

	var h History
	if err := r.api.Get(t.Context(), "/v1/history", &h); err != nil {
		t.Fatal(err)
	}
	if len(h.Items) < 5 || h.Items[0].Epoch != epoch+1 || !h.Items[0].Applied || !h.Items[0].Unchanged || h.Items[1].Applied ||
		h.Items[len(h.Items)-1].Commit != first {
		t.Errorf("history: %+v", h.Items)
	}
}

// What a commit may not do by itself: each guard holds, names the way out, and takes no for an answer but the right one.
func TestGuards(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	second := r.commit("Move", files{web: webFile(81)})
	r.cfg.TrustFirstCommit = false
	r.start()

	held := func(commit string, accept Accept, says string, applied uint64) {
		t.Helper()
		s := r.await(commit, Held)
		if s.Observed.Accept != accept || !strings.Contains(s.Observed.Reason, says) {
			t.Fatalf("held for %q: %s; want %q: …%s…", s.Observed.Accept, s.Observed.Reason, accept, says)
		}
		if s.Applied == nil && applied != 0 || s.Applied != nil && s.Applied.Epoch != applied {
			t.Fatalf("a held commit replaced what serves: %+v", s.Applied)
		}
		wrong := map[Accept]ResumeRequest{
			"another reason": {Accept: map[bool]Accept{true: AcceptEmpty, false: AcceptRewind}[accept == AcceptRewind]},
			"another commit": {Accept: accept, Commit: strings.Repeat("0", 40)},
			"no reason":      {},
		}
		for name, req := range wrong {
			var refusal *operator.Error
			if err := r.resume(req); !errors.As(err, &refusal) || refusal.Hint == "" {
				t.Errorf("resume with %s: %v", name, err)
			}
		}
		if s := r.status(); s.Observed.State != Held {
			t.Fatalf("it went on without a word: %+v", s.Observed)
		}
	}
	resume := func(commit string, accept Accept, epoch uint64) Status {
		t.Helper()
		if err := r.resume(ResumeRequest{Accept: accept, Commit: commit}); err != nil {
			t.Fatal(err)
		}
		s := r.await(commit, Pushing)
		if s.Applied.Epoch != epoch || s.Applied.Commit != commit {
			t.Fatalf("applied %+v; want epoch %d of %s", s.Applied, epoch, commit)
		}
		return s
	}

	held(second, AcceptFirst, "first commit", 0)
	s := resume(second, AcceptFirst, 1)
	behaviour := s.Applied.Behaviour

	r.git("reset", "--quiet", "--hard", first)
	held(first, AcceptRewind, "older than the applied commit", 1)
	// A newer commit is judged afresh: here the way back to the applied history.
	r.git("reset", "--quiet", "--hard", second)
	third := r.commit("Go on", files{web: webFile(82)})
	if s := r.await(third, Pushing); s.Applied.Epoch != 2 {
		t.Fatalf("applied %+v", s.Applied)
	}
	if err := r.resume(ResumeRequest{Accept: AcceptRewind}); err == nil {
		t.Error("resumed what is not held")
	}
	r.git("reset", "--quiet", "--hard", second)
	held(second, AcceptRewind, "older", 2)
	if s := resume(second, AcceptRewind, 3); s.Applied.Behaviour != behaviour {
		t.Errorf("back at %s, it behaves as %s", short(second), s.Applied.Behaviour.Short())
	}

	r.git("checkout", "--quiet", "--orphan", "other")
	orphan := r.commit("Rewrite history", files{web: webFile(83)})
	r.git("update-ref", "refs/heads/main", orphan)
	held(orphan, AcceptRewind, "does not descend", 3)
	resume(orphan, AcceptRewind, 4)
	r.git("checkout", "--quiet", "main")

	emptied := r.commit("Delete everything", files{web: ""})
	held(emptied, AcceptEmpty, "no service where there are 1", 4)
	// Its descendants still delete everything: they are held with it, and the word for the one is none for the other.
	renamed := r.commit("And rename it", files{"mesh.cue": meshFile("example.com")})
	held(renamed, AcceptTrustDomain, `from "example.org" to "example.com"`, 4)
	if err := r.resume(ResumeRequest{Accept: AcceptTrustDomain}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the second guard", func() bool { return r.status().Observed.Accept == AcceptEmpty })
	held(renamed, AcceptEmpty, "no service", 4)
	resume(renamed, AcceptEmpty, 5)
	r.git("revert", "--no-edit", "HEAD")
	held(r.git("rev-parse", "HEAD"), AcceptTrustDomain, `from "example.com" to "example.org"`, 5)
}

// Without its applied pointer the reconciler asks, whatever it was told about first commits, and serves what it has.
func TestLostPointer(t *testing.T) {
	for name, spoil := range map[string]func(state string) error{
		"gone": func(state string) error { return os.Remove(filepath.Join(state, "applied.json")) },
		"damaged": func(state string) error {
			return os.WriteFile(filepath.Join(state, "applied.json"), []byte(`{"epoch":1}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
			r.start()
			r.await(first, Pushing)
			r.stop()
			if err := spoil(r.cfg.StateDir); err != nil {
				t.Fatal(err)
			}
			second := r.commit("Meanwhile", files{web: webFile(81)})
			r.start()
			s := r.await(second, Held)
			if s.Observed.Accept != AcceptFirst || !strings.Contains(s.Observed.Reason, "applied pointer") || s.Applied != nil {
				t.Fatalf("observed %+v, applied %+v", s.Observed, s.Applied)
			}
			if s.Served != 1 {
				t.Errorf("the status says that epoch %d is served", s.Served)
			}
			w := r.watch()
			if rec, _ := w.next(); rec.Commit() != first {
				t.Errorf("served meanwhile: %+v", rec)
			}
			if err := r.resume(ResumeRequest{Accept: AcceptFirst}); err != nil {
				t.Fatal(err)
			}
			if rec, _ := w.next(); rec.Commit() != second || rec.Epoch != 2 || rec.Previous != (mesh.Hash{}) {
				t.Errorf("after the operator's word: %+v", rec)
			}
		})
	}
}

// Blobs that are lost come back by compiling the applied commit again, whatever the newest commit is; no operator is
// needed, since the record is whole.
func TestLostBlob(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	before := r.await(first, Pushing).Applied
	spoil := func() {
		blobs := filepath.Join(r.cfg.StateDir, "releases", "blobs")
		entries, err := os.ReadDir(blobs)
		if err != nil || len(entries) == 0 {
			t.Fatal(entries, err)
		}
		for _, e := range entries {
			if err := os.WriteFile(filepath.Join(blobs, e.Name()), []byte("noise"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	served := func() {
		t.Helper()
		if rec, _ := r.watch().next(); rec.Behaviour != before.Behaviour || rec.Epoch != before.Epoch {
			t.Errorf("served %+v; want %+v", rec, before)
		}
	}
	r.stop()
	spoil()
	r.start()
	r.await(first, Pushing)
	served()

	r.stop()
	spoil()
	broken := r.commit("Break", files{web: "package policy\nnothing: 1\n"})
	r.start()
	r.await(broken, Rejected)
	served()

	spoil() // while it runs; a control plane that asks finds out
	entries, err := os.ReadDir(filepath.Join(r.cfg.StateDir, "releases", "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	client := r.watch().client
	for _, e := range entries { // they are mended one by one
		h, err := hex.DecodeString(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		r.eventually("the mended blob", func() bool {
			blobs, err := client.Blobs(t.Context(), &proxyapi.BlobsRequest{Hashes: [][]byte{h}})
			if err == nil {
				_, err = blobs.Recv()
			}
			return err == nil
		})
	}
	served()
}

// Of a commit with too many files nothing else is said: none of them is read.
func TestTooManyFiles(t *testing.T) {
	r := newRig(t)
	many := files{}
	for i := range 200 {
		many[fmt.Sprintf("f%d.cue", i)] = "package policy\n"
	}
	r.commit("Many", many)
	tree := r.git("rev-parse", "HEAD^{tree}")
	for range 8 { // 200 × 2⁸ files, in eight small objects more
		r.git("read-tree", "--empty")
		r.git("read-tree", "--prefix=a/", tree)
		r.git("read-tree", "--prefix=b/", tree)
		tree = r.git("write-tree")
	}
	tip := r.git("commit-tree", "-m", "Too many", "-p", "HEAD", tree)
	r.git("update-ref", "HEAD", tip)
	r.start()
	s := r.await(tip, Rejected)
	if len(s.Observed.Findings) != 1 || s.Observed.Findings[0].ID != diag.TooManyFiles {
		t.Errorf("findings: %v", s.Observed.Findings)
	}
}

// While the repository cannot be read, the last good release serves and the status says what is wrong.
func TestRepositoryFault(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	r.await(first, Pushing)
	away := r.repo + ".away"
	if err := os.Rename(r.repo, away); err != nil {
		t.Fatal(err)
	}
	var s Status
	r.eventually("the fault", func() bool { s = r.status(); return s.Fault != "" })
	if s.Applied.Commit != first || s.Observed.State != Pushing || s.FaultSince.IsZero() {
		t.Errorf("status during the fault: %+v", s)
	}
	if rec, _ := r.watch().next(); rec.Commit() != first {
		t.Errorf("served during the fault: %+v", rec)
	}
	if err := os.Rename(away, r.repo); err != nil {
		t.Fatal(err)
	}
	if err := r.api.Post(t.Context(), "/v1/hint", nil, nil); err != nil { // do not wait for the backoff
		t.Fatal(err)
	}
	r.eventually("the end of the fault", func() bool { return r.status().Fault == "" })
	second := r.commit("Go on", files{web: webFile(81)})
	r.await(second, Pushing)
}

// A commit that cannot be stored waits, changes nothing, and is published when the state directory is well again.
func TestStateFault(t *testing.T) {
	for _, away := range []string{"releases/records", "releases/blobs", "applied.json"} {
		t.Run(away, func(t *testing.T) {
			r := newRig(t)
			first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
			r.start()
			r.await(first, Pushing)
			path := filepath.Join(r.cfg.StateDir, away)
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			second := r.commit("Go on", files{web: webFile(81)})
			r.await(second, Compiled)
			var s Status
			r.eventually("the fault", func() bool { s = r.status(); return s.Fault != "" })
			if s.Applied == nil || s.Applied.Commit != first || !strings.Contains(s.Fault, "publishing") && !strings.Contains(s.Fault, "storing") {
				t.Errorf("status during the fault: %+v, applied %+v", s, s.Applied)
			}
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
			if err := r.api.Post(t.Context(), "/v1/hint", nil, nil); err != nil { // do not wait for the backoff
				t.Fatal(err)
			}
			r.eventually("its end", func() bool { s = r.status(); return s.Fault == "" && s.Applied.Commit == second })
			if s.Applied.Epoch != 2 {
				t.Errorf("applied %+v", s.Applied)
			}
		})
	}
}

// Control planes say how far a release has come.
func TestPush(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	s := r.await(first, Pushing)
	push := func(want Push, state State, reason string) {
		t.Helper()
		r.eventually(fmt.Sprint(want, state, reason), func() bool {
			s = r.status()
			return cmp.Equal(s.Push, want) && s.Observed.State == state && strings.Contains(s.Observed.Reason, reason)
		})
	}
	push(Push{}, Pushing, "no control plane is connected")
	w := r.watch()
	one, _ := w.next()
	push(Push{ControlPlanes: 1}, Pushing, "no control plane has reported")
	w.report(one.Epoch, 1, 2, &proxyapi.ProxyNack{Workload: "shop/web-1", Reason: "too new"})
	r.eventually("the nack", func() bool { s = r.status(); return len(s.Push.Nacks) == 1 })
	if s.Observed.State != Pushing || !strings.Contains(s.Observed.Reason, "shop/web-1 refused it: too new") {
		t.Errorf("after a nack: %+v", s.Observed)
	}
	w.report(one.Epoch, 2, 2)
	push(Push{ControlPlanes: 1, Acked: 2, Total: 2}, Converged, "")

	second := r.commit("Go on", files{web: webFile(81)})
	two, _ := w.next()
	r.await(second, Pushing)
	push(Push{ControlPlanes: 1, Total: 2}, Pushing, "no control plane has reported")
	w.report(two.Epoch, 2, 2)
	push(Push{ControlPlanes: 1, Acked: 2, Total: 2}, Converged, "")
	if r.log.lines("commit converged", second) != 1 {
		t.Errorf("the log does not say once that %s converged:\n%s", second, r.log)
	}
}

// Only control planes whose key is allowed get anything; a key added to a file needs no restart.
func TestControlPlaneKeys(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	keys := filepath.Join(t.TempDir(), "control-planes")
	r.cfg.ControlPlaneKeys = []string{"@" + keys}
	r.start()
	r.await(first, Pushing)
	if _, err := r.dial().client.Report(t.Context(), &proxyapi.PushReport{}); status.Code(err) != codes.Unavailable {
		t.Errorf("an unknown key: %v", err)
	}
	mine := record.FormatKey(pinned.Public(r.plane))
	r.eventually("a log line with the refused key", func() bool { return r.log.lines("control plane refused", mine) == 1 })
	if err := os.WriteFile(keys, []byte("# control planes\nnonsense\n"+mine+" # the one here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if rec, _ := r.watch().next(); rec.Commit() != first {
		t.Errorf("got %+v", rec)
	}
	for _, bad := range []string{"nonsense", ""} {
		if _, err := parseAllowed([]string{bad}); err == nil {
			t.Errorf("key %q was taken", bad)
		}
	}
}

// A hint has the repository looked at now; whatever it carries is not read.
func TestHint(t *testing.T) {
	r := newRig(t)
	first := r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.cfg.Interval = time.Hour
	r.start()
	r.await(first, Pushing)
	url := "http://" + r.status().Listen.Hint + "/hint"
	for _, c := range []struct {
		method, body string
		want         int
	}{{"GET", "", 405}, {"PUT", "{}", 405}, {"POST", "", 202}, {"POST", `{"ref":"refs/heads/../../evil"`, 202},
		{"POST", strings.Repeat("x", 1<<20), 202}} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, url, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s with %d bytes: %v", c.method, len(c.body), err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s with %d bytes: %s, want %d", c.method, len(c.body), resp.Status, c.want)
		}
	}
	second := r.commit("Go on", files{web: webFile(81)})
	resp, err := http.Post(url, "text/plain", strings.NewReader("look"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r.await(second, Pushing)
}

// Strangers who connect and say nothing do not keep a hint out: the oldest of them goes.
func TestHintAmongSilentStrangers(t *testing.T) {
	r := newRig(t)
	r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	addr := r.status().Listen.Hint
	for range hintConns + 10 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	client := http.Client{Timeout: hintTimeout / 2} // before the strangers time out
	resp, err := client.Post("http://"+addr+"/hint", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Error(resp.Status)
	}
}

// A newer commit ends the work on an older one: here one whose evaluation would take until its limit.
func TestPreemption(t *testing.T) {
	r := newRig(t)
	r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	r.await(r.git("rev-parse", "HEAD"), Pushing)
	slow := r.commit("Count to a billion", files{web: webFile(80) + `
let n = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
services: shop: web: ports: {
	for a in n for b in n for c in n for d in n for e in n for f in n for g in n for h in n for i in n if a+b+c+d+e+f+g+h+i < 0 {
		"p": {port: 1, protocol: "http1"}
	}
}
`})
	r.await(slow, Verified)
	good := r.commit("Better not", files{web: webFile(81)})
	if s := r.await(good, Pushing); s.Applied.Commit != good {
		t.Errorf("applied %+v", s.Applied)
	}
	// The work is done by one goroutine in order: had the slow commit been finished first, the log would tell.
	if r.log.lines("commit rejected", slow)+r.log.lines("release published", slow) != 0 {
		t.Errorf("the older commit was finished first:\n%s", r.log)
	}
}

func TestOneReconcilerPerState(t *testing.T) {
	r := newRig(t)
	r.commit("Start", files{"mesh.cue": meshFile("example.org"), web: webFile(80)})
	r.start()
	err := Run(t.Context(), r.cfg)
	if !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second one: %v; want the number of the process that runs", err)
	}
}

// BenchmarkOneChangedFile is the processor time, children included, from a commit of one changed file in a repository of
// 1,000 services to its published release.
func BenchmarkOneChangedFile(b *testing.B) {
	r := newRig(b)
	fs := files{"mesh.cue": meshFile("example.org")}
	service := func(ns, n, port int) string {
		return fmt.Sprintf("package policy\n\nservices: ns%02d: svc%02d: {\n\tports: http: {port: %d, protocol: \"http1\"}\n"+
			"\tallow: next: from: [{service: \"ns%02d/svc%02d\"}]\n"+
			"\thttpRoutes: all: {match: [{path: prefix: \"/\"}], timeout: \"2s\"}\n}\n", ns, n, port, ns, (n+1)%20)
	}
	for ns := range 50 {
		for n := range 20 {
			fs[fmt.Sprintf("services/ns%02d/svc%02d.cue", ns, n)] = service(ns, n, 80)
		}
	}
	last := r.commit("Start", fs)
	r.cfg.Interval = 200 * time.Millisecond // as it is for local repositories
	r.start()
	r.await(last, Pushing)
	b.ResetTimer()
	before := cpu(b)
	var git time.Duration
	for i := range b.N {
		fork := cpu(b)
		last = r.commit(fmt.Sprint("Change ", i), files{"services/ns07/svc07.cue": service(7, 7, 81+i)})
		git += cpu(b) - fork
		r.await(last, Pushing)
	}
	b.ReportMetric(float64((cpu(b)-before-git).Milliseconds())/float64(b.N), "cpu-ms/commit")
}

// cpu is the processor time of this process and the children it has waited for.
func cpu(b *testing.B) time.Duration {
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}
