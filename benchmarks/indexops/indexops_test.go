package indexops

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// small is a stream that a test makes in a moment.
func small() Params {
	return Params{Seed: 5, Pairs: 20_000, Churn: 5_000, Queries: 100, HoleQueries: 40}
}

func generate(t *testing.T, p Params) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ops.bin")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Generate(f, p); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// Results are compared across machines and years by the file's checksum, so
// the bytes are part of the format.
func TestGenerate_BytesAreFixed(t *testing.T) {
	b, err := os.ReadFile(generate(t, small()))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	const want = "2a6ba9117c106888f27055bdef9c73eb840409ed2579ef6425cba6f6203c7881"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("sha256 = %s, want %s", got, want)
	}
}

// The answers in the file must be those of the dumbest index there is, fed
// from the file alone.
func TestFile_AnswersAreThoseOfASet(t *testing.T) {
	f, err := Open(generate(t, small()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type copyOf struct {
		content uint64
		parent  uint64
	}
	contents := map[uint64]copyOf{} // name -> content and parent
	held := map[[2]uint64]bool{}    // pod, name
	pairs := 0
	play := func(s Section) {
		for op := range f.Ops(s) {
			parent := op.Parent
			for i := range op.Len() {
				key := [2]uint64{uint64(op.Pod), op.Name(i)}
				if held[key] == !op.Remove {
					t.Fatalf("section %d: pod %d block %x: remove=%v of held=%v", s, op.Pod, op.Name(i), op.Remove, held[key])
				}
				if op.Remove {
					delete(held, key)
					pairs--
					continue
				}
				held[key] = true
				pairs++
				contents[op.Name(i)] = copyOf{content: op.Content(i), parent: parent}
				parent = op.Name(i)
			}
		}
	}
	asked := 0
	ask := func(s Section) {
		for q := range f.Queries(s) {
			asked++
			for pod := range Pods {
				depth, parent := 0, uint64(0)
				for _, c := range q.Contents {
					name := c
					if depth > 0 {
						name = cumulative(parent, c)
					}
					if !held[[2]uint64{uint64(pod), name}] {
						break
					}
					if got := contents[name]; got.content != c || got.parent != parent {
						t.Fatalf("name %x denotes %+v, want content %x after %x", name, got, c, parent)
					}
					depth, parent = depth+1, name
				}
				if got := q.Depth(pod); got != depth {
					t.Fatalf("class %d pod %d: answer %d, want %d", q.Class, pod, got, depth)
				}
			}
		}
	}
	play(Load)
	if pairs != f.PairsAfterLoad() {
		t.Errorf("pairs after load = %d, header says %d", pairs, f.PairsAfterLoad())
	}
	play(Churn)
	if pairs != f.PairsAfterChurn() {
		t.Errorf("pairs after churn = %d, header says %d", pairs, f.PairsAfterChurn())
	}
	ask(Queries)
	play(Holes)
	ask(HoleQueries)
	if want := small().Queries + small().HoleQueries; asked != want {
		t.Errorf("asked %d queries, want %d", asked, want)
	}
}

func TestOpen_RefusesWhatDoesNotFit(t *testing.T) {
	path := generate(t, small())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cut  func([]byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"half a word", func(b []byte) []byte { return b[:len(b)-4] }},
		{"last query cut", func(b []byte) []byte { return b[:len(b)-64] }},
		{"other magic", func(b []byte) []byte { b[0] ^= 1; return b }},
		{"op runs over the end", func(b []byte) []byte { b[8*HeaderWords+6] = 0xff; return b }},
		{"count too large", func(b []byte) []byte { b[8*5+6] = 1; return b }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, c.cut(append([]byte(nil), whole...)), 0o600); err != nil {
				t.Fatal(err)
			}
			if f, err := Open(path); err == nil {
				f.Close()
				t.Error("opened")
			}
		})
	}
}
