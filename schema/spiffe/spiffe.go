// Package spiffe has the SPIFFE rules that sidecars and control planes share: which strings are SPIFFE IDs, which
// certificates are X.509-SVIDs, and the TLS settings that follow. It is stricter than crypto/x509, which accepts many
// certificates that the X.509-SVID specification forbids. go-spiffe is the independent judge in its tests. No I/O.
package spiffe

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// ID is a valid SPIFFE ID, "spiffe://<trust domain>/<path>"; the zero ID is none.
type ID string

// Limits of SPIFFE-ID.md, section 2.3.
const (
	maxID          = 2048
	maxTrustDomain = 255
)

// ParseID checks s against SPIFFE-ID.md, section 2. Nothing is normalised: what is not in the one canonical spelling is
// refused. An ID without a path names a trust domain, not a workload, and is refused too.
func ParseID(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return "", fmt.Errorf("SPIFFE ID %q does not start with spiffe://", s)
	}
	if len(s) > maxID {
		return "", fmt.Errorf("SPIFFE ID is %d bytes long; %d is the most", len(s), maxID)
	}
	td, path, ok := strings.Cut(rest, "/")
	if err := CheckTrustDomain(td); err != nil {
		return "", fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	if !ok || path == "" {
		return "", fmt.Errorf("SPIFFE ID %q has no path", s)
	}
	for seg := range strings.SplitSeq(path, "/") {
		switch seg {
		case "":
			return "", fmt.Errorf("SPIFFE ID %q has an empty path segment", s)
		case ".", "..":
			return "", fmt.Errorf("SPIFFE ID %q has a relative path segment", s)
		}
		if i := strings.IndexFunc(seg, func(r rune) bool {
			return !lower(r) && !digit(r) && !('A' <= r && r <= 'Z') && !strings.ContainsRune(".-_", r)
		}); i >= 0 {
			return "", fmt.Errorf("SPIFFE ID %q: %q may not stand in a path", s, seg[i:i+1])
		}
	}
	return ID(s), nil
}

// CheckTrustDomain checks a trust domain's name (SPIFFE-ID.md, section 2.1).
func CheckTrustDomain(td string) error {
	if td == "" || len(td) > maxTrustDomain {
		return fmt.Errorf("a trust domain has 1 to %d bytes", maxTrustDomain)
	}
	if strings.IndexFunc(td, func(r rune) bool { return !lower(r) && !digit(r) && !strings.ContainsRune(".-_", r) }) >= 0 {
		return fmt.Errorf("trust domain %q has other characters than a-z, 0-9, '.', '-', '_'", td)
	}
	return nil
}

func lower(r rune) bool { return 'a' <= r && r <= 'z' }
func digit(r rune) bool { return '0' <= r && r <= '9' }

// TrustDomain is the part after spiffe://.
func (id ID) TrustDomain() string {
	td, _, _ := strings.Cut(strings.TrimPrefix(string(id), "spiffe://"), "/")
	return td
}

// ServiceID is the identity that a service has unless policy names others: spiffe://<td>/ns/<namespace>/sa/<name>.
func ServiceID(trustDomain string, s mesh.ServiceName) ID {
	return ID("spiffe://" + trustDomain + "/ns/" + s.Namespace() + "/sa/" + s.Local())
}

// ControlPlaneID is the identity that control planes serve with. No workload is ever given it.
func ControlPlaneID(trustDomain string) ID {
	return ID("spiffe://" + trustDomain + "/heddle/control-plane")
}

// Bundle is a trust bundle. It is never written again once shared.
type Bundle struct {
	TrustDomain string
	// Generation counts up with every change of Roots.
	Generation uint64
	Roots      []*x509.Certificate
}

// Pool is the roots as crypto/x509 wants them.
func (b *Bundle) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range b.Roots {
		p.AddCert(c)
	}
	return p
}

