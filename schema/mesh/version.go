package mesh

// Version is the version of Heddle that this source tree is: what the compiler writes into releases, what a sidecar
// says in hello, and what findings name when that sidecar does not enforce something.
const Version = "0.1.0"
