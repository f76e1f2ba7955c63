// Package identity holds what a sidecar proves itself with and judges others by: its X.509-SVID with key, and the trust
// bundle. [Source] publishes them behind one atomic pointer and makes TLS configs that always use the newest; [State]
// keeps them on disk; [Enroller] gets the first SVID from a control plane's enrolment port; [Renewal] says when to get
// the next. The rules of SPIFFE are schema/spiffe's. Keys leave this package only into TLS configs and the state
// directory; no traffic passes here but an enrolment's.
package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// SVID is a certificate with its key. Never written again.
type SVID struct {
	ID spiffe.ID
	// NotBefore and NotAfter bound its validity.
	NotBefore, NotAfter time.Time
	// Received is when this process got it; what remains of its life then is what [Renewal] divides.
	Received time.Time

	cert tls.Certificate
	key  *ecdsa.PrivateKey
}

// Lifetime is from NotBefore to NotAfter.
func (s *SVID) Lifetime() time.Duration { return s.NotAfter.Sub(s.NotBefore) }

// Serial is the certificate's serial number in hexadecimal, for logs.
func (s *SVID) Serial() string { return s.cert.Leaf.SerialNumber.Text(16) }

// NewSVID puts a chain (leaf first, DER, without the root) and the key it was made for together, and checks that they
// are an SVID of the bundle's trust domain at a time.
func NewSVID(chain [][]byte, key *ecdsa.PrivateKey, bundle *spiffe.Bundle, now time.Time) (*SVID, error) {
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		certs[i] = c
	}
	id, err := bundle.Verify(certs, now, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	if _, err := bundle.Verify(certs, now, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, err
	}
	if pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	return &SVID{
		ID: id, NotBefore: certs[0].NotBefore, NotAfter: certs[0].NotAfter, Received: now,
		cert: tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: certs[0]}, key: key,
	}, nil
}

// NewRequest makes a new key and a certificate request (PKCS #10, DER) for it. id is its one URI SAN; where it is empty
// the request names nothing.
func NewRequest(id spiffe.ID) (key *ecdsa.PrivateKey, csr []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	t := &x509.CertificateRequest{}
	if id != "" {
		u, err := url.Parse(string(id))
		if err != nil {
			return nil, nil, fmt.Errorf("request a certificate for %s: %w", id, err)
		}
		t.URIs = []*url.URL{u}
	}
	if csr, err = x509.CreateCertificateRequest(rand.Reader, t, key); err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}

// Material is one SVID and one bundle, seen together. Either may be nil. Never written again.
type Material struct {
	SVID   *SVID
	Bundle *spiffe.Bundle
}

// Source is the sidecar's identity. Use [NewSource].
type Source struct {
	now func() time.Time
	p   atomic.Pointer[published]
	mu  sync.Mutex // orders writers
}

type published struct {
	Material
	replaced chan struct{}
}

// NewSource has no identity yet: handshakes fail until there is one. now is the clock, time.Now where nil.
func NewSource(now func() time.Time) *Source {
	if now == nil {
		now = time.Now
	}
	s := &Source{now: now}
	s.p.Store(&published{replaced: make(chan struct{})})
	return s
}

// Load is the current material; never nil, its fields may be.
func (s *Source) Load() *Material { return &s.p.Load().Material }

// Changed returns the current material and a channel that is closed when it is replaced.
func (s *Source) Changed() (*Material, <-chan struct{}) {
	p := s.p.Load()
	return &p.Material, p.replaced
}

// Set replaces what is not nil. The bundle goes in together with an SVID that it verifies, so that there is never a
// moment with a new SVID that peers with the old bundle cannot be judged by.
func (s *Source) Set(svid *SVID, bundle *spiffe.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.p.Load()
	next := &published{Material: old.Material, replaced: make(chan struct{})}
	if svid != nil {
		next.SVID = svid
	}
	if bundle != nil {
		next.Bundle = bundle
	}
	s.p.Store(next)
	close(old.replaced)
}

// Errors of handshakes before there is an identity, and after it ended. Neither ever leads to plaintext.
var (
	ErrNone    = errors.New("the sidecar has no identity yet")
	ErrExpired = errors.New("the sidecar's own certificate has expired and no control plane has renewed it")
)

// Valid returns nil where there is an SVID that has not expired, else ErrNone or ErrExpired.
func (s *Source) Valid() error {
	_, err := s.usable()
	return err
}

