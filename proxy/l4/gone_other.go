//go:build !linux

package l4

// Gone is not known on this system, where poll says the same of a peer that only ended its own direction.
func (c *Conn) Gone() bool { return false }
