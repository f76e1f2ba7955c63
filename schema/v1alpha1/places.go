package v1alpha1

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"

	"github.com/heddle-mesh/heddle/schema/diag"
)

// Places are the positions of the fields that one directory writes, in 16 bytes each: a repository of ten thousand
// services has half a million of them. Paths are kept as hashes, keyed anew in each process, so that no author can make
// two of them meet. It is never written again once a document holds it.
type Places struct {
	files  []string
	fields []place // sorted by path
}

type place struct {
	path uint64 // its hash
	at   uint64 // index of the file, line and column, in 16, 24 and 24 bits
}

var placesSeed = maphash.MakeSeed()

const (
	maxPlaceFiles = 1 << 16
	maxPlaceLine  = 1<<24 - 1
)

// NewPlaces returns the places in some files, each written down by calling add: the index of the file, the line and the
// column from 1. Of several for one path the foremost counts.
func NewPlaces(files []string, each func(add func(path string, file, line, column int))) *Places {
	scratch := scratches.Get().(*[]place)
	defer scratches.Put(scratch)
	all := (*scratch)[:0]
	each(func(path string, file, line, column int) {
		if file < 0 || file >= len(files) || file >= maxPlaceFiles || line < 0 || column < 0 {
			return
		}
		all = append(all, place{maphash.String(placesSeed, path),
			uint64(file)<<48 | uint64(min(line, maxPlaceLine))<<24 | uint64(min(column, maxPlaceLine))})
	})
	*scratch = all
	fields := slices.CompactFunc(sorted(all), func(a, b place) bool { return a.path == b.path })
	return &Places{files, slices.Clip(fields)}
}

// scratches are for collecting places whose number is not known yet.
var scratches = sync.Pool{New: func() any { return new([]place) }}

// sorted returns a sorted copy. Hashes are spread evenly, so that their first bits say almost where each belongs.
func sorted(all []place) []place {
	if len(all) == 0 {
		return nil
	}
	shift := 64 - bits.Len(uint(len(all)))
	ends := make([]uint32, 1<<(64-shift))
	for _, p := range all {
		ends[p.path>>shift]++
	}
	sum := uint32(0)
	for i, n := range ends {
		ends[i] = sum
		sum += n
	}
	out := make([]place, len(all))
	for _, p := range all {
		i := p.path >> shift
		out[ends[i]] = p
		ends[i]++
	}
	for i := 1; i < len(out); i++ {
		for j := i; j > 0 && out[j].before(out[j-1]); j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func (p place) before(q place) bool { return p.path < q.path || p.path == q.path && p.at < q.at }

// At returns the position of a path, if the directory writes it.
func (p *Places) At(path string) (diag.Pos, bool) {
	if p == nil {
		return diag.Pos{}, false
	}
	i, ok := slices.BinarySearchFunc(p.fields, maphash.String(placesSeed, path), func(a place, h uint64) int { return cmp.Compare(a.path, h) })
	if !ok {
		return diag.Pos{}, false
	}
	at := p.fields[i].at
	return diag.Pos{File: p.files[at>>48], Line: int(at >> 24 & maxPlaceLine), Column: int(at & maxPlaceLine)}, true
}

// Len is how many fields have a place.
func (p *Places) Len() int {
	if p == nil {
		return 0
	}
	return len(p.fields)
}

// Equal reports whether two directories have the same fields in the same places.
func (p *Places) Equal(q *Places) bool {
	return p.Len() == q.Len() && (p.Len() == 0 || slices.Equal(p.files, q.files) && slices.Equal(p.fields, q.fields))
}