// Verify judges a peer's certificates, leaf first, as an X.509-SVID of the bundle's trust domain at a time, for the
// given extended key usage. It checks the chain and then what X509-SVID.md asks of the leaf.
func (b *Bundle) Verify(chain []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) (ID, error) {
	if len(chain) == 0 {
		return "", errors.New("the peer sent no certificate")
	}
	leaf := chain[0]
	id, err := LeafID(leaf)
	if err != nil {
		return "", err
	}
	if id.TrustDomain() != b.TrustDomain {
		return "", fmt.Errorf("%s is not of trust domain %s", id, b.TrustDomain)
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return "", fmt.Errorf("%s: %w", id, err)
	}
	for _, c := range chains {
		if err = signers(c[1:], b.TrustDomain); err == nil {
			return id, nil
		}
	}
	return "", fmt.Errorf("%s: %w", id, err)
}

// signers checks the signing certificates of a chain (X509-SVID.md, sections 3.2 and 4.1 to 4.3).
func signers(chain []*x509.Certificate, td string) error {
	for _, c := range chain {
		if c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fmt.Errorf("signing certificate %q may not sign certificates", c.Subject)
		}
		if err := keyStrength(c); err != nil {
			return err
		}
		uris, err := rawURIs(c)
		if err != nil {
			return err
		}
		for _, u := range uris { // without a path (section 3.2), and of no other trust domain than what it signs for
			if u != "spiffe://"+td {
				return fmt.Errorf("signing certificate of %s, which is not trust domain %s", u, td)
			}
		}
	}
	return nil
}

// LeafID returns the SPIFFE ID of a leaf certificate, and refuses what X509-SVID.md forbids of one: more or fewer than
// one URI SAN (section 2), CA or signing rights, a missing digitalSignature, a key usage that is not critical (4.1, 4.3),
// weak keys. The ID is judged as it is spelt in the certificate.
func LeafID(leaf *x509.Certificate) (ID, error) {
	uris, err := rawURIs(leaf)
	if err != nil {
		return "", err
	}
	if len(uris) != 1 {
		return "", fmt.Errorf("the certificate has %d URI SANs; an X.509-SVID has exactly one", len(uris))
	}
	id, err := ParseID(uris[0])
	if err != nil {
		return "", err
	}
	switch {
	case leaf.IsCA:
		return "", fmt.Errorf("%s: a leaf may not be a CA", id)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", fmt.Errorf("%s: the key usage lacks digitalSignature", id)
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", fmt.Errorf("%s: a leaf may not sign certificates or revocation lists", id)
	case !slices.ContainsFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidKeyUsage) && e.Critical }):
		return "", fmt.Errorf("%s: the key usage is not marked critical", id)
	}
	if err := keyStrength(leaf); err != nil {
		return "", fmt.Errorf("%s: %w", id, err)
	}
	return id, nil
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
)

// rawURIs are the URI SANs as they stand in the certificate (RFC 5280, 4.2.1.6). Certificate.URIs is parsed already, and
// a parsed URL has lost how it was spelt: an upper-case scheme, an empty fragment.
func rawURIs(c *x509.Certificate) ([]string, error) {
	const tagURI = 6 // uniformResourceIdentifier [6] IA5String
	var out []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil, errors.New("the certificate's subject alternative names are malformed")
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == tagURI {
				out = append(out, string(n.Bytes))
			}
		}
	}
	return out, nil
}

func keyStrength(c *x509.Certificate) error {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("an elliptic key of %d bits is too weak; 256 is the least", k.Curve.Params().BitSize)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("an RSA key of %d bits is too weak; 2048 is the least", k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("keys of type %T are not accepted", k)
	}
	return nil
}

// ALPN names between Heddle programs.
const (
	ALPNHTTP1 = "http/1.1"     // HTTP/1.1 between sidecars
	ALPNTCP   = "heddle-tcp/1" // opaque bytes between sidecars
)

// sniSuffix ends the server names between sidecars; the TLD is reserved (RFC 6761), so none is ever a public host's.
const sniSuffix = ".heddle.invalid"

// SNI is the TLS server name that addresses a port of a service behind a sidecar. SPIFFE IDs are no legal DNS names
// and labels are short, so it is a hash: 52 letters of base32.
func SNI(s mesh.ServiceName, port string) string {
	sum := sha256.Sum256([]byte(string(s) + ":" + port))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])) + sniSuffix
}

// IsSNI reports whether a TLS server name addresses a sidecar.
func IsSNI(name string) bool { return strings.HasSuffix(name, sniSuffix) }

// TLSVersion is the only TLS version between Heddle programs.
const TLSVersion = tls.VersionTLS13
