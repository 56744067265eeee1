package engine

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/warmpath/warmpath/kvindex"
)

// rig is a core with a clock.
type rig struct {
	t    *testing.T
	core *Core
	now  time.Time
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, core: c, now: time.Unix(1000, 0)}
}

func (r *rig) submit(prompt []kvindex.TokenID, outputs int) SequenceID {
	r.t.Helper()
	id, err := r.core.Submit(r.now, Request{Prompt: prompt, OutputTokens: outputs})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// step runs one step; there must be something to run.
func (r *rig) step() StepResult {
	r.t.Helper()
	length, ok := r.core.Begin(r.now)
	if !ok {
		r.t.Fatal("nothing to run")
	}
	r.now = r.now.Add(length)
	return r.core.End(r.now)
}

// drain runs until the engine is idle and returns all events and summaries.
func (r *rig) drain() (events []Event, finished []Finished) {
	r.t.Helper()
	for s := r.core.Stats(); s.Running+s.Waiting > 0; s = r.core.Stats() {
		res := r.step()
		events = append(events, res.Events...)
		finished = append(finished, res.Finished...)
	}
	return events, finished
}

// sequential returns n distinct token ids from from on.
func sequential(from, n int) []kvindex.TokenID {
	ids := make([]kvindex.TokenID, n)
	for i := range ids {
		ids[i] = kvindex.TokenID(from + i)
	}
	return ids
}

func TestStepDuration(t *testing.T) {
	p := Profile{Base: 10, PerPrefillToken: 0.5, PerPrefillPair: 0.001, PerDecodeContext: 0.01}
	tests := []struct {
		name string
		add  func(*work)
		want time.Duration
	}{
		{"empty", func(*work) {}, 10 * time.Millisecond},
		// 100 tokens over a mean context of 50.
		{"prefill", func(w *work) { w.addPrefill(0, 100) }, 65 * time.Millisecond},
		// 100 tokens over a mean context of 450.
		{"chunk", func(w *work) { w.addPrefill(400, 100) }, 105 * time.Millisecond},
		{"decode", func(w *work) { w.addDecode(200); w.addDecode(300) }, 15 * time.Millisecond},
		{"mixed", func(w *work) { w.addPrefill(0, 100); w.addDecode(500) }, 70 * time.Millisecond},
	}
	for _, tt := range tests {
		var w work
		tt.add(&w)
		if got := p.duration(w); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// No profile may be faster than its silicon, and a prompt of one budget must
// take about as long as published.
func TestProfilesStayBelowTheRoofline(t *testing.T) {
	for _, p := range Profiles() {
		if p.Base < p.WeightFloor {
			t.Errorf("%s: a step takes %v ms, reading the weights %v", p.Name, p.Base, p.WeightFloor)
		}
		if share := p.PeakPrefillToken / p.PerPrefillToken; share > 0.65 {
			t.Errorf("%s: prefill at %.0f %% of peak FLOPs", p.Name, share*100)
		}
	}
	p, err := ProfileByName("32b")
	if err != nil {
		t.Fatal(err)
	}
	var w work
	w.addPrefill(0, 8192)
	if got := p.duration(w).Seconds(); math.Abs(got-0.40) > 0.05 {
		t.Errorf("32b: 8192 tokens in %.3f s, llm-d published 0.40 s", got)
	}
	if _, err := ProfileByName("7b"); err == nil {
		t.Error("profile 7b is not known, and no error says so")
	}
}

func TestSubmitRefusesWhatCanNeverRun(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 4, MaxModelLen: 20})
	tests := []struct {
		name            string
		prompt, outputs int
		want            error // nil: accepted
	}{
		// The last output token has no KV.
		{"fits exactly", 10, 7, nil},
		{"one block too many", 10, 8, ErrNeverFits},
		{"longer than the context", 10, 11, ErrTooLong},
	}
	for _, tt := range tests {
		_, err := r.core.Submit(r.now, Request{Prompt: sequential(0, tt.prompt), OutputTokens: tt.outputs})
		if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
	for _, bad := range []Request{{OutputTokens: 1}, {Prompt: sequential(0, 1)}} {
		if _, err := r.core.Submit(r.now, bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	if _, finished := r.drain(); len(finished) != 1 || finished[0].OutputTokens != 7 {
		t.Errorf("finished %+v, want the request that fits exactly", finished)
	}
}

func TestDecodesComeFirstAndPromptsAreChunked(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 100, TokenBudget: 16})
	first := r.submit(sequential(0, 4), 10)
	r.step()
	second := r.submit(sequential(100, 40), 1)
	third := r.submit(sequential(200, 3), 1)

	var got [][2]int
	for range 4 {
		s := r.step()
		got = append(got, [2]int{s.PrefillTokens, s.DecodeTokens})
		if s.Emitted[0].ID != first {
			t.Fatalf("the decode did not come first: %+v", s.Emitted)
		}
		if len(got) == 3 {
			// The last 10 tokens of the second prompt leave room for the third.
			want := []SequenceID{first, second, third}
			var ids []SequenceID
			for _, e := range s.Emitted {
				ids = append(ids, e.ID)
			}
			if diff := cmp.Diff(want, ids); diff != "" {
				t.Errorf("emitted in step 3 (-want +got):\n%s", diff)
			}
		}
	}
	want := [][2]int{{15, 1}, {15, 1}, {13, 1}, {0, 1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tokens per step, {prefill, decode} (-want +got):\n%s", diff)
	}
}

func TestIdenticalPromptsTogetherDoNotHit(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 100})
	r.submit(sequential(0, 10), 1)
	r.submit(sequential(0, 10), 1)
	_, finished := r.drain()
	for _, f := range finished {
		if f.CachedTokens != 0 {
			t.Errorf("sequence %d hit %d tokens that were not computed yet", f.ID, f.CachedTokens)
		}
	}
	for _, h := range r.core.Held() {
		if h.Copies != 2 {
			t.Errorf("block %d has %d copies, want one per sequence", h.Hash, h.Copies)
		}
	}
	r.submit(sequential(0, 10), 1)
	_, finished = r.drain()
	if finished[0].CachedTokens != 8 {
		t.Errorf("a later prompt hit %d tokens, want 8", finished[0].CachedTokens)
	}
	if s := r.core.Stats(); s.CacheQueries != 30 || s.CacheHits != 8 || s.PromptTokens != 30 || s.GenerationTokens != 3 {
		t.Errorf("stats %+v, want 30 tokens queried, 8 hit, 30 prompt, 3 generated", s)
	}
}

// A cached prompt of whole blocks computes its last block again: vLLM then
// has two copies of one hash and later removes both.
func TestCachedWholeBlocksLeaveTwoCopies(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 5})
	r.submit(sequential(0, 8), 1)
	r.drain()
	r.submit(sequential(0, 8), 1)
	events, finished := r.drain()
	if finished[0].CachedTokens != 4 {
		t.Errorf("%d tokens cached, want all but the last block", finished[0].CachedTokens)
	}
	held := r.core.Held()
	last := slices.IndexFunc(held, func(h HeldBlock) bool { return h.Blocks() == 2 })
	if last < 0 || held[last].Copies != 2 || len(held) != 2 {
		t.Fatalf("held %+v, want the second block twice", held)
	}
	stored := events[0].(BlockStored)
	if len(events) != 1 || stored.Root || stored.Hashes[0] != held[last].Hash {
		t.Errorf("events %+v, want the second block stored again", events)
	}
	r.submit(sequential(100, 20), 1) // needs the whole cache
	events, _ = r.drain()
	removed := 0
	for _, e := range events {
		if e, ok := e.(BlockRemoved); ok && e.Hashes[0] == held[last].Hash {
			removed++
		}
	}
	if removed != 2 {
		t.Errorf("the block was removed %d times, want once per copy", removed)
	}
}

