package proxy

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/heddle-mesh/heddle/proxy/http1"
	"github.com/heddle-mesh/heddle/proxy/l4"
	"github.com/heddle-mesh/heddle/proxy/observe"
	"github.com/heddle-mesh/heddle/proxy/upstream"
	"github.com/heddle-mesh/heddle/schema/decide"
)

// session reads requests from a client connection, one after the other, and carries each to an upstream connection and
// back. The goroutine that reads a request also writes it on, reads the response and writes that: there is no hand-over.
// Only a request whose body is not here yet when its head is sent on gets a second goroutine, so that a response may
// start, or refuse, before the body has ended.
type session struct {
	*client
	buf  *l4.Buffer // nil where there are no bytes
	r, w int        // the unread bytes of buf
	scan int        // how many of those were searched for the end of a head
	slow bool       // the deadline of the head is in force
}

// exchange is a request and its response: all the scratch space that they need, borrowed while they last.
type exchange struct {
	req   http1.Request
	res   http1.Response
	body  http1.Body // of the request
	rbody http1.Body // of the response
	ask   decide.Request

	// What must be known of the request after its head has left the buffer.
	toHEAD, idempotent, keepAlive bool
	minor                         int

	out  []byte // the request as it goes on: its head, and the body as far as it was here
	back []byte // the response as it goes back, likewise
	up   *upstream.Conn
	ub   *l4.Buffer // bytes of the response, as buf of the session
	ur   int
	uw   int

	start    time.Time // the head was complete
	sent     time.Time // it was sent on
	deadline time.Time // of the whole exchange; zero: none

	status  int  // what the client got; 0: nothing
	whole   bool // the response came whole
	started bool // bytes of the final response went to the client
	pump    *pump
}

var exchanges = sync.Pool{New: func() any {
	x := &exchange{}
	x.ask.HTTP = true
	x.ask.Header = x.header // bound once, so that asking does not allocate
	return x
}}

func borrowExchange() *exchange { return exchanges.Get().(*exchange) }

// release gives the scratch space back. Nothing of it may be used afterwards.
func (x *exchange) release() {
	l4.Return(x.ub)
	x.ub, x.up, x.pump = nil, nil, nil
	x.ask.Method, x.ask.Path, x.ask.Peer, x.ask.Addr = "", "", "", netip.Addr{}
	if cap(x.out) > 2*l4.BufferSize {
		x.out = nil
	}
	if cap(x.back) > 2*l4.BufferSize {
		x.back = nil
	}
	exchanges.Put(x)
}

// begin takes in a parsed request.
func (x *exchange) begin(peer string, now time.Time) {
	x.toHEAD = string(x.req.Method) == "HEAD"
	x.idempotent, x.keepAlive, x.minor = x.req.Idempotent(), x.req.KeepAlive(), x.req.Minor
	x.start, x.deadline = now, time.Time{}
	x.status, x.whole, x.started = 0, false, false
	x.up, x.pump, x.ur, x.uw = nil, nil, 0, 0
	x.ask.Peer, x.ask.Method, x.ask.Path, x.ask.Now = peer, view(x.req.Method), view(x.req.Path), now
	x.body.Start(x.req.Framing())
}

// blank is begin for what is no request.
func (x *exchange) blank() {
	x.toHEAD, x.keepAlive, x.up, x.pump = false, false, nil, nil
	x.deadline, x.body = time.Time{}, http1.Body{}
}

// late reports whether the exchange's deadline has passed.
func (x *exchange) late() bool { return !x.deadline.IsZero() && !time.Now().Before(x.deadline) }

func (x *exchange) header(name string) (string, bool) {
	v, ok := x.req.Get(name)
	return view(v), ok
}

// view is b as a string, as long as b is not written: for decisions, which keep nothing.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Ends of a session.
var (
	errEnd      = errors.New("the connection ended between requests")
	errSlowHead = errors.New("the request head took too long")
	errSlowBody = errors.New("the request body stopped for too long")
)

