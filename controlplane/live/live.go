// Package live holds one value that changes over time and is read by many: the newest release, the endpoints, the trust
// bundle. Every read has a twin that also returns a channel which closes when what was read is stale, so a reader sees
// the newest value and never a queue of old ones. Values are immutable once set; whoever sets one owns the cell.
package live

import "sync"

// Value is a cell. Its zero value holds the zero T. It is safe for concurrent use.
type Value[T any] struct {
	mu    sync.Mutex // guards what follows
	value T
	stale chan struct{} // made by the first Watch of a value, closed by the next Set
}

// Set replaces the value and wakes everyone who watches the old one.
func (v *Value[T]) Set(t T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value = t
	if v.stale != nil {
		close(v.stale)
		v.stale = nil
	}
}

// Get returns the value.
func (v *Value[T]) Get() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value
}

// Watch returns the value, and a channel that closes when it is no longer the newest.
func (v *Value[T]) Watch() (T, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stale == nil {
		v.stale = make(chan struct{})
	}
	return v.value, v.stale
}
