package drive

import (
	"fmt"
	"path"
)

// target is what a lane's cost is meant to be, as a ratio to the null lane.
type target struct {
	lanes      string // a pattern of path.Match
	body       int
	must, goal float64
}

// targets are the project's own bars for the request path. Lanes whose tokens
// are known need no tokenizer; the cold ones ask it for every request.
func targets() []target {
	return []target{
		{"random", 1 << 10, 2.4, 1.2},
		{"prefix-ids", 1 << 10, 3, 1.6},
		{"prefix-ids", 10 << 10, 4, 2},
		{"prefix-ids", 100 << 10, 3.5, 2},
		{"prefix-warm-*", 1 << 10, 3, 1.6},
		{"prefix-warm-*", 10 << 10, 4, 2},
		{"prefix-warm-*", 100 << 10, 3.5, 2},
		{"prefix-cold-*", 1 << 10, 5, 3},
		{"prefix-cold-*", 10 << 10, 10, 5},
		{"prefix-cold-*", 100 << 10, 9, 5},
	}
}

const (
	// residentBody is the body size from which resident memory has a bar, in
	// units of body times concurrency.
	residentBody               = 1 << 20
	residentMust, residentGoal = 4, 2
	// endpointsMust and endpointsGoal bound the cost with many endpoints, in
	// units of the cost with the fewest of the same lane, body and chunks.
	endpointsMust, endpointsGoal = 1.5, 1.1
)

// span is a figure and its bounds, see [median].
type span struct{ mid, low, high float64 }

func exactly(v float64) span { return span{v, v, v} }

// grade says how a figure stands to its bars. A bar is met or missed only if
// all of the span is on one side of it.
func grade(got span, must, goal float64) string {
	text := fmt.Sprintf("≤ %.3g, goal %.3g: ", must, goal)
	switch {
	case got.mid <= 0:
		return text + "not measured"
	case got.high <= goal:
		return text + "goal met"
	case got.high <= must:
		return text + "met"
	case got.low > must:
		return text + "MISSED"
	}
	return text + "undecided"
}

// verdicts returns a line for every bar that results touch.
func verdicts(results []result) []string {
	var out []string
	for _, r := range results {
		at := fmt.Sprintf("%s, %d endpoints, %s body, %d chunks", r.Name, r.Endpoints, size(r.BodyBytes), r.ResponseChunks)
		base := leastEndpoints(results, r)
		if base.Endpoints < r.Endpoints && base.Ratio > 0 {
			more := span{r.Ratio / base.Ratio, r.RatioLow / base.Ratio, r.RatioHigh / base.Ratio}
			out = append(out, fmt.Sprintf("%s: %.2f × its cost at %d endpoints (%s)", at, more.mid, base.Endpoints, grade(more, endpointsMust, endpointsGoal)))
			continue
		}
		for _, t := range targets() {
			if match, _ := path.Match(t.lanes, r.Name); match && t.body == r.BodyBytes && r.ResponseChunks == 0 {
				out = append(out, fmt.Sprintf("%s: %.2f × null (%s)", at, r.Ratio, grade(span{r.Ratio, r.RatioLow, r.RatioHigh}, t.must, t.goal)))
			}
		}
		if r.BodyBytes >= residentBody && r.PeakResident > 0 {
			unit := r.PeakRatio / float64(r.PeakResident)
			out = append(out, fmt.Sprintf("%s: peak resident %.2f × body × concurrency (%s), of which %.2f before the first request and %.2f in the token cache", at,
				r.PeakRatio, grade(exactly(r.PeakRatio), residentMust, residentGoal), unit*float64(r.Idle), unit*float64(r.TokenCache)))
		}
		if r.ResponseChunks > 0 && r.Messages > 0 {
			per := (r.Messages - messagesPerRequest) / float64(r.ResponseChunks)
			word := "met"
			if per > 0 {
				word = "MISSED"
			}
			out = append(out, fmt.Sprintf("%s: %.2f messages per chunk (0: %s)", at, per, word))
		}
	}
	return out
}

// messagesPerRequest is headers, body, and the answer's headers.
const messagesPerRequest = 3

// leastEndpoints returns the result that differs from r in its number of
// endpoints alone, with the fewest of them.
func leastEndpoints(results []result, r result) result {
	for _, b := range results {
		if b.Name == r.Name && b.BodyBytes == r.BodyBytes && b.ResponseChunks == r.ResponseChunks && b.Endpoints < r.Endpoints {
			r = b
		}
	}
	return r
}
