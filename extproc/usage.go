package extproc

import (
	"bytes"
	"strings"

	"github.com/tidwall/gjson"
)

// Bounds of what is kept of an answer while its usage is looked for.
const (
	// maxEvent is the longest line of a streamed answer that is read. A longer
	// one is skipped.
	maxEvent = 64 << 10
	// maxAnswer is the longest answer in one piece that is read.
	maxAnswer = 1 << 20
)

// usage is what an engine reports about a prompt.
type usage struct {
	// prompt is the prompt's length in tokens, cached how many of them the
	// engine had in its cache, -1 if it does not say.
	prompt, cached int64
}

// usageReader looks for the usage in the body of an answer, which comes in
// pieces that begin and end anywhere. The zero value is ready for an answer in
// one piece.
type usageReader struct {
	// events: the answer is a stream of server-sent events (WHATWG HTML
	// standard, section 9.2), else it is one JSON value.
	events bool
	// carry is what has come of an unfinished line or value; skip says that it
	// is longer than what is kept.
	carry []byte
	skip  bool
	found bool
	last  usage
}

// write takes the next piece. It keeps nothing of it.
func (u *usageReader) write(piece []byte) {
	for u.events {
		line, rest, ended := bytes.Cut(piece, []byte{'\n'})
		if !ended {
			break
		}
		if len(u.carry) > 0 {
			u.keep(line, maxEvent)
			line = u.carry
		}
		if !u.skip {
			u.event(line)
		}
		u.carry, u.skip = u.carry[:0], false
		piece = rest
	}
	if u.events {
		u.keep(piece, maxEvent)
	} else {
		u.keep(piece, maxAnswer)
	}
}

func (u *usageReader) keep(piece []byte, most int) {
	if u.skip || len(u.carry)+len(piece) > most {
		u.skip, u.carry = true, u.carry[:0]
		return
	}
	u.carry = append(u.carry, piece...)
}

// event reads one line of an event stream.
func (u *usageReader) event(line []byte) {
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if ok && bytes.Contains(data, []byte(`"usage"`)) {
		u.read(data)
	}
}

// end takes the end of the answer and returns the last usage in it.
func (u *usageReader) end() (usage, bool) {
	if !u.events && !u.skip {
		u.read(u.carry)
	}
	return u.last, u.found
}

// read looks for the usage of an answer or event of any of the APIs: OpenAI's
// chat and completions have it at the top, its responses below response, and
// Anthropic's messages below message in the first event. The counts are named
// differently too, and Anthropic's do not include the cached ones in the
// prompt's.
func (u *usageReader) read(data []byte) {
	for _, at := range [...]string{"usage", "response.usage", "message.usage"} {
		v := gjson.GetBytes(data, at)
		if !v.IsObject() {
			continue
		}
		if n := v.Get("prompt_tokens"); n.Exists() {
			u.set(n.Int(), v.Get("prompt_tokens_details.cached_tokens"))
		} else if cached := v.Get("cache_read_input_tokens"); cached.Exists() {
			u.set(v.Get("input_tokens").Int()+cached.Int()+v.Get("cache_creation_input_tokens").Int(), cached)
		} else if n := v.Get("input_tokens"); n.Exists() {
			u.set(n.Int(), v.Get("input_tokens_details.cached_tokens"))
		}
		return
	}
}

func (u *usageReader) set(prompt int64, cached gjson.Result) {
	u.found, u.last = true, usage{prompt: max(0, prompt), cached: -1}
	if cached.Type == gjson.Number {
		u.last.cached = max(0, cached.Int())
	}
}

// newUsageReader returns a reader for an answer with these headers, nil if its
// usage cannot be read.
func newUsageReader(headers []header) *usageReader {
	var status, contentType, encoding string
	first := func(dst *string, value []byte) {
		if *dst == "" {
			*dst = string(value)
		}
	}
	for _, kv := range headers {
		switch strings.ToLower(string(kv.name)) {
		case ":status":
			first(&status, kv.value)
		case "content-type":
			first(&contentType, kv.value)
		case "content-encoding":
			first(&encoding, kv.value)
		}
	}
	media, _, _ := strings.Cut(contentType, ";")
	switch {
	case status != "200" || encoding != "" && !strings.EqualFold(encoding, "identity"):
		return nil
	case strings.EqualFold(strings.TrimSpace(media), "text/event-stream"):
		return &usageReader{events: true}
	case strings.EqualFold(strings.TrimSpace(media), "application/json"):
		return &usageReader{}
	}
	return nil
}

// sampler picks a share of all requests, evenly spread: each is a step of the
// golden ratio around a circle, and a share of the circle is picked.
type sampler struct {
	below uint64
	all   bool
}

func newSampler(share float64) sampler {
	if share >= 1 {
		return sampler{all: true}
	}
	return sampler{below: uint64(share * (1 << 64))}
}

// picks tells whether the n-th request is picked.
func (s sampler) picks(n uint64) bool { return s.all || n*0x9E3779B97F4A7C15 < s.below }