// next waits for a whole request head, without holding a buffer while there is nothing. It returns errEnd where the
// connection ended in order or was retired, errSlowHead, an *http1.Error, or what reading failed with.
func (s *session) next() ([]byte, error) {
	skipped := false
	for {
		if s.w > s.r {
			b := s.buf.B[s.r:s.w]
			if !skipped && len(b) >= 2 && b[0] == '\r' && b[1] == '\n' { // one empty line is forgiven (RFC 9112, 2.2)
				skipped, s.scan = true, 0
				s.r += 2
				continue
			}
			end, next, err := http1.HeadEnd(b, s.scan)
			if err != nil {
				return nil, err
			}
			if s.scan = next; end > 0 {
				s.r += end
				s.slow = false
				return b[:end], nil
			}
			if !s.slow {
				s.slow = true
				s.ReadBy(time.Now().Add(s.stack.Limits.Head))
			}
			s.buf, s.r, s.w = room(s.buf, s.r, s.w)
			n, err := s.Read(s.buf.B[s.w:])
			if s.w += n; n > 0 || err == nil {
				continue
			}
			if l4.Timeout(err) {
				return nil, errSlowHead
			}
			return nil, err
		}
		s.drop()
		s.ArmRead(time.Now(), s.stack.Limits.Idle)
		s.state.Store(idle)
		if s.ending() {
			s.state.Store(busy)
			return nil, errEnd
		}
		b, n, err := s.Await()
		if s.awake() { // a request that came just then is still served
			s.ReadBy(time.Now().Add(s.stack.Limits.Idle))
		}
		switch {
		case err == io.EOF, l4.Timeout(err):
			return nil, errEnd
		case err != nil:
			return nil, err
		}
		s.buf, s.r, s.w, s.scan = b, 0, n, 0
	}
}

// ending reports whether the request at hand is the last.
func (s *session) ending() bool { return s.closing.Load() || s.stack.draining.Load() }

// drop gives the buffer back.
func (s *session) drop() {
	l4.Return(s.buf)
	s.buf, s.r, s.w, s.scan, s.slow = nil, 0, 0, 0, false
}

// room makes room behind the bytes b[r:w]: to the front of the buffer, or into one that holds the largest head.
func room(b *l4.Buffer, r, w int) (*l4.Buffer, int, int) {
	switch {
	case w < len(b.B):
	case r > 0:
		w = copy(b.B, b.B[r:w])
		r = 0
	default:
		big := &l4.Buffer{B: make([]byte, http1.MaxHead)}
		copy(big.B, b.B)
		l4.Return(b)
		b = big
	}
	return b, r, w
}

// handler is a stack's part of a connection that carries requests.
type handler interface {
	request(ctx context.Context, x *exchange, head []byte) (keep bool)
	series() *observe.TCP
}

// requests serves requests until the connection ends.
func (s *session) requests(ctx context.Context, h handler) {
	opened := time.Now()
	var tcp *observe.TCP
	var read, written int64
	for keep := true; keep; {
		head, err := s.next()
		if err != nil {
			s.unreadable(err)
			break
		}
		x := borrowExchange()
		keep = h.request(ctx, x, head)
		x.release()
		if tcp == nil {
			if tcp = h.series(); tcp != nil {
				tcp.Open()
			}
		}
		if tcp != nil {
			read, written = count(tcp, s.Conn, read, written)
		}
	}
	if tcp != nil {
		tcp.Close("", time.Since(opened), false)
	}
}

// count adds what a connection read and wrote since the last time.
func count(t *observe.TCP, c *l4.Conn, read, written int64) (int64, int64) {
	r, w := c.Bytes()
	t.Read(int(r - read))
	t.Write(int(w - written))
	return r, w
}

// connector is what a stack knows of the way to the upstream.
type connector interface {
	// connect gets a connection for the exchange. again: the one before died unused and another one is wanted, newly made.
	connect(ctx context.Context, x *exchange, again bool) (*upstream.Conn, *failure)
	// answered tells that the response started, lost that the connection of connect ended without.
	answered(x *exchange, now time.Time)
	lost(x *exchange)
	// judge returns what decides whether the exchange, now a tunnel, may go on.
	judge(x *exchange) func() bool
}

