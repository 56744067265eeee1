package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/tidwall/gjson"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// appendBody appends the /tokenize request for r's prompt: the completion form
// for text, the chat form for messages.
func appendBody(dst []byte, r *routing.Request) []byte {
	dst = append(dst, '{')
	if r.Model != "" {
		dst = appendField(dst, "model", quote(r.Model))
	}
	p := &r.Prompt
	if p.Kind == routing.PromptText {
		dst = appendField(dst, "prompt", quote(p.Text))
	} else {
		dst = appendField(dst, "messages", p.Messages)
		dst = appendField(dst, "tools", p.Tools)
		dst = appendField(dst, "chat_template_kwargs", p.TemplateKwargs)
		dst = appendBool(dst, "add_generation_prompt", p.AddGenerationPrompt)
		dst = appendBool(dst, "continue_final_message", p.ContinueFinalMessage)
	}
	dst = appendBool(dst, "add_special_tokens", p.AddSpecialTokens)
	return append(dst, '}')
}

func appendField(dst []byte, name string, value []byte) []byte {
	if value == nil {
		return dst
	}
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':')
	return append(dst, value...)
}

func appendBool(dst []byte, name string, value *bool) []byte {
	if value == nil {
		return dst
	}
	return appendField(dst, name, strconv.AppendBool(nil, *value))
}

// quote returns s as a JSON string. Go strings always have one.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("tokenizer: a string did not marshal: " + err.Error())
	}
	return b
}

var errNotAnAnswer = errors.New("the answer is not a JSON object with an array tokens")

// parseAnswer reads {"count": N, "tokens": [ids]} and checks that the two
// agree: ids that are wrong would match another prompt's blocks.
func parseAnswer(answer []byte) ([]kvindex.TokenID, error) {
	if !gjson.ValidBytes(answer) {
		return nil, errNotAnAnswer
	}
	fields := gjson.GetManyBytes(answer, "tokens", "count")
	list, count := fields[0], fields[1]
	if !list.IsArray() {
		return nil, errNotAnAnswer
	}
	tokens, err := parseIDs(list.Raw, int(max(0, min(count.Int(), int64(len(list.Raw))))))
	if err != nil {
		return nil, err
	}
	if count.Exists() && count.Int() != int64(len(tokens)) {
		return nil, fmt.Errorf("the answer counts %d tokens and lists %d", count.Int(), len(tokens))
	}
	return tokens, nil
}

// parseIDs reads a valid JSON array of non-negative integers below 2^32.
func parseIDs(raw string, hint int) ([]kvindex.TokenID, error) {
	tokens := make([]kvindex.TokenID, 0, hint)
	var id uint64
	digits := 0
	for i := 1; i < len(raw); i++ {
		switch ch := raw[i]; {
		case ch >= '0' && ch <= '9':
			if id = id*10 + uint64(ch-'0'); id > math.MaxUint32 {
				return nil, fmt.Errorf("token %d is above 2^32", len(tokens))
			}
			digits++
		case ch == ',' || ch == ']':
			if digits > 0 {
				tokens = append(tokens, kvindex.TokenID(id))
			}
			id, digits = 0, 0
		case ch == ' ' || ch == '\n' || ch == '\t' || ch == '\r':
		default:
			return nil, fmt.Errorf("token %d is not a non-negative integer", len(tokens))
		}
	}
	return tokens, nil
}
