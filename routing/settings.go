package routing

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/warmpath/warmpath/routing/pool"
)

// settings is a [Config] made ready for use. It is immutable but for its
// caches, and replaced as a whole by [Router.Reload].
type settings struct {
	cfg         Config
	table       map[string]*strategy
	expressions expressions
	// byDefault is Config.Strategy; lock is Config.Lock, nil if there is none.
	byDefault, lock *strategy
	// own are Config.Profiles; annotated are those of the endpoints' annotations
	// in one snapshot of the pool.
	own       profileSet
	annotated atomic.Pointer[annotatedProfiles]
}

func newSettings(cfg Config) (*settings, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	st := &settings{cfg: cfg, table: strategyTable()}
	placer, err := cfg.Queue.placer(st.table)
	if err != nil {
		return nil, err
	}
	st.table["queue"] = placer.queued()
	if st.byDefault, err = lookUp(st.table, cfg.Strategy); err != nil {
		return nil, err
	}
	if cfg.Lock != "" {
		if st.lock, err = lookUp(st.table, cfg.Lock); err != nil {
			return nil, err
		}
	}
	st.own = profileSet{byDefault: cfg.DefaultProfile, profiles: map[string]profile{}}
	for name, p := range cfg.Profiles {
		s, err := lookUp(st.table, p.Strategy)
		if err != nil {
			return nil, err
		}
		st.own.profiles[name] = profile{s, p.Locked}
	}
	return st, nil
}

// strategyTable returns all strategies by name.
func strategyTable() map[string]*strategy {
	table := map[string]*strategy{}
	for _, s := range strategies() {
		table[s.name] = &s
	}
	return table
}

// choice is which strategy decides a request and who said so.
type choice struct {
	*strategy
	// profile is the name of the profile in use, empty if none is.
	profile string
	// by is who chose the strategy.
	by Chooser
}

// Chooser is who chose the strategy of a decision.
type Chooser string

// The choosers, in the order of their power.
const (
	ByLock    Chooser = "lock"
	ByHeader  Chooser = "header"
	ByProfile Chooser = "profile"
	ByDefault Chooser = "default"
)

// choose returns the strategy of a request: a lock before the routing-strategy
// header before a profile before the default.
func (st *settings) choose(req *Request, snap *pool.Snapshot, base string, log *slog.Logger) (choice, *Error) {
	annotated := st.annotations(snap, log).of(base)
	p, name, err := st.profileOf(req.Profile, annotated)
	if err != nil {
		return choice{}, err
	}
	switch {
	case st.lock != nil:
		return choice{st.lock, name, ByLock}, nil
	case annotated.lock != nil:
		return choice{annotated.lock, name, ByLock}, nil
	case p.locked:
		return choice{p.strategy, name, ByLock}, nil
	case req.Strategy != "":
		s, err := st.expressions.lookUp(st.table, req.Strategy)
		if err != nil {
			return choice{}, &Error{Reason: ReasonUnknownStrategy, Param: "routing-strategy", Message: "routing-strategy: " + err.Error()}
		}
		return choice{s, name, ByHeader}, nil
	case p.strategy != nil:
		return choice{p.strategy, name, ByProfile}, nil
	}
	return choice{st.byDefault, name, ByDefault}, nil
}

// profileOf finds the profile that a request names, or the default one: first
// those of the endpoints' annotations, then the configured ones.
func (st *settings) profileOf(name string, annotated *profileSet) (profile, string, *Error) {
	if name == "" {
		for _, set := range [...]*profileSet{annotated, &st.own} {
			if p, ok := set.profiles[set.byDefault]; ok {
				return p, set.byDefault, nil
			}
		}
		return profile{}, "", nil
	}
	for _, set := range [...]*profileSet{annotated, &st.own} {
		if p, ok := set.profiles[name]; ok {
			return p, name, nil
		}
	}
	known := append(st.own.names(), annotated.names()...)
	message := fmt.Sprintf("config-profile %q does not exist; there are no profiles, leave the header out", clip(name))
	if len(known) > 0 {
		message = fmt.Sprintf("config-profile %q does not exist; use one of %s", clip(name), strings.Join(known, ", "))
	}
	return profile{}, "", &Error{Reason: ReasonBadRequest, Param: "config-profile", Message: message}
}
