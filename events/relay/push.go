package relay

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// inboxKey names a publisher whose relay reports by itself.
type inboxKey struct {
	address string
	rank    int
}

// inbox is where such reports go: to the goroutine that owns the publisher.
type inbox struct {
	identity Identity
	name     string // of the endpoint
	// knocked is where a relay is noticed while the publisher is fed by the
	// engine's own stream; nil while reports are taken.
	knocked chan struct{}
	reports chan reported
	// closed: nothing more is taken. within bounds how long a message may take.
	closed chan struct{}
	within time.Duration
	// stop ends the stream that reports at the moment; guarded by Source.mu.
	stop context.CancelFunc
}

// reported is one message of a relay.
type reported struct {
	// incarnation is that which the message belongs to.
	incarnation uint64
	report      *pb.CacheStateReport
	event       *pb.Delta // instead of report
	answer      chan<- answer
}

type answer struct {
	ack *pb.ReportAck
	err error
}

// open makes an inbox known; the caller calls the function returned when it
// takes nothing more.
func (s *Source) open(in *inbox) (shut func()) {
	key := inboxKey{in.identity.Endpoint, in.identity.Rank}
	in.closed, in.within = make(chan struct{}), s.cfg.Timeout
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inboxes[key] = in
	return func() {
		close(in.closed)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inboxes[key] == in {
			delete(s.inboxes, key)
		}
		if in.stop != nil {
			in.stop()
		}
	}
}

// knock waits until a relay wants to report.
func (s *Source) knock(ctx context.Context, id Identity, name string) {
	in := &inbox{identity: id, name: name, knocked: make(chan struct{}, 1)}
	defer s.open(in)()
	select {
	case <-in.knocked:
	case <-ctx.Done():
	}
}

var errNoReports = errors.New("no relay reports; is its report_to this router's cachestate.listen?")

// await takes what a relay reports until it has been silent for too long, or
// has said nothing for as long that could be taken.
func (s *Source) await(ctx context.Context, r *receiver) error {
	if s.seed == 0 {
		err := r.identity.check(&pb.Identity{})
		r.report(err)
		if r.feed.Fallback {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	in := &inbox{identity: r.identity, name: r.feed.Endpoint, reports: make(chan reported)}
	defer s.open(in)()
	heard, quiet := time.Now(), s.cfg.Timeout
	var bad error // why the latest report could not be taken, until one makes the state whole
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-in.reports:
			if h := m.report.GetHello(); h != nil {
				quiet = patience(h.HeartbeatMs)
				s.m.connects.Inc()
			}
			ack, err := r.reported(m)
			r.report(nil)
			m.answer <- answer{ack, err}
			silence.Reset(quiet)
			switch {
			case err != nil:
				bad = err
			case r.whole():
				heard, bad = time.Now(), nil
				s.trust(r.identity)
			}
			if bad != nil && r.feed.Fallback && time.Since(heard) >= s.cfg.GiveUp {
				s.doubt(r.identity)
				return bad
			}
		case <-silence.C:
			r.report(errNoReports)
			if time.Since(heard) < s.cfg.GiveUp {
				silence.Reset(min(quiet, s.cfg.GiveUp-time.Since(heard)))
				continue
			}
			r.forget()
			if r.feed.Fallback {
				if bad != nil {
					s.doubt(r.identity)
					return bad
				}
				return errNoReports
			}
			r.report(errNoReports)
			silence.Reset(s.cfg.GiveUp)
		}
	}
}

