package config

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/durable"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

// LastGoodFile is the last known good config in the sidecar's state directory: sealed, and signed by the host key, so
// that neither a torn write nor another host's file is ever served from.
const LastGoodFile = "config.lkg"

// lastGoodContext separates these signatures from all others of the host key.
const lastGoodContext = "heddle last known good v1\x00"

// lastGood is the content of the file.
type lastGood struct {
	Workload string `json:"workload"`
	Service  string `json:"service"`
	Epoch    uint64 `json:"epoch"`
	Commit   string `json:"commit"`
	// Saved is when a control plane last confirmed the config.
	Saved time.Time `json:"saved"`
	// Transaction is a full proxyapi.Transaction.
	Transaction []byte `json:"transaction"`
	// Signature is over lastGoodContext and this value's JSON without the signature.
	Signature []byte `json:"signature,omitempty"`
}

func (g lastGood) digest() ([sha256.Size]byte, error) {
	g.Signature = nil
	b, err := json.Marshal(g)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(append([]byte(lastGoodContext), b...)), nil
}

// snapshot is what there is to save.
type snapshot struct {
	store *store
	who   identity.Enrolment
	saved time.Time
}

// writeLastGood signs and keeps a snapshot.
func writeLastGood(dir string, key *identity.State, s snapshot) error {
	tx, err := proto.Marshal(s.store.transaction())
	if err != nil {
		return fmt.Errorf("encode the last known good config: %w", err)
	}
	g := lastGood{
		Workload: s.who.Workload, Service: string(s.who.Service), Epoch: s.store.epoch, Commit: s.store.commit,
		Saved: s.saved.UTC().Truncate(time.Second), Transaction: tx,
	}
	digest, err := g.digest()
	if err != nil {
		return fmt.Errorf("encode the last known good config: %w", err)
	}
	if g.Signature, err = key.Sign(digest); err != nil {
		return fmt.Errorf("sign the last known good config: %w", err)
	}
	b, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("encode the last known good config: %w", err)
	}
	if err := durable.WriteSealed(filepath.Join(dir, LastGoodFile), b, 0o600); err != nil {
		return fmt.Errorf("keep the last known good config: %w", err)
	}
	return nil
}

// readLastGood returns a nil store where there is none. workload is whose it must be; empty: whosever this host's key
// signed. An error says why the file is not believed; nothing of it is then used.
func readLastGood(dir string, key *identity.State, workload string) (snapshot, error) {
	fail := func(err error) (snapshot, error) {
		return snapshot{}, fmt.Errorf("the last known good config %s is not used: %w", filepath.Join(dir, LastGoodFile), err)
	}
	b, err := durable.ReadSealed(filepath.Join(dir, LastGoodFile))
	if errors.Is(err, fs.ErrNotExist) {
		return snapshot{}, nil
	}
	if err != nil {
		return fail(err)
	}
	var g lastGood
	if err := json.Unmarshal(b, &g); err != nil {
		return fail(err)
	}
	digest, err := g.digest()
	if err != nil {
		return fail(err)
	}
	if !key.Verify(digest, g.Signature) {
		return fail(errors.New("this host's key did not sign it"))
	}
	if workload != "" && g.Workload != workload {
		return fail(fmt.Errorf("it is of workload %s, and this is %s", g.Workload, workload))
	}
	var tx proxyapi.Transaction
	if err := proto.Unmarshal(g.Transaction, &tx); err != nil {
		return fail(err)
	}
	s, err := emptyStore().apply(&tx)
	if err != nil {
		return fail(err)
	}
	return snapshot{s, identity.Enrolment{Workload: g.Workload, Service: mesh.ServiceName(g.Service)}, g.Saved}, nil
}

// save writes the newest snapshot there is, one after the other, and the last one before it returns.
func (c *Client) save(ctx context.Context) error {
	for {
		select {
		case s := <-c.saves:
			c.saveOne(ctx, s)
		case <-ctx.Done():
			select {
			case s := <-c.saves:
				c.saveOne(ctx, s)
			default:
			}
			return nil
		}
	}
}

// saveOne tells of a failure once, until it works again: a full disk costs the next start, not this one.
func (c *Client) saveOne(ctx context.Context, s snapshot) {
	err := writeLastGood(c.Dir, c.State, s)
	switch {
	case err != nil && !c.unsaved:
		zerolog.Ctx(ctx).Error().Err(err).Msg("a restart without a control plane would not have this config; free the disk")
	case err == nil && c.unsaved:
		zerolog.Ctx(ctx).Info().Msg("the last known good config is kept again")
	}
	c.unsaved = err != nil
}

// keep hands a snapshot to save; only the newest one waits.
func (c *Client) keep(s snapshot) {
	for {
		select {
		case c.saves <- s:
			return
		default:
		}
		select {
		case <-c.saves:
		default:
		}
	}
}
