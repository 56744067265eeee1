//go:build !race

package micro

// raceEnabled says that allocation counts mean nothing.
const raceEnabled = false
