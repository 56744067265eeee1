package routing

import "github.com/zeebo/xxh3"

// strategySessionAffinity keeps the requests of a session on one endpoint.
//
// The key is the x-session-id header, any string up to the proxy's limit: it
// is only hashed, so it says nothing about the endpoint and forging it chooses
// none. Every candidate has a place on the key's own ranking; the first one
// that is not over its bound wins, so a session moves only while its endpoint
// is overloaded or gone, and comes back.
//
// Formula: rendezvous hash of key and endpoint, 0 to 1, + 1 + the excess of
// requests for an endpoint over its bound, 1.25 times the mean of requests in
// flight, rounded up. Source: Thaler and Ravishankar, "Using Name-Based
// Mappings to Increase Hit Rates", 1998; Mirrokni, Thorup and
// Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018. Missing data:
// a request without a key goes to the fewest requests in flight.
func strategySessionAffinity() strategy {
	return strategy{
		counts: true,
		name:   "session-affinity", doc: "the endpoint of the request's x-session-id, unless it is overloaded",
		formula: "rendezvous hash; + 1 + excess over 1.25 × mean in flight", unit: UnitHash,
		needs: "x-session-id header", missing: "no header: fewest requests in flight",
		prepare: func(sc *scene, cands []Candidate) Reason {
			if sc.req.Session == "" {
				return ReasonNoKey
			}
			sc.prepareHash(xxh3.HashString(sc.req.Session), cands)
			return ReasonNone
		},
		cost:   costHash,
		reason: ReasonAffinity,
	}
}
