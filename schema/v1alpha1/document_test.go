package v1alpha1

import "testing"

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		wider, names []string
		want         bool
	}{
		{[]string{"pay"}, []string{"pay"}, true},
		{[]string{"pay"}, []string{"pay", "shop"}, false},
		{[]string{"pay-*"}, []string{"pay-eu", "pay-e*"}, true},
		{[]string{"pay-*"}, []string{"pay"}, false},
		{[]string{"pay-e*"}, []string{"pay-*"}, false},
		{nil, nil, true},
	} {
		if got := Covers(c.wider, c.names); got != c.want {
			t.Errorf("%q cover %q: %v", c.wider, c.names, got)
		}
	}
}
