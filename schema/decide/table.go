package decide

import "github.com/heddle-mesh/heddle/schema/mesh"

// State is what the rules of one action, on the port that is asked, say to a request.
type State string

const (
	NoRule    State = "none"      // there is no such rule
	Unmatched State = "unmatched" // there are some, and none matches
	Over      State = "ended"     // there were some that would match, and all have ended
	Matched   State = "matched"   // one matches
)

// Caller is what the caller proved.
type Caller string

const (
	Proven   Caller = "proven"   // an identity
	Stranger Caller = "stranger" // none
)

// Place is where the caller's address lies.
type Place string

const (
	Inside  Place = "inside"  // in the cluster's networks
	Outside Place = "outside" // out of them
	Nowhere Place = "unknown" // the address is not known
)

// Decider is what a verdict names as its origin.
type Decider string

const (
	ByDeny    Decider = "the deny rule"
	ByAllow   Decider = "the allow rule"
	ByDefault Decider = "the port's default"
)

// Row is a row of the truth table: for all combinations of what it lists, the verdict is the same. A list that is nil
// stands for everything.
type Row struct {
	Deny  []State // enforced deny rules
	Allow []State // enforced allow rules
	// Observing are audit rules and rules with enforce: false.
	Observing []State
	Mode      []mesh.InboundMode
	Caller    []Caller
	Place     []Place

	Allowed bool
	By      Decider
	Why     string
}

// TruthTable is the rule algebra, whole: every combination is in exactly one row. The reference prints it, and a test
// holds [Authorize] to it.
var TruthTable = []Row{
	{Deny: []State{Matched}, By: ByDeny,
		Why: "deny beats everything"},
	{Deny: quiet, Allow: []State{Matched}, Allowed: true, By: ByAllow,
		Why: "an allow rule lets in whom it matches"},
	{Deny: quiet, Allow: []State{Unmatched}, By: ByDefault,
		Why: "a port with an allow rule denies the rest, whatever its mode"},
	{Deny: quiet, Allow: []State{Over}, By: ByDefault,
		Why: "an allow rule that has ended guards still: time opens no door"},

	{Deny: quiet, Allow: none, Mode: modes(mesh.Deny), By: ByDefault,
		Why: "closed, as is the built-in default"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.AllUnauthenticated), Allowed: true, By: ByDefault,
		Why: "open to all; a strict port still takes mutual TLS only"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.Audit), Allowed: true, By: ByDefault,
		Why: "open to all, and recorded"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.AllAuthenticated), Caller: []Caller{Proven}, Allowed: true, By: ByDefault,
		Why: "open to every proven identity"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.AllAuthenticated), Caller: []Caller{Stranger}, By: ByDefault,
		Why: "and to nobody else"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.ClusterUnauthenticated), Place: []Place{Inside}, Allowed: true, By: ByDefault,
		Why: "open to the cluster's networks"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.ClusterUnauthenticated), Place: []Place{Outside, Nowhere}, By: ByDefault,
		Why: "an address that is not known counts as outside"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.ClusterAuthenticated), Caller: []Caller{Proven}, Place: []Place{Inside}, Allowed: true, By: ByDefault,
		Why: "open to proven identities in the cluster's networks"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.ClusterAuthenticated), Caller: []Caller{Proven}, Place: []Place{Outside, Nowhere}, By: ByDefault,
		Why: "an identity alone is not enough"},
	{Deny: quiet, Allow: none, Mode: modes(mesh.ClusterAuthenticated), Caller: []Caller{Stranger}, By: ByDefault,
		Why: "nor is an address"},
}

// quiet is every state but a match: a deny rule that does not match, or has ended, says nothing.
var quiet = []State{NoRule, Unmatched, Over}

var none = []State{NoRule}

func modes(m ...mesh.InboundMode) []mesh.InboundMode { return m }

// Missing says what a condition of a rule counts for where a request does not tell.
type Missing struct {
	Condition string // as policy spells it
	Where     string // when it cannot be known
	// Allow, Deny and Audit: whether the condition then counts as holding in a rule of that action. Shadow rules count as
	// what they would be.
	Allow, Deny, Audit bool
	Why                string
}

// MissingTable has every condition. A condition whose three answers are "no" is never unknown: its absence is an answer.
// The reference prints it, and a test holds [Authorize] to it.
var MissingTable = []Missing{
	{Condition: "from", Where: "the caller proves no identity",
		Why: "that no identity was proven is known; only unauthenticated: true covers such callers"},
	{Condition: "networks", Where: "the caller's address is not known", Deny: true, Audit: true,
		Why: "an address that cannot be seen may be any"},
	{Condition: "sni", Where: "the client asked for no name", Deny: true, Audit: true,
		Why: "leaving the name out is no way around a deny rule"},
	{Condition: "routes", Where: "bytes in which no request is seen", Deny: true, Audit: true,
		Why: "what is asked cannot be seen"},
	{Condition: "methods", Where: "bytes in which no request is seen", Deny: true, Audit: true,
		Why: "what is asked cannot be seen"},
	{Condition: "paths", Where: "bytes in which no request is seen", Deny: true, Audit: true,
		Why: "what is asked cannot be seen"},
	{Condition: "headers", Where: "bytes in which no request is seen", Deny: true, Audit: true,
		Why: "what is asked cannot be seen"},
	{Condition: "headers: exact", Where: "the request does not have the header", Deny: true, Audit: true,
		Why: "leaving a header out is no way around a deny rule"},
	{Condition: "headers: oneOf", Where: "the request does not have the header", Deny: true, Audit: true,
		Why: "leaving a header out is no way around a deny rule"},
	{Condition: "headers: exact", Where: "the value is one of several", Deny: true, Audit: true,
		Why: "a second line, or a list, is no way around a deny rule: which one the application takes is not known"},
	{Condition: "headers: oneOf", Where: "the value is one of several", Deny: true, Audit: true,
		Why: "as for exact"},
	{Condition: "headers: present", Where: "the request does not have the header",
		Why: "that it is not there is the answer"},
	{Condition: "routes, by a header", Where: "the request does not have the header", Deny: true, Audit: true,
		Why: "as for headers"},
	{Condition: "routes, by the query", Where: "the request does not have the parameter", Deny: true, Audit: true,
		Why: "as for headers"},
	{Condition: "jwt", Where: "the request has no valid token of the issuer, or the issuer's keys are not known", Deny: true, Audit: true,
		Why: "nothing is known of what such a caller may claim"},
	{Condition: "jwt: claims", Where: "the token does not have the claim", Deny: true, Audit: true,
		Why: "as for headers"},
	{Condition: "jwt", Where: "bytes in which no request is seen", Deny: true, Audit: true,
		Why: "what is asked cannot be seen"},
}
