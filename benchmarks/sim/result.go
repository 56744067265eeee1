package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
)

// Result is what a run of the simulator prints.
type Result struct {
	Cells []Cell `json:"cells"`
}

// Cell is one strategy under one load, over all seeds. Times are in seconds.
type Cell struct {
	Workload  string  `json:"workload"`
	Strategy  string  `json:"strategy"`
	Endpoints int     `json:"endpoints"`
	Load      float64 `json:"load"`
	Seeds     int     `json:"seeds"`

	// MeanTTFT and P90TTFT are the time from a request's arrival to its first
	// token, TPOT the mean time between two tokens of an answer.
	MeanTTFT Estimate `json:"mean_ttft_s"`
	P90TTFT  Estimate `json:"p90_ttft_s"`
	TPOT     Estimate `json:"tpot_s"`
	// TokenHit is the share of prompt tokens that engines found in their cache.
	TokenHit Estimate `json:"token_hit"`
	// CeilingHit is the share of one cache as large as all together, least
	// recently used out; PooledTTFT the mean TTFT of one engine as large and as
	// fast as all together.
	CeilingHit float64 `json:"ceiling_hit"`
	PooledTTFT float64 `json:"pooled_ttft_s"`
	// Imbalance is the most prefill work that an endpoint computed over the
	// mean.
	Imbalance float64 `json:"imbalance"`

	// Speed is how many times as fast as recorded the requests arrived; Load is
	// it as a share of the knee, 0 where the speed was given.
	Speed float64 `json:"speed"`
	// PooledP90 is the p90 TTFT of that one engine, WorstP90 the largest ratio
	// of a seed's p90 TTFT to it.
	PooledP90 float64 `json:"pooled_p90_ttft_s"`
	WorstP90  float64 `json:"worst_p90_over_pooled"`

	Detail
}

// Estimate is a mean over seeds with half the width of its 95 % confidence
// interval (Student's t), 0 for a single seed.
type Estimate struct {
	Mean float64 `json:"mean"`
	CI95 float64 `json:"ci95"`
}

// estimate returns the mean of values and its interval.
func estimate(values []float64) Estimate {
	n := float64(len(values))
	if n == 0 {
		return Estimate{}
	}
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	e := Estimate{Mean: sum / n}
	if n < 2 {
		return e
	}
	squares := 0.0
	for _, v := range values {
		squares += float64((v - e.Mean) * (v - e.Mean))
	}
	e.CI95 = studentT(len(values)-1) * math.Sqrt(squares/(n-1)/n)
	return e
}

// studentT returns the two-sided 95 % quantile of Student's t distribution
// with df degrees of freedom: from the table to 30, then by the first terms of
// the Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5), which there is
// right to four digits.
func studentT(df int) float64 {
	table := [...]float64{
		12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
		2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
		2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
	}
	if df <= len(table) {
		return table[df-1]
	}
	const z = 1.959964
	n := float64(df)
	return z + (z*z*z+z)/(4*n) + (5*z*z*z*z*z+16*z*z*z+3*z)/(96*n*n)
}

// Write writes r as JSON, one cell a line. Equal results give equal bytes.
func (r Result) Write(w io.Writer) error {
	if _, err := io.WriteString(w, `{"cells":[`); err != nil {
		return err
	}
	for i, c := range r.Cells {
		line, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("cell %d: %w", i, err)
		}
		sep := ",\n"
		if i == 0 {
			sep = "\n"
		}
		if _, err := io.WriteString(w, sep+string(line)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "\n]}\n")
	return err
}

// Read reads what [Result.Write] wrote.
func Read(r io.Reader) (Result, error) {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	var out Result
	err := dec.Decode(&out)
	return out, err
}

func newCell(it *Item, seeds []*Outcome, refs []Reference, speed float64) Cell {
	of := func(value func(*Outcome) float64) Estimate {
		values := make([]float64, 0, len(seeds))
		for _, o := range seeds {
			values = append(values, value(o))
		}
		return estimate(values)
	}
	c := Cell{
		Workload: it.Name, Strategy: it.Strategy, Endpoints: it.Endpoints, Load: it.Load, Seeds: len(seeds),
		MeanTTFT:  of(func(o *Outcome) float64 { return o.MeanTTFT }),
		P90TTFT:   of(func(o *Outcome) float64 { return o.P90TTFT }),
		TPOT:      of(func(o *Outcome) float64 { return o.TPOT }),
		TokenHit:  of(func(o *Outcome) float64 { return o.TokenHit }),
		Imbalance: of(func(o *Outcome) float64 { return o.Imbalance }).Mean,
		Speed:     speed,
		Detail:    it.detail(seeds),
	}
	for k, r := range refs {
		n := float64(len(refs))
		c.CeilingHit += r.Ceiling / n
		c.PooledTTFT += r.Pooled.MeanTTFT / n
		c.PooledP90 += r.Pooled.P90TTFT / n
		if pooled := r.Pooled.P90TTFT; pooled > 0 {
			c.WorstP90 = max(c.WorstP90, seeds[k].P90TTFT/pooled)
		}
	}
	return c.rounded()
}

// rounded returns c with figures of at most seven digits: more are noise.
func (c Cell) rounded() Cell {
	for _, v := range []*float64{
		&c.Load, &c.MeanTTFT.Mean, &c.MeanTTFT.CI95, &c.P90TTFT.Mean, &c.P90TTFT.CI95, &c.TPOT.Mean, &c.TPOT.CI95,
		&c.TokenHit.Mean, &c.TokenHit.CI95, &c.CeilingHit, &c.PooledTTFT, &c.PooledP90, &c.WorstP90, &c.Imbalance, &c.Speed,
	} {
		if *v != 0 {
			scale := math.Pow(10, 6-math.Floor(math.Log10(math.Abs(*v))))
			*v = math.Round(*v*scale) / scale
		}
	}
	return c
}
