package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/extproc"
)

// XDS is the part of an Envoy's configuration that attaches warmpath: as Envoy
// has it, not as anybody meant it.
type XDS struct {
	// Listener is the one that takes requests; Manager is its HTTP connection
	// manager, Processor its ext_proc filter.
	Listener, Manager, Processor any
	// Routes are those of its virtual hosts, in order.
	Routes []any
	// Clusters are all of them by name.
	Clusters map[string]any
	// filter is the name of the ext_proc filter, which a route has to enable.
	filter string
}

// The type names of Envoy's API that [ReadXDS] looks for.
const (
	typeManager   = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	typeProcessor = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
)

// ReadXDS reads what an Envoy has got from its control plane. admin is the base
// URL of its administration.
func ReadXDS(ctx context.Context, admin string) (XDS, error) {
	var dump struct {
		Configs []struct {
			Listeners []struct {
				Active struct {
					Listener any `json:"listener"`
				} `json:"active_state"`
			} `json:"dynamic_listeners"`
			Clusters []struct {
				Cluster any `json:"cluster"`
			} `json:"dynamic_active_clusters"`
			Routes []struct {
				Config any `json:"route_config"`
			} `json:"dynamic_route_configs"`
		} `json:"configs"`
	}
	if err := getJSON(ctx, admin+"/config_dump", &dump); err != nil {
		return XDS{}, err
	}
	x := XDS{Clusters: map[string]any{}}
	for _, c := range dump.Configs {
		for _, l := range c.Listeners {
			if p := typed(l.Active.Listener, typeProcessor); p != nil {
				x.Listener, x.Manager, x.Processor = l.Active.Listener, typed(l.Active.Listener, typeManager), p
			}
		}
		filters, _ := At(x.Manager, "http_filters").([]any)
		for _, f := range filters {
			if typed(f, typeProcessor) != nil {
				x.filter, _ = At(f, "name").(string)
			}
		}
		for _, c := range c.Clusters {
			name, _ := At(c.Cluster, "name").(string)
			x.Clusters[name] = c.Cluster
		}
		for _, r := range c.Routes {
			hosts, _ := At(r.Config, "virtual_hosts").([]any)
			for _, h := range hosts {
				routes, _ := At(h, "routes").([]any)
				x.Routes = append(x.Routes, routes...)
			}
		}
	}
	if x.Processor == nil || len(x.Routes) == 0 {
		return x, errors.New("no listener of Envoy has an ext_proc filter, or there are no routes")
	}
	return x, nil
}

// typed finds the message of a type in v, the first one.
func typed(v any, name string) any {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if found := typed(e, name); found != nil {
				return found
			}
		}
	case map[string]any:
		if t, _ := v["@type"].(string); strings.HasSuffix(t, "/"+name) {
			return v
		}
		for _, e := range v {
			if found := typed(e, name); found != nil {
				return found
			}
		}
	}
	return nil
}

