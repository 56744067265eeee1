package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events/zmtp"
)

// batch is one published step.
type batch struct {
	seq     uint64
	payload []byte
}

// publisher numbers batches, sends them on a PUB socket and keeps the latest
// for replay, in the way of vLLM's ZmqEventPublisher. Faults are injected
// here, between the core and the sockets.
type publisher struct {
	format engine.Format
	topic  []byte
	rank   int
	legacy bool // replay answers without a topic frame
	logger *slog.Logger
	closed chan struct{}

	mu     sync.Mutex   // guards what follows
	pub    *zmtp.Pub    // replaced by a restart
	router *zmtp.Router // nil without replay; replaced by a restart
	next   uint64       // sequence of the next batch
	ring   []batch      // ascending, at most limit
	limit  int          // batches kept
	faults eventFaults
}

// listenPublisher binds the sockets that cfg asks for.
func listenPublisher(ctx context.Context, cfg Config, logger *slog.Logger) (*publisher, error) {
	p := &publisher{
		format: cfg.EventFormat,
		topic:  []byte(cfg.Topic),
		rank:   cfg.Rank,
		legacy: cfg.LegacyReplay,
		limit:  cfg.BufferSteps,
		logger: logger,
		closed: make(chan struct{}),
	}
	var err error
	if p.pub, err = zmtp.ListenPub(ctx, cfg.Events); err != nil {
		return nil, fmt.Errorf("events %s: %w", cfg.Events, err)
	}
	if cfg.Replay == "" {
		return p, nil
	}
	if p.router, err = zmtp.ListenRouter(ctx, cfg.Replay); err != nil {
		_ = p.pub.Close()
		return nil, fmt.Errorf("replay %s: %w", cfg.Replay, err)
	}
	return p, nil
}

// publish sends one batch. The batch is kept for replay whatever becomes of
// the live message.
func (p *publisher) publish(events []engine.Event, now time.Time) {
	ts := float64(now.UnixNano()) / 1e9
	payload := engine.AppendBatch(nil, p.format, ts, events, p.rank)

	p.mu.Lock()
	defer p.mu.Unlock()
	f := &p.faults
	if take(&f.unknown) {
		payload = withUnknownEvent(payload)
	}
	b := batch{seq: p.next, payload: payload}
	p.next++
	if take(&f.drop) {
		p.logger.Info("batch dropped by fault", slog.Uint64("seq", b.seq))
		return
	}
	p.ring = append(p.ring, b)
	p.trim()
	if f.resume != nil {
		f.stalled = append(f.stalled, b)
		return
	}
	p.send(b)
}

// trim keeps the ring within its limit. The caller holds mu.
func (p *publisher) trim() {
	if n := len(p.ring) - p.limit; n > 0 {
		p.ring = p.ring[n:]
	}
}

// endpoints returns where the sockets listen, "" for one that there is not.
func (p *publisher) endpoints() (events, replay string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.router != nil {
		replay = p.router.Endpoint()
	}
	return p.pub.Endpoint(), replay
}

// nextSeq is the sequence number of the next batch.
func (p *publisher) nextSeq() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

func (p *publisher) bufferSteps() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit
}

// serveReplay answers replay requests until close. A request is the client's
// identity, an empty delimiter and the first sequence wanted, 8 bytes
// big-endian; anything else is dropped with a warning, as vLLM does.
func (p *publisher) serveReplay(ctx context.Context) error {
	for {
		router := p.replaySocket()
		frames, err := router.Recv()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if p.replaySocket() != router {
				continue // restarted
			}
			return fmt.Errorf("replay: %w", err)
		}
		if len(frames) != 3 || len(frames[1]) != 0 || len(frames[2]) != 8 {
			p.logger.Warn("replay request dropped: want identity, empty frame, 8 bytes",
				slog.Int("frames", len(frames)))
			continue
		}
		p.replay(router, frames[0], binary.BigEndian.Uint64(frames[2]))
	}
}

func (p *publisher) replaySocket() *zmtp.Router {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.router
}

// replay sends all kept batches from start on, then the end marker: a
// sequence of all ones with an empty payload and, in the newer layout, an
// empty topic.
func (p *publisher) replay(router *zmtp.Router, identity []byte, start uint64) {
	p.waitStalled()
	p.mu.Lock()
	batches, f := p.ring, p.faults
	p.mu.Unlock()
	sent := 0
	for _, b := range batches {
		if b.seq < start {
			continue
		}
		sent++
		if f.replayHole > 0 && sent > f.replayHoleAfter && sent <= f.replayHoleAfter+f.replayHole {
			continue
		}
		if err := p.reply(router, identity, p.topic, b.seq, b.payload); err != nil {
			p.logger.Warn("replay cut short", slog.Uint64("seq", b.seq), slog.Any("error", err))
			return
		}
	}
	if f.replayNoMarker {
		return
	}
	if err := p.reply(router, identity, nil, math.MaxUint64, nil); err != nil {
		p.logger.Warn("replay end not sent", slog.Any("error", err))
	}
}

func (p *publisher) reply(router *zmtp.Router, identity, topic []byte, seq uint64, payload []byte) error {
	if p.legacy {
		return router.Send(identity, nil, seqFrame(seq), payload)
	}
	return router.Send(identity, nil, topic, seqFrame(seq), payload)
}

// close closes the sockets, which ends serveReplay.
func (p *publisher) close() {
	close(p.closed)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeSockets()
}

// closeSockets closes what listens. The caller holds mu.
func (p *publisher) closeSockets() {
	_ = p.pub.Close()
	if p.router != nil {
		_ = p.router.Close()
	}
}

func seqFrame(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
