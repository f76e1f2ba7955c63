// Package identity is the mesh's SPIFFE certificate authority: a root of ten years, one intermediate per control plane
// of ninety days, and X.509-SVIDs of (by default) a day. It turns a certificate request and an identity that somebody
// else has proven into a chain; it never decides who is who (package enroll does) and knows no streams.
//
// The authority belongs to one trust domain, that of the first release, and keeps its certificates and keys in one
// directory, one PEM file each, mode 0600, replaced atomically:
//
//	root.pem          the self-signed root and its key
//	intermediate.pem  the intermediate, signed by the root, and its key
//	bundle.json       the trust bundle that peers are told, with its generation
//
// The intermediate is renewed when half of its life is over, in Run. No certificate outlives its issuer: what cannot
// be signed for the full time is refused, and said thirty days before.
package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	// RootLife is how long a root lasts: long enough that replacing it is planned, not urgent.
	RootLife = 10 * 365 * 24 * time.Hour
	// IntermediateLife is how long an intermediate lasts. Renewed at half of it, it always has more than a month left,
	// so a control plane that was off for weeks starts with one that is good.
	IntermediateLife = 90 * 24 * time.Hour
	// LeafTTL is the default lifetime of an SVID.
	LeafTTL = 24 * time.Hour
	// MaxLeafTTL bounds what an operator may ask for: a leaf always fits into an intermediate of any age.
	MaxLeafTTL = 30 * 24 * time.Hour
	// Skew is how far certificates are dated back, so that a peer whose clock is slow accepts a new one.
	Skew = 5 * time.Minute
	// warning is how long before the root ends this is said.
	warning = 30 * 24 * time.Hour
)

var (
	// ErrUnbound means that the trust domain is not known yet: no release has arrived.
	ErrUnbound = errors.New("no release has arrived yet, so the trust domain is not known")
	// ErrExpiring means that an issuer ends before what it should sign.
	ErrExpiring = errors.New("the issuer ends before the certificate would")
	// ErrRequest is wrapped by every refusal of a certificate request.
	ErrRequest = errors.New("the certificate request is refused")
	// ErrTrustDomain means that the authority belongs to another trust domain.
	ErrTrustDomain = errors.New("the certificate authority belongs to another trust domain")
)

// issuer is a signing certificate with its key. It is never written again.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// CA is the certificate authority. Its methods are safe for concurrent use; one process owns its directory.
type CA struct {
	dir     string
	leafTTL time.Duration
	bundle  live.Value[*spiffe.Bundle]

	mu     sync.Mutex // guards what follows
	root   *issuer    // nil: not bound to a trust domain
	inter  *issuer
	server *tls.Certificate // the control plane's own SVID, without the root
	// renewServer is when 70 % of the server certificate's life is over.
	renewServer time.Time
	fault       error // of the last renewal
}

