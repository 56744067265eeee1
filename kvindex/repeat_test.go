package kvindex

import (
	"testing"

	"pgregory.net/rapid"
)

// A store may give one name to several blocks, which no engine should; the
// index must survive it. Here names repeat often.
func TestStore_NamesThatRepeat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ix, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "forget") {
			ix.remember = 0
		}
		var ws []*Writer
		for id := range PublisherID(2) {
			w, err := ix.Open(Publisher{ID: id, Endpoint: EndpointID(id)})
			if err != nil {
				t.Fatal(err)
			}
			ws = append(ws, w)
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			w := rapid.SampledFrom(ws).Draw(t, "writer")
			var names []EngineHash
			var contents []ContentHash
			for range rapid.IntRange(1, 6).Draw(t, "blocks") {
				names = append(names, EngineHash(rapid.IntRange(0, 3).Draw(t, "name")))
				contents = append(contents, ContentHash(rapid.IntRange(1, 2).Draw(t, "content")))
			}
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				w.Remove(names, TierDevice, 0)
			case 1:
				w.Store(Stored{HasParent: true, Parent: names[0], Names: names, Contents: contents})
			default:
				w.Store(Stored{Root: machineRoot, Names: names, Contents: contents})
			}
			if err := ix.audit(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
