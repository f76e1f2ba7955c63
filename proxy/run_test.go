package proxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/proxy/identity"
)

// lines is a log whose lines can be waited for.
type lines struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.b.Write(b)
}

// wait returns the first line that has a text.
func (l *lines) wait(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		all, more := l.b.String(), l.more
		l.mu.Unlock()
		for line := range strings.Lines(all) {
			if strings.Contains(line, text) {
				return line
			}
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("the log never had %q:\n%s", text, all)
		}
	}
}

func joinToken(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(map[string]string{"id": "a", "secret": "c2VjcmV0", "workload": "shop/web-1", "service": "shop/web", "fingerprint": "00"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("heddle-join-1."+base64.RawURLEncoding.EncodeToString(b)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// closedPort is an address on which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func base(t *testing.T) Config {
	none := closedPort(t)
	return Config{
		Version: "v0.0.0-test", StateDir: filepath.Join(t.TempDir(), "state"), ControlPlane: none, Enrolment: none,
		Inbound: "127.0.0.1:0", Outbound: "127.0.0.1:0", Admin: "127.0.0.1:0", Drain: 5 * time.Second,
		Upstreams: []Upstream{{"shop/ledger", "tcp", "127.0.0.1:0"}}, Expose: map[string]string{"http": "127.0.0.1:0"},
	}
}

// TestRunNewWorkload: a new workload without a control plane is alive, not ready, says what it waits for, serves
// nothing, and ends when it is told to.
func TestRunNewWorkload(t *testing.T) {
	c := base(t)
	c.JoinTokenFile = joinToken(t)
	log := &lines{more: make(chan struct{})}
	ctx, cancel := context.WithCancel(zerolog.New(log).WithContext(t.Context()))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	at := map[string]string{}
	for _, what := range []string{"inbound", "expose http", "outbound", "upstream shop/ledger:tcp", "admin"} {
		var l struct{ Address string }
		if err := json.Unmarshal([]byte(log.wait(t, `"component":"`+what+`"`)), &l); err != nil {
			t.Fatal(err)
		}
		at[what] = l.Address
	}
	log.wait(t, "nothing is served before the first config")

	do := func(method, path, body string, header ...string) (int, string, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+at["admin"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b), resp.Header
	}
	level := zerolog.GlobalLevel()
	defer zerolog.SetGlobalLevel(level)
	for _, test := range []struct {
		method, path, body string
		header             []string
		code               int
		want               string
	}{
		{"GET", "/live", "", nil, 200, "live"},
		{"GET", "/ready", "", nil, 503, "waiting for the first enrolment of workload shop/web-1"},
		{"GET", "/metrics", "", nil, 200, "heddle_control_plane_connected 0\n"},
		{"GET", "/config", "", nil, 200, `"says": "waiting for the first enrolment`},
		{"GET", "/log-level", "", nil, 200, level.String()},
		{"PUT", "/log-level", "error", nil, 200, "error"},
		{"GET", "/log-level", "", nil, 200, "error"},
		{"PUT", "/log-level", "loud", nil, 400, "trace debug info"},
		{"PUT", "/log-level", "debug", []string{"Origin", "http://evil.test"}, 403, "loopback"},
		{"POST", "/shutdown", "", []string{"Origin", "http://evil.test"}, 403, "loopback"},
		{"GET", "/shutdown", "", nil, 405, ""},
		{"GET", "/", "", nil, 404, ""},
	} {
		if code, body, _ := do(test.method, test.path, test.body, test.header...); code != test.code || !strings.Contains(body, test.want) {
			t.Errorf("%s %s: %d %s; want %d and %q", test.method, test.path, code, body, test.code, test.want)
		}
	}
	zerolog.SetGlobalLevel(level)
	_, body, h := do("GET", "/metrics", "", "Accept-Encoding", "br, gzip")
	z, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || h.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v: %v", h, err)
	}
	if b, err := io.ReadAll(z); err != nil || !strings.Contains(string(b), "# TYPE heddle_control_plane_connected gauge\n") {
		t.Errorf("compressed metrics: %s, %v", b, err)
	}

	// Fails closed: a stranger at the exposed port gets nothing.
	conn, err := net.Dial("tcp", at["expose http"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if b, _ := io.ReadAll(conn); bytes.HasPrefix(b, []byte("HTTP/1.1 2")) {
		t.Errorf("before the first config: %s", b)
	}
	if err := Run(ctx, c); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("a second sidecar on the same state directory: %v", err)
	}

	if code, _, _ := do("POST", "/shutdown", ""); code != 200 {
		t.Errorf("POST /shutdown: %d", code)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	for what, a := range at {
		if c, err := net.Dial("tcp", a); err == nil {
			c.Close()
			t.Errorf("%s is still listened on", what)
		}
	}
}

// freePort is an address that nothing listened on a moment ago.
func freePort(t *testing.T) string {
	ln := listen(t)
	defer ln.Close()
	return ln.Addr().String()
}

// TestRunRefuses: mistakes are found before anything is served, and say what to do.
func TestRunRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"outbound on the network", func(c *Config) { c.Outbound = "0.0.0.0:4140" }, "use 127.0.0.1"},
		{"outbound on an address", func(c *Config) { c.Outbound = "10.0.0.1:4140" }, "use 127.0.0.1"},
		{"outbound everywhere", func(c *Config) { c.Outbound = ":4140" }, "use 127.0.0.1"},
		{"outbound by a name", func(c *Config) { c.Outbound = "localhost.evil.test:4140" }, "use 127.0.0.1"},
		{"upstream on the network", func(c *Config) { c.Upstreams[0].Listen = "[::]:1" }, "--listen shop/ledger:tcp"},
		{"no control plane", func(c *Config) { c.ControlPlane = "" }, "--control-plane is missing"},
		{"no enrolment", func(c *Config) { c.Enrolment = "host" }, "--enrolment"},
		{"no state", func(c *Config) { c.StateDir = "" }, "--state"},
		{"no advertised address", func(c *Config) { c.Inbound = "0.0.0.0:0" }, "--advertise"},
		{"advertised everywhere", func(c *Config) { c.Advertise = "0.0.0.0:1" }, "--advertise"},
		{"advertised by name", func(c *Config) { c.Advertise = "host:1" }, "--advertise"},
		{"application without host", func(c *Config) { c.Apps = map[string]string{"http": ":80"} }, "http=127.0.0.1:8080"},
		{"application is the sidecar itself", func(c *Config) {
			c.Inbound = freePort(t)
			c.Apps = map[string]string{"http": c.Inbound}
		}, "this sidecar's own listeners"},
		{"application is the sidecar, by a name", func(c *Config) {
			c.Expose["http"] = freePort(t)
			c.Apps = map[string]string{"http": "localhost:" + c.Expose["http"][len("127.0.0.1:"):]}
		}, "this sidecar's own listeners"},
		{"exposed without port", func(c *Config) { c.Expose["http"] = "127.0.0.1" }, "--expose http"},
		{"port that is none", func(c *Config) { c.Admin = "127.0.0.1:99999" }, "--admin"},
	} {
		c := base(t)
		test.change(&c)
		err := Run(t.Context(), c)
		var mine *ConfigError
		if !errors.As(err, &mine) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want a mistake with %q", test.name, err, test.want)
		}
	}
	if err := Run(t.Context(), base(t)); !errors.Is(err, identity.ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
	c := base(t)
	c.JoinTokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(c.JoinTokenFile, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no join token") || strings.Contains(err.Error(), "secret") {
		t.Errorf("with something else than a token: %v", err)
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]string{
		"shop/ledger:tcp=127.0.0.1:5432": "shop/ledger:tcp=127.0.0.1:5432",
		"shop/ledger:5432=[::1]:0":       "shop/ledger:5432=[::1]:0",
		"shop/ledger=127.0.0.1:0":        "",
		"ledger:tcp=127.0.0.1:0":         "",
		"a/b/c:tcp=127.0.0.1:0":          "",
		"/b:tcp=127.0.0.1:0":             "",
		"":                               "",
	} {
		u, err := ParseUpstream(in)
		if got := u.String(); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

func TestCgroupLimit(t *testing.T) {
	root, self := t.TempDir(), filepath.Join(t.TempDir(), "cgroup")
	write := func(path, s string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(s), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(self, "0::/pod/app\n")
	write(filepath.Join(root, "memory.max"), "max\n")
	write(filepath.Join(root, "pod", "memory.max"), "1000\n")
	write(filepath.Join(root, "pod", "app", "memory.max"), "max\n")
	if got := cgroupLimit(self, root); got != 1000 {
		t.Errorf("the limit of the parent is %d, want 1000", got)
	}
	write(filepath.Join(root, "pod", "app", "memory.max"), "500\n")
	if got := cgroupLimit(self, root); got != 500 {
		t.Errorf("the own limit is %d, want 500", got)
	}
	if got := cgroupLimit(filepath.Join(root, "nothing"), root); got != 0 {
		t.Errorf("without control groups it is %d", got)
	}
}
