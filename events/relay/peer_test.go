package relay

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// drawKnown makes up what a router knows of a publisher.
func drawKnown(t *rapid.T) events.Saved {
	small := rapid.Uint64Range(0, 1<<40)
	k := events.Saved{
		Address: testAddress, Rank: rapid.IntRange(0, 3).Draw(t, "rank"), Model: "m", Next: rapid.Uint64Range(1, 1<<63).Draw(t, "next"),
		Heard: time.Now().Add(-time.Duration(rapid.IntRange(0, 1000).Draw(t, "age")) * time.Second),
	}
	copy(k.Last[:], rapid.SliceOfN(rapid.Byte(), len(k.Last), len(k.Last)).Draw(t, "last"))
	k.State.Groups = rapid.SliceOfNDistinct(rapid.Uint8(), 0, maxGroups, rapid.ID).Draw(t, "groups")
	k.OtherGroups = rapid.SliceOfN(rapid.Uint8(), 0, 3).Draw(t, "other groups")
	for tier := range k.Sizes {
		k.Sizes[tier] = rapid.MapOfN(rapid.Uint8(), rapid.IntRange(1, 1<<20), 0, 3).Draw(t, "sizes")
	}
	places := uint32(1<<(len(k.State.Groups)*kvindex.NumTiers) - 1)
	for range rapid.IntRange(0, 3).Draw(t, "roots") {
		root := kvindex.BlockHash(small.Draw(t, "root") | 1<<50) // 0 would be its own first block
		k.Roots = append(k.Roots, root)
		at, first := root, true
		for range rapid.IntRange(0, 12).Draw(t, "blocks") {
			if !first && rapid.IntRange(0, 4).Draw(t, "branch") == 0 {
				at = k.State.Blocks[rapid.IntRange(0, len(k.State.Blocks)-1).Draw(t, "behind")].Block
			}
			b := kvindex.ExportedBlock{Block: kvindex.Mix(at, kvindex.ContentHash(small.Draw(t, "content"))), Parent: at, Root: first}
			b.Held = rapid.SampledFrom([]uint32{0, 1, 1, 1, rapid.Uint32().Draw(t, "held")}).Draw(t, "which") & places
			if b.Named = rapid.IntRange(0, 3).Draw(t, "named") > 0; b.Named {
				b.Name = kvindex.EngineHash(small.Draw(t, "name"))
			}
			if n := len(k.State.Groups); n > 0 && rapid.IntRange(0, 3).Draw(t, "spares") == 0 {
				b.Spares = make([]uint8, n)
				b.Spares[rapid.IntRange(0, n-1).Draw(t, "group")] = rapid.Uint8Range(1, 255).Draw(t, "count")
			}
			k.State.Blocks = append(k.State.Blocks, b)
			at, first = b.Block, false
		}
	}
	return k
}

