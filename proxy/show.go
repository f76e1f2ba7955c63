package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/proxy/config"
	"github.com/heddle-mesh/heddle/proxy/identity"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// ready reports whether the sidecar is certified and configured, and says what it waits for or what it serves from.
func (s *sidecar) ready() (ok bool, says string) {
	select {
	case <-s.draining:
		return false, "draining"
	default:
	}
	st, p, now := s.client.Status(), s.current.Load(), time.Now()
	switch err := s.source.Valid(); {
	case errors.Is(err, identity.ErrNone):
		says = "waiting for " + st.Waiting
	case err != nil:
		says = err.Error()
	case p.TrustDomain == "":
		says = "certified; waiting for the first config"
	default:
		says, ok = "commit "+p.Commit, true
		if st.Connected {
			return true, says
		}
		says += fmt.Sprintf(", last confirmed %v ago; no control plane", now.Sub(p.ConfirmedAt()).Truncate(time.Second))
		if p.Stale(now) {
			says += "; too old to be believed, so that identities are allowed nothing"
		}
	}
	if st.Error != "" {
		says += ": " + st.Error
	}
	return ok, says
}

// collect writes what is known of identity and config.
func (s *sidecar) collect(w *observe.Writer) {
	if svid := s.source.Load().SVID; svid != nil {
		const name = "identity_cert_expiration_timestamp_seconds"
		w.Family(name, "gauge", "When the sidecar's certificate ends, in seconds since 1970.")
		w.Sample(name, "", float64(svid.NotAfter.Unix()))
	}
	p, now := s.current.Load(), time.Now()
	if p.TrustDomain != "" {
		w.Family("heddle_config_info", "gauge", "The config that is enforced.")
		w.Sample("heddle_config_info", observe.Labels("commit", p.Commit, "epoch", strconv.FormatUint(p.Epoch, 10)), 1)
		w.Family("heddle_config_age_seconds", "gauge", "How long ago a control plane last confirmed the config.")
		w.Sample("heddle_config_age_seconds", "", max(now.Sub(p.ConfirmedAt()).Seconds(), 0))
		w.Family("heddle_config_stale", "gauge", "1: the config is too old, and identities are allowed nothing.")
		w.Sample("heddle_config_stale", "", bit(p.Stale(now)))
	}
	w.Family("heddle_control_plane_connected", "gauge", "1: the stream to the control plane is up.")
	w.Sample("heddle_control_plane_connected", "", bit(s.client.Status().Connected))
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// effective is what /config shows.
type effective struct {
	APIVersion  string           `json:"apiVersion"`
	Version     string           `json:"version"`
	Workload    string           `json:"workload,omitempty"`
	Service     mesh.ServiceName `json:"service,omitempty"`
	TrustDomain string           `json:"trustDomain,omitempty"`
	MeshAddress string           `json:"meshAddress"`
	Ready       bool             `json:"ready"`
	// Says is what the sidecar waits for or serves from, in one line.
	Says string `json:"says"`

	Epoch     uint64    `json:"epoch"`
	Commit    string    `json:"commit,omitempty"`
	AppliedAt time.Time `json:"appliedAt,omitzero"`
	// ConfirmedAt is when a control plane last confirmed the config, AgeSeconds how long ago that is.
	ConfirmedAt time.Time `json:"confirmedAt,omitzero"`
	AgeSeconds  float64   `json:"ageSeconds"`
	// Stale: the config is too old, and identities are allowed nothing.
	Stale bool `json:"stale"`

	Identity     *shownIdentity `json:"identity,omitempty"`
	ControlPlane config.Status  `json:"controlPlane"`
	Listeners    []shownAddress `json:"listeners"`
	Inbound      []shownPort    `json:"inbound"`
	Upstreams    []shownTarget  `json:"upstreams"`
}

type shownIdentity struct {
	ID         string    `json:"id"`
	Serial     string    `json:"serial"`
	NotAfter   time.Time `json:"notAfter"`
	Generation uint64    `json:"bundleGeneration"`
	Roots      int       `json:"roots"`
}

type shownAddress struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

type shownPort struct {
	mesh.InboundPort
	App string `json:"app"`
	SNI string `json:"sni"`
	// Origin is where the port's default was written.
	Origin string      `json:"origin,omitempty"`
	Rules  []shownRule `json:"rules"`
}

type shownRule struct {
	mesh.Rule
	Origin string `json:"origin,omitempty"`
}

type shownTarget struct {
	Service   mesh.ServiceName `json:"service"`
	Port      string           `json:"port"`
	Authority string           `json:"authority"`
	Protocol  mesh.Protocol    `json:"protocol"`
	Routes    []mesh.Route     `json:"routes,omitempty"`
	Endpoints []shownEndpoint  `json:"endpoints"`
}

type shownEndpoint struct {
	Address  string `json:"address"`
	Workload string `json:"workload,omitempty"`
	// RTTMillis is the balancer's estimate; Out: it could not be connected to and is left out for now.
	RTTMillis float64 `json:"rttMillis"`
	Inflight  int     `json:"inflight"`
	Out       bool    `json:"out,omitempty"`
}

func (s *sidecar) effective(now time.Time) effective {
	p, st := s.current.Load(), s.client.Status()
	e := effective{
		APIVersion: "heddle/v1", Version: s.Version, Workload: st.Workload, Service: st.Service, TrustDomain: p.TrustDomain,
		MeshAddress: s.advertise,
		Epoch:       p.Epoch, Commit: p.Commit, AppliedAt: p.AppliedAt, ConfirmedAt: p.ConfirmedAt(), Stale: p.Stale(now),
		ControlPlane: st, Listeners: []shownAddress{}, Inbound: []shownPort{}, Upstreams: []shownTarget{},
	}
	e.Ready, e.Says = s.ready()
	if !e.ConfirmedAt.IsZero() {
		e.AgeSeconds = max(now.Sub(e.ConfirmedAt).Seconds(), 0)
	}
	if m := s.source.Load(); m.SVID != nil {
		e.Identity = &shownIdentity{ID: string(m.SVID.ID), Serial: m.SVID.Serial(), NotAfter: m.SVID.NotAfter}
		if m.Bundle != nil {
			e.Identity.Generation, e.Identity.Roots = m.Bundle.Generation, len(m.Bundle.Roots)
		}
	}
	for _, l := range s.listeners.all {
		e.Listeners = append(e.Listeners, shownAddress{l.what, l.Addr().String()})
	}
	for _, in := range p.InboundPorts() {
		port := shownPort{InboundPort: *in.Port, App: in.App, SNI: in.SNI, Origin: p.Origin(in.Port.DefaultID), Rules: []shownRule{}}
		for _, r := range in.Inbound.Rules {
			port.Rules = append(port.Rules, shownRule{r, p.Origin(r.ID)})
		}
		e.Inbound = append(e.Inbound, port)
	}
	for _, u := range p.Upstreams() {
		t := shownTarget{
			Service: u.Service, Port: u.PortName, Authority: u.Authority, Protocol: u.Protocol, Endpoints: []shownEndpoint{},
		}
		for _, r := range u.Outbound.Routes {
			if r.Port == u.PortName {
				t.Routes = append(t.Routes, r)
			}
		}
		for _, ep := range u.Cluster.Endpoints() {
			t.Endpoints = append(t.Endpoints, shownEndpoint{
				Address: ep.Addr.String(), Workload: ep.Workload, Out: ep.Out(now), Inflight: ep.Inflight(),
				RTTMillis: float64(ep.RTT(now).Round(10*time.Microsecond)) / float64(time.Millisecond),
			})
		}
		e.Upstreams = append(e.Upstreams, t)
	}
	return e
}

// String is for the log line at the start.
func (u Upstream) String() string { return fmt.Sprintf("%s:%s=%s", u.Service, u.Port, u.Listen) }
