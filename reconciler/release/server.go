package release

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/internal/releasedir"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

const (
	// drain is how long Serve waits for answers under way.
	drain = 2 * time.Second
	// maxBlobs bounds one Blobs request; a release of 10,000 namespaces fits.
	maxBlobs = 1 << 16
	// maxReason bounds the text of a nack, in bytes.
	maxReason = 1 << 10
	// aliveEvery and aliveWithin find control planes that went away without a word in 20 s.
	aliveEvery, aliveWithin = 15 * time.Second, 5 * time.Second
	// Strangers can reach the port: these bound what they get of us. handshakeTimeout is how long a connection has to
	// prove its key (gRPC's own default is two minutes), maxConns how many there may be at once; a control plane has one.
	handshakeTimeout = 10 * time.Second
	maxConns         = 1024
)

// Server is the Releases service. It serves what was announced last and remembers what control planes report.
type Server struct {
	proxyapi.UnimplementedReleasesServer
	dir     *releasedir.Dir
	damaged chan struct{} // size 1: a blob that was asked for is not there
	// handshake is how long a new connection has to prove its key: handshakeTimeout, but in tests.
	handshake time.Duration

	mu      sync.Mutex // guards what follows
	current *Release
	planes  map[string]*plane // by public key, so bounded by the keys that may connect
	changed chan struct{}     // closed, and made anew, when current or planes change
	stop    chan struct{}     // closed when Serve ends
}

// plane is one control plane.
type plane struct {
	watching int // open Watch streams
	report   *proxyapi.PushReport
}

// NewServer serves blobs from dir, and no release before the first Announce.
func NewServer(dir *releasedir.Dir) *Server {
	return &Server{dir: dir, damaged: make(chan struct{}, 1), handshake: handshakeTimeout, planes: map[string]*plane{},
		changed: make(chan struct{}), stop: make(chan struct{})}
}

// Announce makes r what watchers get. One that is slow to read sees the newest only, never those between.
func (s *Server) Announce(r *Release) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = r
	s.wake()
}

// Damaged is sent to when a blob that a control plane asked for is lost or damaged. Asking for one of a release that is
// no longer kept does so too: whoever receives looks what is missing.
func (s *Server) Damaged() <-chan struct{} { return s.damaged }

// wake tells everyone that waits; mu is held.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Progress says how far the announced release has come.
type Progress struct {
	// Epoch of the announced release; 0: none was.
	Epoch uint64
	// ControlPlanes is the number that watch now.
	ControlPlanes int
	// Reported is true once one of them reported on this very release.
	Reported bool
	// Acked of Total sidecars enforce it. A control plane that is still at another release counts with all of its
	// sidecars and none acknowledged.
	Acked, Total int
	Nacks        []Nack // sorted by workload
}

// Nack is a sidecar's refusal of the announced release.
type Nack struct {
	Workload string `json:"workload"`
	Reason   string `json:"reason"`
}

// Converged reports whether at least one sidecar runs and every one enforces the release.
func (p Progress) Converged() bool { return p.Reported && p.Total > 0 && p.Acked == p.Total }

// Progress is computed from the last report of each control plane that watches, or, while none does, from the last
// ones of those that did. The channel is closed when the answer may have changed.
func (s *Server) Progress() (Progress, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p Progress
	if s.current != nil {
		p.Epoch = s.current.Record.Epoch
	}
	for _, c := range s.planes {
		if c.watching > 0 {
			p.ControlPlanes++
		}
	}
	for _, c := range s.planes {
		if c.report == nil || s.current == nil || p.ControlPlanes > 0 && c.watching == 0 {
			continue
		}
		p.Total += int(c.report.GetTotal())
		if c.report.GetEpoch() != s.current.Record.Epoch {
			continue
		}
		p.Reported = true
		p.Acked += int(min(c.report.GetAcked(), c.report.GetTotal()))
		for _, n := range c.report.GetNacks() {
			reason := n.GetReason()
			if len(reason) > maxReason {
				reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
			}
			p.Nacks = append(p.Nacks, Nack{Workload: n.GetWorkload(), Reason: reason})
		}
	}
	slices.SortFunc(p.Nacks, func(a, b Nack) int {
		return cmp.Or(strings.Compare(a.Workload, b.Workload), strings.Compare(a.Reason, b.Reason))
	})
	return p, s.changed
}

