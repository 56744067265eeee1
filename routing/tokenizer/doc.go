// Package tokenizer turns prompts into token ids by asking a remote
// tokenizer: any server with vLLM's /tokenize endpoint (vLLM documentation,
// "OpenAI-Compatible Server", Tokenizer API), by default the engines
// themselves.
//
// The ids must be those that the engine computes for the same request, or no
// block matches. So the request's own fields that shape the prompt are
// forwarded as they are: messages, tools, chat_template_kwargs,
// add_generation_prompt, continue_final_message and add_special_tokens. A
// field that the client left out is left out here too, because the tokenizer
// has the engine's defaults: special tokens are added to a completion prompt
// and not to a chat, whose template brings its own.
//
// A tokenizer that does not answer within the budget costs the request its
// cache affinity and nothing else: the caller routes it by load.
package tokenizer
