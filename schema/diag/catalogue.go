package diag

// Check explains one finding ID, offline: what it means, why it is a fault and how to mend it.
type Check struct {
	ID    string `json:"id"`
	Title string `json:"title"` // a few words, lower case
	Why   string `json:"why"`   // what would happen if it were let through
	Mend  string `json:"mend"`  // what to write instead
}

// The IDs, by the stage that finds them. An ID is never used again for something else.
const (
	// 01xx: what a repository may hold.
	Symlink       = "HDL0101"
	Submodule     = "HDL0102"
	FileTooLarge  = "HDL0103"
	TooManyFiles  = "HDL0104"
	TreeTooLarge  = "HDL0105"
	FileName      = "HDL0106" // a name that no policy file may have: not UTF-8, a control character, _tool.cue
	NestedModule  = "HDL0107" // a second cue.mod
	StaleSchema   = "HDL0108" // the vendored schema differs from its VERSION
	NoPolicy      = "HDL0109" // no mesh.cue
	ForeignImport = "HDL0110"
	ForeignAttr   = "HDL0111" // @embed, @extern, @if, @tag but for the one of the environment
	WrongPackage  = "HDL0112"
	CaseCollision = "HDL0113" // two names that are one on a disk that folds case
	NotText       = "HDL0114" // content that is no UTF-8 text
	Secret        = "HDL0115"
	UnreadFile    = "HDL0116" // what looks like policy and this version does not read, such as overlays/

	// 02xx: what CUE finds.
	Syntax       = "HDL0201"
	UnknownField = "HDL0202"
	WrongValue   = "HDL0203" // type, enum, range, pattern
	MissingField = "HDL0204"
	Conflict     = "HDL0205"
	WeightSum    = "HDL0206"
	Incomplete   = "HDL0207" // not a concrete value
	SchemaRule   = "HDL0208" // another rule of rules.cue
	Runaway      = "HDL0209" // the evaluation ran out of time or memory
	EvalCrashed  = "HDL0210"
	OutsideFence = "HDL0211" // a file writes what is not its own

	// 03xx: what compile finds across files.
	UnknownService   = "HDL0301"
	UnknownPort      = "HDL0302"
	UnknownRoute     = "HDL0303"
	UnknownDomain    = "HDL0304" // an identity outside the trust domain
	AmbiguousPort    = "HDL0305"
	ShadowedRoute    = "HDL0306"
	DuplicateAddress = "HDL0307"
	RouteLoop        = "HDL0308"
	WrongProtocol    = "HDL0309" // an HTTP construct on a port that does not speak it, or the reverse
	DuplicateID      = "HDL0310"
	NoCaller         = "HDL0311"
	BadIdentity      = "HDL0312"
	DeadRule         = "HDL0313"
	DeadAllow        = "HDL0314" // an allow rule that deny rules leave nothing; a warning
	UnsafeRetry      = "HDL0315" // retries where no request may be tried again
	TryCannotFit     = "HDL0316" // one timeout leaves no room for another
	NoWeight         = "HDL0317" // weights that sum to 0
	SelfMirror       = "HDL0318"
	NobodyCalls      = "HDL0319" // a service that nobody may call; a warning
	OutsideCaller    = "HDL0320" // a strict port whose declared caller is outside the mesh
	EgressOverlap    = "HDL0321"
	Expired          = "HDL0322" // a rule that has ended, or ends soon; a warning
	BadNetwork       = "HDL0323" // a malformed range, or an exception that is not inside it
	UnknownIssuer    = "HDL0324"
	LimitOrder       = "HDL0325" // a narrower limit above a wider one
	DuplicateEntry   = "HDL0326" // the same caller, path, network … twice in one list
	BadPattern       = "HDL0327" // a template or regular expression that cannot be read
	BadFilter        = "HDL0328" // filters that cannot stand together, or there
	SelectorOverlap  = "HDL0329" // two services select one workload
	BadTest          = "HDL0330" // an expectation about nothing
	UnknownWorkload  = "HDL0331"
	EmptyInvariant   = "HDL0332" // an invariant about nothing
	TooMuch          = "HDL0333" // more of something than is compiled

	// 04xx: mandates.
	MandateMTLS    = "HDL0401"
	MandatePolicy  = "HDL0402"
	MandateTimeout = "HDL0403"
	UnusedExempt   = "HDL0404"
	MandateEgress  = "HDL0405"
	MandateRetries = "HDL0406"

	// 05xx: what the sidecar does not enforce.
	NotEnforced = "HDL0501"

	// 06xx: what a repository says of itself, proved on the compiled mesh.
	TestFailed         = "HDL0601"
	InvariantViolated  = "HDL0602"
	InvariantUndecided = "HDL0603"
)

// Explain returns the explanation of an ID.
func Explain(id string) (Check, bool) {
	for _, c := range Catalogue {
		if c.ID == id {
			return c, true
		}
	}
	return Check{}, false
}
