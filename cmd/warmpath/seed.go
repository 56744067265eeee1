package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// readSeed reads the fleet's hash seed: 16 hexadecimal digits, with or without
// a line break after them. Routers and relays that exchange block hashes must
// share it, and clients must not know it: whoever does can choose prompts
// whose blocks collide.
func readSeed(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	seed, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		// The text is a secret that someone has put there: it is not shown.
		return 0, fmt.Errorf("%s does not hold 16 hexadecimal digits; write it with: openssl rand -hex 8 > %s", file, file)
	}
	return seed, nil
}
