package pool

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// Between any two snapshots every id whose endpoint differs is told, in both
// directions, and few others; only what is long ago is not.
func TestSnapshot_AppendMoved(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := New(Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
		all := []*Snapshot{p.Snapshot()}
		var specs []Spec
		for i := range rapid.IntRange(1, 2*maxMoves).Draw(rt, "snapshots") {
			at := 0
			if len(specs) > 0 {
				at = rapid.IntRange(0, len(specs)-1).Draw(rt, "at")
			}
			switch change := rapid.IntRange(0, 3).Draw(rt, "change"); {
			case len(specs) == 0 || change == 0:
				specs = append(specs, Spec{Name: fmt.Sprint("e", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i)})
			case change == 1:
				specs = slices.Delete(specs, at, at+1)
			case change == 2:
				specs[at].Labels = map[string]string{"i": fmt.Sprint(i)}
			default:
				specs[at].Address = fmt.Sprintf("127.0.0.2:%d", 1000+i)
			}
			p.Set(slices.Clone(specs))
			all = append(all, p.Snapshot())
		}
		i, j := rapid.IntRange(0, len(all)-1).Draw(rt, "i"), rapid.IntRange(0, len(all)-1).Draw(rt, "j")
		got, ok := all[i].AppendMoved(nil, all[j])
		apart := max(i-j, j-i)
		if ok != (apart <= maxMoves) {
			rt.Fatalf("%d snapshots apart: told is %v", apart, ok)
		}
		if !ok {
			return
		}
		for id := range kvindex.EndpointID(len(all)) {
			if all[i].Endpoint(id) != all[j].Endpoint(id) && !slices.Contains(got, id) {
				rt.Errorf("%d snapshots apart: id %d has changed and is not told", apart, id)
			}
		}
		if len(got) > apart {
			rt.Errorf("%d ids told of %d snapshots that differ by one endpoint each", len(got), apart)
		}
	})
}
