package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	td  = "mesh.test"
	web = spiffe.ID("spiffe://mesh.test/ns/shop/sa/web")
)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func request(t *testing.T, key crypto.Signer, c x509.CertificateRequest) []byte {
	t.Helper()
	return must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &c, key))
}

func ec(t *testing.T) *ecdsa.PrivateKey {
	return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// check has both judges verify a chain, at the time it is.
func check(t *testing.T, ca *CA, chain [][]byte) *x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range chain {
		certs = append(certs, must[*x509.Certificate](t)(x509.ParseCertificate(der)))
	}
	b, _ := ca.Bundle()
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := b.Verify(certs, time.Now(), usage); err != nil {
			t.Errorf("we refuse what was signed: %v", err)
		}
	}
	judge := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(td), b.Roots)
	if _, _, err := x509svid.Verify(certs, judge, x509svid.WithTime(time.Now())); err != nil {
		t.Errorf("go-spiffe refuses what was signed: %v", err)
	}
	return certs[0]
}

func TestSign(t *testing.T) {
	ca := must[*CA](t)(Open(t.TempDir(), 0))
	key := ec(t)
	if _, _, err := ca.Sign(request(t, key, x509.CertificateRequest{}), web, "e1"); !errors.Is(err, ErrUnbound) {
		t.Errorf("before the trust domain is known: %v", err)
	}
	if err := ca.Bind(td); err != nil {
		t.Fatal(err)
	}
	uri := func(s string) []*url.URL { return []*url.URL{must[*url.URL](t)(url.Parse(s))} }
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	good := request(t, key, x509.CertificateRequest{URIs: uri(string(web))})
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		csr  []byte
		id   spiffe.ID
		want string // part of the refusal
	}{
		"its identity":      {good, web, ""},
		"no identity":       {request(t, key, x509.CertificateRequest{}), web, ""},
		"Ed25519":           {request(t, edKey, x509.CertificateRequest{}), web, ""},
		"RSA 2048":          {request(t, must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048)), x509.CertificateRequest{}), web, ""},
		"RSA 1024":          {request(t, must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024)), x509.CertificateRequest{}), web, "1024 bits"},
		"P-384":             {request(t, p384, x509.CertificateRequest{}), web, "use P-256"},
		"another identity":  {request(t, key, x509.CertificateRequest{URIs: uri("spiffe://mesh.test/ns/shop/sa/api")}), web, "what was proven"},
		"a DNS name":        {request(t, key, x509.CertificateRequest{DNSNames: []string{"a"}}), web, "other names"},
		"an e-mail address": {request(t, key, x509.CertificateRequest{EmailAddresses: []string{"a@b"}}), web, "other names"},
		"a forged request":  {forged, web, "own key"},
		"noise":             {[]byte("noise"), web, "refused"},
		"a foreign identity": {request(t, key, x509.CertificateRequest{}), "spiffe://other.test/web",
			"not of trust domain"},
	} {
		chain, notAfter, err := ca.Sign(c.csr, c.id, "e1")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want == "":
			leaf := check(t, ca, chain)
			if left := time.Until(notAfter); left > LeafTTL || left < LeafTTL-time.Minute || len(leaf.DNSNames) != 0 || leaf.Subject.String() != "SERIALNUMBER=e1" {
				t.Errorf("%s: ends %v, names %v, subject %q", name, notAfter, leaf.DNSNames, leaf.Subject)
			}
		case err == nil || !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestKeptOnDisk(t *testing.T) {
	dir := t.TempDir()
	ca := must[*CA](t)(Open(dir, 0))
	if err := ca.Bind(td); err != nil {
		t.Fatal(err)
	}
	chain, _, err := ca.Sign(request(t, ec(t), x509.CertificateRequest{}), web, "e1")
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := must[string](t)(ca.Fingerprint())
	for _, f := range []string{"root.pem", "intermediate.pem", "bundle.json"} {
		info := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, f)))
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, info.Mode().Perm())
		}
	}

	again := must[*CA](t)(Open(dir, 0))
	check(t, again, chain)
	if got := must[string](t)(again.Fingerprint()); got != fingerprint || again.Status().Generation != 1 {
		t.Errorf("a restart made another authority: %s, generation %d", got, again.Status().Generation)
	}
	if err := again.Bind("other.test"); !errors.Is(err, ErrTrustDomain) {
		t.Errorf("another trust domain: %v", err)
	}

	// Without its intermediate it makes a new one; chains of the old one stay good.
	if err := os.Remove(filepath.Join(dir, "intermediate.pem")); err != nil {
		t.Fatal(err)
	}
	check(t, must[*CA](t)(Open(dir, 0)), chain)

	for name, damage := range map[string]func(t *testing.T, dir string) error{
		"a root that others may read": func(_ *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "root.pem"), 0o644) },
		"a damaged root": func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "root.pem"), []byte("x"), 0o600)
		},
		"a lost root":      func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "root.pem")) },
		"a damaged bundle": func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, "bundle.json"), 20) },
		"another root's intermediate": func(t *testing.T, dir string) error {
			other := t.TempDir()
			if err := must[*CA](t)(Open(other, 0)).Bind(td); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, "intermediate.pem"), filepath.Join(dir, "intermediate.pem"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := must[*CA](t)(Open(dir, 0)).Bind(td); err != nil {
				t.Fatal(err)
			}
			if err := damage(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, 0); err == nil {
				t.Error("it starts all the same")
			}
		})
	}
}

