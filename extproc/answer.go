package extproc

import (
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/warmpath/warmpath/routing"
)

// The half of the state machine that follows the answer to its end.

func (s *stream) responseHeaders(req *extprocv3.ProcessingRequest, m *extprocv3.HttpHeaders) {
	if s.phase == phaseClosed {
		return
	}
	if s.phase != phaseRouted {
		s.send(responseHeaders(nil, nil))
		return
	}
	s.phase = phaseAnswered
	o := outcome{
		strategy: s.target.Strategy, reason: s.target.Reason.String(),
		endpoint: s.target.Endpoints[0].Address, matched: s.target.MatchedTokens,
	}
	s.answerer = s.target.Endpoints[0]
	if addr := served(req); addr != "" && addr != o.endpoint {
		o.endpoint, o.matched = addr, -1
		s.metrics.retried.Inc()
		s.answerer = s.snapshots.Snapshot().ByAddress(addr)
		s.promise.Served(s.answerer)
	}
	s.promise.PrefillDone()
	s.predicted = o.matched
	if s.sampled {
		s.reader = newUsageReader(m.GetHeaders())
	}
	var mutation *extprocv3.HeaderMutation
	if s.cfg.ResponseHeaders {
		mutation = o.mutation()
	}
	s.send(responseHeaders(mutation, s.override(m.GetEndOfStream())))
}

// override returns what to ask of Envoy after the headers of an answer. Envoy
// takes no override if either body is in mode FULL_DUPLEX_STREAMED.
func (s *stream) override(ended bool) *modev3.ProcessingMode {
	switch {
	case ended, s.duplex(), s.responseMode == modev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return nil
	case s.reader != nil:
		return keepOpen(s.requestMode, modev3.ProcessingMode_STREAMED)
	}
	return keepOpen(s.requestMode, modev3.ProcessingMode_NONE)
}

func (s *stream) responseBody(m *extprocv3.HttpBody) {
	if s.phase == phaseClosed {
		return
	}
	s.bodySeen = true
	if s.reader != nil {
		s.reader.write(m.GetBody())
	}
	if m.GetEndOfStream() {
		s.complete = true
	}
	if s.responseMode == modev3.ProcessingMode_FULL_DUPLEX_STREAMED {
		s.send(responseChunk(m.GetBody(), m.GetEndOfStream()))
	} else {
		s.send(responseBody())
	}
}

// end takes the end of the stream, whatever ended it. It releases what the
// request had reserved. Only its first call does anything.
func (s *stream) end() {
	was := s.phase
	s.phase, s.body = phaseClosed, nil
	if s.promise != nil {
		s.promise.Finish()
	}
	switch was {
	case phaseBody, phaseDeciding:
		s.metrics.request(routing.ReasonCanceled)
	case phaseRouted:
		s.metrics.end(endUnanswered)
	case phaseAnswered:
		switch {
		case s.complete:
			s.metrics.end(endComplete)
		case s.bodySeen:
			s.metrics.end(endAborted)
		default:
			s.metrics.end(endUnseen)
		}
		s.compare()
	}
}

// compare reports what a sampled answer says about its prompt beside what was
// predicted.
func (s *stream) compare() {
	if s.reader == nil {
		return
	}
	u, found := s.reader.end()
	s.reader = nil
	switch {
	case !found && !s.complete:
		s.metrics.sample(sampleCut)
	case !found:
		s.metrics.sample(sampleNoUsage)
	case u.cached < 0:
		s.metrics.sample(sampleNoCached)
	case s.predicted < 0 || s.answerer == nil || s.target.PromptTokens == 0:
		s.metrics.sample(sampleNoPrediction)
	default:
		s.metrics.sample(sampleCompared)
		s.metrics.compare(s.answerer.Name, u, s.predicted)
	}
}
