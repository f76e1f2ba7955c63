// Package l4 is connections as bytes: a TCP connection, bare or under TLS, that waits for bytes without holding a
// buffer, whose deadlines are cheap, and whose two ways to end, in order and abruptly, are told apart; and the tunnel
// that copies between two of them with half-close in both directions. It knows nothing of HTTP or policy.
package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// KeepAlive finds peers that vanished: probes after 10 s, every 10 s, three of them (Linkerd's idle and interval).
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 10 * time.Second, Count: 3}

// Conn is a TCP connection, bare or under TLS. One goroutine may read while another writes. Whoever made it closes it,
// by exactly one of Close and Abort; both may be called again, and by others, to wake who reads or writes.
type Conn struct {
	// in is what is read and written: sock, or TLS over it.
	in   net.Conn
	sock *socket
	tls  *tls.Conn

	step func(fd uintptr) bool // bound once, so that waiting does not allocate
	ask  []byte                // to be written first: see Ask
	idle bool
	got  *Buffer
	n    int
	err  error

	readBy, writeBy int64 // the deadlines in force, unix nanoseconds; 0: none

	// Counters of bytes on the wire's inner side, for metrics; written by the one reader and the one writer.
	read, written atomic.Int64
}

// New takes over a TCP connection.
func New(c *net.TCPConn) *Conn {
	s := &socket{TCPConn: c}
	k := &Conn{in: s, sock: s}
	k.step = k.tryRead
	if raw, err := c.SyscallConn(); err == nil {
		s.raw = raw
	}
	return k
}

// Server makes the connection the server's side of TLS. On error the connection must be aborted.
func (c *Conn) Server(ctx context.Context, config *tls.Config) error {
	return c.handshake(ctx, tls.Server(c.sock, config))
}

// Client makes the connection the client's side of TLS. On error the connection must be aborted.
func (c *Conn) Client(ctx context.Context, config *tls.Config) error {
	return c.handshake(ctx, tls.Client(c.sock, config))
}

func (c *Conn) handshake(ctx context.Context, t *tls.Conn) error {
	c.sock.secure = true
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	c.in, c.tls = t, t
	return nil
}

// TLS is the state of the handshake; nil for a bare connection.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil {
		return nil
	}
	s := c.tls.ConnectionState()
	return &s
}

// Secure reports whether the connection is under TLS.
func (c *Conn) Secure() bool { return c.tls != nil }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

// LocalAddr is the connection's own address.
func (c *Conn) LocalAddr() net.Addr { return c.sock.LocalAddr() }

// Bytes are the counts of bytes read and written so far, without TLS's own.
func (c *Conn) Bytes() (read, written int64) { return c.read.Load(), c.written.Load() }

// Read reads into a buffer of the caller's, as io.Reader.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// Write writes all of b, as io.Writer.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.in.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// Unread gives bytes back that were peeked at before TLS, or by a stack that goes on elsewhere; they are read first. It
// must be called before Server and Client, by the one that reads.
func (c *Conn) Unread(b []byte) {
	c.sock.peeked = append(append([]byte(nil), b...), c.sock.peeked...)
}

// Await waits for bytes and reads them into a borrowed buffer, which is the caller's then. No buffer is held while
// waiting. The count is at least 1 unless there is an error, and the buffer is nil then.
func (c *Conn) Await() (*Buffer, int, error) {
	for {
		err := c.await()
		b, n := c.got, c.n
		c.got = nil
		if err == nil {
			err = c.err
		}
		if n > 0 {
			c.read.Add(int64(n))
			return b, n, nil
		}
		Return(b)
		if err != nil {
			return nil, 0, err
		}
	}
}

func (c *Conn) await() error {
	c.got, c.n, c.err = nil, 0, nil
	if c.sock.raw == nil || !nonblocking {
		c.got = Borrow()
		c.n, c.err = c.in.Read(c.got.B)
		return nil
	}
	c.sock.inside = true
	err := c.sock.raw.Read(c.step)
	c.sock.inside = false
	return err
}

// ErrStale is an idle connection that turned out to be closed by its peer, or to hold bytes that nobody asked for. Nothing
// was written to it.
var ErrStale = errors.New("the idle connection had ended")

// Ask writes a request and awaits the first bytes of its answer, as Await does, with fewer system calls: it looks at the
// connection, writes, and waits, without first trying to read what cannot be there yet. idle is set for a connection
// that was used before: then bytes, or an end, that are there already make it ErrStale. After a failed write, what the
// peer said before it went away is still read.
func (c *Conn) Ask(request []byte, idle bool) (*Buffer, int, error) {
	if c.sock.raw == nil || !nonblocking {
		if idle && c.Dead() {
			return nil, 0, ErrStale
		}
		if _, err := c.Write(request); err != nil {
			return nil, 0, err
		}
		return c.Await()
	}
	c.ask, c.idle = request, idle
	b, n, err := c.Await()
	c.ask = nil
	return b, n, err
}

// tryAsk is the first step of Ask, inside the RawConn's Read. There the runtime has already begun to watch the socket
// and forgets nothing that happens from now on; so after a look that finds nothing it is safe to write and park.
func (c *Conn) tryAsk() bool {
	request := c.ask
	c.ask = nil
	there := c.sock.peekNow()
	if there && c.idle {
		c.err = ErrStale
		return true
	}
	if _, err := c.Write(request); err != nil {
		if c.tryRead(c.sock.fd); c.got == nil {
			c.err = err
		}
		return true
	}
	return there && c.tryRead(c.sock.fd)
}