// onTheWire returns the messages that tell of a publisher, as they arrive.
func onTheWire(t fataler, k events.Saved) (out []*pb.SnapshotsResponse) {
	t.Helper()
	send := func(m *pb.SnapshotsResponse) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got := &pb.SnapshotsResponse{}
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		out = append(out, got)
	}
	id := Identity{Endpoint: k.Address, Rank: k.Rank, Model: k.Model, Seed: testHasher.Fingerprint()}
	send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_Standing{Standing: standing(id, &k, time.Now())}})
	held, err := namedParts(k.State, func(p *pb.NamedPart) error {
		send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_Part{Part: p}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	send(&pb.SnapshotsResponse{Message: &pb.SnapshotsResponse_End{End: &pb.SnapshotEnd{Blocks: held}}})
	return out
}

func wantedOf(k events.Saved) events.Subject {
	return events.Subject{Publisher: pool.Publisher{Publisher: kvindex.Publisher{ID: 1}, Rank: k.Rank}, Address: k.Address, Model: k.Model}
}

// What is told of a publisher is what is taken, to the last bit.
func TestPeer_TakesWhatIsTold(t *testing.T) {
	src := newTestSource(t, quickRouter(), testHasher, false)
	rapid.Check(t, func(t *rapid.T) {
		want := drawKnown(t)
		var got []events.Saved
		a := &asking{[]events.Subject{wantedOf(want)}, func(_ events.Subject, k events.Saved) { got = append(got, k) }}
		var now *known
		var err error
		for _, m := range onTheWire(t, want) {
			if now, err = src.heard(m, now, a, &heardOf{}); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff([]events.Saved{want}, got, cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(time.Second)); d != "" {
			t.Fatalf("(-told +taken):\n%s", d)
		}
	})
}

// Nothing is taken of what does not fit together.
func TestPeer_TakesNothingThatIsDamaged(t *testing.T) {
	k := tellable()
	for name, spoil := range map[string]func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse{
		"no beginning":   func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { return m[1:] },
		"no parts":       func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { return []*pb.SnapshotsResponse{m[0], m[2]} },
		"only an end":    func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { return m[2:] },
		"two beginnings": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { return append(m[:1], m...) },
		"cut off":        func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { return m[:2] },
		"another endpoint": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Identity.Endpoint = "10.0.0.9:1"
			return m
		},
		"another rank": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Identity.Rank = 7
			return m
		},
		"another model": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Identity.Model = "x"
			return m
		},
		"another seed": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Identity.SeedFingerprint++
			return m
		},
		"another scheme": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Identity.HashScheme = "x"
			return m
		},
		"no identity": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { m[0].GetStanding().Identity = nil; return m },
		"no hash":     func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { m[0].GetStanding().LastBatch = nil; return m },
		"the end of sequence": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Sequence = ^uint64(0)
			return m
		},
		"too many groups": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Groups = make([]uint32, 9)
			return m
		},
		"a group of 256": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().OtherGroups = []uint32{256}
			return m
		},
		"a block of no tokens": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[0].GetStanding().Sizes[0].BlockSize = 0
			return m
		},
		"fewer names than blocks": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			r := m[1].GetPart().Runs[0]
			r.Names = r.Names[:1]
			return m
		},
		"a group that is not announced": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[1].GetPart().Runs[0].Run.Places[0].Group = 5
			return m
		},
		"a copy of no block": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[1].GetPart().Runs[0].Spares = []*pb.Spare{{Block: 3, Count: 1}}
			return m
		},
		"an unknown tier": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse {
			m[1].GetPart().Runs[0].Run.Places[0].Tier = 9
			return m
		},
		"a run of nothing":           func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { m[1].GetPart().Runs[0].Run = nil; return m },
		"more blocks than there are": func(m []*pb.SnapshotsResponse) []*pb.SnapshotsResponse { m[2].GetEnd().Blocks++; return m },
	} {
		t.Run(name, func(t *testing.T) {
			address := startFakePeer(t, spoil(onTheWire(t, k)))
			cfg := quickRouter()
			cfg.Peers = []string{address}
			src, _, taken := asks(t, cfg, Network{}, k)
			if len(taken) != 0 {
				t.Errorf("taken: %+v", taken)
			}
			if got := testutil.ToFloat64(src.m.peers[peerAnswered]); got != 0 {
				t.Error("it counts as answered")
			}
		})
	}
}

// fakePeer tells what a test says, whatever it is asked.
type fakePeer struct {
	pb.UnimplementedPeerServer
	says []*pb.SnapshotsResponse
}

func (f fakePeer) Snapshots(_ *pb.SnapshotsRequest, to grpc.ServerStreamingServer[pb.SnapshotsResponse]) error {
	for _, m := range f.says {
		if err := to.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func startFakePeer(t *testing.T, says []*pb.SnapshotsResponse) (address string) {
	t.Helper()
	ln := listenLocal(t)
	srv := grpc.NewServer()
	pb.RegisterPeerServer(srv, fakePeer{says: says})
	run(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, srv.Stop)()
		return srv.Serve(ln)
	})
	return ln.Addr().String()
}

