package relay

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// maxTelling bounds the routers that are told at once. Each costs the memory of
// one publisher's snapshot.
const maxTelling = 2

// Snapshots implements the service.
func (s *Server) Snapshots(req *pb.SnapshotsRequest, to grpc.ServerStreamingServer[pb.SnapshotsResponse]) error {
	m := s.source.m
	if err := s.access.reader(callerOf(to.Context())); err != nil {
		m.denied.Inc()
		return status.Error(codes.PermissionDenied, err.Error())
	}
	for _, w := range req.Wanted {
		if err := (Identity{Seed: s.source.seed}).checkHash(w); err != nil {
			m.mismatches.Inc()
			s.log.Warn("a router that starts is refused", "err", err, "fingerprint", fmt.Sprintf("%016x", s.source.seed))
			return status.Error(codes.FailedPrecondition, err.Error())
		}
	}
	ctx, cancel := context.WithTimeout(to.Context(), s.tellLimit)
	defer cancel()
	if err := s.awaitTurn(ctx, to); err != nil {
		return err
	}
	defer func() { <-s.telling }()
	// On a goroutine of its own, because a Send to one who reads nothing ends
	// only with the call.
	told := make(chan error, 1)
	s.tellers.Go(func() { told <- s.tell(ctx, distinct(req.Wanted), to) })
	select {
	case err := <-told:
		return err
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// distinct drops what is wanted again: a snapshot holds up all writers, and
// there are to be no more of them than publishers. One that is not followed
// costs none.
func distinct(wanted []*pb.Identity) []*pb.Identity {
	type publisher struct {
		endpoint, model string
		rank            uint32
	}
	seen := make(map[publisher]bool, len(wanted))
	return slices.DeleteFunc(wanted, func(w *pb.Identity) bool {
		p := publisher{w.GetEndpoint(), w.GetModel(), w.GetRank()}
		again := seen[p]
		seen[p] = true
		return again
	})
}

// maxTurnBeat bounds the time between two signs of life to a router that waits
// for its turn.
const maxTurnBeat = time.Second

// awaitTurn takes a slot. Until there is one, who asks hears that it is not
// forgotten: it takes silence for a router that hangs.
func (s *Server) awaitTurn(ctx context.Context, to grpc.ServerStreamingServer[pb.SnapshotsResponse]) error {
	beat := time.NewTicker(min(s.cfg.Timeout/4, maxTurnBeat))
	defer beat.Stop()
	for {
		select {
		case s.telling <- struct{}{}:
			return nil
		case <-beat.C:
			if err := to.Send(&pb.SnapshotsResponse{}); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// tell tells of publishers, one after the other.
func (s *Server) tell(ctx context.Context, wanted []*pb.Identity, to grpc.ServerStreamingServer[pb.SnapshotsResponse]) error {
	for _, w := range wanted {
		err := s.tellOne(ctx, w, to)
		if err != nil {
			s.source.m.told[toldBroken].Inc()
			return err
		}
	}
	return nil
}

func (s *Server) tellOne(ctx context.Context, w *pb.Identity, to grpc.ServerStreamingServer[pb.SnapshotsResponse]) error {
	if s.reader.Snapshot == nil {
		return status.Error(codes.Unimplemented, "nothing is told here")
	}
	k, err := s.reader.Snapshot(ctx, w.Endpoint, int(w.Rank), w.Model)
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		s.source.m.told[toldNothing].Inc()
		return to.Send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_Unknown{Unknown: &pb.Unknown{Identity: w, Reason: err.Error()}}})
	}
	id := Identity{Endpoint: k.Address, Rank: k.Rank, Model: k.Model, Seed: s.source.seed}
	if err := to.Send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_Standing{Standing: standing(id, &k, time.Now())}}); err != nil {
		return err
	}
	held, err := namedParts(k.State, func(p *pb.NamedPart) error {
		return to.Send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_Part{Part: p}})
	})
	if err != nil {
		return err
	}
	s.source.m.told[toldAll].Inc()
	return to.Send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_End{End: &pb.SnapshotEnd{Blocks: held}}})
}
