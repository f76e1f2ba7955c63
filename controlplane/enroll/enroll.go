// Package enroll decides who a new sidecar is: it turns a join token, or a proof by a host key that a token registered
// before, into the identity that policy gives the workload, and has package identity sign a certificate for exactly
// that. It keeps tokens (only the SHA-256 of their secret) and enrolments on disk, one sealed file each:
//
//	tokens/<id>           until a day after the token ended
//	hosts/<SHA-256 of the workload's name>
//
// A token is for one workload and registers one host key. The same key may use it again while it lasts, since an answer
// can get lost; another key is refused. Later enrolments prove by the host key alone. A token that registers another key
// moves the workload there: that is a new enrolment, and the certificates and used tokens of the one before are void.
// It is the only package that decides about proofs; it imports no stream and no inventory.
package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

const (
	// TokenTTL is how long a token lasts by default.
	TokenTTL = time.Hour
	// MaxTokenTTL is the longest that a token may last.
	MaxTokenTTL = 7 * 24 * time.Hour
	// remember is how long an ended token stays, so that its user is told that it ended rather than that it never was.
	remember = 24 * time.Hour
	// tokenPrefix starts a printed token, so that one is never mistaken for another secret.
	tokenPrefix = "heddle-join-1."
	// maxRequest bounds the parts of a request, in bytes.
	maxRequest = 16 << 10
)

// Enrolment is a workload with its registered host key. It is never written again.
type Enrolment struct {
	// ID is random, and in every certificate that is issued for this enrolment, so that none outlives it on the stream.
	ID       string           `json:"id"`
	Workload string           `json:"workload"`
	Service  mesh.ServiceName `json:"service"` // of the token; where policy declares the workload, its word counts
	HostKey  []byte           `json:"hostKey"` // PKIX, DER
	Token    string           `json:"token"`   // the id of the token that registered the key
	Created  time.Time        `json:"created"`
}

type token struct {
	ID       string           `json:"id"`
	Secret   []byte           `json:"secret"` // its SHA-256
	Workload string           `json:"workload"`
	Service  mesh.ServiceName `json:"service"`
	Expires  time.Time        `json:"expires"`
	HostKey  []byte           `json:"hostKey,omitempty"` // that used it
	Moved    bool             `json:"moved,omitempty"`   // another host key was registered for the workload since
}

// JoinToken is the content of a join token, between the prefix and the end of the file.
type JoinToken struct {
	ID           string   `json:"id"`
	Secret       string   `json:"secret"` // base64url
	Workload     string   `json:"workload"`
	Service      string   `json:"service"`
	Fingerprint  string   `json:"fingerprint"`            // SHA-256 of the root's SubjectPublicKeyInfo, hexadecimal
	Fingerprints []string `json:"fingerprints,omitempty"` // all of them, while a root is being replaced
}

// Register is the enrolments and tokens. Its methods are safe for concurrent use; it owns its directory.
type Register struct {
	proxyapi.UnimplementedEnrolmentServer

	dir  string
	ca   *identity.CA
	mesh func() *mesh.Mesh // nil: no release yet

	mu     sync.Mutex // guards what follows, and is held while files are written
	tokens map[string]*token
	hosts  map[string]*Enrolment
	change live.Value[uint64] // counts the changes of hosts
}

// Open reads the register kept in a directory, which it makes (0700). mesh returns the newest mesh, nil before the
// first release. A damaged file is an error: who is enrolled is never guessed.
func Open(dir string, ca *identity.CA, mesh func() *mesh.Mesh) (*Register, error) {
	r := &Register{dir: dir, ca: ca, mesh: mesh, tokens: map[string]*token{}, hosts: map[string]*Enrolment{}}
	if err := load(filepath.Join(dir, "tokens"), func(t *token) { r.tokens[t.ID] = t }); err != nil {
		return nil, err
	}
	err := load(filepath.Join(dir, "hosts"), func(e *Enrolment) {
		if e.ID != "" { // else no certificate could be bound to it: a new token has to replace it
			r.hosts[e.Workload] = e
		}
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func load[T any](dir string, add func(*T)) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the register of enrolments: %w", err)
	}
	if err := durable.Clean(dir); err != nil {
		return fmt.Errorf("clean the register of enrolments: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the register of enrolments: %w", err)
	}
	for _, f := range files {
		v := new(T)
		b, err := durable.ReadSealed(filepath.Join(dir, f.Name()))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			return fmt.Errorf("read the register of enrolments: %w; restore %s from a backup, or delete it and enrol that workload again",
				err, filepath.Join(dir, f.Name()))
		}
		add(v)
	}
	return nil
}

