// Command shop is the demo application: four small services that know nothing of Heddle beyond the environment that
// any program behind a proxy is given.
//
//	load → web → api (two versions) → ledger
//
// web and load reach their upstreams as any HTTP client does, through $HTTP_PROXY; api reaches the ledger, which speaks
// a line protocol over TCP, at the address in $LEDGER_ADDR. Every client tries again while its own sidecar restarts: a
// connection that was refused or broken is retried within a bound, an answer never is.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: shop web|api|ledger|load

Settings come from the environment:
  LISTEN_HTTP    where web and api listen (default 127.0.0.1:8080)
  LISTEN_TCP     where ledger listens (default 127.0.0.1:9000)
  LISTEN_STATS   where load answers GET /stats (default 127.0.0.1:8090)
  HTTP_PROXY     the sidecar's outbound proxy, for web and load
  API_URL        what web calls (default http://api.shop.mesh/orders)
  LEDGER_ADDR    where api reaches the ledger (default 127.0.0.1:9000)
  TARGET_URL     what load calls (default http://web.shop.mesh/)
  RATE           requests a second of load (default 20)
  VERSION        what api says it is (default v1)
  WORKLOAD       what web and api call themselves
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	roles := map[string]func(context.Context) error{"web": web, "api": api, "ledger": ledger, "load": load}
	if len(os.Args) != 2 || roles[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := roles[os.Args[1]](ctx); err != nil {
		fmt.Fprintf(os.Stderr, "shop %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// serve runs an HTTP server until ctx ends, then lets requests in flight finish within a second.
func serve(ctx context.Context, addr string, h http.Handler) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		done <- s.Shutdown(bound)
	}()
	fmt.Fprintf(os.Stderr, "listening on %s\n", l.Addr())
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

// patience bounds how long a client goes on trying while its sidecar is away.
const patience = 8 * time.Second

// again calls f until it succeeds, ctx ends or patience runs out, waiting 20 ms at first and 500 ms at most. It returns
// how often it tried.
func again(ctx context.Context, f func(context.Context) error) (tries int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		tries++
		if err = f(ctx); err == nil {
			return tries, nil
		}
		select {
		case <-ctx.Done():
			return tries, err
		case <-time.After(wait):
		}
	}
}
