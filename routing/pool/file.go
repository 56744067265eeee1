package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.yaml.in/yaml/v3"
)

// FileConfig names a file of endpoints that may change while the router runs.
type FileConfig struct {
	Path string `yaml:"path" help:"YAML file with a list endpoints, each with the keys of pool.static.endpoints[]; followed while the router runs; empty: none"`
	// Interval is how often the file is read. Changed content counts once it
	// rests, see [RestedFile], so within two intervals.
	Interval time.Duration `yaml:"interval" help:"how often that file is looked at; changed content is put into force when two looks in a row read the same, so within two intervals"`
}

// Validate reports every fault of c and of the file that it names.
func (c FileConfig) Validate() error {
	if c.Path == "" {
		return nil
	}
	var errs []error
	if c.Interval < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("interval: %s is too short; use for example 1s", c.Interval))
	}
	if _, err := ReadFile(c.Path); err != nil {
		errs = append(errs, fmt.Errorf("path: %w", err))
	}
	return errors.Join(errs...)
}

// ReadFile returns the endpoints that a file lists. A file that lists none is
// valid. The error has every fault.
func ReadFile(path string) ([]Spec, error) {
	b, err := ReadFileBounded(path)
	if err != nil {
		return nil, err
	}
	specs, err := parseFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return specs, nil
}

func parseFile(b []byte) ([]Spec, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("more than %d bytes", MaxFile)
	}
	var doc StaticConfig
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second document (---), or text that is not YAML, after the first; write one document")
	}
	return doc.Endpoints, validateSpecs("endpoints", doc.Endpoints)
}

// File is the [Source] of a file's endpoints.
type File struct {
	cfg     FileConfig
	log     *slog.Logger
	results map[bool]prometheus.Counter

	mu sync.Mutex
	// fault says why nothing has been listed yet; guarded by mu.
	fault string
}

// NewFile returns the source of the file that cfg, which is valid, names.
func NewFile(cfg FileConfig, log *slog.Logger, reg prometheus.Registerer) *File {
	reads := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_pool_file_reloads_total",
		Help: "Times that a changed file of endpoints was read, by whether it was put into force.",
	}, []string{"result"})
	return &File{cfg: cfg, log: log.With("component", "file", "file", cfg.Path), results: map[bool]prometheus.Counter{
		true: reads.WithLabelValues("applied"), false: reads.WithLabelValues("refused"),
	}}
}

// Name implements [Source].
func (f *File) Name() string { return "file" }

// Unlisted implements [Source].
func (f *File) Unlisted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == "" {
		return nil
	}
	return []string{f.fault}
}

func (f *File) setFault(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = text
}

// Run implements [Source]. A file that is not valid changes nothing.
func (f *File) Run(ctx context.Context, tell func([]Change), synced func()) error {
	state := followed{File: f, tell: tell, file: NewRestedFile(f.cfg.Path, nil)}
	tick := time.NewTicker(f.cfg.Interval)
	defer tick.Stop()
	for done := false; ; {
		state.look()
		if state.valid && !done {
			done = true
			f.setFault("")
			synced()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// followed is what one run of a [File] knows of it.
type followed struct {
	*File
	tell func([]Change)
	// looked: there was a look.
	looked, missing bool
	file            *RestedFile
	// valid is the verdict on what was judged last.
	valid bool
	// listed are the names in force.
	listed map[string]bool
}

// look reads the file, and judges what it says if that is new and was read by
// the look before, too. The first look judges at once: there is nothing yet
// that a list without its end would withdraw.
func (f *followed) look() {
	var b []byte
	var changed bool
	var err error
	if f.looked {
		b, changed, err = f.file.Look()
	} else {
		b, err = f.file.Now()
		f.looked, changed = true, err == nil
	}
	if err != nil {
		// For a moment it may be missing because it is being replaced.
		if !f.missing {
			f.log.Debug("the file of endpoints cannot be read", "err", err)
		}
		f.missing = true
		f.unlistedBecause(err)
		return
	}
	f.missing = false
	if changed {
		f.valid = f.judge(b)
	}
}

// unlistedBecause says why nothing is listed, unless something is.
func (f *followed) unlistedBecause(err error) {
	if f.listed == nil {
		f.setFault(err.Error())
	}
}

// judge puts into force what the file says, unless it is not valid.
func (f *followed) judge(b []byte) bool {
	specs, err := parseFile(b)
	f.results[err == nil].Inc()
	if err != nil {
		f.log.Error("the changed file of endpoints is not valid; the old one stays in force", "err", err)
		f.unlistedBecause(fmt.Errorf("%s: %w", f.cfg.Path, err))
		return false
	}
	changes := make([]Change, 0, len(specs))
	now := map[string]bool{}
	for _, s := range specs {
		changes = append(changes, Change{s.Name, []Listing{{Spec: s}}})
		now[s.Name] = true
	}
	for name := range f.listed {
		if !now[name] {
			changes = append(changes, Change{Key: name})
		}
	}
	f.listed = now
	f.tell(changes)
	f.log.Info("the file of endpoints was put into force", "endpoints", len(specs))
	return true
}
