package routing

import (
	"fmt"
	"time"
)

// Reason says why a request was routed as it was, or why it was not. It is at
// once the metric label, the log field, the word in the response header and,
// for errors, what the HTTP status follows from.
type Reason uint8

// Reasons of a target.
const (
	// ReasonNone: not decided.
	ReasonNone Reason = iota
	// ReasonPrefix: the endpoint holds the longest prefix of the prompt.
	ReasonPrefix
	// ReasonLoad: the least loaded endpoint, by the strategy's own rule.
	ReasonLoad
	// ReasonRandom: drawn at random, by the strategy's own rule.
	ReasonRandom
	// ReasonCold: no candidate holds any of the prompt; least loaded.
	ReasonCold
	// ReasonShort: the prompt is shorter than one block; least loaded.
	ReasonShort
	// ReasonNoPrompt: the request has no prompt that can be tokenized; least
	// loaded.
	ReasonNoPrompt
	// ReasonNoEvents: no candidate has reported any block yet; least loaded.
	ReasonNoEvents
	// ReasonTokenizerDown: no tokenizer answered; least loaded.
	ReasonTokenizerDown
	// ReasonTokenizerTimeout: the tokenizer's time budget ran out; least loaded.
	ReasonTokenizerTimeout
	// ReasonTokenizerRefused: the tokenizer refused the prompt; least loaded,
	// and the engine will say what is wrong with it.
	ReasonTokenizerRefused
	// ReasonTokenizerForm: the tokenizers have no form for such a prompt; least
	// loaded.
	ReasonTokenizerForm
	// ReasonTurn: the endpoint whose turn it is.
	ReasonTurn
	// ReasonAffinity: the endpoint of the request's key.
	ReasonAffinity
	// ReasonBlend: the best by several strategies at once.
	ReasonBlend
	// ReasonSpill: another candidate holds more of the prompt, and it would take
	// longer or cost others more.
	ReasonSpill
	// ReasonNoKey: the request has nothing that the strategy could hash; fewest
	// requests in flight.
	ReasonNoKey
	// ReasonMetricMissing: the strategy's metric, or that of a part of the
	// blend, is known and fresh for no candidate; fewest requests in flight, or
	// the other parts.
	ReasonMetricMissing
	// ReasonQueued: the request has waited, and the endpoint had room first.
	ReasonQueued
	// ReasonPromptOptions: the request has options that shape the prompt and
	// that no tokenizer can be told of; least loaded.
	ReasonPromptOptions
)

// Reasons of an [Error].
const (
	// ReasonBadRequest: the request cannot be understood.
	ReasonBadRequest Reason = iota + 64
	// ReasonUnknownStrategy: the routing-strategy header names no strategy.
	ReasonUnknownStrategy
	// ReasonModelNotFound: no endpoint lists the model.
	ReasonModelNotFound
	// ReasonNoEndpoint: no endpoint that serves the model is ready.
	ReasonNoEndpoint
	// ReasonTooLarge: the body is larger than the configured limit.
	ReasonTooLarge
	// ReasonTimeout: the decision's own deadline passed.
	ReasonTimeout
	// ReasonCanceled: the request ended before it was decided.
	ReasonCanceled
	// ReasonUnsupported: the body is in an encoding that cannot be read.
	ReasonUnsupported
	// ReasonQueueFull: too many requests wait for the model already.
	ReasonQueueFull
	// ReasonQueueTimeout: no endpoint had room within the queue's deadline.
	ReasonQueueTimeout
)

var reasonNames = map[Reason]string{
	ReasonNone:             "none",
	ReasonPrefix:           "prefix",
	ReasonLoad:             "load",
	ReasonRandom:           "random",
	ReasonCold:             "cold",
	ReasonShort:            "short_prompt",
	ReasonNoPrompt:         "no_prompt",
	ReasonNoEvents:         "no_events",
	ReasonTokenizerDown:    "tokenizer_unavailable",
	ReasonTokenizerTimeout: "tokenizer_timeout",
	ReasonTokenizerRefused: "tokenizer_refused",
	ReasonTokenizerForm:    "tokenizer_form",
	ReasonTurn:             "turn",
	ReasonAffinity:         "affinity",
	ReasonBlend:            "blend",
	ReasonSpill:            "spill",
	ReasonNoKey:            "no_key",
	ReasonMetricMissing:    "metric_missing",
	ReasonBadRequest:       "bad_request",
	ReasonUnknownStrategy:  "unknown_strategy",
	ReasonModelNotFound:    "model_not_found",
	ReasonNoEndpoint:       "no_ready_endpoint",
	ReasonTooLarge:         "body_too_large",
	ReasonTimeout:          "timeout",
	ReasonCanceled:         "canceled",
	ReasonUnsupported:      "unsupported_encoding",
	ReasonQueued:           "queued",
	ReasonPromptOptions:    "prompt_options",
	ReasonQueueFull:        "queue_full",
	ReasonQueueTimeout:     "queue_timeout",
}

// Reasons returns every reason, in numeric order.
func Reasons() []Reason {
	var all []Reason
	for r := range Reason(255) {
		if _, ok := reasonNames[r]; ok {
			all = append(all, r)
		}
	}
	return all
}

// String returns the stable name, a metric label value.
func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

// Degraded tells whether the decision was made with less knowledge than its
// strategy wants.
func (r Reason) Degraded() bool {
	switch r {
	case ReasonNoEvents, ReasonTokenizerDown, ReasonTokenizerTimeout, ReasonTokenizerRefused, ReasonTokenizerForm, ReasonPromptOptions, ReasonNoKey, ReasonMetricMissing:
		return true
	}
	return false
}

// Error is why a request gets no target.
type Error struct {
	Reason Reason
	// Message is for the client: what is wrong and how to mend it.
	Message string
	// Param names the request field at fault, empty if none is.
	Param string
	// RetryAfter is when it is worth to try again, 0 if that is not known. The
	// client is told in whole seconds.
	RetryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string { return e.Reason.String() + ": " + e.Message }
