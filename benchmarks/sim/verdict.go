package sim

import "math"

// Verdict says how one estimate is beside another.
type Verdict string

// The verdicts.
const (
	// Better and Worse: the interval of the ratio is on one side of 1, and not
	// within the margin.
	Better Verdict = "better"
	Worse  Verdict = "worse"
	// Same: the whole interval of the ratio is within the margin of 1.
	Same Verdict = "same"
	// TooNoisy: none of these; more seeds would tell.
	TooNoisy Verdict = "too noisy"
)

// Margin is the usual share by which two figures differ and are the same.
const Margin = 0.02

// Ratio is that of two estimates, with its 95 % interval.
type Ratio struct{ Mean, Low, High float64 }

// ratioOf returns b over a. The two are taken to be independent, which runs of
// equal seeds are not: the interval is then wider than it need be, never
// narrower. Relative errors are added in quadrature, on the scale of
// logarithms, so that the ratio of a to b has the inverse interval.
func ratioOf(a, b Estimate) Ratio {
	if a == b {
		return Ratio{1, 1, 1}
	}
	r := Ratio{Mean: b.Mean / a.Mean}
	if a.Mean <= 0 || b.Mean <= 0 {
		return Ratio{r.Mean, 0, math.Inf(1)}
	}
	width := math.Exp(math.Hypot(a.CI95/a.Mean, b.CI95/b.Mean))
	r.Low, r.High = r.Mean/width, r.Mean*width
	return r
}

// Judge judges b beside a. more says that more is better. seeds is the lesser
// number of runs of the two: one run alone has no interval and proves only
// equality.
func Judge(a, b Estimate, more bool, seeds int, margin float64) (Ratio, Verdict) {
	r := ratioOf(a, b)
	switch {
	case a == b:
		return r, Same
	case seeds < 2:
		return Ratio{r.Mean, 0, math.Inf(1)}, TooNoisy
	case r.Low >= 1-margin && r.High <= 1+margin:
		return r, Same
	case r.High < 1 && more, r.Low > 1 && !more:
		return r, Worse
	case r.High < 1 || r.Low > 1:
		return r, Better
	}
	return r, TooNoisy
}
