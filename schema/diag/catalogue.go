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

	// 04xx: mandates.
	MandateMTLS    = "HDL0401"
	MandatePolicy  = "HDL0402"
	MandateTimeout = "HDL0403"
	UnusedExempt   = "HDL0404"

	// 05xx: what the sidecar does not enforce.
	NotEnforced = "HDL0501"
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
