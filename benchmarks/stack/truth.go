package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// State is the part of warmpath's /debug/state that tests and demos read.
type State struct {
	Endpoints []EndpointState `json:"endpoints"`
}

// EndpointState is one endpoint of a [State].
type EndpointState struct {
	Name       string           `json:"name"`
	Address    string           `json:"address"`
	Health     string           `json:"health"`
	InFlight   int64            `json:"in_flight"`
	Publishers []PublisherState `json:"publishers"`
}

// PublisherState is one event stream of an endpoint.
type PublisherState struct {
	Trust string `json:"trust"`
	Phase string `json:"phase"`
	// Sequence is that of the newest batch that is applied, if Sequenced.
	Sequence  int64 `json:"sequence"`
	Sequenced bool  `json:"sequenced"`
}

// State reads warmpath's state.
func (s *Stack) State(ctx context.Context) (State, error) {
	var st State
	return st, getJSON(ctx, s.Admin+"/debug/state", &st)
}

// Endpoint returns the state of one engine's endpoint.
func (st State) Endpoint(name string) (EndpointState, error) {
	for _, e := range st.Endpoints {
		if e.Name == name {
			return e, nil
		}
	}
	return EndpointState{}, fmt.Errorf("/debug/state has no endpoint %q", name)
}

// PoolBlock is one block in an engine's own pool.
type PoolBlock struct {
	Hash   string            `json:"hash"`
	Tokens []kvindex.TokenID `json:"tokens"`
	LoRA   string            `json:"lora"`
	Salt   string            `json:"salt"`
	// CopyRemoved: the engine had two copies and has announced the removal of
	// one, which its events do not tell from the removal of the last one.
	CopyRemoved bool `json:"copy_removed"`
}

// EnginePool is what an engine's own block pool holds.
type EnginePool struct {
	BlockSize int `json:"block_size"`
	// NextSeq is the sequence of the next batch that it will publish.
	NextSeq int64       `json:"next_seq"`
	Pending int         `json:"pending_events"`
	Running int         `json:"running"`
	Waiting int         `json:"waiting"`
	Blocks  []PoolBlock `json:"blocks"`
}

// Pool reads the engine's own block pool.
func (e *Engine) Pool(ctx context.Context) (EnginePool, error) {
	var p EnginePool
	return p, getJSON(ctx, "http://"+e.HTTP+"/debug/pool", &p)
}

// Fault asks the engine to misbehave.
func (e *Engine) Fault(ctx context.Context, fault map[string]any) error {
	body, err := json.Marshal(fault)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.HTTP+"/debug/faults", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("POST http://%s/debug/faults: status %d", e.HTTP, resp.StatusCode)
	}
	return nil
}

// Quiet waits until warmpath has applied every batch that the engines have
// published, and the engines have nothing left to do.
func (s *Stack) Quiet(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		behind, err := s.behind(ctx)
		if err != nil {
			return err
		}
		if behind == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not quiet in time: %s", behind)
		case <-tick.C:
		}
	}
}

// behind says what keeps the stack from being quiet, "" if nothing does.
func (s *Stack) behind(ctx context.Context) (string, error) {
	var busy []string
	for _, e := range s.Engines {
		p, err := e.Pool(ctx)
		if err != nil {
			return "", err
		}
		st, err := s.State(ctx)
		if err != nil {
			return "", err
		}
		ep, err := st.Endpoint(e.Name)
		if err != nil {
			return "", err
		}
		if len(ep.Publishers) != 1 {
			return "", fmt.Errorf("%s has %d publishers, want 1", e.Name, len(ep.Publishers))
		}
		last := int64(-1)
		if ep.Publishers[0].Sequenced {
			last = ep.Publishers[0].Sequence
		}
		if p.Running+p.Waiting > 0 || last != p.NextSeq-1 {
			busy = append(busy, fmt.Sprintf("%s runs %d and has published up to %d, warmpath has applied up to %d", e.Name, p.Running+p.Waiting, p.NextSeq-1, last))
		}
	}
	return strings.Join(busy, "; "), nil
}

// Difference is how an endpoint's index differs from its engine's own pool.
type Difference struct {
	// Held is the number of blocks that the engine holds.
	Held int
	// Over counts blocks that only the index holds.
	Over int
	// Under counts blocks that only the engine holds, UnderCopies those among
	// them of which the engine had two copies and removed one: its events do
	// not tell that from the removal of the last one.
	Under, UnderCopies int
}

// Equal tells whether index and pool agree, but for removed second copies.
func (d Difference) Equal() bool { return d.Over == 0 && d.Under == d.UnderCopies }

// Compare compares what warmpath's index says about an engine with what the
// engine's own pool holds, at a quiet instant.
func (s *Stack) Compare(ctx context.Context, e *Engine, hasher kvindex.Hasher) (Difference, error) {
	p, err := e.Pool(ctx)
	if err != nil {
		return Difference{}, err
	}
	var held struct {
		Blocks []string `json:"blocks"`
	}
	if err := getJSON(ctx, s.Admin+"/debug/held/"+e.Name, &held); err != nil {
		return Difference{}, err
	}
	index := map[kvindex.BlockHash]bool{}
	for _, b := range held.Blocks {
		n, err := strconv.ParseUint(b, 16, 64)
		if err != nil {
			return Difference{}, err
		}
		index[kvindex.BlockHash(n)] = true
	}
	truth, err := p.Chains(hasher, e.Model)
	if err != nil {
		return Difference{}, err
	}
	return Differ(index, truth), nil
}

// Chains translates what the engine holds into the chain hashes that an index
// with hasher has for a model. A value is true if the engine has announced the
// removal of one of two copies.
func (p EnginePool) Chains(hasher kvindex.Hasher, model string) (map[kvindex.BlockHash]bool, error) {
	out := make(map[kvindex.BlockHash]bool, len(p.Blocks))
	for _, b := range p.Blocks {
		if len(b.Tokens) == 0 || len(b.Tokens)%p.BlockSize != 0 {
			return nil, errors.New("the engine's pool lists a block that is not full")
		}
		root := hasher.Root(kvindex.Scope{Model: model, Adapter: b.LoRA, Salt: b.Salt, BlockSize: p.BlockSize})
		chain := kvindex.AppendChain(nil, root, hasher.AppendContents(nil, b.Tokens, p.BlockSize))
		out[chain[len(chain)-1]] = b.CopyRemoved
	}
	return out, nil
}

// Differ compares what an index holds with the truth, see [EnginePool.Chains].
func Differ(index map[kvindex.BlockHash]bool, truth map[kvindex.BlockHash]bool) Difference {
	d := Difference{Held: len(truth)}
	for h := range index {
		if _, ok := truth[h]; !ok {
			d.Over++
		}
	}
	for h, copyRemoved := range truth {
		switch {
		case index[h]:
		case copyRemoved:
			d.Under++
			d.UnderCopies++
		default:
			d.Under++
		}
	}
	return d
}

// Holds tells whether the pool holds a block whose prefix begins with tokens.
func (p EnginePool) Holds(tokens []kvindex.TokenID) bool {
	return slices.ContainsFunc(p.Blocks, func(b PoolBlock) bool {
		n := min(len(b.Tokens), len(tokens))
		return slices.Equal(b.Tokens[:n], tokens[:n])
	})
}

func getJSON(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: status %d", url, resp.StatusCode)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	return nil
}
