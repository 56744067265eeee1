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
// # Strategies that decide later
//
// [Router.Route] need not resolve the promise: a strategy may keep the [Context]
// and call [Context.SetTarget] or [Context.SetError] when it knows more, from
// any goroutine. Four things are asked of it. It says before Route returns until
// when it will have resolved it ([Context.Until]), and does so. It reserves on
// the target before SetTarget, which gives the reservation back if the request
// has ended in between. It watches the request's own context, so that nothing
// stays behind of a request that is gone. And its decision is one of then: load,
// health and endpoints are read again. The strategy queue is the example: its
// requests wait while every endpoint runs as many as it may, [Router.Run]
// resolves them as requests end, by turns over the users, and those that
// find no room in time are told when to try again.
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