// tellable is a publisher that holds three blocks.
func tellable() events.Saved {
	k := events.Saved{Address: testAddress, Model: "m", Next: 5, Last: [32]byte{1}, Heard: time.Now(), Roots: []kvindex.BlockHash{77}}
	k.Sizes[0] = map[uint8]int{0: 16}
	k.State.Groups = []uint8{0}
	at := kvindex.BlockHash(77)
	for i := range 3 {
		b := kvindex.ExportedBlock{Block: kvindex.Mix(at, kvindex.ContentHash(i)), Parent: at, Root: i == 0, Name: kvindex.EngineHash(100 + i), Named: true, Held: 1}
		k.State.Blocks = append(k.State.Blocks, b)
		at = b.Block
	}
	return k
}

var errNotKnown = errors.New("not known here")

// startPeer serves what a router knows, and counts whom it is asked for.
func startPeer(t *testing.T, cfg RouterConfig, hasher kvindex.Hasher, all ...events.Saved) (srv *Server, address string, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var names []string
	view := View{Snapshot: func(_ context.Context, address string, rank int, model string) (events.Saved, error) {
		mu.Lock()
		defer mu.Unlock()
		names = append(names, address)
		for _, k := range all {
			if k.Address == address && k.Rank == rank && k.Model == model {
				return k, nil
			}
		}
		return events.Saved{}, errNotKnown
	}}
	ln := listenLocal(t)
	srv = NewServer(cfg, newTestSource(t, cfg, hasher, false), view, slog.New(slog.DiscardHandler))
	run(t, func(ctx context.Context) error { return srv.Run(ctx, ln) })
	return srv, ln.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

// asks asks peers for publishers, and returns what was logged and taken.
func asks(t *testing.T, cfg RouterConfig, network Network, wanted ...events.Saved) (src *Source, logged string, taken []string) {
	t.Helper()
	var out bytes.Buffer
	src, err := NewSource(cfg, testHasher, false, slog.New(slog.NewTextHandler(&out, nil)), prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2)), network)
	if err != nil {
		t.Fatal(err)
	}
	var subjects []events.Subject
	for _, k := range wanted {
		subjects = append(subjects, wantedOf(k))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	src.Ask(ctx, subjects, func(of events.Subject, k events.Saved) {
		if of.Address != k.Address || len(k.State.Blocks) != 3 {
			t.Errorf("%d blocks of %s were taken for %s", len(k.State.Blocks), k.Address, of.Address)
		}
		taken = append(taken, k.Address)
	})
	return src, out.String(), taken
}

