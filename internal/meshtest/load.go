package meshtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Load is a steady, open-loop stream of GET requests: each is sent when its time comes, whether or not the ones before
// it have returned, and its latency counts from that time, so that queueing is not hidden.
type Load struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	sent     int
	failures []string // the first few, told apart
	failed   int
	latency  []time.Duration
}

// Result is what a Load saw.
type Result struct {
	Sent, Failed int
	Failures     []string // at most ten
	P50, P99     time.Duration
}

// StartLoad sends rps requests a second to url until [Load.Stop], over at most conns keep-alive connections. A response
// other than 200, a transport error and a body cut short are failures.
func StartLoad(url string, rps, conns int) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel, done: make(chan struct{})}
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConns: conns, MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns, Proxy: nil},
		Timeout:   20 * time.Second,
	}
	go func() {
		defer close(l.done)
		defer client.CloseIdleConnections()
		var wg sync.WaitGroup
		defer wg.Wait()
		tick := time.NewTicker(time.Second / time.Duration(rps))
		defer tick.Stop()
		start, n := time.Now(), 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for due := int(time.Since(start) * time.Duration(rps) / time.Second); n < due; n++ {
				at := time.Now()
				wg.Go(func() { l.record(get(client, url), time.Since(at)) })
			}
		}
	}()
	return l
}

func get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s %.120s", resp.Status, resp.Header.Get("heddle-error"), b)
	}
	return nil
}

func (l *Load) record(err error, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	l.latency = append(l.latency, d)
	if err != nil {
		l.failed++
		if len(l.failures) < 10 {
			l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+err.Error())
		}
	}
}

// Sent is how many requests have returned so far.
func (l *Load) Sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// Stop ends the load, waits for what is in flight, and says what was seen.
func (l *Load) Stop() Result {
	l.cancel()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Result{Sent: l.sent, Failed: l.failed, Failures: l.failures}
	slices.Sort(l.latency)
	r.P50, r.P99 = Quantile(l.latency, 0.50), Quantile(l.latency, 0.99)
	return r
}

// Quantile of sorted durations; 0 of none.
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
