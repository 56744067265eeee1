package pool

import (
	"math"
	"time"
)

// Field is a set of values in a [Load].
type Field uint32

// The fields. A field that is not in [Load.Has] was not exported by the
// engine, or cannot be computed yet, and its value is 0.
const (
	// FieldRequests: Running and Waiting.
	FieldRequests Field = 1 << iota
	// FieldKVUsage: KVUsage.
	FieldKVUsage
	// FieldHostUsage: HostUsage.
	FieldHostUsage
	// FieldCapacity: Capacity.
	FieldCapacity
	// FieldUtilization: Utilization.
	FieldUtilization
	// FieldBusy: Busy.
	FieldBusy
	// FieldThroughput: PromptRate and GenerationRate.
	FieldThroughput
	// FieldPrefillRate: PrefillRate.
	FieldPrefillRate
	// FieldStep: StepSeconds.
	FieldStep
	// FieldLatency: QueueSeconds, PrefillSeconds and DecodeSeconds.
	FieldLatency
	// FieldAdapters: Adapters and MaxAdapters.
	FieldAdapters
	// FieldUnanswered: Unanswered.
	FieldUnanswered
	// FieldMemory: Demand and StaySeconds.
	FieldMemory
)

// Load is what an engine's own metrics said at one instant, with rates learned
// from earlier ones. It is immutable once published.
type Load struct {
	// What decisions read of every endpoint comes first, so that it shares few
	// cache lines.

	// Until is when the load no longer counts.
	Until time.Time
	Has   Field
	// Running and Waiting are requests, of every client of the engine.
	Running, Waiting float64
	// InFlight is how many requests this router had in flight there at At.
	InFlight int64
	// PrefillRate is how many uncached prompt tokens the engine computes in a
	// second of prefill, RateLent whether that is the mean of others of its model,
	// for its own is not learned.
	PrefillRate float64
	RateLent    bool
	// Capacity is the size of the KV cache in tokens.
	Capacity float64
	// Computed is how many tokens the engine has computed and kept since it
	// started, 0 if it does not say.
	Computed float64
	// KVUsage is the share of KV-cache blocks that running requests use, 0 to 1.
	KVUsage float64
	// Demand is how many tokens of the KV cache running requests hold and waiting
	// ones need beyond what is cached, Placed what [State.Placed] was then. A full cache gives way to
	// others in StaySeconds, the mean time that a request runs.
	Demand      float64
	Placed      int64
	StaySeconds float64
	// QueueSeconds, PrefillSeconds and DecodeSeconds are the mean times a
	// recently ended request spent in each phase.
	QueueSeconds, PrefillSeconds, DecodeSeconds float64

	// At is when the engine answered.
	At time.Time
	// HostUsage is KVUsage for the engine's CPU cache.
	HostUsage float64
	// BlockSize is the engine's block size in tokens, 0 if it does not say.
	BlockSize int
	// Utilization is the engine's own engine_utilization, 0 to 1.
	Utilization float64
	// Busy is the share of recent time in which the engine had work, 0 to 1.
	Busy float64
	// PromptRate and GenerationRate are tokens a second of recent time.
	PromptRate, GenerationRate float64
	// StepSeconds is the mean time between two tokens of a request.
	StepSeconds float64
	// Unanswered is how many requests, of every client of the engine, waited for
	// their first token.
	Unanswered float64
	// Never is how many requests ended without a first token, or began before the
	// counters: what Unanswered is counted from.
	Never float64
	// Alone and WithQueue are what PrefillRate is learned from: sums over ended
	// requests, and over time in which prompts waited.
	Alone, WithQueue Work
	// Ended are the requests that ended since the load before, and their times
	// from admission to end.
	Ended Work
	// Adapters are the LoRA adapters that running or waiting requests use,
	// MaxAdapters how many fit at a time, 0 if unknown.
	Adapters    []string
	MaxAdapters int
}

// Fresh returns l's fields if l is not nil and still counts at now, else none.
func (l *Load) Fresh(now time.Time) Field {
	if l == nil || now.After(l.Until) {
		return 0
	}
	return l.Has
}

