// Package admin answers the sidecar's admin port: liveness, readiness, metrics, the effective config, the log level and
// a shutdown. It only shows what others know, through the functions of [Options]; it is not on the data path. What
// changes anything is for loopback only.
package admin

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/heddle-mesh/heddle/proxy/observe"
)

// Options are what the port shows. All are required.
type Options struct {
	Metrics *observe.Registry
	// Ready reports whether the sidecar serves, and says in one line what it waits for or serves from.
	Ready func() (ok bool, says string)
	// Config is the effective config, as a value for encoding/json.
	Config func() any
	// Shutdown begins the drain; it returns at once.
	Shutdown func()
}

// New is the port's handler.
func New(o Options) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "live\n") })
	m.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		ok, says := o.Ready()
		if !ok {
			http.Error(w, "not ready: "+says, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready: "+says)
	})
	m.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", observe.ContentType)
		w.Header().Set("Vary", "Accept-Encoding")
		var out io.Writer = w
		if accepts(r, "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close() // an error here means that nobody reads any more
			out = z
		}
		_ = o.Metrics.WriteText(out) // as above
	})
	m.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		_ = e.Encode(o.Config()) // nobody reads any more
	})
	m.HandleFunc("GET /log-level", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, zerolog.GlobalLevel()) })
	m.HandleFunc("PUT /log-level", local(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
		level, perr := zerolog.ParseLevel(strings.TrimSpace(string(b)))
		if err != nil || perr != nil || level == zerolog.NoLevel {
			http.Error(w, "the body must be one of: trace debug info warn error", http.StatusBadRequest)
			return
		}
		zerolog.SetGlobalLevel(level)
		zerolog.Ctx(r.Context()).WithLevel(zerolog.InfoLevel).Stringer("level", level).Msg("log level changed")
		fmt.Fprintln(w, level)
	}))
	m.HandleFunc("POST /shutdown", local(func(w http.ResponseWriter, r *http.Request) {
		zerolog.Ctx(r.Context()).Info().Str("peer", r.RemoteAddr).Msg("shutdown asked for")
		io.WriteString(w, "draining\n")
		o.Shutdown()
	}))
	return m
}

// local admits requests from loopback that no web page made: browsers send Origin with every PUT and POST.
func local(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() || r.Header.Get("Origin") != "" {
			http.Error(w, "only from loopback; run it on the sidecar's host", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// accepts reports whether a content coding is acceptable (RFC 9110, 12.5.3).
func accepts(r *http.Request, coding string) bool {
	for _, v := range r.Header.Values("Accept-Encoding") {
		for part := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			if strings.EqualFold(strings.TrimSpace(name), coding) {
				q := strings.TrimSpace(params)
				return q != "q=0" && !strings.HasPrefix(q, "q=0.000") && q != "q=0.0" && q != "q=0.00"
			}
		}
	}
	return false
}

// Serve answers on a listener until ctx ends, and returns when the requests under way are answered.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:          nil,
	}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the admin port: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(grace); err != nil {
		s.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin port: %w", err)
	}
	return nil
}