// Who may read may start from a router, and nobody else.
func TestPeer_OnlyReadersAreTold(t *testing.T) {
	a := newAuthority(t)
	write := func(file, text string) string {
		path := filepath.Join(a.dir, file)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	reads, other := strings.Repeat("r", 32), strings.Repeat("o", 32)
	byToken := quickRouter()
	byToken.TokensFile = write("tokens", "read "+reads+"\n"+testAddress+" "+other+"\n")
	byCert := quickRouter()
	byCert.Listen = "127.0.0.1:0"
	byCert.TLS.Cert, byCert.TLS.Key = a.issue("routers", func(c *x509.Certificate) { c.DNSNames = []string{"routers.test"} })
	byCert.TLS.ClientCA, byCert.TLS.CA = a.file, a.file
	for _, tt := range []struct {
		name   string
		router RouterConfig
		change func(*RouterConfig)
		result int // of routerMetrics.peers
		words  string
	}{
		{"nothing is asked for", quickRouter(), func(*RouterConfig) {}, peerAnswered, "known=1"},
		{"a token for reading", byToken, func(c *RouterConfig) { c.PeersTokenFile = write("reads", reads) }, peerAnswered, "known=1"},
		{"a token for relays", byToken, func(c *RouterConfig) { c.TokenFile = write("reads", reads) }, peerDenied, "no right"},
		{"the token of a relay", byToken, func(c *RouterConfig) { c.PeersTokenFile = write("other", other) }, peerDenied, "no right"},
		{"no token", byToken, func(*RouterConfig) {}, peerDenied, "no right"},
		{"the routers' certificate", byCert, func(*RouterConfig) {}, peerAnswered, "known=1"},
		{"no certificate", byCert, func(c *RouterConfig) { c.TLS.Cert, c.TLS.Key, c.TLS.ClientCA = "", "", "" }, peerFailed, "err="},
		{"no TLS", byCert, func(c *RouterConfig) { c.TLS = TLSConfig{} }, peerFailed, "err="},
		{"another authority", byCert, func(c *RouterConfig) { c.TLS.CA = newAuthority(t).file }, peerFailed, "certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv, address, asked := startPeer(t, tt.router, testHasher, tellable())
			_, port, _ := net.SplitHostPort(address)
			cfg := tt.router
			cfg.TokensFile, cfg.Listen, cfg.Peers = "", "", []string{"routers.test:" + port}
			tt.change(&cfg)
			if cfg.TLS.ClientCA != "" {
				cfg.Listen = "127.0.0.1:1"
			}
			lookup := func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
			src, logged, taken := asks(t, cfg, Network{Lookup: lookup}, tellable())
			if got := testutil.ToFloat64(src.m.peers[tt.result]); got != 1 || !strings.Contains(logged, tt.words) {
				t.Errorf("counted %v, logged:\n%s", got, logged)
			}
			if ok := tt.result == peerAnswered; ok != (len(taken) == 1) || !ok && len(asked()) > 0 {
				t.Errorf("%d publishers taken, %d looked up", len(taken), len(asked()))
			}
			if denied := testutil.ToFloat64(srv.source.m.denied); (denied == 1) != (tt.result == peerDenied) {
				t.Errorf("the other side denied %v", denied)
			}
		})
	}
}

func TestPeer_SeedsMustAgree(t *testing.T) {
	cfg := quickRouter()
	srv, address, asked := startPeer(t, cfg, kvindex.NewHasher(1), tellable())
	cfg.Peers = []string{address}
	src, logged, taken := asks(t, cfg, Network{}, tellable())
	if len(taken) != 0 || len(asked()) != 0 || !strings.Contains(logged, "index.seed_file") ||
		testutil.ToFloat64(src.m.peers[peerRefused]) != 1 || testutil.ToFloat64(srv.source.m.mismatches) != 1 {
		t.Errorf("%d taken, %d looked up, logged:\n%s", len(taken), len(asked()), logged)
	}
	var out bytes.Buffer
	random, err := NewSource(cfg, testHasher, true, slog.New(slog.NewTextHandler(&out, nil)), prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2)), Network{})
	if err != nil {
		t.Fatal(err)
	}
	random.Ask(t.Context(), []events.Subject{wantedOf(tellable())}, func(events.Subject, events.Saved) { t.Error("taken with a random seed") })
	if !strings.Contains(out.String(), "index.seed_file") {
		t.Errorf("logged:\n%s", out.String())
	}
}