// Open reads the authority kept in a directory, which it makes (0700). Where there is none yet, [CA.Bind] makes one.
// leafTTL is the lifetime of SVIDs, 0 is [LeafTTL]. Damaged files are an error: a root is never replaced silently.
func Open(dir string, leafTTL time.Duration) (*CA, error) {
	if leafTTL == 0 {
		leafTTL = LeafTTL
	}
	if leafTTL < time.Second || leafTTL > MaxLeafTTL {
		return nil, fmt.Errorf("a leaf lifetime of %v is not between 1s and %v; choose another --leaf-ttl", leafTTL, MaxLeafTTL)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the certificate authority's directory: %w", err)
	}
	if err := durable.Clean(dir); err != nil {
		return nil, fmt.Errorf("clean the certificate authority's directory: %w", err)
	}
	ca := &CA{dir: dir, leafTTL: leafTTL}
	root, err := read(ca.path("root.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(ca.path("bundle.json")); err == nil {
			return nil, fmt.Errorf("%s is missing and bundle.json is not; restore it from a backup, or move the whole "+
				"directory away to start a new root (every sidecar must then be enrolled again)", ca.path("root.pem"))
		}
		return ca, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the root: %w; restore it from a backup", err)
	}
	if len(root.cert.URIs) != 1 {
		return nil, fmt.Errorf("the root %s names no trust domain; restore it from a backup", ca.path("root.pem"))
	}
	ca.root = root
	inter, err := read(ca.path("intermediate.pem"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read the intermediate: %w; delete the file to have a new one made", err)
	case inter.cert.CheckSignatureFrom(root.cert) != nil:
		return nil, fmt.Errorf("the intermediate %s was not signed by the root; delete the file to have a new one made", ca.path("intermediate.pem"))
	default:
		ca.inter = inter
	}
	if err := ca.loadBundle(); err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.fault = ca.renew(time.Now())
	return ca, nil
}

// LeafTTL is how long an SVID lasts that is signed now.
func (ca *CA) LeafTTL() time.Duration { return ca.leafTTL }

func (ca *CA) path(name string) string { return filepath.Join(ca.dir, name) }

// Bind makes the authority for a trust domain, or checks that it is the one it has. It is called with the trust domain
// of every release that is to be served.
func (ca *CA) Bind(trustDomain string) error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.root != nil && ca.bundle.Get() == nil { // the root could be kept, and the bundle not
		if err := ca.loadBundle(); err != nil {
			return err
		}
		ca.fault = ca.renew(time.Now())
	}
	if ca.root != nil {
		if td := ca.root.cert.URIs[0].Host; td != trustDomain {
			return fmt.Errorf("%w: it is of %s, the release is of %s; revert that change, or give the control plane a "+
				"new state directory and enrol every sidecar again", ErrTrustDomain, td, trustDomain)
		}
		return nil
	}
	if err := spiffe.CheckTrustDomain(trustDomain); err != nil {
		return err
	}
	root, err := newRoot(trustDomain, time.Now())
	if err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	if err := write(ca.path("root.pem"), root); err != nil {
		return err
	}
	ca.root = root
	if err := ca.loadBundle(); err != nil {
		return err
	}
	ca.fault = ca.renew(time.Now())
	return ca.fault
}

// stored is the trust bundle on disk.
type stored struct {
	TrustDomain string   `json:"trustDomain"`
	Generation  uint64   `json:"generation"`
	Roots       []string `json:"roots"` // X.509, DER, base64
}

// loadBundle reads the bundle and publishes it; if it does not have the root, as when the authority is new, it gets it,
// under the next generation.
func (ca *CA) loadBundle() error {
	path, td := ca.path("bundle.json"), ca.root.cert.URIs[0].Host
	s := stored{TrustDomain: td}
	b, err := durable.ReadSealed(path)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the trust bundle: %w; restore it from a backup", err)
	}
	own := base64.StdEncoding.EncodeToString(ca.root.cert.Raw)
	if !slices.Contains(s.Roots, own) {
		s.Roots = append(s.Roots, own)
		s.Generation++
		b, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("encode the trust bundle: %w", err)
		}
		if err := durable.WriteSealed(path, b, 0o600); err != nil {
			return fmt.Errorf("keep the trust bundle: %w", err)
		}
	}
	bundle := &spiffe.Bundle{TrustDomain: td, Generation: s.Generation}
	for _, r := range s.Roots {
		der, err := base64.StdEncoding.DecodeString(r)
		if err != nil {
			return fmt.Errorf("read the trust bundle: %w; restore it from a backup", err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read the trust bundle: %w; restore it from a backup", err)
		}
		bundle.Roots = append(bundle.Roots, c)
	}
	ca.bundle.Set(bundle)
	return nil
}

// Bundle returns the trust bundle, nil before [CA.Bind], and a channel that closes when there is a newer one.
func (ca *CA) Bundle() (*spiffe.Bundle, <-chan struct{}) { return ca.bundle.Watch() }

