package relay

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// View is what the read API shows.
type View struct {
	Pool   events.SnapshotSource
	Index  *kvindex.Index
	Hasher kvindex.Hasher
	// Status tells where each publisher stands.
	Status func() []events.Status
	// Snapshot returns what is known of a publisher, for a router that starts,
	// as [events.Manager.Snapshot] does; nil: nothing is told.
	Snapshot func(ctx context.Context, address string, rank int, model string) (events.Saved, error)
}

// reader implements the read API.
type reader struct {
	pb.UnimplementedReaderServer
	View
	access access
	m      *routerMetrics

	mu sync.Mutex
	// stats are the index's of a moment ago, guarded by mu: counting stops all
	// writers.
	stats kvindex.Stats
	at    time.Time
}

const (
	pageOfPublishers = 100
	pageOfBlocks     = 4096
	// maxPage keeps an answer below what gRPC takes by default.
	maxPage = 32768
	// statsAge is for how long counts are told again.
	statsAge = time.Second
)

func (r *reader) allow(ctx context.Context) error {
	if err := r.access.reader(callerOf(ctx)); err != nil {
		r.m.denied.Inc()
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// seen is a publisher with all that is known of it.
type seen struct {
	id    kvindex.PublisherID
	state *pb.PublisherState
}

// publishers returns those that are picked, by endpoint name and rank.
func (r *reader) publishers(endpoint, model string) []seen {
	standing := map[string]events.Status{}
	key := func(name string, rank int) string { return name + " " + strconv.Itoa(rank) }
	for _, st := range r.Status() {
		standing[key(st.Endpoint, st.Rank)] = st
	}
	var out []seen
	for _, e := range r.Pool.Snapshot().Endpoints {
		base := ""
		if len(e.Models) > 0 {
			base = e.Models[0]
		}
		if endpoint != "" && e.Name != endpoint && e.Address != endpoint || model != "" && base != model {
			continue
		}
		for _, p := range e.Publishers {
			st := standing[key(e.Name, p.Rank)]
			s := &pb.PublisherState{
				Name: e.Name, Endpoint: e.Address, Rank: uint32(p.Rank), Model: base,
				Trust: trustNamed(st.Trust), Source: st.Source, Phase: cmp.Or(st.Phase, events.Connecting.String()), Error: st.Error,
			}
			if st.Sequenced {
				s.EngineSequence = new(st.Sequence)
			}
			out = append(out, seen{p.ID, s})
		}
	}
	slices.SortFunc(out, func(a, b seen) int {
		return cmp.Or(cmp.Compare(a.state.Name, b.state.Name), cmp.Compare(a.state.Rank, b.state.Rank))
	})
	return out
}

// trustNamed is the inverse of [kvindex.Trust.String].
func trustNamed(name string) pb.Trust {
	for t := kvindex.TrustSilent; t <= kvindex.TrustExact; t++ {
		if t.String() == name {
			return trustToWire(t)
		}
	}
	return pb.Trust_TRUST_SILENT
}

// counts returns the index's counts, not older than statsAge.
func (r *reader) counts(now time.Time) map[kvindex.PublisherID]kvindex.PublisherStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || now.Sub(r.at) >= statsAge {
		r.stats, r.at = r.Index.Stats(), now
	}
	out := make(map[kvindex.PublisherID]kvindex.PublisherStats, len(r.stats.Publishers))
	for _, p := range r.stats.Publishers {
		out[p.ID] = p
	}
	return out
}

// GetCacheState implements the service.
func (r *reader) GetCacheState(ctx context.Context, req *pb.GetCacheStateRequest) (*pb.GetCacheStateResponse, error) {
	if err := r.allow(ctx); err != nil {
		return nil, err
	}
	if req.PageSize > maxPage {
		return nil, status.Errorf(codes.InvalidArgument, "page_size: %d is above %d", req.PageSize, maxPage)
	}
	all := r.publishers(req.Endpoint, req.Model)
	if req.Blocks {
		return r.blocks(all, req)
	}
	if _, after, ok := cutToken(req.PageToken); ok {
		at, _ := slices.BinarySearchFunc(all, after, func(s seen, key string) int { return cmp.Compare(s.state.Name+" "+rankKey(s.state.Rank), key) })
		all = all[at:]
	} else if req.PageToken != "" {
		return nil, status.Errorf(codes.InvalidArgument, "page_token: %q is not one that was given out", req.PageToken)
	}
	out := &pb.GetCacheStateResponse{}
	if n := cmp.Or(int(req.PageSize), pageOfPublishers); n < len(all) {
		out.NextPageToken = "p:" + all[n].state.Name + " " + rankKey(all[n].state.Rank)
		all = all[:n]
	}
	counts := r.counts(time.Now())
	for _, s := range all {
		c := counts[s.id]
		s.state.Held = uint64(c.Held)
		for t, n := range c.Tiers {
			if n > 0 {
				s.state.ByTier = append(s.state.ByTier, &pb.TierCount{Tier: tierToWire(kvindex.Tier(t)), Blocks: uint64(n)})
			}
		}
		out.Publishers = append(out.Publishers, s.state)
	}
	return out, nil
}

// rankKey sorts as the rank does.
func rankKey(rank uint32) string { return fmt.Sprintf("%08x", rank) }

// cutToken takes a page token of publishers apart.
func cutToken(token string) (kind, rest string, ok bool) {
	kind, rest, ok = strings.Cut(token, ":")
	return kind, rest, ok && kind == "p"
}

// blocks answers with the blocks of one publisher.
func (r *reader) blocks(all []seen, req *pb.GetCacheStateRequest) (*pb.GetCacheStateResponse, error) {
	i := slices.IndexFunc(all, func(s seen) bool { return s.state.Rank == req.Rank })
	if req.Endpoint == "" || i < 0 {
		return nil, status.Errorf(codes.NotFound, "endpoint: %q with rank %d is none that is followed; GetCacheState without blocks lists them", req.Endpoint, req.Rank)
	}
	after := kvindex.BlockHash(0)
	if req.PageToken != "" {
		text, ok := strings.CutPrefix(req.PageToken, "b:")
		n, err := strconv.ParseUint(text, 16, 64)
		if !ok || err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "page_token: %q is not one that was given out", req.PageToken)
		}
		after = kvindex.BlockHash(n)
	}
	held := r.Index.AppendHeldBlocks(nil, all[i].id)
	slices.SortFunc(held, func(a, b kvindex.HeldBlock) int { return cmp.Compare(a.Hash, b.Hash) })
	from, _ := slices.BinarySearchFunc(held, after, func(b kvindex.HeldBlock, h kvindex.BlockHash) int { return cmp.Compare(b.Hash, h) })
	held = held[from:]
	out := &pb.GetCacheStateResponse{Publishers: []*pb.PublisherState{all[i].state}}
	if n := cmp.Or(int(req.PageSize), pageOfBlocks); n < len(held) {
		out.NextPageToken = fmt.Sprintf("b:%016x", uint64(held[n].Hash))
		held = held[:n]
	}
	for _, b := range held {
		w := &pb.HeldBlock{Block: uint64(b.Hash), Parent: uint64(b.Parent)}
		for t := range kvindex.Tier(kvindex.NumTiers) {
			if b.Tiers>>t&1 == 1 {
				w.Tiers = append(w.Tiers, tierToWire(t))
			}
		}
		out.HeldBlocks = append(out.HeldBlocks, w)
	}
	return out, nil
}

