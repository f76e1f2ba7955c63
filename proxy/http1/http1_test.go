package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
)

// parse runs a head through HeadEnd and Parse, as the stacks do.
func parse(s string) (*Request, error) {
	end, _, err := HeadEnd([]byte(s), 0)
	if err != nil {
		return nil, err
	}
	if end == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	r := &Request{}
	return r, r.Parse([]byte(s)[:end])
}

// The smuggling table: every head here could be read as two different requests by two readers, or is malformed.
func TestRequestRefused(t *testing.T) {
	const get, host = "GET / HTTP/1.1\r\n", "Host: a\r\n"
	for _, c := range []struct {
		name, head string
		want       *Error
	}{
		{"content-length and transfer-encoding", get + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", ErrBothLengths},
		{"transfer-encoding and content-length", get + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", ErrBothLengths},
		{"two different lengths", get + host + "Content-Length: 4\r\nContent-Length: 5\r\n\r\n", ErrLengths},
		{"two equal lengths", get + host + "Content-Length: 4\r\nContent-Length: 4\r\n\r\n", ErrLengths},
		{"list of lengths", get + host + "Content-Length: 4, 4\r\n\r\n", ErrContentLength},
		{"signed length", get + host + "Content-Length: +4\r\n\r\n", ErrContentLength},
		{"negative length", get + host + "Content-Length: -4\r\n\r\n", ErrContentLength},
		{"hexadecimal length", get + host + "Content-Length: 0x4\r\n\r\n", ErrContentLength},
		{"length with a space in it", get + host + "Content-Length: 1 2\r\n\r\n", ErrContentLength},
		{"empty length", get + host + "Content-Length:\r\n\r\n", ErrContentLength},
		{"length beyond 64 bits", get + host + "Content-Length: 99999999999999999999\r\n\r\n", ErrContentLength},
		{"identity coding", get + host + "Transfer-Encoding: identity\r\n\r\n", ErrCoding},
		{"two codings", get + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", ErrCoding},
		{"chunked twice", get + host + "Transfer-Encoding: chunked, chunked\r\n\r\n", ErrCoding},
		{"chunked in two fields", get + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", ErrCoding},
		{"quoted chunked", get + host + "Transfer-Encoding: \"chunked\"\r\n\r\n", ErrCoding},
		{"chunked with a parameter", get + host + "Transfer-Encoding: chunked;q=1\r\n\r\n", ErrCoding},
		{"xchunked", get + host + "Transfer-Encoding: xchunked\r\n\r\n", ErrCoding},
		{"empty coding", get + host + "Transfer-Encoding:\r\n\r\n", ErrCoding},
		{"vertical tab before chunked", get + host + "Transfer-Encoding: \vchunked\r\n\r\n", ErrFieldValue},
		{"coding in http/1.0", "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", ErrCoding10},
		{"space before the colon", get + host + "Content-Length : 4\r\n\r\n", ErrFieldName},
		{"tab before the colon", get + host + "Transfer-Encoding\t: chunked\r\n\r\n", ErrFieldName},
		{"empty name", get + host + ": x\r\n\r\n", ErrFieldName},
		{"no colon", get + host + "Foo\r\n\r\n", ErrFieldName},
		{"NUL in a name", get + host + "Fo\x00o: x\r\n\r\n", ErrFieldName},
		{"high byte in a name", get + host + "F\xc3\xb6\xc3\xb6: x\r\n\r\n", ErrFieldName},
		{"NUL in a value", get + host + "Foo: a\x00b\r\n\r\n", ErrFieldValue},
		{"DEL in a value", get + host + "Foo: a\x7fb\r\n\r\n", ErrFieldValue},
		{"bare CR in a value", get + host + "Foo: a\rContent-Length: 3\r\n\r\n", ErrBareCR},
		{"bare LF after a value", get + host + "Foo: a\nContent-Length: 3\r\n\r\n", ErrBareLF},
		{"bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", ErrBareLF},
		{"bare LFs at the end", get + "Host: a\n\n", ErrBareLF},
		{"folded field", get + host + "Foo: a\r\n b\r\n\r\n", ErrObsFold},
		{"folded by tab", get + host + "Foo: a\r\n\tb\r\n\r\n", ErrObsFold},
		{"folded first field", get + " Host: a\r\n\r\n", ErrObsFold},
		{"folded coding", get + host + "Transfer-Encoding:\r\n chunked\r\n\r\n", ErrCoding},
		{"no host", get + "\r\n", ErrNoHost},
		{"two hosts", get + host + "Host: b\r\n\r\n", ErrHosts},
		{"two equal hosts", get + host + "host: a\r\n\r\n", ErrHosts},
		{"two hosts with absolute form", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", ErrHosts},
		{"no host with absolute form", "GET http://a/ HTTP/1.1\r\n\r\n", ErrNoHost},
		{"host with a user", get + "Host: u@a\r\n\r\n", ErrHost},
		{"host with a path", get + "Host: a/b\r\n\r\n", ErrHost},
		{"host with a space", get + "Host: a b\r\n\r\n", ErrHost},
		{"host with a list", get + "Host: a:80:90\r\n\r\n", ErrHost},
		{"host with a bad port", get + "Host: a:http\r\n\r\n", ErrHost},
		{"host with port 65536", get + "Host: a:65536\r\n\r\n", ErrHost},
		{"no version", "GET /\r\nHost: a\r\n\r\n", ErrRequestLine},
		{"version 0.9", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", ErrVersion},
		{"version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", ErrVersion},
		{"version 2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", ErrVersion},
		{"version 1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", ErrVersion},
		{"small version", "GET / http/1.1\r\nHost: a\r\n\r\n", ErrVersion},
		{"space after the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", ErrVersion},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", ErrVersion},
		{"tab for a space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", ErrMethod},
		{"leading space", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", ErrMethod},
		{"method with a brace", "GE{T / HTTP/1.1\r\nHost: a\r\n\r\n", ErrMethod},
		{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"control character in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"high byte in the target", "GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"asterisk with GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"other scheme", "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"absolute form without a host", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"absolute form with a user", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"connect with a path", "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"connect without a port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", ErrTarget},
		{"connection names content-length", get + host + "Connection: content-length\r\n\r\n", ErrConnection},
		{"connection names host", get + host + "Connection: close, Host\r\n\r\n", ErrConnection},
		{"connection is no list of tokens", get + host + "Connection: a b\r\n\r\n", ErrConnection},
		{"too many fields", get + host + strings.Repeat("A: b\r\n", MaxFields) + "\r\n", ErrTooManyFields},
		{"too large", get + host + "A: " + strings.Repeat("b", MaxHead) + "\r\n\r\n", ErrHeadTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := parse(c.head); err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestRequestForwarded(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain",
			"GET /a?b=c HTTP/1.1\r\nHost: a:80\r\nAccept:  x \r\nX-Empty:\r\n\r\n",
			"GET /a?b=c HTTP/1.1\r\nHost: a:80\r\nAccept:  x \r\nX-Empty:\r\n\r\n"},
		{"absolute form wins over Host",
			"GET http://api.shop.mesh/x?y HTTP/1.1\r\nHost: other\r\n\r\n",
			"GET /x?y HTTP/1.1\r\nHost: api.shop.mesh\r\n\r\n"},
		{"absolute form without a path",
			"GET HTTP://a HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"absolute form with a query only",
			"GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /?q HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"hop-by-hop fields",
			"GET / HTTP/1.1\r\nConnection: keep-alive, X-Hop\r\nHost: a\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nA: b\r\nProxy-Connection: x\r\nProxy-Authorization: y\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"},
		{"identity in all spellings",
			"GET / HTTP/1.1\r\nHost: a\r\nHeddle-Client-Id: x\r\nheddle_client_id: x\r\nX_Forwarded-Client_Cert: x\r\nHEDDLE_any: y\r\nX-Forwarded-For: z\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: z\r\n\r\n"},
		{"framing fields misspelt with an underscore",
			"GET / HTTP/1.1\r\nHost: a\r\ncontent_length: 5\r\nTransfer_Encoding: chunked\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"te: trailers goes on, other codings do not",
			"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers, gzip\r\nConnection: TE\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n"},
		{"chunked",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\nTrailer: X\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"upgrade is taken out where it is not allowed",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"http/1.0 without host",
			"GET / HTTP/1.0\r\nA: b\r\n\r\n",
			"GET / HTTP/1.0\r\nA: b\r\n\r\n"},
		{"http/1.0 with host",
			"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
			"GET / HTTP/1.0\r\nHost: a\r\n\r\n"},
		{"options asterisk",
			"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
			"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"ipv6",
			"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parse(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(r.Append(nil, nil, nil)); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestUpgradeTo(t *testing.T) {
	for _, c := range []struct{ fields, want string }{
		{"Connection: Upgrade\r\nUpgrade: websocket\r\n", "websocket"},
		{"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n", ""},
		{"Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n", ""},
		{"Upgrade: websocket\r\n", ""},
		{"Connection: upgrade\r\n", ""},
	} {
		r, err := parse("GET / HTTP/1.1\r\nHost: a\r\n" + c.fields + "\r\n")
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.UpgradeTo()); got != c.want {
			t.Errorf("%q: got %q, want %q", c.fields, got, c.want)
		}
		if out := string(r.Append(nil, nil, r.UpgradeTo())); strings.Contains(strings.ToLower(out), "h2c") || strings.Contains(out, "HTTP2-Settings") {
			t.Errorf("h2c was forwarded: %q", out)
		}
	}
}

func TestResponse(t *testing.T) {
	for _, c := range []struct {
		name, head string
		toHEAD     bool
		err        error
		framing    Framing
		keep       bool
		out        string // of Append with closing false, from the application
	}{
		{"fixed", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, nil, Framing{Fixed, 3}, true, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, nil, Framing{}, true, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, nil, Framing{}, true, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, nil, Framing{Kind: Chunked}, true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"until EOF", "HTTP/1.1 200 OK\r\n\r\n", false, nil, Framing{Kind: UntilEOF}, true, "HTTP/1.1 200 OK\r\n\r\n"},
		{"closing", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n", false, nil, Framing{Fixed, 1}, false, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"},
		{"http/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false, nil, Framing{Fixed, 1}, false, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"},
		{"to HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, nil, Framing{}, true, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", false, nil, Framing{}, true, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", false, nil, Framing{}, true, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"},
		{"identity from the application", "HTTP/1.1 200 OK\r\nheddle-error: no\r\nContent-Length: 0\r\n\r\n", false, nil, Framing{}, true, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"both lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false, ErrBothLengths, Framing{}, false, ""},
		{"chunked in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, ErrCoding10, Framing{}, false, ""},
		{"two digits", "HTTP/1.1 20 OK\r\n\r\n", false, ErrStatusLine, Framing{}, false, ""},
		{"four digits", "HTTP/1.1 2000 OK\r\n\r\n", false, ErrStatusLine, Framing{}, false, ""},
		{"status below 100", "HTTP/1.1 099 OK\r\n\r\n", false, ErrStatusLine, Framing{}, false, ""},
		{"version 2", "HTTP/2.0 200 OK\r\n\r\n", false, ErrStatusLine, Framing{}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Response
			if err := r.Parse([]byte(c.head)); !errors.Is(err, c.err) {
				t.Fatalf("got error %v, want %v", err, c.err)
			} else if err != nil {
				return
			}
			if f := r.Framing(c.toHEAD); f != c.framing {
				t.Errorf("framing %v, want %v", f, c.framing)
			}
			if r.KeepAlive() != c.keep {
				t.Errorf("keep-alive is %v", r.KeepAlive())
			}
			if got := string(r.Append(nil, nil, false, true)); got != c.out {
				t.Errorf("got  %q\nwant %q", got, c.out)
			}
		})
	}
}

func TestChunked(t *testing.T) {
	for _, c := range []struct {
		name, in string
		rest     string // what is left when the body is done
		err      *Error
	}{
		{"one chunk", "3\r\nabc\r\n0\r\n\r\n", "", nil},
		{"two chunks and the next message", "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nGET /", "GET /", nil},
		{"extension", "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n", "", nil},
		{"trailers", "0\r\nGrpc-Status: 0\r\nX: y\r\n\r\n.", ".", nil},
		{"leading zeros", "0003\r\nabc\r\n00\r\n\r\n", "", nil},
		{"no size", "\r\n", "", ErrChunkSize},
		{"prefixed size", "0x3\r\nabc\r\n", "", ErrChunkSize},
		{"signed size", "+3\r\nabc\r\n", "", ErrChunkSize},
		{"negative size", "-1\r\n", "", ErrChunkSize},
		{"space before the size", " 3\r\nabc\r\n", "", ErrChunkSize},
		{"space after the size", "3 \r\nabc\r\n", "", ErrChunkSize},
		{"size beyond 64 bits", "fffffffffffffffff\r\n", "", ErrChunkSize},
		{"bare LF after the size", "3\nabc\r\n", "", ErrChunkSize},
		{"bare CR after the size", "3\rabc\r\n", "", ErrBareCR},
		{"bare LF in an extension", "3;a\nabc\r\n", "", ErrChunkExt},
		{"NUL in an extension", "3;\x00\r\nabc\r\n", "", ErrChunkExt},
		{"long extension", "3;" + strings.Repeat("a", 300) + "\r\nabc\r\n", "", ErrChunkExt},
		{"longer chunk than its size", "3\r\nabcd\r\n", "", ErrChunkEnd},
		{"LF after the data", "3\r\nabc\n0\r\n\r\n", "", ErrChunkEnd},
		{"CR after the data", "3\r\nabc\r0\r\n\r\n", "", ErrChunkEnd},
		{"framing trailer", "0\r\nContent-Length: 3\r\n\r\n", "", ErrTrailer},
		{"coding trailer", "0\r\nTransfer-Encoding: chunked\r\n\r\n", "", ErrTrailer},
		{"host trailer", "0\r\nHost: a\r\n\r\n", "", ErrTrailer},
		{"identity trailer", "0\r\nheddle_Client_Id: a\r\n\r\n", "", ErrTrailer},
		{"identity trailer with a long name", "0\r\nheddle-" + strings.Repeat("a", 200) + ": a\r\n\r\n", "", ErrTrailer},
		{"authorization trailer", "0\r\nAuthorization: a\r\n\r\n", "", ErrTrailer},
		{"folded trailer", "0\r\nA: b\r\n c\r\n\r\n", "", ErrObsFold},
		{"space before the colon", "0\r\nA : b\r\n\r\n", "", ErrFieldName},
		{"bare LF in a trailer", "0\r\nA: b\n\r\n", "", ErrBareLF},
		{"bare CR in a trailer", "0\r\nA: b\rc\r\n", "", ErrBareCR},
		{"too many trailers", "0\r\n" + strings.Repeat("A: b\r\n", MaxFields+1), "", ErrTooManyFields},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, step := range []int{1, 2, 7, len(c.in)} { // the outcome does not depend on how the bytes come in
				var b Body
				b.Start(Framing{Kind: Chunked})
				at, err := feed(&b, c.in, step)
				if c.err != nil {
					if err != c.err {
						t.Fatalf("step %d: got %v, want %v", step, err, c.err)
					}
					continue
				}
				if err != nil || !b.Done() || c.in[at:] != c.rest {
					t.Fatalf("step %d: got %v, done %v, rest %q", step, err, b.Done(), c.in[at:])
				}
			}
		})
	}
}

// feed feeds s in pieces of step bytes until the body is done or refused.
func feed(b *Body, s string, step int) (at int, err error) {
	for at < len(s) && !b.Done() {
		n, err := b.Feed([]byte(s[at:min(at+step, len(s))]))
		at += n
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

// What we accept, net/http accepts with the same meaning; a head that we write is one that we accept.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x?y=z HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\nConnection: close, x\r\nX: y\r\n\r\nabc",
		"POST http://b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n0\r\n\r\n",
		"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: [::1]\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		end, _, err := HeadEnd(b, 0)
		if err != nil || end == 0 {
			return
		}
		var r Request
		if r.Parse(b[:end]) != nil {
			return
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			// net/http also decodes the escapes of the target, which is not a proxy's business.
			target := string(r.Target)
			if r.Connect {
				target = "http://" + target
			}
			if _, e := url.ParseRequestURI(target); e == nil {
				t.Fatalf("we accept %q, net/http says %v", b[:end], err)
			}
			return
		}
		if std.Method != string(r.Method) || std.ProtoMinor != r.Minor || std.RequestURI != string(r.Target) {
			t.Fatalf("%q: net/http reads %s %s 1.%d", b[:end], std.Method, std.RequestURI, std.ProtoMinor)
		}
		if std.Host != string(r.Authority) {
			t.Fatalf("%q: host %q, for net/http %q", b[:end], r.Authority, std.Host)
		}
		switch f := r.Framing(); f.Kind {
		case Chunked:
			if len(std.TransferEncoding) != 1 {
				t.Fatalf("%q: chunked to us, not to net/http", b[:end])
			}
		default:
			if len(std.TransferEncoding) != 0 || std.ContentLength != f.Length {
				t.Fatalf("%q: length %d, for net/http %d", b[:end], f.Length, std.ContentLength)
			}
		}
		count := 0
		for i := range r.fields {
			if name := r.name(&r.fields[i]); textproto.CanonicalMIMEHeaderKey(string(name)) != "" {
				count++
			}
		}
		if count != len(r.fields) {
			t.Fatalf("%q: a field without a name", b[:end])
		}
		if r.Connect {
			return
		}
		out := r.Append(nil, []byte("heddle-client-id: x\r\n"), r.UpgradeTo())
		var again Request
		if end, _, err := HeadEnd(out, 0); err != nil || end != len(out) {
			t.Fatalf("%q became %q, which ends at %d: %v", b, out, end, err)
		}
		if err := again.Parse(out); err != nil {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		if again.Framing() != r.Framing() || string(again.Path) != string(r.Path) || r.Minor == 1 && string(again.Authority) != string(r.Authority) {
			t.Fatalf("%q became %q, another message", b, out)
		}
		ids := 0
		for i := range again.fields {
			if name := again.name(&again.fields[i]); spelled(name, "heddle-client-id") {
				ids++
			}
		}
		if ids != 1 {
			t.Fatalf("%q became %q with %d identities", b, out, ids)
		}
	})
}

// A chunked body that we accept has the length that net/http gives it, and the outcome does not depend on how its bytes
// come in.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"3\r\nabc\r\n0\r\n\r\n", "0\r\nA: b\r\n\r\nrest", "a;x=y\r\n0123456789\r\n0;z\r\n\r\n", "00\r\n\r\n"} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var whole, pieces Body
		whole.Start(Framing{Kind: Chunked})
		pieces.Start(Framing{Kind: Chunked})
		n, err := feed(&whole, string(in), max(len(in), 1))
		m, perr := feed(&pieces, string(in), int(step)+1)
		if n != m || err != perr || whole.Done() != pieces.Done() {
			t.Fatalf("%q: %d %v at once, %d %v in pieces", in, n, err, m, perr)
		}
		if !whole.Done() {
			return
		}
		const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		r := bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(in)))
		std, rerr := http.ReadRequest(r)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if _, rerr := io.Copy(io.Discard, std.Body); rerr != nil {
			if strings.Contains(rerr.Error(), "trailer") || strings.Contains(rerr.Error(), "too much") || strings.Contains(rerr.Error(), "MIME") {
				return // its limits on trailers and extensions are its own
			}
			t.Fatalf("we accept %q, net/http says %v", in[:n], rerr)
		}
		rest, _ := io.ReadAll(r)
		if string(rest) != string(in[n:]) {
			t.Fatalf("%q: we end at %d, net/http leaves %q", in, n, rest)
		}
	})
}

func TestAllocations(t *testing.T) {
	head := []byte("GET /cart/items?limit=10 HTTP/1.1\r\nHost: api.shop.mesh\r\nUser-Agent: test\r\nAccept: */*\r\nHeddle-Client-Id: x\r\n\r\n")
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nDate: x\r\n\r\n")
	var req Request
	var res Response
	out := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		if HeadEnd(head, 0); req.Parse(head) != nil || res.Parse(answer) != nil {
			t.Fatal("refused")
		}
		req.Get("accept")
		out = req.Append(out[:0], nil, nil)
		out = res.Append(out[:0], nil, false, true)
	}); n != 0 {
		t.Errorf("%v allocations for a request and its response", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	head := []byte("GET /cart/items?limit=10 HTTP/1.1\r\nHost: api.shop.mesh\r\nUser-Agent: test\r\nAccept: */*\r\nX-Request-Id: 0123456789\r\n\r\n")
	var r Request
	out := make([]byte, 0, 1024)
	for b.Loop() {
		HeadEnd(head, 0)
		r.Parse(head)
		out = r.Append(out[:0], nil, nil)
	}
}