// At returns what is at a path of names and indices, nil if there is nothing.
func At(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

// expectation is a value, as JSON, at a path.
type expectation struct {
	json string
	path []any
}

func at(json string, path ...any) expectation { return expectation{json, path} }

// differences returns where v is not as expected.
func differences(what string, v any, all ...expectation) error {
	var errs []error
	for _, e := range all {
		var want any
		if err := json.Unmarshal([]byte(e.json), &want); err != nil {
			return fmt.Errorf("%s: %v: %w", what, e.path, err)
		}
		if got := At(v, e.path...); !reflect.DeepEqual(got, want) {
			text, _ := json.Marshal(got)
			errs = append(errs, fmt.Errorf("%s: %v is %s, want %s", what, e.path, text, e.json))
		}
	}
	return errors.Join(errs...)
}

// Attached returns how x differs from what the manifests of deploy promise
// whoever attaches warmpath with their defaults. override: Envoy picks the
// engine out of those it knows; otherwise it dials the address in target-pod.
func (x XDS) Attached(override bool) error {
	errs := []error{
		differences("listener", x.Listener, at(`33554432`, "per_connection_buffer_limit_bytes")),
		x.removed(),
		differences("ext_proc", x.Processor,
			at(`"SEND"`, "processing_mode", "request_header_mode"),
			at(`"BUFFERED"`, "processing_mode", "request_body_mode"),
			at(`"SEND"`, "processing_mode", "response_header_mode"),
			at(`null`, "processing_mode", "response_body_mode"), // NONE
			at(`true`, "allow_mode_override"),
			at(`true`, "failure_mode_allow"),
			at(`"3s"`, "message_timeout"),
			at(`["upstream.address"]`, "response_attributes"),
			at(`["envoy.lb"]`, "metadata_options", "receiving_namespaces", "untyped"),
		),
	}
	name, _ := At(x.Processor, "grpc_service", "envoy_grpc", "cluster_name").(string)
	errs = append(errs, differences("cluster of the router", x.Clusters[name],
		at(`"envoy.service.ext_proc.v3.ExternalProcessor"`, "health_checks", 0, "grpc_health_check", "service_name"),
		at(`"1s"`, "health_checks", 0, "interval"),
		at(`"0.300s"`, "health_checks", 0, "timeout"),
		at(`1`, "health_checks", 0, "unhealthy_threshold"),
		at(`{}`, "common_lb_config", "healthy_panic_threshold"), // 0, and not unset
		at(`100000`, "circuit_breakers", "thresholds", 0, "max_requests"),
		at(`100000`, "circuit_breakers", "thresholds", 0, "max_pending_requests"),
	))
	return errors.Join(append(errs, x.routes(override))...)
}

// removed requires that every header that steers requests is removed before
// anything reads it.
func (x XDS) removed() error {
	mutations, _ := At(x.Manager, "early_header_mutation_extensions", 0, "typed_config", "mutations").([]any)
	var removed []string
	for _, m := range mutations {
		name, _ := At(m, "remove").(string)
		removed = append(removed, name)
	}
	for _, name := range extproc.RoutingHeaders() {
		if !slices.Contains(removed, name) {
			return fmt.Errorf("a client's copy of %s is not removed early, only those of %q are", name, removed)
		}
	}
	return nil
}

func (x XDS) routes(override bool) error {
	first := 0
	var errs []error
	if !override {
		first = 1
		cluster, _ := At(x.Routes[0], "route", "cluster").(string)
		errs = append(errs,
			differences("patched route", x.Routes[0],
				at(`[{"name":"target-pod","present_match":true}]`, "match", "headers"),
				at(`"0s"`, "route", "timeout"),
				at(`"3600s"`, "route", "idle_timeout")),
			differences("patched cluster", x.Clusters[cluster],
				at(`"ORIGINAL_DST"`, "type"),
				at(`{"use_http_header":true,"http_header_name":"target-pod"}`, "original_dst_lb_config")))
	}
	for _, r := range x.Routes[first:] {
		cluster, _ := At(r, "route", "cluster").(string)
		errs = append(errs,
			differences("route", r,
				at(`"0s"`, "route", "timeout"),
				at(`"3600s"`, "route", "idle_timeout"),
				at(`"connect-failure,refused-stream,reset-before-request"`, "route", "retry_policy", "retry_on"),
				at(`2`, "route", "retry_policy", "num_retries"),
				at(`[{"upgrade_type":"none"}]`, "route", "upgrade_configs")),
			differences("cluster of the engines", x.Clusters[cluster],
				at(`"/health"`, "health_checks", 0, "http_health_check", "path"),
				at(`1`, "common_lb_config", "healthy_panic_threshold", "value"),
				at(`100000`, "circuit_breakers", "thresholds", 0, "max_requests"),
				at(`100000`, "circuit_breakers", "thresholds", 0, "max_retries")))
		policy := At(x.Clusters[cluster], "load_balancing_policy", "policies", 0, "typed_extension_config", "typed_config")
		if override {
			errs = append(errs, differences("policy of the engines", policy,
				at(`[{"header":"x-gateway-destination-endpoint"}]`, "override_host_sources"),
				at(`"envoy.load_balancing_policies.least_request"`, "fallback_policy", "policies", 0, "typed_extension_config", "name")))
		}
	}
	for i, r := range x.Routes {
		if At(r, "typed_per_filter_config", x.filter) == nil {
			errs = append(errs, fmt.Errorf("route %d does not ask the router", i))
		}
	}
	return errors.Join(errs...)
}
