// Package envoy holds the Envoy bootstrap that attaches an Envoy to warmpath,
// as a text template: `warmpath envoy-config` fills it in.
package envoy

import _ "embed"

// Bootstrap is a text/template that gives Envoy's bootstrap as YAML (Envoy
// v3 API, config.bootstrap.v3.Bootstrap). Its data and functions are those of
// cmd/warmpath.
//
//go:embed bootstrap.yaml.tmpl
var Bootstrap string
