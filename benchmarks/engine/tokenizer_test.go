package engine

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
	"pgregory.net/rapid"
)

// textGen draws texts that hit the tokenizer's corners.
func textGen() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.OneOf(
			rapid.String(),
			rapid.StringMatching(`[a-z]{1,9}( [a-z]{1,9}){0,3}[.,!?]{0,4}`),
			rapid.StringMatching(`[ \t\n\r]{1,12}`),
			rapid.StringMatching(`[<|>{}":0-9]{1,6}`),
			rapid.SampledFrom([]string{textBOS, textEOS, textTurnStart, textTurnEnd, "<|im_", " able", "The"}),
		), 0, 8).Draw(t, "parts")
		return strings.Join(parts, "")
	})
}

// ends returns where each token of a text ends.
func ends(text string) []int {
	var out []int
	for at := 0; at < len(text); {
		_, n := special(text[at:])
		if n == 0 {
			n = pieceLen(text[at:])
		}
		at += n
		out = append(out, at)
	}
	return out
}

func TestTokensAreStableUnderAppending(t *testing.T) {
	tok := NewTokenizer()
	rapid.Check(t, func(t *rapid.T) {
		a, b := textGen().Draw(t, "a"), textGen().Draw(t, "b")
		short, long := tok.Encode(a, false), tok.Encode(a+b, false)
		if !slices.Equal(short, tok.Encode(a, false)) {
			t.Fatal("not deterministic")
		}
		for i, end := range ends(a) {
			if end <= len(a)-Lookahead && short[i] != long[i] {
				t.Fatalf("token %d, bytes to %d of %d, changes from %d to %d", i, end, len(a), short[i], long[i])
			}
			if short[i] >= TokenTurnEnd+1 {
				t.Fatalf("token id %d is outside the vocabulary", short[i])
			}
		}
	})
}

// What the engine answers tokenizes to the ids it cached, wherever it is
// appended and whatever special token follows.
func TestAnswersTokenizeToThemselves(t *testing.T) {
	tok := NewTokenizer()
	rapid.Check(t, func(t *rapid.T) {
		text := textGen().Draw(t, "prompt")
		ids := tok.Encode(text, true)
		seed := rapid.Uint64().Draw(t, "seed")
		for i := range uint64(40) {
			id := tok.Continue(ids[len(ids)-1], splitmix(seed+i))
			ids = append(ids, id)
			if tok.Text(id) == "" {
				t.Fatalf("answer token %d has no text", id)
			}
			text += tok.Text(id)
		}
		if got := tok.Encode(text, true); !slices.Equal(got, ids) {
			t.Fatalf("%q\ntokenizes to %v\nanswered     %v", text, got, ids)
		}
		if got := tok.Encode(text+textTurnEnd, true); !slices.Equal(got[:len(ids)], ids) || len(got) != len(ids)+1 {
			t.Fatalf("%q changes before the end of the turn", text)
		}
	})
}

func TestEveryAnswerPieceIsOneToken(t *testing.T) {
	tok := NewTokenizer()
	if len(tok.pieces) < 500 {
		t.Fatalf("only %d pieces", len(tok.pieces))
	}
	for id, piece := range tok.pieces {
		if got := tok.Encode(piece, false); len(got) != 1 || got[0] != kvindex.TokenID(id) {
			t.Errorf("piece %q has id %d and tokenizes to %v", piece, id, got)
		}
	}
	if got := tok.Text(TokenBOS); got != "" {
		t.Errorf("a token that is never answered has the text %q", got)
	}
}

func TestProseHasAboutFourCharactersPerToken(t *testing.T) {
	prose := `The scheduler admits a request when all of its blocks would fit, and otherwise
lets it wait. A sequence that runs out of blocks throws the most recently admitted
one back to the queue; its blocks stay cached until somebody else needs them.`
	n := len(NewTokenizer().Encode(prose, false))
	if ratio := float64(len(prose)) / float64(n); ratio < 3.5 || ratio > 4.5 {
		t.Errorf("%.2f characters per token", ratio)
	}
}

