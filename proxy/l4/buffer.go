package l4

import "sync"

// BufferSize is the size of a borrowed buffer: one TLS record (RFC 8446, 5.1), and more than nearly every message head.
const BufferSize = 16 << 10

// Buffer is borrowed while there are bytes to hold and returned when there are none.
type Buffer struct {
	B []byte
}

var buffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, BufferSize)} }}

// Borrow gets a buffer of BufferSize.
func Borrow() *Buffer { return buffers.Get().(*Buffer) }

// Return gives a buffer back; nobody may use it, or what points into it, afterwards. nil is ignored. Buffers that were
// grown are left to the collector.
func Return(b *Buffer) {
	if b != nil && len(b.B) == BufferSize {
		buffers.Put(b)
	}
}
