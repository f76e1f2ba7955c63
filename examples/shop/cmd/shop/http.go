package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// order is what api answers.
type order struct {
	Service  string `json:"service"`
	Version  string `json:"version"`
	Workload string `json:"workload"`
	Orders   int64  `json:"orders"` // the ledger's running count
}

// client goes through $HTTP_PROXY. Go never proxies requests to localhost, so mesh names must be used.
func client(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: connections,
		IdleConnTimeout:     90 * time.Second,
	}}
}

// get asks until some answer comes, whatever its status. A GET may be sent twice.
func get(ctx context.Context, c *http.Client, url string, header http.Header) (res *http.Response, body []byte, tries int, err error) {
	tries, err = again(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header = header.Clone()
		if res, err = c.Do(req); err != nil {
			return err
		}
		defer res.Body.Close()
		body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return err
	})
	return res, body, tries, err
}

// web is the entry point: it asks api for an order and prints where the answer came from. When api, or a sidecar on the
// way, answers with an error, that answer is passed on as it is, with what the mesh says about it.
func web(ctx context.Context) error {
	c, url := client(64), env("API_URL", "http://api.shop.mesh/orders")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		res, body, _, err := get(r.Context(), c, url, http.Header{})
		if err != nil {
			http.Error(w, "web: "+err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		for _, name := range []string{"Heddle-Policy", "Heddle-Error"} {
			if v := res.Header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		var o order
		if res.StatusCode != http.StatusOK || json.Unmarshal(body, &o) != nil {
			w.WriteHeader(res.StatusCode)
			fmt.Fprintf(w, "api answered %s: %s\n", res.Status, body)
			if v := res.Header.Get("Heddle-Policy"); v != "" {
				fmt.Fprintf(w, "heddle-policy: %s\n", v)
			}
			return
		}
		fmt.Fprintf(w, "order %d taken by api %s (%s)\n", o.Orders, o.Version, o.Workload)
	})
	return serve(ctx, env("LISTEN_HTTP", "127.0.0.1:8080"), mux)
}

// api takes an order down in the ledger.
func api(ctx context.Context) error {
	version, workload := env("VERSION", "v1"), os.Getenv("WORKLOAD")
	l := newLedgerClient(env("LEDGER_ADDR", "127.0.0.1:9000"))
	defer l.close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		n, err := l.add(r.Context(), "orders", 1)
		if err != nil {
			http.Error(w, "api: ledger: "+err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(order{Service: "api", Version: version, Workload: workload, Orders: n}) // a caller that left needs no answer
	})
	return serve(ctx, env("LISTEN_HTTP", "127.0.0.1:8080"), mux)
}

// stats are what load has seen; GET /stats prints them.
type stats struct {
	Sent    int64            `json:"sent"`
	OK      int64            `json:"ok"`
	Failed  int64            `json:"failed"`
	Retried int64            `json:"retried"` // tries beyond the first, while the sidecar was away
	Last    string           `json:"last,omitempty"`
	Status  map[string]int64 `json:"status"`
}

// load calls web at a steady rate, whatever the answers are, with at most 64 calls at a time.
func load(ctx context.Context) error {
	rate, err := strconv.ParseFloat(env("RATE", "20"), 64)
	if err != nil || rate <= 0 || rate > 10000 {
		return fmt.Errorf("RATE=%q is not a number of requests a second above 0 and up to 10000", os.Getenv("RATE"))
	}
	var (
		mu   sync.Mutex // guards seen
		seen = stats{Status: map[string]int64{}}
		busy atomic.Int64
		wg   sync.WaitGroup
	)
	c, url := client(64), env("TARGET_URL", "http://web.shop.mesh/")
	call := func() {
		defer wg.Done()
		defer busy.Add(-1)
		res, body, tries, err := get(ctx, c, url, http.Header{})
		if ctx.Err() != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		seen.Sent++
		seen.Retried += int64(tries - 1)
		switch {
		case err != nil:
			seen.Failed++
			seen.Status["error"]++
			seen.Last = err.Error()
		case res.StatusCode != http.StatusOK:
			seen.Failed++
			seen.Status[strconv.Itoa(res.StatusCode)]++
			seen.Last = fmt.Sprintf("%s: %.200s", res.Status, body)
		default:
			seen.OK++
			seen.Status["200"]++
		}
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		t := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if busy.Add(1) > 64 { // everything is stuck; more calls would only measure this program
				busy.Add(-1)
				continue
			}
			wg.Add(1)
			go call()
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(seen) // a caller that left needs no answer
	})
	err = serve(ctx, env("LISTEN_STATS", "127.0.0.1:8090"), mux)
	wg.Wait()
	return err
}
