package pool

import (
	"slices"
	"sync"
	"time"
)

// queue is the prefill work of the requests in flight, in the order in which
// they were sent.
type queue struct {
	mu   sync.Mutex // guards work
	work []sent
}

// sent is one request's work in tokens.
type sent struct {
	request uint64
	tokens  int64
}

// Send records that a request is sent to the endpoint, with the tokens that it
// has to compute there. Requests are numbered by the caller.
func (s *State) Send(request uint64, tokens int64) {
	s.queue.mu.Lock()
	s.queue.work = append(s.queue.work, sent{request, tokens})
	s.queue.mu.Unlock()
}

// Return forgets a request that ended, or went elsewhere.
func (s *State) Return(request uint64) {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	i := slices.IndexFunc(s.queue.work, func(w sent) bool { return w.request == request })
	if i >= 0 {
		s.queue.work = slices.Delete(s.queue.work, i, i+1)
	}
}

// confine corrects the backlog by what the engine's metrics prove. Engines
// prefill in order of arrival, so the requests that wait for their first token
// are those sent last, and the work ahead is theirs. What is done of the oldest
// one's is not counted: prompts that are long enough to matter take longer than
// their tokens say, for attention grows with the context.
func (s *State) confine(l *Load) {
	const needed = FieldUnanswered | FieldPrefillRate
	if l.Has&needed != needed || l.PrefillRate <= 0 {
		return
	}
	tokens, ok := s.queue.last(l, l.Unanswered)
	if !ok {
		return
	}
	seconds := min(tokens/l.PrefillRate, maxBacklog)
	s.drains.Store(l.At.UnixNano() + int64(seconds*float64(time.Second)))
	s.touch()
}

// demand fills in what the engine's requests need of its cache, and stay, the mean
// time that one runs.
func (l *Load) demand(s *State, stay float64) {
	const needed = FieldRequests | FieldKVUsage | FieldCapacity
	if l.Has&needed != needed || l.Capacity <= 0 || stay <= 0 {
		return
	}
	l.Has |= FieldMemory
	l.StaySeconds, l.Placed = stay, s.Placed()
	held := l.KVUsage * l.Capacity
	waiting, ok := s.queue.last(l, l.Waiting)
	if !ok { // they are of other routers: as large as those that run
		waiting = l.Waiting * held / max(1, l.Running)
	}
	l.Demand = held + waiting
}

// maxBacklog bounds a backlog in seconds.
const maxBacklog = 3600

// last returns how many tokens the engine has to compute for those n of its
// requests that were sent last. Where some are of other routers, nobody knows
// whose the last are: by the share of this router's, they are taken to be its
// last ones, scaled up, and else as large as the mean of its own. If it has none
// there, it cannot tell, unless n is 0.
func (q *queue) last(l *Load, n float64) (tokens float64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.work) == 0 {
		return 0, n == 0
	}
	share := min(1, float64(len(q.work))/max(1, l.Running+l.Waiting))
	// A part of a request counts as that of its tokens: a quarter is not none.
	own, all := min(float64(len(q.work)), n*share), 0.0
	for i := len(q.work) - 1; i >= 0; i-- {
		w := float64(q.work[i].tokens)
		tokens += min(own, 1) * w
		own = max(0, own-1)
		all += w
	}
	// share × tokens/share + (1−share) × n × mean
	return tokens + (1-share)*n*all/float64(len(q.work)), true
}
