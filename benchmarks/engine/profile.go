package engine

import (
	"fmt"
	"time"
)

// Profile holds the coefficients of the step model for one model on one kind
// of endpoint:
//
//	step = Base
//	     + PerPrefillToken  * prefill tokens in the step
//	     + PerPrefillPair   * sum over prefill chunks of (tokens * mean context)
//	     + PerDecodeContext * sum over decoding sequences of their context
//	     + PerLoadedToken   * tokens loaded from the host tier
//
// Times are in milliseconds.
type Profile struct {
	Name string
	// Base is the floor of every step: the weights are read once, and the
	// scheduler runs.
	Base float64
	// PerPrefillToken is the matrix work of one prompt token.
	PerPrefillToken float64
	// PerPrefillPair is the attention work of one prompt token over one token
	// of context.
	PerPrefillPair float64
	// PerDecodeContext is the time to read one token's KV for a sequence that
	// decodes.
	PerDecodeContext float64
	// PerLoadedToken is the time to bring one token's KV from host memory.
	PerLoadedToken float64
	// KVTokens is the capacity of one endpoint's cache in tokens.
	KVTokens int
	// WeightFloor is the time to read the weights once, in ms; Base is never
	// below it.
	WeightFloor float64
	// PeakPrefillToken is the matrix time of one token at the silicon's peak,
	// in ms; PerPrefillToken is never below it.
	PeakPrefillToken float64
	// Source says what the numbers are anchored on.
	Source string
}

// Slower returns a profile whose steps take factor times as long.
func (p Profile) Slower(factor float64) Profile {
	for _, v := range []*float64{&p.Base, &p.PerPrefillToken, &p.PerPrefillPair, &p.PerDecodeContext, &p.PerLoadedToken} {
		*v *= factor
	}
	return p
}

// Profiles returns the built-in profiles.
func Profiles() []Profile {
	return []Profile{
		{
			Name: "8b", Base: 5.5, PerPrefillToken: 0.0282, PerPrefillPair: 1.1e-6, PerDecodeContext: 5.6e-5,
			PerLoadedToken: 0.0052, KVTokens: 430_000, WeightFloor: 4.8, PeakPrefillToken: 0.0141,
			Source: "8B dense model, bf16, one H100: 50 % of peak FLOPs in prefill, 16 GB of weights at 3.35 TB/s, " +
				"128 KiB of KV per token (NVIDIA H100 data sheet); KV from host memory at 25 GB/s a GPU, half of PCIe 5.0 x16",
		},
		{
			Name: "32b", Base: 11, PerPrefillToken: 0.0490, PerPrefillPair: 1.0e-6, PerDecodeContext: 5.6e-5,
			PerLoadedToken: 0.0052, KVTokens: 307_328, WeightFloor: 9.8, PeakPrefillToken: 0.0295,
			Source: "Qwen3-32B, two H100 (TP2): llm-d's published prefill peak of 20480 tokens/s, " +
				"8192 tokens in 0.40 s, and its KV capacity per pod",
		},
		{
			Name: "70b", Base: 13, PerPrefillToken: 0.0692, PerPrefillPair: 8e-7, PerDecodeContext: 3.5e-5,
			PerLoadedToken: 0.0033, KVTokens: 461_376, WeightFloor: 10.5, PeakPrefillToken: 0.0346,
			Source: "70B dense model, bf16, four H100 (TP4): 50 % of peak FLOPs in prefill; " +
				"cross-check: Preble's published linear fit for Llama-3-70B on H100, 0.080 ms per token",
		},
	}
}

// ProfileByName returns a built-in profile.
func ProfileByName(name string) (Profile, error) {
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("profile %q: use 8b, 32b or 70b", name)
}

// work is what one step computes.
type work struct {
	prefillTokens int
	// prefillPairs is the sum over prefill chunks of tokens times mean context.
	prefillPairs float64
	decodes      int
	// decodeContext is the sum of the contexts of the decoding sequences.
	decodeContext int
	// loaded is the number of tokens that come from the host tier.
	loaded int
}

func (w *work) addPrefill(computed, tokens int) {
	w.prefillTokens += tokens
	w.prefillPairs += float64(tokens) * (float64(computed) + float64(tokens)/2)
}

func (w *work) addDecode(context int) {
	w.decodes++
	w.decodeContext += context
}

// duration returns the time the step takes. The conversions around products
// keep compilers from fusing multiply and add, which would make results
// differ between architectures.
func (p Profile) duration(w work) time.Duration {
	ms := p.Base
	ms += float64(p.PerPrefillToken * float64(w.prefillTokens))
	ms += float64(p.PerPrefillPair * w.prefillPairs)
	ms += float64(p.PerDecodeContext * float64(w.decodeContext))
	ms += float64(p.PerLoadedToken * float64(w.loaded))
	return time.Duration(ms * float64(time.Millisecond))
}
