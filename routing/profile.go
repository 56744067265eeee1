package routing

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/warmpath/warmpath/routing/pool"
)

// profile is a named choice of strategy. Its strategy is nil if it does not
// say.
type profile struct {
	*strategy
	locked bool
}

// profileSet is the profiles of one source.
type profileSet struct {
	profiles  map[string]profile
	byDefault string
	// lock is the strategy of every request, nil if there is none.
	lock *strategy
}

func (p *profileSet) names() []string { return slices.Sorted(maps.Keys(p.profiles)) }

// annotatedProfiles are the profiles in the annotations of one snapshot, by
// base model.
type annotatedProfiles struct {
	snap   *pool.Snapshot
	models map[string]*profileSet
}

var noProfiles profileSet

func (a *annotatedProfiles) of(base string) *profileSet {
	if p := a.models[base]; p != nil {
		return p
	}
	return &noProfiles
}

// annotations returns the profiles of a snapshot. They are read once for each
// snapshot and not for each request.
func (st *settings) annotations(snap *pool.Snapshot, log *slog.Logger) *annotatedProfiles {
	if a := st.annotated.Load(); a != nil && a.snap == snap {
		return a
	}
	a := &annotatedProfiles{snap: snap, models: map[string]*profileSet{}}
	for _, e := range snap.Profiled {
		text := e.Annotations[pool.AnnotationProfiles]
		base := ""
		if len(e.Models) > 0 {
			base = e.Models[0]
		}
		if a.models[base] != nil {
			continue // the first endpoint of a model speaks for it, as in AIBrix
		}
		set, err := readAnnotation(st.table, text)
		if err != nil {
			log.Error("an endpoint's annotation is not valid and is ignored", "endpoint", e.Name, "annotation", pool.AnnotationProfiles, "err", err)
			continue
		}
		a.models[base] = set
	}
	st.annotated.Store(a)
	return a
}

// readAnnotation reads the fields of AIBrix's annotation that choose a
// strategy. It has others, which are ignored.
func readAnnotation(table map[string]*strategy, text string) (*profileSet, error) {
	var doc struct {
		Locked   string `json:"lockedRoutingStrategy"`
		Default  string `json:"defaultProfile"`
		Profiles map[string]struct {
			Strategy string `json:"routingStrategy"`
		} `json:"profiles"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return nil, err
	}
	set := &profileSet{profiles: map[string]profile{}, byDefault: doc.Default}
	var errs []error
	find := func(field, name string) *strategy {
		if name == "" {
			return nil
		}
		s, err := lookUp(table, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return s
	}
	set.lock = find("lockedRoutingStrategy", doc.Locked)
	for _, name := range slices.Sorted(maps.Keys(doc.Profiles)) {
		set.profiles[name] = profile{strategy: find("profiles."+name+".routingStrategy", doc.Profiles[name].Strategy)}
	}
	if _, ok := set.profiles[doc.Default]; doc.Default != "" && !ok {
		errs = append(errs, fmt.Errorf("defaultProfile: %q is not one of the profiles", doc.Default))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return set, nil
}
