package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Source feeds a router's publishers from relays: it subscribes to those that
// have an address, and takes what the others report to a [Server]. It also asks
// other routers for what they know. It implements [events.Relays] and
// [events.Peers].
type Source struct {
	cfg    RouterConfig
	hasher kvindex.Hasher
	seed   uint64
	// relays is how relays are called, peers how other routers are: what the
	// ones are shown is not for the others.
	relays, peers outgoing

	log *slog.Logger
	m   *routerMetrics

	mu   sync.Mutex
	rand *rand.Rand // guarded by mu
	// inboxes are the publishers whose relays report by themselves; guarded by
	// mu.
	inboxes map[inboxKey]*inbox
	// doubts are the publishers whose relays were given up although they speak,
	// and how long they are left alone for that; guarded by mu.
	doubts map[inboxKey]time.Duration
}

// NewSource returns a source. random tells that the seed of hasher is one that
// only this process knows, with which no relay can be followed.
func NewSource(cfg RouterConfig, hasher kvindex.Hasher, random bool, log *slog.Logger, reg prometheus.Registerer, jitter *rand.Rand, network Network) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Source{
		cfg: cfg, hasher: hasher, seed: hasher.Fingerprint(), log: log.With("component", "cachestate"), m: newRouterMetrics(reg), rand: jitter,
		relays:  outgoing{tls: cfg.TLS, tokenFile: cfg.TokenFile, network: network},
		peers:   outgoing{tls: cfg.TLS, tokenFile: cfg.PeersTokenFile, network: network},
		inboxes: map[inboxKey]*inbox{}, doubts: map[inboxKey]time.Duration{},
	}
	if random {
		s.seed = 0
	}
	return s, nil
}

// identity says whose state is wanted for a publisher.
func (s *Source) identity(of events.Subject) Identity {
	return Identity{Endpoint: of.Address, Rank: of.Publisher.Rank, Model: of.Model, Seed: s.seed}
}

func (s *Source) pauses() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: s.cfg.BackoffMin, Multiplier: 2, MaxInterval: s.cfg.BackoffMax}
}

// pause waits for d, changed by up to half of it.
func (s *Source) pause(ctx context.Context, d time.Duration) {
	s.mu.Lock()
	d = d/2 + time.Duration(s.rand.Float64()*float64(d))
	s.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Follow implements [events.Relays].
func (s *Source) Follow(ctx context.Context, f events.Feed) error {
	r := newReceiver(f, s.identity(f.Subject), s.hasher, s.m)
	defer r.forget()
	if f.Publisher.Relay == pool.RelayPush {
		return s.await(ctx, r)
	}
	pauses := s.pauses()
	down := time.Now()
	for {
		begun := time.Now()
		got, err := s.session(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if got == live {
			down = time.Now()
			if down.Sub(begun) > s.cfg.BackoffMax {
				pauses.Reset()
			}
		}
		r.report(err)
		if mismatched := refused(err); mismatched || time.Since(down) >= s.cfg.GiveUp {
			if mismatched {
				s.m.mismatches.Inc()
			}
			r.forget()
			if f.Fallback {
				if got == greeted {
					s.doubt(r.identity)
				}
				return err
			}
			r.report(err)
		}
		s.pause(ctx, pauses.NextBackOff())
	}
}

// maxDoubt bounds how long a relay is left alone that speaks but cannot be
// followed.
const maxDoubt = 10 * time.Minute

// doubt notes that a relay speaks but could not be followed, so that greeting
// it again proves nothing: each time the engine's own stream is left for it,
// the state is lost, so that it is tried at growing intervals.
func (s *Source) doubt(id Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := inboxKey{id.Endpoint, id.Rank}
	s.doubts[key] = min(max(2*s.doubts[key], 2*s.cfg.GiveUp), maxDoubt)
}

// trust ends a doubt.
func (s *Source) trust(id Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.doubts, inboxKey{id.Endpoint, id.Rank})
}

// doubted returns how long a relay is to be left alone.
func (s *Source) doubted(id Identity) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubts[inboxKey{id.Endpoint, id.Rank}]
}

// refused tells that the peers do not fit together, which time does not mend.
func refused(err error) bool {
	var m *mismatchError
	return errors.As(err, &m) || status.Code(err) == codes.FailedPrecondition
}

// Await implements [events.Relays].
func (s *Source) Await(ctx context.Context, f events.Feed) {
	id := s.identity(f.Subject)
	defer func() {
		if ctx.Err() != nil { // the publisher is no more
			s.trust(id)
		}
	}()
	s.pause(ctx, s.doubted(id))
	if f.Publisher.Relay == pool.RelayPush {
		s.knock(ctx, id, f.Endpoint)
		return
	}
	for ctx.Err() == nil {
		s.pause(ctx, s.cfg.BackoffMax)
		if s.reachable(ctx, f, id) == nil {
			return
		}
	}
}

