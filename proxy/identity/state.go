package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// State is the sidecar's own directory, as far as identity goes:
//
//	host.key  ECDSA P-256 (PKCS #8, PEM); made once; proves this host at every enrolment after the first
//	svid      the workload's names, its certificate chain and key, sealed
//	bundle    the trust bundle, sealed
//
// All files are 0600. The key is kept beside the config so that mTLS works after a restart without a control plane
// (decisions.md, 17). Its owner is proxy.Run, which holds the directory's lock.
type State struct {
	dir     string
	hostKey *ecdsa.PrivateKey
}

// OpenState makes the directory (0700) and the host key where they are missing. A key that others may read is refused.
func OpenState(dir string) (*State, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	s := &State{dir: dir}
	path := s.path("host.key")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.newHostKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the host key: %w", err)
	}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("read the host key: %w", err)
	} else if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the host key %s may be read by others (mode %04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("the host key %s is not PEM; restore it, or delete it and enrol with a new join token", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the host key %s: %w; restore it, or delete it and enrol with a new join token", path, err)
	}
	var ok bool
	if s.hostKey, ok = key.(*ecdsa.PrivateKey); !ok || s.hostKey.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the host key %s is not ECDSA P-256; delete it and enrol with a new join token", path)
	}
	return s, nil
}

func (s *State) newHostKey(path string) (err error) {
	if s.hostKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return fmt.Errorf("make the host key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.hostKey)
	if err != nil {
		return fmt.Errorf("encode the host key: %w", err)
	}
	return durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (s *State) path(name string) string { return filepath.Join(s.dir, name) }

// Sign is an ASN.1 ECDSA signature by the host key over a SHA-256 digest.
func (s *State) Sign(digest [sha256.Size]byte) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, s.hostKey, digest[:])
}

// Verify checks a signature of Sign.
func (s *State) Verify(digest [sha256.Size]byte, signature []byte) bool {
	return ecdsa.VerifyASN1(&s.hostKey.PublicKey, digest[:], signature)
}

// Enrolment is who this sidecar is, by the word of a control plane.
type Enrolment struct {
	Workload string           `json:"workload"`
	Service  mesh.ServiceName `json:"service"`
	// Token is the id of the join token that was used last; empty: not known.
	Token string `json:"token,omitempty"`
}

type storedSVID struct {
	Enrolment
	Chain [][]byte `json:"chain"`
	Key   []byte   `json:"key"` // PKCS #8
	// Received keeps renewal at its share of the life over a restart.
	Received time.Time `json:"received"`
}

type storedBundle struct {
	TrustDomain string   `json:"trustDomain"`
	Generation  uint64   `json:"generation"`
	Roots       [][]byte `json:"roots"`
}

// Load reads what Save and SaveBundle kept. Without an enrolment it returns the zero Enrolment and no error. An SVID
// that has expired is returned with its bundle: it says who this is, and Source.Valid says that it no longer serves.
// Where the SVID is damaged, a good bundle is returned with the error: it lets the host key enrol again.
func (s *State) Load(now time.Time) (Enrolment, *Material, error) {
	m := &Material{}
	var roots storedBundle
	found, err := s.unseal("bundle", &roots)
	if err != nil || !found {
		return Enrolment{}, m, err
	}
	if m.Bundle, err = ParseBundle(roots.TrustDomain, roots.Generation, roots.Roots); err != nil {
		return Enrolment{}, m, fmt.Errorf("read the identity that was kept: %w", err)
	}
	var kept storedSVID
	if found, err = s.unseal("svid", &kept); err != nil || !found {
		return Enrolment{}, m, err
	}
	key, err := x509.ParsePKCS8PrivateKey(kept.Key)
	if err != nil {
		return Enrolment{}, m, fmt.Errorf("read the identity that was kept: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || len(kept.Chain) == 0 {
		return Enrolment{}, m, errors.New("read the identity that was kept: it has no ECDSA key or no certificate")
	}
	leaf, err := x509.ParseCertificate(kept.Chain[0])
	if err != nil {
		return Enrolment{}, m, fmt.Errorf("read the identity that was kept: %w", err)
	}
	if now.After(leaf.NotAfter) { // judged as of its own time
		now = leaf.NotAfter
	}
	if m.SVID, err = NewSVID(kept.Chain, ec, m.Bundle, now); err != nil {
		m.SVID = nil
		return Enrolment{}, m, fmt.Errorf("the identity that was kept is not of the bundle that was kept: %w", err)
	}
	if kept.Received.Before(now) {
		m.SVID.Received = kept.Received
	}
	return kept.Enrolment, m, nil
}

// Save keeps an SVID with its key.
func (s *State) Save(e Enrolment, svid *SVID) error {
	der, err := x509.MarshalPKCS8PrivateKey(svid.key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	return s.seal("svid", storedSVID{e, svid.cert.Certificate, der, svid.Received})
}

// SaveBundle keeps a trust bundle.
func (s *State) SaveBundle(b *spiffe.Bundle) error {
	k := storedBundle{TrustDomain: b.TrustDomain, Generation: b.Generation}
	for _, c := range b.Roots {
		k.Roots = append(k.Roots, c.Raw)
	}
	return s.seal("bundle", k)
}

// unseal reports whether there is such a file.
func (s *State) unseal(name string, v any) (bool, error) {
	b, err := durable.ReadSealed(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("read the identity that was kept: %w", err)
	}
	return true, nil
}

func (s *State) seal(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep the %s: %w", name, err)
	}
	if err := durable.WriteSealed(s.path(name), b, 0o600); err != nil {
		return fmt.Errorf("keep the %s: %w", name, err)
	}
	return nil
}
