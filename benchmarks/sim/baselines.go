package sim

// baselines returns the policies of other projects.
func baselines() []baseline {
	return []baseline{
		{
			name: "mooncake-est-ttft", doc: "least queue and prefill time",
			place: func(a *ask, views []view, costs []float64) {
				for i := range views {
					v := &views[i]
					below := float64(v.matched - v.device)
					costs[i] = a.prefill*float64(v.uncached+a.tokens-v.matched) + a.load*below
				}
			},
		},
	}
}
