// Package pinned turns an Ed25519 key into mutual TLS between two of Heddle's programs that know each other's public
// key: no authority, no names, no expiry. It carries releases from the reconciler to control planes on other machines.
//
// The certificates are self-signed wrappings of the keys. TLS 1.3 proves that the peer holds its key; whether that key
// is one we talk to is decided in VerifyConnection, which runs on every handshake. Keys are printed and read by
// package schema/release (FormatKey, ParseKey).
package pinned

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/release"
)

// pemType is that of PKCS #8 (RFC 7468, 10), which openssl reads too.
const pemType = "PRIVATE KEY"

// LoadOrCreateKey reads the PEM file at path, or makes a new key and writes it there with mode 0600, in a directory
// that it creates with mode 0700. A file that others may read is refused: a key that leaked signs releases. Of two
// programs that find no key at the same time (`heddle key` beside a starting reconciler) one makes it and both read it.
func LoadOrCreateKey(path string) (ed25519.PrivateKey, error) {
	key, err := LoadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return create(path)
	}
	return key, err
}

// LoadKey reads the key of [LoadOrCreateKey] for those who must not make one: fs.ErrNotExist where there is none.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the key: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("the key %s may be read by others (mode %04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("%s is not one PEM block of type %q; restore it from a backup, or move it away to get a new key",
			path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); restore it from a backup, or move it away to get a new key", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T; Heddle's own keys are Ed25519", path, parsed)
	}
	return key, nil
}

func create(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("writing the key: %w", err)
	}
	ours := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(ours)
	if err := durable.WriteFile(ours, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("writing the key: %w", err)
	}
	switch err := os.Link(ours, path); { // unlike a rename, this never replaces
	case errors.Is(err, fs.ErrExist):
		return LoadOrCreateKey(path)
	case err != nil:
		return nil, fmt.Errorf("writing the key: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("writing the key: %w", err)
	}
	return key, nil
}

// Public is the public half of a key that this package made.
func Public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// ErrPeer means that the other end proved a key, but not one that we talk to.
var ErrPeer = errors.New("the peer's key is not one that was pinned")

// ServerTLS admits clients whose public key allowed approves. allowed runs in the handshake of every connection and
// must be safe for concurrent use; it sees the key that the client proved to hold.
func ServerTLS(key ed25519.PrivateKey, allowed func(ed25519.PublicKey) bool) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{certificate(key)},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := PeerKey(cs)
			if err != nil {
				return err
			}
			if !allowed(peer) {
				return fmt.Errorf("%w: %s", ErrPeer, release.FormatKey(peer))
			}
			return nil
		},
	}
}

// ClientTLS proves key to the server and goes on only if the server proves the key named server.
func ClientTLS(key ed25519.PrivateKey, server ed25519.PublicKey) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate(key)},
		// There is no chain and no name to verify: VerifyConnection compares the proven key with the pinned one.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := PeerKey(cs)
			if err != nil {
				return err
			}
			if !peer.Equal(server) {
				return fmt.Errorf("%w: the server proved %s, pinned is %s", ErrPeer, release.FormatKey(peer), release.FormatKey(server))
			}
			return nil
		},
	}
}

// PeerKey is the public key that the other end of a handshake proved to hold.
func PeerKey(cs tls.ConnectionState) (ed25519.PublicKey, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, fmt.Errorf("%w: it sent no certificate", ErrPeer)
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is a %T, not an Ed25519 key", ErrPeer, cs.PeerCertificates[0].PublicKey)
	}
	return key, nil
}

// certificate wraps a key. Its contents do not matter, since peers compare keys; its dates are fixed so that no clock
// does either. The last moment is that of RFC 5280, 4.1.2.5, for certificates without an end.
func certificate(key ed25519.PrivateKey) tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "heddle"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(fmt.Sprintf("pinned: a fixed template was refused: %v", err)) // nothing in it depends on input
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
