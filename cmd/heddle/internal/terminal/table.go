package terminal

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Column describes one column of a table.
type Column struct {
	Title string
	Right bool // numbers
	// Drop orders the columns that go first where the terminal is too narrow: 0 stays, the highest goes first.
	Drop int
}

// Table is rows under titles. On a terminal it drops whole columns until it fits, and never wraps or cuts a cell; in a
// file it has every column. A first column of marks appears when a row has one.
type Table struct {
	Columns []Column
	rows    []row
	marked  bool
}

type row struct {
	mark  Mark
	cells []string
}

// Add appends a row, one cell a column. Cells are cleaned; an empty cell is printed as Style.None.
func (t *Table) Add(mark Mark, cells ...string) {
	for i := range cells {
		cells[i] = Clean(cells[i])
	}
	t.rows = append(t.rows, row{mark, cells})
	t.marked = t.marked || mark != Fine
}

// Len is the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Print writes the table in a style.
func (t *Table) Print(w io.Writer, s Style) error {
	widths := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		widths[i] = utf8.RuneCountInString(c.Title)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell(r, i, s)))
		}
	}
	shown := t.fit(widths, s.Width)
	var b strings.Builder
	line := func(mark Mark, paint func(string) string, text func(int) string) {
		var l strings.Builder
		if t.marked {
			l.WriteString(s.Glyph(mark) + "  ")
		}
		for n, i := range shown {
			if n > 0 {
				l.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text(i)))
			if t.Columns[i].Right {
				l.WriteString(pad + text(i))
			} else {
				l.WriteString(text(i) + pad)
			}
		}
		b.WriteString(paint(strings.TrimRight(l.String(), " ")) + "\n")
	}
	line(Fine, s.Bold, func(i int) string { return t.Columns[i].Title })
	for _, r := range t.rows {
		line(r.mark, func(text string) string { return s.Paint(r.mark, text) }, func(i int) string { return cell(r, i, s) })
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func cell(r row, i int, s Style) string {
	if i >= len(r.cells) || r.cells[i] == "" {
		return s.None()
	}
	return r.cells[i]
}

// fit returns the indexes of the columns to show.
func (t *Table) fit(widths []int, width int) []int {
	shown := make([]int, len(t.Columns))
	total := -2
	if t.marked {
		total += 3
	}
	for i := range shown {
		shown[i] = i
		total += widths[i] + 2
	}
	for width > 0 && total > width {
		victim := -1
		for n, i := range shown {
			if d := t.Columns[i].Drop; d > 0 && (victim < 0 || d >= t.Columns[shown[victim]].Drop) {
				victim = n
			}
		}
		if victim < 0 {
			break
		}
		total -= widths[shown[victim]] + 2
		shown = append(shown[:victim], shown[victim+1:]...)
	}
	return shown
}
