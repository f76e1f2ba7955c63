package source_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/reconciler/source"
)

// server serves a repository with git's own smart HTTP server, and counts.
type server struct {
	*httptest.Server
	URL      string       // of the repository
	sent     atomic.Int64 // bytes of bodies
	packs    atomic.Int64 // answered requests for a pack
	mu       sync.Mutex
	handlers []func(http.ResponseWriter, *http.Request) bool // each may answer instead
}

func (s *server) intercept(h func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers = append(s.handlers, h)
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func serve(t testing.TB, r *repo) *server { return serveWith(t, r, (*httptest.Server).Start) }

func serveWith(t testing.TB, r *repo, start func(*httptest.Server)) *server {
	t.Helper()
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  append([]string{"GIT_PROJECT_ROOT=" + r.dir, "GIT_HTTP_EXPORT_ALL=1"}, gitEnv...),
	}
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		handlers := s.handlers
		s.mu.Unlock()
		for _, h := range handlers {
			if h(w, req) {
				return
			}
		}
		if strings.HasSuffix(req.URL.Path, "/git-upload-pack") {
			s.packs.Add(1)
		}
		backend.ServeHTTP(counter{w, &s.sent}, req)
	}))
	start(s.Server)
	t.Cleanup(s.Server.Close)
	s.URL = s.Server.URL + "/.git"
	return s
}

