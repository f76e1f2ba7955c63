package policy

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/schema/v1alpha1"
)

// shape is the structure of the policy language, read off the generated Go types: which names a struct knows, and what
// stands in maps and lists. It is what misspelt names are told from, even where CUE, busy with another error, is silent.
type shape struct {
	fields map[string]*shape // of a struct; nil otherwise
	elem   *shape            // of a map or list
	list   bool
}

var policyShape = shapeOf(reflect.TypeFor[v1alpha1.Policy]())

func shapeOf(t reflect.Type) *shape {
	switch t.Kind() {
	case reflect.Pointer:
		return shapeOf(t.Elem())
	case reflect.Map:
		return &shape{elem: shapeOf(t.Elem())}
	case reflect.Slice:
		return &shape{elem: shapeOf(t.Elem()), list: true}
	case reflect.Struct:
		s := &shape{fields: map[string]*shape{}}
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			s.fields[name] = shapeOf(f.Type)
		}
		return s
	}
	return &shape{}
}

// names are the fields a struct knows, sorted.
func (s *shape) names() []string { return slices.Sorted(maps.Keys(s.fields)) }

// at follows a field name; nil is "nothing is known there".
func (s *shape) at(name string) *shape {
	switch {
	case s == nil:
		return nil
	case s.fields != nil:
		return s.fields[name]
	case !s.list:
		return s.elem
	}
	return nil
}

// step follows one part of a path, a field's name or the number of an element. A name in place of a list's element leads
// nowhere: that there is no list is what is wrong there.
func (s *shape) step(part string) *shape {
	if s != nil && s.list {
		if _, err := strconv.Atoi(part); err != nil {
			return nil
		}
		return s.index()
	}
	return s.at(part)
}

// index is the shape of a list's elements.
func (s *shape) index() *shape {
	if s == nil || !s.list {
		return nil
	}
	return s.elem
}
