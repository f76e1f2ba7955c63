package controlplane

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/heddle-mesh/heddle/controlplane/enroll"
	"github.com/heddle-mesh/heddle/controlplane/identity"
	"github.com/heddle-mesh/heddle/controlplane/mirror"
	"github.com/heddle-mesh/heddle/controlplane/observe"
	"github.com/heddle-mesh/heddle/controlplane/push"
	"github.com/heddle-mesh/heddle/internal/operator"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// APIVersion is the version of the operator's API.
const APIVersion = "heddle/v1"

// Status is the answer to GET /v1/status.
type Status struct {
	APIVersion  string          `json:"apiVersion"`
	Version     string          `json:"version"`
	Started     time.Time       `json:"started"`
	Addresses   Addresses       `json:"addresses"`
	TrustDomain string          `json:"trustDomain,omitempty"`
	Epoch       uint64          `json:"epoch,omitempty"` // of the release that is served
	Commit      string          `json:"commit,omitempty"`
	Reconciler  mirror.Status   `json:"reconciler"`
	CA          identity.Status `json:"ca"`
	Proxies     Count           `json:"proxies"`
	// Ready says whether sidecars are served and enrolled; Fault what is wrong, if something is, and what to do.
	Ready bool   `json:"ready"`
	Fault string `json:"fault,omitempty"`
}

// Addresses are where a control plane listens.
type Addresses struct {
	Stream    string `json:"stream"`
	Enrolment string `json:"enrolment"`
	Metrics   string `json:"metrics,omitempty"`
}

// Count is how many of the sidecars that are there have acknowledged the release.
type Count struct {
	Acked int `json:"acked"`
	Total int `json:"total"`
}

// Proxies is the answer to GET /v1/proxies.
type Proxies struct {
	APIVersion string       `json:"apiVersion"`
	Items      []push.Proxy `json:"items"`
}

// Edges is the answer to GET /v1/edges.
type Edges struct {
	APIVersion string         `json:"apiVersion"`
	Items      []observe.Edge `json:"items"`
}

// TokenRequest is the body of POST /v1/tokens.
type TokenRequest struct {
	Workload string `json:"workload"`
	Service  string `json:"service"`
	TTL      string `json:"ttl,omitempty"` // a Go duration; empty: an hour
}

// TokenReply is the answer to POST /v1/tokens.
type TokenReply struct {
	APIVersion string    `json:"apiVersion"`
	Token      string    `json:"token"` // the content of a join token file
	Workload   string    `json:"workload"`
	Service    string    `json:"service"`
	Expires    time.Time `json:"expires"`
	// Warning says why the token would be refused by the policy of this moment; it is good as soon as policy changes.
	Warning string `json:"warning,omitempty"`
}

// Enrolments is the answer to GET /v1/enrolments.
type Enrolments struct {
	APIVersion string           `json:"apiVersion"`
	Items      []EnrolmentEntry `json:"items"`
}

// EnrolmentEntry is one enrolled workload.
type EnrolmentEntry struct {
	Workload string    `json:"workload"`
	Service  string    `json:"service"`
	Identity string    `json:"identity,omitempty"` // that policy gives it now
	Created  time.Time `json:"created"`
	Fault    string    `json:"fault,omitempty"` // why it is given none
}

// RevokeRequest is the body of POST /v1/revoke.
type RevokeRequest struct {
	Workload string `json:"workload"`
}

// RevokeReply is the answer to POST /v1/revoke.
type RevokeReply struct {
	APIVersion string `json:"apiVersion"`
	Workload   string `json:"workload"`
	// CertificateEnds is when the last certificate ends that the workload may have. Until then other sidecars believe it.
	CertificateEnds time.Time `json:"certificateEnds"`
}

// operatorAPI is what the heddle command asks on the operator socket.
func (cp *controlPlane) operatorAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { operator.Reply(w, cp.status()) })
	mux.HandleFunc("GET /v1/proxies", func(w http.ResponseWriter, _ *http.Request) {
		operator.Reply(w, Proxies{APIVersion: APIVersion, Items: cp.streams.Proxies()})
	})
	mux.HandleFunc("GET /v1/edges", func(w http.ResponseWriter, _ *http.Request) {
		operator.Reply(w, Edges{APIVersion: APIVersion, Items: cp.traffic.Edges(time.Now())})
	})
	mux.HandleFunc("POST /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, cp.token)
	})
	mux.HandleFunc("GET /v1/enrolments", func(w http.ResponseWriter, _ *http.Request) { operator.Reply(w, cp.enrolments()) })
	mux.HandleFunc("POST /v1/revoke", func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, func(q RevokeRequest) (any, error) { return cp.revoke(q.Workload) })
	})
	mux.HandleFunc("DELETE /v1/enrolments/{namespace}/{name}", func(w http.ResponseWriter, r *http.Request) {
		v, err := cp.revoke(r.PathValue("namespace") + "/" + r.PathValue("name"))
		if err != nil {
			operator.Fail(w, err)
			return
		}
		operator.Reply(w, v)
	})
	return mux
}

