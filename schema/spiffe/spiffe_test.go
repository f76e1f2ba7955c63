package spiffe

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const td = "mesh.test"

var (
	now  = time.Now()
	long = strings.Repeat("a", 2048)
)

// pki is a chain to be made: templates, keys, who signs whom, and what the peer sends. The zero edit makes a good one.
type pki struct {
	root, inter, leaf          *x509.Certificate
	rootKey, interKey, leafKey crypto.Signer
	// signer of the leaf, where it is not the intermediate.
	signer    *x509.Certificate
	signerKey crypto.Signer
	sans      []string // URI SANs as raw bytes
	san       []byte   // the whole SAN extension, where sans cannot say it
	usage     x509.ExtKeyUsage
	bundle    string // its trust domain
	send      func(leaf, inter, root *x509.Certificate) []*x509.Certificate
	roots     func(root *x509.Certificate) []*x509.Certificate
}

func ec(t *testing.T, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// subjectAltName is the extension with URIs as they are given: x509.Certificate.URIs could not spell them all.
func subjectAltName(t *testing.T, uris []string) []byte {
	t.Helper()
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	b, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub any, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatalf("make the certificate: %v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil // crypto/x509 does not even parse it, so no handshake with it gets to us
	}
	return c
}

// verdict makes the chain and returns our judgement and go-spiffe's.
func (p *pki) verdict(t *testing.T) (id ID, ours, theirs error) {
	t.Helper()
	root := sign(t, p.root, p.root, p.rootKey.Public(), p.rootKey)
	inter := sign(t, p.inter, root, p.interKey.Public(), p.rootKey)
	if p.san == nil && len(p.sans) > 0 {
		p.san = subjectAltName(t, p.sans)
	}
	if p.san != nil {
		p.leaf.ExtraExtensions = append(p.leaf.ExtraExtensions, pkix.Extension{Id: oidSubjectAltName, Value: p.san})
	}
	parent, key := inter, p.interKey
	if p.signer != nil {
		parent, key = p.signer, p.signerKey
	}
	leaf := sign(t, p.leaf, parent, p.leafKey.Public(), key)
	if leaf == nil {
		return "", errUnparsed, errUnparsed
	}
	chain, roots := []*x509.Certificate{leaf, inter}, []*x509.Certificate{root}
	if p.send != nil {
		chain = p.send(leaf, inter, root)
	}
	if p.roots != nil {
		roots = p.roots(root)
	}
	b := &Bundle{TrustDomain: p.bundle, Generation: 1, Roots: roots}
	id, ours = b.Verify(chain, now, p.usage)
	judge := spiffeid.RequireTrustDomainFromString(p.bundle)
	_, _, theirs = x509svid.Verify(chain, x509bundle.FromX509Authorities(judge, roots), x509svid.WithTime(now))
	return id, ours, theirs
}

var errUnparsed = errors.New("crypto/x509 does not parse it")

func good(t *testing.T) *pki {
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{{Scheme: "spiffe", Host: td}}}
	}
	return &pki{
		root: ca("root"), inter: ca("intermediate"),
		leaf: &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}},
		rootKey: ec(t, elliptic.P256()), interKey: ec(t, elliptic.P256()), leafKey: ec(t, elliptic.P256()),
		sans: []string{"spiffe://mesh.test/ns/shop/sa/web"}, usage: x509.ExtKeyUsageClientAuth, bundle: td,
	}
}

func id(s ...string) func(*testing.T, *pki) { return func(_ *testing.T, p *pki) { p.sans = s } }

