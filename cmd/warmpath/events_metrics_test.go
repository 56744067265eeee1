package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Two copies of a block on the host tier, of which one is removed, one block
// that was never stored, and one that waits for its parent.
func TestIndexCollector_CountsByPublisher(t *testing.T) {
	cfg := pool.DefaultConfig()
	cfg.Static.Endpoints = []pool.Spec{{Name: "e", Address: "10.0.0.1:1", Models: []string{"m"}, Events: "tcp://10.0.0.1:2", Ranks: 2}}
	p := pool.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, random())
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := index.Open(p.Snapshot().Endpoints[0].Publishers[1].Publisher)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	stray, err := index.Open(kvindex.Publisher{ID: 99}) // in no pool
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	for range 2 {
		w.Store(kvindex.Stored{Root: 1, Names: []kvindex.EngineHash{7}, Contents: []kvindex.ContentHash{70}, Tier: kvindex.TierHost})
	}
	w.Store(kvindex.Stored{Parent: 50, HasParent: true, Names: []kvindex.EngineHash{8}, Contents: []kvindex.ContentHash{80}})
	w.Remove([]kvindex.EngineHash{7, 9}, kvindex.TierHost, 0)

	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newIndexCollector(index, p))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.Metric {
			labels := ""
			for _, l := range m.Label {
				labels += " " + l.GetValue()
			}
			if v := m.GetGauge().GetValue() + m.GetCounter().GetValue(); v != 0 && f.GetName() != "warmpath_kvindex_bytes" {
				got = append(got, fmt.Sprintf("%s%s %v", f.GetName(), labels, v))
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"warmpath_kvindex_blocks 1",
		"warmpath_kvindex_held_blocks 1",
		"warmpath_kvindex_publisher_held_blocks e 1 host 1",
		"warmpath_kvindex_publisher_names e 1 1",
		"warmpath_kvindex_publisher_orphan_blocks e 1 1",
		"warmpath_kvindex_publisher_parked_total e 1 1",
		"warmpath_kvindex_publisher_removals_total e 1 suppressed 1",
		"warmpath_kvindex_publisher_removals_total e 1 unknown 1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
