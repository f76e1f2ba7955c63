package config

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/proxy/balance"
	"github.com/heddle-mesh/heddle/proxy/pipeline"
	"github.com/heddle-mesh/heddle/schema/mesh"
	"github.com/heddle-mesh/heddle/schema/proxyapi"
)

// store is all that the sidecar was given. It is never written again: apply returns another one.
type store struct {
	epoch   uint64
	commit  string
	objects map[key]*object
	state   []byte // proxyapi.StateHash
}

type key struct{ kind, name string }

// object is one object as it came and as it is understood. Never written again.
type object struct {
	key
	hash  []byte
	bytes []byte
	value any // *mesh.Settings, *mesh.Index, *mesh.Inbound, *mesh.Outbound, mesh.Origins or []balance.Address
}

func emptyStore() *store { return &store{objects: map[key]*object{}, state: proxyapi.StateHash(nil)} }

// mismatchError means that the two ends disagree about what the sidecar holds: only a full config helps.
type mismatchError struct{}

func (mismatchError) Error() string {
	return "the hash of the sidecar's state is not the one that the control plane computed"
}

// apply is the store after a transaction. The error is the reason to refuse it, or a mismatchError.
func (s *store) apply(t *proxyapi.Transaction) (*store, error) {
	if t.GetEpoch() < s.epoch {
		return nil, fmt.Errorf("epoch %d is older than %d, which this sidecar has", t.GetEpoch(), s.epoch)
	}
	next := &store{epoch: t.GetEpoch(), commit: t.GetCommit(), objects: map[key]*object{}}
	if !t.GetFull() {
		maps.Copy(next.objects, s.objects)
	}
	for _, d := range t.GetDeletes() {
		delete(next.objects, key{d.GetKind(), d.GetName()})
	}
	for _, u := range t.GetUpserts() {
		if old := s.objects[key{u.GetKind(), u.GetName()}]; old != nil && bytes.Equal(old.hash, u.GetHash()) {
			next.objects[old.key] = old // decoded before
			continue
		}
		o, err := decode(u)
		if err != nil {
			return nil, err
		}
		next.objects[o.key] = o
	}
	next.state = proxyapi.StateHash(next.versions())
	if want := t.GetState(); len(want) > 0 && !bytes.Equal(want, next.state) {
		return nil, mismatchError{}
	}
	return next, nil
}

// decode checks an object's hash and reads it. Fields that this version does not know are an error: what is not
// understood must not be left out.
func decode(u *proxyapi.Object) (*object, error) {
	o := &object{key: key{u.GetKind(), u.GetName()}, hash: u.GetHash(), bytes: u.GetBytes()}
	if sum := sha256.Sum256(o.bytes); !bytes.Equal(sum[:], o.hash) {
		return nil, fmt.Errorf("%s %s is corrupt: its hash is not that of its bytes", o.kind, o.name)
	}
	name := o.name
	var err error
	switch mesh.Kind(o.kind) {
	case mesh.KindSettings:
		v := &mesh.Settings{}
		err, o.value, name = mesh.Decode(o.bytes, v), v, "mesh"
	case mesh.KindIndex:
		v := &mesh.Index{}
		err = mesh.Decode(o.bytes, v)
		o.value, name = v, v.Namespace
	case mesh.KindInbound:
		v := &mesh.Inbound{}
		err = mesh.Decode(o.bytes, v)
		o.value, name = v, string(v.Service)
	case mesh.KindOutbound:
		v := &mesh.Outbound{}
		err = mesh.Decode(o.bytes, v)
		o.value, name = v, string(v.Service)
	case mesh.KindOrigin:
		v := mesh.Origins{}
		err = mesh.Decode(o.bytes, &v)
		o.value = v
	case proxyapi.KindEndpoints:
		o.value, err = decodeEndpoints(o.bytes)
	default:
		return nil, fmt.Errorf("objects of kind %q are not known to this sidecar; upgrade heddle-proxy", o.kind)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w; upgrade heddle-proxy if the control plane is newer", o.kind, o.name, err)
	}
	if name != o.name {
		return nil, fmt.Errorf("%s %s calls itself %s", o.kind, o.name, name)
	}
	return o, nil
}

func decodeEndpoints(b []byte) ([]balance.Address, error) {
	var list proxyapi.Endpoints
	if err := proto.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	out := make([]balance.Address, len(list.Endpoints))
	for i, e := range list.Endpoints {
		ip, ok := netip.AddrFromSlice(e.GetIp())
		if !ok || e.GetPort() == 0 || e.GetPort() > 65535 {
			return nil, fmt.Errorf("endpoint %d has %d bytes of address and port %d", i, len(e.GetIp()), e.GetPort())
		}
		out[i] = balance.Address{
			Addr: netip.AddrPortFrom(ip.Unmap(), uint16(e.GetPort())), Weight: e.GetWeight(), Workload: e.GetWorkload(),
		}
	}
	return out, nil
}

// sorted are the objects by kind and name.
func (s *store) sorted() []*object {
	list := make([]*object, 0, len(s.objects))
	for _, o := range s.objects {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *object) int {
		if c := strings.Compare(a.kind, b.kind); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	return list
}

func (s *store) versions() []*proxyapi.ObjectVersion {
	list := make([]*proxyapi.ObjectVersion, 0, len(s.objects))
	for _, o := range s.sorted() {
		list = append(list, &proxyapi.ObjectVersion{Kind: o.kind, Name: o.name, Hash: o.hash})
	}
	return list
}

// transaction is all of the store as one.
func (s *store) transaction() *proxyapi.Transaction {
	t := &proxyapi.Transaction{Epoch: s.epoch, Commit: s.commit, Full: true, State: s.state}
	for _, o := range s.sorted() {
		t.Upserts = append(t.Upserts, &proxyapi.Object{Kind: o.kind, Name: o.name, Hash: o.hash, Bytes: o.bytes})
	}
	return t
}

// config is what pipeline.Build wants to know, but for what is not the control plane's to say.
func (s *store) config() pipeline.Config {
	c := pipeline.Config{Epoch: s.epoch, Commit: s.commit, Endpoints: map[mesh.ServiceName][]balance.Address{}}
	for _, o := range s.sorted() {
		switch v := o.value.(type) {
		case *mesh.Settings:
			c.Settings = v
		case *mesh.Index:
			c.Indexes = append(c.Indexes, v)
		case *mesh.Inbound:
			c.Inbound = append(c.Inbound, v)
		case *mesh.Outbound:
			c.Outbound = append(c.Outbound, v)
		case mesh.Origins:
			c.Origins = append(c.Origins, v)
		case []balance.Address:
			c.Endpoints[mesh.ServiceName(o.name)] = v
		}
	}
	return c
}
