package push

import (
	"context"
	"sync"
	"time"
)

// bucket admits a rate of events, in the order of their arrival, after a burst. It is safe for concurrent use.
type bucket struct {
	every time.Duration // one event
	burst int

	mu   sync.Mutex // guards next
	next time.Time  // when the bucket would be full again, were nobody to come
}

// reserve takes a place and returns how long to wait for it.
func (b *bucket) reserve(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next.Before(now) {
		b.next = now
	}
	b.next = b.next.Add(b.every)
	return max(0, b.next.Sub(now)-time.Duration(b.burst)*b.every)
}

// wait takes a place and waits for it.
func (b *bucket) wait(ctx context.Context) error {
	d := b.reserve(time.Now())
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
