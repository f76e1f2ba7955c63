package detect

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

func TestFirst(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Protocol
	}{
		{"nothing", "", NeedMore},
		{"one letter", "G", NeedMore},
		{"method", "GET", NeedMore},
		{"half a target", "GET /very/lo", NeedMore},
		{"half a version", "GET / HTT", NeedMore},
		{"get", "GET / HTTP/1.1\r\n", HTTP1},
		{"http/1.0", "GET / HTTP/1.0\r\n\r\n", HTTP1},
		{"absolute form", "GET http://api.shop.mesh/ HTTP/1.1\r\n", HTTP1},
		{"connect", "CONNECT a:1 HTTP/1.1\r\n", HTTP1},
		{"unusual method", "M-SEARCH * HTTP/1.1\r\n", HTTP1},
		{"http/0.9", "GET /\r\n", Opaque},
		{"bare method and newline", "GET\r\n", Opaque},
		{"two spaces", "GET  / HTTP/1.1\r\n", Opaque},
		{"http/2 prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2},
		{"half a preface", "PRI * HTTP/2", NeedMore},
		{"almost a preface", "PRI * HTTP/3.0\r\n", Opaque},
		{"PRI as a method", "PRI * HTTP/1.1\r\n", HTTP1},
		{"client hello", "\x16\x03\x01\x02\x00\x01\x00", TLS},
		{"half a record header", "\x16\x03\x01", NeedMore},
		{"server hello", "\x16\x03\x03\x00\x7a\x02", Opaque},
		{"record of version 2", "\x16\x02", Opaque},
		{"redis", "*1\r\n$4\r\nPING\r\n", Opaque},
		{"redis inline", "PING\r\n", Opaque},
		{"postgres", "\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque},
		{"smtp", "EHLO mail.example\r\n", Opaque},
		{"smtp two words", "MAIL FROM:<a@b> SIZE=1\r\n", Opaque},
		{"zero", "\x00", Opaque},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := First([]byte(c.in)); got != c.want {
				t.Errorf("First(%q) = %v, want %v", c.in, got, c.want)
			}
		})
	}
}

// An answer other than NeedMore is final: every longer input gives the same, and every shorter one the same or NeedMore.
func FuzzFirst(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00", "PRI * HTTP/1.1\r\n", "PING\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		decided := NeedMore
		for i := range len(b) + 1 {
			p := First(b[:i])
			if decided != NeedMore && p != decided {
				t.Fatalf("First(%q) = %v, but of %q it was %v", b[:i], p, b[:i-1], decided)
			}
			decided = p
		}
	})
}

func TestServerName(t *testing.T) {
	hello := clientHello(t, "api.shop.heddle.invalid")
	for n := range hello {
		if name, whole := ServerName(hello[:n]); whole || name != "" {
			t.Fatalf("%d of %d bytes give %q, %v", n, len(hello), name, whole)
		}
	}
	if name, whole := ServerName(append(hello, "more"...)); name != "api.shop.heddle.invalid" || !whole {
		t.Errorf("got %q, %v", name, whole)
	}
	if First(hello) != TLS {
		t.Error("a ClientHello is not TLS")
	}
	if name, whole := ServerName(clientHello(t, "")); name != "" || !whole {
		t.Errorf("a hello without a name has %q, %v", name, whole)
	}
}

// clientHello is the first record that crypto/tls sends.
func clientHello(t testing.TB, name string) []byte {
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	go tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	head := make([]byte, 5)
	if _, err := io.ReadFull(s, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(s, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// ServerName agrees with crypto/tls on every hello that crypto/tls takes.
func FuzzServerName(f *testing.F) {
	f.Add(clientHello(f, "api.shop.heddle.invalid"))
	f.Add(clientHello(f, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, whole := ServerName(b)
		if !whole || len(b) != 5+int(b[3])<<8+int(b[4]) {
			return
		}
		var std *string
		tls.Server(&sent{Reader: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			std = &h.ServerName
			return nil, io.EOF
		}}).Handshake()
		if std != nil && *std != name && *std != "" {
			t.Fatalf("%q: %q, for crypto/tls %q", b, name, *std)
		}
	})
}

// sent is a connection of which all has arrived, and whose peer has gone.
type sent struct {
	net.Conn
	*bytes.Reader
}

func (s *sent) Read(b []byte) (int, error)  { return s.Reader.Read(b) }
func (s *sent) Write(b []byte) (int, error) { return len(b), nil }
