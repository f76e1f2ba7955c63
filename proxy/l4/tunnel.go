package l4

import (
	"io"
	"sync/atomic"
	"time"
)

// Idle is how long a tunnel may be without a byte in either direction. It is long: databases keep quiet connections, and
// keep-alive probes find the peers that are gone.
const Idle = 2 * time.Hour

// spliceChunk is how much goes through the kernel before the idle deadline is looked at again.
const spliceChunk = 4 << 20

// Tunnel copies between two connections until both directions have ended, and closes both. An end in order in one
// direction is passed on as such while the other goes on; an error in either aborts both, so that neither peer takes
// what it got for all. The error is that of the side that failed, and failed says which: it is nil after an end in
// order. Each direction has a goroutine; the caller's is one of them.
func Tunnel(client, upstream *Conn, idle time.Duration) (failed *Conn, err error) {
	t := &tunnel{client: client, upstream: upstream, idle: idle}
	client.ReadBy(time.Time{})
	upstream.ReadBy(time.Time{})
	t.moved.Store(time.Now().UnixNano())
	done := make(chan struct{})
	go t.copyUpstreamToClient(done)
	t.up.failed, t.up.err = t.copyHalf(upstream, client)
	if t.up.err != nil {
		t.abort()
	}
	<-done
	client.Close()
	upstream.Close()
	if t.up.err != nil && (t.down.err == nil || !t.down.first) {
		return t.up.failed, t.up.err
	}
	return t.down.failed, t.down.err
}

type tunnel struct {
	client, upstream *Conn
	idle             time.Duration
	up, down         half         // each written by its goroutine, read when both are done
	moved            atomic.Int64 // when bytes last did, in either direction; unix nanoseconds
}

type half struct {
	failed *Conn
	err    error
	first  bool
}

func (t *tunnel) copyUpstreamToClient(done chan<- struct{}) {
	defer close(done)
	t.down.failed, t.down.err = t.copyHalf(t.client, t.upstream)
	if t.down.err != nil {
		// An error that follows from the other half's abort says "closed"; the first one says why.
		t.down.first = Errno(t.down.err) != ""
		t.abort()
	}
}

func (t *tunnel) abort() {
	t.client.Abort()
	t.upstream.Abort()
}

// copyHalf copies src to dst until src ends, and passes the end on.
func (t *tunnel) copyHalf(dst, src *Conn) (failed *Conn, err error) {
	if !dst.Secure() && !src.Secure() && len(src.sock.peeked) == 0 {
		failed, err = t.splice(dst, src)
	} else {
		failed, err = t.pump(dst, src)
	}
	if err != nil {
		return failed, err
	}
	if err := dst.CloseWrite(); err != nil {
		return dst, err
	}
	return nil, nil
}

// quiet reports whether a direction's deadline means that the tunnel is idle. One direction may well be silent for hours
// while the other is busy, as where a log is shipped.
func (t *tunnel) quiet(now time.Time) bool {
	return now.Sub(time.Unix(0, t.moved.Load())) >= t.idle
}

func (t *tunnel) pump(dst, src *Conn) (*Conn, error) {
	for {
		now := time.Now()
		src.ArmRead(now, t.idle)
		b, n, err := src.Await()
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			if Timeout(err) && !t.quiet(time.Now()) {
				src.ReadBy(time.Unix(0, t.moved.Load()).Add(t.idle))
				continue
			}
			return src, err
		}
		t.moved.Store(now.UnixNano())
		dst.ArmWrite(now, t.idle)
		_, err = dst.Write(b.B[:n])
		Return(b)
		if err != nil {
			return dst, err
		}
	}
}

// splice lets the kernel move the bytes, where it can; io.Copy finds out.
func (t *tunnel) splice(dst, src *Conn) (*Conn, error) {
	for {
		now := time.Now()
		src.ReadBy(now.Add(t.idle / 2)) // so that a slow stream is seen to move before the other direction gives up
		dst.WriteBy(now.Add(t.idle))
		n, err := io.Copy(dst.sock.TCPConn, &io.LimitedReader{R: src.sock.TCPConn, N: spliceChunk})
		src.read.Add(n)
		dst.written.Add(n)
		if n > 0 {
			t.moved.Store(time.Now().UnixNano())
		}
		switch {
		case err != nil && Timeout(err) && (n > 0 || !t.quiet(time.Now())):
		case err != nil:
			return src, err
		case n < spliceChunk:
			return nil, nil
		}
	}
}
