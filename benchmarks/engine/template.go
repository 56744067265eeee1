package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Message is one message of a chat.
type Message struct {
	Role string `json:"role"`
	// Content is a string, or an array of {"type":"text","text":…} parts, or
	// null.
	Content json.RawMessage `json:"content"`
	// ToolCalls and ToolCallID are rendered as they come.
	ToolCalls  json.RawMessage `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
}

// Chat is what the chat template renders.
type Chat struct {
	Messages []Message
	// Tools is the request's "tools" array, nil if it has none.
	Tools json.RawMessage
	// AddGenerationPrompt ends the prompt with the head of the answer.
	AddGenerationPrompt bool
	// ContinueFinalMessage leaves the last message open instead.
	ContinueFinalMessage bool
}

// Render renders a chat in the manner of ChatML, after a BOS:
//
//	<|begin_of_text|><|im_start|>role\ncontent<|im_end|>\n…<|im_start|>assistant\n
//
// Tools come first, in a system message of their own, as compact JSON. The
// template is prefix-stable: the rendering of a chat with its answer appended
// as an assistant message extends the prompt and the answer.
func (c Chat) Render() (string, error) {
	if len(c.Messages) == 0 {
		return "", errors.New("messages: empty: at least one message is needed")
	}
	if c.AddGenerationPrompt && c.ContinueFinalMessage {
		return "", errors.New("add_generation_prompt and continue_final_message: both true: set one to false")
	}
	var b strings.Builder
	b.WriteString(textBOS)
	if tools := compact(c.Tools); tools != "" && tools != "[]" {
		b.WriteString(textTurnStart + "system\n# Tools\n" + tools + textTurnEnd + "\n")
	}
	for i, m := range c.Messages {
		if m.Role == "" {
			return "", fmt.Errorf("messages[%d].role: missing", i)
		}
		text, err := m.text()
		if err != nil {
			return "", fmt.Errorf("messages[%d].content: %w", i, err)
		}
		b.WriteString(textTurnStart + m.Role + "\n" + text)
		if calls := compact(m.ToolCalls); calls != "" {
			b.WriteString("\n# Calls\n" + calls)
		}
		if m.ToolCallID != "" {
			b.WriteString("\n# Answers " + m.ToolCallID)
		}
		if c.ContinueFinalMessage && i == len(c.Messages)-1 {
			break
		}
		b.WriteString(textTurnEnd + "\n")
	}
	if c.AddGenerationPrompt {
		b.WriteString(textTurnStart + "assistant\n")
	}
	return b.String(), nil
}

// text returns the content as plain text; text parts are joined by newlines.
func (m Message) text() (string, error) {
	raw := bytes.TrimSpace(m.Content)
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "", nil
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case raw[0] != '[':
		return "", fmt.Errorf("%.20s: use a string or an array of parts", raw)
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", err
	}
	texts := make([]string, 0, len(parts))
	for i, p := range parts {
		if p.Type != "text" && p.Type != "input_text" {
			return "", fmt.Errorf("part %d: type %q: only text is supported", i, p.Type)
		}
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "\n"), nil
}

// compact returns JSON without insignificant space, "" for null or nothing.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil || b.String() == "null" {
		return ""
	}
	return b.String()
}