func TestRemoteFetchesOnlyWhatIsNew(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{}
	for i := range 300 {
		files[fmt.Sprintf("services/ns%d/svc%d.cue", i%10, i)] = fmt.Sprintf("%x", make([]byte, i*7))
	}
	first := r.commit("first", files)
	srv := serve(t, r)
	dir := t.TempDir()
	s := open(t, source.Options{URL: srv.URL, Dir: dir})
	if s.Local() || s.Interval() < 24e9 || s.Interval() > 36e9 {
		t.Errorf("Local %v, Interval %v", s.Local(), s.Interval())
	}
	if _, err := s.Commit(first); err == nil {
		t.Error("a commit is known before the first fetch")
	}
	if c := fetch(t, s); c.Hash != first {
		t.Fatalf("tip %s, want %s", c.Hash, first)
	}
	if diff := cmp.Diff(files, contents(t, s, first)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// Nothing new: the refs are asked for, and no pack.
	packs := srv.packs.Load()
	fetch(t, s)
	if got := srv.packs.Load(); got != packs {
		t.Error("a pack was asked for although nothing is new")
	}

	// One changed file, also after a restart.
	for i := range 3 {
		if i == 2 {
			s = open(t, source.Options{URL: srv.URL, Dir: dir})
		}
		files["services/ns1/svc1.cue"] = fmt.Sprint("changed ", i)
		h := r.commit("next", files)
		before := srv.sent.Load()
		if c := fetch(t, s); c.Hash != h {
			t.Fatalf("tip %s, want %s", c.Hash, h)
		}
		if got := srv.sent.Load() - before; got > 5000 {
			t.Errorf("one changed file took %d bytes", got)
		}
		if diff := cmp.Diff(files, contents(t, s, h)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}

	// git itself finds nothing wrong with the clone, and sees where the fetch ended.
	clone := &repo{t, filepath.Join(dir, "clone.git")}
	clone.git("fsck", "--strict", "--no-dangling")
	if got, want := clone.git("rev-parse", "HEAD"), r.git("rev-parse", "main"); got != want {
		t.Errorf("the clone's HEAD is %s, want %s", got, want)
	}
	if got := clone.git("rev-list", "--count", "HEAD"); got != "4" {
		t.Errorf("the clone has %s commits, want the full history of 4", got)
	}
}

func TestRemoteForcePush(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a", policy)
	b := r.commit("b", map[string]string{"mesh.cue": "b"})
	r.git("tag", "-a", "-m", "v1", "v1", a)
	srv := serve(t, r)
	s := open(t, source.Options{URL: srv.URL})
	tag := open(t, source.Options{URL: srv.URL, Ref: "v1"})
	if got := fetch(t, s).Hash; got != b {
		t.Fatalf("tip %s, want %s", got, b)
	}
	if got := fetch(t, tag).Hash; got != a {
		t.Fatalf("tag %s, want %s", got, a)
	}
	packs := srv.packs.Load()
	r.git("reset", "-q", "--hard", a)
	if got := fetch(t, s).Hash; got != a {
		t.Errorf("pushed back: tip %s, want %s", got, a)
	}
	if srv.packs.Load() != packs {
		t.Error("a pack was asked for although the older commit is here")
	}
	c := r.commit("c", map[string]string{"mesh.cue": "c"})
	if got := fetch(t, s).Hash; got != c {
		t.Errorf("rewritten: tip %s, want %s", got, c)
	}
	if ok, err := s.IsAncestor(t.Context(), b, c); err != nil || ok {
		t.Errorf("b is an ancestor of c: %v, %v", ok, err)
	}
	r.git("checkout", "-q", "--orphan", "other")
	r.git("branch", "-q", "-D", "main")
	r.git("branch", "-q", "-m", "main")
	d := r.commit("d", map[string]string{"mesh.cue": "d"})
	if got := fetch(t, s).Hash; got != d {
		t.Errorf("unrelated history: tip %s, want %s", got, d)
	}
	if got := contents(t, s, b)["mesh.cue"]; got != "b" {
		t.Errorf("the older commit is lost: %q", got)
	}
	r.git("tag", "-f", "-a", "-m", "moved", "v1", d)
	if got := fetch(t, tag).Hash; got != d {
		t.Errorf("moved tag: %s, want %s", got, d)
	}
}

// Whatever happens to the clone between two fetches, it is made again, once, and all is as before.
func TestRemoteHeals(t *testing.T) {
	each := func(pattern string, f func(path string) error) func(string) error {
		return func(clone string) error {
			paths, err := filepath.Glob(filepath.Join(clone, pattern))
			if len(paths) == 0 {
				err = errors.New("nothing to damage")
			}
			for _, p := range paths {
				err = errors.Join(err, os.Chmod(p, 0o600), f(p))
			}
			return err
		}
	}
	flip := func(path string) error {
		b, err := os.ReadFile(path)
		for i := range b {
			b[i] ^= 0x5a
		}
		return errors.Join(err, os.WriteFile(path, b, 0o600))
	}
	half := func(path string) error {
		st, err := os.Stat(path)
		return errors.Join(err, os.Truncate(path, st.Size()/2))
	}
	for name, hurt := range map[string]func(clone string) error{
		"deleted":            os.RemoveAll,
		"objects deleted":    func(c string) error { return os.RemoveAll(filepath.Join(c, "objects")) },
		"packs deleted":      each("objects/pack/*.pack", os.Remove),
		"indexes deleted":    each("objects/pack/*.idx", os.Remove),
		"packs flipped":      each("objects/pack/*.pack", flip),
		"packs cut":          each("objects/pack/*.pack", half),
		"packs empty":        each("objects/pack/*.pack", func(p string) error { return os.Truncate(p, 0) }),
		"indexes cut":        each("objects/pack/*.idx", half),
		"indexes flipped":    each("objects/pack/*.idx", flip),
		"ref lost":           each("refs/heads/incoming", os.Remove),
		"ref flipped":        each("refs/heads/incoming", flip),
		"shallow flipped":    func(c string) error { return os.WriteFile(filepath.Join(c, "shallow"), []byte("?\n"), 0o600) },
		"another repository": each("heddle-origin", flip),
	} {
		for _, restart := range []bool{false, true} {
			for _, pushed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, restart=%v, pushed=%v", name, restart, pushed), func(t *testing.T) {
					r := newRepo(t)
					want := r.commit("first", policy)
					srv := serve(t, r)
					opts := source.Options{URL: srv.URL, Dir: t.TempDir()}
					s := open(t, opts)
					fetch(t, s)
					if err := hurt(filepath.Join(opts.Dir, "clone.git")); err != nil {
						t.Fatal(err)
					}
					if restart {
						s.Close()
						s = open(t, opts)
					}
					files := policy
					if pushed {
						files = maps(policy, "mesh.cue", "next")
						want = r.commit("next", files)
					}
					packs := srv.packs.Load()
					if got := fetch(t, s).Hash; got != want {
						t.Fatalf("tip %s, want %s", got, want)
					}
					if diff := cmp.Diff(files, contents(t, s, want)); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
					if got := srv.packs.Load() - packs; got > 2 {
						t.Errorf("%d packs were asked for", got)
					}
					if left, _ := filepath.Glob(filepath.Join(opts.Dir, "clone.git.*")); len(left) > 0 {
						t.Errorf("leftovers: %v", left)
					}
				})
			}
		}
	}
}

