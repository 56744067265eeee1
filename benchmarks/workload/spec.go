package workload

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
)

// Dist is a distribution of a quantity: log-normal if it has a deviation,
// uniform if it has bounds and neither mean nor deviation, otherwise constant.
type Dist struct {
	// Mean and SD are those of the distribution before Min and Max cut it.
	Mean, SD float64
	// Min and Max bound what is drawn; Max 0 is no bound. A draw outside is
	// drawn again, so no value heaps up at a bound.
	Min, Max float64
}

// fixed is always v.
func fixed(v float64) Dist { return Dist{Mean: v} }

// uniform is even between low and high.
func uniform(low, high float64) Dist { return Dist{Min: low, Max: high} }

// draws bounds how often a draw is repeated; what is still out of bounds then
// is moved to the nearest bound.
const draws = 64

func (d Dist) draw(random *rand.Rand) float64 {
	if d.Mean == 0 && d.SD == 0 {
		return d.Min + (d.Max-d.Min)*random.Float64()
	}
	if d.SD == 0 {
		return d.Mean
	}
	// The parameters of a log-normal distribution from its moments.
	s2 := math.Log1p((d.SD / d.Mean) * (d.SD / d.Mean))
	mu := math.Log(d.Mean) - s2/2
	v := 0.0
	for range draws {
		v = math.Exp(mu + math.Sqrt(s2)*random.NormFloat64())
		if v >= d.Min && (d.Max == 0 || v <= d.Max) {
			return v
		}
	}
	v = max(v, d.Min)
	if d.Max > 0 {
		v = min(v, d.Max)
	}
	return v
}

// count draws a whole number of at least low.
func (d Dist) count(random *rand.Rand, low int) int {
	return max(int(math.Round(d.draw(random))), low)
}

func (d Dist) validate(field string) error {
	if d.Mean < 0 || d.SD < 0 || d.Min < 0 || (d.Max != 0 && d.Max < d.Min) || (d.SD > 0 && d.Mean == 0) {
		return fmt.Errorf("%s: %+v: must not be negative, nor its maximum below its minimum, nor a deviation without a mean", field, d)
	}
	return nil
}

// Spec describes a workload: sessions that arrive at random, each of some
// turns, whose prompts are
//
//	shared prefix | the session's own context | message, answer, message, ...
//
// so that every turn's prompt begins with the whole turn before it. Lengths are
// in tokens, times in seconds.
type Spec struct {
	// Name is what it is called, Doc says what it is like, and Source where its
	// figures are from.
	Name, Doc, Source string
	// Requests is how many there are and Rate how many arrive in a second, on
	// average.
	Requests int
	Rate     float64
	// ArrivalCV is the coefficient of variation of the times between sessions:
	// 1 is a Poisson process, more is bursts (gamma-distributed times).
	ArrivalCV float64

	// Prefixes is the number of shared prefixes, chosen by Zipf's law with
	// exponent PrefixZipf (0 is evenly); PrefixTokens is the length of one.
	Prefixes     int
	PrefixZipf   float64
	PrefixTokens Dist
	// Questions is how many different first messages follow a prefix, asked
	// again and again, 0 if each is new.
	Questions int
	// Context is what only this session has, at its start.
	Context Dist
	// Message and Output are what a turn adds and what it is answered.
	Message, Output Dist
	// Turns is how many turns a session has, Gap how long after an answer the
	// next begins.
	Turns, Gap Dist
	// Adapters is the number of LoRA adapters, chosen by Zipf's law with
	// exponent AdapterZipf; 0 is none. Adapters share no blocks.
	Adapters    int
	AdapterZipf float64

	// FanOut is the share of turns after which a session starts helpers at
	// once, Helpers how many. A helper is a session of its own behind the prefix
	// HelperPrefix tokens long that all helpers share, with HelperTask tokens
	// of its own, HelperTurns and Message. What it says in the end is added to
	// the next message of the session that started it, which waits for all.
	FanOut                   float64
	Helpers                  Dist
	HelperPrefix, HelperTask Dist
	HelperTurns              Dist
}

// Validate reports every field that cannot be used.
func (s Spec) Validate() error {
	var errs []error
	bad := func(ok bool, field string, value any, rule string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v: %s", field, value, rule))
		}
	}
	bad(s.Requests >= 1, "requests", s.Requests, "must be at least 1")
	bad(s.Rate > 0 && !math.IsInf(s.Rate, 0), "rate", s.Rate, "must be requests per second above 0")
	bad(s.ArrivalCV >= 1 && s.ArrivalCV <= 100, "arrival cv", s.ArrivalCV, "must be 1 (Poisson) to 100")
	bad(s.Prefixes >= 0, "prefixes", s.Prefixes, "must not be negative")
	bad(s.Questions >= 0, "questions", s.Questions, "must not be negative")
	bad(s.Adapters >= 0, "adapters", s.Adapters, "must not be negative")
	bad(s.FanOut >= 0 && s.FanOut <= 1, "fan-out", s.FanOut, "must be a share from 0 to 1")
	for _, d := range []struct {
		field string
		dist  Dist
	}{
		{"prefix tokens", s.PrefixTokens},
		{"context", s.Context},
		{"message", s.Message},
		{"output", s.Output},
		{"turns", s.Turns},
		{"gap", s.Gap},
		{"helpers", s.Helpers},
		{"helper prefix", s.HelperPrefix},
		{"helper task", s.HelperTask},
		{"helper turns", s.HelperTurns},
	} {
		if err := d.dist.validate(d.field); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// zipf chooses among n by Zipf's law.
type zipf []float64 // cumulative shares

func newZipf(n int, exponent float64) zipf {
	z := make(zipf, n)
	sum := 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -exponent)
		z[i] = sum
	}
	for i := range z {
		z[i] /= sum
	}
	return z
}

func (z zipf) draw(random *rand.Rand) int {
	return min(sort.SearchFloat64s(z, random.Float64()), len(z)-1)
}