// reachable tells whether a relay would be followed.
func (s *Source) reachable(ctx context.Context, f events.Feed, id Identity) error {
	st, err := s.subscribe(ctx, f, id, cursor{})
	if err != nil {
		return err
	}
	defer st.close()
	return nil
}

// subscription is a stream that has begun.
type subscription struct {
	stream grpc.ServerStreamingClient[pb.SubscribeResponse]
	conn   *grpc.ClientConn
	cancel context.CancelCauseFunc
	// quiet ends the stream when it fires; patience is how long it waits.
	quiet    *time.Timer
	patience time.Duration
}

var errSilent = errors.New("relay: silent for too long")

func (s *subscription) close() {
	s.quiet.Stop()
	s.cancel(nil)
	_ = s.conn.Close()
}

// recv returns the next message, within the stream's patience.
func (s *subscription) recv() (*pb.SubscribeResponse, error) {
	s.quiet.Reset(s.patience)
	m, err := s.stream.Recv()
	if err != nil && context.Cause(s.stream.Context()) == errSilent {
		err = errSilent
	}
	return m, err
}

// subscribe begins a stream and checks who speaks.
func (s *Source) subscribe(ctx context.Context, f events.Feed, id Identity, from cursor) (*subscription, error) {
	if s.seed == 0 {
		return nil, id.check(&pb.Identity{})
	}
	conn, err := s.relays.client(f.Publisher.Relay, f.Publisher.Relay)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	st := &subscription{conn: conn, cancel: cancel, patience: s.cfg.Timeout}
	st.quiet = time.AfterFunc(s.cfg.Timeout, func() { cancel(errSilent) })
	if st.stream, err = pb.NewRelayClient(conn).Subscribe(ctx, &pb.SubscribeRequest{Identity: id.wire(0), Cursor: from.wire()}); err != nil {
		st.close()
		return nil, err
	}
	m, err := st.recv()
	if err == nil {
		err = s.checkHello(st.stream.Context(), f, id, m.GetHello())
	}
	if err != nil {
		st.close()
		return nil, err
	}
	st.patience = patience(m.GetHello().HeartbeatMs)
	return st, nil
}

// maxPatience bounds how long any peer may be silent.
const maxPatience = time.Minute

// patience is how long a peer that speaks that often may be silent.
func patience(heartbeatMs uint32) time.Duration {
	return min(max(3*time.Duration(heartbeatMs)*time.Millisecond, 50*time.Millisecond), maxPatience)
}

// checkHello checks what a relay says of itself, and that its certificate, where
// there is TLS, is that of the endpoint: a relay speaks for no other.
func (s *Source) checkHello(ctx context.Context, f events.Feed, id Identity, h *pb.Hello) error {
	if err := id.check(h.GetIdentity()); err != nil {
		return err
	}
	if s.cfg.TLS.CA == "" {
		return nil
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && speaksFor(info.State.PeerCertificates[0], f.Endpoint, f.Address) {
			return nil
		}
	}
	return &mismatchError{fmt.Sprintf("the certificate of the relay at %s names neither %s nor the address %s of the endpoint, so it must not speak for it", f.Publisher.Relay, f.Endpoint, f.Address)}
}

// progress is how far a session with a relay came.
type progress uint8

const (
	unreached progress = iota
	greeted            // it said the right things of itself, and no more
	live               // something was applied, and the state is whole
)

// session follows one stream to its end, and reports how far it came.
func (s *Source) session(ctx context.Context, r *receiver) (got progress, err error) {
	if r.loading {
		r.forget()
	}
	st, err := s.subscribe(ctx, r.feed, r.identity, r.at)
	if err != nil {
		return unreached, err
	}
	defer st.close()
	s.m.connects.Inc()
	r.report(nil)
	got = greeted
	for {
		m, err := st.recv()
		if err != nil {
			return got, err
		}
		if err := r.response(m); err != nil {
			r.forget() // a snapshot comes with the next stream
			return got, err
		}
		if r.whole() {
			if got != live {
				got = live
				s.trust(r.identity)
			}
			r.report(nil)
		}
	}
}

// response applies one message of a subscription.
func (r *receiver) response(m *pb.SubscribeResponse) error {
	switch m := m.Message.(type) {
	case *pb.SubscribeResponse_SnapshotBegin:
		err := r.snapshotBegin(m.SnapshotBegin)
		r.report(nil)
		return err
	case *pb.SubscribeResponse_SnapshotPart:
		return r.snapshotPart(m.SnapshotPart)
	case *pb.SubscribeResponse_SnapshotEnd:
		return r.snapshotEnd(m.SnapshotEnd)
	case *pb.SubscribeResponse_Delta:
		return r.delta(r.at.incarnation, m.Delta)
	case *pb.SubscribeResponse_Heartbeat:
		r.heartbeat(m.Heartbeat)
	}
	return nil // of a later version
}
