package l4

import (
	"io"
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
	t := tunnel{client: client, upstream: upstream, idle: idle}
	client.ReadBy(time.Time{})
	upstream.ReadBy(time.Time{})
	done := make(chan struct{})
	go t.copyUpstreamToClient(done)
	t.up.failed, t.up.err = copyHalf(upstream, client, idle)
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
	up, down         half // each written by its goroutine, read when both are done
}

type half struct {
	failed *Conn
	err    error
	first  bool
}

func (t *tunnel) copyUpstreamToClient(done chan<- struct{}) {
	defer close(done)
	t.down.failed, t.down.err = copyHalf(t.client, t.upstream, t.idle)
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
func copyHalf(dst, src *Conn, idle time.Duration) (failed *Conn, err error) {
	if !dst.Secure() && !src.Secure() && len(src.sock.peeked) == 0 {
		failed, err = splice(dst, src, idle)
	} else {
		failed, err = pump(dst, src, idle)
	}
	if err != nil {
		return failed, err
	}
	if err := dst.CloseWrite(); err != nil {
		return dst, err
	}
	return nil, nil
}

func pump(dst, src *Conn, idle time.Duration) (*Conn, error) {
	for {
		now := time.Now()
		src.ArmRead(now, idle)
		b, n, err := src.Await()
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return src, err
		}
		dst.ArmWrite(now, idle)
		_, err = dst.Write(b.B[:n])
		Return(b)
		if err != nil {
			return dst, err
		}
	}
}

// splice lets the kernel move the bytes, where it can; io.Copy finds out.
func splice(dst, src *Conn, idle time.Duration) (*Conn, error) {
	for {
		now := time.Now()
		src.ReadBy(now.Add(idle))
		dst.WriteBy(now.Add(idle))
		n, err := io.Copy(dst.sock.TCPConn, &io.LimitedReader{R: src.sock.TCPConn, N: spliceChunk})
		src.read.Add(n)
		dst.written.Add(n)
		switch {
		case err != nil && Timeout(err) && n > 0:
		case err != nil:
			return src, err
		case n < spliceChunk:
			return nil, nil
		}
	}
}
