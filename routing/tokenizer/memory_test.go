package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// The world of the memory's tests: chat templates and tokenizers of all
// manners, as plain functions.

type chatMessage struct {
	Role      string `json:"role"`
	Content   string `json:"content"`
	Reasoning string `json:"reasoning_content,omitempty"`
}

type template func(messages []chatMessage, tools bool) string

// templates by what they do to a prefix.
var templates = map[string]template{
	"stable": func(ms []chatMessage, tools bool) string {
		s := "<s>"
		if tools {
			s += "tools{}"
		}
		for _, m := range ms {
			s += "<" + m.Role + ">" + m.Content + "</s>"
		}
		return s + "<assistant>"
	},
	"stable, in plain text": func(ms []chatMessage, _ bool) string {
		var s string
		for _, m := range ms {
			s += m.Role + ": " + m.Content + "\n"
		}
		return s + "assistant:"
	},
	"system prompt and tools moved to the last user message": func(ms []chatMessage, tools bool) string {
		var system, s string
		last := 0
		for i, m := range ms {
			if m.Role == "user" {
				last = i
			}
		}
		for i, m := range ms {
			switch m.Role {
			case "system":
				system = m.Content + "\n\n"
			case "user":
				if i == last && tools {
					s += "[TOOLS]{}[/TOOLS]"
				}
				s += "[INST]"
				if i == last {
					s += system
				}
				s += m.Content + "[/INST]"
			default:
				s += m.Content + "</s>"
			}
		}
		return s
	},
	"reasoning dropped once the user speaks again": func(ms []chatMessage, _ bool) string {
		last := 0
		for i, m := range ms {
			if m.Role == "user" {
				last = i
			}
		}
		var s string
		for i, m := range ms {
			s += "<" + m.Role + ">"
			if i > last && m.Reasoning != "" {
				s += "<think>" + m.Reasoning + "</think>"
			}
			s += m.Content + "</s>"
		}
		return s + "<assistant><think>"
	},
	"contents stripped": func(ms []chatMessage, _ bool) string {
		s := "<s>"
		for _, m := range ms {
			s += "<" + m.Role + ">" + strings.TrimSpace(m.Content) + "</s>"
		}
		return s + "<assistant>\n\n"
	},
	"an empty thought before the answer only": func(ms []chatMessage, _ bool) string {
		s := "<s>"
		for _, m := range ms {
			s += "<" + m.Role + ">\n" + m.Content + "</s>"
		}
		return s + "<assistant>\n<think>\n\n</think>\n\n"
	},
	"newest message first": func(ms []chatMessage, _ bool) string {
		var s string
		for _, m := range ms {
			s = m.Role + ":" + m.Content + "\n" + s
		}
		return s
	},
	"the number of messages first": func(ms []chatMessage, _ bool) string {
		s := fmt.Sprint(len(ms), " messages\n")
		for _, m := range ms {
			s += m.Role + ":" + m.Content + "\n"
		}
		return s
	},
}

// splitters cut a text into tokens. The last few tokens of a text may change
// when text is appended.
var splitters = map[string]func(string) []string{
	"characters": func(s string) []string { return strings.Split(s, "") },
	"words": func(s string) []string {
		var out []string
		for len(s) > 0 {
			n := strings.IndexAny(s[1:], " <[\n") + 1
			if n == 0 {
				n = len(s)
			}
			out = append(out, s[:n])
			s = s[n:]
		}
		return out
	},
	// Pieces of four from the left: a boundary inside a piece is no boundary.
	"pieces across everything": func(s string) []string {
		var out []string
		for len(s) > 0 {
			n := min(4, len(s))
			out = append(out, s[:n])
			s = s[n:]
		}
		return out
	},
	// Runs of letters are grouped from the right, so that one more letter
	// changes all groups of the run.
	"runs grouped from the right": func(s string) []string {
		var out []string
		for len(s) > 0 {
			n := 0
			for n < len(s) && n < 18 && s[n] >= 'a' && s[n] <= 'z' {
				n++
			}
			if n == 0 {
				out, s = append(out, s[:1]), s[1:]
				continue
			}
			first := n % 3
			if first > 0 {
				out = append(out, s[:first])
			}
			for i := first; i < n; i += 3 {
				out = append(out, s[i:i+3])
			}
			s = s[n:]
		}
		return out
	},
}

// vocabulary gives every piece an id.
type vocabulary map[string]kvindex.TokenID

func (v vocabulary) ids(pieces []string) []kvindex.TokenID {
	var ids []kvindex.TokenID
	for _, p := range pieces {
		if _, ok := v[p]; !ok {
			v[p] = kvindex.TokenID(len(v))
		}
		ids = append(ids, v[p])
	}
	return ids
}

