package main

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// stateView is /debug/state.
type stateView struct {
	Version   string         `json:"version"`
	Models    []string       `json:"models"`
	Endpoints []endpointView `json:"endpoints"`
	Index     indexView      `json:"index"`
}

type endpointView struct {
	Name          string            `json:"name"`
	Address       string            `json:"address"`
	Health        string            `json:"health"`
	Models        []string          `json:"models"`
	Adapters      []string          `json:"adapters,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	InFlight      int64             `json:"in_flight"`
	PrefillTokens int64             `json:"prefill_tokens"`
	ContextTokens int64             `json:"context_tokens"`
	// BacklogSeconds is how long the prefill work sent there will take.
	BacklogSeconds float64 `json:"backlog_seconds"`
	// CoolUntil is when a cool-down ends or a trial may begin; nil: none.
	CoolUntil  *time.Time        `json:"cool_until,omitempty"`
	Load       *routing.LoadView `json:"load"`
	BlockSizes []int             `json:"block_sizes"`
	Publishers []events.Status   `json:"publishers"`
}

type indexView struct {
	Blocks int `json:"blocks"`
	Held   int `json:"held"`
}

func (r *router) state() any {
	stats := r.index.Stats()
	snap := r.pool.Snapshot()
	status := r.events.Status()
	now := time.Now()
	v := stateView{
		Version: versionText(), Models: snap.Models(), Endpoints: []endpointView{},
		Index: indexView{Blocks: stats.Blocks, Held: stats.Held},
	}
	for _, e := range snap.Endpoints {
		ev := endpointView{
			Name: e.Name, Address: e.Address, Health: e.Health.String(), Models: e.Models, Adapters: e.Adapters, Labels: e.Labels,
			InFlight: e.State.InFlight(), PrefillTokens: e.State.PrefillTokens(), BlockSizes: e.State.BlockSizes(),
			ContextTokens: e.State.ContextTokens(), BacklogSeconds: e.State.Backlog(now).Seconds(),
			Load: routing.ViewLoad(e.State.Load(), now), Publishers: []events.Status{},
		}
		if c := e.State.CoolUntil(); !c.IsZero() {
			ev.CoolUntil = &c
		}
		for _, s := range status {
			if s.Endpoint == e.Name {
				ev.Publishers = append(ev.Publishers, s)
			}
		}
		v.Endpoints = append(v.Endpoints, ev)
	}
	return v
}

func (r *router) ready() []condition {
	return []condition{
		{"endpoints probed", closed(r.pool.Probed()), "every endpoint has answered or failed a health probe"},
		{"events", closed(r.events.Ready()), "every event stream is live or has failed once"},
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// decisionView is a decision and its explanation.
type decisionView struct {
	routing.Decision
	Words string `json:"words"`
}

func (r *router) serveDecisions(w http.ResponseWriter, req *http.Request) {
	views := []decisionView{}
	id := req.URL.Query().Get("id")
	for _, d := range r.routing.Decisions(nil) {
		if id != "" && d.RequestID != id {
			continue
		}
		views = append(views, decisionView{d, d.Words()})
	}
	writeJSON(w, http.StatusOK, views)
}

// serveHeld lists the hashes of the blocks that an endpoint holds. They are
// hashes under the fleet seed: they tell nobody what the blocks contain.
func (r *router) serveHeld(w http.ResponseWriter, req *http.Request) {
	name := req.PathValue("endpoint")
	for _, e := range r.pool.Snapshot().Endpoints {
		if e.Name != name {
			continue
		}
		held := []kvindex.BlockHash{}
		for _, p := range e.Publishers {
			held = r.index.AppendHeld(held, p.ID)
		}
		slices.Sort(held)
		blocks := make([]string, len(held))
		for i, b := range held {
			blocks[i] = fmt.Sprintf("%016x", uint64(b))
		}
		writeJSON(w, http.StatusOK, map[string]any{"endpoint": name, "blocks": blocks})
		return
	}
	http.Error(w, fmt.Sprintf("no endpoint is called %q; /debug/state lists them", name), http.StatusNotFound)
}

// indexCollector reads the index's size when metrics are scraped.
type indexCollector struct {
	index        *kvindex.Index
	blocks, held *prometheus.Desc
}

func newIndexCollector(index *kvindex.Index) *indexCollector {
	return &indexCollector{
		index:  index,
		blocks: prometheus.NewDesc("warmpath_kvindex_blocks", "Distinct blocks that any publisher holds.", nil, nil),
		held:   prometheus.NewDesc("warmpath_kvindex_held_blocks", "Pairs of a publisher and a block that it holds.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *indexCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.blocks
	ch <- c.held
}

// Collect implements prometheus.Collector.
func (c *indexCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.index.Stats()
	ch <- prometheus.MustNewConstMetric(c.blocks, prometheus.GaugeValue, float64(s.Blocks))
	ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(s.Held))
}
