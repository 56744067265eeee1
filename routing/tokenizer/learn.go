package tokenizer

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// job is a prompt to be tokenized behind its decision. It owns everything in
// it.
type job struct {
	group   *group
	outline outline
	// text is that of a text prompt.
	text   string
	body   *payload
	hasher kvindex.Hasher
	sizes  []int
	made   []routing.TokenBlocks
	bytes  int64
}

// Run examines tokenizers and learns prompts behind their decisions, until ctx
// ends. It returns nil.
func (t *Client) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range t.cfg.LearnWorkers {
		wg.Go(func() {
			for {
				select {
				case j := <-t.jobs:
					t.work(ctx, j)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case l := <-t.exams:
				t.examine(ctx, l)
				l.queued.Store(false)
			case <-ctx.Done():
				return
			}
		}
	})
	wg.Wait()
	return nil
}

// learn puts a prompt into the queue, unless that is full.
func (t *Client) learn(q *query, g *group) {
	p := &q.Request.Prompt
	where, ok := path(t.cfg.API, p.Kind)
	if !ok {
		return
	}
	bytes := int64(len(p.Text) + len(p.Messages) + len(p.Tools))
	for i := range p.Options {
		bytes += int64(len(p.Options[i].Value))
	}
	if len(t.jobs) == cap(t.jobs) || t.jobBytes.Add(bytes) > t.cfg.LearnBytes {
		if len(t.jobs) < cap(t.jobs) {
			t.jobBytes.Add(-bytes)
		}
		t.metrics.droppedFull.Inc()
		return
	}
	j := &job{
		group: g, body: newPayload(where, t.cfg.API, q.Request.Model, p), hasher: q.Hasher, sizes: q.BlockSizes,
		made: append([]routing.TokenBlocks(nil), q.claim.blocks...), bytes: bytes, text: strings.Clone(p.Text),
	}
	j.body.own(&t.copies)
	q.outline.own(p)
	// The job takes the outline over, and the query goes on with a new one.
	j.outline.take(&q.outline)
	select {
	case t.jobs <- j:
	default:
		t.metrics.droppedFull.Inc()
		t.discard(j)
	}
}

// take moves other into o.
func (o *outline) take(other *outline) {
	tip := append(o.lastBuf[:0], other.last.text...)
	*o, *other = *other, outline{}
	o.last.text = append(o.lastBuf[:0], tip...)
}

func (t *Client) discard(j *job) {
	t.jobBytes.Add(-j.bytes)
	j.body.disown(&t.copies)
}

// work tokenizes a prompt behind its decision. Decisions that wait go first.
func (t *Client) work(ctx context.Context, j *job) {
	defer t.discard(j)
	if t.memory.exact(j.group.identity.ns, &j.outline, j.sizes) != nil {
		return
	}
	if len(t.slots) > cap(t.slots)/2 {
		t.metrics.droppedBusy.Inc()
		return
	}
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	default:
		t.metrics.droppedBusy.Inc()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Budget)
	defer cancel()
	ask := question{payload: j.body, hasher: j.hasher, sizes: j.sizes, earlier: t.memory.earlier(j.group.identity.ns, &j.outline, j.text)}
	r, l, err := t.race(ctx, j.group.lanes, ask, false)
	if err != nil {
		t.metrics.droppedFailed.Inc()
		return
	}
	defer t.giveBack(r)
	t.answers()
	if id := l.identity.Load(); id != nil {
		a := r.answered()
		t.record(l, id, j.group, &j.outline, j.text, &a, j.made)
	}
}

// due is what a lane was examined before that is to be examined again.
func (t *Client) due(now time.Time) int64 { return now.Add(-t.cfg.ExamineInterval).UnixNano() }

func (t *Client) enqueueExam(l *lane) {
	if t.memory == nil || !l.queued.CompareAndSwap(false, true) {
		return
	}
	select {
	case t.exams <- l:
	default:
		l.queued.Store(false) // a later request asks again
	}
}

// examPrompts are tokenized to tell servers apart: what a chat template does
// to roles, to a system prompt, to past answers and to tools, and what the
// tokenizer does to a text.
func examPrompts() []routing.Prompt {
	chat := func(messages, tools string) routing.Prompt {
		p := routing.Prompt{Kind: routing.PromptChat, Messages: []byte(messages)}
		if tools != "" {
			p.Tools = []byte(tools)
		}
		return p
	}
	const (
		one   = `[{"role":"user","content":"Which of 12 345 Ärzte, naïve or not, said \"no\"?"}]`
		turns = `[{"role":"system","content":"Be brief."},{"role":"user","content":"One?"},{"role":"assistant","content":"<think>\nHm.\n</think>\n\nTwo."},{"role":"user","content":" Three? "}]`
		tools = `[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}]`
	)
	return []routing.Prompt{chat(one, ""), chat(turns, ""), chat(one, tools), {Kind: routing.PromptText, Text: "Which of 12 345 Ärzte\n\n\tsaid  no?"}}
}

// examine finds out which tokenizer and template a lane has: servers that
// tokenize a few prompts alike are taken for one.
func (t *Client) examine(ctx context.Context, l *lane) {
	now, last := t.now(), l.examined.Load()
	if last >= t.due(now) {
		return // it was examined while a request that had seen it due put it into the queue
	}
	if !l.closed(&t.cfg) || !l.serves(now) {
		l.examined.CompareAndSwap(0, 1) // in vain, see byIdentity
		return
	}
	ns := key{}.thenString(l.model, t.seed)
	answers := 0
	for _, p := range examPrompts() {
		where, ok := path(t.cfg.API, p.Kind)
		if !ok {
			continue
		}
		ask := question{payload: newPayload(where, t.cfg.API, l.model, &p), hasher: kvindex.NewHasher(t.seed), sizes: []int{1}}
		a := t.attempt(ctx, l, ask)
		ask.end()
		refused := (*refusal)(nil)
		switch {
		case a.err == nil:
			answers++
			for _, id := range a.reading.end().blocks[0].Contents {
				ns = ns.derive(uint64(id), t.seed)
			}
			t.giveBack(a.reading)
		case errors.As(a.err, &refused):
			ns = ns.derive(0, t.seed)
		default:
			l.examined.CompareAndSwap(0, 1)
			return
		}
	}
	// What has been found out since that calls for another look is kept.
	l.examined.CompareAndSwap(last, now.UnixNano())
	if answers == 0 {
		return
	}
	id, _ := t.identities.LoadOrCompute(ns, func() *identity { return &identity{ns: ns} })
	if old := l.identity.Swap(id); old != id {
		t.version.Add(1)
		if old != nil {
			t.metrics.changed.Inc()
			t.log.Info("a tokenizer's answers have changed; what was learned from it is no longer used for it", "server", l.base, "model", l.model)
		}
	}
}
