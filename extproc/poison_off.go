//go:build !race

package extproc

// poison: see poison_on.go.
const poison = false
