package pool

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// learned runs a pool on an engine that answers paths with JSON, until it has
// n publishers, and returns them as "rank events replay".
func learned(t *testing.T, answers map[string]string, n int) []string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			return
		}
		body, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	cfg := DefaultConfig()
	cfg.Load.Interval = 0
	cfg.Static.Endpoints = []Spec{
		{Name: "fixed", Address: "127.0.0.9:1", Models: []string{"m"}, Events: "tcp://127.0.0.9:5557", Replay: "tcp://127.0.0.9:6557", Ranks: 2},
		{Name: "e", Address: srv.Listener.Addr().String(), Models: []string{"m"}, Events: EventsAuto},
	}
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), srv.Client(), rand.New(rand.NewPCG(1, 2)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	ids := map[any]bool{}
	for {
		s := p.Snapshot()
		if len(s.Endpoints[1].Publishers) == n && s.Endpoints[1].Health == HealthReady {
			var out []string
			for _, e := range s.Endpoints {
				for _, pub := range e.Publishers {
					if ids[pub.ID] || pub.Endpoint != e.ID {
						t.Errorf("publisher %+v of endpoint %d: its id is taken, or its endpoint wrong", pub, e.ID)
					}
					ids[pub.ID] = true
				}
			}
			for _, pub := range s.Endpoints[1].Publishers {
				out = append(out, strings.TrimSpace(strings.Join([]string{string('0' + rune(pub.Rank)), pub.Events, pub.Replay}, " ")))
			}
			return out
		}
		<-s.Superseded()
		clear(ids)
	}
}

func TestSources_AreLearned(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers map[string]string
		want    []string
	}{
		{
			"vLLM by rank",
			map[string]string{"/kv_event_sources": `{"1":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5558","replay_endpoint":"tcp://*:6558","buffer_steps":10000,"topic":""},"0":{"endpoint":"tcp://*:5557","replay_endpoint":null}}`},
			[]string{"0 tcp://127.0.0.1:5557", "1 tcp://127.0.0.1:5558 tcp://127.0.0.1:6558"},
		},
		{
			"vLLM as a list",
			map[string]string{"/kv_event_sources": `{"sources":[{"data_parallel_rank":8,"endpoint":"tcp://10.0.0.3:40001","replay_endpoint":"tcp://10.0.0.3:40002","topic":"t"},{"data_parallel_rank":9,"endpoint":"inproc://x","replay_endpoint":null}]}`},
			[]string{"8 tcp://10.0.0.3:40001 tcp://10.0.0.3:40002"},
		},
		{
			"SGLang",
			map[string]string{"/server_info": `{"tp_size":1,"kv_events":{"publisher":"zmq","endpoint_host":"0.0.0.0","endpoint_port_base":5557,"topic":"","block_size":16,"dp_size":2}}`},
			[]string{"0 tcp://127.0.0.1:5557", "1 tcp://127.0.0.1:5558"},
		},
		{"none", map[string]string{"/kv_event_sources": `{}`}, nil},
		{"SGLang without events", map[string]string{"/server_info": `{"tp_size":1}`}, nil},
		{"neither", nil, nil},
		{"nonsense", map[string]string{"/kv_event_sources": `{"sources":5}`}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, learned(t, tt.answers, len(tt.want))); diff != "" {
				t.Errorf("publishers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSources_OfRanks(t *testing.T) {
	s := Spec{Events: "tcp://[fd00::1]:5557", Replay: "tcp://[fd00::1]:6557", Ranks: 3}
	want := []eventSource{
		{0, "tcp://[fd00::1]:5557", "tcp://[fd00::1]:6557"},
		{1, "tcp://[fd00::1]:5558", "tcp://[fd00::1]:6558"},
		{2, "tcp://[fd00::1]:5559", "tcp://[fd00::1]:6559"},
	}
	if diff := cmp.Diff(want, s.sources(), cmp.AllowUnexported(eventSource{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := (Spec{Events: "tcp://h:1"}).sources(); len(got) != 1 || got[0].replay != "" {
		t.Errorf("one rank without replay: %+v", got)
	}
}

func TestSources_FaultsOfTheConfiguration(t *testing.T) {
	good := Spec{Name: "e", Address: "10.0.0.7:8000", Models: []string{"m"}}
	for _, tt := range []struct {
		change func(*Spec)
		want   string
	}{
		{func(s *Spec) { s.Events, s.Ranks = "tcp://h:1", -1 }, "static.endpoints[0].ranks: -1 is out of range"},
		{func(s *Spec) { s.Ranks = 2 }, "static.endpoints[0].ranks: 2 needs events"},
		{func(s *Spec) { s.Events, s.Ranks = EventsAuto, 2 }, "with events: auto the ranks are learned"},
		{func(s *Spec) { s.Events, s.Replay = EventsAuto, "tcp://h:1" }, "cannot be set where events is auto"},
		{func(s *Spec) { s.Events, s.Ranks = "tcp://h:65535", 2 }, "last port is above 65535"},
		{func(s *Spec) { s.Topic, s.Events = "t", "tcp://h:1" }, "static.endpoints[0].topic: \"t\" is set together with events"},
		{func(s *Spec) { s.Topic, s.Replay = "t", "tcp://h:1" }, ""},
		{func(s *Spec) { s.Events = EventsAuto }, ""},
		{func(s *Spec) { s.Events, s.Ranks = "tcp://h:65535", 1 }, ""},
	} {
		s := good
		tt.change(&s)
		cfg := DefaultConfig()
		cfg.Static.Endpoints = []Spec{s}
		err := cfg.Validate()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", s, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want %q", s, err, tt.want)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add(`{"0":{"endpoint":"tcp://*:15057","replay_endpoint":"tcp://*:15058"}}`)
	f.Add(`{"sources":[{"data_parallel_rank":1,"endpoint":"tcp://[::]:1","replay_endpoint":null}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		var raw map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &raw) != nil {
			return
		}
		sources, err := vllmSources(raw, "10.0.0.1")
		for i, s := range sources {
			if err != nil || validateZMQ(s.events) != nil || s.rank < 0 || i > 0 && sources[i-1].rank > s.rank {
				t.Errorf("%q: %+v, error %v", text, sources, err)
			}
		}
	})
}