func TestChainsAreEvictedFromTheirTail(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 4})
	r.submit(sequential(0, 12), 1)
	events, _ := r.drain()
	chain := events[0].(BlockStored).Hashes
	r.submit(sequential(100, 7), 2) // one unused block is older than the chain's tail
	events, _ = r.drain()
	var removed []kvindex.EngineHash
	for _, e := range events {
		if e, ok := e.(BlockRemoved); ok {
			removed = append(removed, e.Hashes...)
		}
	}
	if diff := cmp.Diff(chain[2:], removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	r.submit(sequential(0, 12), 1)
	if _, finished := r.drain(); finished[0].CachedTokens != 8 {
		t.Errorf("%d tokens of the chain are left, want 8", finished[0].CachedTokens)
	}
}

func TestAdmissionWaitsInOrder(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 6})
	r.submit(sequential(0, 12), 5)
	r.step()
	big := r.submit(sequential(100, 16), 1)  // 4 blocks, 2 or 3 free
	small := r.submit(sequential(200, 2), 1) // would fit
	r.step()
	if s := r.core.Stats(); s.Running != 1 || s.Waiting != 2 {
		t.Fatalf("stats %+v: the small one overtook the big one", s)
	}
	_, finished := r.drain()
	order := make([]SequenceID, 0, 3)
	for _, f := range finished {
		order = append(order, f.ID)
	}
	if diff := cmp.Diff([]SequenceID{1, big, small}, order); diff != "" {
		t.Errorf("finished (-want +got):\n%s", diff)
	}
	if r.core.Stats().Preemptions != 0 {
		t.Error("waiting must not preempt")
	}
}