// reply reads a body, acts on it and answers.
func reply[Q, A any](w http.ResponseWriter, r *http.Request, act func(Q) (A, error)) {
	var q Q
	err := operator.Read(w, r, &q)
	var a A
	if err == nil {
		a, err = act(q)
	}
	if err != nil {
		operator.Fail(w, err)
		return
	}
	operator.Reply(w, a)
}

func (cp *controlPlane) status() Status {
	s := Status{
		APIVersion: APIVersion, Version: cp.cfg.Version, Started: cp.started, Addresses: cp.addresses,
		Reconciler: cp.releases.Status(), CA: cp.ca.Status(),
	}
	s.TrustDomain = s.CA.TrustDomain
	progress := cp.streams.Progress()
	s.Epoch, s.Commit = progress.GetEpoch(), progress.GetCommit()
	s.Proxies = Count{Acked: int(progress.GetAcked()), Total: int(progress.GetTotal())}
	fault := cp.fault.Get()
	switch {
	case fault != "":
		s.Fault = fault
	case s.Epoch == 0:
		s.Fault = "no release has arrived yet"
		if !s.Reconciler.Connected {
			s.Fault += ": " + s.Reconciler.Fault
		}
	case s.CA.Fault != "":
		s.Fault = s.CA.Fault
	}
	s.Ready = s.Epoch != 0 && s.CA.Fault == ""
	return s
}

func (cp *controlPlane) token(q TokenRequest) (TokenReply, error) {
	var ttl time.Duration
	if q.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(q.TTL); err != nil {
			return TokenReply{}, &operator.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("ttl %q is no duration", q.TTL), Hint: "write 30m or 24h"}
		}
	}
	token, expires, err := cp.register.NewToken(q.Workload, mesh.ServiceName(q.Service), ttl)
	switch {
	case errors.Is(err, identity.ErrUnbound):
		return TokenReply{}, &operator.Error{Status: http.StatusServiceUnavailable, Message: err.Error(),
			Hint: "wait for the first release; `heddle status` says how far it is"}
	case err != nil:
		return TokenReply{}, &operator.Error{Status: http.StatusBadRequest, Message: err.Error(),
			Hint: "heddle token shows the form, policy the names"}
	}
	reply := TokenReply{APIVersion: APIVersion, Token: token, Workload: q.Workload, Service: q.Service, Expires: expires}
	if err := cp.register.Preview(q.Workload, mesh.ServiceName(q.Service)); err != nil {
		reply.Warning = err.Error()
	}
	return reply, nil
}

func (cp *controlPlane) enrolments() Enrolments {
	out := Enrolments{APIVersion: APIVersion, Items: []EnrolmentEntry{}}
	list, _ := cp.register.List()
	for _, e := range list {
		entry := EnrolmentEntry{Workload: e.Workload, Service: string(e.Service), Created: e.Created}
		grant, err := cp.register.Grant(e.Workload)
		if err != nil {
			entry.Fault = err.Error()
		} else {
			entry.Service, entry.Identity = string(grant.Service), string(grant.Identity)
		}
		out.Items = append(out.Items, entry)
	}
	return out
}

// revoke takes back an enrolment: the host key proves nothing any more, the stream ends, the endpoint leaves. A
// certificate that was issued before is good until it ends.
func (cp *controlPlane) revoke(workload string) (RevokeReply, error) {
	err := cp.register.Revoke(workload)
	switch {
	case errors.Is(err, enroll.ErrNotEnrolled):
		return RevokeReply{}, &operator.Error{Status: http.StatusNotFound, Message: "workload " + workload + " is not enrolled",
			Hint: "`heddle enrolments` lists those that are"}
	case err != nil:
		return RevokeReply{}, &operator.Error{Status: http.StatusInternalServerError, Message: err.Error(), Hint: "mend the state directory, and revoke it again"}
	}
	ends := time.Now().Add(cp.ca.LeafTTL())
	if known := cp.streams.Revoke(workload); known.After(ends) { // issued when certificates lasted longer
		ends = known
	}
	cp.endpoints.Forget(workload)
	cp.traffic.Forget(workload)
	return RevokeReply{APIVersion, workload, ends.UTC().Truncate(time.Second)}, nil
}

// metricsAPI is /live, /ready and /metrics: fixed targets that tell nothing about policy.
func (cp *controlPlane) metricsAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if s := cp.status(); !s.Ready {
			http.Error(w, s.Fault, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		cp.writeMetrics(w)
	})
	return mux
}
