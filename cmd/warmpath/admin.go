package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// condition is one thing that must hold before requests should come.
type condition struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	// Detail says what is waited for, or what is there.
	Detail string `json:"detail,omitempty"`
}

// adminSources is what the admin server shows. Its functions are called by
// many goroutines.
type adminSources struct {
	Gatherer prometheus.Gatherer
	// Ready returns every condition of readiness. No condition at all means
	// ready.
	Ready func() []condition
	// State returns a value that encodes as JSON: what this process knows.
	State func() any
	// Pages are further pages, which the index lists.
	Pages []adminPage
}

// adminPage is one page of the admin server.
type adminPage struct {
	// Method is the HTTP method; empty: GET.
	Method string
	// Path has no leading slash, for example debug/decisions.
	Path string
	// About says in a few words what it shows.
	About   string
	Handler http.Handler
}

// admin is the HTTP server for operators. It serves whoever can connect, so it
// listens on loopback unless it is configured not to.
type admin struct {
	mux *http.ServeMux
	log *slog.Logger
}

// newAdmin builds the server; [admin.Run] starts it.
func newAdmin(src adminSources, log *slog.Logger) *admin {
	a := &admin{mux: http.NewServeMux(), log: log}
	pages := []adminPage{
		{"", "metrics", "metrics in Prometheus' format", promhttp.HandlerFor(src.Gatherer, promhttp.HandlerOpts{
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
			EnableOpenMetrics: true, MaxRequestsInFlight: 8,
		})},
		{"", "healthz", "200 while the process runs", http.HandlerFunc(serveHealthz)},
		{"", "readyz", "200 once every named condition holds, else 503", serveReadyz(src.Ready)},
		{"", "debug/state", "what this process knows, as JSON", serveState(src.State)},
		{"", "debug/pprof/", "profiles", http.HandlerFunc(pprof.Index)},
	}
	index := "warmpath\n\n"
	for _, p := range append(pages, src.Pages...) {
		a.mux.Handle(cmp.Or(p.Method, http.MethodGet)+" /"+p.Path, p.Handler)
		index += fmt.Sprintf("/%-16s %s\n", p.Path, p.About)
	}
	a.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	a.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	a.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	a.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	a.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(index))
	})
	return a
}

// ServeHTTP implements http.Handler.
func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// drain bounds how long Run waits for running requests at its end. A profile
// may be one of them, so it does not wait for it to finish.
const drain = time.Second

// Run serves on ln, which it closes, until ctx ends. It returns nil then.
func (a *admin) Run(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // above the longest profile that is asked for
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("admin server on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := srv.Shutdown(shutdown); err != nil {
		_ = srv.Close() // ends what is left
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin server on %s: %w", ln.Addr(), err)
	}
	return nil
}

func serveHealthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

func serveReadyz(ready func() []condition) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		answer := struct {
			Ready      bool        `json:"ready"`
			Conditions []condition `json:"conditions"`
		}{true, ready()}
		for _, c := range answer.Conditions {
			answer.Ready = answer.Ready && c.Ready
		}
		status := http.StatusOK
		if !answer.Ready {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, answer)
	}
}

func serveState(state func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, state()) }
}

// writeJSON encodes before it writes the status, so that a value that cannot
// be encoded is a 500 and not half an answer.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}
