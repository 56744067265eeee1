package pool

import (
	"context"
	"slices"
	"time"
)

// SyncState says how complete what the sources have listed is.
type SyncState struct {
	// Unlisted is what has not been listed yet, with why where that is known;
	// empty: everything has.
	Unlisted []string
	// GivenUp: what is known is made use of without it, see
	// [Config].SyncTimeout.
	GivenUp bool
}

// SyncState returns how complete what the sources have listed is now.
func (p *Pool) SyncState() SyncState {
	p.mu.Lock()
	listed, givenUp := slices.Clone(p.sourceListed), p.givenUp
	p.mu.Unlock()
	var s SyncState
	for i, source := range p.sources {
		if listed[i] {
			continue
		}
		s.GivenUp = givenUp
		what := source.Unlisted()
		if len(what) == 0 {
			s.Unlisted = append(s.Unlisted, source.Name())
		}
		for _, w := range what {
			s.Unlisted = append(s.Unlisted, source.Name()+": "+w)
		}
	}
	return s
}

// awaitSources gives up waiting for the sources after [Config].SyncTimeout.
func (p *Pool) awaitSources(ctx context.Context) {
	timer := time.NewTimer(p.cfg.SyncTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-p.synced:
	case <-timer.C:
		p.mu.Lock()
		p.overdue = true
		p.giveUpLate()
		p.mu.Unlock()
		if s := p.SyncState(); len(s.Unlisted) > 0 {
			p.log.Warn("not all endpoints were listed in time; those that are known are made use of, and if there are none yet, the first", "timeout", p.cfg.SyncTimeout, "unlisted", s.Unlisted)
		}
	}
}

// giveUpLate has [Pool.Probed] wait for sources no more, if they are overdue and
// there is an endpoint to go on with: a pool without any has nothing to serve.
// The caller holds mu.
func (p *Pool) giveUpLate() {
	if !p.overdue || p.givenUp || p.unsynced == 0 || len(p.members) == 0 {
		return
	}
	p.givenUp = true
	p.waitForLess(p.unsynced)
}

// sourceSynced takes note that the source with number i has listed all there
// was.
func (p *Pool) sourceSynced(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sourceListed[i-1] {
		return
	}
	p.sourceListed[i-1] = true
	if !p.givenUp {
		p.waitForLess(1)
	}
	p.unsynced--
	p.metrics.unlisted.Set(float64(p.unsynced))
	if p.unsynced == 0 {
		close(p.synced)
	}
}

// waitForLess takes n off what Probed waits for. Who waited finds everything
// in the snapshot. The caller holds mu.
func (p *Pool) waitForLess(n int) {
	if p.waiting -= n; p.waiting == 0 {
		if p.dirty {
			p.publish()
		}
		close(p.probed)
	}
}
