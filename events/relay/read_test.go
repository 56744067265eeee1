package relay

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// startRouter runs the event side of a router whose endpoints are specs, with
// its server, and returns where that listens.
func startRouter(t *testing.T, cfg RouterConfig, specs ...pool.Spec) (address string, v View) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ix, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	src := newTestSource(t, cfg, testHasher, false)
	p := pool.New(pool.DefaultConfig(), log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	p.Set(specs)
	m, err := events.New(events.DefaultConfig(), ix, testHasher, events.ZMQ(events.DefaultConfig()), log, prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), events.WithRelays(src))
	if err != nil {
		t.Fatal(err)
	}
	v = View{Pool: p, Index: ix, Hasher: testHasher, Status: m.Status}
	ln := listenLocal(t)
	srv := NewServer(cfg, src, v, log)
	run(t, func(ctx context.Context) error { return m.Run(ctx, p) })
	run(t, func(ctx context.Context) error { return srv.Run(ctx, ln) })
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); len(m.Status()) < len(specs); { // all of which have publishers
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%d of %d publishers are followed", len(m.Status()), len(specs))
		}
	}
	return ln.Addr().String(), v
}

func pushSpec() pool.Spec {
	return pool.Spec{Name: "engine-0", Address: testAddress, Models: []string{"m", "alias"}, Relay: pool.RelayPush}
}

// prompt is 3 blocks of 16 tokens and a little more.
func prompt() (tokens []uint32, contents []kvindex.ContentHash, blocks []kvindex.BlockHash, root kvindex.BlockHash) {
	var ids []kvindex.TokenID
	for i := range 50 {
		tokens, ids = append(tokens, uint32(1000+i)), append(ids, kvindex.TokenID(1000+i))
	}
	root = testHasher.Root(kvindex.Scope{Model: "m", BlockSize: 16})
	contents = testHasher.AppendContents(nil, ids, 16)
	return tokens, contents, kvindex.AppendChain(nil, root, contents), root
}

