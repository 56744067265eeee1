package main

import (
	"context"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/routing/pool"
)

// reloadEvery is how often the configuration file is looked at. What it says
// counts once it rests, so within twice that.
const reloadEvery = time.Second

// source is where a configuration comes from.
type source struct {
	// file is watched. content is what it said when it was loaded, and parse
	// reads what it says with the environment and the flags.
	file    string
	content []byte
	parse   func(data []byte) (Config, error)
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
	watched *pool.RestedFile
}

func newReloader(src source, current Config, apply func(Config) error, log *slog.Logger, reg prometheus.Registerer) *reloader {
	results := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_config_reloads_total",
		Help: "Times that a changed configuration was read, by whether it was put into force.",
	}, []string{"result"})
	return &reloader{source: src, current: current, apply: apply, log: log, watched: pool.NewRestedFile(src.file, src.content), results: map[bool]prometheus.Counter{
		true: results.WithLabelValues("applied"), false: results.WithLabelValues("refused"),
	}}
}

// Run reloads whenever the file has changed and rests, and at once whenever asked
// is sent to, until ctx ends. It returns nil then.
func (r *reloader) Run(ctx context.Context, asked <-chan os.Signal) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-asked:
			data, err := r.watched.Now()
			r.reload(data, err)
		case <-tick.C:
			// A file that is not there for a moment is being replaced.
			if data, changed, err := r.watched.Look(); err == nil && changed {
				r.reload(data, nil)
			}
		}
	}
}

// reload puts into force what the file says, unless it could not be read, for
// err.
func (r *reloader) reload(data []byte, err error) {
	var cfg Config
	if err == nil {
		cfg, err = r.parse(data)
	}
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
