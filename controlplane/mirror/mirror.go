// Package mirror follows the releases of a reconciler: it verifies each record with the reconciler's pinned key, fetches
// the blobs that it does not have, keeps both in a directory of its own, and publishes the newest release as a mesh.
// From that directory a control plane serves when no reconciler answers, after a restart too. An older epoch than the
// one at hand is refused, whoever sends it. In the other direction it carries how far a release has come.
//
// It is the only package of the control plane that talks to the reconciler; it knows nothing of sidecars.
package mirror

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/controlplane/live"
	"github.com/heddle-mesh/heddle/internal/pinned"
	"github.com/heddle-mesh/heddle/internal/releasedir"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
	"github.com/heddle-mesh/heddle/schema/release"
)

const (
	// backoffLeast and backoffMost bound the wait before the reconciler is tried again; it doubles from the one to the
	// other and is spread by half of itself, so that many control planes do not come back at one moment.
	backoffLeast = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
	// reportEvery is the least time between two reports of progress.
	reportEvery = 50 * time.Millisecond
	// fetchWithin bounds the fetching of one release's blobs.
	fetchWithin = 2 * time.Minute
)

// Release is a verified release. It is never written again.
type Release struct {
	Record  *release.Record
	Mesh    *mesh.Mesh
	Origins mesh.Origins
	hash    mesh.Hash // of the record
}

// Status is how the mirror stands with the reconciler.
type Status struct {
	Address   string    `json:"address"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`           // of Connected
	Fault     string    `json:"fault,omitempty"` // why it is not connected, or refuses what it is sent
}

// Mirror is the owner of a directory of releases. Its methods are safe for concurrent use.
type Mirror struct {
	dir     *releasedir.Dir
	key     ed25519.PrivateKey
	server  ed25519.PublicKey
	addr    string
	release live.Value[*Release]

	mu     sync.Mutex // guards status
	status Status
}

// Open opens the directory and publishes the newest release in it that the reconciler signed. key is the control plane's
// own, server the reconciler's.
func Open(dir string, key ed25519.PrivateKey, server ed25519.PublicKey, addr string) (*Mirror, error) {
	d, err := releasedir.Open(dir, releasedir.Keep)
	if err != nil {
		return nil, err
	}
	m := &Mirror{dir: d, key: key, server: server, addr: addr, status: Status{Address: addr, Since: time.Now(), Fault: "not connected yet"}}
	signed, record, err := d.Latest(server)
	if errors.Is(err, releasedir.ErrNone) {
		return m, nil // the reconciler will send one; what is damaged here is fetched again
	}
	if err != nil {
		return nil, fmt.Errorf("read the mirrored releases: %w", err)
	}
	r, err := assemble(d.Blob, signed, record)
	if err != nil {
		return nil, fmt.Errorf("read the mirrored release: %w; delete %s to fetch it again", err, dir)
	}
	m.release.Set(r)
	return m, nil
}

func assemble(blob func(mesh.Hash) ([]byte, error), signed release.Signed, record *release.Record) (*Release, error) {
	ms, origins, err := record.Assemble(blob)
	if err != nil {
		return nil, err
	}
	return &Release{Record: record, Mesh: ms, Origins: origins, hash: signed.Hash()}, nil
}

// Watch returns the newest release, nil before the first, and a channel that closes when there is a newer one.
func (m *Mirror) Watch() (*Release, <-chan struct{}) { return m.release.Watch() }

// Status says how the mirror stands.
func (m *Mirror) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

func (m *Mirror) set(connected bool, fault string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.Connected != connected {
		m.status.Connected, m.status.Since = connected, time.Now()
	}
	m.status.Fault = fault
}

// Progress is what is reported to the reconciler: Changed is ready when Get may return something new.
type Progress struct {
	Get     func() *proxyapi.PushReport
	Changed <-chan struct{}
}

// Run follows the reconciler until ctx is done. It is called once.
func (m *Mirror) Run(ctx context.Context, progress Progress) error {
	log := zerolog.Ctx(ctx)
	conn, err := grpc.NewClient(m.addr,
		grpc.WithTransportCredentials(credentials.NewTLS(pinned.ClientTLS(m.key, m.server))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(proxyapi.MaxMessage)),
		// The loop below has its own back-off; a connection that is not tried while it waits would only add to it.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second}),
		// Half-open partitions are found within twenty seconds.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	if err != nil {
		return fmt.Errorf("the reconciler's address %q: %w", m.addr, err)
	}
	defer conn.Close()
	client := proxyapi.NewReleasesClient(conn)
	wait, last := backoffLeast, ""
	for {
		heard, err := m.follow(ctx, client, progress)
		if ctx.Err() != nil {
			return nil
		}
		fault := fmt.Sprintf("%v", err)
		m.set(false, fault)
		if heard {
			wait, last = backoffLeast, ""
		}
		if fault != last { // a reconciler that stays away is one line, not one line for each try
			last = fault
			log.Warn().Err(err).Msg("the reconciler is away; serving from the mirror")
		}
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		wait = min(2*wait, backoffMost)
	}
}

