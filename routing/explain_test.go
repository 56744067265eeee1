package routing

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

var update = flag.Bool("update", false, "write the golden files and the README's table anew")

// golden compares got with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run: go test ./routing -run Golden -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// threeEngines are one that is slow, one that is full and one whose metrics
// are stale. The slow one holds most of the prompt, the full one half of it.
func threeEngines(t *testing.T) (*world, Request) {
	var pc pool.Config = pool.DefaultConfig()
	for i, name := range []string{"slow", "full", "stale"} {
		pc.Static.Endpoints = append(pc.Static.Endpoints, pool.Spec{
			Name: name, Address: fmt.Sprintf("10.0.0.%d:8000", i+1), Models: []string{"m"}, Adapters: []string{"lora"}, Events: fmt.Sprintf("tcp://10.0.0.%d:5557", i+1),
		})
	}
	w := newWorld(t, pc, nil)
	cfg := DefaultConfig()
	if err := w.router.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	prompt := tokens(0, 8000)
	adapter := kvindex.Scope{Model: "m", Adapter: "lora"}
	w.hold(0, adapter, prompt[:7200])
	w.hold(1, adapter, prompt[:4000])
	w.writers[1].SetTrust(kvindex.TrustIncomplete)
	w.hold(2, adapter, prompt[:80])
	base := pool.Load{Has: 1<<31 - 1, Running: 2, InFlight: 2, Capacity: 400_000, PrefillRate: 15_000, PrefillSeconds: .3, DecodeSeconds: 2, MaxAdapters: 1}
	slow, full, old := base, base, base
	slow.PrefillRate, slow.QueueSeconds, slow.PrefillSeconds, slow.DecodeSeconds = 1500, .5, 3, 9
	slow.KVUsage, slow.Utilization, slow.Busy, slow.PromptRate, slow.GenerationRate, slow.Adapters = .3, .8, .9, 900, 40, []string{"lora"}
	full.KVUsage, full.Utilization, full.Busy, full.PromptRate, full.GenerationRate = .98, .95, 1, 12_000, 900
	full.Running, full.Waiting, full.InFlight, full.Computed, full.QueueSeconds, full.Adapters = 40, 12, 8, 900_000, 1.5, []string{"other"}
	old.KVUsage, old.Adapters = .01, []string{"lora"}
	for i, l := range []*pool.Load{fresh(slow), fresh(full), stale(old)} {
		s := w.pool.Snapshot().Endpoints[i].State
		s.SetLoad(l)
		for range []int{2, 9, 4}[i] {
			s.Reserve(500)
		}
		s.SetTurn(uint64(10 + i))
		s.Place(now, 50_000)
	}
	w.pool.Snapshot().Endpoints[1].State.Enqueue(now, 1200*time.Millisecond)
	req := ids("lora", prompt)
	req.ID, req.Session = "req-1", "a session"
	return w, req
}

