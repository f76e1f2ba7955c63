package diag

// longest is the longest name that is looked for, in bytes: the time grows with its square.
const longest = 512

// Nearest returns the known name that is closest to name by edit distance, or "" when none is close enough to be
// what the author meant (at most a third of the longer name's letters differ). Ties go to the earlier name.
func Nearest(name string, known []string) string {
	best, bestDist := "", 0
	if len(name) > longest {
		return ""
	}
	for _, k := range known {
		most := max(len(name), len(k)) / 3
		if len(name)-len(k) > most || len(k)-len(name) > most {
			continue // the lengths alone differ by more; spares the table in a mesh of thousands of names
		}
		if best != "" {
			most = min(most, bestDist-1)
		}
		if apart(name, k) > most {
			continue
		}
		if d := distance(name, k, most); d <= most {
			best, bestDist = k, d
		}
	}
	return best
}

// apart is a bound that distance is never below: one slip of the hand adds a letter, takes one away, or both.
func apart(a, b string) int {
	var letters [256]int
	for i := range len(a) {
		letters[a[i]]++
	}
	for i := range len(b) {
		letters[b[i]]--
	}
	more, less := 0, 0
	for _, n := range letters {
		if n > 0 {
			more += n
		} else {
			less -= n
		}
	}
	return max(more, less)
}

// distance is the Damerau–Levenshtein distance in its optimal-string-alignment form: a swap of two neighbours, the
// commonest slip of the hand, counts as one. It stops, with more than most, as soon as that is certain.
func distance(a, b string, most int) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		least := i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
			least = min(least, cur[j])
		}
		if least > most+1 { // a swap may still go by the row before this one
			return least
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