// A blob that is damaged deep inside is noticed when it is read, and gone after the next fetch.
func TestRemoteDamageFoundByReading(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", maps(policy, "zz", strings.Repeat("incompressible? no matter", 10)))
	srv := serve(t, r)
	opts := source.Options{URL: srv.URL, Dir: t.TempDir()}
	fetch(t, open(t, opts))
	s := open(t, opts) // nothing is in memory now
	sn, _, err := s.Snapshot(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	packs, _ := filepath.Glob(filepath.Join(opts.Dir, "clone.git/objects/pack/*.pack"))
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := 12; i < len(b)-20; i++ {
		b[i] = 0xff
	}
	os.Chmod(packs[0], 0o600)
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for _, f := range sn.Files {
		if _, err := sn.Read(f); err != nil {
			bad++
			if !strings.Contains(err.Error(), "cloned anew") {
				t.Errorf("error %v", err)
			}
		}
	}
	if bad == 0 {
		t.Fatal("no read noticed the damage")
	}
	fetch(t, s)
	for _, f := range sn.Files {
		if _, err := sn.Read(f); err != nil {
			t.Errorf("after the next fetch: %v", err)
		}
	}
}

func TestRemoteClonesAfreshWhenPacksPileUp(t *testing.T) {
	r := newRepo(t)
	r.commit("first", policy)
	srv := serve(t, r)
	opts := source.Options{URL: srv.URL, Dir: t.TempDir(), Limits: source.Limits{Packs: 3}}
	s := open(t, opts)
	count := func() int {
		packs, _ := filepath.Glob(filepath.Join(opts.Dir, "clone.git/objects/pack/*.pack"))
		return len(packs)
	}
	fetch(t, s)
	var applied string
	for i := range 3 {
		applied = r.commit("next", map[string]string{"n": fmt.Sprint(i)})
		sn, _, err := s.Snapshot(t.Context(), fetch(t, s).Hash)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sn.Read(sn.Files[0]); err != nil {
			t.Error(err)
		}
	}
	if got := count(); got != 1 {
		t.Errorf("%d packs after a fresh clone, want 1", got)
	}

	// While the applied commit lives only here, the clone is kept.
	if err := s.MarkApplied(applied); err != nil {
		t.Fatal(err)
	}
	r.git("reset", "-q", "--hard", "HEAD~1")
	for i := range 5 {
		r.commit("rewritten", map[string]string{"n": fmt.Sprint("rewritten ", i)})
		fetch(t, s)
	}
	if got := count(); got != 6 {
		t.Errorf("%d packs, want all 6 kept", got)
	}
	if _, err := s.Commit(applied); err != nil {
		t.Errorf("the applied commit is lost: %v", err)
	}
}

func TestRemoteCredentials(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", policy)
	const secret = "s3cr3t/t0ken"
	guarded := func(srv *server) {
		srv.intercept(func(w http.ResponseWriter, req *http.Request) bool {
			if user, pass, _ := req.BasicAuth(); user == "git" && pass == secret {
				return false
			}
			w.Header().Set("WWW-Authenticate", "Basic")
			// A server that repeats what it was sent.
			http.Error(w, "denied: "+req.Header.Get("Authorization")+"\n"+strings.Repeat("x", 1<<20), http.StatusUnauthorized)
			return true
		})
	}
	plain, tls := serve(t, r), serveWith(t, r, (*httptest.Server).StartTLS)
	guarded(plain)
	guarded(tls)
	dir := t.TempDir()
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})
	if err := errors.Join(os.WriteFile(token, []byte("old\n"), 0o600), os.WriteFile(ca, cert, 0o600)); err != nil {
		t.Fatal(err)
	}

	for _, srv := range []*server{plain, tls} {
		s := open(t, source.Options{URL: srv.URL, Auth: source.Auth{TokenFile: token, CAFile: ca}})
		if err := os.WriteFile(token, []byte("old\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Fetch(t.Context())
		if err == nil || !strings.Contains(err.Error(), "check the token") || len(err.Error()) > 600 {
			t.Errorf("401: %v", err)
		}
		if err := os.WriteFile(token, []byte(secret+"\n"), 0o600); err != nil { // rotated, without a restart
			t.Fatal(err)
		}
		if got := fetch(t, s).Hash; got != h {
			t.Errorf("tip %s, want %s", got, h)
		}
	}

	// In the URL: works, and shows nowhere, neither in errors nor on disk.
	inURL := strings.Replace(plain.URL, "http://", "http://git:s3cr3t%2Ft0ken@", 1)
	opts := source.Options{URL: inURL, Dir: t.TempDir()}
	s := open(t, opts)
	fetch(t, s)
	if strings.Contains(s.URL(), "s3cr3t") {
		t.Errorf("URL() = %s", s.URL())
	}
	for path := range state(t, opts.Dir) {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "s3cr3t") {
			t.Errorf("%s holds the password", path)
		}
	}
	broken := serve(t, r)
	broken.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		user, pass, _ := req.BasicAuth()
		http.Error(w, fmt.Sprint(req.URL, user, pass, req.Header), http.StatusInternalServerError)
		return true
	})
	for _, base := range []string{broken.URL, tls.URL, "http://127.0.0.1:1/x.git"} {
		url := strings.Replace(base, "://", "://git:s3cr3t%2Fwr0ng@", 1)
		s := open(t, source.Options{URL: url, Auth: source.Auth{CAFile: ca}})
		_, err := s.Fetch(t.Context())
		header := base64.StdEncoding.EncodeToString([]byte("git:s3cr3t/wr0ng"))
		if err == nil || strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), header) {
			t.Errorf("error %v", err)
		}
	}
}

