package pool

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// Against a dumb model: a search of the lists.
func TestModel_FindsItsEndpoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var changed atomic.Uint64
		var endpoints []*Endpoint
		for i, id := range rapid.SliceOfNDistinct(rapid.Uint32Range(0, 20), 0, 12, rapid.ID).Draw(t, "ids") {
			e := &Endpoint{ID: kvindex.EndpointID(id), State: &State{sizesChanged: &changed}}
			e.Address = fmt.Sprint(i)
			e.Models = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 3).Draw(t, "models")
			e.Health = Health(rapid.IntRange(0, int(HealthFailed)).Draw(t, "health"))
			endpoints = append(endpoints, e)
		}
		s := newSnapshot(endpoints, &changed, nil)
		for _, name := range []string{"a", "b"} {
			var want []*Endpoint
			for _, e := range endpoints {
				if e.Candidate() && slices.Contains(e.Models, name) {
					want = append(want, e)
				}
			}
			m, ok := s.Model(name)
			if !ok {
				m = &Model{}
			}
			if !slices.Equal(m.Endpoints, want) {
				t.Fatalf("model %s has %d endpoints, want %d in the order of the snapshot", name, len(m.Endpoints), len(want))
			}
			for id := range kvindex.EndpointID(25) {
				i := slices.IndexFunc(want, func(e *Endpoint) bool { return e.ID == id })
				if got := m.Endpoint(id); (i < 0 && got != nil) || (i >= 0 && got != want[i]) {
					t.Fatalf("model %s, endpoint %d: got %v", name, id, got)
				}
			}
		}
	})
}

// The remembered sizes are those of now, also while endpoints report new ones.
func TestModel_BlockSizesAreThoseOfNow(t *testing.T) {
	var changed atomic.Uint64
	var endpoints []*Endpoint
	for i := range 8 {
		e := &Endpoint{ID: kvindex.EndpointID(i), State: &State{sizesChanged: &changed}}
		e.Models = []string{"m"}
		endpoints = append(endpoints, e)
	}
	s := newSnapshot(endpoints, &changed, nil)
	m, _ := s.Model("m")
	if got := m.BlockSizes(); len(got) != 0 {
		t.Errorf("sizes %v before any was reported", got)
	}
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() {
			e.State.ObserveBlockSize(i)
			if got := m.BlockSizes(); !slices.Contains(got, i) {
				t.Errorf("sizes %v lack %d, which was just reported", got, i)
			}
		})
	}
	wg.Wait()
	got := slices.Sorted(slices.Values(m.BlockSizes()))
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5, 6, 7}, got); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
	if n := testing.AllocsPerRun(20, func() { m.BlockSizes() }); n != 0 {
		t.Errorf("sizes that did not change cost %v allocations, want 0", n)
	}
}