// failure is an answer that the proxy makes itself.
type failure struct {
	status int
	reason string // the value of heddle-error
	text   string // one line, lower case, saying what to do
}

// way says how a stack forwards.
type way struct {
	extra   []byte // field lines to add to the request
	upgrade bool   // upgrades may become tunnels
	fromApp bool   // the response comes from the application, not from a sidecar
}

// forward carries a request whose head was parsed to the upstream, and the response back. It reports whether the client
// connection can take another request; if not, it has ended it.
func (s *session) forward(ctx context.Context, x *exchange, via connector, w way) (keep bool) {
	keep = s.pass(ctx, x, via, w)
	s.holds(nil)
	return keep
}

// pass is forward, but that the upstream connection is still noted.
func (s *session) pass(ctx context.Context, x *exchange, via connector, w way) (keep bool) {
	var upgradeTo []byte
	if w.upgrade {
		upgradeTo = x.req.UpgradeTo()
	}
	n, err := x.body.Feed(s.buf.B[s.r:s.w])
	if err != nil {
		return s.malformed(x, err)
	}
	here := x.body.Done()
	if !here {
		upgradeTo = nil // bytes after the head must not have two meanings
	}
	x.out = x.req.Append(x.out[:0], w.extra, upgradeTo)
	x.out = append(x.out, s.buf.B[s.r:s.r+n]...)
	s.r += n
	upgrading := upgradeTo != nil
	if !here {
		s.drop() // all of it was body; the head lives on in out only
	}

	for again := false; ; again = true {
		conn, f := via.connect(ctx, x, again)
		if f != nil {
			return s.fail(x, f)
		}
		x.up = conn
		s.holds(conn)
		x.sent = time.Now()
		if x.deadline.IsZero() {
			conn.NoReadBy()
			conn.ArmWrite(x.sent, s.stack.Limits.Body)
		} else {
			conn.ReadBy(x.deadline)
			conn.WriteBy(x.deadline)
		}
		switch {
		case here:
			x.ub, x.uw, err = conn.Ask(x.out, conn.Reused)
		case conn.Reused && conn.Dead():
			err = l4.ErrStale
		default:
			if _, err = conn.Write(x.out); err == nil {
				x.pump = &pump{done: make(chan struct{})}
				go s.pumpRequestBody(x.pump, &x.body, conn)
			}
		}
		if err == nil {
			if err = s.readHead(x); err == nil {
				break
			}
		}
		if x.uw > 0 || x.pump != nil || again || s.left.Load() || !stale(x, err) {
			via.lost(x)
			return s.broken(x, err)
		}
		conn.Abort()
		via.lost(x)
		x.up = nil
	}
	via.answered(x, time.Now())
	for n := 0; x.res.Interim(); n++ {
		if n == s.stack.Limits.Interim {
			return s.broken(x, errInterim)
		}
		if x.minor == 1 { // HTTP/1.0 has none (RFC 9110, 15.2)
			x.back = x.res.Append(x.back[:0], nil, false, w.fromApp)
			if !s.toClient(x, x.back) {
				return s.gone(x)
			}
		}
		if err := s.readHead(x); err != nil {
			return s.broken(x, err)
		}
	}
	if x.res.Status == 101 {
		if !upgrading {
			return s.broken(x, errUpgrade)
		}
		s.upgrade(x, via, w)
		return false
	}
	return s.respond(x, w)
}

var (
	errInterim = &http1.Error{Reason: "too many interim responses"}
	errUpgrade = &http1.Error{Reason: "101 without a request for it"}
	errOld     = &http1.Error{Reason: "a chunked response to an HTTP/1.0 request"}
)

