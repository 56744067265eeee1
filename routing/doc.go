// Package routing decides which endpoint a request goes to. It knows neither
// Envoy nor sockets: a front end hands it a [Context], the promise of a
// decision, and a strategy resolves that promise.
//
// # Order of a decision
//
//  1. Candidates: the endpoints that list the model and are not failing their
//     health probe, restricted to the request's subset and external-filter. A
//     model that no endpoint lists is an error once the model lists of all
//     endpoints are known; before that every endpoint is a candidate.
//     Endpoints that failed requests a short time ago are left out unless
//     there are no others.
//  2. The strategy: a lock before the routing-strategy header before a profile
//     before the configured one. An unknown name is an error; it never falls
//     back in silence.
//  3. Tokens, for strategies that look at the prompt: from the request itself
//     or from the [Tokenizer].
//  4. Match: the chain of block hashes is looked up in the [Index], once for
//     each block size that candidates have reported.
//  5. Select and reserve, in one step under the router's lock: load is read,
//     every candidate gets a cost in an absolute unit, the smallest wins, its
//     in-flight count is raised. No two requests see the same idle endpoint,
//     and none is blind to a prompt that was placed a moment before it.
//  6. Predict: an index that is a [Predictor] is told which blocks the request
//     will leave, and where it went in the end.
//
// # Strategies
//
// A strategy is one file, strategy_NAME.go, whose comment has its formula, its
// source and what happens where data is missing, and one line of the table in
// strategy.go. An endpoint whose data is missing counts as the worst known
// one; if it is missing for all, the fewest requests in flight decide, with a
// [Reason] that says so. Costs are in seconds, or have a price in seconds, so
// that blends add up figures that mean something.
//
// # What happens when something is missing
//
// Nothing that is missing fails a request. Without tokens, events or a match
// the candidate that answers soonest by its load is chosen, and the [Reason] says why: it is
// counted, shown in the response and in [Decision]. Only three things are
// errors: a name that does not exist (strategy or model), a request that
// cannot be read, and a model none of whose endpoints is ready.
//
// # What is promised about matched tokens
//
// MatchedTokens is a lower bound: it counts the whole blocks, from the start
// of the prompt without a gap, that every data-parallel rank of the endpoint
// holds as far as its events say, and never the block of the last token, which
// engines compute anew.
package routing
