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
	// second of prefill.
	PrefillRate float64
	// Capacity is the size of the KV cache in tokens.
	Capacity float64
	// Computed is how many tokens the engine has computed and kept since it
	// started, 0 if it does not say.
	Computed float64
	// KVUsage is the share of KV-cache blocks that running requests use, 0 to 1.
	KVUsage float64
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
	if before != nil && old != nil && at.After(old.At) {
		l.learn(s, before, old, at.Sub(old.At).Seconds())
	}
	if s.has(busyRatio) {
		l.Has |= FieldBusy
		l.Busy = s.v[busyRatio]
	}
	return l
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
	l.Busy = old.Busy
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
	// Prefill times of requests in one batch overlap, so the quotient is at
	// worst too small: an endpoint looks slower than it is.
	if n := diff(prefillCount); n > 0 {
		uncached, took := diff(promptTokens)-diff(cachedTokens), diff(prefillSum)
		if uncached >= 64*n && took > 0 { // a handful of tokens measures the step, not the rate
			l.PrefillRate = learn(old.PrefillRate, uncached/took, first(FieldPrefillRate), 1, learnScrapes)
			l.Has |= FieldPrefillRate
		}
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

func mean(sum, n float64) float64 {
	if n <= 0 {
		return 0
	}
	return sum / n
}
