// Package observe counts what the sidecar does and writes it down as Prometheus text and as traffic reports. Metric
// names and labels are Linkerd's. A series is found by a lookup of a comparable key, without allocation; the number of
// series is bounded, and what does not fit is counted in one overflow series. There is no client library: it would cost
// more memory than the rest of an idle sidecar.
package observe

import (
	"time"

	"github.com/heddle-mesh/heddle/schema/mesh"
)

// Direction is "inbound" or "outbound".
type Direction string

const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// Key is the labels that all traffic series share. Every string in it must be one that lives anyway (of the Pipeline,
// of the connection's peer), so that making a Key allocates nothing.
type Key struct {
	Direction Direction
	// TLS is whether the mesh's side of the connection was mutually authenticated.
	TLS bool
	// Peer is the client's SPIFFE ID (inbound) or the server's (outbound); empty: none was proven.
	Peer string
	// Service and Port are the destination: the own service (inbound) or the one that was asked for (outbound).
	Service mesh.ServiceName
	Port    uint16
	// Authority is the canonical one of pipeline.Upstream; outbound only. Never what a client sent.
	Authority string
	// Route is the id of the matched route, if any.
	Route string
	// Backend is the service that the route chose, if another than Service.
	Backend mesh.ServiceName
}

// Registry has all series. Its methods may be called by any number of goroutines.
type Registry struct{}

// MaxSeries bounds the label sets of a Registry; one more takes the overflow.
const MaxSeries = 4096

// IdleAfter is how long an unchanged series stays.
const IdleAfter = 10 * time.Minute

// New returns an empty Registry. now is the clock, time.Now where nil.
func New(now func() time.Time) *Registry { return nil }

// HTTP counts the requests of one Key. Take it from the Registry for each request; do not keep it longer.
type HTTP struct{}

// HTTP finds or makes the series of a key.
func (r *Registry) HTTP(k Key) *HTTP { return nil }

// Request counts a request whose head was read (and, outbound, sent on).
func (h *HTTP) Request() {}

// Response counts a finished exchange: the status the caller got, whether it counts as a success (a status below 500
// and a body that came whole), and the time from the request's head to the response's last byte.
func (h *HTTP) Response(status int, success bool, latency time.Duration) {}

// TCP counts the connections of one Key; HTTP connections are TCP connections too. It may be kept for a connection.
type TCP struct{}

// TCP finds or makes the series of a key.
func (r *Registry) TCP(k Key) *TCP { return nil }

// Open counts a connection that was accepted or dialled.
func (t *TCP) Open() {}

// Close counts its end. errno is "" for a clean end, else a word such as "ECONNRESET". opaque says that the connection
// carried bytes rather than HTTP, so that the traffic report counts it as an exchange; then failed says whether it ended
// by a fault of the upstream.
func (t *TCP) Close(errno string, lived time.Duration, opaque, failed bool) {}

// Read and Write count bytes read from, and written to, the peer.
func (t *TCP) Read(n int) {}

// Write counts bytes written to the peer.
func (t *TCP) Write(n int) {}

// Authz counts a verdict about an HTTP request or a connection to a port of the own service. k.Peer is the caller.
func (r *Registry) Authz(k Key, rule string, allowed, tcp bool) {}

// Refused counts an outbound request or connection that was refused before it had an upstream, as the control plane
// does not serve the destination or answered 403 for a rule.
func (r *Registry) Refused(k Key, rule string) {}
