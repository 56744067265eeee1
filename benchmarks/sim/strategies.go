package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/routing"
)

// excluded are strategies of the product that cannot run on virtual time:
// queue lets requests wait by real timers.
var excluded = []string{"queue"}

// productStrategies returns the names of the product's strategies.
func productStrategies() []string {
	return slices.DeleteFunc(routing.Strategies(), func(n string) bool { return slices.Contains(excluded, n) })
}

// Strategies returns the names of all strategies that a router could follow, those
// of the product first.
func Strategies() []string {
	names := productStrategies()
	for _, b := range baselines() {
		names = append(names, b.name)
	}
	return names
}

// Bounds returns the names of strategies that know what no router can: they say
// what is left to gain.
func Bounds() []string { return []string{twin, clairvoyantName} }

// known tells whether a strategy can be run: one by name, or a blend of the
// product's.
func known(name string) bool {
	if slices.Contains(Strategies(), name) || slices.Contains(Bounds(), name) {
		return true
	}
	cfg := routing.DefaultConfig()
	cfg.Strategy = name
	return strings.ContainsAny(name, ":,") && cfg.Validate() == nil
}

// CheckProduct returns an error unless name is a strategy of the product that
// runs in virtual time, or a blend of them.
func CheckProduct(name string) error {
	names := productStrategies()
	cfg := routing.DefaultConfig()
	cfg.Strategy = name
	switch {
	case slices.Contains(excluded, name):
		return unknownStrategy(name)
	case slices.Contains(names, name), strings.ContainsAny(name, ":,") && cfg.Validate() == nil:
		return nil
	case known(name):
		return fmt.Errorf("strategy %q is not one of the product; use one of %s", name, strings.Join(names, ", "))
	}
	return fmt.Errorf("strategy %q does not exist%s; use one of %s", name, workload.DidYouMean(name, names), strings.Join(names, ", "))
}

// unknownStrategy says that there is no such strategy, and which ones there
// are.
func unknownStrategy(name string) error {
	if slices.Contains(excluded, name) {
		return fmt.Errorf("strategy %q cannot run in virtual time", name)
	}
	all := append(Strategies(), Bounds()...)
	return fmt.Errorf("strategy %q does not exist%s; use one of %s", name, workload.DidYouMean(name, all), strings.Join(all, ", "))
}

// newChooser returns the chooser of the scenario's strategy for one replica.
func (r *run) newChooser(replica int) (chooser, error) {
	for _, b := range baselines() {
		if b.name == r.Strategy {
			return newPeer(r, replica, b), nil
		}
	}
	if r.Strategy == clairvoyantName {
		return newClairvoyant(r), nil
	}
	return newProduct(r, replica)
}
