package relay

import (
	"fmt"
	"strconv"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// Scheme names the way in which blocks are hashed: kvindex.Hasher's. It
// changes when a hash of the same block does.
const Scheme = "warmpath-xxh3-v1"

const (
	// maxRun bounds the blocks of one run, maxDelta the removals of one change, and
	// partBytes, roughly, one part of a snapshot: nothing that is sent comes
	// near the 4 MiB that gRPC takes by default.
	maxRun    = 4096
	maxDelta  = 16384
	partBytes = 256 << 10
	// maxKnown bounds the blocks of one publisher that are taken from a peer.
	maxKnown = 1 << 22
	// maxPending bounds the blocks that wait for the window to end.
	maxPending = 8192
	// maxScopes is the number of scopes declared in one incarnation at which
	// those that are no longer needed are forgotten.
	maxScopes = 1 << 12
)

func tierToWire(t kvindex.Tier) pb.Tier { return pb.Tier(t) + pb.Tier_TIER_DEVICE }

func tierFromWire(t pb.Tier) (kvindex.Tier, error) {
	if t < pb.Tier_TIER_DEVICE || t > pb.Tier_TIER_EXTERNAL {
		return 0, fmt.Errorf("tier %d is unknown", t)
	}
	return kvindex.Tier(t - pb.Tier_TIER_DEVICE), nil
}

func trustToWire(t kvindex.Trust) pb.Trust { return pb.Trust(t) + pb.Trust_TRUST_SILENT }

// trustFromWire takes what it does not know for the least trust that something
// is known.
func trustFromWire(t pb.Trust) kvindex.Trust {
	if t < pb.Trust_TRUST_SILENT || t > pb.Trust_TRUST_EXACT {
		return kvindex.TrustIncomplete
	}
	return kvindex.Trust(t - pb.Trust_TRUST_SILENT)
}

// Identity says whose cache is spoken of.
type Identity struct {
	// Endpoint is the ip:port at which requests reach the engine.
	Endpoint string
	Rank     int
	Model    string
	// Seed is the fingerprint of the fleet seed, 0 where the seed is random.
	Seed uint64
}

func (i Identity) wire(incarnation uint64) *pb.Identity {
	return &pb.Identity{
		Endpoint: i.Endpoint, Rank: uint32(i.Rank), Model: i.Model,
		HashScheme: Scheme, SeedFingerprint: i.Seed, Incarnation: incarnation,
	}
}

func (i Identity) rankLabel() string { return strconv.Itoa(i.Rank) }

// tenantName names a cache salt on the wire.
func tenantName(h kvindex.Hasher, salt string) string {
	return fmt.Sprintf("%016x", h.Tenant(salt))
}

// mismatchError is an identity that is not the one expected. Trying again
// does not mend it.
type mismatchError struct{ text string }

func (e *mismatchError) Error() string { return e.text }

// check tells why what a peer says of got cannot be used here. The peer is told
// as well, so that our own fingerprint is not in it.
func (i Identity) check(got *pb.Identity) error {
	if err := i.checkHash(got); err != nil {
		return err
	}
	no := func(format string, args ...any) error { return &mismatchError{fmt.Sprintf(format, args...)} }
	switch {
	case got.Endpoint != i.Endpoint || int(got.Rank) != i.Rank:
		return no("the peer speaks of endpoint %s rank %d, wanted is %s rank %d; check the endpoint's address and relay", got.Endpoint, got.Rank, i.Endpoint, i.Rank)
	case got.Model != i.Model:
		return no("the peer's base model is %q, here it is %q; let the first of the endpoint's models be the same in both", got.Model, i.Model)
	}
	return nil
}

// checkHash tells why hashes of a peer cannot be used here.
func (i Identity) checkHash(got *pb.Identity) error {
	no := func(format string, args ...any) error { return &mismatchError{fmt.Sprintf(format, args...)} }
	switch {
	case got == nil:
		return no("the peer does not say who it is")
	case i.Seed == 0:
		return no("index.seed_file: empty here, so this process hashes with a seed of its own and understands nobody's blocks; give every router and relay the same file")
	case got.HashScheme == "":
		return no("the peer's hash scheme is empty; it must be %s", Scheme)
	case got.HashScheme != Scheme:
		return no("the peer hashes by scheme %q, this process by %q; run the same version of both", got.HashScheme, Scheme)
	case got.SeedFingerprint == 0:
		return no("the peer's hash seed is random; set its index.seed_file to the fleet's")
	case got.SeedFingerprint != i.Seed:
		return no("the peer's hash seed is another one, of fingerprint %016x; index.seed_file must hold the same seed in both", got.SeedFingerprint)
	}
	return nil
}

// cursor is a place in a publisher's changes; the zero value is none.
type cursor struct{ incarnation, sequence uint64 }

func (c cursor) wire() *pb.Cursor {
	if c == (cursor{}) {
		return nil
	}
	return &pb.Cursor{Incarnation: c.incarnation, Sequence: c.sequence}
}

func cursorFromWire(c *pb.Cursor) cursor {
	return cursor{c.GetIncarnation(), c.GetSequence()}
}
