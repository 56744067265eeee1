package engine

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// Where blocks suffice and answers are one token long, a forecast is to the
// nanosecond when the engine has computed all prompts.
func TestCore_Forecast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Profile:   Profile{Name: "p", Base: 3, PerPrefillToken: 0.5, PerPrefillPair: 0.01, PerDecodeContext: 0.1, PerLoadedToken: 0.05},
			BlockSize: 4, Blocks: 4000, HostBlocks: rapid.SampledFrom([]int{0, 100}).Draw(t, "host"),
			TokenBudget: rapid.IntRange(5, 60).Draw(t, "budget"), NoEvents: true,
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(0, 0)
		submit := func() {
			first := kvindex.EngineHash(rapid.IntRange(1, 3).Draw(t, "name"))
			name := first
			r := Request{PromptTokens: rapid.IntRange(1, 80).Draw(t, "prompt"), OutputTokens: 1}
			turn := rapid.IntRange(0, 20).Draw(t, "turn")
			for i := range kvindex.EngineHash(r.PromptTokens / 4) {
				if int(i) >= turn { // equal names stand behind equal names
					name = first*100 + kvindex.EngineHash(turn)
				}
				r.Names = append(r.Names, name*1000+i)
			}
			if _, err := c.Submit(now, r); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 12).Draw(t, "before") { // some work, to fill the cache
			submit()
			if length, ok := c.Begin(now); ok {
				now = now.Add(length)
				c.End(now)
			}
		}
		for range rapid.IntRange(0, 8).Draw(t, "waiting") {
			submit()
		}
		length, ok := c.Begin(now)
		if ok {
			now = now.Add(length)
		}
		for range rapid.IntRange(0, 4).Draw(t, "meanwhile") {
			submit()
		}
		before := c.Stats()
		prompts, _ := c.Forecast()
		want := now.Add(prompts)
		if c.Stats() != before {
			t.Fatal("a forecast changes the engine")
		}
		if ok {
			c.End(now)
		}
		for {
			length, ok := c.Begin(now)
			if !ok {
				break
			}
			now = now.Add(length)
			c.End(now)
		}
		if now != want {
			t.Fatalf("all is computed at %v, by the forecast at %v", now, want)
		}
	})
}

// Sequences that decode take their share of every step.
func TestCore_ForecastDecoding(t *testing.T) {
	c, err := New(Config{Profile: Profile{Name: "p", Base: 2, PerPrefillToken: 1, PerDecodeContext: 1}, BlockSize: 4, Blocks: 100, TokenBudget: 11})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	for _, r := range []Request{{PromptTokens: 5, OutputTokens: 50}, {PromptTokens: 20, OutputTokens: 2}} {
		if _, err := c.Submit(now, r); err != nil {
			t.Fatal(err)
		}
		length, _ := c.Begin(now)
		now = now.Add(length)
		c.End(now)
	}
	// The first has 7 tokens and decodes; of the second 10 are computed: 10 more
	// beside one decode take 2 + 10 + 7 ms.
	// Then both decode, with contexts of 8 and 21 tokens.
	prompts, step := c.Forecast()
	if want := 19 * time.Millisecond; prompts != want {
		t.Errorf("prompts take %v, want %v", prompts, want)
	}
	if want := (2 + 8 + 21) * time.Millisecond; step != want {
		t.Errorf("later steps take %v, want %v", step, want)
	}
}
