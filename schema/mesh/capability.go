package mesh

// Capability is something a sidecar must be able to enforce. Objects carry those they need; a sidecar declares its own
// in hello, refuses an object that needs another, and a release that a sidecar cannot enforce is held.
type Capability string

const (
	CapHTTP1       Capability = "http1"        // carry HTTP/1.1
	CapTCP         Capability = "tcp"          // carry bytes
	CapDetect      Capability = "detect"       // tell them apart
	CapRoute       Capability = "http-route"   // match path, method, headers; weighted backends
	CapTimeout     Capability = "http-timeout" // Timeouts.Request
	CapAuthorize   Capability = "authorize"    // allow and deny rules by identity and port
	CapAuthorizeL7 Capability = "authorize-route"
	CapPermissive  Capability = "mtls-permissive"
)

// Enforced is what the sidecar of this source tree enforces: the one table that `heddle check`, the compiler and the
// sidecar's hello agree on. `proxy` has a test for each entry.
var Enforced = []Capability{CapAuthorize, CapAuthorizeL7, CapDetect, CapHTTP1, CapRoute, CapTimeout, CapPermissive, CapTCP}

// EnforcedProtocols are the protocols that the sidecar of this source tree carries.
var EnforcedProtocols = []Protocol{Detect, HTTP1, TCP, Opaque}