func TestPreemptionRecomputes(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 4})
	first := r.submit(sequential(0, 7), 8)
	second := r.submit(sequential(100, 7), 8)
	_, finished := r.drain()
	if len(finished) != 2 || finished[0].ID != first || finished[1].ID != second {
		t.Fatalf("finished %+v", finished)
	}
	if finished[0].Preemptions != 0 || finished[1].Preemptions == 0 {
		t.Errorf("preempted %d and %d times, want only the later one", finished[0].Preemptions, finished[1].Preemptions)
	}
	s := r.core.Stats()
	if s.CacheQueries != 14 {
		t.Errorf("%d tokens queried: a preempted sequence counts once", s.CacheQueries)
	}
	if s.ComputedTokens <= 14+14 {
		t.Errorf("%d tokens computed: nothing was computed twice", s.ComputedTokens)
	}
}

// A preempted sequence runs again before those that never ran.
func TestPreemptedGoFirst(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 4})
	r.submit(sequential(0, 7), 8)
	preempted := r.submit(sequential(100, 7), 8)
	late := r.submit(sequential(200, 7), 8)
	_, finished := r.drain()
	if finished[1].ID != preempted || finished[2].ID != late {
		t.Errorf("finished %+v, want %d before %d", finished, preempted, late)
	}
}

// What a preempted sequence had of the step's budget goes back to it.
func TestPreemptionReturnsTheBudget(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 7, TokenBudget: 8})
	prompt := r.submit(sequential(0, 20), 1)
	r.step() // 8 of 20 tokens, 2 blocks
	// A decoding sequence behind it, as after a change of the budget: 4 blocks.
	r.core.cfg.TokenBudget = 26
	r.submit(sequential(100, 14), 4)
	if s := r.core.Stats(); s.Waiting != 1 {
		t.Fatalf("stats %+v", s)
	}
	late := r.core.waiting[0]
	r.core.waiting = nil
	r.core.running = append(r.core.running, late)
	late.admitted = true
	late.computed = 13
	late.prompt = 13
	for range 4 {
		id, _ := r.core.pool.take()
		late.blocks = append(late.blocks, id)
	}
	// The decode is scheduled first; the prompt then needs 3 blocks, has 1,
	// and takes the 4 of the decode.
	r.core.cfg.TokenBudget = 12
	s := r.step()
	if s.PrefillTokens != 12 || s.DecodeTokens != 0 || s.Emitted[0].ID != prompt {
		t.Errorf("step %+v, want all 12 tokens for the prompt", s)
	}
	if late.stats.Preemptions != 1 || late.computed != 0 || len(late.blocks) != 0 {
		t.Errorf("the decode was preempted %d times and has %d blocks", late.stats.Preemptions, len(late.blocks))
	}
}