// A client that Python generates from the .proto reports, evicts and reads.
func TestInterop_Python(t *testing.T) {
	python := os.Getenv("WARMPATH_TEST_PYTHON")
	if python == "" {
		t.Skip("WARMPATH_TEST_PYTHON names no Python with grpcio-tools; make test installs one")
	}
	address, _ := startRouter(t, quickRouter(), pushSpec())
	tokens, contents, blocks, root := prompt()
	arguments, err := json.Marshal(map[string]any{
		"endpoint": testAddress, "model": "m", "scheme": Scheme, "seed": testHasher.Fingerprint(), "root": root,
		"block_size": 16, "contents": contents, "blocks": blocks, "tokens": tokens,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/interop/client.py", "cachestatepb", address, string(arguments))
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	type seen struct {
		Acks           [][]any
		Reason, Source string
		Held           []int
		Blocks         []uint64
		Watched        []string
	}
	var got seen
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	want := seen{
		Acks: [][]any{
			{0., 0., true}, {0., 0., false}, {1., 0., false}, {1., 1., false}, {1., 2., false},
		},
		Reason: "PREFIX_MATCH", Source: "relay", Held: []int{2}, Watched: []string{"TRUST_EXACT"},
		Blocks: []uint64{uint64(blocks[0]), uint64(blocks[1])},
	}
	slices.Sort(want.Blocks)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// grpcurl knows the calls by reflection.
func TestInterop_Grpcurl(t *testing.T) {
	grpcurl := os.Getenv("WARMPATH_TEST_GRPCURL")
	if grpcurl == "" {
		t.Skip("WARMPATH_TEST_GRPCURL names no grpcurl; make test builds one")
	}
	address, _ := startRouter(t, quickRouter(), pushSpec())
	relayAddress := startRelay(t, quickConfig(), testHasher)
	call := func(args ...string) string {
		t.Helper()
		b, err := exec.CommandContext(t.Context(), grpcurl, append([]string{"-plaintext"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("grpcurl %q: %v\n%s", args, err, b)
		}
		return string(b)
	}
	for _, service := range []string{"CacheState", "Reader"} {
		if list := call(address, "list"); !strings.Contains(list, "warmpath.cachestate.v1."+service) {
			t.Errorf("no %s in the list:\n%s", service, list)
		}
	}
	if list := call(relayAddress, "list"); !strings.Contains(list, "warmpath.cachestate.v1.Relay") {
		t.Errorf("no Relay in the list:\n%s", list)
	}
	if got := call("-d", `{"model": "none"}`, address, "warmpath.cachestate.v1.Reader/LookupRoute"); !strings.Contains(got, "UNKNOWN_MODEL") {
		t.Errorf("lookup: %s", got)
	}
	if got := call(address, "warmpath.cachestate.v1.Reader/GetCacheState"); !strings.Contains(got, `"engine-0"`) {
		t.Errorf("state: %s", got)
	}
}

// reading returns a client of the read API.
func reading(t *testing.T, address, tokenFile string) pb.ReaderClient {
	t.Helper()
	conn, err := outgoing{tokenFile: tokenFile}.client(address, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return pb.NewReaderClient(conn)
}

func TestReader_TellsWhyNothingMatches(t *testing.T) {
	address, v := startRouter(t, quickRouter(), pushSpec())
	c := reading(t, address, "")
	tokens, contents, _, root := prompt()
	ask := func(req *pb.LookupRouteRequest, want pb.ReasonCode, words string) {
		t.Helper()
		got, err := c.LookupRoute(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if got.Reason != want || !strings.Contains(got.Diagnosis, words) {
			t.Errorf("%v: reason %s, %q; want %s, %q", req, got.Reason, got.Diagnosis, want, words)
		}
	}
	ask(&pb.LookupRouteRequest{Model: "x", TokenIds: tokens}, pb.ReasonCode_UNKNOWN_MODEL, "known are alias, m")
	ask(&pb.LookupRouteRequest{Model: "m", TokenIds: tokens}, pb.ReasonCode_NO_CACHE_STATE, "engine-0")
	e := v.Pool.Snapshot().Endpoints[0]
	e.State.ObserveBlockSize(16)
	ask(&pb.LookupRouteRequest{Model: "m", TokenIds: tokens[:15]}, pb.ReasonCode_PROMPT_TOO_SHORT, "15 tokens")
	ask(&pb.LookupRouteRequest{Model: "m", TokenIds: tokens}, pb.ReasonCode_NO_HINT, "nobody holds")
	if !v.Index.Predict(e.ID, 1, kvindex.AppendChain(nil, root, contents[:2]), time.Now()) {
		t.Fatal("no prediction")
	}
	got, err := c.LookupRoute(t.Context(), &pb.LookupRouteRequest{Model: "alias", TokenIds: tokens})
	if err != nil || got.Reason != pb.ReasonCode_PREFIX_MATCH || got.Matches[0].ExpectedBlocks != 2 || got.Matches[0].HeldBlocks != 0 {
		t.Errorf("%v, error %v; want 2 blocks expected", got, err)
	}
	ask(&pb.LookupRouteRequest{Model: "m", CacheSalt: "s", TokenIds: tokens}, pb.ReasonCode_NO_HINT, "salt")
}

// Pages of blocks and of publishers, put together, are all of them, once.
func TestReader_Pages(t *testing.T) {
	var specs []pool.Spec
	for i := range 7 {
		s := pushSpec()
		s.Name, s.Address = "e"+string(rune('0'+i)), "127.0.0.1:"+string(rune('1'+i))+"000"
		specs = append(specs, s)
	}
	address, v := startRouter(t, quickRouter(), specs...)
	c := reading(t, address, "")
	var names []string
	for token := ""; ; {
		got, err := c.GetCacheState(t.Context(), &pb.GetCacheStateRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range got.Publishers {
			names = append(names, p.Name)
		}
		if token = got.NextPageToken; token == "" {
			break
		}
	}
	if d := cmp.Diff([]string{"e0", "e1", "e2", "e3", "e4", "e5", "e6"}, names); d != "" {
		t.Errorf("publishers (-want +got):\n%s", d)
	}
	// A publisher that nobody feeds here is filled by hand.
	filled := newSide(t)
	ch := chain{kvindex.Scope{Model: "m", BlockSize: 16}, nil}
	for i := range 100 {
		ch.contents = append(ch.contents, kvindex.ContentHash(i+1))
	}
	filled.w.StoreRun(kvindex.Run{Parent: testHasher.Root(ch.scope), Root: true, Contents: ch.contents})
	r := &reader{View: View{Pool: v.Pool, Index: filled.index, Hasher: testHasher, Status: v.Status}, m: newRouterMetrics(prometheus.NewRegistry())}
	endpoint := ""
	for _, e := range v.Pool.Snapshot().Endpoints {
		if e.Publishers[0].ID == 1 {
			endpoint = e.Name
		}
	}
	var blocks []uint64
	for token := ""; ; {
		got, err := r.GetCacheState(t.Context(), &pb.GetCacheStateRequest{Endpoint: endpoint, Blocks: true, PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range got.HeldBlocks {
			blocks = append(blocks, b.Block)
		}
		if token = got.NextPageToken; token == "" {
			break
		}
	}
	var want []uint64
	for _, b := range ch.blocks() {
		want = append(want, uint64(b))
	}
	slices.Sort(want)
	if d := cmp.Diff(want, blocks); d != "" {
		t.Errorf("blocks (-want +got):\n%s", d)
	}
	for _, bad := range []*pb.GetCacheStateRequest{{PageToken: "x"}, {PageSize: maxPage + 1}, {Endpoint: endpoint, Blocks: true, PageToken: "b:x"}} {
		if _, err := r.GetCacheState(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: error %v", bad, err)
		}
	}
}

func TestReader_TakesARightToRead(t *testing.T) {
	dir := t.TempDir()
	write := func(file, text string) string {
		path := dir + "/" + file
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cfg := quickRouter()
	cfg.TokensFile = write("tokens", "read rrrrrrrrrrrrrrrrrrrr\n"+testAddress+" eeeeeeeeeeeeeeeeeeee\n")
	address, _ := startRouter(t, cfg, pushSpec())
	for token, want := range map[string]codes.Code{
		write("reader", "rrrrrrrrrrrrrrrrrrrr\n"): codes.OK,
		write("relay", "eeeeeeeeeeeeeeeeeeee\n"):  codes.PermissionDenied,
		"":                                        codes.PermissionDenied,
	} {
		c := reading(t, address, token)
		if _, err := c.LookupRoute(t.Context(), &pb.LookupRouteRequest{Model: "m"}); status.Code(err) != want {
			t.Errorf("lookup with %q: %v, want %s", token, err, want)
		}
		if _, err := c.GetCacheState(t.Context(), &pb.GetCacheStateRequest{}); status.Code(err) != want {
			t.Errorf("state with %q: %v, want %s", token, err, want)
		}
		w, err := c.WatchState(t.Context(), &pb.WatchStateRequest{})
		if err == nil {
			_, err = w.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("watch with %q: %v, want %s", token, err, want)
		}
	}
}
