package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// brokenRelay greets as it should, and then begins a snapshot that no router
// can take.
type brokenRelay struct {
	pb.UnimplementedRelayServer
}

var brokenID = Identity{Endpoint: testAddress, Model: "m", Seed: testHasher.Fingerprint()}

// brokenPart is a part of a snapshot with a root that is not its scope's.
func brokenPart() *pb.SnapshotPart {
	return &pb.SnapshotPart{Scopes: []*pb.Scope{{Id: 1, Root: 1, BlockSize: 16}}}
}

func (brokenRelay) Subscribe(_ *pb.SubscribeRequest, to grpc.ServerStreamingServer[pb.SubscribeResponse]) error {
	at := cursor{1, 1}.wire()
	for _, m := range []*pb.SubscribeResponse{
		{Message: &pb.SubscribeResponse_Hello{Hello: &pb.Hello{Identity: brokenID.wire(1), Cursor: at, HeartbeatMs: 20}}},
		{Message: &pb.SubscribeResponse_SnapshotBegin{SnapshotBegin: &pb.SnapshotBegin{Cursor: at}}},
		{Message: &pb.SubscribeResponse_SnapshotPart{SnapshotPart: brokenPart()}},
	} {
		if err := to.Send(m); err != nil {
			return err
		}
	}
	<-to.Context().Done()
	return to.Context().Err()
}

// startBroken runs a broken relay until the test ends.
func startBroken(t *testing.T) (address string) {
	t.Helper()
	ln := listenLocal(t)
	srv := grpc.NewServer()
	pb.RegisterRelayServer(srv, brokenRelay{})
	run(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, srv.Stop)()
		return srv.Serve(ln)
	})
	return ln.Addr().String()
}

// A relay that speaks but cannot be followed is given up like one that is
// away, and the longer left alone the more often that happens.
func TestFollow_GivesUpARelayThatOnlyGreets(t *testing.T) {
	for _, relay := range []string{"subscribed", pool.RelayPush} {
		t.Run(relay, func(t *testing.T) {
			cfg := quickRouter()
			cfg.GiveUp = 30 * time.Millisecond
			src := newTestSource(t, cfg, testHasher, false)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if relay == pool.RelayPush {
				pushBroken(t, cfg, src)
			} else {
				relay = startBroken(t)
			}
			f := func(relay string) events.Feed {
				s := newSide(t)
				return events.Feed{
					Subject:  events.Subject{Publisher: pool.Publisher{Publisher: s.w.Publisher(), Relay: relay}, Endpoint: "engine-0", Address: testAddress, Model: "m", State: new(pool.State)},
					Writer:   s.w,
					Fallback: true,
					Report: func(st events.FeedStatus) {
						if st.Trust == kvindex.TrustExact {
							t.Error("exact")
						}
					},
				}
			}
			for _, want := range []time.Duration{2 * cfg.GiveUp, 4 * cfg.GiveUp} {
				err := src.Follow(ctx, f(relay))
				if err == nil || !strings.Contains(err.Error(), "root of scope 1") {
					t.Fatalf("given up because %v", err)
				}
				if got := src.doubted(brokenID); got != want {
					t.Errorf("left alone for %v, want %v", got, want)
				}
			}
			if relay == pool.RelayPush {
				return
			}
			// One that can be followed is believed at once.
			good := startRelay(t, quickConfig(), testHasher)
			live, stop := context.WithCancel(ctx)
			defer stop()
			g := f(good)
			g.Report = func(st events.FeedStatus) {
				if st.Trust == kvindex.TrustExact {
					stop()
				}
			}
			if err := src.Follow(live, g); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if got := src.doubted(brokenID); got != 0 {
				t.Errorf("followed, and left alone for %v", got)
			}
		})
	}
}

// pushBroken reports to src what no router can take, again and again.
func pushBroken(t *testing.T, cfg RouterConfig, src *Source) {
	t.Helper()
	ln := listenLocal(t)
	run(t, func(ctx context.Context) error {
		return NewServer(cfg, src, View{}, slog.New(slog.DiscardHandler)).Run(ctx, ln)
	})
	run(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			reportBroken(ctx, ln.Addr())
		}
		return nil
	})
}

func reportBroken(ctx context.Context, to net.Addr) {
	out := outgoing{}
	conn, err := out.client(to.String(), to.String())
	if err != nil {
		return
	}
	defer conn.Close()
	stream, err := pb.NewCacheStateClient(conn).ReportCacheState(ctx)
	if err != nil {
		return
	}
	at := cursor{1, 1}.wire()
	for _, m := range []*pb.CacheStateReport{
		{Message: &pb.CacheStateReport_Hello{Hello: &pb.Hello{Identity: brokenID.wire(1), Cursor: at, HeartbeatMs: 1000}}},
		{Message: &pb.CacheStateReport_SnapshotBegin{SnapshotBegin: &pb.SnapshotBegin{Cursor: at}}},
		{Message: &pb.CacheStateReport_SnapshotPart{SnapshotPart: brokenPart()}},
	} {
		if stream.Send(m) != nil {
			return
		}
		if _, err := stream.Recv(); err != nil {
			return
		}
	}
}
