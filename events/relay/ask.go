package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// asking is what is still to be had of peers.
type asking struct {
	left []events.Subject
	take func(events.Subject, events.Saved)
}

// Ask implements [events.Peers]: one peer after the other is asked for what
// those before it did not know.
func (s *Source) Ask(ctx context.Context, wanted []events.Subject, take func(events.Subject, events.Saved)) {
	a := &asking{slices.Clone(wanted), take}
	if s.seed == 0 {
		s.log.Warn("no other router is asked for what it knows", "err", Identity{}.checkHash(&pb.Identity{}))
		s.m.peers[peerRefused].Inc()
		return
	}
	asked := map[netip.AddrPort]bool{}
	for _, name := range s.cfg.Peers {
		for _, p := range s.peersAt(ctx, name) {
			if asked[p] {
				continue
			}
			asked[p] = true
			s.askOne(ctx, p, name, a)
			if len(a.left) == 0 || ctx.Err() != nil {
				return
			}
		}
	}
	if len(asked) == 0 {
		s.log.Info("there is no other router to ask for what it knows")
	}
}

// peersAt returns the addresses of other routers that a name leads to.
func (s *Source) peersAt(ctx context.Context, name string) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	all, err := s.peers.network.addresses(ctx, name)
	if err != nil {
		if no := new(net.DNSError); !errors.As(err, &no) || !no.IsNotFound { // a fleet's first router finds nobody
			s.m.peers[peerFailed].Inc()
		}
		s.log.Info("no address of other routers", "peers", name, "err", err)
	}
	return slices.DeleteFunc(all, s.isOwn)
}

// isOwn tells whether an address is where this process listens itself.
func (s *Source) isOwn(p netip.AddrPort) bool {
	listen, err := netip.ParseAddrPort(s.cfg.Listen)
	if err != nil || listen.Port() != p.Port() {
		return false
	}
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(p.Addr().AsSlice())
	})
}

// heardOf counts what one peer told.
type heardOf struct {
	taken, unknown, blocks int
	oldest                 time.Duration
	reason                 string // why one of those is unknown
}

// askOne asks one peer. What it tells is not a reason to fail, whatever it is.
func (s *Source) askOne(ctx context.Context, p netip.AddrPort, name string, a *asking) {
	begun, of := time.Now(), len(a.left)
	h, err := s.hear(ctx, p, name, a)
	log := s.log.With("peer", p.String(), "known", h.taken, "of", of, "took", time.Since(begun))
	if h.taken > 0 {
		log = log.With("blocks", h.blocks, "oldest", h.oldest)
	}
	if h.unknown > 0 {
		log = log.With("unknown", h.unknown, "because", h.reason)
	}
	if err != nil {
		s.m.peers[peerResult(err)].Inc()
		log.Warn("another router did not tell all that it was asked", "err", err)
		return
	}
	s.m.peers[peerAnswered].Inc()
	log.Info("took what another router knows; the engines have to prove it")
}

// peerResult is the index in routerMetrics.peers.
func peerResult(err error) int {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		return peerDenied
	}
	if refused(err) {
		return peerRefused
	}
	return peerFailed
}

// errBusy ends the call to a peer that tells others first for too long.
var errBusy = errors.New("relay: it tells other routers, and our turn did not come in time")

// hear asks one peer and takes what it tells, publisher by publisher, until it
// has told all, is silent for too long, or says what cannot be. It waits for its
// turn no longer than half of the time that there is for all peers.
func (s *Source) hear(ctx context.Context, p netip.AddrPort, name string, a *asking) (h heardOf, err error) {
	conn, err := s.peers.client(p.String(), name)
	if err != nil {
		return h, err
	}
	defer conn.Close()
	begun := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.cfg.Timeout, func() { cancel(errSilent) })
	defer silence.Stop()
	req := &pb.SnapshotsRequest{}
	for _, of := range a.left {
		req.Wanted = append(req.Wanted, s.identity(of).wire(0))
	}
	stream, err := pb.NewPeerClient(conn).Snapshots(ctx, req)
	if err != nil {
		return h, err
	}
	var now *known
	for {
		m, err := stream.Recv()
		silence.Reset(s.cfg.Timeout)
		switch {
		case errors.Is(err, io.EOF) && now == nil:
			return h, nil
		case err != nil && context.Cause(ctx) != nil:
			return h, context.Cause(ctx)
		case err != nil:
			return h, err
		case m.Message == nil && time.Since(begun) >= s.cfg.PeersTimeout/2:
			return h, errBusy
		}
		if now, err = s.heard(m, now, a, &h); err != nil {
			s.m.known[knownDamaged].Inc()
			return h, err
		}
	}
}

// heard takes one message. now is the publisher that is being told of.
func (s *Source) heard(m *pb.SnapshotsResponse, now *known, a *asking, h *heardOf) (*known, error) {
	switch t := m.Message.(type) {
	case *pb.SnapshotsResponse_Standing:
		got := t.Standing.GetIdentity()
		at := slices.IndexFunc(a.left, func(of events.Subject) bool {
			return of.Address == got.GetEndpoint() && of.Publisher.Rank == int(got.GetRank())
		})
		if now != nil || at < 0 {
			return nil, fmt.Errorf("peer: it tells of %s rank %d, which is not its turn", got.GetEndpoint(), got.GetRank())
		}
		id := s.identity(a.left[at])
		if err := id.check(got); err != nil {
			return nil, err
		}
		return newKnown(id, t.Standing, time.Now())
	case *pb.SnapshotsResponse_Part:
		if now == nil {
			return nil, errors.New("peer: a part of a snapshot that has not begun")
		}
		return now, now.part(t.Part)
	case *pb.SnapshotsResponse_End:
		if now == nil {
			return nil, errors.New("peer: the end of a snapshot that has not begun")
		}
		if err := now.end(t.End); err != nil {
			return nil, err
		}
		s.take(now, a, h)
		return nil, nil
	case *pb.SnapshotsResponse_Unknown:
		h.unknown++
		h.reason = t.Unknown.Reason
		s.m.known[knownNothing].Inc()
	}
	return now, nil
}

// take hands over a publisher of which all is told.
func (s *Source) take(k *known, a *asking, h *heardOf) {
	at := slices.IndexFunc(a.left, func(of events.Subject) bool {
		return of.Address == k.saved.Address && of.Publisher.Rank == k.saved.Rank
	})
	of := a.left[at]
	a.left = slices.Delete(a.left, at, at+1)
	s.m.known[knownTaken].Inc()
	h.taken++
	h.blocks += len(k.saved.State.Blocks)
	h.oldest = max(h.oldest, time.Since(k.saved.Heard))
	a.take(of, k.saved)
}
