package routing

import (
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// PromptKind says in which form a request carries its prompt.
type PromptKind uint8

const (
	// PromptNone: no prompt that a tokenizer could read.
	PromptNone PromptKind = iota
	// PromptText: one string.
	PromptText
	// PromptTokens: token ids.
	PromptTokens
	// PromptChat: chat messages.
	PromptChat
)

// Prompt is the part of a request's body that decides what the engine caches.
// Raw fields are JSON as the client sent it and borrow the body.
type Prompt struct {
	Kind PromptKind
	// Text is the prompt of PromptText, decoded.
	Text string
	// TextJSON is the same as the client sent it, a JSON string with its quotes;
	// nil where the prompt does not come from a request's body.
	TextJSON []byte
	// Tokens are the ids of PromptTokens.
	Tokens []kvindex.TokenID
	// Messages, Tools and TemplateKwargs are the raw JSON values of the fields
	// messages, tools and chat_template_kwargs; nil where absent.
	Messages, Tools, TemplateKwargs []byte
	// AddSpecialTokens, AddGenerationPrompt and ContinueFinalMessage are nil
	// where the client left them to the engine's default.
	AddSpecialTokens, AddGenerationPrompt, ContinueFinalMessage *bool
	// Options are the further members of the request that may shape the prompt,
	// in the order of the request, each name once; nil for most requests. A
	// tokenizer that cannot be told of one that may matter must not be asked: the
	// engine might put something else in front of the model than it answers for,
	// and blocks that the engine does not look for would count as matched.
	Options []PromptOption
	// Multimodal: the messages hold more than text, so token ids alone do not
	// tell two prompts apart.
	Multimodal bool
	// Salt is cache_salt.
	Salt string
}

// PromptOption is a member of a request that may shape the prompt, other than
// those that [Prompt] has fields for.
//
//   - Of chats: chat_template; documents and reasoning_effort, which templates
//     read; tool_choice (where there are tools, and not "auto") and
//     response_format, which some engines show the model; media_io_kwargs and
//     mm_processor_kwargs.
//   - Of completions: suffix, and prompt_embeds, which is a prompt itself.
//   - Of both: truncate_prompt_tokens, which leaves the end or the beginning.
//
// The names are those of the vLLM documentation, "OpenAI-Compatible Server".
type PromptOption struct {
	Name string
	// Value is JSON as the client sent it, not null, and borrows the body.
	Value []byte
}

// Request is what routing needs to know of an HTTP request.
type Request struct {
	// Arrived is when the request's last byte arrived: the "now" of its
	// decision.
	Arrived time.Time
	// ID is the x-request-id, for logs and explanations.
	ID string
	// Path is the request path without its query.
	Path string
	// Model is the body's model field, empty if the request names none.
	Model string
	// Strategy is the strategy or blend asked for by header, empty if none is.
	Strategy string
	// Profile is the config-profile header's value, empty if there is none.
	Profile string
	// Filter is the external-filter header's value, a label selector; empty if
	// there is none.
	Filter string
	// Stream: the answer is streamed, so that its headers say nothing about how
	// far the engine is.
	Stream bool
	Prompt Prompt
	// User is the user header's value, empty if there is none.
	User string
	// Session is the x-session-id header's value, empty if there is none.
	Session string
	// Subset restricts the candidates to these ip:port. nil: no restriction;
	// empty but not nil: nothing is allowed.
	Subset []string
	// BodyBytes is the size of the body as received.
	BodyBytes int
}
