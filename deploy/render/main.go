package main

import (
	"fmt"
	"os"
	"os/exec"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: render CHART MANIFESTS")
		os.Exit(2)
	}
	if err := update(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

// update writes what is generated: the part of the chart's schema that is about
// the router's settings, and the manifests.
func update(chartDir, manifestsDir string) error {
	reference, err := exec.Command("go", "run", "-C", "../..", "./cmd/warmpath", "check", "--reference").Output()
	if err != nil {
		return fmt.Errorf("warmpath check --reference: %w", err)
	}
	file := schemaFile(chartDir)
	schema, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if schema, err = withConfig(schema, string(reference)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := os.WriteFile(file, schema, 0o644); err != nil {
		return err
	}
	return write(chartDir, manifestsDir)
}
