package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	td    = "shop.test"
	webID = "spiffe://shop.test/ns/shop/sa/web"
	apiID = "spiffe://shop.test/ns/shop/sa/api"
)

// authority signs for a test.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newAuthority(t *testing.T) *authority {
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: td}}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &authority{t, key, must[*x509.Certificate](t)(x509.ParseCertificate(der))}
}

func (a *authority) bundle() *spiffe.Bundle {
	return &spiffe.Bundle{TrustDomain: td, Generation: 1, Roots: []*x509.Certificate{a.cert}}
}

// leaf signs for a key; change, where not nil, makes it a bad one.
func (a *authority) leaf(pub any, id string, change func(*x509.Certificate)) []byte {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{must[*url.URL](a.t)(url.Parse(id))}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(tmpl)
	}
	return must[[]byte](a.t)(x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key))
}

func (a *authority) svid(id string) *identity.SVID {
	key, csr, err := identity.NewRequest(spiffe.ID(id))
	if err != nil {
		a.t.Fatal(err)
	}
	r := must[*x509.CertificateRequest](a.t)(x509.ParseCertificateRequest(csr))
	return must[*identity.SVID](a.t)(identity.NewSVID([][]byte{a.leaf(r.PublicKey, id, nil)}, key, a.bundle(), time.Now()))
}

func (a *authority) source(id string) *identity.Source {
	s := identity.NewSource(nil)
	s.Set(a.svid(id), a.bundle())
	return s
}

// handshake connects two configs over loopback and returns both ends' errors and the server's state.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, state tls.ConnectionState) {
	t.Helper()
	ln := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		if serverErr = s.Handshake(); serverErr == nil {
			state = s.ConnectionState()
			_, serverErr = s.Write([]byte("x"))
		}
	}()
	c := must[net.Conn](t)(net.Dial("tcp", ln.Addr().String()))
	defer c.Close()
	cl := tls.Client(c, client)
	if clientErr = cl.Handshake(); clientErr == nil {
		_, clientErr = io.ReadFull(cl, make([]byte, 1)) // in TLS 1.3 the client learns only now that the server refused it
	}
	c.Close()
	<-done
	return serverErr, clientErr, state
}

func sni(name string) bool { return name == "port.heddle.invalid" }

func TestHandshake(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	want := []spiffe.ID{apiID}
	expired := identity.NewSource(func() time.Time { return time.Now().Add(2 * time.Hour) })
	expired.Set(a.svid(webID), a.bundle())
	api, web := a.source(apiID), a.source(webID)
	ok := func() *tls.Config { return web.ClientTLS("port.heddle.invalid", want, spiffe.ALPNHTTP1) }
	for _, test := range []struct {
		name   string
		server *identity.Source
		client *tls.Config
		want   string // in either end's error; empty: none
	}{
		{"both prove themselves", api, ok(), ""},
		{"server of another identity", a.source(webID), ok(), "expected was one of"},
		{"server of another root", other.source(apiID), ok(), "unknown authority"},
		{"client of another root", api, other.source(webID).ClientTLS("port.heddle.invalid", want, spiffe.ALPNHTTP1), "unknown authority"},
		{"client without certificate", api, &tls.Config{InsecureSkipVerify: true, ServerName: "port.heddle.invalid", NextProtos: []string{spiffe.ALPNHTTP1}}, "didn't provide a certificate"},
		{"client without protocol", api, web.ClientTLS("port.heddle.invalid", want), "no application protocol"},
		{"client of another protocol", api, web.ClientTLS("port.heddle.invalid", want, "h2"), "unsupported application protocols"},
		{"no such port", api, web.ClientTLS("other.heddle.invalid", want, spiffe.ALPNHTTP1), "addresses no port"},
		{"no server name", api, web.ClientTLS("", want, spiffe.ALPNHTTP1), "addresses no port"},
		{"client with TLS 1.2", api, func() *tls.Config {
			c := ok()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(), "protocol version"},
		{"server without identity", identity.NewSource(nil), ok(), "no identity yet"},
		{"client without identity", api, identity.NewSource(nil).ClientTLS("port.heddle.invalid", want, spiffe.ALPNHTTP1), "no identity yet"},
		{"server that expired", expired, ok(), "has expired and no control plane"},
		{"client that expired", api, expired.ClientTLS("port.heddle.invalid", want, spiffe.ALPNHTTP1), "has expired and no control plane"},
	} {
		serr, cerr, state := handshake(t, test.server.ServerTLS(sni, spiffe.ALPNHTTP1, spiffe.ALPNTCP), test.client)
		err := errors.Join(serr, cerr)
		if test.want == "" {
			id, until, perr := identity.Peer(&state)
			if err != nil || perr != nil || id != webID || !until.After(time.Now()) || state.NegotiatedProtocol != spiffe.ALPNHTTP1 || state.DidResume {
				t.Errorf("%s: %v, peer %s until %v (%v)", test.name, err, id, until, perr)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		}
	}
}

// TestGoSPIFFE has an implementation that is not ours on the other side, both ways.
func TestGoSPIFFE(t *testing.T) {
	a := newAuthority(t)
	domain := spiffeid.RequireTrustDomainFromString(td)
	bundle := x509bundle.FromX509Authorities(domain, []*x509.Certificate{a.cert})
	theirs := func(id string) *x509svid.SVID {
		key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		leaf := must[*x509.Certificate](t)(x509.ParseCertificate(a.leaf(&key.PublicKey, id, nil)))
		return &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
	}
	client := tlsconfig.MTLSClientConfig(theirs(webID), bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(apiID)))
	client.ServerName, client.NextProtos = "port.heddle.invalid", []string{spiffe.ALPNTCP}
	if s, c, _ := handshake(t, a.source(apiID).ServerTLS(sni, spiffe.ALPNTCP), client); s != nil || c != nil {
		t.Errorf("go-spiffe as client: %v, %v", s, c)
	}
	server := tlsconfig.MTLSServerConfig(theirs(apiID), bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(webID)))
	if s, c, _ := handshake(t, server, a.source(webID).ClientTLS("x", []spiffe.ID{apiID})); s != nil || c != nil {
		t.Errorf("go-spiffe as server: %v, %v", s, c)
	}
}

