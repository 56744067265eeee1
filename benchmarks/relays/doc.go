// Package relays measures what relays cost and save: how long a router that
// knows nothing takes until it is exact, by the engines' own replay, from another
// router and through relays, on the same engines in one process; what a stored
// block costs on the wire either way; and what a relay needs.
package relays
