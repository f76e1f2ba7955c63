// Package identity holds what a sidecar proves itself with and judges others by: its X.509-SVID with key, and the trust
// bundle. [Source] publishes them behind one atomic pointer and makes TLS configs that always use the newest; [Enroller]
// gets the first SVID from a control plane's enrolment port; [Renewal] says when to get the next. The rules of SPIFFE
// are schema/spiffe's. Keys never leave this package but into TLS configs and the state directory.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// SVID is a certificate with its key. Never written again.
type SVID struct {
	ID        spiffe.ID
	Leaf      *x509.Certificate
	NotBefore time.Time
	NotAfter  time.Time
	cert      tls.Certificate
}

// Material is one SVID and one bundle, seen together. Never written again.
type Material struct {
	SVID   *SVID
	Bundle *spiffe.Bundle
}

// Source is the sidecar's identity. Use [NewSource].
type Source struct {
	p   atomic.Pointer[Material]
	now func() time.Time
}

// NewSource has no identity yet: handshakes fail until Set. now is the clock, time.Now where nil.
func NewSource(now func() time.Time) *Source {
	if now == nil {
		now = time.Now
	}
	return &Source{now: now}
}

// Load is the current material; nil before the first Set.
func (s *Source) Load() *Material { return s.p.Load() }

// Valid reports whether there is an SVID that is not expired.
func (s *Source) Valid() bool { return false }

// ServerTLS is the config of the mesh listener: TLS 1.3, a client certificate is required and must be an X.509-SVID of
// the trust domain, session tickets are off. known says which server names address a port; others fail the handshake.
// The protocol is negotiated among alpn; a client that offers none of them fails. The config is made once and follows
// renewals. The handshake fails while there is no valid SVID.
func (s *Source) ServerTLS(known func(sni string) bool, alpn ...string) *tls.Config { return nil }

// ClientTLS is the config to connect to a sidecar, or to a control plane: the server must prove one of the identities.
// The config is made once per destination and follows renewals.
func (s *Source) ClientTLS(sni string, identities []spiffe.ID, alpn ...string) *tls.Config { return nil }

// Peer is the SPIFFE ID that the peer of a finished handshake proved, and when its SVID expires: the connection must
// not live longer.
func Peer(cs *tls.ConnectionState) (spiffe.ID, time.Time, error) { return "", time.Time{}, nil }

// Changed returns a channel that is closed at the next change of SVID or bundle.
func (s *Source) Changed() <-chan struct{} { return nil }