// Serve answers control planes on l until ctx is done; then watches end, and answers under way have two seconds. key
// is proven to them; allowed says which of their keys are let in. It may be called once.
func (s *Server) Serve(ctx context.Context, l net.Listener, key ed25519.PrivateKey, allowed func(ed25519.PublicKey) bool) error {
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(pinned.ServerTLS(key, allowed))),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: aliveEvery, Timeout: aliveWithin}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 4 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(s.handshake),
		grpc.MaxConcurrentStreams(100),
		grpc.MaxSendMsgSize(proxyapi.MaxMessage),
	)
	proxyapi.RegisterReleasesServer(g, s)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		close(s.stop)
		hurry := time.AfterFunc(drain, g.Stop)
		defer hurry.Stop()
		g.GracefulStop()
	})
	err := g.Serve(netutil.LimitListener(l, maxConns))
	if stop() { // ctx is not done: the listener failed by itself
		g.Stop()
		return fmt.Errorf("serving releases on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

// caller finds the plane of a call by the key that its connection proved.
func (s *Server) caller(ctx context.Context) (*plane, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no TLS")
	}
	key, err := pinned.PeerKey(info.State)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.planes[string(key)]
	if c == nil {
		c = &plane{}
		s.planes[string(key)] = c
	}
	return c, nil
}

// Watch implements proxyapi.ReleasesServer.
func (s *Server) Watch(req *proxyapi.WatchRequest, stream grpc.ServerStreamingServer[proxyapi.SignedRecord]) error {
	c, err := s.caller(stream.Context())
	if err != nil {
		return err
	}
	count := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.watching += n
		s.wake()
	}
	count(+1)
	defer count(-1)

	for has := req.GetEpoch(); ; {
		s.mu.Lock()
		r, changed := s.current, s.changed
		s.mu.Unlock()
		// An older release than the caller has is sent too (a reconciler restored from a backup): refusing it is the
		// caller's part, and so is saying so.
		if r != nil && r.Record.Epoch != has {
			if err := stream.Send(&proxyapi.SignedRecord{Record: r.Signed.Bytes, Signature: r.Signed.Signature}); err != nil {
				return err
			}
			has = r.Record.Epoch
			continue
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.stop:
			return status.Error(codes.Unavailable, "the reconciler stops")
		}
	}
}

// Blobs implements proxyapi.ReleasesServer.
func (s *Server) Blobs(req *proxyapi.BlobsRequest, stream grpc.ServerStreamingServer[proxyapi.Blob]) error {
	if n := len(req.GetHashes()); n > maxBlobs {
		return status.Errorf(codes.InvalidArgument, "%d blobs asked for, the limit is %d", n, maxBlobs)
	}
	for _, want := range req.GetHashes() {
		var h mesh.Hash
		if len(want) != len(h) {
			return status.Errorf(codes.InvalidArgument, "a hash has %d bytes, not %d", len(h), len(want))
		}
		copy(h[:], want)
		b, err := s.dir.Blob(h)
		if err != nil {
			select {
			case s.damaged <- struct{}{}:
			default:
			}
		}
		switch {
		case errors.Is(err, releasedir.ErrNotFound):
			return status.Errorf(codes.NotFound, "%v; its release is no longer kept", err)
		case errors.Is(err, releasedir.ErrDamaged):
			return status.Error(codes.DataLoss, err.Error())
		case err != nil:
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(&proxyapi.Blob{Hash: h[:], Bytes: b}); err != nil {
			return err
		}
	}
	return nil
}

// Report implements proxyapi.ReleasesServer.
func (s *Server) Report(ctx context.Context, req *proxyapi.PushReport) (*proxyapi.PushReportReply, error) {
	c, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.report = req
	s.wake()
	return &proxyapi.PushReportReply{}, nil
}
