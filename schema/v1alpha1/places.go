package v1alpha1

import (
	"cmp"
	"hash/maphash"
	"slices"

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
// column from 1. Of several for one path the first counts.
func NewPlaces(files []string, each func(add func(path string, file, line, column int))) *Places {
	p := &Places{files: files}
	each(func(path string, file, line, column int) {
		if file < 0 || file >= len(files) || file >= maxPlaceFiles || line < 0 || column < 0 {
			return
		}
		p.fields = append(p.fields, place{maphash.String(placesSeed, path),
			uint64(file)<<48 | uint64(min(line, maxPlaceLine))<<24 | uint64(min(column, maxPlaceLine))})
	})
	slices.SortStableFunc(p.fields, func(a, b place) int { return cmp.Compare(a.path, b.path) })
	p.fields = slices.Clip(slices.CompactFunc(p.fields, func(a, b place) bool { return a.path == b.path }))
	return p
}

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
