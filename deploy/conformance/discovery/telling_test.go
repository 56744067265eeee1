package discovery_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/routing/pool"
)

// telling is a source that remembers what the pool was told: which endpoints
// must not get requests any more.
type telling struct {
	pool.Source

	// told counts the calls that have returned.
	told atomic.Uint64

	mu     sync.Mutex
	listed map[string][]pool.Listing // by key
	// barred are endpoints that are gone or withheld, by name and address, with
	// the call that said so.
	barred map[string]uint64
}

func newTelling(s pool.Source) *telling {
	return &telling{Source: s, listed: map[string][]pool.Listing{}, barred: map[string]uint64{}}
}

// Run implements [pool.Source].
func (s *telling) Run(ctx context.Context, tell func([]pool.Change), synced func()) error {
	return s.Source.Run(ctx, func(changes []pool.Change) {
		s.allow(changes)
		tell(changes)
		s.bar(changes)
	}, synced)
}

func place(l pool.Listing) string { return l.Name + " " + l.Address }

// allow is called before the pool learns of changes: what it may choose from
// then on is not barred.
func (s *telling) allow(changes []pool.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		for _, l := range c.Listings {
			if l.Withheld == "" {
				delete(s.barred, place(l))
			}
		}
	}
}

// bar is called when requests follow the changes.
func (s *telling) bar(changes []pool.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := s.told.Load() + 1
	for _, c := range changes {
		now := map[string]bool{}
		for _, l := range c.Listings {
			now[place(l)] = l.Withheld == ""
		}
		for _, l := range slices.Concat(s.listed[c.Key], c.Listings) {
			_, already := s.barred[place(l)]
			switch {
			case now[place(l)]: // what went earlier in these changes has come back
				delete(s.barred, place(l))
			case !already:
				s.barred[place(l)] = call
			}
		}
		if len(c.Listings) == 0 {
			delete(s.listed, c.Key)
		} else {
			s.listed[c.Key] = c.Listings
		}
	}
	s.told.Store(call)
}

// since tells whether an endpoint must not have been chosen by a decision that
// began when told was call.
func (s *telling) since(e *pool.Endpoint, call uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	barred, ok := s.barred[e.Name+" "+e.Address]
	return ok && barred <= call
}

// translated dials other addresses than it is asked for: Kubernetes accepts no
// loopback addresses in EndpointSlices.
type translated struct {
	events.Transport
	to func(string) string
}

// DialLive implements [events.Transport].
func (d translated) DialLive(ctx context.Context, endpoint string) (events.Stream, error) {
	return d.Transport.DialLive(ctx, d.endpoint(endpoint))
}

// DialReplay implements [events.Transport].
func (d translated) DialReplay(ctx context.Context, endpoint string, request [][]byte) (events.Stream, error) {
	return d.Transport.DialReplay(ctx, d.endpoint(endpoint), request)
}

func (d translated) endpoint(e string) string {
	rest, ok := strings.CutPrefix(e, "tcp://")
	if !ok {
		return e
	}
	return "tcp://" + d.to(rest)
}

func dialTranslated(to func(string) string) func(context.Context, string, string) (net.Conn, error) {
	var d net.Dialer
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return d.DialContext(ctx, network, to(address))
	}
}