// Fingerprint is the SHA-256 of the root's SubjectPublicKeyInfo, in hexadecimal: what join tokens carry, so that a new
// sidecar knows whom it talks to.
func (ca *CA) Fingerprint() (string, error) {
	b := ca.bundle.Get()
	if b == nil {
		return "", ErrUnbound
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	sum := sha256.Sum256(ca.root.cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

// Sign checks a certificate request (PKCS #10, DER) against the identity that its sender has proven, and signs it. The
// request names exactly that identity, as its one URI SAN, or nothing at all. enrolment becomes the serial number of the
// subject, the one attribute that it has: several workloads share an identity, and by this each can be told from the
// others. X509-SVID.md (section 2) leaves the subject to the authority, and verifiers of an identity ignore it. The chain is
// leaf first, without the root. Errors are ErrUnbound, ErrExpiring and those that wrap ErrRequest.
func (ca *CA) Sign(csr []byte, id spiffe.ID, enrolment string) (chain [][]byte, notAfter time.Time, err error) {
	key, err := checkRequest(csr, id)
	if err != nil {
		return nil, time.Time{}, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.sign(key, id, enrolment, time.Now())
}

// sign needs mu.
func (ca *CA) sign(key crypto.PublicKey, id spiffe.ID, enrolment string, now time.Time) ([][]byte, time.Time, error) {
	if ca.root == nil || ca.bundle.Get() == nil { // nobody could verify it
		return nil, time.Time{}, ErrUnbound
	}
	if td := ca.root.cert.URIs[0].Host; id.TrustDomain() != td {
		return nil, time.Time{}, fmt.Errorf("%w: %s is not of trust domain %s", ErrRequest, id, td)
	}
	if err := ca.able(now); err != nil {
		return nil, time.Time{}, err
	}
	uri, err := url.Parse(string(id))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, time.Time{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{SerialNumber: enrolment},
		NotBefore:             laterOf(now.Add(-Skew), ca.inter.cert.NotBefore),
		NotAfter:              now.Add(ca.leafTTL).Truncate(time.Second),
		URIs:                  []*url.URL{uri},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.inter.cert, key, ca.inter.key)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("sign the certificate of %s: %w", id, err)
	}
	return [][]byte{der, ca.inter.cert.Raw}, template.NotAfter, nil
}

// able reports whether a leaf signed now would end before its issuers. It needs mu.
func (ca *CA) able(now time.Time) error {
	if ca.inter == nil {
		return fmt.Errorf("%w: there is no intermediate (%v)", ErrExpiring, ca.fault)
	}
	end := now.Add(ca.leafTTL)
	if end.After(ca.root.cert.NotAfter) {
		return fmt.Errorf("%w: the root ends %s; start a new root: see `heddle controlplane --help`",
			ErrExpiring, ca.root.cert.NotAfter.Format(time.RFC3339))
	}
	if end.After(ca.inter.cert.NotAfter) {
		err := fmt.Errorf("%w: the intermediate ends %s", ErrExpiring, ca.inter.cert.NotAfter.Format(time.RFC3339))
		if ca.fault != nil {
			err = fmt.Errorf("%w and could not be renewed: %w", err, ca.fault)
		}
		return err
	}
	return nil
}

func laterOf(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// checkRequest returns the public key of a request that may be signed for an identity.
func checkRequest(der []byte, id spiffe.ID) (crypto.PublicKey, error) {
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: it is not signed by its own key: %w", ErrRequest, err)
	}
	if len(r.URIs) > 1 || len(r.URIs) == 1 && r.URIs[0].String() != string(id) {
		return nil, fmt.Errorf("%w: it asks for %v; what was proven is %s", ErrRequest, r.URIs, id)
	}
	if len(r.DNSNames)+len(r.IPAddresses)+len(r.EmailAddresses) > 0 {
		return nil, fmt.Errorf("%w: it asks for other names than a SPIFFE ID", ErrRequest)
	}
	switch k := r.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: its key is on curve %s; use P-256", ErrRequest, k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return nil, fmt.Errorf("%w: its RSA key has %d bits; use 2048 to 8192, or ECDSA P-256", ErrRequest, k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("%w: keys of type %T are not signed; use ECDSA P-256", ErrRequest, k)
	}
	return r.PublicKey, nil
}

// ServerCertificate is for tls.Config.GetCertificate of the stream port: the newest SVID of the control plane itself.
func (ca *CA) ServerCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.server == nil {
		return nil, ErrUnbound
	}
	return ca.server, nil
}

// EnrolmentCertificate is for tls.Config.GetCertificate of the enrolment port: as ServerCertificate, with the root at
// the end of the chain, whose fingerprint a new sidecar knows.
func (ca *CA) EnrolmentCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.server == nil {
		return nil, ErrUnbound
	}
	c := *ca.server
	c.Certificate = append(slices.Clone(c.Certificate), ca.root.cert.Raw)
	return &c, nil
}