func TestRemoteRedirects(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", policy)
	target := serve(t, r)
	var asked []string
	target.intercept(func(_ http.ResponseWriter, req *http.Request) bool {
		asked = append(asked, req.URL.Path+" "+req.Header.Get("Authorization"))
		return false
	})
	to := func(base string) *server {
		srv := serve(t, r)
		srv.intercept(func(w http.ResponseWriter, req *http.Request) bool {
			path, ok := strings.CutPrefix(req.URL.Path, "/old")
			if ok {
				http.Redirect(w, req, base+path+"?"+req.URL.RawQuery, http.StatusFound)
			}
			return ok
		})
		return srv
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cr3t"), 0o600); err != nil {
		t.Fatal(err)
	}
	away, home := to(target.Server.URL), to("")

	s := open(t, source.Options{URL: away.Server.URL + "/old/.git", Auth: source.Auth{TokenFile: token}})
	if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "redirects to "+target.Server.URL) {
		t.Errorf("with credentials, to another host: %v", err)
	}
	if len(asked) > 0 {
		t.Errorf("the other host was asked: %q", asked)
	}
	s = open(t, source.Options{URL: home.Server.URL + "/old/.git", Auth: source.Auth{TokenFile: token}})
	if got := fetch(t, s).Hash; got != h {
		t.Errorf("with credentials, within one host: %s", got)
	}
	s = open(t, source.Options{URL: away.Server.URL + "/old/.git"})
	if got := fetch(t, s).Hash; got != h || len(asked) == 0 {
		t.Errorf("without credentials, to another host: %s, %q", got, asked)
	}
	for _, a := range asked {
		if !strings.HasSuffix(a, " ") {
			t.Errorf("credentials were sent: %q", a)
		}
	}
}

