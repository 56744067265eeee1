//go:build race

package kvindex

// raceEnabled: sync.Pool then drops what it is given now and again, on
// purpose, so that allocation counts say nothing.
const raceEnabled = true