func (r *Register) tokenPath(id string) string { return filepath.Join(r.dir, "tokens", id) }

func (r *Register) hostPath(workload string) string {
	sum := sha256.Sum256([]byte(workload))
	return filepath.Join(r.dir, "hosts", hex.EncodeToString(sum[:]))
}

func keep(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := durable.WriteSealed(path, b, 0o600); err != nil {
		return fmt.Errorf("keep the register of enrolments: %w", err)
	}
	return nil
}

// name is "<namespace>/<name>", two DNS labels (RFC 1123).
var name = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// NewToken makes a join token for one workload of a service. ttl 0 is [TokenTTL]. The result is the content of the token
// file; the secret in it is kept nowhere.
func (r *Register) NewToken(workload string, service mesh.ServiceName, ttl time.Duration) (string, time.Time, error) {
	if ttl == 0 {
		ttl = TokenTTL
	}
	fingerprint, err := r.ca.Fingerprint()
	switch {
	case err != nil:
		return "", time.Time{}, err
	case !name.MatchString(workload):
		return "", time.Time{}, fmt.Errorf("workload %q is not <namespace>/<name> in lower-case letters, digits and '-'", workload)
	case !name.MatchString(string(service)):
		return "", time.Time{}, fmt.Errorf("service %q is not <namespace>/<name> in lower-case letters, digits and '-'", service)
	case ttl < time.Second || ttl > MaxTokenTTL:
		return "", time.Time{}, fmt.Errorf("a token's lifetime of %v is not between 1s and %v", ttl, MaxTokenTTL)
	}
	if m := r.mesh(); m != nil {
		if w := declared(m, workload); w != nil && w.Service != service {
			return "", time.Time{}, fmt.Errorf("policy says that workload %s runs %s, not %s", workload, w.Service, service)
		}
	}
	var id [12]byte
	var secret [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", time.Time{}, fmt.Errorf("make a token: %w", err)
	}
	if _, err := rand.Read(secret[:]); err != nil {
		return "", time.Time{}, fmt.Errorf("make a token: %w", err)
	}
	now := time.Now()
	sum := sha256.Sum256(secret[:])
	t := &token{ID: hex.EncodeToString(id[:]), Secret: sum[:], Workload: workload, Service: service, Expires: now.Add(ttl)}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, old := range r.tokens {
		if now.Sub(old.Expires) > remember {
			if err := os.Remove(r.tokenPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", time.Time{}, fmt.Errorf("remove an ended token: %w", err)
			}
			delete(r.tokens, id)
		}
	}
	if err := r.keepToken(t); err != nil {
		return "", time.Time{}, err
	}
	b, err := json.Marshal(JoinToken{
		ID: t.ID, Secret: base64.RawURLEncoding.EncodeToString(secret[:]), Workload: workload, Service: string(service),
		Fingerprint: fingerprint, Fingerprints: []string{fingerprint},
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("encode a token: %w", err)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b), t.Expires, nil
}

// ParseToken reads what NewToken made.
func ParseToken(s string) (*JoinToken, error) {
	enc, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(enc)
	t := new(JoinToken)
	if !ok || err != nil || json.Unmarshal(b, t) != nil {
		return nil, fmt.Errorf("this is no join token: one starts with %s", tokenPrefix)
	}
	return t, nil
}

func declared(m *mesh.Mesh, workload string) *mesh.Workload {
	i, ok := slices.BinarySearchFunc(m.Workloads, workload, func(w mesh.Workload, n string) int { return strings.Compare(w.Name, n) })
	if !ok {
		return nil
	}
	return &m.Workloads[i]
}

// Grant is what policy gives an enrolled workload now.
type Grant struct {
	Service  mesh.ServiceName
	Identity spiffe.ID
}

var (
	// ErrUnknown means that the mesh does not know a workload's service (yet).
	ErrUnknown = errors.New("the mesh does not know the service")
	// ErrNotEnrolled means that no host key is registered for a workload: none ever was, or it was revoked.
	ErrNotEnrolled = errors.New("not enrolled")
)

// grant is the service and the identity of a workload in a mesh: those that policy declares for it, else those of the
// service that its token named.
func grant(m *mesh.Mesh, workload string, service mesh.ServiceName) (Grant, error) {
	g := Grant{Service: service}
	if w := declared(m, workload); w != nil {
		g.Service, g.Identity = w.Service, spiffe.ID(w.Identity)
	}
	in, ok := m.InboundOf(g.Service)
	if !ok || len(in.Identities) == 0 {
		g.Identity = spiffe.ServiceID(m.Settings.TrustDomain, g.Service)
		return g, fmt.Errorf("%w: there is no service %s in the release at hand; commit it to the policy repository, "+
			"or make a token for another service", ErrUnknown, g.Service)
	}
	if g.Identity == "" {
		g.Identity = spiffe.ID(in.Identities[0])
	}
	if g.Identity == spiffe.ControlPlaneID(m.Settings.TrustDomain) {
		return Grant{}, fmt.Errorf("policy gives workload %s the identity of control planes, which no workload gets; name another one", workload)
	}
	return g, nil
}

// Grant returns what policy gives a workload now; an error says why it gets nothing. With ErrUnknown the grant is the one
// that the service would have by default: enough to recognise a sidecar whose service was taken out of policy, never to
// sign for.
func (r *Register) Grant(workload string) (Grant, error) {
	r.mu.Lock()
	e := r.hosts[workload]
	r.mu.Unlock()
	if e == nil {
		return Grant{}, fmt.Errorf("%w: workload %s; make a join token for it with `heddle token create`", ErrNotEnrolled, workload)
	}
	m := r.mesh()
	if m == nil {
		return Grant{}, identity.ErrUnbound
	}
	return grant(m, workload, e.Service)
}

// Preview says why policy would give a workload that is not enrolled yet nothing at all; nil: it gives it something. The
// policy of the moment of enrolment decides.
func (r *Register) Preview(workload string, service mesh.ServiceName) error {
	m := r.mesh()
	if m == nil {
		return identity.ErrUnbound
	}
	_, err := grant(m, workload, service)
	return err
}

// List returns the enrolments, sorted by workload, and a channel that closes when they change.
func (r *Register) List() ([]*Enrolment, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, stale := r.change.Watch()
	out := make([]*Enrolment, 0, len(r.hosts))
	for _, e := range r.hosts {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *Enrolment) int { return strings.Compare(a.Workload, b.Workload) })
	return out, stale
}

