package observe

import (
	"iter"
	"maps"
	"sync"
	"time"
)

// series is what a family keeps: its total tells whether anything has happened since the last look.
type series[V any] interface {
	*V
	total() uint64
}

// family is the series of one kind, by their labels. Use newFamily.
type family[K comparable, V any] struct {
	limit    int
	make     func(K) *V
	overflow func(K) K // the labels of what does not fit
	total    func(*V) uint64

	mu sync.RWMutex // guards m and idle
	m  map[K]*V
	// idle is what the last sweep saw.
	idle map[K]seen
}

type seen struct {
	total uint64
	since time.Time
}

func newFamily[K comparable, V any, P series[V]](limit int, make func(K) *V, overflow func(K) K) family[K, V] {
	return family[K, V]{
		limit: limit, make: make, overflow: overflow, total: func(v *V) uint64 { return P(v).total() },
		m: map[K]*V{}, idle: map[K]seen{},
	}
}

// get finds a series, or makes it while there is room, or returns the one of the overflow.
func (f *family[K, V]) get(k K) *V {
	f.mu.RLock()
	v := f.m[k]
	f.mu.RUnlock()
	if v != nil {
		return v
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m[k] == nil && len(f.m) >= f.limit {
		k = f.overflow(k)
	}
	if f.m[k] == nil {
		f.m[k] = f.make(k)
	}
	return f.m[k]
}

// all is a copy, in no order.
func (f *family[K, V]) all() iter.Seq2[K, *V] {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return maps.All(maps.Clone(f.m))
}

// sweep drops the series to which nothing has happened for IdleAfter. The maximal total means that it is in use.
func (f *family[K, V]) sweep(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, v := range f.m {
		n := f.total(v)
		last, ok := f.idle[k]
		switch {
		case !ok || last.total != n || n == ^uint64(0):
			f.idle[k] = seen{n, now}
		case now.Sub(last.since) >= IdleAfter:
			delete(f.m, k)
			delete(f.idle, k)
		}
	}
}

// Sweep drops idle series. Call it about once a minute; writing the metrics does it too.
func (r *Registry) Sweep() {
	now := r.now()
	r.http.sweep(now)
	r.tcp.sweep(now)
	r.authz.sweep(now)
	r.errors.sweep(now)
}
