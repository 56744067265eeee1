package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// reloadEvery is how often the configuration file is looked at. A file that
// Kubernetes mounts from a ConfigMap is replaced by a link, which file-system
// events report in ways that differ; its content does not.
const reloadEvery = time.Second

// source is where a configuration comes from.
type source struct {
	// file is watched; load reads it, the environment and the flags.
	file string
	load func() (Config, error)
}

// reloader puts the routing section and the static endpoints of a changed
// configuration into force while the process runs. An invalid file changes
// nothing.
type reloader struct {
	source
	// current is what is in force.
	current Config
	apply   func(Config) error
	log     *slog.Logger
	results map[bool]prometheus.Counter
	// content is what the file said when it was last looked at.
	content []byte
}

func newReloader(src source, current Config, apply func(Config) error, log *slog.Logger, reg prometheus.Registerer) *reloader {
	results := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_config_reloads_total",
		Help: "Times that a changed configuration was read, by whether it was put into force.",
	}, []string{"result"})
	r := &reloader{source: src, current: current, apply: apply, log: log, results: map[bool]prometheus.Counter{
		true: results.WithLabelValues("applied"), false: results.WithLabelValues("refused"),
	}}
	r.content, _ = os.ReadFile(src.file) // if it cannot be read, the first look finds a change
	return r
}

// Run reloads whenever the file has changed and whenever asked is sent to,
// until ctx ends. It returns nil then.
func (r *reloader) Run(ctx context.Context, asked <-chan os.Signal) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-asked:
			r.content, _ = os.ReadFile(r.file)
			r.reload()
		case <-tick.C:
			// A file that is not there for a moment is being replaced.
			if b, err := os.ReadFile(r.file); err == nil && !bytes.Equal(b, r.content) {
				r.content = b
				r.reload()
			}
		}
	}
}

func (r *reloader) reload() {
	cfg, err := r.load()
	if err == nil {
		err = r.apply(cfg)
	}
	r.results[err == nil].Inc()
	if err != nil {
		r.log.Error("the changed configuration is not valid; the old one stays in force", "file", r.file, "err", err)
		return
	}
	was := r.current
	r.current = was.reloaded(cfg)
	if !reflect.DeepEqual(cfg, r.current) {
		r.log.Warn("the configuration changed outside of its routing section and its static endpoints; that takes a restart", "file", r.file)
	}
	r.log.Info("the routing section and the static endpoints were put into force", "file", r.file, "changed", !reflect.DeepEqual(was, r.current))
}

// reloaded returns c with what of next can be put into force while the process
// runs.
func (c Config) reloaded(next Config) Config {
	c.Routing, c.Pool.Static = next.Routing, next.Pool.Static
	return c
}
