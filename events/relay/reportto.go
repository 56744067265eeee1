package relay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// maxRouters bounds the addresses of one name that are reported to: each costs a
// connection and a goroutine for every publisher.
const maxRouters = 256

// errLeft ends the reports to an address that a name no longer leads to.
var errLeft = errors.New("relay: the name no longer leads to the router")

// reportAll tells every router that a host:port leads to of a publisher, each on
// a stream of its own, until everything is delivered after its end, or ctx ends.
// A name is looked up again and again: routers come and go.
func (r *Relay) reportAll(ctx context.Context, f *feed, name string) {
	if _, err := netip.ParseAddrPort(name); err == nil {
		r.report(ctx, f, name, name)
		return
	}
	routers := map[string]*reportee{}
	var wg sync.WaitGroup
	defer wg.Wait()
	pauses := &backoff.ExponentialBackOff{InitialInterval: r.cfg.BackoffMin, Multiplier: 2, MaxInterval: r.cfg.BackoffMax}
	told, cut := "", 0
	for {
		all, err := r.lookUp(ctx, name)
		wait := r.cfg.BackoffMax
		if err != nil {
			wait = pauses.NextBackOff()
			if text := err.Error(); text != told {
				told = text
				r.log.Warn("a name of routers leads nowhere at the moment; those that it led to are still reported to", "router", name, "err", err)
			}
		} else {
			told = ""
			pauses.Reset()
			all, cut = r.bound(all, name, cut)
			r.follow(ctx, &wg, f, name, routers, all)
		}
		timer := time.NewTimer(r.jitter(wait))
		select {
		case <-timer.C:
		case <-f.done: // those who are reported to get the rest
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// lookUp returns the routers that a name leads to, as they are dialed, sorted. A
// router may have an address of each family, and is to be reported to once: one
// family counts, and if neither has more than one address, there is one router,
// which is dialed by its name so that the address counts that answers.
func (r *Relay) lookUp(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	all, err := r.out.network.addresses(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("it has no address")
	}
	four := all[0].Addr().Is4() // the resolver puts those first that can be reached
	var out []string
	others := 0
	for _, a := range all {
		if a.Addr().Is4() == four {
			out = append(out, a.String())
		} else {
			others++
		}
	}
	if len(out) == 1 && others == 1 {
		return []string{name}, nil
	}
	slices.Sort(out) // so that the same ones are reported to if there are too many
	return slices.Compact(out), nil
}

// bound returns those routers of all that are reported to, and how many are not:
// was of them at the look-up before.
func (r *Relay) bound(all []string, name string, was int) ([]string, int) {
	cut := max(0, len(all)-maxRouters)
	if cut > 0 && cut != was {
		r.log.Warn("a name leads to more routers than are reported to", "router", name, "addresses", len(all), "most", maxRouters)
	}
	return all[:len(all)-cut], cut
}

// reportee is a router that is reported to.
type reportee struct {
	cancel context.CancelCauseFunc
	// missed counts the look-ups in a row that did not lead to it.
	missed int
}

// maxMissed is how many look-ups in a row have to miss a router before it counts
// as gone: resolvers return part of many addresses, another one each time.
const maxMissed = 3

// follow begins to report to the addresses that are new, and ends it for those
// that are gone.
func (r *Relay) follow(ctx context.Context, wg *sync.WaitGroup, f *feed, name string, routers map[string]*reportee, all []string) {
	for _, to := range routers {
		to.missed++
	}
	for _, a := range all {
		if to := routers[a]; to != nil {
			to.missed = 0
		}
	}
	for a, to := range routers {
		// In another form it is a router that is reported to, which may be the same.
		if to.missed >= maxMissed || to.missed > 0 && formOf(a) != formOf(all[0]) {
			to.cancel(errLeft)
			delete(routers, a)
		}
	}
	for _, a := range all {
		if routers[a] != nil || len(routers) >= maxRouters {
			continue
		}
		ctx, cancel := context.WithCancelCause(ctx)
		routers[a] = &reportee{cancel: cancel}
		wg.Go(func() {
			defer cancel(nil)
			r.report(ctx, f, a, name)
		})
	}
}

// formOf returns what lookUp returns one kind of only: names, and addresses of
// either family.
func formOf(a string) string {
	switch p, err := netip.ParseAddrPort(a); {
	case err != nil:
		return "name"
	case p.Addr().Is4():
		return "4"
	}
	return "6"
}