func TestEncodeSpecialTokens(t *testing.T) {
	tok := NewTokenizer()
	got := tok.Encode(textTurnStart+"\n"+textTurnEnd+"<|im_"+textEOS, true)
	if got[0] != TokenBOS || got[1] != TokenTurnStart || got[2] != tok.newline || got[3] != TokenTurnEnd ||
		got[len(got)-1] != TokenEOS {
		t.Errorf("tokens %v", got)
	}
}

func text(s string) json.RawMessage {
	b, _ := json.Marshal(s)
	return b
}

// The prompt of a turn and its answer begin the prompt of the next turn.
func TestNextTurnExtendsThisTurn(t *testing.T) {
	tok := NewTokenizer()
	rapid.Check(t, func(t *rapid.T) {
		chat := Chat{AddGenerationPrompt: true}
		if rapid.Bool().Draw(t, "tools") {
			chat.Tools = json.RawMessage(`[{"type": "function"}]`)
		}
		if rapid.Bool().Draw(t, "system") {
			chat.Messages = append(chat.Messages, Message{Role: "system", Content: text(textGen().Draw(t, "system text"))})
		}
		var before []kvindex.TokenID
		for turn := range 3 {
			chat.Messages = append(chat.Messages, Message{Role: "user", Content: text(textGen().Draw(t, "user"))})
			rendered, err := chat.Render()
			if err != nil {
				t.Fatal(err)
			}
			ids := tok.Encode(rendered, false)
			if len(ids) <= len(before) || !slices.Equal(ids[:len(before)], before) {
				t.Fatalf("turn %d does not extend the one before it", turn)
			}
			var answer strings.Builder
			for i := range uint64(10) {
				id := tok.Continue(ids[len(ids)-1], splitmix(i))
				ids = append(ids, id)
				answer.WriteString(tok.Text(id))
			}
			before = ids
			chat.Messages = append(chat.Messages, Message{Role: "assistant", Content: text(answer.String())})
		}
	})
}

func TestRender(t *testing.T) {
	user := Message{Role: "user", Content: text("Hi")}
	tests := []struct {
		name string
		chat Chat
		want string // "" with a part of the error in err
		err  string
	}{
		{"plain", Chat{Messages: []Message{user}}, "<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n", ""},
		{
			"generation prompt",
			Chat{Messages: []Message{user}, AddGenerationPrompt: true},
			"<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "",
		},
		{
			"continue",
			Chat{Messages: []Message{user, {Role: "assistant", Content: text("Yes,")}}, ContinueFinalMessage: true},
			"<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes,", "",
		},
		{
			"parts",
			Chat{Messages: []Message{{Role: "user", Content: json.RawMessage(`[{"type":"text","text":"a"},{"type":"text","text":"b"}]`)}}},
			"<|begin_of_text|><|im_start|>user\na\nb<|im_end|>\n", "",
		},
		{
			"tools and calls",
			Chat{
				Tools: json.RawMessage(`[ {"a": 1} ]`),
				Messages: []Message{
					{Role: "assistant", Content: json.RawMessage("null"), ToolCalls: json.RawMessage(`[ 1 ]`)},
					{Role: "tool", Content: text("42"), ToolCallID: "x"},
				},
			},
			"<|begin_of_text|><|im_start|>system\n# Tools\n[{\"a\":1}]<|im_end|>\n" +
				"<|im_start|>assistant\n\n# Calls\n[1]<|im_end|>\n<|im_start|>tool\n42\n# Answers x<|im_end|>\n", "",
		},
		{"no messages", Chat{}, "", "messages: empty"},
		{"no role", Chat{Messages: []Message{{Content: text("x")}}}, "", "messages[0].role: missing"},
		{"image", Chat{Messages: []Message{{Role: "user", Content: json.RawMessage(`[{"type":"image_url"}]`)}}}, "", `type "image_url"`},
		{"number", Chat{Messages: []Message{{Role: "user", Content: json.RawMessage(`7`)}}}, "", "messages[0].content: 7"},
		{
			"both ends",
			Chat{Messages: []Message{user}, AddGenerationPrompt: true, ContinueFinalMessage: true},
			"", "continue_final_message: both true",
		},
	}
	for _, tt := range tests {
		got, err := tt.chat.Render()
		if got != tt.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
		}
	}
}
