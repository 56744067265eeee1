//go:build !kvyield

package kvindex

import "testing"

// scheduleAtGaps does nothing without the build tag kvyield.
func scheduleAtGaps(*testing.T) {}
