package identity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/spiffe"
)

// tokenPrefix starts a join token, so that it is never mistaken for another kind of secret.
const tokenPrefix = "heddle-join-1."

// Token is a join token: a secret that a control plane gave out for one workload, and the fingerprint that makes sure
// that it is told to that control plane only.
type Token struct {
	ID       string
	Workload string
	Service  mesh.ServiceName

	secret []byte
	roots  []string // SHA-256 of a root's SubjectPublicKeyInfo, lower-case hexadecimal
}

// ParseToken reads the content of a token file.
func ParseToken(s string) (*Token, error) {
	enc, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return nil, fmt.Errorf("this is no join token: one starts with %s; `heddle token create` makes one", tokenPrefix)
	}
	var v struct {
		ID, Secret, Workload, Service, Fingerprint string
		Fingerprints                               []string
	}
	b, err := base64.RawURLEncoding.DecodeString(enc)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return nil, errors.New("the join token is damaged; copy it again, or make a new one with `heddle token create`")
	}
	t := &Token{ID: v.ID, Workload: v.Workload, Service: mesh.ServiceName(v.Service), roots: v.Fingerprints}
	if v.Fingerprint != "" && !slices.Contains(t.roots, v.Fingerprint) {
		t.roots = append(t.roots, v.Fingerprint)
	}
	if t.secret, err = base64.RawURLEncoding.DecodeString(v.Secret); err != nil || len(t.secret) == 0 ||
		t.ID == "" || t.Workload == "" || len(t.roots) == 0 {
		return nil, errors.New("the join token lacks a part; make a new one with `heddle token create`")
	}
	return t, nil
}

// Enroller gets an SVID from a control plane's enrolment port and keeps it.
type Enroller struct {
	// Address is the enrolment port, "host:port".
	Address string
	// Token is needed for the first enrolment of a host key, and for one after that is no longer registered; nil: none.
	Token  *Token
	State  *State
	Source *Source
	// Now is the clock, time.Now where nil.
	Now func() time.Time
}

// ErrNoToken means that this host was never enrolled and has no join token to begin with.
var ErrNoToken = errors.New("this host is not enrolled yet and has no join token; give --join-token-file, `heddle token create` makes one")

// Enrol proves who this is, by the token and the host key or by the host key alone, gets an SVID and the trust bundle,
// keeps both and publishes them. known is what the state says, zero at the first time. It makes one attempt; the deadline
// is ctx's.
func (e *Enroller) Enrol(ctx context.Context, known Enrolment) (Enrolment, error) {
	now := time.Now
	if e.Now != nil {
		now = e.Now
	}
	req := &proxyapi.EnrolRequest{Workload: known.Workload, Time: timestamppb.New(now())}
	t, used := e.Token, known.Token
	if t != nil {
		if known.Workload != "" && known.Workload != t.Workload {
			return Enrolment{}, fmt.Errorf("the state directory is of workload %s and the join token of %s; use another --state", known.Workload, t.Workload)
		}
		used = t.ID
		req.Workload, req.TokenId, req.TokenSecret = t.Workload, t.ID, t.secret
	}
	if req.Workload == "" {
		return Enrolment{}, ErrNoToken
	}
	key, csr, err := NewRequest("")
	if err != nil {
		return Enrolment{}, err
	}
	req.Csr = csr
	if req.HostKey, err = x509.MarshalPKIXPublicKey(&e.State.hostKey.PublicKey); err != nil {
		return Enrolment{}, fmt.Errorf("encode the host key: %w", err)
	}
	if req.Proof, err = e.State.Sign([sha256.Size]byte(proxyapi.EnrolDigest(req))); err != nil {
		return Enrolment{}, fmt.Errorf("sign with the host key: %w", err)
	}

	var domain string // of the control plane that proved itself
	conn, err := grpc.NewClient("passthrough:///"+e.Address, append(DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(e.tls(now, t, &domain))))...)
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol at %s: %w", e.Address, err)
	}
	defer conn.Close()
	resp, err := proxyapi.NewEnrolmentClient(conn).Enrol(ctx, req)
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol at %s: %w", e.Address, refusal(err))
	}
	if resp.GetWorkload() != req.Workload {
		return Enrolment{}, fmt.Errorf("enrol at %s: asked as %s, answered as %s", e.Address, req.Workload, resp.GetWorkload())
	}
	if msg := resp.GetCertificate().GetError(); msg != "" {
		return Enrolment{}, fmt.Errorf("enrol at %s: %s", e.Address, msg)
	}
	bundle, err := ParseBundle(domain, resp.GetBundle().GetGeneration(), resp.GetBundle().GetRoots())
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol at %s: %w", e.Address, err)
	}
	svid, err := NewSVID(resp.GetCertificate().GetChain(), key, bundle, now())
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol at %s: the certificate that came: %w", e.Address, err)
	}
	if string(svid.ID) != resp.GetIdentity() {
		return Enrolment{}, fmt.Errorf("enrol at %s: the certificate is for %s, the answer says %s", e.Address, svid.ID, resp.GetIdentity())
	}
	out := Enrolment{Workload: resp.GetWorkload(), Service: mesh.ServiceName(resp.GetService()), Token: used}
	e.Source.Set(svid, bundle)
	// Failing to keep it does not stop this process from serving; it costs an enrolment at the next start.
	if err := errors.Join(e.State.SaveBundle(bundle), e.State.Save(out, svid)); err != nil {
		return out, &NotKeptError{err}
	}
	return out, nil
}