// reported applies one message of a relay that reports.
func (r *receiver) reported(m reported) (*pb.ReportAck, error) {
	err := r.pushed(m)
	switch {
	case errors.Is(err, errGap):
		return &pb.ReportAck{Applied: r.at.wire(), Resync: true, Reason: err.Error()}, nil
	case err != nil:
		r.forget()
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.ReportAck{Applied: r.at.wire(), Resync: !r.loading && r.at.incarnation != m.incarnation}, nil
}

func (r *receiver) pushed(m reported) error {
	if m.event != nil {
		return r.delta(m.incarnation, m.event)
	}
	switch t := m.report.Message.(type) {
	case *pb.CacheStateReport_Hello:
		if r.loading {
			r.forget() // the stream that brought the snapshot is no more
		}
		return nil
	case *pb.CacheStateReport_SnapshotBegin:
		if t.SnapshotBegin.GetCursor().GetIncarnation() < r.at.incarnation {
			return errGap // reported late; the relay will take a later one
		}
		return r.snapshotBegin(t.SnapshotBegin)
	case *pb.CacheStateReport_SnapshotPart:
		return r.snapshotPart(t.SnapshotPart)
	case *pb.CacheStateReport_SnapshotEnd:
		return r.snapshotEnd(t.SnapshotEnd)
	case *pb.CacheStateReport_Delta:
		if r.loading {
			return errGap
		}
		return r.delta(m.incarnation, t.Delta)
	case *pb.CacheStateReport_Heartbeat:
		r.heartbeat(t.Heartbeat)
	}
	return nil
}

// deliver hands a message to the publisher's goroutine and waits for its
// answer, no longer than that goroutine takes messages, and in any case not for
// long: who reports need not have given the call a limit.
func (in *inbox) deliver(ctx context.Context, m reported) (*pb.ReportAck, error) {
	ctx, cancel := context.WithTimeout(ctx, in.within)
	defer cancel()
	answered := make(chan answer, 1)
	m.answer = answered
	select {
	case in.reports <- m:
	case <-in.closed:
		return nil, status.Error(codes.Unavailable, "the endpoint's relay is not listened to at the moment; report again")
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case a := <-answered:
		return a.ack, a.err
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// admit finds the inbox that a caller may report to.
func (s *Source) admit(ctx context.Context, a access, id *pb.Identity) (*inbox, error) {
	s.mu.Lock()
	in := s.inboxes[inboxKey{id.GetEndpoint(), int(id.GetRank())}]
	s.mu.Unlock()
	name := ""
	if in != nil {
		name = in.name
	}
	if err := a.endpoint(callerOf(ctx), name, id.GetEndpoint()); err != nil {
		s.m.denied.Inc()
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if in == nil {
		return nil, status.Errorf(codes.NotFound, "no endpoint here has the address %s, rank %d and relay: push", id.GetEndpoint(), id.GetRank())
	}
	if err := in.identity.check(id); err != nil {
		s.m.mismatches.Inc()
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if in.knocked != nil {
		select {
		case in.knocked <- struct{}{}:
		default:
		}
		return nil, status.Error(codes.Unavailable, "the engine's own stream is being left for this relay; report again")
	}
	return in, nil
}

// attach makes a stream the one that reports to an inbox: the newest counts.
func (s *Source) attach(in *inbox, stop context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if in.stop != nil {
		in.stop()
	}
	in.stop = stop
}

// ReportCacheState implements the service.
func (s *Server) ReportCacheState(stream grpc.BidiStreamingServer[pb.CacheStateReport, pb.ReportAck]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return status.Error(codes.InvalidArgument, "the first message must be a hello")
	}
	in, err := s.source.admit(stream.Context(), s.access, hello.Identity)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	s.source.attach(in, cancel)
	incarnation := hello.Identity.Incarnation
	for m := first; ; {
		if b := m.GetSnapshotBegin(); b != nil {
			incarnation = b.GetCursor().GetIncarnation()
		}
		ack, err := in.deliver(ctx, reported{incarnation: incarnation, report: m})
		if err != nil {
			return err
		}
		if err := stream.Send(ack); err != nil {
			return err
		}
		switch m, err = recv(ctx, stream); {
		case errors.Is(err, io.EOF):
			return nil // it has said all that it wants to
		case err != nil:
			return err
		}
	}
}

// recv receives the next message unless ctx, which another stream may end,
// ends first.
func recv(ctx context.Context, stream grpc.BidiStreamingServer[pb.CacheStateReport, pb.ReportAck]) (*pb.CacheStateReport, error) {
	m, err := stream.Recv()
	if err == nil && ctx.Err() != nil {
		err = status.Error(codes.Aborted, "another stream reports for this publisher now")
	}
	return m, err
}

// PublishEvent implements the service.
func (s *Server) PublishEvent(ctx context.Context, e *pb.CacheEvent) (*pb.ReportAck, error) {
	in, err := s.source.admit(ctx, s.access, e.Identity)
	if err != nil {
		return nil, err
	}
	if e.Delta == nil {
		return nil, status.Error(codes.InvalidArgument, "an event without a delta")
	}
	return in.deliver(ctx, reported{incarnation: e.Identity.Incarnation, event: e.Delta})
}
