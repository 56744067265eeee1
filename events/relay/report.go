package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// report tells one router, found under name, of a publisher until everything is
// delivered after its end, or ctx ends. A report that fails is made again on the next
// connection, from where the router says that it stands; what has left the log
// by then is made good by a snapshot.
func (r *Relay) report(ctx context.Context, f *feed, to, name string) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: r.cfg.BackoffMin, Multiplier: 2, MaxInterval: r.cfg.BackoffMax}
	log := r.log.With("router", to, "rank", f.identity.Rank)
	told := ""
	for ctx.Err() == nil {
		begun := time.Now()
		err := r.session(ctx, f, to, name)
		if errors.Is(err, errDrained) {
			return
		}
		if ctx.Err() != nil {
			break
		}
		r.m.reports[reportFailed].Inc()
		if text := err.Error(); text != told {
			told = text
			log.Warn("no report to the router; trying again", "err", err)
		}
		if time.Since(begun) > r.cfg.BackoffMax {
			pauses.Reset()
		}
		wait := time.NewTimer(r.jitter(pauses.NextBackOff()))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
	if context.Cause(ctx) == errLeft {
		log.Info("the router is reported to no more", "err", errLeft)
		return
	}
	log.Warn("stopped before everything was reported")
}

// reporter is one connection with a router.
type reporter struct {
	*Relay
	feed   *feed
	client pb.CacheStateClient
	stream grpc.BidiStreamingClient[pb.CacheStateReport, pb.ReportAck]
	cancel context.CancelFunc
	at     cursor // what the router has applied
}

// session reports over one connection until it breaks.
func (r *Relay) session(ctx context.Context, f *feed, to, name string) error {
	conn, err := r.out.client(to, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &reporter{Relay: r, feed: f, client: pb.NewCacheStateClient(conn), cancel: cancel}
	if p.stream, err = p.client.ReportCacheState(ctx); err != nil {
		return err
	}
	head := f.head()
	hello := &pb.Hello{Identity: f.identity.wire(head.incarnation), Cursor: head.wire(), HeartbeatMs: uint32(r.cfg.Heartbeat.Milliseconds())}
	if err := p.send(&pb.CacheStateReport{Message: &pb.CacheStateReport_Hello{Hello: hello}}); err != nil {
		return err
	}
	beat := time.NewTicker(r.cfg.Heartbeat)
	defer beat.Stop()
	for {
		if p.at.incarnation > head.incarnation && !f.raise(p.at.incarnation) {
			return errDrained // the router has our successor's state, and wants ours no more
		}
		v := f.next(p.at, atOnce)
		head = v.head
		switch {
		case v.snapshot != nil:
			r.m.reports[reportResync].Inc()
			if err := p.snapshot(v.snapshot); err != nil {
				return err
			}
			continue
		case len(v.deltas) > 0:
			if err := p.deltas(ctx, v); err != nil {
				return err
			}
			continue
		case v.closed:
			return errDrained
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			h := &pb.Heartbeat{Cursor: v.head.wire(), EngineSequence: v.engine}
			if err := p.send(&pb.CacheStateReport{Message: &pb.CacheStateReport_Heartbeat{Heartbeat: h}}); err != nil {
				return err
			}
		}
	}
}

// send gives the router a message and waits until it is acknowledged.
func (p *reporter) send(m *pb.CacheStateReport) error {
	late := time.AfterFunc(p.cfg.Timeout, p.cancel)
	defer late.Stop()
	if err := p.stream.Send(m); err != nil {
		// The reason is in what Recv returns.
		if _, why := p.stream.Recv(); why != nil {
			err = why
		}
		return fmt.Errorf("report: %w", err)
	}
	ack, err := p.stream.Recv()
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return p.acked(ack)
}

func (p *reporter) acked(a *pb.ReportAck) error {
	p.at = cursorFromWire(a.Applied)
	if a.Resync {
		p.at.sequence = ^uint64(0) // no place of the log, so a snapshot comes next
	}
	return nil
}

func (p *reporter) snapshot(s *snapshot) error {
	for _, m := range s.reports() {
		if err := p.send(m); err != nil {
			return err
		}
	}
	if p.at != s.cursor() && p.at.incarnation <= s.cursor().incarnation {
		return errors.New("report: the router did not take the snapshot")
	}
	return nil
}

// deltas gives the router changes in their order, each after the one before it
// was acknowledged, because evictions are calls of their own.
func (p *reporter) deltas(ctx context.Context, v view) error {
	for _, d := range v.deltas {
		want := cursor{v.head.incarnation, d.Sequence}
		var err error
		switch d.Change.(type) {
		case *pb.Delta_Evicted, *pb.Delta_Cleared:
			err = p.publish(ctx, &pb.CacheEvent{Identity: p.feed.identity.wire(v.head.incarnation), Delta: d})
		default:
			err = p.send(&pb.CacheStateReport{Message: &pb.CacheStateReport_Delta{Delta: d}})
		}
		if err != nil {
			return err
		}
		if p.at != want {
			return nil // it stands elsewhere, and gets what it needs next
		}
		p.m.reports[reportApplied].Inc()
	}
	return nil
}

func (p *reporter) publish(ctx context.Context, e *pb.CacheEvent) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	ack, err := p.client.PublishEvent(ctx, e)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return p.acked(ack)
}