// LookupRoute implements the service.
func (r *reader) LookupRoute(ctx context.Context, req *pb.LookupRouteRequest) (*pb.LookupRouteResponse, error) {
	if err := r.allow(ctx); err != nil {
		return nil, err
	}
	snap := r.Pool.Snapshot()
	model, ok := snap.Model(req.Model)
	if !ok {
		why := fmt.Sprintf("no endpoint serves %q; known are %s", req.Model, strings.Join(snap.Models(), ", "))
		if !snap.Complete() {
			why += "; some endpoints have not told their models yet"
		}
		return &pb.LookupRouteResponse{Reason: pb.ReasonCode_UNKNOWN_MODEL, Diagnosis: why}, nil
	}
	out := &pb.LookupRouteResponse{}
	tokens := make([]kvindex.TokenID, len(req.TokenIds))
	for i, t := range req.TokenIds {
		tokens[i] = kvindex.TokenID(t)
	}
	sizes := model.BlockSizes()
	for _, size := range sizes {
		root := r.Hasher.Root(kvindex.Scope{Model: model.Base, Adapter: model.Adapter, Salt: req.CacheSalt, BlockSize: size})
		chain := kvindex.AppendChain(nil, root, r.Hasher.AppendContents(nil, tokens, size))
		for _, m := range r.Index.Match(nil, chain, time.Now(), nil) {
			if w := matchOf(snap, m, size); w != nil {
				out.Matches = append(out.Matches, w)
			}
		}
	}
	slices.SortFunc(out.Matches, func(a, b *pb.EndpointMatch) int {
		return cmp.Or(cmp.Compare(b.HeldTokens, a.HeldTokens), cmp.Compare(b.ExpectedBlocks, a.ExpectedBlocks), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Rank, b.Rank))
	})
	out.Reason, out.Diagnosis = r.reason(model, sizes, len(tokens), len(out.Matches))
	return out, nil
}

