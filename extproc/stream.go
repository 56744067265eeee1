package extproc

import (
	"context"
	"time"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc/mem"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// phase is how far a request has come. See the package documentation for the
// steps between phases.
type phase uint8

const (
	// phaseStart: nothing of the request has been seen.
	phaseStart phase = iota
	// phaseBody: the headers have been seen, the decision waits for the body.
	phaseBody
	// phaseDeciding: the promise is made and not resolved.
	phaseDeciding
	// phaseRouted: the request has been sent on its way.
	phaseRouted
	// phaseAnswered: the headers of the answer have been seen.
	phaseAnswered
	// phaseClosed: refused, or ended. Nothing is replied any more.
	phaseClosed
)

// awaited is which reply a decision goes into.
type awaited uint8

const (
	inHeaders awaited = iota
	inBody
	// inTrailers: a request with trailers and no body. Headers cannot be
	// changed any more, so only the metadata tells the proxy.
	inTrailers
	// inDuplex: the withheld headers, and the body after them.
	inDuplex
)

// stream is the state machine of one HTTP request. It gets Envoy's messages
// and decisions, and says what to reply; it does no I/O and reads no clock. It
// is not safe for concurrent use.
//
// A message is borrowed for the call that brings it, except for the body of a
// request: that is kept uncopied, because the prompt borrows it, until the
// request is decided; for how long after that is what [stream.refers] tells.
type stream struct {
	cfg       *Config
	snapshots Snapshots
	metrics   *metrics
	// ctx ends with the stream.
	ctx context.Context

	phase phase
	reply awaited
	head  head
	// allow restricts the candidates, see [subset].
	allow                     []string
	modesKnown                bool
	requestMode, responseMode modev3.ProcessingMode_BodySendMode
	// body is what FULL_DUPLEX_STREAMED has brought so far; whole says that it
	// is that of one message, trailers that trailers ended it.
	body            []byte
	whole, trailers bool

	promise *routing.Context
	target  routing.Target
	// destination is what the proxy is told of target.
	destination destination

	// sampled: look for the usage in the body of the answer. reader does so,
	// nil if this answer has none that can be read; answerer is the endpoint
	// that answered, predicted what it was expected to hold.
	sampled   bool
	reader    *usageReader
	answerer  *pool.Endpoint
	predicted int
	// bodySeen and complete: some of the answer's body has been seen, all of it.
	bodySeen, complete bool

	// out is what to send, encoded. The caller takes it after each step.
	out []mem.BufferSlice
	// room is memory for out, slots for the replies that are made for this
	// request; a slot is used once, because gRPC holds on to what it sends.
	room  [2]mem.BufferSlice
	slots [2]mem.Buffer
	used  int
}

// receive takes one message. If it reports true, the caller must have
// s.promise resolved and hand the result to [stream.decided].
func (s *stream) receive(m *message, now time.Time) bool {
	if m.observed {
		// Envoy takes no reply, so there is nothing to decide.
		s.metrics.message(kindObserved)
		return false
	}
	if m.modesKnown {
		s.modesKnown, s.requestMode, s.responseMode = true, m.requestMode, m.responseMode
	}
	s.metrics.message(m.kind)
	switch m.kind {
	case kindRequestHeaders:
		return s.requestHeaders(m, now)
	case kindRequestBody:
		return s.requestBody(m, now)
	case kindRequestTrailers:
		return s.requestTrailers(now)
	case kindResponseHeaders:
		s.responseHeaders(m, now)
	case kindResponseBody:
		s.responseBody(m)
	case kindResponseTrailers:
		if s.phase != phaseClosed {
			s.complete = true
			s.send(replyResponseTrailers)
		}
	}
	return false
}

func (s *stream) send(r mem.BufferSlice) {
	if s.out == nil {
		s.out = s.room[:0]
	}
	s.out = append(s.out, r)
}

// sendDynamic sends a reply that is made for this request.
func (s *stream) sendDynamic(b mem.Buffer) {
	if s.used == len(s.slots) {
		s.send(mem.BufferSlice{b})
		return
	}
	s.slots[s.used] = b
	s.used++
	s.send(s.slots[s.used-1 : s.used : s.used])
}

// take returns what to send and forgets it. What it returns is valid until the
// next step.
func (s *stream) take() []mem.BufferSlice {
	out := s.out
	s.out = nil
	return out
}

// expected is the length of a body that is to come in one message, 0 if there
// is none or its length is not known.
func (s *stream) expected() int64 {
	if s.phase != phaseBody || s.duplex() {
		return 0
	}
	return max(0, s.head.length)
}

// refers tells whether s, or a reply of it, refers to the body of the last
// message. It does not where a piece has been copied to those before it.
func (s *stream) refers() bool {
	return s.duplex() && (s.phase != phaseBody || s.whole)
}

func (s *stream) duplex() bool {
	return s.requestMode == modev3.ProcessingMode_FULL_DUPLEX_STREAMED
}

// withoutBody tells whether the request's body will not be shown before its
// headers must have been replied to.
func (s *stream) withoutBody() bool {
	switch s.requestMode {
	case modev3.ProcessingMode_BUFFERED, modev3.ProcessingMode_BUFFERED_PARTIAL, modev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return false
	}
	return s.modesKnown
}

func (s *stream) requestHeaders(m *message, now time.Time) bool {
	switch s.phase {
	case phaseStart:
	case phaseClosed:
		return false
	case phaseRouted, phaseAnswered:
		s.sendDynamic(steer(toRequestHeaders, s.destination, s.head.forged, false))
		return false
	default:
		s.sendStrip()
		return false
	}
	s.phase = phaseBody
	s.head = readHead(m.headers)
	s.allow = m.subset
	if s.cfg.Conformance && s.head.selection != "" {
		s.allow = selection(s.head.selection, s.snapshots.Snapshot().Endpoints, s.allow)
	}
	switch {
	case m.eos, s.withoutBody():
		s.reply = inHeaders
		if m.eos && apiOf(s.head.method, s.head.path, s.head.mediaType) != apiOther {
			return s.refuse(badRequest("", "the request has no body"))
		}
		return s.route(nil, document{}, now)
	case s.head.length > int64(s.cfg.MaxBodyBytes):
		return s.refuse(s.tooLarge())
	case !s.duplex():
		s.sendStrip()
	}
	return false
}

// sendStrip replies to headers before there is a decision.
func (s *stream) sendStrip() {
	if len(s.head.forged) == 0 {
		s.send(replyStrip)
		return
	}
	s.send(static(encodeStrip(toRequestHeaders, s.head.forged)))
}

func (s *stream) requestBody(m *message, now time.Time) bool {
	switch {
	case s.phase == phaseClosed:
		return false
	case s.phase > phaseBody && s.duplex():
		s.send(chunk(toRequestBody, m.body, m.eos))
		return false
	case s.withoutBody():
		s.send(replyRequestBody)
		return false
	case s.phase > phaseBody:
		s.sendDynamic(steer(toRequestBody, s.destination, s.head.forged, false))
		return false
	case !s.duplex():
		s.reply = inBody
		return s.decide(m.body, m.ids, m.eos, now)
	}
	if len(s.body)+len(m.body) > s.cfg.MaxBodyBytes {
		return s.refuse(s.tooLarge())
	}
	switch {
	case s.body == nil && m.eos:
		s.body, s.whole = m.body, true
	case s.body == nil:
		const most = 1 << 20 // a client's word is not worth more memory
		s.body = append(make([]byte, 0, max(len(m.body), min(int(s.head.length), most))), m.body...)
	default:
		s.body = append(s.body, m.body...)
	}
	if !m.eos {
		return false
	}
	s.reply = inDuplex
	return s.decide(s.body, nil, true, now)
}

func (s *stream) requestTrailers(now time.Time) bool {
	switch {
	case s.phase == phaseClosed:
		return false
	case s.phase > phaseBody:
		s.send(replyRequestTrailers)
		return false
	case s.duplex():
		s.reply, s.trailers = inDuplex, true
		return s.decide(s.body, nil, true, now)
	}
	s.reply = inTrailers
	return s.route(nil, document{}, now)
}

// decide reads the body and asks for a decision. complete is false if the body
// may go on; ids is memory for the ids in it, nil if there is none.
func (s *stream) decide(body []byte, ids *[]kvindex.TokenID, complete bool, now time.Time) bool {
	if len(body) > s.cfg.MaxBodyBytes {
		return s.refuse(s.tooLarge())
	}
	kind := apiOf(s.head.method, s.head.path, s.head.mediaType)
	if kind == apiOther {
		return s.route(body, document{}, now)
	}
	truncated := !complete && s.requestMode == modev3.ProcessingMode_BUFFERED_PARTIAL
	d, err := readBody(kind, s.head, body, ids, truncated, s.cfg.MaxBodyBytes)
	if err != nil {
		return s.refuse(err)
	}
	return s.route(body, d, now)
}

// route makes the promise of a decision.
func (s *stream) route(body []byte, d document, now time.Time) bool {
	s.phase = phaseDeciding
	s.promise = routing.NewContext(s.ctx, routing.Request{
		Arrived: now, ID: s.head.id, Path: s.head.path, Model: d.model, Strategy: s.head.strategy,
		Profile: s.head.profile, Filter: s.head.filter, Stream: d.stream,
		Prompt: d.prompt, User: s.head.user, Session: s.head.session, Subset: s.allow, BodyBytes: len(body),
	})
	return true
}

// decided takes what the promise was resolved to.
func (s *stream) decided(t routing.Target, err *routing.Error) {
	if err != nil {
		s.refuse(err)
		return
	}
	s.phase, s.target = phaseRouted, t
	// The answer may take minutes, and the prompt pins the request's body.
	s.promise.Request.Prompt = routing.Prompt{}
	s.metrics.request(t.Reason)
	s.destination = destinationOf(t)
	s.destination.reroute = s.cfg.ClearRouteCache
	switch s.reply {
	case inHeaders:
		s.sendDynamic(steer(toRequestHeaders, s.destination, s.head.forged, true))
	case inBody:
		s.sendDynamic(steer(toRequestBody, s.destination, s.head.forged, true))
	case inTrailers:
		s.sendDynamic(steerTrailers(s.destination))
	case inDuplex:
		s.sendDynamic(steer(toRequestHeaders, s.destination, s.head.forged, true))
		s.out = requestChunks(s.out, s.body, !s.trailers)
		if s.trailers {
			s.send(replyRequestTrailers)
		}
		s.body = nil
	}
}

// refuse answers the client with an error. It returns false, for receive.
func (s *stream) refuse(err *routing.Error) bool {
	s.metrics.request(err.Reason)
	s.phase, s.body = phaseClosed, nil
	if s.promise != nil {
		// A resolver that comes late must lose.
		s.promise.Finish()
	}
	if err.Reason != routing.ReasonCanceled {
		s.sendDynamic(refuse(err, s.cfg.ResponseHeaders))
	}
	return false
}

func (s *stream) tooLarge() *routing.Error {
	return tooLarge(s.cfg.MaxBodyBytes)
}
