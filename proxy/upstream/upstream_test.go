package upstream

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/proxy/identity"
)

// server accepts connections and hands them over.
func server(t *testing.T) (addr string, accepted <-chan net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan net.Conn, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ch <- c
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		close(ch)
		for c := range ch {
			c.Close()
		}
	})
	return ln.Addr().String(), ch
}

// ended waits until the other end of a connection was closed.
func ended(t *testing.T, c net.Conn) {
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection was not closed: %v", err)
	}
	c.Close()
}

func TestPool(t *testing.T) {
	addr, accepted := server(t)
	tr := NewTransport(identity.NewSource(nil))
	p := tr.App(addr)
	if tr.App(addr) != p {
		t.Error("two pools for one application")
	}
	now := time.Now()
	if p.Take(now) != nil {
		t.Fatal("an empty pool gave a connection")
	}
	dial := func() *Conn {
		c, err := p.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := dial(), dial()
	peerA, peerB := <-accepted, <-accepted
	if a.Reused {
		t.Error("a new connection says it was used")
	}
	a.Put(now)
	b.Put(now.Add(time.Second))
	if c := p.Take(now); c != b || !c.Reused {
		t.Error("the connection used last does not come first")
	}
	p.sweep(now.Add(IdleApp + time.Millisecond)) // a is over, b is out
	ended(t, peerA)
	if p.Idle() != 0 {
		t.Errorf("%d idle connections", p.Idle())
	}
	b.Put(now)
	peerB.Close()
	for start := time.Now(); p.Idle() > 0; p.sweep(now) { // the sweep finds what the peer has closed
		if time.Since(start) > 20*time.Second {
			t.Fatal("a closed connection stays in the pool")
		}
	}

	c := dial()
	peerC := <-accepted
	c.Put(now)
	d := dial()
	peerD := <-accepted
	p.Retire()
	ended(t, peerC)
	if p.Take(now) != nil {
		t.Error("a retired pool gave a connection")
	}
	d.Put(now) // an exchange that was under way
	ended(t, peerD)
}

func TestPoolIsBounded(t *testing.T) {
	addr, accepted := server(t)
	p := NewTransport(identity.NewSource(nil)).App(addr)
	now := time.Now()
	var first net.Conn
	for i := range MaxIdle + 1 {
		c, err := p.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		peer := <-accepted
		if i == 0 {
			first = peer
		} else {
			defer peer.Close()
		}
		c.Put(now)
	}
	if p.Idle() != MaxIdle {
		t.Errorf("%d idle connections", p.Idle())
	}
	ended(t, first)
	p.Retire()
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := NewTransport(identity.NewSource(nil)).App(ln.Addr().String()).Dial(t.Context()); err == nil {
		t.Error("connected to nothing")
	}
}
