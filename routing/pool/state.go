package pool

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// State counts the work that this router has given to one incarnation of an
// endpoint, and holds what was learned of it: its engine's load, its failures,
// its block sizes. Safe for concurrent use.
type State struct {
	// The first eight words are what decisions read of every endpoint: they
	// share a cache line.

	inFlight atomic.Int64
	// cool and failures are the failure state, see cooldown.go.
	cool atomic.Int64
	// drains is when the prefill work given so far will be done, in Unix
	// nanoseconds, 0 before the first.
	drains atomic.Int64
	load   atomic.Pointer[Load]
	// churn is the level of placed's rate, see [State.Churn].
	churn atomic.Uint64
	// placed counts the prompt tokens that were sent there to be computed.
	placed atomic.Int64
	// refuted is 1 − faith as the bits of a float64, so that zero is full faith.
	refuted atomic.Uint64
	turn    atomic.Uint64

	blockSizes    atomic.Pointer[[]int]
	prefillTokens atomic.Int64
	contextTokens atomic.Int64
	failures      atomic.Int32

	// queue is the work of the requests in flight.
	queue queue

	// fleet is that of the endpoint's model, nil while that is not known.
	fleet atomic.Pointer[fleet]

	// sizesChanged, where it is not nil, counts the block sizes that became
	// known of any endpoint of the pool.
	sizesChanged *atomic.Uint64
	// changed, where it is not nil, counts the changes of what decisions read,
	// see changes.go. It is raised after the change.
	changed *atomic.Uint32
	// wake, where it is not nil, is told when an idle endpoint gets a request. It
	// has room for one word.
	wake chan struct{}
	// 192 bytes are a size class of the allocator whose objects begin on a cache
	// line; in most other ones the first words could lie on two.
	_ [32]byte
}

// touch tells that something that decisions read has changed.
func (s *State) touch() {
	if s.changed != nil {
		s.changed.Add(1)
	}
}