// follow watches the reconciler until something fails; heard says that it was connected.
func (m *Mirror) follow(ctx context.Context, client proxyapi.ReleasesClient, progress Progress) (heard bool, err error) {
	have := uint64(0)
	if r := m.release.Get(); r != nil {
		have = r.Record.Epoch
	}
	group, ctx := errgroup.WithContext(ctx)
	watch, err := client.Watch(ctx, &proxyapi.WatchRequest{Epoch: have})
	if err != nil {
		return false, fmt.Errorf("watch the reconciler at %s: %w", m.addr, err)
	}
	group.Go(func() error {
		for {
			signed, err := watch.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = errors.New("it ended the call")
				}
				return fmt.Errorf("watch the reconciler at %s: %w", m.addr, err)
			}
			if err := m.take(ctx, client, release.Signed{Bytes: signed.GetRecord(), Signature: signed.GetSignature()}); err != nil {
				return err
			}
		}
	})
	group.Go(func() error { return m.report(ctx, client, progress) })
	err = group.Wait()
	return m.Status().Connected, err
}

// take verifies a release, fetches what is missing of it, keeps it and publishes it.
func (m *Mirror) take(ctx context.Context, client proxyapi.ReleasesClient, signed release.Signed) error {
	record, err := signed.Verify(m.server)
	if err != nil {
		return fmt.Errorf("a release from %s: %w", m.addr, err)
	}
	if r := m.release.Get(); r != nil {
		switch {
		case record.Epoch == r.Record.Epoch && signed.Hash() == r.hash:
			return nil
		case record.Epoch <= r.Record.Epoch:
			return fmt.Errorf("the reconciler offers epoch %d, this control plane has epoch %d of commit %.12s: an older release is refused; "+
				"if the reconciler lost its state on purpose, stop the control plane and delete its releases directory",
				record.Epoch, r.Record.Epoch, r.Record.Commit())
		}
	}
	started := time.Now()
	blobs, err := m.fetch(ctx, client, record)
	if err != nil {
		return fmt.Errorf("fetch release %d from %s: %w", record.Epoch, m.addr, err)
	}
	r, err := assemble(func(h mesh.Hash) ([]byte, error) {
		if b, ok := blobs[h]; ok {
			return b, nil
		}
		return m.dir.Blob(h)
	}, signed, record)
	if err != nil {
		return err
	}
	if err := m.dir.Put(signed, record.Epoch, blobs); err != nil {
		// A full disk keeps no policy from being enforced. It costs a restart without the reconciler.
		zerolog.Ctx(ctx).Error().Err(err).Str("commit", record.Commit()).Msg("the release is served, but not kept on disk")
	}
	m.release.Set(r)
	zerolog.Ctx(ctx).Info().Str("commit", record.Commit()).Uint64("epoch", record.Epoch).Int("blobs", len(blobs)).
		Dur("dur", time.Since(started)).Msg("release mirrored")
	return nil
}

// fetch gets the blobs of a record that the directory does not have.
func (m *Mirror) fetch(ctx context.Context, client proxyapi.ReleasesClient, record *release.Record) (map[mesh.Hash][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	missing := map[mesh.Hash]bool{}
	q := &proxyapi.BlobsRequest{}
	for _, ref := range append([]mesh.ChunkRef{record.Origins}, record.Chunks...) {
		if !missing[ref.Hash] {
			if _, err := m.dir.Blob(ref.Hash); err == nil {
				continue
			}
			missing[ref.Hash] = true
			q.Hashes = append(q.Hashes, append([]byte(nil), ref.Hash[:]...))
		}
	}
	if len(q.Hashes) == 0 {
		return nil, nil
	}
	stream, err := client.Blobs(ctx, q)
	if err != nil {
		return nil, err
	}
	got := map[mesh.Hash][]byte{}
	for {
		b, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		h := mesh.Hash(sha256.Sum256(b.GetBytes()))
		if !missing[h] {
			return nil, fmt.Errorf("blob %s was not asked for", h.Short())
		}
		got[h] = b.GetBytes()
	}
	if len(got) < len(missing) {
		return nil, fmt.Errorf("%d of %d blobs came", len(got), len(missing))
	}
	return got, nil
}

// report sends progress when it changes, at most every reportEvery, and once at first: the reconciler may be a new one.
func (m *Mirror) report(ctx context.Context, client proxyapi.ReleasesClient, progress Progress) error {
	name := release.FormatKey(pinned.Public(m.key))
	var sent *proxyapi.PushReport
	for {
		now := progress.Get()
		now.ControlPlane = name
		if sent == nil || !proto.Equal(now, sent) {
			// The first one waits for a reconciler that is not there yet; that it was taken is the proof of a connection.
			if _, err := client.Report(ctx, now); err != nil {
				return fmt.Errorf("report to the reconciler at %s: %w", m.addr, err)
			}
			if sent == nil {
				m.set(true, "")
				zerolog.Ctx(ctx).Info().Msg("following the reconciler")
			}
			sent = now
			t := time.NewTimer(reportEvery)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			}
			continue
		}
		select {
		case <-progress.Changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
