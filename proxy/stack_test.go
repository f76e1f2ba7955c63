package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// head reads a request's head, and its body with it.
func readRequest(r *bufio.Reader) (*http.Request, string, error) {
	q, err := http.ReadRequest(r)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(q.Body)
	return q, string(b), err
}

// answer is an application that answers each request on its connections by what f returns; "" ends the connection.
func answer(f func(q *http.Request, body string) string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for {
			q, body, err := readRequest(r)
			if err != nil {
				return
			}
			a := f(q, body)
			if a == "" {
				return
			}
			io.WriteString(c, a)
		}
	}
}

// outcome is what a client can see of an exchange.
type outcome struct {
	status  int
	body    string
	trailer string
	whole   bool // the body ended in order
}

func exchangeOf(r *bufio.Reader, method string) (outcome, *http.Response) {
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return outcome{}, nil
	}
	b, err := io.ReadAll(res.Body)
	o := outcome{status: res.StatusCode, body: string(b), whole: err == nil}
	for k, v := range res.Trailer {
		o.trailer += k + "=" + strings.Join(v, ",")
	}
	return o, res
}

// TestTransparent runs each exchange without a proxy and through both sidecars, on a port of each protocol: the client
// must see the same.
func TestTransparent(t *testing.T) {
	const get = "GET /x HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n"
	for _, c := range []struct {
		name    string
		request string
		app     func(net.Conn, *bufio.Reader)
		want    []outcome
		methods []string // of the requests; GET where absent
	}{
		{"content-length", get, answer(func(*http.Request, string) string {
			return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		}), []outcome{{200, "hello", "", true}}, nil},
		{"large body", get, answer(func(*http.Request, string) string {
			return "HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + strings.Repeat("x", 3000000)
		}), []outcome{{200, strings.Repeat("x", 3000000), "", true}}, nil},
		{"HEAD", "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + get, answer(func(q *http.Request, _ string) string {
			if q.Method == "HEAD" {
				return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
			}
			return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}), []outcome{{200, "", "", true}, {200, "ok", "", true}}, []string{"HEAD", "GET"}},
		{"204, 304 and a body after them", get + get + get, func() func(net.Conn, *bufio.Reader) {
			return func(c net.Conn, r *bufio.Reader) {
				for _, a := range []string{"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n."} {
					if _, _, err := readRequest(r); err != nil {
						return
					}
					io.WriteString(c, a)
				}
			}
		}(), []outcome{{204, "", "", true}, {304, "", "", true}, {200, ".", "", true}}, nil},
		{"chunked with trailers", get, answer(func(*http.Request, string) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nGrpc-Status: 0\r\n\r\n"
		}), []outcome{{200, "hello world", "Grpc-Status=0", true}}, nil},
		{"until EOF", get, answerOnce("HTTP/1.1 200 OK\r\n\r\nuntil the end"), []outcome{{200, "until the end", "", true}}, nil},
		{"truncated length", get, answerOnce("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"), []outcome{{200, "short", "", false}}, nil},
		{"truncated chunks", get, answerOnce("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), []outcome{{200, "hello", "", false}}, nil},
		{"interim responses", get, answer(func(*http.Request, string) string {
			return "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}), []outcome{{103, "", "", true}, {200, "ok", "", true}}, nil},
		{"HTTP/1.0 with Host", "GET /x HTTP/1.0\r\nHost: a\r\n\r\n", answerVersion(), []outcome{{200, "HTTP/1.0", "", true}}, nil},
		{"HTTP/1.0 without Host", "GET /x HTTP/1.0\r\n\r\n", answerVersion(), []outcome{{200, "HTTP/1.0", "", true}}, nil},
		{"pipelined", get + get + get, echoBody(), []outcome{{200, "", "", true}, {200, "", "", true}, {200, "", "", true}}, nil},
		{"small body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get, echoBody(), []outcome{{200, "hello", "", true}, {200, "", "", true}}, nil},
		{"chunked request", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n" + get, echoBody(),
			[]outcome{{200, "hello!", "", true}, {200, "", "", true}}, nil},
		{"large request", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("y", 1000000) + get, echoBody(),
			[]outcome{{200, strings.Repeat("y", 1000000), "", true}, {200, "", "", true}}, nil},
		{"large head", "GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + strings.Repeat("z", 40000) + "\r\n\r\n" + get, echoBody(),
			[]outcome{{200, "", "", true}, {200, "", "", true}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			app := application(t, c.app)
			w := newWorld(t, app, Limits{}, nil)
			for _, mode := range []struct{ name, addr string }{{"direct", app}, {"http1", w.to("http")}, {"detect", w.to("auto")}, {"tcp", w.to("raw")}} {
				conn := dial(t, mode.addr)
				sent := make(chan struct{})
				go func() { // the client of a large request reads while it writes
					defer close(sent)
					io.WriteString(conn, c.request)
				}()
				r := bufio.NewReader(conn)
				for i, want := range c.want {
					method := "GET"
					if i < len(c.methods) {
						method = c.methods[i]
					}
					got, _ := exchangeOf(r, method)
					if got != want {
						t.Errorf("%s: response %d: %s, want %s", mode.name, i, short(got), short(want))
						break
					}
				}
				conn.Close()
				<-sent
			}
		})
	}
}

func short(o outcome) string {
	if len(o.body) > 50 {
		o.body = fmt.Sprintf("%s… (%d)", o.body[:50], len(o.body))
	}
	return fmt.Sprintf("%+v", o)
}

// answerOnce answers the first request and closes.
func answerOnce(a string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		if _, _, err := readRequest(r); err == nil {
			io.WriteString(c, a)
		}
	}
}

// answerVersion answers with the version of the request, and closes as HTTP/1.0 does.
func answerVersion() func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		if q, _, err := readRequest(r); err == nil {
			io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n"+q.Proto)
		}
	}
}

func echoBody() func(net.Conn, *bufio.Reader) {
	return answer(func(_ *http.Request, body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
}

func TestConns(t *testing.T) {
	for files, want := range map[uint64]int{0: 20_000, 3: 1, 1024: 256, 1 << 20: 20_000, ^uint64(0): 20_000} {
		if got := conns(files); got != want {
			t.Errorf("of %d descriptors %d are for clients of one stack, want %d", files, got, want)
		}
	}
}