// tryRead runs inside the RawConn's Read whenever the socket may be readable; false parks until it is again.
func (c *Conn) tryRead(fd uintptr) bool {
	c.sock.fd = fd
	if c.ask != nil {
		return c.tryAsk()
	}
	b := Borrow()
	n, err := c.in.Read(b.B)
	if n == 0 && err == error(errAgain) {
		Return(b)
		return false
	}
	c.got, c.n, c.err = b, n, err
	return true
}

// ArmRead sets the read deadline to d from now. As long as the deadline in force is close to that (the last quarter of d is
// used up), it is left alone: moving a timer for every request would cost more than parsing it.
func (c *Conn) ArmRead(now time.Time, d time.Duration) {
	if near(c.readBy, now, d) {
		return
	}
	c.readBy = now.Add(d).UnixNano()
	c.sock.TCPConn.SetReadDeadline(now.Add(d))
}

// ArmWrite is ArmRead for writes.
func (c *Conn) ArmWrite(now time.Time, d time.Duration) {
	if near(c.writeBy, now, d) {
		return
	}
	c.writeBy = now.Add(d).UnixNano()
	c.sock.TCPConn.SetWriteDeadline(now.Add(d))
}

func near(by int64, now time.Time, d time.Duration) bool {
	left := time.Duration(by - now.UnixNano())
	return by != 0 && left <= d && left >= d-d/4
}

// ReadBy sets the read deadline exactly; the zero time takes it away.
func (c *Conn) ReadBy(t time.Time) {
	c.readBy = 0
	if !t.IsZero() {
		c.readBy = t.UnixNano()
	}
	c.sock.TCPConn.SetReadDeadline(t)
}

// WriteBy sets the write deadline exactly; the zero time takes it away.
func (c *Conn) WriteBy(t time.Time) {
	c.writeBy = 0
	if !t.IsZero() {
		c.writeBy = t.UnixNano()
	}
	c.sock.TCPConn.SetWriteDeadline(t)
}

// NoReadBy takes an earlier ReadBy back, if there was one.
func (c *Conn) NoReadBy() {
	if c.readBy != 0 {
		c.ReadBy(time.Time{})
	}
}

// Wake makes who reads return with a timeout at once, and every read to come until a deadline is set again. It may be
// called by any goroutine.
func (c *Conn) Wake() { c.sock.TCPConn.SetReadDeadline(time.Unix(1, 0)) }

// CloseWrite ends the own direction in order: close_notify under TLS, then FIN.
func (c *Conn) CloseWrite() error {
	if c.tls != nil {
		if err := c.tls.CloseWrite(); err != nil {
			return err
		}
		// FIN as well: an end that is not under TLS behind the peer must see it even if it never looks at alerts.
	}
	return c.sock.TCPConn.CloseWrite()
}

// Close ends both directions in order.
func (c *Conn) Close() error { return c.in.Close() }

// Abort ends the connection so that the peer sees an error, never a clean end: RST, and no close_notify.
func (c *Conn) Abort() {
	c.sock.TCPConn.SetLinger(0)
	c.sock.TCPConn.Close()
}

// Bounds of Linger.
const (
	lingerFor   = 2 * time.Second
	lingerBytes = 1 << 20
)

// Linger closes in order when the peer may still be sending: its own direction first, then it takes in what comes for a
// while. Without that the unread bytes turn the close into an RST, and the peer may lose the response (RFC 9112, 9.6).
func (c *Conn) Linger() {
	if c.CloseWrite() == nil {
		c.ReadBy(time.Now().Add(lingerFor))
		b := Borrow()
		for n := 0; n < lingerBytes; {
			m, err := c.in.Read(b.B)
			if n += m; err != nil {
				break
			}
		}
		Return(b)
	}
	c.sock.TCPConn.Close()
}

// Dead reports whether an idle connection, on which nobody reads, was closed by its peer or got bytes that nobody asked
// for: it must not be used again. It never blocks.
func (c *Conn) Dead() bool { return c.sock.dead() }

// Truncated reports whether a read error means that the peer's direction did not end in order: everything but io.EOF.
// Under TLS a connection that ends without close_notify is such.
func Truncated(err error) bool { return err != nil && err != io.EOF }

// Errno is a short word for a connection's end, as metrics carry it; "" for an end in order.
func Errno(err error) string {
	var e syscall.Errno
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return ""
	case errors.As(err, &e):
		switch e {
		case syscall.ECONNRESET:
			return "ECONNRESET"
		case syscall.EPIPE:
			return "EPIPE"
		case syscall.ECONNREFUSED:
			return "ECONNREFUSED"
		case syscall.ETIMEDOUT:
			return "ETIMEDOUT"
		case syscall.EHOSTUNREACH:
			return "EHOSTUNREACH"
		}
		return "OTHER"
	case errors.Is(err, errTruncated):
		return "TRUNCATED"
	case Timeout(err):
		return "ETIMEDOUT"
	}
	return "OTHER"
}

// Timeout reports whether err is a deadline that passed.
func Timeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}