// Reserve counts one more request in flight, with tokens of prefill work
// ahead of it.
func (s *State) Reserve(tokens int64) {
	first := s.inFlight.Add(1) == 1
	s.prefillTokens.Add(tokens)
	s.touch()
	if first && s.wake != nil {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Release undoes one Reserve. tokens is what is left of its prefill work: 0
// after [State.PrefillDone].
func (s *State) Release(tokens int64) {
	s.inFlight.Add(-1)
	s.prefillTokens.Add(-tokens)
	s.touch()
}

// PrefillDone takes back the prefill work of a request that stays in flight.
func (s *State) PrefillDone(tokens int64) { s.prefillTokens.Add(-tokens) }

// InFlight returns the number of requests that this router has in flight on
// the endpoint.
func (s *State) InFlight() int64 { return s.inFlight.Load() }

// PrefillTokens returns the prefill tokens reserved by those requests.
func (s *State) PrefillTokens() int64 { return s.prefillTokens.Load() }

// AddContext changes the prompt tokens, cached ones included, of the requests
// in flight: what the engine keeps for them and reads in every decode step.
func (s *State) AddContext(tokens int64) { s.contextTokens.Add(tokens) }

// ContextTokens returns the prompt tokens of the requests in flight.
func (s *State) ContextTokens() int64 { return s.contextTokens.Load() }

// SetTurn records the number of the decision that chose the endpoint.
func (s *State) SetTurn(n uint64) {
	s.turn.Store(n)
	s.touch()
}

// Turn returns the number of the last decision that chose the endpoint, 0 if
// none has.
func (s *State) Turn() uint64 { return s.turn.Load() }

// Enqueue adds work to the endpoint's backlog and returns when it will be
// done. An engine prefills in order of arrival and its answer does not tell
// when the prefill ended: the headers of a streamed answer come before it,
// those of another after the last token. So the backlog is an estimate that
// drains as time passes.
func (s *State) Enqueue(now time.Time, work time.Duration) time.Time {
	for {
		old := s.drains.Load()
		end := max(old, now.UnixNano()) + int64(work)
		if s.drains.CompareAndSwap(old, end) {
			s.touch()
			return time.Unix(0, end)
		}
	}
}

// Dequeue takes back what is left at now of work that Enqueue said would be
// done at end.
func (s *State) Dequeue(now, end time.Time, work time.Duration) {
	if left := min(work, end.Sub(now)); left > 0 {
		s.drains.Add(-int64(left))
		s.touch()
	}
}

// Drains returns when the prefill work given so far will be done, in Unix
// nanoseconds, 0 if there never was any.
func (s *State) Drains() int64 { return s.drains.Load() }

// Backlog returns how long the prefill work given so far will still take.
func (s *State) Backlog(now time.Time) time.Duration {
	return time.Duration(max(0, s.drains.Load()-now.UnixNano()))
}

// churnWindow is the time constant of the churn, in seconds: long enough to
// smooth over bursts of arrivals, short against the life of a cache.
const churnWindow = 30.0

// Place counts prompt tokens that the endpoint has to compute and keep.
func (s *State) Place(now time.Time, tokens int64) {
	if tokens <= 0 {
		return
	}
	s.placed.Add(tokens)
	t := seconds(now)
	for {
		old := s.churn.Load()
		rate := churnAt(old, t) + float64(tokens)/churnWindow
		if s.churn.CompareAndSwap(old, math.Float64bits(t+churnWindow*math.Log(rate))) {
			s.touch()
			return
		}
	}
}

// Placed returns the sum of all tokens given to Place.
func (s *State) Placed() int64 { return s.placed.Load() }

// Churn returns how many tokens a second were placed lately, an exponentially
// weighted mean.
func (s *State) Churn(now time.Time) float64 { return churnAt(s.churn.Load(), seconds(now)) }

// ChurnDecay returns by which factor the churn falls in d while nothing is
// placed: Churn(t+d) = Churn(t) × ChurnDecay(d).
func ChurnDecay(d time.Duration) float64 { return math.Exp(-d.Seconds() / churnWindow) }

// churnAt reads a level. A rate r at time t that decays with the time constant
// w is kept as the one number L = t + w·ln r: at any later time it is
// exp((L−time)/w), so one word holds both the rate and its age.
func churnAt(level uint64, t float64) float64 {
	if level == 0 {
		return 0
	}
	return math.Exp((math.Float64frombits(level) - t) / churnWindow)
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// faithStep is the weight of one comparison in [State.ObserveCached].
const faithStep = 0.1

// ObserveCached compares how many cached tokens were predicted for a request
// with how many the engine says it reused.
func (s *State) ObserveCached(predicted, reused int) {
	if predicted <= 0 {
		return
	}
	wrong := 1 - min(1, float64(reused)/float64(predicted))
	for {
		old := s.refuted.Load()
		r := math.Float64frombits(old)
		r += faithStep * (wrong - r)
		if s.refuted.CompareAndSwap(old, math.Float64bits(r)) {
			s.touch()
			return
		}
	}
}

// Faith returns which share of predicted cached tokens the engine lately
// confirmed, 1 if it was never asked.
func (s *State) Faith() float64 { return 1 - math.Float64frombits(s.refuted.Load()) }

// Load returns what the engine's own metrics last said, nil if they never
// could be read. It must not be changed.
func (s *State) Load() *Load { return s.load.Load() }

// SetLoad replaces what [State.Load] returns. l must not be changed after.
func (s *State) SetLoad(l *Load) {
	s.load.Store(l)
	s.touch()
}

// maxBlockSizes bounds what a publisher can make every request hash: one
// chain is hashed for each block size in use.
const maxBlockSizes = 4

// ObserveBlockSize records that the endpoint's events use blocks of n tokens.
// It reports whether requests will be hashed for that size: the first few
// sizes are kept, later ones are refused.
func (s *State) ObserveBlockSize(n int) bool {
	for {
		old := s.blockSizes.Load()
		var sizes []int
		if old != nil {
			sizes = *old
		}
		if slices.Contains(sizes, n) {
			return true
		}
		if len(sizes) == maxBlockSizes {
			return false
		}
		grown := append(slices.Clone(sizes), n)
		if s.blockSizes.CompareAndSwap(old, &grown) {
			if s.sizesChanged != nil {
				s.sizesChanged.Add(1)
			}
			return true
		}
	}
}

// BlockSizes returns the block sizes seen so far. The slice must not be
// changed.
func (s *State) BlockSizes() []int {
	if p := s.blockSizes.Load(); p != nil {
		return *p
	}
	return nil
}
