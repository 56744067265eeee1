package extproc

import (
	"bytes"
	"fmt"
	"math"
	"strings"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// api is what a path's request body holds.
type api uint8

const (
	// apiOther: nothing that we read. Routed by load.
	apiOther api = iota
	// apiModel: a JSON object with a model.
	apiModel
	// apiCompletion: a JSON object with a model and a prompt.
	apiCompletion
	// apiChat: a JSON object with a model and messages.
	apiChat
	// apiForm: multipart/form-data with a field model.
	apiForm
)

// paths is the one list of the paths whose POST bodies are read. Any other
// path passes through.
var paths = map[string]api{
	"/v1/chat/completions":     apiChat,
	"/v1/completions":          apiCompletion,
	"/v1/responses":            apiModel,
	"/v1/messages":             apiModel,
	"/v1/embeddings":           apiModel,
	"/v1/rerank":               apiModel,
	"/v2/rerank":               apiModel,
	"/rerank":                  apiModel,
	"/v1/score":                apiModel,
	"/score":                   apiModel,
	"/classify":                apiModel,
	"/pooling":                 apiModel,
	"/v1/images/generations":   apiModel,
	"/v1/images/edits":         apiForm,
	"/v1/audio/speech":         apiModel,
	"/v1/audio/transcriptions": apiForm,
	"/v1/audio/translations":   apiForm,
}

// apiOf returns what to expect in the body of a request, given the media type
// without its parameters. A missing media type counts as JSON.
func apiOf(method, path, mediaType string) api {
	if method != "POST" {
		return apiOther
	}
	a := paths[path]
	isJSON := mediaType == "" || mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
	switch {
	case a == apiForm && mediaType == "multipart/form-data":
	case a == apiForm, !isJSON:
		// The engine will say what it thinks of it.
		return apiOther
	}
	return a
}

// document is what a body says.
type document struct {
	model  string
	stream bool
	prompt routing.Prompt
}

func badRequest(param, format string, args ...any) *routing.Error {
	return &routing.Error{Reason: routing.ReasonBadRequest, Message: fmt.Sprintf(format, args...), Param: param}
}

// parseJSON reads the body of an API whose bodies are JSON objects. It checks
// the whole body once, in place: what it returns borrows body, which must not
// change as long as any of that is used.
//
// Where a member occurs twice the last one counts, as in the JSON decoders of
// the engines; otherwise a client could show us one model and the engine
// another.
//
// truncated says that body is the beginning of a longer one: then what has not
// arrived is taken as absent. If the prompt has arrived, it is dropped: tools
// and options that change its beginning may have followed.
//
// The ids of a prompt that is an array of them are kept in ids, unless that is
// nil.
func parseJSON(kind api, body []byte, ids *[]kvindex.TokenID, truncated bool) (document, *routing.Error) {
	s := scanner{src: body, ids: ids}
	s.space()
	if s.peek() != '{' {
		return document{}, notAnObject(&s)
	}
	var d document
	var model bool
	var modelFault, fault *routing.Error
	for ok := s.open('}'); ok && s.err == nil; ok = s.more('}') {
		key := s.key()
		if s.err != nil {
			break
		}
		switch string(key) {
		case "model":
			model, modelFault = false, nil
			raw := s.value(1)
			switch {
			case s.err != nil:
			case raw[0] == '"':
				d.model = strings.Clone(unquote(raw))
				model = true
			case raw[0] != 'n':
				modelFault = badRequest("model", "model must be a string, not %s", kindOf(raw))
			}
		case "stream":
			raw := s.value(1)
			d.stream = len(raw) > 0 && raw[0] == 't'
		default:
			if fault != nil && fault.Param == string(key) {
				fault = nil
			}
			if err := d.member(&s, kind, key); err != nil {
				fault = err
			}
		}
	}
	cut := truncated && s.err != nil && s.err.truncated
	if s.err == nil {
		if s.space(); s.pos < len(s.src) {
			s.fail("more text after the JSON object")
		}
	}
	switch {
	case s.err != nil && !cut:
		return document{}, badRequest("", "the request body is not valid JSON: %s", s.err)
	case modelFault != nil:
		return document{}, modelFault
	case fault != nil:
		return document{}, fault
	case !model && !cut:
		return document{}, badRequest("model", "the request names no model; set the member model to the name of a served model")
	case model && d.model == "":
		return document{}, badRequest("model", "model is an empty string; set it to the name of a served model")
	}
	settleOptions(&d.prompt)
	if d.prompt.Kind == routing.PromptNone || cut {
		d.prompt = routing.Prompt{}
	}
	return d, nil
}

func notAnObject(s *scanner) *routing.Error {
	if s.pos == len(s.src) {
		return badRequest("", "the request body is empty; send a JSON object")
	}
	raw := s.value(0)
	if s.err != nil {
		return badRequest("", "the request body is not valid JSON: %s", s.err)
	}
	return badRequest("", "the request body must be a JSON object, not %s", kindOf(raw))
}

// member reads the value of a member other than model.
func (d *document) member(s *scanner, kind api, key []byte) *routing.Error {
	if kind == apiModel {
		s.value(1)
		return nil
	}
	p := &d.prompt
	switch string(key) {
	case "cache_salt":
		p.Salt = ""
		if raw := s.value(1); s.err == nil && raw[0] == '"' {
			p.Salt = unquote(raw)
		}
		return nil
	case "add_special_tokens":
		p.AddSpecialTokens = boolean(s)
		return nil
	}
	switch kind {
	case apiCompletion:
		if string(key) == "prompt" {
			return readPrompt(p, s)
		}
	case apiChat:
		switch string(key) {
		case "messages":
			return readMessages(p, s)
		case "tools":
			p.Tools = present(s.value(1))
			return nil
		case "chat_template_kwargs":
			p.TemplateKwargs = present(s.value(1))
			return nil
		case "add_generation_prompt":
			p.AddGenerationPrompt = boolean(s)
			return nil
		case "continue_final_message":
			p.ContinueFinalMessage = boolean(s)
			return nil
		}
	}
	if name := optionName(kind, key); name != "" {
		readOption(p, s, name)
		return nil
	}
	s.value(1)
	return nil
}

// boolean consumes a value and returns nil unless it is true or false: the
// engine will refuse anything else.
func boolean(s *scanner) *bool {
	raw := s.value(1)
	if s.err != nil || (raw[0] != 't' && raw[0] != 'f') {
		return nil
	}
	v := raw[0] == 't'
	return &v
}

// present returns nil for null and for what could not be read.
func present(raw []byte) []byte {
	if len(raw) == 0 || raw[0] == 'n' {
		return nil
	}
	return raw
}

// readMessages reads the messages of a chat.
func readMessages(p *routing.Prompt, s *scanner) *routing.Error {
	p.Kind, p.Messages, p.Multimodal = routing.PromptNone, nil, false
	if s.peek() != '[' {
		raw := present(s.value(1))
		if raw == nil {
			return nil
		}
		return badRequest("messages", "messages must be an array of messages, not %s", kindOf(raw))
	}
	start := s.pos
	for ok := s.open(']'); ok && s.err == nil; ok = s.more(']') {
		if s.peek() != '{' {
			s.value(2)
			continue
		}
		for ok := s.open('}'); ok && s.err == nil; ok = s.more('}') {
			if key := s.key(); string(key) == "content" && s.peek() == '[' {
				p.Multimodal = !textParts(s) || p.Multimodal
			} else {
				s.value(3)
			}
		}
	}
	if s.err == nil {
		p.Kind, p.Messages = routing.PromptChat, s.src[start:s.pos]
	}
	return nil
}

// textParts consumes the content parts of a message and reports whether all of
// them are text.
func textParts(s *scanner) bool {
	all := true
	for ok := s.open(']'); ok && s.err == nil; ok = s.more(']') {
		if s.peek() != '{' {
			raw := s.value(4)
			all = all && len(raw) > 0 && raw[0] == '"'
			continue
		}
		text := false
		for ok := s.open('}'); ok && s.err == nil; ok = s.more('}') {
			key := s.key()
			if raw := s.value(5); string(key) == "type" {
				text = string(raw) == `"text"` || string(raw) == `"refusal"`
			}
		}
		all = all && text
	}
	return all
}

// readPrompt reads the prompt of a completion: a string, an array of token
// ids, or an array with exactly one of these. Several prompts are no prompt:
// each would match different blocks.
func readPrompt(p *routing.Prompt, s *scanner) *routing.Error {
	p.Kind, p.Text, p.TextJSON, p.Tokens = routing.PromptNone, "", nil, nil
	if tokens := s.tokens(); tokens != nil {
		p.Kind, p.Tokens = routing.PromptTokens, tokens
		return nil
	}
	raw := s.value(1)
	if s.err != nil {
		return nil
	}
	switch raw[0] {
	case '"':
		p.Kind, p.Text, p.TextJSON = routing.PromptText, unquote(raw), raw
		return nil
	case 'n':
		return nil
	case '[':
		return readPromptArray(p, raw)
	}
	return badRequest("prompt", "prompt must be a string, an array of strings, an array of token ids or an array of such arrays, not %s", kindOf(raw))
}

// readPromptArray reads raw, an array of valid JSON.
func readPromptArray(p *routing.Prompt, raw []byte) *routing.Error {
	s := scanner{src: raw}
	if !s.open(']') {
		return nil
	}
	first := s.peek()
	if first != '"' && first != '[' {
		tokens, err := readTokens(raw)
		if err == nil {
			p.Kind, p.Tokens = routing.PromptTokens, tokens
		}
		return err
	}
	// The other elements are the engine's to judge.
	element := s.value(1)
	if s.more(']') {
		return nil
	}
	if first == '"' {
		p.Kind, p.Text, p.TextJSON = routing.PromptText, unquote(element), element
		return nil
	}
	tokens, err := readTokens(element)
	if err == nil && len(tokens) > 0 {
		p.Kind, p.Tokens = routing.PromptTokens, tokens
	}
	return err
}

// readTokens reads raw, an array of valid JSON, as token ids.
func readTokens(raw []byte) ([]kvindex.TokenID, *routing.Error) {
	s := scanner{src: raw}
	if tokens := s.tokens(); tokens != nil {
		return tokens, nil
	}
	if !s.open(']') {
		return nil, nil
	}
	tokens := make([]kvindex.TokenID, 0, bytes.Count(raw, []byte{','})+1)
	for ok := true; ok; ok = s.more(']') {
		v := s.value(1)
		id, valid := tokenID(v)
		if !valid {
			return nil, badRequest("prompt", "prompt: element %d is %s, which is not a token id; use integers from 0 to %d",
				len(tokens), brief(v), uint32(math.MaxUint32))
		}
		tokens = append(tokens, id)
	}
	return tokens, nil
}

func tokenID(raw []byte) (kvindex.TokenID, bool) {
	if len(raw) == 0 || len(raw) > 10 {
		return 0, false
	}
	var n uint64
	for _, c := range raw {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return kvindex.TokenID(n), n <= math.MaxUint32
}

// kindOf names the type of a JSON value for a message.
func kindOf(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// brief returns a value for a message, cut where it is long.
func brief(raw []byte) string {
	const most = 32
	if len(raw) > most {
		return kindOf(raw)
	}
	return string(raw)
}
