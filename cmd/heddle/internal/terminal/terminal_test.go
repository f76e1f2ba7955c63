package terminal

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	table := func() *Table {
		t := &Table{Columns: []Column{{Title: "PROXY"}, {Title: "STATE"}, {Title: "AGE", Right: true, Drop: 1}, {Title: "IDENTITY", Drop: 2}}}
		t.Add(Fine, "shop/web-1", "ok", "3m", "spiffe://shop.example/ns/shop/sa/web")
		t.Add(Trouble, "shop/api-1", "nack", "", "spiffe://shop.example/ns/shop/sa/api")
		return t
	}
	for _, c := range []struct {
		name  string
		style Style
		want  string
	}{
		{"a file has every column", Style{}, `
   PROXY       STATE  AGE  IDENTITY
   shop/web-1  ok      3m  spiffe://shop.example/ns/shop/sa/web
x  shop/api-1  nack     -  spiffe://shop.example/ns/shop/sa/api
`},
		{"a narrow terminal drops the least important", Style{Width: 40, Unicode: true}, `
   PROXY       STATE  AGE
   shop/web-1  ok      3m
■  shop/api-1  nack     –
`},
		{"what may not be dropped stays", Style{Width: 10}, `
   PROXY       STATE
   shop/web-1  ok
x  shop/api-1  nack
`},
		{"colour marks the whole line", Style{Width: 30, Color: true},
			"\n\x1b[1m   PROXY       STATE  AGE\x1b[0m\n   shop/web-1  ok      3m\n\x1b[31mx  shop/api-1  nack     -\x1b[0m\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b strings.Builder
			if err := table().Print(&b, c.style); err != nil {
				t.Fatal(err)
			}
			if got, want := b.String(), strings.TrimPrefix(c.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestStyleOf(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		want Style
	}{
		{"a buffer", nil, Style{}},
		{"forced colour", map[string]string{"CLICOLOR_FORCE": "1", "LANG": "en_US.UTF-8"}, Style{Color: true, Unicode: true}},
		{"NO_COLOR beats it", map[string]string{"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, Style{}},
		{"LC_ALL beats LANG", map[string]string{"LC_ALL": "C", "LANG": "en_US.UTF-8"}, Style{}},
	} {
		if got := StyleOf(new(strings.Builder), func(k string) string { return c.env[k] }); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain – text":               "plain – text",
		"red \x1b[31malert\x1b[0m":   "red  [31malert [0m",
		"two\nlines\r":               "two lines",
		"reorder \u202eevil\u202c":   "reorder evil",
		"not \xff utf-8":             "not ? utf-8",
		"\x9b31m C1 control at head": "?31m C1 control at head",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}
