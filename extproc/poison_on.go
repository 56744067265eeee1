//go:build race

package extproc

// poison: the memory of bodies is overwritten when it is given back, so that
// tests under the race detector find those who use it for too long.
const poison = true