// Changed returns a channel that closes when enrolments change.
func (r *Register) Changed() <-chan struct{} {
	_, stale := r.change.Watch()
	return stale
}

// Bound returns nil if a certificate was issued for the enrolment that a workload has now. An error says that it was
// not, and what to do: the workload was moved to another host or revoked, or the certificate is of another workload.
func (r *Register) Bound(workload string, leaf *x509.Certificate) error {
	r.mu.Lock()
	e := r.hosts[workload]
	r.mu.Unlock()
	switch {
	case e == nil:
		return fmt.Errorf("%w: workload %s; make a join token for it with `heddle token create`", ErrNotEnrolled, workload)
	case e.ID == "" || leaf.Subject.SerialNumber != e.ID:
		return fmt.Errorf("the certificate is of another enrolment than the one that workload %s has since %s: it was moved to another host, "+
			"or is another workload's; stop this sidecar, or move the workload here with a join token of `heddle token create`",
			workload, e.Created.Format(time.RFC3339))
	}
	return nil
}

// Enrolled reports whether a workload is enrolled.
func (r *Register) Enrolled(workload string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hosts[workload] != nil
}

// Revoke takes back an enrolment, and the tokens of the workload: neither its host key nor a token proves it any more. Where
// there is none the error is ErrNotEnrolled.
func (r *Register) Revoke(workload string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts[workload] == nil {
		return fmt.Errorf("%w: workload %s", ErrNotEnrolled, workload)
	}
	for id, t := range r.tokens { // before the host, so that a crash leaves nothing that would enrol it again
		if t.Workload != workload {
			continue
		}
		if err := os.Remove(r.tokenPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("revoke %s: %w", workload, err)
		}
		delete(r.tokens, id)
	}
	path := r.hostPath(workload)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("revoke %s: %w", workload, err)
	}
	if err := errors.Join(durable.SyncDir(filepath.Dir(path)), durable.SyncDir(filepath.Join(r.dir, "tokens"))); err != nil {
		return fmt.Errorf("revoke %s: %w", workload, err)
	}
	delete(r.hosts, workload)
	r.change.Set(r.change.Get() + 1)
	return nil
}

