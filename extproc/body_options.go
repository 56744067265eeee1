package extproc

import (
	"slices"

	"github.com/warmpath/warmpath/routing"
)

// optionName returns the name of a member that becomes one of
// [routing.Prompt.Options], "" for any other: what vLLM hands to the chat
// template or applies to the tokens besides the members that
// [routing.Prompt] has fields for (vLLM documentation, "OpenAI-Compatible
// Server", extra parameters of the Chat and Completions APIs). echo, stop and
// the sampling parameters do not change the prompt.
func optionName(kind api, key []byte) string {
	switch string(key) {
	case "truncate_prompt_tokens":
		return "truncate_prompt_tokens"
	case "prompt_embeds":
		if kind == apiCompletion {
			return "prompt_embeds"
		}
	case "suffix":
		if kind == apiCompletion {
			return "suffix"
		}
	}
	if kind != apiChat {
		return ""
	}
	for _, name := range [...]string{
		"chat_template", "documents", "media_io_kwargs", "mm_processor_kwargs", "reasoning_effort", "response_format", "tool_choice",
	} {
		if string(key) == name {
			return name
		}
	}
	return ""
}

// readOption reads the value of an option. One that is null or its own default
// counts as absent.
func readOption(p *routing.Prompt, s *scanner, name string) {
	p.Options = withoutOption(p.Options, name)
	raw := present(s.value(1))
	switch {
	case s.err != nil, raw == nil:
	case name == "tool_choice" && string(raw) == `"auto"`:
	case name == "suffix" && string(raw) == `""`:
	default:
		p.Options = append(p.Options, routing.PromptOption{Name: name, Value: raw})
	}
}

// settleOptions drops the choice among tools where there are none.
func settleOptions(p *routing.Prompt) {
	if p.Tools == nil {
		p.Options = withoutOption(p.Options, "tool_choice")
	}
}

func withoutOption(options []routing.PromptOption, name string) []routing.PromptOption {
	options = slices.DeleteFunc(options, func(o routing.PromptOption) bool { return o.Name == name })
	if len(options) == 0 {
		return nil
	}
	return options
}
