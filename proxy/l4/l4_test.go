package l4

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

const patience = 20 * time.Second

// pair is two ends of a connection over loopback, under TLS where config is not nil.
func pair(t *testing.T, config *tls.Config) (client, server *Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, server = New(c.(*net.TCPConn)), New(s.(*net.TCPConn))
	t.Cleanup(func() { client.Abort(); server.Abort() })
	if config != nil {
		done := make(chan error, 1)
		go func() { done <- server.Server(t.Context(), config) }()
		if err := client.Client(t.Context(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []*Conn{client, server} {
		x.ReadBy(time.Now().Add(patience))
		x.WriteBy(time.Now().Add(patience))
	}
	return client, server
}

func selfSigned(t *testing.T) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

// each runs a test in both modes.
func each(t *testing.T, f func(t *testing.T, client, server *Conn)) {
	t.Run("plain", func(t *testing.T) { c, s := pair(t, nil); f(t, c, s) })
	t.Run("tls", func(t *testing.T) { c, s := pair(t, selfSigned(t)); f(t, c, s) })
}

func receive(c *Conn) (string, error) {
	b, n, err := c.Await()
	if err != nil {
		return "", err
	}
	defer Return(b)
	return string(b.B[:n]), nil
}

func TestEnds(t *testing.T) {
	each(t, func(t *testing.T, client, server *Conn) {
		client.Write([]byte("last words"))
		client.Close()
		if s, err := receive(server); s != "last words" || err != nil {
			t.Errorf("got %q, %v", s, err)
		}
		if _, err := receive(server); err != io.EOF || Truncated(err) || Errno(err) != "" {
			t.Errorf("an end in order is %v", err)
		}
	})
	each(t, func(t *testing.T, client, server *Conn) {
		client.Write([]byte("x"))
		if _, err := receive(server); err != nil {
			t.Fatal(err)
		}
		client.Abort()
		if _, err := receive(server); !Truncated(err) || Errno(err) != "ECONNRESET" {
			t.Errorf("an abort is %v", err)
		}
	})
	t.Run("FIN without close_notify", func(t *testing.T) {
		client, server := pair(t, selfSigned(t))
		client.Write([]byte("x"))
		if _, err := receive(server); err != nil {
			t.Fatal(err)
		}
		client.sock.TCPConn.CloseWrite() // what a killed process leaves behind, between two records
		if _, err := receive(server); err != errTruncated || Errno(err) != "TRUNCATED" {
			t.Errorf("the end is %v", err)
		}
	})
}

func TestAsk(t *testing.T) {
	each(t, func(t *testing.T, client, server *Conn) {
		go func() {
			for {
				s, err := receive(server)
				if err != nil {
					return
				}
				server.Write([]byte("re: " + s))
			}
		}()
		for range 3 {
			b, n, err := client.Ask([]byte("hello"), true)
			if err != nil || string(b.B[:n]) != "re: hello" {
				t.Fatalf("got %v", err)
			}
			Return(b)
		}
	})
	// What is there before anything was asked makes an idle connection stale, and a new one heard.
	for name, spoil := range map[string]func(*Conn){"bytes": func(c *Conn) { c.Write([]byte("unasked")) }, "an end": func(c *Conn) { c.Close() }} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, client, server *Conn) {
				spoil(server)
				for start := time.Now(); !client.Dead(); time.Sleep(time.Millisecond) {
					if time.Since(start) > patience {
						t.Fatal("the connection does not look dead")
					}
				}
				if _, _, err := client.Ask([]byte("x"), true); err != ErrStale {
					t.Errorf("an idle connection: %v", err)
				}
				b, n, err := client.Ask([]byte("x"), false)
				if name == "bytes" && (err != nil || string(b.B[:n]) != "unasked") || name == "an end" && err != io.EOF {
					t.Errorf("a new connection: %v", err)
				}
				Return(b)
			})
		})
	}
}

