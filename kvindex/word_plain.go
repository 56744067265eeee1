//go:build amd64 && !race

package kvindex

// store writes a word that readers load atomically while its writer holds the
// lock that guards it. A plain store is enough where the CPU keeps stores in
// order (amd64) and words are aligned: whoever needs an order against later
// stores follows it with an atomic one.
func store(p *uint64, v uint64) { *p = v }
