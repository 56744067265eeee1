package pool

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Who has waited for Probed finds in the snapshot what every probe has found
// out, however close together the probes ended.
func TestPool_ProbedIsPublished(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/kv_event_sources":
			_, _ = io.WriteString(w, `{"0": {"endpoint": "tcp://*:5557"}}`)
		case "/v1/models":
			_, _ = io.WriteString(w, `{"data": [{"id": "m"}]}`)
		}
	}))
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	cfg := DefaultConfig()
	cfg.Load.Interval, cfg.Health.Timeout = 0, time.Minute
	for i := range 100 {
		// All are the same server, which is why all but one are withheld.
		cfg.Static.Endpoints = append(cfg.Static.Endpoints, Spec{
			Name: fmt.Sprint("e", i), Address: "127.0.0.1:" + port, Events: EventsAuto,
		})
	}
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), s.Client(), rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	<-p.Probed()
	for _, e := range p.Snapshot().Endpoints {
		if e.Health == HealthUnknown || len(e.Publishers) != 1 || len(e.Models) != 1 {
			t.Errorf("probed and published: %s is %s, with publishers %v and models %v", e.Name, e.Health, e.Publishers, e.Models)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