// renew replaces the intermediate and the control plane's own certificate where it is time. It needs mu.
func (ca *CA) renew(now time.Time) error {
	if ca.root == nil || ca.bundle.Get() == nil {
		return nil
	}
	// Certificates end by the wall clock; the monotonic one stands still while a machine sleeps.
	now = now.Round(0)
	fault := ca.renewIntermediate(now)
	if ca.server == nil || !now.Before(ca.renewServer) { // while the intermediate at hand lasts, even if a next one cannot be kept
		fault = errors.Join(fault, ca.renewOwn(now))
	}
	return fault
}

// renewIntermediate needs mu.
func (ca *CA) renewIntermediate(now time.Time) error {
	future := ca.inter != nil && ca.inter.cert.NotBefore.After(now.Add(Skew)) // made before a clock was set right
	if ca.inter != nil && !future && !now.After(middle(ca.inter.cert)) {
		return nil
	}
	// Near its own end the root signs an intermediate that ends with it; what cannot fit into that is refused.
	end := now.Add(IntermediateLife)
	if end.After(ca.root.cert.NotAfter) {
		end = ca.root.cert.NotAfter
	}
	if ca.inter != nil && !future && !end.After(ca.inter.cert.NotAfter) {
		return nil
	}
	next, err := newIntermediate(ca.root, now, end)
	if err != nil {
		return fmt.Errorf("make the intermediate: %w", err)
	}
	if err := write(ca.path("intermediate.pem"), next); err != nil {
		return err
	}
	ca.inter = next
	return nil
}

// renewOwn replaces the certificate that the control plane serves with. It needs mu.
func (ca *CA) renewOwn(now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the control plane's key: %w", err)
	}
	chain, notAfter, err := ca.sign(key.Public(), spiffe.ControlPlaneID(ca.root.cert.URIs[0].Host), "", now)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("read the control plane's certificate: %w", err)
	}
	ca.server = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	ca.renewServer = now.Add(notAfter.Sub(now) * 7 / 10)
	return nil
}

func middle(c *x509.Certificate) time.Time { return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2) }

