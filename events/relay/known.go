package relay

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// standing is the beginning of what is told of a publisher.
func standing(id Identity, k *events.Saved, now time.Time) *pb.Standing {
	out := &pb.Standing{
		Identity: id.wire(0), Sequence: k.Next - 1, LastBatch: k.Last[:], AgeMs: uint64(max(0, now.Sub(k.Heard).Milliseconds())),
	}
	for _, g := range k.State.Groups {
		out.Groups = append(out.Groups, uint32(g))
	}
	for _, g := range k.OtherGroups {
		out.OtherGroups = append(out.OtherGroups, uint32(g))
	}
	for tier, sizes := range k.Sizes {
		for g, size := range sizes {
			place := &pb.Place{Tier: tierToWire(kvindex.Tier(tier)), Group: uint32(g)}
			out.Sizes = append(out.Sizes, &pb.ChainSize{Place: place, BlockSize: uint32(size)})
		}
	}
	for _, r := range k.Roots {
		out.Roots = append(out.Roots, uint64(r))
	}
	return out
}

// namedParts gives the blocks of a publisher to send, none of the parts much
// longer than partBytes, and returns how many of the blocks are held.
func namedParts(e kvindex.Export, send func(*pb.NamedPart) error) (held uint64, err error) {
	part, size := &pb.NamedPart{}, 0
	for i := 0; i < len(e.Blocks); {
		n := i + 1
		for n < len(e.Blocks) && n-i < maxRun && follows(&e.Blocks[n-1], &e.Blocks[n]) {
			n++
		}
		run := namedRun(e.Groups, e.Blocks[i:n])
		if len(run.Run.Places) > 0 {
			held += uint64(n - i)
		}
		part.Runs = append(part.Runs, run)
		if size += 32 + 16*(n-i) + 8*len(run.Spares); size >= partBytes {
			if err := send(part); err != nil {
				return 0, err
			}
			part, size = &pb.NamedPart{}, 0
		}
		i = n
	}
	if len(part.Runs) > 0 {
		err = send(part)
	}
	return held, err
}

// follows tells whether a block can stand in one run with the one before it.
func follows(before, b *kvindex.ExportedBlock) bool {
	return b.Parent == before.Block && b.Held == before.Held && b.Named == before.Named
}

func namedRun(groups []uint8, blocks []kvindex.ExportedBlock) *pb.NamedRun {
	out := &pb.NamedRun{Run: &pb.Run{Parent: uint64(blocks[0].Parent), Contents: make([]uint64, 0, len(blocks))}}
	for i, g := range groups {
		for tier := range kvindex.Tier(kvindex.NumTiers) {
			if blocks[0].Held>>(i*kvindex.NumTiers+int(tier))&1 == 1 {
				out.Run.Places = append(out.Run.Places, &pb.Place{Tier: tierToWire(tier), Group: uint32(g)})
			}
		}
	}
	for i, b := range blocks {
		out.Run.Contents = append(out.Run.Contents, uint64(kvindex.Unmix(b.Parent, b.Block)))
		for g, n := range b.Spares {
			if n > 0 {
				out.Spares = append(out.Spares, &pb.Spare{Block: uint32(i), Group: uint32(groups[g]), Count: uint32(n)})
			}
		}
		if b.Named {
			out.Names = append(out.Names, uint64(b.Name))
		}
	}
	return out
}

// known is a publisher as a peer tells of it, part by part. It is believed only
// as a whole. Not safe for concurrent use.
type known struct {
	saved events.Saved
	roots map[kvindex.BlockHash]struct{}
	held  uint64
}

// maxGroups is how many cache groups a block's held bits have room for.
const maxGroups = 32 / kvindex.NumTiers