// Every strategy's decision about three engines of which one is slow, one full
// and one stale, in words.
func TestExplain_GoldenWords(t *testing.T) {
	for _, name := range append(Strategies(), "prefix-cache:2,least-request:1") {
		t.Run(name, func(t *testing.T) {
			w, req := threeEngines(t)
			req.Strategy = name
			d, err := w.router.Explain(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(d.Words(), ". ", ".\n") + "\n"
			file := strings.NewReplacer(":", "-", ",", "-").Replace(name)
			golden(t, filepath.Join("testdata", "explain", file+".txt"), text)
		})
	}
}

func TestExplain_GoldenJSON(t *testing.T) {
	w, req := threeEngines(t)
	d, err := w.router.Explain(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	d.Time = d.Time.UTC()
	b, jerr := json.MarshalIndent(d, "", "  ")
	if jerr != nil {
		t.Fatal(jerr)
	}
	golden(t, filepath.Join("testdata", "explain", "prefix-cache.json"), string(b)+"\n")
}

// An explanation is what would be decided, and changes nothing.
func TestExplain_AgreesWithRoute(t *testing.T) {
	for _, name := range allNames() {
		if name == "random" || name == "power-of-two" {
			continue // each draws anew
		}
		w, req := threeEngines(t)
		req.Strategy = name
		before := fmt.Sprint(counts(w.router))
		d, err := w.router.Explain(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if after := fmt.Sprint(counts(w.router)); after != before || len(w.router.Decisions(nil)) != 0 {
			t.Errorf("%s: explaining reserved something: %s, then %s", name, before, after)
		}
		_, target := choose(t, w.router, req)
		if d.Candidates[0].Name != target.Endpoints[0].Name || d.Reason != target.Reason.String() {
			t.Errorf("%s: decided %s by %v, explained %s by %s", name, target.Endpoints[0].Name, target.Reason, d.Candidates[0].Name, d.Reason)
		}
		kept := w.router.Decisions(nil)[0]
		// Equal costs are in the order of a draw in one and of names in the other.
		slices.SortStableFunc(kept.Candidates, func(a, b CandidateView) int {
			return order(a.cost, b.cost, 0, 0)
		})
		if kept.Candidates[1].cost == kept.Candidates[2].cost && kept.Candidates[1].Name > kept.Candidates[2].Name {
			kept.Candidates[1], kept.Candidates[2] = kept.Candidates[2], kept.Candidates[1]
		}
		if diff := cmp.Diff(kept.Words(), d.Words()); diff != "" {
			t.Errorf("%s: what is kept and what was explained differ in words:\n%s", name, diff)
		}
	}
}

func TestExplain_TellsWhoIsLeftOut(t *testing.T) {
	specs := engines(4)
	specs[1].Labels = map[string]string{"tier": "gold"}
	specs[2].Labels = map[string]string{"tier": "gold"}
	specs[3].Models = []string{"other"}
	r := fleet(t, specs...)
	r.pool.Snapshot().Endpoints[2].State.Observe(now, pool.OutcomeFailure)
	d, err := r.Explain(t.Context(), Request{Model: "m", Arrived: now, Filter: "tier=gold"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range d.LeftOut {
		got[l.Name] = l.Why
	}
	want := map[string]string{"e0": leftNames[leftFilter], "e2": leftNames[leftCooling], "e3": leftNames[leftModel]}
	if diff := cmp.Diff(want, got); diff != "" || len(d.Candidates) != 1 || d.Candidates[0].Name != "e1" {
		t.Errorf("candidates %+v; left out (-want +got):\n%s", d.Candidates, diff)
	}
	if _, err := r.Explain(t.Context(), Request{Model: "nope", Arrived: now}); err == nil || err.Reason != ReasonModelNotFound {
		t.Errorf("an unknown model: %v", err)
	}
}

// A decision is logged at the debug level, in one line and without the prompt.
func TestRoute_LogsADecision(t *testing.T) {
	w, req := threeEngines(t)
	var b bytes.Buffer
	w.router.logger = slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	req.Prompt = Prompt{Kind: PromptText, Text: "a secret prompt"}
	choose(t, w.router, req)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", b.String(), err)
	}
	if line["request_id"] != "req-1" || line["strategy"] != "prefix-cache" || line["endpoint"] == nil || strings.Contains(b.String(), "secret") {
		t.Errorf("the line is %s", b.String())
	}
	b.Reset()
	w.router.logger = slog.New(slog.NewJSONHandler(&b, nil))
	w.router.Route(NewContext(context.Background(), req))
	if b.Len() > 0 {
		t.Errorf("at the level info: %s", b.String())
	}
}

// The README's table of strategies is the code's.
func TestStrategyTable_IsInReadme(t *testing.T) {
	const begin, end = "<!-- strategies:begin -->\n", "<!-- strategies:end -->"
	path := filepath.Join("..", "README.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Logf("README.md has no place for the table: %q and %q", begin, end)
		return
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+StrategyTable()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(StrategyTable(), old); diff != "" {
		t.Errorf("README.md is not what the code says; run: go test ./routing -run Readme -update\n%s", diff)
	}
}

func TestStrategyTable_HasALineForEach(t *testing.T) {
	table := StrategyTable()
	for _, s := range strategies() {
		if s.doc == "" || s.formula == "" || s.needs == "" || s.missing == "" || s.reason == ReasonNone || s.cost == nil {
			t.Errorf("%s is not described in full", s.name)
		}
		if n := strings.Count(table, "| `"+s.name+"` |"); n != 1 {
			t.Errorf("%s has %d lines in the table", s.name, n)
		}
	}
	if want := strings.Count(table, "\n"); want != len(strategies())+2 {
		t.Errorf("the table has %d lines for %d strategies", want, len(strategies()))
	}
}