// TestVerify holds Bundle.Verify to the clauses of SPIFFE-ID.md (ID) and X509-SVID.md (SVID), with go-spiffe as an
// independent judge: what we accept it accepts. Where we alone refuse, stricter says so, and that it is on purpose.
func TestVerify(t *testing.T) {
	tests := []struct {
		clause   string
		name     string
		edit     func(*testing.T, *pki)
		want     string // part of our refusal; empty: accepted
		stricter bool   // go-spiffe accepts it
	}{
		{clause: "SVID 2", name: "a good chain", edit: func(*testing.T, *pki) {}},
		{clause: "SVID 2", name: "a good server", edit: func(_ *testing.T, p *pki) { p.usage = x509.ExtKeyUsageServerAuth }},
		{clause: "SVID 2", name: "a DNS name beside the ID", edit: func(_ *testing.T, p *pki) {
			p.sans, p.leaf.DNSNames, p.leaf.URIs = nil, []string{"web.shop"}, []*url.URL{{Scheme: "spiffe", Host: td, Path: "/web"}}
		}},
		{clause: "SVID 3.1", name: "every kind of character that a path has", edit: id("spiffe://mesh.test/aZ09.-_/...")},
		{clause: "ID 2.3", name: "an ID of 2048 bytes", edit: id("spiffe://mesh.test/" + long[:2048-len("spiffe://mesh.test/")])},
		{clause: "SVID 4.4", name: "no extended key usage", edit: func(_ *testing.T, p *pki) { p.leaf.ExtKeyUsage = nil }},
		{clause: "SVID 5.1", name: "the root sent along", edit: func(_ *testing.T, p *pki) {
			p.send = func(l, i, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, i, r} }
		}},
		{clause: "SVID 5.1", name: "a leaf of the root itself", edit: func(t *testing.T, p *pki) {
			p.signer, p.signerKey = sign(t, p.root, p.root, p.rootKey.Public(), p.rootKey), p.rootKey
		}},
		{clause: "SVID 3.2", name: "signers without an ID", edit: func(_ *testing.T, p *pki) { p.root.URIs, p.inter.URIs = nil, nil }},
		{clause: "SVID 4.2", name: "an Ed25519 key", edit: func(t *testing.T, p *pki) {
			_, k, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			p.leafKey = k
		}},
		{clause: "SVID 4.2", name: "an RSA key of 2048 bits", edit: func(t *testing.T, p *pki) { p.leafKey = rsaKey(t, 2048) }},
		{clause: "SVID 4.2", name: "a P-384 key", edit: func(t *testing.T, p *pki) { p.leafKey = ec(t, elliptic.P384()) }},
		{clause: "SVID 4.1", name: "no basic constraints on the leaf", edit: func(_ *testing.T, p *pki) { p.leaf.BasicConstraintsValid = false }},

		// SVID 2: exactly one URI SAN.
		{clause: "SVID 2", name: "no SAN", edit: id(), want: "0 URI SANs"},
		{clause: "SVID 2", name: "a common name only", edit: func(_ *testing.T, p *pki) {
			p.sans, p.leaf.Subject.CommonName = nil, "spiffe://mesh.test/web"
		}, want: "0 URI SANs"},
		{clause: "SVID 2", name: "a DNS name only", edit: func(_ *testing.T, p *pki) { p.sans, p.leaf.DNSNames = nil, []string{"web"} }, want: "0 URI SANs"},
		{clause: "SVID 2", name: "two IDs", edit: id("spiffe://mesh.test/web", "spiffe://mesh.test/api"), want: "2 URI SANs"},
		{clause: "SVID 2", name: "the same ID twice", edit: id("spiffe://mesh.test/web", "spiffe://mesh.test/web"), want: "2 URI SANs"},
		{clause: "SVID 2", name: "an ID and a URL", edit: id("spiffe://mesh.test/web", "https://mesh.test/web"), want: "2 URI SANs"},
		{clause: "SVID 2", name: "a URL only", edit: id("https://mesh.test/web"), want: "does not start with spiffe://"},

		// SPIFFE-ID 2: the form of an ID.
		{clause: "ID 2", name: "an upper-case scheme", edit: id("SPIFFE://mesh.test/web"), want: "does not start with spiffe://", stricter: true},
		{clause: "ID 2", name: "an opaque URI", edit: id("spiffe:mesh.test/web"), want: "does not start with spiffe://"},
		{clause: "ID 2", name: "a query", edit: id("spiffe://mesh.test/web?admin"), want: "may not stand in a path"},
		{clause: "ID 2", name: "an empty query", edit: id("spiffe://mesh.test/web?"), want: "may not stand in a path"},
		{clause: "ID 2", name: "a fragment", edit: id("spiffe://mesh.test/web#admin"), want: "may not stand in a path"},
		{clause: "ID 2", name: "an empty fragment", edit: id("spiffe://mesh.test/web#"), want: "may not stand in a path", stricter: true},
		{clause: "ID 2.1", name: "no trust domain", edit: id("spiffe:///web"), want: "1 to 255 bytes"},
		{clause: "ID 2.1", name: "user information", edit: id("spiffe://root@mesh.test/web"), want: "other characters"},
		{clause: "ID 2.1", name: "a port", edit: id("spiffe://mesh.test:443/web"), want: "other characters"},
		{clause: "ID 2.1", name: "an upper-case trust domain", edit: id("spiffe://MESH.test/web"), want: "other characters"},
		{clause: "ID 2.1", name: "an escape in the trust domain", edit: id("spiffe://mesh%2etest/web"), want: "not parse it"},
		{clause: "ID 2.2", name: "no path", edit: id("spiffe://mesh.test"), want: "no path", stricter: true},
		{clause: "ID 2.2", name: "a root path", edit: id("spiffe://mesh.test/"), want: "no path"},
		{clause: "ID 2.2", name: "a trailing slash", edit: id("spiffe://mesh.test/web/"), want: "empty path segment"},
		{clause: "ID 2.2", name: "an empty segment", edit: id("spiffe://mesh.test//web"), want: "empty path segment"},
		{clause: "ID 2.2", name: "a dot segment", edit: id("spiffe://mesh.test/ns/./web"), want: "relative path segment"},
		{clause: "ID 2.2", name: "a dot-dot segment", edit: id("spiffe://mesh.test/ns/shop/sa/web/../api"), want: "relative path segment"},
		{clause: "ID 2.2", name: "an escape", edit: id("spiffe://mesh.test/w%65b"), want: "may not stand in a path"},
		{clause: "ID 2.2", name: "an escaped slash", edit: id("spiffe://mesh.test/ns%2Fweb"), want: "may not stand in a path"},
		{clause: "ID 2.2", name: "a space", edit: id("spiffe://mesh.test/we b"), want: "may not stand in a path"},
		{clause: "ID 2.2", name: "a colon", edit: id("spiffe://mesh.test/ns:web"), want: "may not stand in a path"},
		{clause: "ID 2.3", name: "an ID of 2049 bytes", edit: id("spiffe://mesh.test/" + long[:2049-len("spiffe://mesh.test/")]), want: "2048 is the most", stricter: true},
		{clause: "ID 2.3", name: "a trust domain of 256 bytes", edit: id("spiffe://" + long[:256] + "/web"), want: "1 to 255 bytes"},

		// SVID 3 and 5: the trust domain, and whose authority it is.
		{clause: "SVID 5.1", name: "another trust domain", edit: id("spiffe://other.test/web"), want: "not of trust domain"},
		{clause: "SVID 5.1", name: "a longer trust domain", edit: id("spiffe://mesh.test.evil/web"), want: "not of trust domain"},
		{clause: "SVID 5.1", name: "a subdomain", edit: id("spiffe://a.mesh.test/web"), want: "not of trust domain"},
		{clause: "SVID 3.2", name: "an intermediate of another trust domain", edit: func(_ *testing.T, p *pki) { p.inter.URIs[0].Host = "other.test" },
			want: "not trust domain", stricter: true},
		{clause: "SVID 3.2", name: "an intermediate with a path in its ID", edit: func(_ *testing.T, p *pki) { p.inter.URIs[0].Path = "/web" },
			want: "not trust domain", stricter: true},
		{clause: "SVID 3.2", name: "a root of another trust domain", edit: func(_ *testing.T, p *pki) { p.root.URIs[0].Host = "other.test" },
			want: "not trust domain", stricter: true},

		// SVID 4.1: basic constraints.
		{clause: "SVID 4.1", name: "a leaf that is a CA", edit: func(_ *testing.T, p *pki) { p.leaf.IsCA = true }, want: "may not be a CA"},
		{clause: "SVID 4.1", name: "the root as leaf", edit: func(_ *testing.T, p *pki) {
			p.send = func(_, _, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{r} }
		}, want: "no path"},
		{clause: "SVID 4.1", name: "an intermediate that is no CA", edit: func(_ *testing.T, p *pki) { p.inter.IsCA = false }, want: "certificate"},
		{clause: "SVID 4.1", name: "a leaf signed by a leaf", edit: func(t *testing.T, p *pki) {
			root := sign(t, p.root, p.root, p.rootKey.Public(), p.rootKey)
			k := ec(t, elliptic.P256())
			mid := *p.leaf
			mid.URIs = []*url.URL{{Scheme: "spiffe", Host: td, Path: "/mid"}}
			p.signer, p.signerKey = sign(t, &mid, root, k.Public(), p.rootKey), k
			signer := p.signer
			p.send = func(l, _, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, signer} }
		}, want: "certificate"},
		{clause: "SVID 4.1", name: "a path longer than the root permits", edit: func(_ *testing.T, p *pki) { p.root.MaxPathLen, p.root.MaxPathLenZero = 0, true }, want: "too many intermediates"},

		// SVID 4.3: key usage.
		{clause: "SVID 4.3", name: "keyCertSign on the leaf", edit: func(_ *testing.T, p *pki) { p.leaf.KeyUsage |= x509.KeyUsageCertSign; p.leaf.IsCA = true }, want: "may not be a CA"},
		{clause: "SVID 4.3", name: "cRLSign on the leaf", edit: func(_ *testing.T, p *pki) { p.leaf.KeyUsage |= x509.KeyUsageCRLSign }, want: "may not sign"},
		{clause: "SVID 4.3", name: "no digitalSignature", edit: func(_ *testing.T, p *pki) { p.leaf.KeyUsage = x509.KeyUsageKeyEncipherment }, want: "lacks digitalSignature", stricter: true},
		{clause: "SVID 4.3", name: "no key usage", edit: func(_ *testing.T, p *pki) { p.leaf.KeyUsage = 0 }, want: "lacks digitalSignature", stricter: true},
		{clause: "SVID 4.3", name: "a key usage that is not critical", edit: func(_ *testing.T, p *pki) {
			p.leaf.KeyUsage = 0
			p.leaf.ExtraExtensions = []pkix.Extension{{Id: oidKeyUsage, Value: []byte{3, 2, 7, 0x80}}}
		}, want: "not marked critical", stricter: true},
		{clause: "SVID 4.3", name: "an intermediate without keyCertSign", edit: func(_ *testing.T, p *pki) { p.inter.KeyUsage = x509.KeyUsageCRLSign }, want: "cannot sign"},
		{clause: "SVID 4.3", name: "an intermediate without any key usage", edit: func(_ *testing.T, p *pki) { p.inter.KeyUsage = 0 }, want: "may not sign", stricter: true},

		// SVID 4.4: extended key usage.
		{clause: "SVID 4.4", name: "a client that may only serve", edit: func(_ *testing.T, p *pki) {
			p.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, want: "incompatible key usage", stricter: true},
		{clause: "SVID 4.4", name: "a server that may only call", edit: func(_ *testing.T, p *pki) {
			p.usage, p.leaf.ExtKeyUsage = x509.ExtKeyUsageServerAuth, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, want: "incompatible key usage", stricter: true},
		{clause: "SVID 4.4", name: "code signing only", edit: func(_ *testing.T, p *pki) {
			p.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}, want: "incompatible key usage", stricter: true},

		// SVID 5.1 and RFC 5280: the path.
		{clause: "SVID 5.1", name: "no certificate", edit: func(_ *testing.T, p *pki) {
			p.send = func(_, _, _ *x509.Certificate) []*x509.Certificate { return nil }
		}, want: "sent no certificate"},
		{clause: "SVID 5.1", name: "no intermediate", edit: func(_ *testing.T, p *pki) {
			p.send = func(l, _, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l} }
		}, want: "unknown authority"},
		{clause: "SVID 5.1", name: "an authority that is not in the bundle, though it is sent", edit: func(t *testing.T, p *pki) {
			other := sign(t, p.root, p.root, p.interKey.Public(), p.interKey)
			p.roots = func(*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{other} }
			p.send = func(l, i, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, i, r} }
		}, want: "certificate"},
		{clause: "SVID 5.1", name: "an empty bundle", edit: func(_ *testing.T, p *pki) {
			p.roots = func(*x509.Certificate) []*x509.Certificate { return nil }
		}, want: "unknown authority"},
		{clause: "SVID 5.1", name: "self-signed", edit: func(_ *testing.T, p *pki) { p.signer, p.signerKey = p.leaf, p.leafKey }, want: "certificate"},
		{clause: "SVID 5.1", name: "a signature by another key", edit: func(t *testing.T, p *pki) {
			impostor := ec(t, elliptic.P256())
			p.signer = sign(t, p.inter, sign(t, p.root, p.root, p.rootKey.Public(), p.rootKey), impostor.Public(), p.rootKey)
			p.signerKey = impostor
		}, want: "certificate"},
		{clause: "RFC 5280 4.1.2.5", name: "an ended leaf", edit: func(_ *testing.T, p *pki) { p.leaf.NotAfter = now.Add(-time.Minute) }, want: "expired"},
		{clause: "RFC 5280 4.1.2.5", name: "a leaf of tomorrow", edit: func(_ *testing.T, p *pki) { p.leaf.NotBefore = now.Add(time.Minute) }, want: "not yet valid"},
		{clause: "RFC 5280 4.1.2.5", name: "an ended intermediate", edit: func(_ *testing.T, p *pki) { p.inter.NotAfter = now.Add(-time.Minute) }, want: "expired"},
		{clause: "RFC 5280 4.1.2.5", name: "an ended root", edit: func(_ *testing.T, p *pki) { p.root.NotAfter = now.Add(-time.Minute) }, want: "expired"},
		{clause: "RFC 5280 4.2", name: "a critical extension that nobody knows", edit: func(_ *testing.T, p *pki) {
			p.leaf.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 1}, Critical: true, Value: []byte{5, 0}}}
		}, want: "critical extension"},
		{clause: "RFC 5280 4.2.1.10", name: "outside the name constraints", edit: func(_ *testing.T, p *pki) {
			p.inter.PermittedURIDomains, p.inter.PermittedDNSDomainsCritical = []string{"other.test"}, true
		}, want: "not permitted"},
		{clause: "RFC 5280 4.2.1.6", name: "malformed SANs", edit: func(_ *testing.T, p *pki) { p.san = []byte{0x30, 0x03, 0x86, 0x05, 'a'} }, want: "not parse it"},

		// SVID 4.2 leaves algorithms to RFC 5280; these are what a mesh of today must not take.
		{clause: "SVID 4.2", name: "a P-224 leaf", edit: func(t *testing.T, p *pki) { p.leafKey = ec(t, elliptic.P224()) }, want: "224 bits is too weak", stricter: true},
		{clause: "SVID 4.2", name: "an RSA leaf of 1024 bits", edit: func(t *testing.T, p *pki) { p.leafKey = rsaKey(t, 1024) }, want: "1024 bits is too weak", stricter: true},
		{clause: "SVID 4.2", name: "a P-224 intermediate", edit: func(t *testing.T, p *pki) { p.interKey = ec(t, elliptic.P224()) }, want: "224 bits is too weak", stricter: true},
		{clause: "SVID 4.2", name: "an RSA root of 1024 bits", edit: func(t *testing.T, p *pki) { p.rootKey = rsaKey(t, 1024) }, want: "1024 bits is too weak", stricter: true},
	}
	hostile := 0
	for _, tt := range tests {
		if tt.want != "" {
			hostile++
		}
		t.Run(tt.clause+"/"+tt.name, func(t *testing.T) {
			p := good(t)
			tt.edit(t, p)
			id, ours, theirs := p.verdict(t)
			switch {
			case tt.want == "" && (ours != nil || id == ""):
				t.Errorf("refused: %v", ours)
			case tt.want != "" && (ours == nil || id != ""):
				t.Errorf("accepted as %q", id)
			case tt.want != "" && !strings.Contains(ours.Error(), tt.want):
				t.Errorf("refused because %q, want %q", ours, tt.want)
			}
			if ours == nil && theirs != nil {
				t.Errorf("we accept what go-spiffe refuses: %v", theirs)
			}
			if ours != nil && (theirs == nil) != tt.stricter {
				t.Errorf("we refuse (%v); go-spiffe says %v; the table says stricter: %v", ours, theirs, tt.stricter)
			}
		})
	}
	if hostile < 40 {
		t.Errorf("%d hostile certificates; the table is to have at least 40", hostile)
	}
}

