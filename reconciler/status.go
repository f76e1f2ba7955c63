package reconciler

import (
	"time"

	"github.com/heddle-mesh/heddle/reconciler/release"
	"github.com/heddle-mesh/heddle/schema/diag"
	"github.com/heddle-mesh/heddle/schema/mesh"
)

// APIVersion is that of the operator API.
const APIVersion = "heddle/v1"

// State is how far the newest commit has come.
type State string

// The states of a commit, in order. Rejected and held ones go no further, and never replace what serves.
const (
	Fetched   State = "fetched"   // seen, not judged yet
	Verified  State = "verified"  // the applied release's guards let it pass
	Valid     State = "valid"     // the policy evaluates without findings
	Compiled  State = "compiled"  // it has become a mesh
	Pushing   State = "pushing"   // it is the applied release; sidecars are taking it over
	Converged State = "converged" // every sidecar enforces it
	Rejected  State = "rejected"  // findings; the author has to fix them in a newer commit
	Held      State = "held"      // a guard wants an operator's word
)

// Accept is the word by which an operator lets a held commit pass.
type Accept string

// What may be accepted; each is also the kind of hold.
const (
	AcceptFirst       Accept = "first"        // there is no applied release to judge by
	AcceptRewind      Accept = "rewind"       // the commit does not descend from the applied one
	AcceptEmpty       Accept = "empty"        // the commit deletes every service
	AcceptTrustDomain Accept = "trust-domain" // the commit renames every identity
	AcceptInvariants  Accept = "invariants"   // the commit breaks an invariant that it drops
	AcceptFences      Accept = "fences"       // the commit lets a directory write more than it might, and writes by it at once
)

// Status is what the reconciler knows, as the operator API serves it. A Status is a copy and never changes.
type Status struct {
	APIVersion string `json:"apiVersion"`
	Version    string `json:"version"` // of Heddle
	// Key is the public key that signs releases; control planes pin it.
	Key    string       `json:"key"`
	Listen StatusListen `json:"listen"`
	Source StatusSource `json:"source"`
	// Observed is the newest commit seen; nil before the first look at the repository.
	Observed *Observed `json:"observed,omitempty"`
	// Applied is the release that serves; nil if there is none, or none that can be trusted.
	Applied *Applied `json:"applied,omitempty"`
	// Served is the epoch of the release that control planes are given; 0: none is. Without Applied it is the newest that
	// we signed, and only goes on.
	Served uint64 `json:"served,omitempty"`
	Push   Push   `json:"push"`
	// Fault is what keeps the reconciler from its work now, such as a Git server that does not answer; it heals by
	// itself when the cause does. FaultSince is when it began.
	Fault      string    `json:"fault,omitempty"`
	FaultSince time.Time `json:"faultSince,omitzero"`
}

// StatusListen has the addresses on which the reconciler really listens; empty: switched off.
type StatusListen struct {
	Releases string `json:"releases,omitempty"`
	Hint     string `json:"hint,omitempty"`
}

// StatusSource is where policy comes from.
type StatusSource struct {
	URL string `json:"url"` // credentials masked
	Ref string `json:"ref"`
	Env string `json:"env,omitempty"`
}

// Observed is the newest commit and its state.
type Observed struct {
	Commit  string    `json:"commit"`
	Subject string    `json:"subject"`
	Author  string    `json:"author"`
	Time    time.Time `json:"time"` // of the commit
	State   State     `json:"state"`
	Since   time.Time `json:"since"` // of the state
	// Reason says why a commit is held, or what pushing waits for.
	Reason string `json:"reason,omitempty"`
	// Accept is what `heddle resume --accept-…` has to say for a held commit.
	Accept Accept `json:"accept,omitempty"`
	// Findings are all that is wrong with a rejected commit, sorted.
	Findings diag.List `json:"findings,omitempty"`
	// Warnings are findings that reject nothing: what a commit that passes probably does not mean.
	Warnings diag.List `json:"warnings,omitempty"`
}

// Applied is the release that serves.
type Applied struct {
	Epoch     uint64    `json:"epoch"`
	Commit    string    `json:"commit"`
	Subject   string    `json:"subject"`
	Author    string    `json:"author"`
	Behaviour mesh.Hash `json:"behaviour"`
	Published time.Time `json:"published"`
	// Unchanged is true when it behaves as the release before it.
	Unchanged bool `json:"unchanged,omitempty"`
}

// Push is how far the applied release has come among the sidecars.
type Push struct {
	ControlPlanes int            `json:"controlPlanes"` // that watch now
	Acked         int            `json:"acked"`
	Total         int            `json:"total"`
	Nacks         []release.Nack `json:"nacks,omitempty"`
}

// History is the answer to GET /v1/history: the kept releases, newest first.
type History struct {
	APIVersion string         `json:"apiVersion"`
	Items      []HistoryEntry `json:"items"`
	// Damaged says what is wrong with records that could not be listed.
	Damaged string `json:"damaged,omitempty"`
}

// HistoryEntry is one release.
type HistoryEntry struct {
	Epoch     uint64    `json:"epoch"`
	Commit    string    `json:"commit"`
	Subject   string    `json:"subject"`
	Author    string    `json:"author"`
	Behaviour mesh.Hash `json:"behaviour"`
	Published time.Time `json:"published"`
	Applied   bool      `json:"applied"`   // it is the one that serves
	Unchanged bool      `json:"unchanged"` // it behaves as the release before it
}

// ResumeRequest is the body of POST /v1/resume.
type ResumeRequest struct {
	Accept Accept `json:"accept"`
	// Commit, if set, has to be the held one: whoever decided about one commit does not let another pass.
	Commit string `json:"commit,omitempty"`
}

// ResumeReply says which commit was let pass.
type ResumeReply struct {
	APIVersion string `json:"apiVersion"`
	Commit     string `json:"commit"`
	Accept     Accept `json:"accept"`
}
