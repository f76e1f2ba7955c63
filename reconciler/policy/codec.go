package policy

import (
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// This file writes policy down in binary, for disk: JSON takes ten times as long to read. It knows the kinds of Go types
// that types.cue generates, and no names: a struct is the fields that are not zero, in order. So a file is of use only to
// the program that wrote it, which its name makes sure of.

// plan is how values of one type are written and read.
type plan struct {
	write func(b []byte, v reflect.Value) []byte
	read  func(r *reader, v reflect.Value) // v is settable and zero
}

var plans sync.Map // of *plan, by reflect.Type

// planOf panics at a type that policy has no fields of: a test sees that all of its types are known.
func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p, _ := plans.LoadOrStore(t, newPlan(t))
	return p.(*plan)
}

func newPlan(t reflect.Type) *plan {
	switch t.Kind() {
	case reflect.String:
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
			},
			func(r *reader, v reflect.Value) { v.SetString(r.text()) },
		}
	case reflect.Int64:
		return &plan{
			func(b []byte, v reflect.Value) []byte { return binary.AppendVarint(b, v.Int()) },
			func(r *reader, v reflect.Value) {
				n := r.uint()
				v.SetInt(int64(n>>1) ^ -int64(n&1)) // as binary.Varint has it
			},
		}
	case reflect.Float64:
		return &plan{
			func(b []byte, v reflect.Value) []byte { return binary.AppendUvarint(b, math.Float64bits(v.Float())) },
			func(r *reader, v reflect.Value) { v.SetFloat(math.Float64frombits(r.uint())) },
		}
	case reflect.Bool:
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				if v.Bool() {
					return append(b, 1)
				}
				return append(b, 0)
			},
			func(r *reader, v reflect.Value) { v.SetBool(r.uint() != 0) },
		}
	case reflect.Pointer:
		elem := planOf(t.Elem())
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				if v.IsNil() {
					return append(b, 0)
				}
				return elem.write(append(b, 1), v.Elem())
			},
			func(r *reader, v reflect.Value) {
				if r.uint() == 0 {
					return
				}
				v.Set(reflect.New(t.Elem()))
				elem.read(r, v.Elem())
			},
		}
	case reflect.Slice: // nil is 0, one without elements 1
		elem := planOf(t.Elem())
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				if v.IsNil() {
					return append(b, 0)
				}
				b = binary.AppendUvarint(b, uint64(v.Len())+1)
				for i := range v.Len() {
					b = elem.write(b, v.Index(i))
				}
				return b
			},
			func(r *reader, v reflect.Value) {
				n := r.uint()
				if n == 0 {
					return
				}
				n = r.count(n - 1)
				v.Set(reflect.MakeSlice(t, int(n), int(n)))
				for i := range int(n) {
					elem.read(r, v.Index(i))
				}
			},
		}
	case reflect.Map: // the same
		key, elem := planOf(t.Key()), planOf(t.Elem())
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				if v.IsNil() {
					return append(b, 0)
				}
				b = binary.AppendUvarint(b, uint64(v.Len())+1)
				keys := v.MapKeys()
				slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
				for _, k := range keys {
					b = elem.write(key.write(b, k), v.MapIndex(k))
				}
				return b
			},
			func(r *reader, v reflect.Value) {
				n := r.uint()
				if n == 0 {
					return
				}
				n = r.count(n - 1)
				m := reflect.MakeMapWithSize(t, int(n))
				k, e := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
				for range n {
					k.SetZero()
					e.SetZero()
					key.read(r, k)
					elem.read(r, e)
					m.SetMapIndex(k, e)
				}
				v.Set(m)
			},
		}
	case reflect.Struct:
		if t.NumField() > 64 {
			panic("policy: " + t.String() + " has more than 64 fields")
		}
		fields := make([]*plan, t.NumField())
		for i := range fields {
			fields[i] = planOf(t.Field(i).Type)
		}
		return &plan{
			func(b []byte, v reflect.Value) []byte {
				var set uint64
				for i := range fields {
					if !v.Field(i).IsZero() {
						set |= 1 << i
					}
				}
				b = binary.AppendUvarint(b, set)
				for i, f := range fields {
					if set&(1<<i) != 0 {
						b = f.write(b, v.Field(i))
					}
				}
				return b
			},
			func(r *reader, v reflect.Value) {
				set := r.uint()
				for i, f := range fields {
					if set&(1<<i) != 0 {
						f.read(r, v.Field(i))
					}
				}
			},
		}
	}
	panic("policy: no encoding is known for " + t.String())
}

// reader takes values off a text. What it returns after the first fault is zero.
type reader struct {
	rest string
	bad  bool
}

var errPart = errors.New("a part that was kept cannot be read")

func (r *reader) uint() uint64 {
	var n uint64
	for i := 0; i < len(r.rest) && i < binary.MaxVarintLen64; i++ {
		c := r.rest[i]
		if c < 0x80 {
			r.rest = r.rest[i+1:]
			return n | uint64(c)<<(7*i)
		}
		n |= uint64(c&0x7f) << (7 * i)
	}
	r.bad, r.rest = true, ""
	return 0
}

// count is a number of things that each take at least a byte.
func (r *reader) count(n uint64) uint64 {
	if n > uint64(len(r.rest)) {
		r.bad, r.rest = true, ""
		return 0
	}
	return n
}

func (r *reader) text() string {
	n := r.count(r.uint())
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}
