package stack_test

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Chats through Envoy wait for no tokenizer once their template is known, also
// while the tokenizer is slow or gone, and are found where they are warm.
func TestChatsWaitForNoTokenizer(t *testing.T) {
	tok := newSickTokenizer(t)
	s := sickStack(t, tok)
	var answered atomic.Int64
	tok.behave(func(w http.ResponseWriter, r *http.Request, answer []byte) {
		select {
		case <-time.After(20 * time.Millisecond):
			_, _ = w.Write(answer)
			answered.Add(1)
		case <-r.Context().Done():
		}
	})
	r := rand.New(rand.NewPCG(3, 5))
	system := words(r, 200)
	// Nobody is asked before an engine has told of a block. The examination has
	// four prompts.
	eventually(t, "the tokenizer is examined", func() bool {
		send(t, s, []chat{{"user", words(r, 40)}})
		return tok.asked.Load() >= 6
	})
	sources := func() map[string]int {
		reply := do(t, http.MethodGet, s.Admin+"/debug/decisions", nil)
		var page []struct{ Tokens string }
		if err := json.Unmarshal(reply.body, &page); err != nil {
			t.Fatalf("%v: %.200s", err, reply.body)
		}
		counts := map[string]int{}
		for _, d := range page {
			source, _, _ := strings.Cut(d.Tokens, "+")
			counts[source]++
		}
		return counts
	}
	converse := func() (cold int) {
		ms := []chat{{"system", system}}
		for turn := range 5 {
			ms = append(ms, chat{"user", words(r, 20+r.IntN(20))})
			n := answered.Load()
			got := send(t, s, ms)
			// A client reads the answer for longer than a tokenizer takes.
			eventually(t, "the prompt is tokenized", func() bool { return answered.Load() > n })
			if turn > 0 && got.matched(t) == 0 {
				cold++
			}
			quiet(t, s)
			var answer struct {
				Choices []struct{ Message chat }
			}
			if err := json.Unmarshal(got.body, &answer); err != nil || len(answer.Choices) != 1 {
				t.Fatalf("%v: %s", err, got.body)
			}
			ms = append(ms, answer.Choices[0].Message)
		}
		return cold
	}
	for range 6 {
		converse()
	}
	before := sources()
	cold := 0
	for range 10 {
		cold += converse()
	}
	after := sources()
	t.Logf("sources before %v, after %v", before, after)
	if n := after["l1"] - before["l1"]; n < 45 {
		t.Errorf("%d of 50 decisions waited for no tokenizer, want 45", n)
	}
	if cold > 0 {
		t.Errorf("%d later turns matched nothing", cold)
	}
	// Gone: a chat that was learned goes on as before.
	tok.stop()
	if got := send(t, s, []chat{{"system", system}, {"user", words(r, 30)}}); got.reason() != "prefix" {
		t.Errorf("without a tokenizer a known system prompt was routed by %q, want prefix", got.reason())
	}
}