// Learned values are exponentially weighted means: those of time over a window
// in seconds, those of requests over a number of scrapes that had any.
const (
	learnWindow  = 5.0
	learnScrapes = 5.0
	rateWindow   = 600.0
	// leastQueued is for how many seconds prompts must have waited before what
	// was computed meanwhile tells a rate: a second that began with half a prompt
	// tells half of it, and such a rate sends requests elsewhere for long.
	leastQueued = 10.0
)

// learn moves old towards sample by the weight of n of window measurements.
func learn(old, sample float64, first bool, n, window float64) float64 {
	if first {
		return sample
	}
	return sample + math.Exp(-n/window)*(old-sample)
}

// newLoad returns the load that a sample tells, given the sample and the load
// before it (both nil at first). Rates are learned from the differences of
// counters; a counter that fell says that the engine was restarted.
func newLoad(at time.Time, s, before *sample, old *Load, inFlight int64) *Load {
	l := &Load{At: at, InFlight: inFlight, BlockSize: int(s.v[blockSizeOf])}
	set := func(f Field, ok bool) bool {
		if ok {
			l.Has |= f
		}
		return ok
	}
	if set(FieldRequests, s.has(numRunning) && s.has(numWaiting)) {
		l.Running, l.Waiting = s.v[numRunning], s.v[numWaiting]
	}
	if set(FieldKVUsage, s.has(kvUsage)) {
		l.KVUsage = s.v[kvUsage]
	}
	if set(FieldHostUsage, s.has(hostUsage)) {
		l.HostUsage = s.v[hostUsage]
	} else if set(FieldHostUsage, s.has(hostUsed) && s.v[hostTotal] > 0) {
		l.HostUsage = s.v[hostUsed] / s.v[hostTotal]
	}
	if set(FieldCapacity, s.has(capacityTokens)) {
		l.Capacity = s.v[capacityTokens]
	} else if set(FieldCapacity, s.v[capacityBlocks] > 0 && s.v[blockSizeOf] > 0) {
		l.Capacity = s.v[capacityBlocks] * s.v[blockSizeOf]
	}
	if set(FieldUtilization, s.has(utilization)) {
		l.Utilization = s.v[utilization]
	}
	if set(FieldAdapters, s.adapterTime > 0) {
		l.Adapters, l.MaxAdapters = s.adapters, s.maxAdapters
	}
	if s.has(promptTokens) {
		l.Computed = s.v[promptTokens] - s.v[cachedTokens] + s.v[generationTokens]
	}
	l.unanswered(s, before, old)
	if before != nil && old != nil && at.After(old.At) {
		l.learn(s, before, old, at.Sub(old.At).Seconds())
	}
	if s.has(busyRatio) {
		l.Has |= FieldBusy
		l.Busy = s.v[busyRatio]
	}
	return l
}

// unanswered counts the requests that wait for their first token: those that
// came, which are the ended, running and waiting ones, without those whose time
// to first token was taken. Of requests that ended without one, and of counters
// that do not begin together, an idle engine tells the number.
func (l *Load) unanswered(s, before *sample, old *Load) {
	if l.Has&FieldRequests == 0 || !s.has(firstTokens) || !s.has(requestsEnded) {
		return
	}
	here := l.Running + l.Waiting
	n := s.v[requestsEnded] + here - s.v[firstTokens]
	if before != nil && old != nil && s.v[firstTokens] >= before.v[firstTokens] {
		l.Never = old.Never
	}
	if here == 0 || n < l.Never {
		l.Never = n
	}
	l.Has |= FieldUnanswered
	l.Unanswered = max(l.Waiting, min(n-l.Never, here))
}

