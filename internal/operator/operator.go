// Package operator is how the heddle command talks to a running reconciler or control plane on the same machine: JSON
// over HTTP on a Unix socket in the program's state directory. The file's mode (0600, in a 0700 directory) is the
// access control: who may open the socket may operate the program. There is no remote form.
package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxPath is the longest path that fits into sun_path with its zero byte: 108 bytes on Linux, 104 on the BSDs.
	maxPath = 103
	// maxRequest and maxResponse bound bodies, in bytes.
	maxRequest  = 1 << 20
	maxResponse = 64 << 20
	// drain is how long Serve waits for answers under way.
	drain = 2 * time.Second
)

// SocketName is the name of the socket in a program's state directory.
const SocketName = "operator.sock"

// Listen makes the socket with mode 0600. A socket that a dead process left is replaced; one that answers is an error,
// and so is a file of another kind. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("operator socket: %s exists and is not a socket; move it away", path)
		}
		c, err := dial(context.Background(), path)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("operator socket: another process answers on %s; stop it, or use another state directory", path)
		}
	}
	// The socket is made under a temporary name and renamed when its mode is right, so that nobody connects before and
	// whoever looks finds either the old socket or a working one.
	dir, release, err := shorten(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("operator socket: %w", err)
	}
	defer release()
	temporary := filepath.Join(filepath.Dir(path), ".op.new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("operator socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/.op.new", Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("operator socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temporary, 0o600), os.Rename(temporary, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("operator socket: %w", err)
	}
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("operator socket: %w", err)
	}
	return &listener{UnixListener: l, path: path, made: made}, nil
}

// listener removes its socket when it is closed, unless somebody else has put another one there since.
type listener struct {
	*net.UnixListener
	path string
	made fs.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// shorten gives a name of a directory under which a socket's path fits into sun_path. A long directory is opened and
// named through /proc; release gives the descriptor back.
func shorten(dir string) (name string, release func(), err error) {
	if len(dir)+len("/")+len(SocketName) <= maxPath {
		return dir, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	name = fmt.Sprintf("/proc/self/fd/%d", d.Fd())
	if _, err := os.Stat(name + "/."); err != nil {
		d.Close()
		return "", nil, fmt.Errorf("the path %s is longer than a socket's may be (%d bytes); use a shorter state directory",
			dir, maxPath)
	}
	return name, func() { d.Close() }, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	dir, release, err := shorten(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", dir+"/"+filepath.Base(path))
}

// Serve answers on l until ctx is done; then it closes l and waits up to two seconds for answers under way. It returns
// nil when it was stopped so.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if s.Shutdown(bound) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if stop() { // ctx is not done: the listener failed by itself
		s.Close()
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

// Reply writes v as the JSON body of a 200.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // if the client is gone, nobody is left to tell
}

// Error is a refusal: what is wrong, and what to do next. It is what [Fail] sends and what a [Client] returns.
type Error struct {
	Status  int    `json:"-"` // of HTTP
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
}

// Error is the message, without the hint.
func (e *Error) Error() string { return e.Message }

// Fail answers with an error. Of an error that is no *Error the text is sent, with status 500.
func Fail(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Status: http.StatusInternalServerError, Message: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e) // as in Reply
}

// Read decodes the JSON body of a request, of at most 1 MiB, into v. An empty body leaves v as it is; an unknown field
// is an *Error with status 400.
func Read(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return &Error{Status: http.StatusBadRequest, Message: "the request's body is not what was expected: " + err.Error(),
			Hint: "use the heddle command of the same version as the running program"}
	}
	return nil
}

// ErrUnreachable means that no program answers on the socket.
var ErrUnreachable = errors.New("no running program answers")

// A Client asks one program. It holds no connection between requests and is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient asks whoever listens on the socket at path; nothing is opened before the first request.
func NewClient(path string) *Client {
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx, path)
			if err != nil {
				return nil, &unreachable{path: path, err: err}
			}
			return c, nil
		},
		DisableKeepAlives: true,
	}}}
}

// unreachable says why in words for the person at the terminal.
type unreachable struct {
	path string
	err  error
}

func (e *unreachable) Error() string {
	switch {
	case errors.Is(e.err, syscall.EACCES), errors.Is(e.err, syscall.EPERM):
		return fmt.Sprintf("%s belongs to another user; run the command as the user that runs the program", e.path)
	case errors.Is(e.err, syscall.ENOENT), errors.Is(e.err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no running program answers on %s; start it, or name its state directory", e.path)
	}
	return fmt.Sprintf("no running program answers on %s: %v", e.path, e.err)
}

func (e *unreachable) Is(target error) bool { return target == ErrUnreachable }
func (e *unreachable) Unwrap() error        { return e.err }

// Get asks for a path such as "/v1/status" and decodes the answer into out, unless out is nil. A refusal is an *Error;
// a program that does not run is ErrUnreachable.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Post sends in as JSON (nothing if nil) and decodes the answer into out, unless out is nil. Errors are those of Get.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.do(ctx, http.MethodPost, path, in, out)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://heddle"+path, body)
	if err != nil {
		return fmt.Errorf("asking %s: %w", c.path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *unreachable
		if errors.As(err, &u) {
			return u // without the URL that net/http puts in front: it names nothing that exists
		}
		return fmt.Errorf("asking %s: %w", c.path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	switch {
	case err != nil:
		return fmt.Errorf("asking %s: %w", c.path, err)
	case len(b) > maxResponse:
		return fmt.Errorf("asking %s: the answer to %s is longer than %d MiB", c.path, path, maxResponse>>20)
	case resp.StatusCode/100 != 2:
		e := &Error{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s %s: %s", method, path, strings.ToLower(http.StatusText(resp.StatusCode)))
			e.Hint = "use the heddle command of the same version as the running program"
		}
		return e
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the answer of %s to %s: %w", c.path, path, err)
	}
	return nil
}
