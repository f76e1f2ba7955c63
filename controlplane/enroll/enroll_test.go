package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const td = "mesh.test"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string, m *mesh.Mesh) *Register {
	t.Helper()
	ca, err := identity.Open(filepath.Join(dir, "ca"), 0)
	must(t, err)
	must(t, ca.Bind(td))
	r, err := Open(filepath.Join(dir, "enrolments"), ca, func() *mesh.Mesh { return m })
	must(t, err)
	return r
}

func shop(workloads ...mesh.Workload) *mesh.Mesh {
	m := &mesh.Mesh{Settings: mesh.Settings{TrustDomain: td}, Workloads: workloads}
	for _, n := range []mesh.ServiceName{"shop/api", "shop/web"} {
		m.Inbound = append(m.Inbound, mesh.Inbound{Service: n, Identities: []string{string(spiffe.ServiceID(td, n))}})
	}
	return m
}

type host struct {
	t   *testing.T
	key *ecdsa.PrivateKey
}

func newHost(t *testing.T) host {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return host{t, key}
}

func (h host) ask(workload string, tok *JoinToken) *proxyapi.EnrolRequest {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(h.t, err)
	q := &proxyapi.EnrolRequest{Workload: workload, Time: timestamppb.Now()}
	q.Csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(h.t, err)
	q.HostKey, err = x509.MarshalPKIXPublicKey(&h.key.PublicKey)
	must(h.t, err)
	if tok != nil {
		q.TokenId = tok.ID
		q.TokenSecret, err = base64.RawURLEncoding.DecodeString(tok.Secret)
		must(h.t, err)
	}
	q.Proof, err = ecdsa.SignASN1(rand.Reader, h.key, proxyapi.EnrolDigest(q))
	must(h.t, err)
	return q
}

func newToken(t *testing.T, r *Register, workload string, service mesh.ServiceName, ttl time.Duration) *JoinToken {
	t.Helper()
	s, _, err := r.NewToken(workload, service, ttl)
	must(t, err)
	tok, err := ParseToken(s)
	must(t, err)
	return tok
}

func TestTokenLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, t.TempDir(), shop())
		tok, late := newToken(t, r, "shop/web-1", "shop/web", 0), newToken(t, r, "shop/web-2", "shop/web", 0)
		h := newHost(t)
		time.Sleep(TokenTTL - time.Minute)
		_, err := r.Enrol(t.Context(), h.ask("shop/web-1", tok))
		must(t, err)
		time.Sleep(2 * time.Minute)
		if _, err := r.Enrol(t.Context(), newHost(t).ask("shop/web-2", late)); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("after its end a token gives %v", err)
		}
		// A host that restarts offers its old token again; its key proves enough, for ever.
		time.Sleep(30 * 24 * time.Hour)
		_, err = r.Enrol(t.Context(), h.ask("shop/web-1", tok))
		must(t, err)
		newToken(t, r, "shop/web-3", "shop/web", 0) // sweeps
		if len(r.tokens) != 1 {
			t.Errorf("%d tokens are kept", len(r.tokens))
		}
	})
}

// A crash between the two writes of an enrolment lets the same host try again, and nobody else.
func TestCrashWhileRegistering(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shop())
	tok, h := newToken(t, r, "shop/web-1", "shop/web", 0), newHost(t)
	_, err := r.Enrol(t.Context(), h.ask("shop/web-1", tok))
	must(t, err)
	must(t, os.Remove(r.hostPath("shop/web-1")))

	r = open(t, dir, shop())
	if r.Enrolled("shop/web-1") {
		t.Fatal("the enrolment was not lost")
	}
	if _, err := r.Enrol(t.Context(), newHost(t).ask("shop/web-1", tok)); err == nil || !strings.Contains(err.Error(), "another host key") {
		t.Errorf("another host: %v", err)
	}
	_, err = r.Enrol(t.Context(), h.ask("shop/web-1", tok))
	must(t, err)
	r = open(t, dir, shop())
	_, err = r.Enrol(t.Context(), h.ask("shop/web-1", nil))
	must(t, err)
}

// An enrolment that was written before enrolments had an id counts for nothing until a token makes it anew: no
// certificate could be bound to it.
func TestEnrolmentWithoutID(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shop())
	h := newHost(t)
	_, err := r.Enrol(t.Context(), h.ask("shop/web-1", newToken(t, r, "shop/web-1", "shop/web", 0)))
	must(t, err)
	old := *r.hosts["shop/web-1"]
	old.ID = ""
	b, err := json.Marshal(old)
	must(t, err)
	must(t, durable.WriteSealed(r.hostPath("shop/web-1"), b, 0o600))

	r = open(t, dir, shop())
	if _, err := r.Enrol(t.Context(), h.ask("shop/web-1", nil)); err == nil || !strings.Contains(err.Error(), "heddle token create") {
		t.Errorf("the host key alone: %v", err)
	}
	reply, err := r.Enrol(t.Context(), h.ask("shop/web-1", newToken(t, r, "shop/web-1", "shop/web", 0)))
	must(t, err)
	leaf, err := x509.ParseCertificate(reply.Certificate.Chain[0])
	must(t, err)
	must(t, r.Bound("shop/web-1", leaf))
}