// learn fills in what needs two samples, dt seconds apart.
func (l *Load) learn(s, before *sample, old *Load, dt float64) {
	if s.v[promptTokens] < before.v[promptTokens] || s.v[generationTokens] < before.v[generationTokens] {
		return // restarted: learned rates start anew as well
	}
	diff := func(m metric) float64 { return s.v[m] - before.v[m] }
	first := func(f Field) bool { return old.Has&f == 0 }
	// What was known stays known while nothing happens.
	const kept = FieldThroughput | FieldPrefillRate | FieldStep | FieldLatency | FieldBusy
	l.Has |= old.Has & kept
	l.PromptRate, l.GenerationRate, l.PrefillRate, l.StepSeconds = old.PromptRate, old.GenerationRate, old.PrefillRate, old.StepSeconds
	l.QueueSeconds, l.PrefillSeconds, l.DecodeSeconds = old.QueueSeconds, old.PrefillSeconds, old.DecodeSeconds
	l.Busy, l.RateLent = old.Busy, old.RateLent
	if s.has(promptTokens) && s.has(generationTokens) {
		l.PromptRate = learn(old.PromptRate, diff(promptTokens)/dt, first(FieldThroughput), dt, learnWindow)
		l.GenerationRate = learn(old.GenerationRate, diff(generationTokens)/dt, first(FieldThroughput), dt, learnWindow)
		l.Has |= FieldThroughput
	}
	if l.Has&FieldRequests != 0 {
		busy := 0.0
		if l.Running+l.Waiting > 0 {
			busy = 1
		}
		l.Busy = learn(old.Busy, busy, first(FieldBusy), dt, learnWindow)
		l.Has |= FieldBusy
	}
	l.learnPrefill(old, diff(promptTokens)-diff(cachedTokens), diff(prefillSum), diff(prefillCount), dt)
	if s.has(decodeSum) {
		l.Ended.add(0, diff(prefillSum)+diff(decodeSum), diff(prefillCount))
	}
	if n := diff(prefillCount); n > 0 {
		took := diff(prefillSum)
		if s.has(decodeSum) && s.has(queueSum) {
			f := first(FieldLatency)
			l.QueueSeconds = learn(old.QueueSeconds, mean(diff(queueSum), diff(queueCount)), f, 1, learnScrapes)
			l.PrefillSeconds = learn(old.PrefillSeconds, took/n, f, 1, learnScrapes)
			l.DecodeSeconds = learn(old.DecodeSeconds, mean(diff(decodeSum), diff(decodeCount)), f, 1, learnScrapes)
			l.Has |= FieldLatency
		}
	}
	if n := diff(stepCount); n > 0 {
		l.StepSeconds = learn(old.StepSeconds, diff(stepSum)/n, first(FieldStep), 1, learnScrapes)
		l.Has |= FieldStep
	}
}

// learnPrefill learns the prefill rate from how many prompt tokens were computed
// in dt seconds, and the prefill times of the n requests that ended.
//
// There are two ways to see it, each at worst too small, so that the larger one
// counts. Prefill times of requests in one batch overlap. What is computed
// between two reads at which prompts waited may have had pauses. Both are
// quotients of sums: tokens are counted when a prompt is done and times when its
// answer is, and a mean of quotients would take the least such times for speed.
func (l *Load) learnPrefill(old *Load, uncached, took, n, dt float64) {
	keep := math.Exp(-dt / rateWindow)
	l.Alone = old.Alone.decayed(keep)
	l.WithQueue = old.WithQueue.decayed(keep)
	if n > 0 || uncached > 0 {
		// Every prompt takes a step at least, however short it is.
		l.Alone.add(uncached, max(took-n*old.StepSeconds, took/4), n)
	}
	if old.Unanswered > 0 && l.Unanswered > 0 {
		l.WithQueue.add(uncached, dt, 1)
	}
	rate := 0.0
	// A handful of tokens a request measures the step, not the rate.
	if l.Alone.Seconds > 0 && l.Alone.Tokens >= 64*l.Alone.N {
		rate = l.Alone.Tokens / l.Alone.Seconds
	}
	if l.WithQueue.Seconds >= leastQueued {
		rate = max(rate, l.WithQueue.Tokens/l.WithQueue.Seconds)
	}
	if rate > 0 {
		l.PrefillRate, l.RateLent = rate, false
		l.Has |= FieldPrefillRate
	}
}

// Work is decaying sums of prompt tokens computed, of the time that took, and of what
// there was of it.
type Work struct{ Tokens, Seconds, N float64 }

func (w Work) decayed(keep float64) Work { return Work{keep * w.Tokens, keep * w.Seconds, keep * w.N} }

func (w *Work) add(tokens, seconds, n float64) {
	w.Tokens += tokens
	w.Seconds += seconds
	w.N += n
}

func mean(sum, n float64) float64 {
	if n <= 0 {
		return 0
	}
	return sum / n
}
