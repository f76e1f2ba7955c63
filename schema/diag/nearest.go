package diag

// Nearest returns the known name that is closest to name by edit distance, or "" when none is close enough to be
// what the author meant (at most a third of the longer name's letters differ). Ties go to the earlier name.
func Nearest(name string, known []string) string {
	best, bestDist := "", 0
	for _, k := range known {
		most := max(len(name), len(k)) / 3
		if len(name)-len(k) > most || len(k)-len(name) > most {
			continue // the lengths alone differ by more; spares the table in a mesh of thousands of names
		}
		d := distance(name, k)
		if d <= most && (best == "" || d < bestDist) {
			best, bestDist = k, d
		}
	}
	return best
}

// distance is the Damerau–Levenshtein distance in its optimal-string-alignment form: a swap of two neighbours, the
// commonest slip of the hand, counts as one.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