// TestRotation: a config that was made once follows the renewal and the bundle.
func TestRotation(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	server, client := a.source(apiID), a.source(webID)
	sc, cc := server.ServerTLS(sni, spiffe.ALPNTCP), client.ClientTLS("port.heddle.invalid", []spiffe.ID{apiID}, spiffe.ALPNTCP)
	both := &spiffe.Bundle{TrustDomain: td, Generation: 2, Roots: []*x509.Certificate{a.cert, b.cert}}
	for _, step := range []func(){
		func() {},
		func() { server.Set(nil, both); client.Set(nil, both) },
		func() { server.Set(b.svid(apiID), nil) },
		func() { client.Set(b.svid(webID), nil) },
		func() { server.Set(nil, b.bundle()); client.Set(nil, b.bundle()) },
	} {
		step()
		if s, c, _ := handshake(t, sc, cc); s != nil || c != nil {
			t.Fatalf("%v, %v", s, c)
		}
	}
	_, changed := server.Changed()
	server.Set(nil, a.bundle()) // the retired root: what it no longer vouches for is refused
	select {
	case <-changed:
	default:
		t.Error("nobody was told of a new bundle")
	}
	if s, c, _ := handshake(t, sc, cc); s == nil && c == nil {
		t.Error("a peer of a retired root was accepted")
	}
}

func TestNewSVIDRefuses(t *testing.T) {
	a := newAuthority(t)
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for name, change := range map[string]func(*x509.Certificate){
		"a CA":           func(c *x509.Certificate) { c.IsCA = true },
		"two URIs":       func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"client only":    func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] },
		"server only":    func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] },
		"not yet valid":  func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
		"another domain": func(c *x509.Certificate) { c.URIs[0].Host = "evil.test" },
	} {
		if _, err := identity.NewSVID([][]byte{a.leaf(&key.PublicKey, webID, change)}, key, a.bundle(), time.Now()); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	other := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if _, err := identity.NewSVID([][]byte{a.leaf(&key.PublicKey, webID, nil)}, other, a.bundle(), time.Now()); err == nil {
		t.Error("a certificate for another key was accepted")
	}
}