// student is a memory in that world.
type student struct {
	t      rapid.TB
	memory *memory
	hasher kvindex.Hasher
	sizes  []int
	// claims counts prompts for which something was claimed, wrong those for
	// which too much was.
	claims, wrong int
}

func newStudent(t rapid.TB, sizes ...int) *student {
	return &student{t: t, memory: newMemory(1 << 24), hasher: kvindex.NewHasher(3), sizes: sizes}
}

// see asks the memory about a prompt with the given tokens, checks what it
// claims, and tells it the tokens if teach says so.
func (s *student) see(p *routing.Prompt, ids []kvindex.TokenID, teach bool) {
	s.t.Helper()
	var o outline
	if !o.read(p, 11) {
		s.t.Fatalf("no outline of %s%s", p.Messages, p.Text)
	}
	var r reading
	r.begin(question{hasher: s.hasher, sizes: s.sizes, earlier: s.memory.earlier(key{}, &o, p.Text)})
	r.take(ids)
	answer := r.answered()
	truth := answer.prompt
	if known := s.memory.exact(key{}, &o, s.sizes); known != nil {
		if known.count != truth.count || overclaimed(known.blocks, truth) > 0 {
			s.t.Fatalf("the same prompt had %d tokens, now it has %d", known.count, truth.count)
		}
	}
	var c claim
	s.memory.prefix(key{}, &o, p.Text, s.sizes, &c)
	if c.tokens > 0 {
		s.claims++
		if overclaimed(c.blocks, truth) > 0 || c.tokens > truth.count {
			s.wrong++
		}
	}
	if teach {
		o.own(p)
		s.memory.record(key{}, &o, p.Text, &answer, c.made())
	}
}

func overclaimed(blocks []routing.TokenBlocks, truth *prompt) (n int) {
	for _, b := range blocks {
		n += len(b.Contents) - common(b, truth.blocks)
	}
	return n
}

func chatPrompt(ms []chatMessage, tools bool) *routing.Prompt {
	raw, err := json.Marshal(ms)
	if err != nil {
		panic(err)
	}
	p := &routing.Prompt{Kind: routing.PromptChat, Messages: raw}
	if tools {
		p.Tools = []byte(`[{}]`)
	}
	return p
}

func pick[V any](t *rapid.T, from map[string]V, label string) V {
	names := make([]string, 0, len(from))
	for n := range from {
		names = append(names, n)
	}
	return from[rapid.SampledFrom(sorted(names)).Draw(t, label)]
}

func sorted(names []string) []string {
	for i := range names {
		for j := i; j > 0 && names[j] < names[j-1]; j-- {
			names[j], names[j-1] = names[j-1], names[j]
		}
	}
	return names
}

// content draws a text that shares beginnings with others.
func content(t *rapid.T, label string) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "be", " the", " of all the words that there are in it", "\n", " ", "summarize: ", "é", "zzzzzzzz", "<s>", "x y z w "}), 0, 30).Draw(t, label), "")
}

// Whatever the template and the tokenizer do, no block is claimed that the
// prompt does not have, as long as the template branches on nothing but what
// an outline sees.
func TestMemory_NeverOverclaimsChats(t *testing.T) {
	claims := 0
	rapid.Check(t, func(t *rapid.T) {
		render, split := pick(t, templates, "template"), pick(t, splitters, "tokenizer")
		vocabulary := vocabulary{}
		s := newStudent(t, rapid.SampledFrom([][]int{{2}, {4}, {3, 8}}).Draw(t, "block sizes")...)
		systems := []string{"", content(t, "system"), "You are a helpful assistant. " + content(t, "system")}
		var chats [][]chatMessage
		for range rapid.IntRange(20, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, len(chats)).Draw(t, "chat")
			if i == len(chats) {
				chats = append(chats, nil)
				if system := rapid.SampledFrom(systems).Draw(t, "which"); system != "" {
					chats[i] = append(chats[i], chatMessage{Role: "system", Content: system})
				}
			} else {
				answer := chatMessage{Role: "assistant", Content: content(t, "answer")}
				if rapid.IntRange(0, 3).Draw(t, "reasons") == 0 {
					answer.Reasoning = content(t, "reasoning")
				}
				chats[i] = append(chats[i], answer)
			}
			role := "user"
			if len(chats[i]) > 1 && rapid.IntRange(0, 4).Draw(t, "tool") == 0 {
				role = "tool"
			}
			chats[i] = append(chats[i], chatMessage{Role: role, Content: content(t, "question")})
			tools := i%4 == 3
			ids := vocabulary.ids(split(render(chats[i], tools)))
			s.see(chatPrompt(chats[i], tools), ids, rapid.IntRange(0, 9).Draw(t, "taught") > 0)
			if s.wrong > 0 {
				t.Fatalf("claimed more than the tokens of %q", render(chats[i], tools))
			}
		}
		claims += s.claims
	})
	if claims == 0 {
		t.Error("nothing was ever claimed: the test proves nothing")
	}
}