// Run renews what ends, until ctx is done. It is called once.
func (ca *CA) Run(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	warned := false
	for {
		_, changed := ca.bundle.Watch()
		ca.mu.Lock()
		now := time.Now()
		had := ca.fault
		ca.fault = ca.renew(now)
		next := 10 * time.Minute // a clock may be set, and a machine may sleep
		if ca.root != nil {
			if ca.server != nil {
				next = min(next, ca.renewServer.Sub(now.Round(0)))
			}
			if ca.fault != nil {
				next = min(next, 10*time.Second)
			}
			if left := ca.root.cert.NotAfter.Sub(now); left < warning && !warned {
				warned = true
				log.Warn().Time("ends", ca.root.cert.NotAfter).Msg("the root of the mesh ends soon; start a new one before")
			}
		}
		fault := ca.fault
		ca.mu.Unlock()
		if fault != nil && (had == nil || had.Error() != fault.Error()) {
			log.Error().Err(fault).Msg("certificates cannot be renewed")
		}
		timer := time.NewTimer(max(next, 100*time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-changed: // bound to a trust domain
			timer.Stop()
		}
	}
}

// Status is what an operator sees of the authority.
type Status struct {
	TrustDomain  string    `json:"trustDomain,omitempty"`
	Fingerprint  string    `json:"fingerprint,omitempty"`
	Generation   uint64    `json:"generation,omitempty"`
	Root         time.Time `json:"root,omitzero"`         // when it ends
	Intermediate time.Time `json:"intermediate,omitzero"` // when it ends
	NotAfter     time.Time `json:"notAfter,omitzero"`     // the earlier of the two
	LeafTTL      string    `json:"leafTTL"`
	// Warning is set thirty days before the root ends; Fault while nothing can be signed.
	Warning string `json:"warning,omitempty"`
	Fault   string `json:"fault,omitempty"`
}

// Status describes the authority now.
func (ca *CA) Status() Status {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	s := Status{LeafTTL: ca.leafTTL.String()}
	if ca.root == nil || ca.bundle.Get() == nil {
		s.Fault = ErrUnbound.Error()
		return s
	}
	now := time.Now()
	sum := sha256.Sum256(ca.root.cert.RawSubjectPublicKeyInfo)
	s.TrustDomain, s.Fingerprint = ca.root.cert.URIs[0].Host, hex.EncodeToString(sum[:])
	s.Generation = ca.bundle.Get().Generation
	s.Root, s.NotAfter = ca.root.cert.NotAfter, ca.root.cert.NotAfter
	if ca.inter != nil {
		s.Intermediate = ca.inter.cert.NotAfter
		if s.Intermediate.Before(s.NotAfter) {
			s.NotAfter = s.Intermediate
		}
	}
	if left := s.Root.Sub(now); left < warning {
		s.Warning = fmt.Sprintf("the root ends in %v; start a new root before", left.Truncate(time.Hour))
	}
	if err := ca.able(now); err != nil {
		s.Fault = err.Error()
	}
	return s
}

func newRoot(trustDomain string, now time.Time) (*issuer, error) {
	t := &x509.Certificate{
		Subject:    pkix.Name{Organization: []string{"Heddle"}, CommonName: "heddle root"},
		NotBefore:  now.Add(-Skew),
		NotAfter:   now.Add(RootLife),
		URIs:       []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		MaxPathLen: 1,
	}
	return newIssuer(t, nil)
}

func newIntermediate(root *issuer, now, end time.Time) (*issuer, error) {
	var name [4]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, err
	}
	return newIssuer(&x509.Certificate{
		// The name differs between replicas, and from the root's, so that chains are never built through the wrong one.
		Subject:        pkix.Name{Organization: []string{"Heddle"}, CommonName: "heddle intermediate " + hex.EncodeToString(name[:])},
		NotBefore:      laterOf(now.Add(-Skew), root.cert.NotBefore),
		NotAfter:       end,
		URIs:           root.cert.URIs,
		MaxPathLenZero: true,
	}, root)
}

// newIssuer makes a key and has the template signed by the parent, or by itself.
func newIssuer(t *x509.Certificate, parent *issuer) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if t.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	by := &issuer{cert: t, key: key}
	if parent != nil {
		by = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuer{cert: cert, key: key}, nil
}

// newSerial is 127 random bits (RFC 5280, 4.1.2.2: positive, at most 20 octets).
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// write keeps an issuer: its certificate and its key in one file, so that the two are always of each other.
func write(path string, i *issuer) error {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return fmt.Errorf("encode the key for %s: %w", path, err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	return nil
}

func read(path string) (*issuer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(b, b) // finds both blocks, and checks that they are of each other
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || pair.Leaf == nil || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s does not hold a signing certificate and its key", path)
	}
	return &issuer{cert: pair.Leaf, key: key}, nil
}
