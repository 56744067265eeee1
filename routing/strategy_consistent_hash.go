package routing

import "github.com/zeebo/xxh3"

// strategyConsistentHash sends prompts that begin alike to the same endpoint,
// without knowing any cache.
//
// The key is the first 1,024 bytes of the prompt's text or messages, or its
// first 256 token ids; of a request without a prompt the session, else the
// user.
//
// Formula, source and bound: as session-affinity. Missing data: a request
// without any key goes to the fewest requests in flight.
func strategyConsistentHash() strategy {
	return strategy{
		counts: true,
		name:   "consistent-hash", doc: "the endpoint of the prompt's beginning, unless it is overloaded",
		formula: "rendezvous hash; + 1 + excess over 1.25 × mean in flight", unit: UnitHash,
		needs: "a prompt, x-session-id or user", missing: "none of them: fewest requests in flight",
		prepare: func(sc *scene, cands []Candidate) Reason {
			key, ok := promptKey(sc.req)
			if !ok {
				return ReasonNoKey
			}
			sc.prepareHash(key, cands)
			return ReasonNone
		},
		cost:   costHash,
		reason: ReasonAffinity,
	}
}

const (
	keyBytes  = 1024
	keyTokens = 256
)

// promptKey returns the key of a request under consistent-hash. Requests for
// different models need not differ: their candidates do.
func promptKey(r *Request) (uint64, bool) {
	p := &r.Prompt
	switch {
	case p.Kind == PromptText && p.Text != "":
		return xxh3.HashString(p.Text[:min(len(p.Text), keyBytes)]), true
	case p.Kind == PromptChat && len(p.Messages) > 0:
		return xxh3.Hash(p.Messages[:min(len(p.Messages), keyBytes)]), true
	case p.Kind == PromptTokens && len(p.Tokens) > 0:
		h := uint64(0)
		for _, t := range p.Tokens[:min(len(p.Tokens), keyTokens)] {
			h = mix64(h ^ uint64(t))
		}
		return h, true
	case r.Session != "":
		return xxh3.HashString(r.Session), true
	case r.User != "":
		return xxh3.HashString(r.User), true
	}
	return 0, false
}

// mix64 is the finalizer of MurmurHash3: a bijection that spreads every bit.
func mix64(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