// stale reports whether a request may be sent again, once, after its connection ended without a byte of response and
// all of the request is still here. That is safe in three cases. Nothing was written. Or: under mutual TLS an end in
// order (close_notify) without a response is a promise: an inbound stack ends a connection so only if it has passed on
// nothing of a request it has not answered; when it dies, or fails in the middle, there is no close_notify. Or: the
// request is idempotent, and the connection had been idle and is now found closed (RFC 9110, 9.2.2; RFC 9112, 9.3.1).
func stale(x *exchange, err error) bool {
	return err == l4.ErrStale || x.up.Secure() && err == io.EOF || x.up.Reused && x.idempotent && !l4.Timeout(err)
}

// readHead reads and parses one response head. x.uw is 0 as long as there was no byte of a response.
func (s *session) readHead(x *exchange) error {
	scan := 0
	for {
		if x.uw == x.ur {
			l4.Return(x.ub)
			b, n, err := x.up.Await()
			if x.ub = b; err != nil {
				return err
			}
			x.ur, x.uw, scan = 0, n, 0
		}
		b := x.ub.B[x.ur:x.uw]
		end, next, err := http1.HeadEnd(b, scan)
		if err != nil {
			return err
		}
		if end > 0 {
			x.ur += end
			return x.res.Parse(b[:end])
		}
		scan = next
		x.ub, x.ur, x.uw = room(x.ub, x.ur, x.uw)
		n, err := x.up.Read(x.ub.B[x.uw:])
		if x.uw += n; n == 0 && err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// respond passes the final response on.
func (s *session) respond(x *exchange, w way) (keep bool) {
	f := x.res.Framing(x.toHEAD)
	if f.Kind == http1.Chunked && x.minor == 0 {
		return s.broken(x, errOld)
	}
	x.rbody.Start(f)
	n, err := x.rbody.Feed(x.ub.B[x.ur:x.uw])
	if err != nil {
		return s.broken(x, err)
	}
	sending := x.pump != nil && !x.pump.finish() // the response is early: who sends on cannot be given another request
	reuse := x.res.KeepAlive() && x.minor == 1 && f.Kind != http1.UntilEOF && !sending
	keep = x.keepAlive && f.Kind != http1.UntilEOF && !sending && !s.ending()
	x.status = x.res.Status
	x.back = x.res.Append(x.back[:0], nil, !keep, w.fromApp)
	x.back = append(x.back, x.ub.B[x.ur:x.ur+n]...)
	x.ur += n
	x.started = true
	if !s.toClient(x, x.back) {
		return s.gone(x)
	}
	for !x.rbody.Done() {
		l4.Return(x.ub)
		var n int
		x.ub, n, err = x.up.Await()
		if err == io.EOF && x.rbody.UntilEOF() {
			break
		}
		if err != nil {
			return s.broken(x, err)
		}
		k, err := x.rbody.Feed(x.ub.B[:n])
		if !s.toClient(x, x.ub.B[:k]) {
			return s.gone(x)
		}
		if err != nil {
			return s.broken(x, err)
		}
		x.ur, x.uw = k, n
	}
	x.whole = true
	now := time.Now()
	if sending {
		s.stopPump(x)
		s.Linger()
		return false
	}
	if x.pump != nil && !s.adopt(x) {
		x.up.Abort()
		s.Linger()
		return false
	}
	s.holds(nil)
	if reuse && x.ur == x.uw { // bytes that nobody asked for must not become another client's response
		x.up.Put(now)
	} else {
		x.up.Close()
	}
	x.up = nil
	if !keep {
		s.end()
	}
	return keep
}

// toClient writes to the client.
func (s *session) toClient(x *exchange, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if x.deadline.IsZero() {
		s.ArmWrite(time.Now(), s.stack.Limits.Write)
	} else {
		s.WriteBy(x.deadline)
	}
	_, err := s.Write(b)
	return err == nil
}

// end closes the connection in order. Where the client may have sent more, it is read away first.
func (s *session) end() {
	if s.w > s.r {
		s.Linger()
	} else {
		s.Close()
	}
	s.drop()
}

// gone ends an exchange whose client does not take the response.
func (s *session) gone(x *exchange) bool {
	s.stopPump(x)
	if x.up != nil {
		x.up.Abort()
	}
	s.Abort()
	s.drop()
	return false
}

// broken ends an exchange that failed upstream, or by its deadline: with an answer of our own where none has started,
// else so that the client does not take what it got for all.
//
//go:noinline
func (s *session) broken(x *exchange, err error) (keep bool) {
	late := l4.Timeout(err) && x.late()
	var cause error
	if s.stopPump(x); x.pump != nil {
		cause = x.pump.client
	}
	if x.up != nil {
		x.up.Abort()
		x.up = nil
	}
	x.whole = false
	if x.started || s.left.Load() {
		s.Abort()
		s.drop()
		return false
	}
	switch bad, malformed := errors.AsType[*http1.Error](err); {
	case cause != nil:
		return s.malformed(x, cause)
	case late:
		return s.fail(x, &failure{504, "timeout", "the request took longer than its route's timeout"})
	case malformed:
		return s.fail(x, &failure{502, "malformed-response", "the upstream's response is not valid HTTP/1.1: " + bad.Reason})
	}
	return s.fail(x, &failure{502, "upstream-reset", "the upstream closed the connection without a whole response head"})
}

// unreadable ends a connection on which no request head could be read.
//
//go:noinline
func (s *session) unreadable(err error) {
	x := borrowExchange()
	defer x.release()
	x.blank()
	switch _, bad := errors.AsType[*http1.Error](err); {
	case err == errEnd:
		s.end()
	case err == errSlowHead:
		s.fail(x, &failure{408, "slow-request", "the request's head took too long"})
	case bad:
		s.malformed(x, err)
	default:
		s.Abort()
		s.drop()
	}
}

// malformed ends a connection whose client sent what is no valid message, or stopped within one.
func (s *session) malformed(x *exchange, err error) bool {
	x.keepAlive = false
	if err == errSlowBody {
		return s.fail(x, &failure{408, "slow-request", "the request's body stopped for too long"})
	}
	bad, ok := errors.AsType[*http1.Error](err)
	if !ok {
		s.Abort()
		s.drop()
		return false
	}
	return s.fail(x, &failure{bad.Status, "malformed-request", bad.Reason})
}

// fail answers for the upstream.
func (s *session) fail(x *exchange, f *failure) bool { return s.answer(x, f, nil) }

// answer sends a response of the proxy's own. The connection is kept where the whole request was read.
//
//go:noinline
func (s *session) answer(x *exchange, f *failure, extra []byte) (keep bool) {
	if x.keepAlive && !x.body.Done() && s.buf != nil {
		if n, err := x.body.Feed(s.buf.B[s.r:s.w]); err == nil {
			s.r += n
		}
	}
	whole := x.body.Done() && x.pump == nil
	keep = x.keepAlive && whole && !s.ending()
	x.status, x.whole, x.started = f.status, true, true
	b := append(x.back[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(f.status), 10)
	b = append(b, ' ')
	b = append(b, statusText(f.status)...)
	b = append(b, "\r\nheddle-error: "...)
	b = append(b, f.reason...)
	b = append(b, "\r\n"...)
	b = append(b, extra...)
	b = append(b, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len("heddle: ")+len(f.text)+1), 10)
	if !keep {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	if !x.toHEAD {
		b = append(b, "heddle: "...)
		b = append(b, f.text...)
		b = append(b, '\n')
	}
	x.back = b
	x.deadline = time.Time{}
	if !s.toClient(x, b) {
		return s.gone(x)
	}
	if keep {
		return true
	}
	if whole {
		s.end()
	} else {
		s.Linger()
		s.drop()
	}
	return false
}

func statusText(status int) string {
	switch status {
	case 400:
		return "Bad Request"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 408:
		return "Request Timeout"
	case 431:
		return "Request Header Fields Too Large"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Gateway Timeout"
	case 508:
		return "Loop Detected"
	}
	return "Error"
}

// upgrade turns the exchange into a tunnel after a 101, until both ends have closed.
//
//go:noinline
func (s *session) upgrade(x *exchange, via connector, w way) {
	x.status, x.whole, x.started = 101, true, true
	x.back = x.res.Append(x.back[:0], nil, false, w.fromApp)
	x.back = append(x.back, x.ub.B[x.ur:x.uw]...)
	if !s.toClient(x, x.back) {
		s.gone(x)
		return
	}
	if s.w > s.r {
		if _, err := x.up.Write(s.buf.B[s.r:s.w]); err != nil {
			s.gone(x)
			return
		}
	}
	judge := via.judge(x) // copies what it needs of the head
	s.drop()
	l4.Return(x.ub)
	x.ub = nil
	s.tunnel(x.up.Conn, judge)
}

// tunnel copies bytes until both ends have closed, or judge says that they may no longer flow.
func (c *client) tunnel(up *l4.Conn, judge func() bool) (failed *l4.Conn, err error) {
	c.tunnelled(judge)
	if !c.allowed() { // the policy may have changed before the tunnel was known
		c.Abort()
		up.Abort()
		return nil, nil
	}
	return l4.Tunnel(c.Conn, up, c.stack.Limits.Tunnel)
}

// pump is the second goroutine of an exchange: it carries the rest of the request's body.
type pump struct {
	last    atomic.Bool   // the last piece is being written: the pump is about to end by itself
	stopped atomic.Bool   // by stopPump
	done    chan struct{} // closed when it has ended; what follows may be read then

	ok     bool  // the whole body was sent on
	client error // what is wrong with the client's side, if that ended it

	// Bytes that the client sent after the body.
	buf  *l4.Buffer
	r, w int
}

// pumpRequestBody is a goroutine of its own; forward's caller waits for it.
func (s *session) pumpRequestBody(p *pump, body *http1.Body, up *upstream.Conn) {
	defer close(p.done)
	for {
		now := time.Now()
		s.ArmRead(now, s.stack.Limits.Body)
		if p.stopped.Load() { // stopPump's Wake may have come before the deadline that was set just now
			return
		}
		b, n, err := s.Await()
		if err != nil {
			switch {
			case p.stopped.Load():
			case err == io.EOF:
				p.client = io.ErrUnexpectedEOF
			case l4.Timeout(err):
				p.client = errSlowBody
			default:
				p.client = err
			}
			up.Abort() // the upstream must not take what it got for all
			return
		}
		k, err := body.Feed(b.B[:n])
		if err != nil {
			l4.Return(b)
			p.client = err
			up.Abort()
			return
		}
		end := body.Done()
		p.last.Store(end)
		up.ArmWrite(now, s.stack.Limits.Body)
		if _, err := up.Write(b.B[:k]); err != nil {
			l4.Return(b)
			return // the upstream may have answered all the same; who reads there will see
		}
		if end {
			if p.ok = true; k < n {
				p.buf, p.r, p.w = b, k, n
			} else {
				l4.Return(b)
			}
			return
		}
		l4.Return(b)
	}
}

// finish waits for a pump that is about to end and reports whether it has sent all.
func (p *pump) finish() bool {
	if p.last.Load() {
		<-p.done
	}
	select {
	case <-p.done:
		return p.ok
	default:
		return false
	}
}

// stopPump ends the pump of an exchange that is over, and waits for it. Nothing is read from the client afterwards but
// to linger.
func (s *session) stopPump(x *exchange) {
	if x.pump == nil {
		return
	}
	x.pump.stopped.Store(true)
	s.Wake()
	if x.up != nil {
		x.up.Abort()
	}
	<-x.pump.done
	l4.Return(x.pump.buf)
	x.pump.buf = nil
	s.closing.Store(true)
}

// adopt waits for a pump that ends by itself, and takes over what it read beyond the body.
func (s *session) adopt(x *exchange) bool {
	p := x.pump
	<-p.done
	if !p.ok {
		return false
	}
	s.buf, s.r, s.w, s.scan = p.buf, p.r, p.w, 0
	p.buf = nil
	return true
}