// FuzzParseID compares with go-spiffe: the two accept the same strings, but for IDs without a path, which name no
// workload, and lengths, which go-spiffe does not bound.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://mesh.test/ns/shop/sa/web", "spiffe://a/b", "spiffe://", "spiffe:///x", "spiffe://a/../b", "spiffe://A/b", "spiffe://a/b%20", "SPIFFE://a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ours, err := ParseID(s)
		theirs, judged := spiffeid.FromString(s)
		if err == nil && (judged != nil || theirs.String() != string(ours) || theirs.TrustDomain().Name() != ours.TrustDomain()) {
			t.Errorf("%q: we accept it as %q, go-spiffe: %v", s, ours, judged)
		}
		if err != nil && judged == nil && theirs.Path() != "" && len(s) <= maxID && len(theirs.TrustDomain().Name()) <= maxTrustDomain {
			t.Errorf("%q: go-spiffe accepts it, we say %v", s, err)
		}
	})
}

func TestSNI(t *testing.T) {
	name := SNI("shop/web", "http")
	if !IsSNI(name) || len(strings.Split(name, ".")[0]) > 63 || name != strings.ToLower(name) {
		t.Errorf("%q is no server name of ours", name)
	}
	if SNI("shop/web", "admin") == name || SNI("shop/web2", "http") == name {
		t.Error("two ports share a server name")
	}
	if IsSNI("web.shop.mesh") {
		t.Error("a host of the mesh is taken for a server name between sidecars")
	}
}