// Enrol implements proxyapi.EnrolmentServer.
func (r *Register) Enrol(ctx context.Context, q *proxyapi.EnrolRequest) (*proxyapi.EnrolResponse, error) {
	log := zerolog.Ctx(ctx)
	resp, how, err := r.enrol(q, time.Now())
	if err != nil {
		log.Warn().Str("workload", clip(q.GetWorkload())).Err(err).Msg("enrolment refused")
		return nil, err
	}
	log.Info().Str("workload", resp.Workload).Str("identity", resp.Identity).Str("proof", how).Msg("enrolled")
	return resp, nil
}

// clip bounds what a stranger may write into the log.
func clip(s string) string { return s[:min(len(s), 128)] }

func refuse(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, format, args...)
}

func (r *Register) enrol(q *proxyapi.EnrolRequest, now time.Time) (*proxyapi.EnrolResponse, string, error) {
	switch {
	case !name.MatchString(q.GetWorkload()):
		return nil, "", refuse(codes.InvalidArgument, "the workload's name is not <namespace>/<name>")
	case len(q.GetCsr()) > maxRequest, len(q.GetHostKey()) > maxRequest, len(q.GetProof()) > maxRequest:
		return nil, "", refuse(codes.InvalidArgument, "the request is too large")
	case q.GetTime() == nil || q.GetTime().AsTime().Sub(now).Abs() > proxyapi.ProofSkew:
		return nil, "", refuse(codes.FailedPrecondition, "the proof's time is more than %v off the control plane's clock; set the host's clock",
			proxyapi.ProofSkew)
	}
	pub, err := x509.ParsePKIXPublicKey(q.GetHostKey())
	key, ok := pub.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, "", refuse(codes.InvalidArgument, "the host key is not an ECDSA P-256 key in PKIX form")
	}
	if !ecdsa.VerifyASN1(key, proxyapi.EnrolDigest(q), q.GetProof()) {
		return nil, "", refuse(codes.PermissionDenied, "the proof was not made by the host key for this request")
	}
	m := r.mesh()
	if m == nil {
		return nil, "", refuse(codes.Unavailable, "%v; try again", identity.ErrUnbound)
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	// What is parsed is compared in one spelling, so that a key has one form in the register.
	hostKey, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, "", refuse(codes.InvalidArgument, "the host key cannot be encoded: %v", err)
	}
	e := r.hosts[q.GetWorkload()]
	registered := e != nil && subtle.ConstantTimeCompare(e.HostKey, hostKey) == 1
	var t *token
	how := "host key"
	if q.GetTokenId() != "" {
		t, err = r.token(q, hostKey, now)
		// A host that restarts offers its old token again; the registered key proves enough.
		if err != nil && !registered {
			return nil, "", err
		}
	}
	service := mesh.ServiceName("")
	switch {
	case t != nil:
		service, how = t.Service, "join token"
	case registered:
		service = e.Service
	case e != nil:
		return nil, "", refuse(codes.PermissionDenied, "workload %s is enrolled with another host key; make a join token to register this one", e.Workload)
	default:
		return nil, "", refuse(codes.PermissionDenied, "workload %s is not enrolled; make a join token for it with `heddle token create`", q.GetWorkload())
	}
	// Nothing is written before all else is right: a refusal uses up no token.
	g, err := grant(m, q.GetWorkload(), service)
	if err != nil {
		return nil, "", refuse(codes.FailedPrecondition, "%v", err)
	}
	if t != nil && !(registered && e.Service == t.Service) {
		next := &Enrolment{ID: rand.Text(), Workload: t.Workload, Service: t.Service, HostKey: hostKey, Token: t.ID, Created: now.UTC()}
		if registered {
			next.ID = e.ID // the host stays; what it has goes by the identity
		}
		e = next
	}
	chain, _, err := r.ca.Sign(q.GetCsr(), g.Identity, e.ID)
	switch {
	case errors.Is(err, identity.ErrRequest):
		return nil, "", refuse(codes.InvalidArgument, "%v", err)
	case err != nil:
		return nil, "", refuse(codes.Unavailable, "no certificate can be signed: %v", err)
	}
	if t != nil {
		if err := r.register(t, e); err != nil {
			return nil, "", refuse(codes.Unavailable, "the enrolment cannot be kept: %v", err)
		}
	}
	bundle, _ := r.ca.Bundle()
	return &proxyapi.EnrolResponse{
		Workload: q.GetWorkload(), Service: string(g.Service), Identity: string(g.Identity),
		Certificate: &proxyapi.Certificate{Chain: chain}, Bundle: WireBundle(bundle),
	}, how, nil
}