// A workload that moved stays where it went: the token of the host that it left, though it lasts, brings it back no more
// than that host's key does.
func TestMoving(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shop())
	first, second, spare := newToken(t, r, "shop/web-1", "shop/web", 0), newToken(t, r, "shop/web-1", "shop/web", 0), newToken(t, r, "shop/web-1", "shop/web", 0)
	from, to := newHost(t), newHost(t)
	serial := func(h host, tok *JoinToken) string {
		t.Helper()
		resp, err := r.Enrol(t.Context(), h.ask("shop/web-1", tok))
		must(t, err)
		leaf, err := x509.ParseCertificate(resp.Certificate.Chain[0])
		must(t, err)
		if err := r.Bound("shop/web-1", leaf); err != nil {
			t.Error(err)
		}
		return leaf.Subject.SerialNumber
	}
	before := serial(from, first)
	if again := serial(from, nil); again != before || before == "" {
		t.Errorf("the same host's certificates are of enrolments %q and %q", before, again)
	}
	after := serial(to, second)
	if after == before {
		t.Error("another host has the same enrolment")
	}
	for range 2 { // after a restart too
		for tok, want := range map[*JoinToken]string{first: "from another host since", nil: "another host key"} {
			if _, err := r.Enrol(t.Context(), from.ask("shop/web-1", tok)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("the host that was left: %v, want %q", err, want)
			}
		}
		if got := serial(to, second); got != after {
			t.Errorf("the enrolment %q became %q", after, got)
		}
		r = open(t, dir, shop())
	}
	// A token that nobody used is an operator's word, and moves it back.
	if serial(from, spare) == before {
		t.Error("a workload that came back has its old enrolment")
	}
}

func TestSecretsAreNotKept(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shop())
	tok := newToken(t, r, "shop/web-1", "shop/web", 0)
	secret, err := base64.RawURLEncoding.DecodeString(tok.Secret)
	must(t, err)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b, secret) || bytes.Contains(b, []byte(tok.Secret)) || bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(secret))) {
			t.Errorf("%s has the token's secret", path)
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	}))
	stolen := *tok
	stolen.Secret = base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	if _, err := r.Enrol(t.Context(), newHost(t).ask("shop/web-1", &stolen)); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("a wrong secret: %v", err)
	}
}

// Policy decides what a declared workload runs and who it is, whatever a token says; nobody is given the control
// plane's identity.
func TestPolicyGrants(t *testing.T) {
	m := shop(mesh.Workload{Name: "shop/api-1", Service: "shop/api", Identity: "spiffe://mesh.test/vm/api"},
		mesh.Workload{Name: "shop/evil", Service: "shop/api", Identity: string(spiffe.ControlPlaneID(td))})
	r := open(t, t.TempDir(), m)
	if _, _, err := r.NewToken("shop/api-1", "shop/web", 0); err == nil || !strings.Contains(err.Error(), "runs shop/api") {
		t.Errorf("a token against policy: %v", err)
	}
	resp, err := r.Enrol(t.Context(), newHost(t).ask("shop/api-1", newToken(t, r, "shop/api-1", "shop/api", 0)))
	must(t, err)
	if resp.Service != "shop/api" || resp.Identity != "spiffe://mesh.test/vm/api" {
		t.Errorf("granted %s of %s", resp.Identity, resp.Service)
	}
	if _, err := r.Enrol(t.Context(), newHost(t).ask("shop/evil", newToken(t, r, "shop/evil", "shop/api", 0))); err == nil || !strings.Contains(err.Error(), "no workload gets") {
		t.Errorf("the control plane's identity: %v", err)
	}
	for _, c := range []struct {
		workload, service string
		ttl               time.Duration
	}{{"web", "shop/web", 0}, {"shop/web", "web", 0}, {"shop/../x", "shop/web", 0}, {"Shop/web", "shop/web", 0}, {"shop/web-1", "shop/web", -1}, {"shop/web-1", "shop/web", 365 * 24 * time.Hour}} {
		if _, _, err := r.NewToken(c.workload, mesh.ServiceName(c.service), c.ttl); err == nil {
			t.Errorf("a token for %+v is made", c)
		}
	}
}
