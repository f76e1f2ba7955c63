package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The application is told when its client has vanished, through both sidecars, though nothing was to be read or written;
// a client that only ended its own direction is still answered.
func TestClientVanishes(t *testing.T) {
	for _, vanishes := range []bool{true, false} {
		asked, ended, answer := make(chan struct{}, 1), make(chan error, 1), make(chan struct{})
		w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if q.URL.Path == "/quick" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			}
			asked <- struct{}{}
			go func() {
				_, err := r.ReadByte()
				ended <- err
			}()
			select {
			case <-answer:
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
			case <-t.Context().Done():
			}
		}), Limits{}, nil)
		conn := dial(t, w.to("http"))
		send(t, conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
		<-asked
		if vanishes {
			conn.SetLinger(0)
			conn.Close()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the application got more bytes")
				}
			case <-time.After(patience):
				t.Error("the application still works for nobody")
			}
			for end := time.Now().Add(patience); w.out.Open()+w.in.Open() > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("a sidecar still holds the connection")
				}
			}
			var text strings.Builder
			w.outEnv.Metrics.WriteText(&text)
			if s := text.String(); !strings.Contains(s, `status_code="0",classification="failure"} 1`) || strings.Contains(s, `status_code="5`) {
				t.Errorf("a client's fault counts as one of the upstream's:\n%s", s)
			}
			close(answer)
			continue
		}
		conn.CloseWrite()
		for range 3 { // as often as seconds pass
			w.out.each(func(c *client) { c.watch(time.Now()) })
			w.in.each(func(c *client) { c.watch(time.Now()) })
		}
		close(answer)
		if b, err := io.ReadAll(conn); !strings.HasSuffix(string(b), "late") || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

// What a client holds of an upstream ends with the exchange: what happens to either later is nothing to the other.
func TestClientHolds(t *testing.T) {
	w := newWorld(t, application(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}), Limits{}, nil)
	conn := dial(t, w.to("http"))
	r := bufio.NewReader(conn)
	for range 3 {
		send(t, conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if o, _ := exchangeOf(r, "GET"); o.status != 200 || o.body != "ok" {
			t.Fatalf("got %+v", o)
		}
		later := time.Now().Add(100 * time.Hour) // every SVID has expired
		w.out.each(func(c *client) { c.watch(later) })
	}

	tunnel := dial(t, w.to("raw"))
	send(t, tunnel, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if o, _ := exchangeOf(bufio.NewReader(tunnel), "GET"); o.body != "ok" {
		t.Fatalf("got %+v", o)
	}
	w.out.each(func(c *client) { c.watch(time.Now().Add(100 * time.Hour)) })
	if _, err := tunnel.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a tunnel to a server whose SVID has expired ended with %v, want a reset", err)
	}
}
