package main

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// stateView is /debug/state.
type stateView struct {
	Version string   `json:"version"`
	Models  []string `json:"models"`
	// Unlisted is what sources of endpoints have not listed yet.
	Unlisted  []string       `json:"unlisted,omitempty"`
	Endpoints []endpointView `json:"endpoints"`
	Index     indexView      `json:"index"`
}

type endpointView struct {
	Name          string            `json:"name"`
	Address       string            `json:"address"`
	Health        string            `json:"health"`
	Withheld      string            `json:"withheld,omitempty"`
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

func viewIndex(s kvindex.Stats) indexView { return indexView{Blocks: s.Blocks, Held: s.Held} }

func (r *router) state() any {
	stats := r.index.Stats()
	snap := r.pool.Snapshot()
	status := r.events.Status()
	now := time.Now()
	v := stateView{
		Version: versionText(), Models: snap.Models(), Endpoints: []endpointView{},
		Index: viewIndex(stats), Unlisted: r.pool.SyncState().Unlisted,
	}
	for _, e := range snap.Endpoints {
		ev := endpointView{
			Name: e.Name, Address: e.Address, Health: e.Health.String(), Withheld: e.Withheld, Models: e.Models, Adapters: e.Adapters, Labels: e.Labels,
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
	all := []condition{
		listedCondition(r.pool.SyncState(), closed(r.pool.Synced())),
		{"endpoints probed", closed(r.pool.Probed()), "every endpoint has answered or failed a health probe"},
		{"events", closed(r.events.Ready()), "every event stream is live or has failed once"},
	}
	if r.warm != nil || r.peers {
		all = r.addWarm(all, warmCondition(r.warm, r.peers, r.events.WarmStart()))
	}
	return all
}

// addWarm adds the condition of the warm start to the others. It holds for good
// once all have held: an engine that comes later is asked for of other routers
// too, and may never prove what is restored of it, but a router that serves does
// not stop for that.
func (r *router) addWarm(all []condition, warm condition) []condition {
	warm.Ready = warm.Ready || r.warmed.Load()
	all = append(all, warm)
	if !slices.ContainsFunc(all, func(c condition) bool { return !c.Ready }) {
		r.warmed.Store(true)
	}
	return all
}

// listedCondition says whether the endpoints are listed, or enough of them to go
// on with.
func listedCondition(s pool.SyncState, synced bool) condition {
	c := condition{"endpoints listed", synced || s.GivenUp, "every source of endpoints has listed them once"}
	switch missing := strings.Join(s.Unlisted, "; "); {
	case synced:
	case s.GivenUp:
		c.Detail = "not all within pool.sync_timeout; done without: " + missing
	default:
		c.Detail = "waiting for: " + missing
	}
	return c
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

// indexCollector exports the index's counts when they are asked for.
type indexCollector struct {
	index *kvindex.Index
	pool  *pool.Pool

	blocks, held, bytes       *prometheus.Desc
	tiers, names              *prometheus.Desc
	waiting, spares           *prometheus.Desc
	removed, parked, unplaced *prometheus.Desc
}

func newIndexCollector(index *kvindex.Index, p *pool.Pool) *indexCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("warmpath_kvindex_"+name, help, labels, nil)
	}
	return &indexCollector{
		index: index, pool: p,
		blocks:   desc("blocks", "Distinct blocks that any publisher holds."),
		held:     desc("held_blocks", "Pairs of a publisher and a block that it holds."),
		bytes:    desc("bytes", "Memory of the index, without the publishers' own names and orphans."),
		tiers:    desc("publisher_held_blocks", "Blocks that a publisher holds on a tier.", "endpoint", "rank", "tier"),
		names:    desc("publisher_names", "Names that a publisher has announced and not taken back, and those taken back lately.", "endpoint", "rank"),
		waiting:  desc("publisher_orphan_blocks", "Blocks of a publisher that wait for their parent. It is incomplete while it holds any of them.", "endpoint", "rank"),
		spares:   desc("publisher_spare_blocks", "Blocks that a publisher stored more often than it removed them, besides the copy that counts: their names are remembered.", "endpoint", "rank"),
		removed:  desc("publisher_removals_total", "Removed blocks of a publisher: forwarded took effect, suppressed left another copy, unknown were not held.", "endpoint", "rank", "result"),
		parked:   desc("publisher_parked_total", "Blocks of a publisher that came before their parent.", "endpoint", "rank"),
		unplaced: desc("publisher_dropped_total", "Blocks of a publisher that came before their parent and were not kept.", "endpoint", "rank"),
	}
}

// Describe implements prometheus.Collector.
func (c *indexCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.blocks, c.held, c.bytes, c.tiers, c.names, c.waiting, c.spares, c.removed, c.parked, c.unplaced} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Publishers that the pool has no
// more are on their way out of the index, and left out.
func (c *indexCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.index.Stats()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(c.blocks, s.Blocks)
	gauge(c.held, s.Held)
	gauge(c.bytes, s.Bytes)
	labels := map[kvindex.Publisher][2]string{}
	for _, e := range c.pool.Snapshot().Endpoints {
		for _, p := range e.Publishers {
			labels[p.Publisher] = [2]string{e.Name, strconv.Itoa(p.Rank)}
		}
	}
	for _, p := range s.Publishers {
		l, ok := labels[p.Publisher]
		if !ok {
			continue
		}
		for t, n := range p.Tiers {
			gauge(c.tiers, n, l[0], l[1], kvindex.Tier(t).String())
		}
		gauge(c.names, p.Names, l[:]...)
		gauge(c.waiting, p.Orphans, l[:]...)
		gauge(c.spares, p.Spares, l[:]...)
		counter(c.removed, p.Forwarded, l[0], l[1], "forwarded")
		counter(c.removed, p.Suppressed, l[0], l[1], "suppressed")
		counter(c.removed, p.Unknown, l[0], l[1], "unknown")
		counter(c.parked, p.Parked, l[:]...)
		counter(c.unplaced, p.Dropped, l[:]...)
	}
}