// A server that hangs, at either of its two answers, holds a fetch no longer than its context; readers are not held.
func TestRemoteHonoursTheContext(t *testing.T) {
	r := newRepo(t)
	first := r.commit("first", policy)
	srv := serve(t, r)
	opts := source.Options{URL: srv.URL, Dir: t.TempDir()}
	s := open(t, opts)
	fetch(t, s)
	next := r.commit("next", map[string]string{"mesh.cue": "next"})

	for path, begin := range map[string]string{
		"/info/refs": "001e# service=git-upload-pack\n0000", "/git-upload-pack": "0008NAK\n",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		hanging := make(chan struct{})
		release := make(chan struct{})
		srv.intercept(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, path) || ctx.Err() != nil {
				return false
			}
			fmt.Fprint(w, begin)
			w.(http.Flusher).Flush()
			close(hanging)
			<-release
			return true
		})
		result := make(chan error)
		go func() { _, err := s.Fetch(ctx); result <- err }()
		<-hanging
		if got := contents(t, s, first)["mesh.cue"]; got != policy["mesh.cue"] {
			t.Errorf("a reader saw %q", got)
		}
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("hanging at %s: %v", path, err)
		}
		close(release)
	}
	if got := fetch(t, s).Hash; got != next {
		t.Errorf("afterwards: %s, want %s", got, next)
	}
	if left, _ := filepath.Glob(filepath.Join(opts.Dir, "clone.git/objects/pack/tmp_*")); len(left) > 0 {
		t.Errorf("leftovers: %v", left)
	}
}

func TestRemoteFaultsKeepWhatIsHere(t *testing.T) {
	r := newRepo(t)
	h := r.commit("first", policy)
	srv := serve(t, r)
	opts := source.Options{URL: srv.URL, Dir: t.TempDir(), Limits: source.Limits{FetchSize: 3000}}
	s := open(t, opts)
	fetch(t, s)
	big := make([]byte, 20_000)
	for i, x := 0, uint32(1); i < len(big); i++ { // xorshift: bytes that do not compress
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		big[i] = byte(x)
	}
	r.commit("big", map[string]string{"big": string(big)})
	if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 3000 bytes") {
		t.Errorf("too much: %v", err)
	}
	r.git("reset", "-q", "--hard", h)
	r.commit("next", map[string]string{"mesh.cue": "next"})
	truncate := true
	srv.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if !truncate || !strings.HasSuffix(req.URL.Path, "/git-upload-pack") {
			return false
		}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		fmt.Fprintf(w, "0008NAK\n0012\x01PACK\x00\x00\x00\x02\x00")
		return true
	})
	if _, err := s.Fetch(t.Context()); err == nil {
		t.Error("half a pack was accepted")
	}
	if diff := cmp.Diff(policy, contents(t, s, h)); diff != "" {
		t.Errorf("after faults (-want +got):\n%s", diff)
	}
	truncate = false
	if got, want := fetch(t, s).Hash, r.git("rev-parse", "main"); got != want {
		t.Errorf("after healing: %s, want %s", got, want)
	}
	srv.Server.Close()
	if _, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("dead server: %v", err)
	}
	if diff := cmp.Diff(maps(policy, "mesh.cue", "next"), contents(t, s, r.git("rev-parse", "main"))); diff != "" {
		t.Errorf("without a server (-want +got):\n%s", diff)
	}
}