func TestAnswersAreCachedForTheNextTurn(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 100})
	prompt := sequential(0, 10)
	r.submit(slices.Clone(prompt), 7)
	var answer []kvindex.TokenID
	for r.core.Stats().Running+r.core.Stats().Waiting > 0 {
		for _, e := range r.step().Emitted {
			answer = append(answer, e.Token)
		}
	}
	r.submit(slices.Concat(prompt, answer, sequential(500, 5)), 1)
	_, finished := r.drain()
	// 10 + 7 tokens, of which the last was never computed: 4 full blocks.
	if finished[0].CachedTokens != 16 {
		t.Errorf("%d tokens cached, want 16", finished[0].CachedTokens)
	}
}

func TestResetIsAnnouncedByTheNextStep(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 100})
	r.submit(sequential(0, 10), 2)
	r.step()
	if r.core.Reset() {
		t.Fatal("reset while blocks are in use")
	}
	r.drain()
	if !r.core.Reset() || len(r.core.Held()) != 0 || r.core.PendingEvents() != 1 {
		t.Fatalf("after the reset %d blocks are held, %d events wait", len(r.core.Held()), r.core.PendingEvents())
	}
	r.submit(sequential(0, 10), 1)
	events, finished := r.drain()
	if _, ok := events[0].(AllBlocksCleared); !ok || len(events) != 2 {
		t.Errorf("events %+v, want the clear, then the blocks", events)
	}
	if finished[0].CachedTokens != 0 {
		t.Errorf("%d tokens survived the reset", finished[0].CachedTokens)
	}
}

func TestAbortMidwayFreesWithTheStep(t *testing.T) {
	r := newRig(t, Config{BlockSize: 4, Blocks: 100})
	id := r.submit(sequential(0, 10), 5)
	length, _ := r.core.Begin(r.now)
	if !r.core.Abort(id) {
		t.Fatal("the sequence is not known")
	}
	res := r.core.End(r.now.Add(length))
	if len(res.Emitted) != 0 || r.core.Stats().BlocksInUse != 0 || r.core.Stats().Running != 0 {
		t.Errorf("step %+v, stats %+v", res, r.core.Stats())
	}
	if r.core.Abort(id) {
		t.Error("aborted a second time")
	}
}

func TestEventsCarryAdapterAndSalt(t *testing.T) {
	r := newRig(t, Config{BlockSize: 2, Blocks: 100})
	if _, err := r.core.Submit(r.now, Request{Prompt: sequential(0, 4), OutputTokens: 1, Adapter: "ad", Salt: "s"}); err != nil {
		t.Fatal(err)
	}
	events, _ := r.drain()
	got := events[0].(BlockStored)
	want := BlockStored{
		Hashes: got.Hashes, Root: true, Tokens: sequential(0, 4), BlockSize: 2,
		LoRAID: 1, LoRAName: "ad", Medium: MediumGPU, ExtraKeys: [][]string{{"ad", "s"}, {"ad"}}, Kind: KindFullAttention,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	for _, h := range r.core.Held() {
		if h.Adapter != "ad" || h.Salt != "s" {
			t.Errorf("held under adapter %q, salt %q", h.Adapter, h.Salt)
		}
	}
}

func TestConfigValidateNamesEveryFault(t *testing.T) {
	_, err := New(Config{BlockSize: -1, Blocks: -2, Hash: "md5"})
	for _, want := range []string{"block size: -1", "blocks: -2", `hash "md5"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
