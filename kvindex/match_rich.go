package kvindex

import "sync/atomic"

// A segment is rich where some entry is not (device, first group): other
// tiers, several cache groups, blocks expected. A holder's masks are gathered
// there before its prefix is known.

// account gathers the masks of one holder in a rich segment.
type account struct {
	slot     uint32
	tier     [NumTiers]uint64
	seen     [NumTiers]uint8 // groups with an entry, a bit each
	expected uint64
}

// gather sums up a rich segment by holder: every one, or only those active.
func (ix *Index) gather(h *head, l list, ns int64, s *scratch, all bool) {
	s.accounts = s.accounts[:0]
	add := func(k key, held, second uint64) {
		if held == 0 || k.slot() > s.limit {
			return
		}
		if k.kind() < kindHint {
			if a := s.account(k.slot(), all); a != nil {
				t, g := k.tier(), uint8(1)<<k.group()
				if a.seen[t] == 0 {
					a.tier[t] = held
				}
				a.tier[t] &= held
				a.seen[t] |= g
			}
			return
		}
		if k.kind() != kindHint || ns >= int64(second) {
			return
		}
		if e := ix.records.at(k.slot()).expected.Load(); e != nil {
			for _, slot := range *e.ranks.Load() {
				if a := s.account(slot, all); a != nil {
					a.expected |= held
				}
			}
		}
	}
	if l&listInline != 0 {
		add(key(atomic.LoadUint64(&h[hKey])), atomic.LoadUint64(&h[hHeld]), atomic.LoadUint64(&h[hNamed]))
	}
	if l.len() == 0 {
		return
	}
	es := ix.entries(l)
	for i := range es.n {
		add(es.key(i), atomic.LoadUint64(&es.held[i]), atomic.LoadUint64(&es.second[i]))
	}
}

func (s *scratch) account(slot uint32, all bool) *account {
	if slot > s.limit {
		return nil // a rank that was opened during the call
	}
	if i := s.accountOf[slot]; int(i) < len(s.accounts) && s.accounts[i].slot == slot {
		return &s.accounts[i]
	}
	if _, ok := s.find(slot); !ok && !all {
		return nil
	}
	s.accountOf[slot] = uint32(len(s.accounts))
	s.accounts = append(s.accounts, account{slot: slot})
	return &s.accounts[len(s.accounts)-1]
}

// masks returns what a holder has of a rich segment, given the number of its
// groups.
func (a *account) masks(groups int) (device, confirmed, predicted uint64) {
	all := uint8(1)<<groups - 1
	for t, mask := range a.tier {
		if a.seen[t] != all || groups == 0 {
			continue
		}
		confirmed |= mask
		if Tier(t) == TierDevice {
			device = mask
		}
	}
	return device, confirmed, confirmed | a.expected
}

func (ix *Index) beginRich(dst []Match, h *head, l list, n int, ns int64, want func(Publisher) bool, s *scratch) []Match {
	ix.gather(h, l, ns, s, true)
	for i := range s.accounts {
		a := &s.accounts[i]
		if d, c, p := a.masks(ix.records.at(a.slot).groups()); p&1 != 0 {
			dst = ix.begin(dst, a.slot, d, c, p, n, want, s)
		}
	}
	return dst
}

func (ix *Index) goOnRich(h *head, l list, n int, ns int64, s *scratch) {
	ix.gather(h, l, ns, s, false)
	s.steps = s.steps[:0]
	for i := range s.accounts {
		a := &s.accounts[i]
		if d, c, p := a.masks(ix.records.at(a.slot).groups()); p&1 != 0 {
			if act, ok := s.find(a.slot); ok {
				s.extend(act, d, c, p, n)
			}
		}
	}
}