// NotKeptError means that an enrolment succeeded but could not be written to the state directory.
type NotKeptError struct{ err error }

// Error says what could not be written.
func (e *NotKeptError) Error() string { return "enrolled, but " + e.err.Error() }

// Unwrap returns the fault of the disk.
func (e *NotKeptError) Unwrap() error { return e.err }

// Permanent reports whether an enrolment's error stays until an operator does something.
func Permanent(err error) bool {
	if errors.Is(err, ErrNoToken) {
		return true
	}
	var s interface{ GRPCStatus() *status.Status }
	return errors.As(err, &s) && (s.GRPCStatus().Code() == codes.PermissionDenied || s.GRPCStatus().Code() == codes.InvalidArgument)
}

// refused is a control plane's refusal in its own words.
type refused struct{ s *status.Status }

func (r refused) Error() string              { return r.s.Message() }
func (r refused) GRPCStatus() *status.Status { return r.s }

func refusal(err error) error {
	if s, ok := status.FromError(err); ok {
		return refused{s}
	}
	return err
}

// tls is server-authenticated: the chain must end in a root of the bundle that was kept, or in one that the token's
// fingerprint names, and its leaf must be a control plane's SVID. domain is set to its trust domain.
func (e *Enroller) tls(now func() time.Time, token *Token, domain *string) *tls.Config {
	return &tls.Config{
		MinVersion:         spiffe.TLSVersion,
		InsecureSkipVerify: true, // VerifyConnection judges
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			id, err := spiffe.LeafID(cs.PeerCertificates[0])
			if err != nil {
				return err
			}
			b := &spiffe.Bundle{TrustDomain: id.TrustDomain()}
			if kept := e.Source.Load().Bundle; kept != nil {
				if kept.TrustDomain != b.TrustDomain {
					return fmt.Errorf("the server is of trust domain %s, this host of %s", b.TrustDomain, kept.TrustDomain)
				}
				b.Roots = slices.Clone(kept.Roots)
			}
			if token != nil {
				for _, c := range cs.PeerCertificates[1:] {
					sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
					if slices.Contains(token.roots, hex.EncodeToString(sum[:])) {
						b.Roots = append(b.Roots, c)
					}
				}
			}
			if len(b.Roots) == 0 {
				return errors.New("the server's root is not the one that the join token names: it is another control plane, or somebody is between")
			}
			if id, err = b.Verify(cs.PeerCertificates, now(), x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			if id != spiffe.ControlPlaneID(b.TrustDomain) {
				return fmt.Errorf("the server is %s, not a control plane", id)
			}
			*domain = b.TrustDomain
			return nil
		},
	}
}

// DialOptions keep gRPC's memory small: the sidecar has one connection with little on it. The buffers are gRPC's
// smallest useful ones, shared between connections while idle.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithReadBufferSize(4 << 10),
		grpc.WithWriteBufferSize(4 << 10),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(), // http_proxy in the sidecar's environment is meant for the application: it names the sidecar
		grpc.WithUserAgent("heddle-proxy"),
	}
}