// Bytes that come one by one, through TLS records that come in pieces, are neither lost nor read twice.
func TestAwaitPieces(t *testing.T) {
	each(t, func(t *testing.T, client, server *Conn) {
		want := strings.Repeat("0123456789abcdef", 5000)
		go func() {
			for i := 0; i < len(want); i += 777 {
				client.Write([]byte(want[i:min(i+777, len(want))]))
			}
			client.CloseWrite()
		}()
		var got strings.Builder
		for {
			s, err := receive(server)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got.WriteString(s)
		}
		if got.String() != want {
			t.Errorf("%d bytes became %d", len(want), got.Len())
		}
	})
}

func TestWake(t *testing.T) {
	each(t, func(t *testing.T, client, server *Conn) {
		done := make(chan error)
		go func() {
			_, err := receive(server)
			done <- err
		}()
		server.Wake()
		if err := <-done; !Timeout(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnread(t *testing.T) {
	client, server := pair(t, nil)
	client.Write([]byte("hello"))
	s, err := receive(server)
	if err != nil {
		t.Fatal(err)
	}
	server.Unread([]byte(s))
	if s, err := receive(server); s != "hello" || err != nil {
		t.Errorf("got %q, %v", s, err)
	}
}

// A tunnel passes each direction's end on while the other goes on, and an error on to both, in every mix of TLS and not.
func TestTunnel(t *testing.T) {
	for name, configs := range map[string][2]*tls.Config{
		"plain to plain": {nil, nil}, "plain to tls": {nil, selfSigned(t)}, "tls to plain": {selfSigned(t), nil}, "tls to tls": {selfSigned(t), selfSigned(t)},
	} {
		open := func(t *testing.T) (a, b *Conn, done chan error) {
			a, in := pair(t, configs[0])
			out, b := pair(t, configs[1])
			done = make(chan error, 1)
			go func() {
				_, err := Tunnel(in, out, patience)
				done <- err
			}()
			return a, b, done
		}
		t.Run(name, func(t *testing.T) {
			a, b, done := open(t)
			a.Write([]byte("question"))
			a.CloseWrite()
			if q, err := io.ReadAll(b); string(q) != "question" || err != nil {
				t.Fatalf("got %q, %v", q, err)
			}
			b.Write([]byte("answer"))
			b.CloseWrite()
			if r, err := io.ReadAll(a); string(r) != "answer" || err != nil {
				t.Fatalf("got %q, %v", r, err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Run(name+", aborted", func(t *testing.T) {
			a, b, done := open(t)
			a.Write([]byte("x"))
			if s, err := receive(b); s != "x" {
				t.Fatal(err)
			}
			b.Abort()
			if _, err := receive(a); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end saw %v", err)
			}
			if err := <-done; Errno(err) != "ECONNRESET" {
				t.Errorf("the tunnel ended with %v", err)
			}
		})
	}
}

// A tunnel whose one direction is silent lives as long as the other one moves, and ends when neither does.
func TestTunnelIdle(t *testing.T) {
	const idle = time.Second
	for name, config := range map[string]*tls.Config{"plain": nil, "tls": selfSigned(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, in := pair(t, config)
			out, b := pair(t, config)
			done := make(chan error, 1)
			go func() {
				_, err := Tunnel(in, out, idle)
				done <- err
			}()
			pace := time.NewTicker(idle / 20)
			defer pace.Stop()
			for began := time.Now(); time.Since(began) < 5*idle/2; <-pace.C {
				if _, err := a.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if s, err := receive(b); s != "x" {
					t.Fatalf("after %v: %q, %v", time.Since(began), s, err)
				}
			}
			b.Write([]byte("y"))
			if s, err := receive(a); s != "y" {
				t.Fatalf("got %q, %v", s, err)
			}
			if err := <-done; Errno(err) != "ETIMEDOUT" {
				t.Errorf("the idle tunnel ended with %v", err)
			}
		})
	}
}