// matchOf says what a publisher that the pool still has holds.
func matchOf(snap *pool.Snapshot, m kvindex.Match, size int) *pb.EndpointMatch {
	e := snap.Endpoint(m.Endpoint)
	if e == nil || e.Incarnation != m.Incarnation {
		return nil
	}
	for _, p := range e.Publishers {
		if p.ID == m.ID {
			return &pb.EndpointMatch{
				Name: e.Name, Endpoint: e.Address, Rank: uint32(p.Rank), DeviceBlocks: m.Device, HeldBlocks: m.Confirmed, ExpectedBlocks: m.Predicted,
				BlockSize: uint32(size), HeldTokens: m.Confirmed * uint32(size), Trust: trustToWire(m.Trust), Ready: e.Candidate(),
			}
		}
	}
	return nil
}

// reason tells why a lookup of a known model found what it did.
func (r *reader) reason(model *pool.Model, sizes []int, tokens, matches int) (pb.ReasonCode, string) {
	switch {
	case matches > 0:
		return pb.ReasonCode_PREFIX_MATCH, ""
	case len(sizes) == 0:
		var words []string
		for _, st := range r.Status() {
			word := fmt.Sprintf("%s rank %d: %s, %s", st.Endpoint, st.Rank, st.Phase, st.Trust)
			if st.Error != "" {
				word += ": " + st.Error
			}
			words = append(words, word)
		}
		return pb.ReasonCode_NO_CACHE_STATE, fmt.Sprintf("no endpoint of %s has told of a block: either nothing was cached since, or no events arrive (%s)", model.Base, cmp.Or(strings.Join(words, "; "), "no endpoint has events"))
	case tokens < slices.Min(sizes):
		return pb.ReasonCode_PROMPT_TOO_SHORT, fmt.Sprintf("%d tokens; a block has %d", tokens, slices.Min(sizes))
	}
	return pb.ReasonCode_NO_HINT, fmt.Sprintf("nobody holds the first block of this prompt for adapter %q and that cache salt, in blocks of %v tokens: it is new, or it was evicted, or its tokens are not those that the engine computes", model.Adapter, sizes)
}

// WatchState implements the service.
func (r *reader) WatchState(req *pb.WatchStateRequest, to grpc.ServerStreamingServer[pb.WatchStateResponse]) error {
	if err := r.allow(to.Context()); err != nil {
		return err
	}
	if req.IntervalMs > 0 && req.IntervalMs < 100 {
		return status.Errorf(codes.InvalidArgument, "interval_ms: %d is below 100", req.IntervalMs)
	}
	tick := time.NewTicker(time.Duration(cmp.Or(req.IntervalMs, 1000)) * time.Millisecond)
	defer tick.Stop()
	known := map[string]*pb.PublisherState{}
	for first := true; ; first = false {
		m := &pb.WatchStateResponse{}
		now := map[string]*pb.PublisherState{}
		for _, s := range r.publishers(req.Endpoint, req.Model) {
			key := s.state.Name + " " + rankKey(s.state.Rank)
			now[key] = s.state
			if !proto.Equal(known[key], s.state) {
				m.Changed = append(m.Changed, s.state)
			}
		}
		for key, s := range known {
			if now[key] == nil {
				m.Gone = append(m.Gone, s)
			}
		}
		known = now
		if first || len(m.Changed)+len(m.Gone) > 0 {
			if err := to.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-to.Context().Done():
			return to.Context().Err()
		}
	}
}
