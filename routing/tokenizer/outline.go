package tokenizer

import (
	"bytes"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/routing"
)

// segment is one message of a chat, or one chunk of a text.
type segment struct {
	// end names the prompt up to and including this segment.
	end key
	// bytes is how much of the request that is.
	bytes int
	// shape is what the chat template can branch on without reading the
	// content: the role, the members, the kinds of their values.
	shape uint64
	// shapes is the set of shapes up to here, and that of those since the user
	// last spoke, both without their number and order. Templates tell the two
	// apart: many show reasoning only until the user speaks again (Qwen3's chat
	// template looks for the last query).
	shapes uint64
}

// outline is what the caches see of a prompt: its options and a chain of
// segments. It holds no text but heads.
type outline struct {
	kind routing.PromptKind
	seed uint64
	// start names the options alone: everything that shapes the prompt besides
	// its segments. options is the part of them that a template can branch on.
	start   key
	options uint64
	segs    []segment
	// bytes is the size of the prompt in the request.
	bytes int
	// last is the head of the last message, if nothing of that message but its
	// role and content can appear in the prompt.
	last   head
	hasTip bool
	// lastWords counts words in the beginning of the last message's content.
	lastWords int
	// heads are those of the text after each boundary, for texts only, filled
	// in by own.
	heads []head

	lastBuf  [headBytes]byte
	distinct []uint64 // shapes, see segment.shapes
	turn     []uint64 // those since the user last spoke
}

// read makes o the outline of p and reports whether there is one.
func (o *outline) read(p *routing.Prompt, seed uint64) bool {
	o.kind, o.seed, o.segs, o.hasTip, o.heads = p.Kind, seed, o.segs[:0], false, o.heads[:0]
	o.distinct, o.turn = o.distinct[:0], o.turn[:0]
	var flags [4]byte
	flags[0] = byte(p.Kind)
	for i, f := range [...]*bool{p.AddSpecialTokens, p.AddGenerationPrompt, p.ContinueFinalMessage} {
		if f != nil {
			flags[i+1] = 1
			if *f {
				flags[i+1] = 2
			}
		}
	}
	o.start = hash(flags[:], seed)
	for i := range p.Options {
		o.start = o.start.thenString(p.Options[i].Name, seed).then(p.Options[i].Value, seed)
	}
	o.options = o.start.lo
	switch p.Kind {
	case routing.PromptText:
		return o.readText(p.Text)
	case routing.PromptChat:
		o.start = o.start.then(p.Tools, seed).then(p.TemplateKwargs, seed)
		o.options ^= xxh3.HashSeed(p.TemplateKwargs, seed)
		if len(p.Tools) > 0 {
			o.options++
		}
		o.bytes = len(p.Tools)
		return o.readChat(p.Messages)
	}
	return false
}

// end names the whole prompt.
func (o *outline) end() key { return o.segs[len(o.segs)-1].end }

// Boundaries of a text lie firstBoundary bytes apart at first and farther with
// their distance from the start, so that a text has few of them and at most a
// fifth of it lies behind the last one.
const firstBoundary = 512

func nextBoundary(at int) int {
	return at + max(firstBoundary, at/5/firstBoundary*firstBoundary)
}

func (o *outline) readText(text string) bool {
	end, at := o.start, 0
	for {
		next := nextBoundary(at)
		if next >= len(text) {
			break
		}
		end = end.thenString(text[at:next], o.seed)
		at = next
		o.segs = append(o.segs, segment{end: end, bytes: at})
	}
	end = end.thenString(text[at:], o.seed)
	o.segs = append(o.segs, segment{end: end, bytes: len(text)})
	o.bytes = len(text)
	return true
}

// boundary returns the name and the position of boundary i of a text; 0 is its
// start.
func (o *outline) boundary(i int) (key, int) {
	if i == 0 {
		return o.start, 0
	}
	return o.segs[i-1].end, o.segs[i-1].bytes
}

// own copies what is needed later of the text that o was read from.
func (o *outline) own(p *routing.Prompt) {
	if p.Kind != routing.PromptText {
		return
	}
	o.heads = slices.Grow(o.heads, len(o.segs))[:len(o.segs)]
	for i := range o.segs {
		_, at := o.boundary(i)
		rest := p.Text[at:]
		n := min(len(rest), headBytes)
		o.heads[i] = head{text: append(o.heads[i].text[:0], rest[:n]...)}
	}
}

// readChat reads a JSON array of messages. It reports false for what is no
// such array; the tokenizer will say what it thinks of it.
func (o *outline) readChat(messages []byte) bool {
	w := walker{src: messages}
	end := o.start
	var tip []byte
	if !w.open('[') {
		return false
	}
	for w.element(']') {
		from := w.pos
		var m message
		if !w.message(&m) {
			return false
		}
		raw := messages[from:w.pos]
		shape := m.shape ^ xxh3.HashSeed(m.role, o.seed)*3
		if bytes.Contains(raw, []byte("think>")) || bytes.Contains(raw, []byte("THINK]")) {
			// Templates cut the thinking out of past answers.
			shape ^= 0x5bd1e9955bd1e995
		}
		end = end.then(raw, o.seed)
		if string(m.role) == `"user"` {
			o.turn = o.turn[:0]
		}
		if !slices.Contains(o.distinct, shape) {
			o.distinct = append(o.distinct, shape)
		}
		if !slices.Contains(o.turn, shape) {
			o.turn = append(o.turn, shape)
		}
		var set uint64
		for _, s := range o.distinct {
			set += s * 0x9E3779B97F4A7C15
		}
		for _, s := range o.turn {
			set += s * 0xC2B2AE3D27D4EB4F
		}
		o.segs = append(o.segs, segment{end: end, bytes: o.bytes + w.pos, shape: shape, shapes: set})
		o.hasTip = m.members == 2 && m.role != nil && m.content != nil
		tip = m.content
	}
	o.last = decodeHead(o.lastBuf[:0], tip)
	o.lastWords = words(o.last.text)
	o.bytes += len(messages)
	return !w.bad && len(o.segs) > 0
}

// transition names how a prompt that ended at segment i goes on to become o:
// all that a chat template can branch on in it, less the text. What a template
// does to one such pair of prompts it does to another.
func (o *outline) transition(i int) uint64 {
	h := o.options
	if o.kind != routing.PromptChat {
		return h
	}
	mix := func(n uint64) { h = (h ^ n) * 0x9FB21C651E98DF25; h ^= h >> 32 }
	mix(o.segs[i].shapes)
	mix(o.segs[i].shape)
	for _, s := range o.segs[i+1:] {
		mix(s.shape)
	}
	return h
}
