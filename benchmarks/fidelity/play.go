package fidelity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/sim"
	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

const (
	// modelName is the name that the engines serve.
	modelName = "sim"
	// lateness is how late a request may be sent, lateShare the share of
	// requests that may be later. It is real time at scale 1.
	lateness  = 25 * time.Millisecond
	lateShare = 0.05
	// lead is the time from the end of all preparation to the first arrival.
	lead = 100 * time.Millisecond
	// patience is how long the last answers may take after the last arrival, far
	// more than they do; longer at scales above 1.
	patience = time.Minute
	// told is how often [Config.Progress] is called.
	told = 100 * time.Millisecond
)

// errLate says that the machine was too slow to send requests at their times.
var errLate = errors.New("requests were sent too late")

// Progress is how far a run in real time is.
type Progress struct {
	Strategy string
	Scale    float64
	// Answered of Total requests have ended, the last of which arrives at Span
	// after the first; At is now.
	Answered, Total int
	At, Span        time.Duration
	// Late is the most that a request was sent after its time.
	Late time.Duration
	// Ended is set in the last call for a run, which TooLate says to be repeated
	// at a larger scale.
	Ended, TooLate bool
}

// answer is what one request gave.
type answer struct {
	// late is how long after its time the request was sent, ttft the time from
	// then, its time, to the first token.
	late, ttft     time.Duration
	prompt, cached int
	err            error
}

// play runs a strategy in real time.
func (c Config) play(ctx context.Context, strategy string, scale float64) (out Real, err error) {
	dir, err := os.MkdirTemp(c.Dir, "run-")
	if err != nil {
		return out, err
	}
	s, err := stack.Start(ctx, c.stack(strategy, scale, dir))
	defer s.Stop()
	if err != nil {
		return out, err
	}
	before, err := count(ctx, s)
	if err != nil {
		return out, err
	}
	p := newPlayer(c, strategy, scale, s.URL)
	defer p.client.CloseIdleConnections()
	answers, err := p.run(ctx)
	if err != nil {
		return out, err
	}
	after, err := count(ctx, s)
	if err != nil {
		return out, err
	}
	return figures(answers, before, after)
}

// stack is what runs in real time.
func (c Config) stack(strategy string, scale float64, dir string) stack.Config {
	scenario := c.scenario(strategy, scale).WithDefaults()
	longest := 0
	for i := range c.Workload.Requests {
		r := &c.Workload.Requests[i]
		longest = max(longest, r.InputTokens+r.OutputTokens)
	}
	return stack.Config{
		Warmpath: c.Warmpath, Enginesim: c.Enginesim, Envoy: c.Envoy, Dir: dir, Engines: c.Endpoints, Model: modelName,
		EngineArgs: []string{
			"--profile", c.Profile.Name, "--time-scale", strconv.FormatFloat(scale, 'g', -1, 64),
			"--block-size", strconv.Itoa(workload.BlockTokens), "--blocks", strconv.Itoa(scenario.Blocks()), "--empty-first",
			"--max-model-len", strconv.Itoa(longest), "--prefix-caching-hash-algo", string(engine.HashXXH3CBOR),
		},
		RouterArgs: []string{"--extproc.drain_delay=0s", "--routing.strategy=" + strategy},
	}
}

// figures sums up a run. The engines' own counters must say what the answers
// said: they count every request, wherever it came from.
func figures(answers []answer, before, after []counters) (Real, error) {
	var out Real
	var ttft, late []time.Duration
	var prompt, cached int
	var sum time.Duration
	for i := range answers {
		a := &answers[i]
		prompt += a.prompt
		cached += a.cached
		sum += a.ttft
		ttft, late = append(ttft, a.ttft), append(late, a.late)
	}
	var all counters
	for i := range after {
		d := after[i].minus(before[i])
		all = all.plus(d)
		out.Requests = append(out.Requests, int(d.ended))
	}
	if int(all.ended) != len(answers) || int(all.queried) != prompt || int(all.hit) != cached {
		return out, fmt.Errorf("the answers tell of %d requests with %d prompt tokens, %d of them cached; the engines' metrics of %v, %v and %v",
			len(answers), prompt, cached, all.ended, all.queried, all.hit)
	}
	slices.Sort(ttft)
	slices.Sort(late)
	out.Requests = descending(out.Requests)
	out.TokenHit = float64(cached) / float64(prompt)
	out.MeanTTFT = sum.Seconds() / float64(len(answers))
	out.P90TTFT = quantile(ttft, 0.9).Seconds()
	out.EngineTTFT = all.firstTokens / all.answered
	out.Late, out.LateMax = quantile(late, 0.95).Seconds(), late[len(late)-1].Seconds()
	return out, nil
}

