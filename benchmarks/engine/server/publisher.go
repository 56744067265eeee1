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
	limit  int  // batches kept
	logger *slog.Logger

	pub    *zmtp.Pub
	router *zmtp.Router // nil without replay

	mu   sync.Mutex // guards what follows
	next uint64     // sequence of the next batch
	ring []batch    // ascending, at most limit
	drop int        // batches still to lose
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
	b := batch{seq: p.next, payload: payload}
	p.next++
	if p.drop > 0 {
		p.drop--
		p.mu.Unlock()
		p.logger.Info("batch dropped by fault", slog.Uint64("seq", b.seq))
		return
	}
	if len(p.ring) == p.limit {
		p.ring = p.ring[1:]
	}
	p.ring = append(p.ring, b)
	p.mu.Unlock()

	if err := p.pub.Send(p.topic, seqFrame(b.seq), b.payload); err != nil {
		p.logger.Warn("kv event batch not sent", slog.Uint64("seq", b.seq), slog.Any("error", err))
	}
}

// nextSeq is the sequence number of the next batch.
func (p *publisher) nextSeq() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

// dropNext sets the number of batches to lose.
func (p *publisher) dropNext(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop = n
}

// dropping is the number of batches still to lose.
func (p *publisher) dropping() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drop
}

// serveReplay answers replay requests until close. A request is the client's
// identity, an empty delimiter and the first sequence wanted, 8 bytes
// big-endian; anything else is dropped with a warning, as vLLM does.
func (p *publisher) serveReplay(ctx context.Context) error {
	for {
		frames, err := p.router.Recv()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		if len(frames) != 3 || len(frames[1]) != 0 || len(frames[2]) != 8 {
			p.logger.Warn("replay request dropped: want identity, empty frame, 8 bytes",
				slog.Int("frames", len(frames)))
			continue
		}
		p.replay(frames[0], binary.BigEndian.Uint64(frames[2]))
	}
}

// replay sends all kept batches from start on, then the end marker: a
// sequence of all ones with an empty payload and, in the newer layout, an
// empty topic.
func (p *publisher) replay(identity []byte, start uint64) {
	p.mu.Lock()
	batches := p.ring
	p.mu.Unlock()
	for _, b := range batches {
		if b.seq < start {
			continue
		}
		if err := p.reply(identity, p.topic, b.seq, b.payload); err != nil {
			p.logger.Warn("replay cut short", slog.Uint64("seq", b.seq), slog.Any("error", err))
			return
		}
	}
	if err := p.reply(identity, nil, math.MaxUint64, nil); err != nil {
		p.logger.Warn("replay end not sent", slog.Any("error", err))
	}
}

func (p *publisher) reply(identity, topic []byte, seq uint64, payload []byte) error {
	if p.legacy {
		return p.router.Send(identity, nil, seqFrame(seq), payload)
	}
	return p.router.Send(identity, nil, topic, seqFrame(seq), payload)
}

// close closes the sockets, which ends serveReplay.
func (p *publisher) close() {
	_ = p.pub.Close()
	if p.router != nil {
		_ = p.router.Close()
	}
}

func seqFrame(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
