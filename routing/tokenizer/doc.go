// Package tokenizer knows the tokens of prompts, so that decisions rarely wait
// for a tokenizer: it remembers what prompts began with, and asks remote
// tokenizers for the rest.
//
// # Who is asked
//
// Any server with vLLM's /tokenize or render endpoints (vLLM documentation,
// "OpenAI-Compatible Server") or SGLang's /tokenize, by default the engines
// themselves. The ids must be those that the engine computes for the same
// request, or no block matches. So the request's own fields that shape the
// prompt are forwarded as they are: messages, tools, chat_template_kwargs,
// add_generation_prompt, continue_final_message and add_special_tokens. A
// field that the client left out is left out here too, because the tokenizer
// has the engine's defaults: special tokens are added to a completion prompt
// and not to a chat, whose template brings its own.
//
// Of the further options that shape a prompt, /tokenize has chat_template,
// media_io_kwargs and mm_processor_kwargs, and the render endpoints have also
// documents, reasoning_effort, tool_choice and response_format. A prompt with
// one that the configured API cannot be told of, as with truncate_prompt_tokens,
// is not tokenized, and routed by load. Two are left out instead where the API
// is /tokenize: response_format, and a tool_choice that demands a call. The
// chat templates of vLLM are not given them. It has a renderer of its own for
// Kimi K3 that shows them to the model: use the render endpoints there, or such
// requests are credited with more than their engines hold.
//
// Only the bodies of /v1/completions and /v1/chat/completions are read for a
// prompt. vLLM makes chat messages of those of /v1/responses and /v1/messages
// by rules that its documentation does not give, that differ between releases
// and, for gpt-oss, between models: what /tokenize answers for messages that we
// made would not be known to be the engine's prompt. They are routed by load.
//
// Servers that tokenize a few fixed prompts alike are taken for one tokenizer
// with one chat template. What is learned from one kind of server is used for
// that kind only, so a rolling upgrade that brings another template mixes
// nothing. They are examined again at an interval: a template may also change
// by itself, with the date.
//
// # What is remembered
//
// Content hashes of blocks, about half a byte a token; no text but the first
// 96 bytes of a continuation, and no ids but a prompt's last few.
//
//   - L0: a prompt that was tokenized, found by a hash of all of it.
//   - L1: the beginning of a prompt, in two ways. Where a tokenized prompt
//     ended: the next turn of a chat continues there. And at a fork, where
//     prompts that began alike went on differently, as chats do after a common
//     system prompt: what all of them had in common, less what text they share
//     behind the fork.
//
// Texts have forks at boundaries some hundred bytes apart, farther from each
// other the farther from the start.
//
// # Why that claims too little and not too much
//
// That a prompt's tokens are a prefix of its continuation's is not given: some
// templates move the system prompt into the last user message, some drop past
// reasoning, and a tokenizer may merge the end with what follows. So it is
// learned for each kind of continuation: the template, its options, the roles
// and members of the messages before and after, whatever a template can branch
// on without reading the content. Three continuations must have kept their
// tokens, but for the last 8 at most, before others of their kind are believed
// to, and their prompt must have ended in a message too long to be moved
// unnoticed. The last 8 tokens, and those that any of these continuations
// lost, are never claimed.
//
// Every claim is checked when the prompt has been tokenized behind its
// decision. A kind of continuation that breaks its promise is no longer
// believed until four times as many have kept it. This is the one way to claim
// too much: a template that treats two chats of one kind differently, because
// of their text or their number of messages, is found out by the first chat
// that it happens to.
//
// # When a decision waits
//
// If nothing of its prompt is known, or if more than max_unseen_tokens,
// estimated, follow what is known: a pasted document may be cached somewhere.
// It waits for the budget at most. A tokenizer that does not answer in time
// costs the request what is not remembered of its cache affinity and nothing
// else: the decision falls back to L1's lower bound, then to load.
package tokenizer
