package extproc

import (
	"bytes"
	"net/http"
	"strconv"
	"time"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"

	"github.com/warmpath/warmpath/routing"
)

// The half of the state machine that follows the answer to its end.

func (s *stream) responseHeaders(m *message, now time.Time) {
	if s.phase == phaseClosed {
		return
	}
	if s.phase != phaseRouted {
		s.send(replyResponseHeaders)
		return
	}
	s.phase = phaseAnswered
	o := outcome{
		strategy: s.target.Strategy, reason: s.target.Reason.String(),
		endpoint: s.target.Endpoints[0].Address, matched: s.target.MatchedTokens,
		tokens: s.target.Tokens.String(),
	}
	s.answerer = s.target.Endpoints[0]
	served := m.served
	if len(served) == 0 {
		served = m.upstream
	}
	if len(served) > 0 && string(served) != o.endpoint {
		o.endpoint, o.matched = string(served), -1
		s.metrics.retried.Inc()
		s.answerer = s.snapshots.Snapshot().ByAddress(o.endpoint)
		s.promise.Served(s.answerer)
	}
	status := statusIn(m.headers)
	s.promise.Answered(status, now)
	if m.eos || status != http.StatusOK || !s.promise.Request.Stream {
		// Else only the body, where it is seen, shows the first token: engines
		// send the headers of a streamed answer before it.
		s.promise.PrefillDone()
	}
	s.predicted = o.matched
	if s.sampled {
		s.reader = newUsageReader(m.headers)
	}
	said := &o
	if !s.cfg.ResponseHeaders {
		said = nil
	}
	var named *legacy
	if s.cfg.AIBrixHeaders {
		named = &legacy{request: s.head.id, strategy: o.strategy, pod: podName(s.answerer), address: o.endpoint}
	}
	tested := ""
	if s.cfg.Conformance {
		if tested = string(m.served); tested == "" {
			tested = servedMissing
		}
	}
	s.sendDynamic(responseHeaders(said, named, tested, s.override(m.eos)))
}

// statusIn returns the HTTP status, 0 if there is none.
func statusIn(headers []header) int {
	for _, kv := range headers {
		if string(kv.name) == ":status" {
			n, _ := strconv.Atoi(string(kv.value))
			return n
		}
	}
	return 0
}

// override returns what to ask of Envoy after the headers of an answer, nothing
// if none is to be asked.
//
// By then the request is over, so its mode FULL_DUPLEX_STREAMED is left: in that
// mode Envoy fails open no more once it has a piece of the body (ext_proc.cc,
// Filter::failureModeAllow), and would cut the answer if we died.
// Envoy obeys only if the mode comes from the route and the filter is
// configured for another one.
func (s *stream) override(ended bool) override {
	request := s.requestMode
	if s.duplex() {
		request = modev3.ProcessingMode_NONE
	}
	switch {
	case ended, s.responseMode == modev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return override{}
	case s.reader != nil:
		return keepOpen(request, modev3.ProcessingMode_STREAMED)
	}
	return keepOpen(request, modev3.ProcessingMode_NONE)
}

func (s *stream) responseBody(m *message) {
	if s.phase == phaseClosed {
		return
	}
	s.bodySeen = true
	if s.phase == phaseAnswered && len(m.body) > 0 {
		s.promise.PrefillDone()
	}
	if s.reader != nil {
		s.reader.write(m.body)
	}
	if m.eos {
		s.complete = true
	}
	if s.responseMode == modev3.ProcessingMode_FULL_DUPLEX_STREAMED {
		s.send(chunk(toResponseBody, bytes.Clone(m.body), m.eos))
	} else {
		s.send(replyResponseBody)
	}
}

// end takes the end of the stream, whatever ended it. It releases what the
// request had reserved. Only its first call does anything. ours says that not
// Envoy but this program has ended it, so that a missing answer says nothing
// about the endpoint.
func (s *stream) end(now time.Time, ours bool) {
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
		if !ours {
			s.promise.Unanswered(now)
		}
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
		s.promise.Cached(int(u.cached))
	}
}