func (s *Source) usable() (*Material, error) {
	m := s.Load()
	switch {
	case m.SVID == nil || m.Bundle == nil:
		return nil, ErrNone
	case s.now().After(m.SVID.NotAfter):
		return nil, ErrExpired
	}
	return m, nil
}

// ServerTLS is the config of the mesh listener: TLS 1.3, a client certificate is required and must be an X.509-SVID of
// the trust domain, session tickets are off. known says which server names address a port; handshakes for others fail.
// The protocol is negotiated among alpn; a client that offers none of them fails. The config is made once and follows
// renewals. Handshakes fail while there is no valid SVID.
func (s *Source) ServerTLS(known func(sni string) bool, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             spiffe.TLSVersion,
		NextProtos:             alpn,
		SessionTicketsDisabled: true,
		// The chain is judged in VerifyConnection, by SPIFFE's rules, which crypto/x509 does not know.
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !known(hello.ServerName) {
				return nil, fmt.Errorf("the server name %q addresses no port of this workload", hello.ServerName)
			}
			m, err := s.usable()
			if err != nil {
				return nil, err
			}
			return &m.SVID.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(alpn) > 0 && cs.NegotiatedProtocol == "" {
				return errors.New("the client offered no application protocol")
			}
			_, err := s.judge(&cs, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// ClientTLS is the config to connect to a sidecar, or to a control plane: the server must prove one of the identities.
// The config is made once per destination and follows renewals. Handshakes fail while there is no valid SVID.
func (s *Source) ClientTLS(sni string, identities []spiffe.ID, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion: spiffe.TLSVersion,
		ServerName: sni,
		NextProtos: alpn,
		// Host names mean nothing here; VerifyConnection judges the server by its SPIFFE ID.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := s.usable()
			if err != nil {
				return nil, err
			}
			return &m.SVID.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := s.judge(&cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if !slices.Contains(identities, id) {
				return &WrongPeerError{Got: id, Want: identities}
			}
			return nil
		},
	}
}

// WrongPeerError means that a server proved an identity of the mesh, but none of those that its service has.
type WrongPeerError struct {
	Got  spiffe.ID
	Want []spiffe.ID
}

// Error names both sides.
func (e *WrongPeerError) Error() string {
	return fmt.Sprintf("the server is %s; expected was one of %v", e.Got, e.Want)
}

func (s *Source) judge(cs *tls.ConnectionState, usage x509.ExtKeyUsage) (spiffe.ID, error) {
	m, err := s.usable()
	if err != nil {
		return "", err
	}
	return m.Bundle.Verify(cs.PeerCertificates, s.now(), usage)
}

// Peer is the SPIFFE ID that the peer of a finished handshake proved, and when its SVID expires: the connection must
// not live longer. It does not judge again.
func Peer(cs *tls.ConnectionState) (spiffe.ID, time.Time, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", time.Time{}, errors.New("the peer sent no certificate")
	}
	id, err := spiffe.LeafID(cs.PeerCertificates[0])
	return id, cs.PeerCertificates[0].NotAfter, err
}

// SameRoots reports whether two bundles hold the same roots in the same order.
func SameRoots(a, b *spiffe.Bundle) bool {
	return a != nil && b != nil && a.TrustDomain == b.TrustDomain &&
		slices.EqualFunc(a.Roots, b.Roots, func(x, y *x509.Certificate) bool { return bytes.Equal(x.Raw, y.Raw) })
}

// ParseBundle makes a bundle of DER roots.
func ParseBundle(trustDomain string, generation uint64, roots [][]byte) (*spiffe.Bundle, error) {
	if len(roots) == 0 {
		return nil, errors.New("the trust bundle is empty")
	}
	b := &spiffe.Bundle{TrustDomain: trustDomain, Generation: generation}
	for i, der := range roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root %d of the trust bundle: %w", i, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("root %d of the trust bundle, %q, is no CA", i, c.Subject)
		}
		b.Roots = append(b.Roots, c)
	}
	return b, nil
}

// VerifiedBy reports whether peers with a bundle accept the SVID at a time.
func (s *SVID) VerifiedBy(b *spiffe.Bundle, now time.Time) bool {
	_, err := NewSVID(s.cert.Certificate, s.key, b, now)
	return err == nil
}
