//go:build !race

package kvindex

// raceEnabled says that allocation counts mean nothing.
const raceEnabled = false
