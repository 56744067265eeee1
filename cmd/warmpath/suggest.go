package main

// nearest returns the word with the smallest edit distance to s, or "" if none
// is near enough to be what was meant.
func nearest(s string, words []string) string {
	best, bound := "", max(1, len(s)/3)+1
	for _, w := range words {
		if d := distance(s, w); d < bound {
			best, bound = w, d
		}
	}
	return best
}

// didYouMean is "; did you mean X?" or, where nothing is near, empty.
func didYouMean(s string, words []string) string {
	if w := nearest(s, words); w != "" {
		return "; did you mean " + w + "?"
	}
	return ""
}

// distance is the Levenshtein distance, where exchanging two neighbouring
// bytes counts as one edit.
func distance(a, b string) int {
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
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