// newKnown begins with where a publisher stands, whose identity is checked.
func newKnown(id Identity, st *pb.Standing, now time.Time) (*known, error) {
	if len(st.LastBatch) != sha256.Size || st.Sequence+1 == 0 {
		return nil, fmt.Errorf("peer: batch %d has a hash of %d bytes", st.Sequence, len(st.LastBatch))
	}
	if len(st.Groups) > maxGroups {
		return nil, fmt.Errorf("peer: %d cache groups; %d are the most", len(st.Groups), maxGroups)
	}
	k := &known{roots: make(map[kvindex.BlockHash]struct{}, len(st.Roots)), saved: events.Saved{
		Address: id.Endpoint, Rank: id.Rank, Model: id.Model, Next: st.Sequence + 1, Last: [sha256.Size]byte(st.LastBatch),
		Heard: now.Add(-time.Duration(min(st.AgeMs, 1<<42)) * time.Millisecond),
	}}
	var err error
	if k.saved.State.Groups, err = groupsFromWire(st.Groups); err != nil {
		return nil, err
	}
	if k.saved.OtherGroups, err = groupsFromWire(st.OtherGroups); err != nil {
		return nil, err
	}
	for tier := range k.saved.Sizes {
		k.saved.Sizes[tier] = map[uint8]int{}
	}
	for _, z := range st.Sizes {
		tier, err := tierFromWire(z.Place.GetTier())
		if err != nil || z.Place.GetGroup() > 255 || z.BlockSize < 1 || z.BlockSize > 1<<20 {
			return nil, fmt.Errorf("peer: a block size of %d in cache group %d of tier %d", z.BlockSize, z.Place.GetGroup(), z.Place.GetTier())
		}
		k.saved.Sizes[tier][uint8(z.Place.Group)] = int(z.BlockSize)
	}
	for _, r := range st.Roots {
		k.saved.Roots = append(k.saved.Roots, kvindex.BlockHash(r))
		k.roots[kvindex.BlockHash(r)] = struct{}{}
	}
	return k, nil
}

func groupsFromWire(groups []uint32) (out []uint8, err error) {
	for _, g := range groups {
		if g > 255 {
			return nil, fmt.Errorf("peer: cache group %d is out of range; 0 to 255 are known", g)
		}
		out = append(out, uint8(g))
	}
	return out, nil
}

func (k *known) part(p *pb.NamedPart) error {
	for _, r := range p.Runs {
		first := len(k.saved.State.Blocks)
		if err := k.run(r.GetRun(), r.Names); err != nil {
			return err
		}
		if err := k.spares(k.saved.State.Blocks[first:], r.Spares); err != nil {
			return err
		}
	}
	return nil
}

func (k *known) run(r *pb.Run, names []uint64) error {
	if len(names) != 0 && len(names) != len(r.GetContents()) {
		return fmt.Errorf("peer: %d names of %d blocks", len(names), len(r.GetContents()))
	}
	if len(k.saved.State.Blocks)+len(r.GetContents()) > maxKnown {
		return fmt.Errorf("peer: more than %d blocks of one publisher", maxKnown)
	}
	held, err := k.places(r.GetPlaces())
	if err != nil {
		return err
	}
	if held != 0 {
		k.held += uint64(len(r.Contents))
	}
	at := kvindex.BlockHash(r.GetParent())
	_, root := k.roots[at]
	for i, c := range r.GetContents() {
		b := kvindex.ExportedBlock{Block: kvindex.Mix(at, kvindex.ContentHash(c)), Parent: at, Root: root, Held: held}
		if len(names) > 0 {
			b.Name, b.Named = kvindex.EngineHash(names[i]), true
		}
		k.saved.State.Blocks = append(k.saved.State.Blocks, b)
		at, root = b.Block, false
	}
	return nil
}

// spares notes the further copies of blocks.
func (k *known) spares(blocks []kvindex.ExportedBlock, spares []*pb.Spare) error {
	for _, s := range spares {
		g := k.group(s.Group)
		if g < 0 || int64(s.Block) >= int64(len(blocks)) || s.Count < 1 || s.Count > 255 {
			return fmt.Errorf("peer: %d copies of block %d of %d in cache group %d", s.Count, s.Block, len(blocks), s.Group)
		}
		b := &blocks[s.Block]
		if b.Spares == nil {
			b.Spares = make([]uint8, len(k.saved.State.Groups))
		}
		b.Spares[g] = uint8(s.Count)
	}
	return nil
}

// group returns the place of an announced cache group, below 0 if it is none.
func (k *known) group(group uint32) int {
	return slices.IndexFunc(k.saved.State.Groups, func(g uint8) bool { return uint32(g) == group })
}

// places returns held bits.
func (k *known) places(places []*pb.Place) (held uint32, err error) {
	for _, p := range places {
		tier, err := tierFromWire(p.GetTier())
		if err != nil {
			return 0, fmt.Errorf("peer: %w", err)
		}
		g := k.group(p.GetGroup())
		if g < 0 {
			return 0, fmt.Errorf("peer: cache group %d was not announced", p.GetGroup())
		}
		held |= 1 << (g*kvindex.NumTiers + int(tier))
	}
	return held, nil
}

// end tells whether all of it is there.
func (k *known) end(e *pb.SnapshotEnd) error {
	if e.Blocks != k.held {
		return fmt.Errorf("peer: the snapshot brought %d blocks of %d", k.held, e.Blocks)
	}
	return nil
}