// All addresses of a name are asked in their order, but for our own and for
// those that were asked, each for what those before it did not know.
func TestPeer_AsksOneAfterTheOther(t *testing.T) {
	one, two, three := tellable(), tellable(), tellable()
	two.Address, three.Address = "127.0.0.2:8000", "127.0.0.3:8000"
	cfg := quickRouter()
	_, first, askedFirst := startPeer(t, cfg, testHasher, one)
	_, second, askedSecond := startPeer(t, cfg, testHasher, one, two, three)
	_, third, askedThird := startPeer(t, cfg, testHasher, one, two, three)
	own, dead := listenLocal(t), listenLocal(t)
	dead.Close()
	defer own.Close()
	hosts := map[string]string{"10.1.0.1:9005": dead.Addr().String(), "10.1.0.2:9005": first, "10.1.0.3:9005": second, "10.1.0.4:9005": third, "127.0.0.1:9005": own.Addr().String()}
	var dialed []string
	network := Network{
		Lookup: func(_ context.Context, host string) ([]string, error) {
			if host != "routers.test" {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
			return []string{"127.0.0.1", "10.1.0.1", "10.1.0.2", "::ffff:10.1.0.2", "10.1.0.3", "10.1.0.4"}, nil
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			dialed = append(dialed, address)
			return new(net.Dialer).DialContext(ctx, "tcp", hosts[address])
		},
	}
	cfg.Listen, cfg.Peers = "127.0.0.1:9005", []string{"nobody.test:9005", "routers.test:9005", "10.1.0.4:9005"}
	src, logged, taken := asks(t, cfg, network, one, two, three)
	if d := cmp.Diff([]string{one.Address, two.Address, three.Address}, taken); d != "" {
		t.Errorf("taken (-want +got):\n%s\n%s", d, logged)
	}
	if d := cmp.Diff([]string{"10.1.0.1:9005", "10.1.0.2:9005", "10.1.0.3:9005"}, slices.Compact(dialed)); d != "" {
		t.Errorf("dialed (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{two.Address, three.Address}, askedSecond()); d != "" {
		t.Errorf("asked of the second (-want +got):\n%s", d)
	}
	if len(askedFirst()) != 3 || len(askedThird()) != 0 {
		t.Errorf("the first was asked for %d, the third for %d", len(askedFirst()), len(askedThird()))
	}
	for i, want := range map[int]float64{peerAnswered: 2, peerFailed: 1} {
		if got := testutil.ToFloat64(src.m.peers[i]); got != want {
			t.Errorf("result %d was counted %v times, want %v", i, got, want)
		}
	}
}

func TestSource_KnowsItsOwnAddress(t *testing.T) {
	for _, tt := range []struct {
		listen, peer string
		want         bool
	}{
		{"0.0.0.0:9005", "127.0.0.1:9005", true},
		{"127.0.0.1:9005", "127.0.0.1:9005", true},
		{"[::]:9005", "127.0.0.1:9005", true},
		{"0.0.0.0:9005", "127.0.0.1:9006", false},
		{"0.0.0.0:9005", "192.0.2.1:9005", false},
		{"", "127.0.0.1:9005", false},
	} {
		s := &Source{cfg: RouterConfig{Listen: tt.listen}}
		if got := s.isOwn(netip.MustParseAddrPort(tt.peer)); got != tt.want {
			t.Errorf("listening at %q, %s is own: %t", tt.listen, tt.peer, got)
		}
	}
}

// Whoever names a publisher again is told of it once.
func TestPeer_WantsOneTwice(t *testing.T) {
	k, none := tellable(), tellable()
	none.Address = "127.0.0.1:9"
	_, address, asked := startPeer(t, quickRouter(), testHasher, k)
	conn, err := outgoing{}.client(address, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := &pb.SnapshotsRequest{}
	for i := range 10 {
		for _, k := range []events.Saved{k, none} {
			id := Identity{Endpoint: k.Address, Rank: k.Rank, Model: k.Model, Seed: testHasher.Fingerprint()}
			req.Wanted = append(req.Wanted, id.wire(uint64(i)))
		}
	}
	stream, err := pb.NewPeerClient(conn).Snapshots(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	ends, unknown := 0, 0
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetEnd() != nil {
			ends++
		}
		if m.GetUnknown() != nil {
			unknown++
		}
	}
	if d := cmp.Diff([]string{k.Address, none.Address}, asked()); d != "" || ends != 1 || unknown != 1 {
		t.Errorf("%d snapshots were told and %d publishers not known; of these was asked (-want +got):\n%s", ends, unknown, d)
	}
}

// A router that waits for its turn takes that for no silence, and does not wait
// for it for ever; one that hears nothing at all gives up sooner.
func TestPeer_WaitsForItsTurn(t *testing.T) {
	for _, tt := range []struct {
		name string
		free time.Duration // when there is a slot
		hung bool          // it says nothing when its turn has come
		want string
		most time.Duration
	}{
		{"its turn comes", 12 * time.Second, false, "known=1", 12 * time.Second},
		{"its turn does not come", time.Minute, false, errBusy.Error(), 16 * time.Second},
		{"silence", 0, true, errSilent.Error(), 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := tellable()
				cfg := quickRouter()
				ln := bufconn.Listen(1 << 16)
				view := View{Snapshot: func(ctx context.Context, _ string, _ int, _ string) (events.Saved, error) {
					if tt.hung {
						<-ctx.Done()
					}
					return k, nil
				}}
				srv := NewServer(cfg, newTestSource(t, cfg, testHasher, false), view, slog.New(slog.DiscardHandler))
				for range maxTelling {
					srv.telling <- struct{}{}
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- srv.Run(ctx, ln) }()
				time.AfterFunc(tt.free, func() { <-srv.telling })
				cfg.Peers = []string{"10.1.0.1:9005"}
				begun := time.Now()
				_, logged, taken := asks(t, cfg, Network{Dial: func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }}, k)
				took := time.Since(begun)
				if !strings.Contains(logged, tt.want) || (len(taken) == 1) != (tt.want == "known=1") || took > tt.most+time.Second {
					t.Errorf("%d taken after %s, logged:\n%s", len(taken), took, logged)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A router that reads nothing is given up, and makes room for the next.
func TestPeer_ReadsNothing(t *testing.T) {
	k := tellable()
	for i := range 1 << 17 { // more than connections take without being read
		k.State.Blocks = append(k.State.Blocks, kvindex.ExportedBlock{Block: kvindex.Mix(77, kvindex.ContentHash(10+i)), Parent: 77, Root: true, Held: 1})
	}
	srv, address, _ := startPeer(t, quickRouter(), testHasher, k)
	srv.tellLimit = 3 * time.Second // in which each is told something, however busy the machine is
	conn, err := outgoing{}.client(address, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var open []grpc.ServerStreamingClient[pb.SnapshotsResponse]
	id := Identity{Endpoint: k.Address, Model: "m", Seed: testHasher.Fingerprint()}
	for range maxTelling {
		stream, err := pb.NewPeerClient(conn).Snapshots(t.Context(), &pb.SnapshotsRequest{Wanted: []*pb.Identity{id.wire(0)}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		open = append(open, stream)
	}
	select {
	case srv.telling <- struct{}{}:
		<-srv.telling
	case <-time.After(20 * time.Second):
		t.Fatal("those who read nothing keep others out")
	}
	for _, stream := range open {
		for err = error(nil); err == nil; {
			_, err = stream.Recv()
		}
		if want := "DeadlineExceeded"; !strings.Contains(err.Error(), want) {
			t.Errorf("it ended with %v, want %s", err, want)
		}
	}
}

// Nothing that a peer may say does harm: it is refused, or restored, and then
// the index is as sound as before.
func FuzzPeer(f *testing.F) {
	k := tellable()
	var seed []byte
	for _, m := range onTheWire(f, k) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		seed = append(append(seed, byte(len(b)), byte(len(b)>>8)), b...)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, in []byte) {
		src := newTestSource(t, quickRouter(), testHasher, false)
		s := newSide(t)
		a := &asking{[]events.Subject{wantedOf(k)}, func(_ events.Subject, k events.Saved) {
			if !s.w.Restore(k.State) {
				s.w.Clear()
			}
		}}
		var now *known
		for len(in) >= 2 {
			n := min(int(in[0])|int(in[1])<<8, len(in)-2)
			m := &pb.SnapshotsResponse{}
			if proto.Unmarshal(in[2:2+n], m) != nil {
				return
			}
			in = in[2+n:]
			var err error
			if now, err = src.heard(m, now, a, &heardOf{}); err != nil {
				break
			}
		}
		s.held()
		s.w.Clear()
		if got := s.index.Stats().Held; got != 0 {
			t.Errorf("%d blocks are held after a clear", got)
		}
	})
}