// token finds the token of a request and checks that this host key may use it. It needs mu.
func (r *Register) token(q *proxyapi.EnrolRequest, hostKey []byte, now time.Time) (*token, error) {
	t := r.tokens[q.GetTokenId()]
	sum := sha256.Sum256(q.GetTokenSecret())
	switch {
	case t == nil || subtle.ConstantTimeCompare(t.Secret, sum[:]) != 1:
		return nil, refuse(codes.PermissionDenied, "the join token is not known here: it was revoked, is of another mesh, or is damaged; make a new one")
	case t.Workload != q.GetWorkload():
		return nil, refuse(codes.PermissionDenied, "the join token is for workload %s, not %s", t.Workload, q.GetWorkload())
	case !now.Before(t.Expires):
		return nil, refuse(codes.PermissionDenied, "the join token ended %s; make a new one", t.Expires.UTC().Format(time.RFC3339))
	case t.Moved:
		return nil, refuse(codes.PermissionDenied, "workload %s was enrolled from another host since this join token was used; make a new one to move it back",
			t.Workload)
	case t.HostKey != nil && subtle.ConstantTimeCompare(t.HostKey, hostKey) != 1:
		return nil, refuse(codes.PermissionDenied, "the join token was used by another host key; make a new one, and find out who used it")
	}
	return t, nil
}

// register notes that a host key used a token, on disk before it counts: first that the token is used, then that those of
// other hosts move the workload no more, then the enrolment, so that a crash in between lets the same host try again and
// nobody else. It needs mu.
func (r *Register) register(t *token, e *Enrolment) error {
	if t.HostKey == nil {
		used := *t
		used.HostKey = e.HostKey
		if err := r.keepToken(&used); err != nil {
			return err
		}
	}
	if r.hosts[e.Workload] == e {
		return nil
	}
	for _, other := range r.tokens {
		if other.Workload == e.Workload && other.HostKey != nil && !other.Moved && !bytes.Equal(other.HostKey, e.HostKey) {
			moved := *other
			moved.Moved = true
			if err := r.keepToken(&moved); err != nil {
				return err
			}
		}
	}
	if err := keep(r.hostPath(e.Workload), e); err != nil {
		return err
	}
	r.hosts[e.Workload] = e
	r.change.Set(r.change.Get() + 1)
	return nil
}

// keepToken replaces a token. It needs mu.
func (r *Register) keepToken(t *token) error {
	if err := keep(r.tokenPath(t.ID), t); err != nil {
		return err
	}
	r.tokens[t.ID] = t
	return nil
}

// WireBundle is a trust bundle as the wire carries it; nil stays nil.
func WireBundle(b *spiffe.Bundle) *proxyapi.Bundle {
	if b == nil {
		return nil
	}
	w := &proxyapi.Bundle{Generation: b.Generation}
	for _, c := range b.Roots {
		w.Roots = append(w.Roots, c.Raw)
	}
	return w
}