// The same for texts, which templates do not touch.
func TestMemory_NeverOverclaimsTexts(t *testing.T) {
	claims := 0
	rapid.Check(t, func(t *rapid.T) {
		split := pick(t, splitters, "tokenizer")
		vocabulary := vocabulary{}
		s := newStudent(t, 4)
		// Short cuts are drawn most: without a long beginning in common, few
		// texts share a boundary.
		texts := []string{"", strings.Repeat(content(t, "beginning")+" and so on and on.", 60)}
		for range rapid.IntRange(10, 40).Draw(t, "steps") {
			text := rapid.SampledFrom(texts).Draw(t, "text")
			if rapid.Bool().Draw(t, "goes back") {
				text = text[:rapid.IntRange(0, len(text)).Draw(t, "cut")]
			}
			text += strings.Repeat(content(t, "more")+".", rapid.IntRange(1, 30).Draw(t, "times"))
			texts = append(texts, text)
			s.see(&routing.Prompt{Kind: routing.PromptText, Text: text}, vocabulary.ids(split(text)), true)
			if s.wrong > 0 {
				t.Fatalf("claimed more than the tokens of %q", text)
			}
		}
		claims += s.claims
	})
	if claims == 0 {
		t.Error("nothing was ever claimed: the test proves nothing")
	}
}

// A chat of a stable template is known from its second turn on, and its first
// turn from what others with the same system prompt had in common.
func TestMemory_KnowsStableChats(t *testing.T) {
	s := newStudent(t, 4)
	vocabulary := vocabulary{}
	system := strings.Repeat("You are helpful. ", 30)
	before := 0
	for chat := range 20 {
		ms := []chatMessage{{Role: "system", Content: system}}
		for turn := range 5 {
			ms = append(ms, chatMessage{Role: "user", Content: fmt.Sprintf("%d, %d: what about it, and what about all of the rest of it?", chat, turn)})
			before = s.claims
			s.see(chatPrompt(ms, false), vocabulary.ids(splitters["words"](templates["stable"](ms, false))), true)
			if chat >= 4 && s.claims == before {
				t.Errorf("chat %d, turn %d: nothing was known", chat, turn)
			}
			ms = append(ms, chatMessage{Role: "assistant", Content: fmt.Sprintf("Well, %d and %d.", turn, chat)})
		}
	}
	if s.wrong > 0 {
		t.Errorf("%d claims were wrong", s.wrong)
	}
}

// A template that branches on what no outline sees, here on the length of the
// chat: what was believed is withdrawn, and it takes ever more to believe it
// again.
func TestMemory_WithdrawsWhatIsRefuted(t *testing.T) {
	window := func(ms []chatMessage, _ bool) string {
		return templates["stable"](ms[max(0, len(ms)-16):], false)
	}
	s := newStudent(t, 4)
	vocabulary := vocabulary{}
	const chats, turns = 100, 12
	for chat := range chats {
		var ms []chatMessage
		for turn := range turns {
			ms = append(ms, chatMessage{Role: "user", Content: fmt.Sprintf("%d, %d: what about it? %s", chat, turn, strings.Repeat("x y ", 20))})
			s.see(chatPrompt(ms, false), vocabulary.ids(splitters["words"](window(ms, false))), true)
			ms = append(ms, chatMessage{Role: "assistant", Content: fmt.Sprintf("Well, %d and %d.", turn, chat)})
		}
	}
	t.Logf("%d prompts, %d claims, %d wrong", chats*turns, s.claims, s.wrong)
	if s.wrong == 0 || s.wrong > 6 {
		t.Errorf("%d claims were wrong, want a few and then none", s.wrong)
	}
}

// What the user has spoken after goes on in another way than what is still
// being worked on, for templates that drop reasoning with the next question.
func TestOutline_TellsTurnsApart(t *testing.T) {
	transition := func(past, current string) uint64 {
		ms := []chatMessage{
			{Role: "user"},
			{Role: "assistant", Reasoning: past},
			{Role: "user"},
			{Role: "assistant", Reasoning: current},
			{Role: "tool"},
			{Role: "assistant"},
			{Role: "user", Content: "next"},
		}
		var o outline
		if !o.read(chatPrompt(ms, false), 11) {
			t.Fatal("no outline")
		}
		return o.transition(len(ms) - 2)
	}
	if transition("r", "") == transition("", "r") {
		t.Error("reasoning of a past turn and of this one are the same to it")
	}
	if transition("r", "s") != transition("other", "words") {
		t.Error("it looks at the words")
	}
}
