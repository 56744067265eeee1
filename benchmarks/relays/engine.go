package relays

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/zmtp"
	"github.com/warmpath/warmpath/kvindex"
)

const (
	blockTokens = 16
	// promptBlocks is the prompt of one store, 1,024 tokens; behind every
	// prompt come decodeBlocks stores of one block each, as decoding makes them.
	promptBlocks = 64
	decodeBlocks = 8
)

// fake is an engine's event sockets, and the batches that it has published.
type fake struct {
	pub    *zmtp.Pub
	router *zmtp.Router
	wg     sync.WaitGroup
	rng    *rand.Rand
	seq    uint64
	stored []kvindex.EngineHash // oldest first

	mu      sync.Mutex
	batches [][]byte // for replay; guarded by mu
	bytes   int      // payloads and sequences of all that was published
}

func startFake(ctx context.Context, seed uint64) (*fake, error) {
	f := &fake{rng: rand.New(rand.NewPCG(seed, 1))}
	var err error
	if f.pub, err = zmtp.ListenPub(ctx, "tcp://127.0.0.1:0"); err != nil {
		return nil, err
	}
	if f.router, err = zmtp.ListenRouter(ctx, "tcp://127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, f.pub.Close())
	}
	f.wg.Go(f.replay)
	return f, nil
}

func (f *fake) close() error {
	err := errors.Join(f.pub.Close(), f.router.Close())
	f.wg.Wait()
	return err
}

// replay answers requests as vLLM does: every batch from the sequence asked
// for on, then the end marker.
func (f *fake) replay() {
	for {
		m, err := f.router.Recv()
		if err != nil {
			return
		}
		if len(m) != 3 || len(m[2]) != 8 {
			continue
		}
		f.mu.Lock()
		batches := f.batches
		f.mu.Unlock()
		for i := binary.BigEndian.Uint64(m[2]); i < uint64(len(batches)); i++ {
			if f.router.Send(m[0], []byte{}, []byte{}, sequence(i), batches[i]) != nil {
				break
			}
		}
		_ = f.router.Send(m[0], []byte{}, []byte{}, sequence(events.EndMarker), []byte{})
	}
}

func sequence(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// store makes the event of n new blocks behind parent; Root if it is nil.
func (f *fake) store(parent *kvindex.EngineHash, n int) engine.BlockStored {
	e := engine.BlockStored{BlockSize: blockTokens, Medium: engine.MediumGPU, Kind: engine.KindFullAttention}
	if e.Root = parent == nil; !e.Root {
		e.Parent = *parent
	}
	for range n {
		e.Hashes = append(e.Hashes, kvindex.EngineHash(f.rng.Uint64()))
	}
	for range n * blockTokens {
		e.Tokens = append(e.Tokens, kvindex.TokenID(f.rng.IntN(150_000)))
	}
	f.stored = append(f.stored, e.Hashes...)
	return e
}

// request publishes what one request stores, and evicts as many of the oldest
// blocks as are above hold. It returns the blocks stored.
func (f *fake) request(hold int) (blocks int) {
	e := f.store(nil, promptBlocks)
	f.publish(hold, e)
	last := e.Hashes[promptBlocks-1]
	for range decodeBlocks {
		d := f.store(&last, 1)
		last = d.Hashes[0]
		f.publish(hold, d)
	}
	return promptBlocks + decodeBlocks
}

func (f *fake) publish(hold int, e engine.BlockStored) {
	var batch []engine.Event
	if over := len(f.stored) - hold; over > 0 {
		batch = append(batch, engine.BlockRemoved{Hashes: f.stored[:over:over], Medium: engine.MediumGPU})
		f.stored = f.stored[over:]
	}
	payload := engine.AppendBatch(nil, engine.FormatMap, float64(time.Now().UnixMicro())/1e6, append(batch, e), 0)
	f.mu.Lock()
	f.batches = append(f.batches, payload)
	f.bytes += len(payload) + 8
	f.mu.Unlock()
	_ = f.pub.Send([]byte{}, sequence(f.seq), payload)
	f.seq++
}

// published returns the bytes published so far.
func (f *fake) published() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes
}
