//go:build race

package micro

// raceEnabled: sync.Pool then drops what it is given now and again, on
// purpose, so allocation counts mean nothing.
const raceEnabled = true