// quantile returns the value of sorted below or at which a share of it lies.
func quantile(sorted []time.Duration, share float64) time.Duration {
	n := int(share*float64(len(sorted)) + 0.999999)
	return sorted[min(max(n, 1), len(sorted))-1]
}

// player sends a workload at its times.
type player struct {
	progress Progress
	tell     func(Progress)
	// last: there is no larger scale, so that lateness has no consequence.
	last   bool
	client *http.Client
	url    string
	times  []time.Duration
	// requests are in the order of times; their bodies are made beforehand.
	requests []*workload.Request
	bodies   [][]byte
}

func newPlayer(c Config, strategy string, scale float64, url string) *player {
	p := &player{
		tell: c.Progress, last: scale >= c.MaxScale, url: url,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}},
	}
	if p.tell == nil {
		p.tell = func(Progress) {}
	}
	// The arrivals of a generated workload are the same under all seeds.
	times, order := c.Workload.Arrivals(c.Speed/scale, 1)
	p.times = times
	for _, i := range order {
		r := &c.Workload.Requests[i]
		p.requests = append(p.requests, r)
		p.bodies = append(p.bodies, body(r))
	}
	p.progress = Progress{Strategy: strategy, Scale: scale, Total: len(order), Span: times[len(times)-1] - times[0]}
	return p
}

// body is a request in the OpenAI API, with vLLM's extension that has an
// answer be as long as it may.
func body(r *workload.Request) []byte {
	b := append([]byte(nil), `{"model":"`+modelName+`","prompt":[`...)
	for i, t := range sim.AppendPrompt(nil, r) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(t), 10)
	}
	return fmt.Appendf(b, `],"max_tokens":%d,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`, r.OutputTokens)
}

// run sends every request and returns the answers when all have ended. The
// first failure ends it, and so does [errLate].
func (p *player) run(ctx context.Context) ([]answer, error) {
	ctx, stop := context.WithTimeout(ctx, lead+p.progress.Span+time.Duration(max(1, p.progress.Scale)*float64(patience)))
	begin := time.Now().Add(lead)
	results := make(chan answer, len(p.times))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { p.pace(ctx, begin, &wg, results) })

	tick := time.NewTicker(told)
	defer tick.Stop()
	out := make([]answer, 0, len(p.times))
	tooLate := 0
	err := func() error {
		for len(out) < len(p.times) {
			select {
			case a := <-results:
				out = append(out, a)
				p.progress.Late = max(p.progress.Late, a.late)
				if float64(a.late) > float64(lateness)*p.progress.Scale {
					tooLate++
				}
				switch {
				case a.err != nil && ctx.Err() == nil:
					return a.err
				case float64(tooLate) > lateShare*float64(len(p.times)) && !p.last:
					return errLate
				}
			case <-tick.C:
				p.progress.At, p.progress.Answered = time.Since(begin), len(out)
				p.tell(p.progress)
			case <-ctx.Done():
				return fmt.Errorf("%d of %d requests were answered: %w", len(out), len(p.times), ctx.Err())
			}
		}
		return nil
	}()
	p.progress.At, p.progress.Answered = time.Since(begin), len(out)
	p.progress.Ended, p.progress.TooLate = true, errors.Is(err, errLate)
	p.tell(p.progress)
	return out, err
}

// pace sends each request at its time, whatever became of those before.
func (p *player) pace(ctx context.Context, begin time.Time, wg *sync.WaitGroup, results chan<- answer) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range p.times {
		due := begin.Add(p.times[i] - p.times[0])
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			a := p.send(ctx, due, i)
			if a.err != nil {
				a.err = fmt.Errorf("request %d of %d: %w", i+1, len(p.times), a.err)
			}
			results <- a
		})
	}
}
