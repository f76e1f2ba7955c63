// Package proxyapi is the wire between Heddle's programs, generated from proxyapi.proto, and the few computations that
// both ends must agree on. `make generate` writes the *.pb.go files; nothing here does I/O.
package proxyapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"time"
)

// Capabilities and limits that both ends know.
const (
	// HeartbeatEvery is how often a control plane sends Heartbeat; a sidecar that hears nothing for four times as long
	// reconnects (a half-open partition is detected within 20 s).
	HeartbeatEvery = 5 * time.Second
	// TrafficEvery is how often a sidecar reports traffic, while there is any.
	TrafficEvery = 2 * time.Second
	// OpenEvery is how often it repeats an unchanged report while it has open TCP connections in it.
	OpenEvery = 30 * time.Second
	// ProofSkew is how far the time of an enrolment's proof may be off.
	ProofSkew = 5 * time.Minute
	// MaxMessage bounds a message of the config stream and of the releases service, in bytes.
	MaxMessage = 64 << 20
	// KindEndpoints is the kind of an Object whose bytes are an Endpoints message.
	KindEndpoints = "endpoints"
)

// StateHash is the hash of all that a sidecar holds: over kind, name and hash of every object, sorted by kind and
// name, each name followed by a zero byte. Both ends compute it after every transaction.
func StateHash(have []*ObjectVersion) []byte {
	have = slices.Clone(have)
	slices.SortFunc(have, func(a, b *ObjectVersion) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	h := sha256.New()
	for _, o := range have {
		io.WriteString(h, o.Kind)
		h.Write([]byte{0})
		io.WriteString(h, o.Name)
		h.Write([]byte{0})
		h.Write(o.Hash)
	}
	return h.Sum(nil)
}

// EnrolDigest is what a host key signs to enrol: SHA-256 over a fixed context string, the time in seconds, the workload
// and the CSR. The CSR's own signature proves possession of the new key, so a recorded request is worth nothing to
// whoever replays it.
func EnrolDigest(r *EnrolRequest) []byte {
	h := sha256.New()
	io.WriteString(h, "heddle enrolment v1\x00")
	var t [8]byte
	binary.BigEndian.PutUint64(t[:], uint64(r.GetTime().GetSeconds()))
	h.Write(t[:])
	io.WriteString(h, r.GetWorkload())
	h.Write([]byte{0})
	h.Write(r.GetCsr())
	return h.Sum(nil)
}

// LatencyBounds are the upper bounds, in milliseconds, of the latency buckets of EdgeTraffic, of Linkerd's
// response_latency_ms histogram and of everything that summarises them. One more bucket is +Inf.
var LatencyBounds = []float64{1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 4000, 5000, 10000, 20000, 30000, 40000, 50000}
