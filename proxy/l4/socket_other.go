//go:build !unix

package l4

const nonblocking = false

func (s *socket) readNow(b []byte) (int, error) { return s.TCPConn.Read(b) }

func (s *socket) dead() bool { return false }

func (s *socket) peekNow() bool { return true }
