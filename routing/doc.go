// Package routing decides which endpoint a request goes to. It knows neither
// Envoy nor sockets: a front end hands it a [Context], the promise of a
// decision, and a strategy resolves that promise.
//
// # Order of a decision
//
//  1. The strategy: the one the request names, else the configured one. An
//     unknown name is an error; it never falls back in silence.
//  2. Candidates: the endpoints that list the model and are not failing their
//     health probe, restricted to the request's subset. A model that no
//     endpoint lists is an error once the model lists of all endpoints are
//     known; before that every endpoint is a candidate.
//  3. Tokens, for strategies that look at the prompt: from the request itself
//     or from the [Tokenizer].
//  4. Match: the chain of block hashes is looked up in the [Index], once for
//     each block size that candidates have reported.
//  5. Select and reserve, in one step under the router's lock: load is read,
//     candidates are compared, the winner's in-flight count is raised. No two
//     requests see the same idle endpoint.
//
// # What happens when something is missing
//
// Nothing that is missing fails a request. Without tokens, events or a match
// the least loaded candidate is chosen, and the [Reason] says why: it is
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
