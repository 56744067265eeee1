package pool

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// EventsAuto as a [Spec]'s Events has the event streams learned from the
// engine.
const EventsAuto = "auto"

// TopicScheme begins the Events of a [Publisher] that connects by itself; its
// topic follows.
const TopicScheme = "topic:"

// maxRanks bounds the data-parallel ranks behind one endpoint.
const maxRanks = 256

// eventSource is where one data-parallel rank publishes.
type eventSource struct {
	rank           int
	events, replay string
}

// sources returns the event streams that the configuration names: rank r is at
// the port plus r, as vLLM and SGLang have it.
func (s Spec) sources() []eventSource {
	switch {
	case s.Topic != "":
		return []eventSource{{0, TopicScheme + s.Topic, s.Replay}}
	case s.Events == EventsAuto, s.Events == "" && s.Relay == "":
		return nil
	}
	out := make([]eventSource, max(1, s.Ranks))
	for r := range out {
		out[r] = eventSource{r, atRank(s.Events, r), atRank(s.Replay, r)}
	}
	return out
}

// atRank returns the endpoint of a rank, whose port is rank above that of
// endpoint.
func atRank(endpoint string, rank int) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(endpoint, "tcp://"))
	if err != nil {
		return "" // of an empty endpoint; others are validated
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return endpoint
	}
	return "tcp://" + net.JoinHostPort(host, strconv.Itoa(n+rank))
}

// validateRanks checks that every rank's port is one.
func (s Spec) validateRanks(at string) error {
	switch {
	case s.Ranks < 0 || s.Ranks > maxRanks:
		return fmt.Errorf("%s.ranks: %d is out of range; use 1 to %d, or leave it out for one rank", at, s.Ranks, maxRanks)
	case s.Ranks > 1 && (s.Events == "" && s.Relay == "" || s.Events == EventsAuto):
		return fmt.Errorf("%s.ranks: %d needs events to be the endpoint of rank 0; with events: auto the ranks are learned", at, s.Ranks)
	case s.Events == EventsAuto && s.Replay != "":
		return fmt.Errorf("%s.replay: %q cannot be set where events is auto, which learns it; remove one of them", at, s.Replay)
	}
	for _, e := range []string{s.Events, s.Replay} {
		_, port, err := net.SplitHostPort(strings.TrimPrefix(e, "tcp://"))
		if n, bad := strconv.Atoi(port); err == nil && bad == nil && n+max(1, s.Ranks)-1 > 65535 {
			return fmt.Errorf("%s.ranks: with %d ranks from %s on the last port is above 65535", at, s.Ranks, e)
		}
	}
	return nil
}

// errNoSources says that an engine tells of no event streams.
var errNoSources = errors.New("the engine tells of no event streams; set --kv-events-config on it, or events to the stream's endpoint")

// learnSources asks an engine where it publishes: vLLM from 0.31 on at
// /kv_event_sources, SGLang at /server_info.
func (p *Pool) learnSources(ctx context.Context, address string) ([]eventSource, error) {
	host := address
	if ap, err := netip.ParseAddrPort(address); err == nil {
		host = ap.Addr().String()
	}
	var raw map[string]json.RawMessage
	err := p.get(ctx, "http://"+address+"/kv_event_sources", &raw)
	if err == nil {
		return vllmSources(raw, host)
	}
	var status statusError
	if !errors.As(err, &status) || status.code != http.StatusNotFound {
		return nil, err
	}
	var info serverInfo
	if err := p.get(ctx, "http://"+address+"/server_info", &info); err != nil {
		if errors.As(err, &status) && status.code == http.StatusNotFound {
			return nil, errNoSources
		}
		return nil, err
	}
	return info.sources(host)
}

// vllmSource is one entry of vLLM's /kv_event_sources.
type vllmSource struct {
	Rank     int    `json:"data_parallel_rank"`
	Endpoint string `json:"endpoint"`
	Replay   string `json:"replay_endpoint"`
}

// vllmSources reads both shapes: an object keyed by rank (0.31 to 0.33), and a
// list below "sources".
func vllmSources(raw map[string]json.RawMessage, host string) ([]eventSource, error) {
	var entries []vllmSource
	if list, ok := raw["sources"]; ok {
		if err := json.Unmarshal(list, &entries); err != nil {
			return nil, fmt.Errorf("/kv_event_sources: sources: %w", err)
		}
	} else {
		for key, value := range raw {
			var e vllmSource
			err := json.Unmarshal(value, &e)
			if err == nil {
				e.Rank, err = strconv.Atoi(key)
			}
			if err != nil {
				return nil, fmt.Errorf("/kv_event_sources: %q: %w", key, err)
			}
			entries = append(entries, e)
		}
	}
	var out []eventSource
	for _, e := range entries {
		events, ok := dialable(e.Endpoint, host)
		if !ok || e.Rank < 0 {
			continue // not over TCP
		}
		replay, _ := dialable(e.Replay, host)
		out = append(out, eventSource{e.Rank, events, replay})
	}
	return checkSources(out)
}

func checkSources(out []eventSource) ([]eventSource, error) {
	slices.SortFunc(out, func(a, b eventSource) int { return cmp.Compare(a.rank, b.rank) })
	out = slices.CompactFunc(out, func(a, b eventSource) bool { return a.rank == b.rank })
	switch {
	case len(out) == 0:
		return nil, errNoSources
	case len(out) > maxRanks:
		return nil, fmt.Errorf("the engine tells of %d event streams, more than %d", len(out), maxRanks)
	}
	return out, nil
}

// serverInfo is the part of SGLang's /server_info that tells of event streams.
type serverInfo struct {
	KVEvents *struct {
		Host   string `json:"endpoint_host"`
		Port   int    `json:"endpoint_port_base"`
		DPSize int    `json:"dp_size"`
	} `json:"kv_events"`
}

func (i serverInfo) sources(host string) ([]eventSource, error) {
	k := i.KVEvents
	if k == nil {
		return nil, errNoSources
	}
	var out []eventSource
	for r := range min(max(1, k.DPSize), maxRanks+1) {
		events, ok := dialable("tcp://"+net.JoinHostPort(k.Host, strconv.Itoa(k.Port+r)), host)
		if !ok {
			return nil, fmt.Errorf("/server_info: kv_events: host %q and port %d are no endpoint", k.Host, k.Port)
		}
		out = append(out, eventSource{rank: r, events: events})
	}
	return checkSources(out)
}

// dialable turns what an engine binds into what can be dialed: host in the
// place of a wildcard.
func dialable(endpoint, host string) (string, bool) {
	rest, ok := strings.CutPrefix(endpoint, "tcp://")
	if !ok {
		return "", false
	}
	h, port, err := net.SplitHostPort(rest)
	if n, bad := strconv.Atoi(port); err != nil || bad != nil || n < 1 || n > 65535 {
		return "", false
	}
	switch h {
	case "", "*", "0.0.0.0", "::":
		h = host
	}
	return "tcp://" + net.JoinHostPort(h, port), true
}