// TestRenewal walks through a day, and through failures, without a clock.
func TestRenewal(t *testing.T) {
	t0 := time.Unix(1_700_000_000, 0)
	day := 24 * time.Hour
	for _, test := range []struct {
		name   string
		r      identity.Renewal
		random float64
		want   time.Time
	}{
		{"none yet", identity.Renewal{Last: t0}, 0.5, t0},
		{"at 70 % of what remained", identity.Renewal{Received: t0, NotAfter: t0.Add(day)}, 0, t0.Add(day * 7 / 10)},
		{"up to a tenth of that earlier", identity.Renewal{Received: t0, NotAfter: t0.Add(day)}, 1, t0.Add(day * 63 / 100)},
		{"received in the middle of its life", identity.Renewal{Received: t0.Add(day / 2), NotAfter: t0.Add(day)}, 0, t0.Add(day/2 + day*35/100)},
		{"received too late", identity.Renewal{Received: t0.Add(day), NotAfter: t0}, 0, t0.Add(day)},
		{"first failure", identity.Renewal{Received: t0, NotAfter: t0.Add(day), Failures: 1, Last: t0}, 0, t0.Add(time.Second)},
		{"first failure, all jitter", identity.Renewal{Received: t0, NotAfter: t0.Add(day), Failures: 1, Last: t0}, 1, t0.Add(time.Second / 2)},
		{"doubling", identity.Renewal{Received: t0, NotAfter: t0.Add(day), Failures: 4, Last: t0}, 0, t0.Add(8 * time.Second)},
		{"up to a minute", identity.Renewal{Received: t0, NotAfter: t0.Add(day), Failures: 40, Last: t0}, 0, t0.Add(time.Minute)},
		{"a few more before the end", identity.Renewal{Received: t0, NotAfter: t0.Add(40 * time.Second), Failures: 40, Last: t0}, 0, t0.Add(10 * time.Second)},
		{"never in a hurry", identity.Renewal{Received: t0, NotAfter: t0.Add(time.Second), Failures: 40, Last: t0}, 0, t0.Add(time.Second)},
		{"after the end", identity.Renewal{Received: t0, NotAfter: t0, Failures: 3, Last: t0.Add(day)}, 0, t0.Add(day + 4*time.Second)},
	} {
		if got := test.r.At(test.random); got.Sub(test.want).Abs() > time.Millisecond {
			t.Errorf("%s: %v after the start, want %v", test.name, got.Sub(t0), test.want.Sub(t0))
		}
	}
}

func TestState(t *testing.T) {
	a := newAuthority(t)
	dir := filepath.Join(t.TempDir(), "deep", "state")
	s := must[*identity.State](t)(identity.OpenState(dir))
	if who, m, err := s.Load(time.Now()); err != nil || who.Workload != "" || m.SVID != nil {
		t.Errorf("an empty state: %v %v %v", who, m, err)
	}
	svid, who := a.svid(webID), identity.Enrolment{Workload: "shop/web-1", Service: "shop/web"}
	if err := errors.Join(s.SaveBundle(a.bundle()), s.Save(who, svid)); err != nil {
		t.Fatal(err)
	}
	again := must[*identity.State](t)(identity.OpenState(dir))
	digest := [32]byte{1, 2, 3}
	if sig := must[[]byte](t)(s.Sign(digest)); !again.Verify(digest, sig) || again.Verify([32]byte{9}, sig) {
		t.Error("the host key did not stay, or vouches for anything")
	}
	got, m, err := again.Load(time.Now())
	if err != nil || got != who || m.SVID.ID != webID || !identity.SameRoots(m.Bundle, a.bundle()) || !m.SVID.Received.Equal(svid.Received) {
		t.Errorf("loaded %v %v %v", got, m, err)
	}
	if got, m, err := again.Load(time.Now().Add(48 * time.Hour)); err != nil || got != who || m.SVID == nil {
		t.Errorf("an expired SVID says who this is: %v %v %v", got, m, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "svid"))
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "svid"), bytes.Replace(b, []byte("shop/web-1"), []byte("shop/web-2"), 1), 0o600)
	if _, _, err := again.Load(time.Now()); err == nil {
		t.Error("a changed file was believed")
	}
	os.Chmod(filepath.Join(dir, "host.key"), 0o644)
	if _, err := identity.OpenState(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a host key that others may read: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "host.key"), []byte("x"), 0o600)
	os.Chmod(filepath.Join(dir, "host.key"), 0o600)
	if _, err := identity.OpenState(dir); err == nil || !strings.Contains(err.Error(), "join token") {
		t.Errorf("a damaged host key: %v", err)
	}
}

func TestParseToken(t *testing.T) {
	enc := func(s string) string { return "heddle-join-1." + base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := `{"id":"a","secret":"c2VjcmV0","workload":"shop/web-1","service":"shop/web","fingerprint":"00ff"}`
	tok, err := identity.ParseToken(" " + enc(good) + "\n")
	if err != nil || tok.ID != "a" || tok.Workload != "shop/web-1" || tok.Service != "shop/web" {
		t.Errorf("%+v, %v", tok, err)
	}
	for name, s := range map[string]string{
		"empty": "", "another secret": "ghp_x", "cut": enc(good)[:40], "no secret": enc(`{"id":"a","workload":"w","fingerprint":"00"}`),
		"no fingerprint": enc(`{"id":"a","secret":"c2VjcmV0","workload":"w"}`), "no workload": enc(`{"id":"a","secret":"c2VjcmV0","fingerprint":"00"}`),
	} {
		if _, err := identity.ParseToken(s); err == nil || !strings.Contains(err.Error(), "heddle token") {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
}
