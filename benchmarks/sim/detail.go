package sim

// Detail is what sets a cell apart, and what is drawn of it, beyond its
// figures.
type Detail struct {
	// Setting names what is not the default of [Scenario], for example "host 5,
	// lag 200ms"; empty if all is.
	Setting string `json:"setting,omitempty"`
	// Capacity is [Scenario.Capacity].
	Capacity float64 `json:"capacity,omitempty"`
	// Waiting is, for each endpoint, how many requests waited there for their
	// first token, on average over each of equal parts of the run.
	Waiting [][]float64 `json:"waiting,omitempty"`
	// Regret is the share of decisions in each of [RegretLabels].
	Regret []float64 `json:"regret,omitempty"`
}

// RegretLabels names the bins of [Detail.Regret] by their upper bounds, in
// seconds.
func RegretLabels() []string { return []string{"0", ".01", ".1", "1", "10", "more"} }
