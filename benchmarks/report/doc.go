// Package report compares results of the simulator and draws them.
package report