// TestRenewal lives through ten years: the control plane's own certificate and the intermediate are always good, nothing
// outlives the root, and before it ends the authority warns and then refuses.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := must[*CA](t)(Open(t.TempDir(), 0))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- ca.Run(ctx) }()
		if err := ca.Bind(td); err != nil {
			t.Fatal(err)
		}
		born, key := time.Now(), ec(t)
		csr := request(t, key, x509.CertificateRequest{})
		intermediates := map[string]bool{}
		for day := 0; time.Since(born) < RootLife-LeafTTL; day += 20 {
			chain, notAfter, err := ca.Sign(csr, web, "e1")
			if err != nil {
				t.Fatalf("day %d: %v", day, err)
			}
			inter := must[*x509.Certificate](t)(x509.ParseCertificate(chain[1]))
			intermediates[string(inter.Raw)] = true
			b, _ := ca.Bundle()
			if notAfter.After(inter.NotAfter) || inter.NotAfter.After(b.Roots[0].NotAfter) {
				t.Fatalf("day %d: a certificate outlives its issuer", day)
			}
			check(t, ca, chain)
			server, err := ca.ServerCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			check(t, ca, server.Certificate)
			if left := server.Leaf.NotAfter.Sub(time.Now()); left < LeafTTL/4 {
				t.Fatalf("day %d: the control plane's certificate has %v left", day, left)
			}
			left := RootLife - time.Since(born)
			if s := ca.Status(); (s.Warning != "") != (left < warning) || s.Fault != "" {
				t.Fatalf("day %d, %v before the end: status is %+v", day, left, s)
			}
			time.Sleep(min(20*24*time.Hour, max(time.Hour, left-LeafTTL-time.Minute)))
		}
		if n := len(intermediates); n < 40 || n > 120 {
			t.Errorf("%d intermediates in ten years", n)
		}
		time.Sleep(2 * time.Minute)
		if _, _, err := ca.Sign(csr, web, "e1"); !errors.Is(err, ErrExpiring) {
			t.Errorf("a day before the root ends: %v", err)
		}
		if s := ca.Status(); s.Fault == "" || s.Warning == "" {
			t.Errorf("a day before the root ends: status is %+v", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestBindOnFullDisk: an authority whose bundle could not be kept is not half there. It says so, and the next release
// tries again, with the root that is on disk already.
func TestBindOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	ca := must[*CA](t)(Open(dir, 0))
	if err := os.MkdirAll(filepath.Join(dir, "bundle.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ca.Bind(td); err == nil {
		t.Fatal("bound without a bundle")
	}
	if s := ca.Status(); s.Fault == "" {
		t.Errorf("status is %+v", s)
	}
	if _, _, err := ca.Sign(request(t, ec(t), x509.CertificateRequest{}), web, "e1"); err == nil {
		t.Error("signed without a bundle")
	}
	root := must[[]byte](t)(os.ReadFile(filepath.Join(dir, "root.pem")))
	if err := os.RemoveAll(filepath.Join(dir, "bundle.json")); err != nil {
		t.Fatal(err)
	}
	if err := ca.Bind(td); err != nil {
		t.Fatal(err)
	}
	chain, _, err := ca.Sign(request(t, ec(t), x509.CertificateRequest{}), web, "e1")
	if err != nil {
		t.Fatal(err)
	}
	check(t, ca, chain)
	if string(root) != string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "root.pem")))) {
		t.Error("a second root was made")
	}
}

// TestWallClock: certificates end by the wall clock. The monotonic one stands still while a machine sleeps, so a renewal
// that was due by it alone would come hours after the certificate has ended.
func TestWallClock(t *testing.T) {
	ca := must[*CA](t)(Open(t.TempDir(), 0))
	if err := ca.Bind(td); err != nil {
		t.Fatal(err)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.renewServer != ca.renewServer.Round(0) {
		t.Errorf("the renewal is due at %v, by the monotonic clock", ca.renewServer)
	}
}

// TestClockSetBack: an issuer from the future is replaced, since nobody accepts what it signs before that.
func TestClockSetBack(t *testing.T) {
	ca := must[*CA](t)(Open(t.TempDir(), 0))
	if err := ca.Bind(td); err != nil {
		t.Fatal(err)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	next, err := newIntermediate(ca.root, time.Now().Add(60*24*time.Hour), time.Now().Add(150*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ca.inter = next
	if err := ca.renew(time.Now()); err != nil {
		t.Fatal(err)
	}
	if ca.inter.cert.NotBefore.After(time.Now()) {
		t.Errorf("the intermediate begins %v", ca.inter.cert.NotBefore)
	}
}
