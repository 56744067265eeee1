package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxDump bounds what is read of Envoy's configuration.
const maxDump = 256 << 20

// checkEnvoy reads Envoy's configuration from its admin server.
func (d *doctor) checkEnvoy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.wait)
	defer cancel()
	url := strings.TrimSuffix(d.envoy, "/") + "/config_dump"
	dump, err := func() ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		resp, err := d.client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("GET %s: status %d", url, resp.StatusCode)
		}
		return io.ReadAll(io.LimitReader(resp.Body, maxDump))
	}()
	if err != nil {
		d.add(levelFail, "envoy", "", "curl -s "+url, "its configuration cannot be read: %v", err)
		return
	}
	found, err := envoyFindings(dump, d.cfg)
	if err != nil {
		d.add(levelFail, "envoy", "", "curl -s "+url, "its configuration cannot be read: %v", err)
		return
	}
	if len(found) == 0 {
		d.add(levelOK, "envoy", "", "", "limits and timeouts are large enough")
	}
	d.findings = append(d.findings, found...)
}

// Envoy's own defaults, and what answers of language models need (Envoy API
// v3: ExternalProcessor, RouteAction, HttpConnectionManager, Listener,
// CircuitBreakers).
const (
	envoyMessageTimeout = 200 * time.Millisecond
	envoyRouteTimeout   = 15 * time.Second
	envoyIdleTimeout    = 5 * time.Minute
	envoyBufferLimit    = 1 << 20
	envoyMaxRequests    = 1024

	leastRouteTimeout = 10 * time.Minute
	leastIdleTimeout  = 5 * time.Minute
	leastRequests     = 4096
)

// envoyDump is what the checks remember of a configuration.
type envoyDump struct {
	cfg      Config
	findings []finding
	// processors counts external processors, choosers clusters that take the
	// destination from our header.
	processors, choosers int
	// buffered: some processor sees bodies that Envoy buffers whole.
	buffered bool
}

// add keeps a finding, once: Envoy shows its static configuration in two
// places.
func (v *envoyDump) add(l level, about, mend, format string, args ...any) {
	f := finding{l, "envoy", about, fmt.Sprintf(format, args...), mend}
	if !slices.Contains(v.findings, f) {
		v.findings = append(v.findings, f)
	}
}

// envoyFindings returns what is wrong in the answer of Envoy's /config_dump.
func envoyFindings(dump []byte, cfg Config) ([]finding, error) {
	var doc any
	if err := json.Unmarshal(dump, &doc); err != nil {
		return nil, err
	}
	v := &envoyDump{cfg: cfg}
	walk(doc, func(m map[string]any) {
		if typ, _ := m["@type"].(string); strings.HasSuffix(typ, ".ext_proc.v3.ExternalProcessor") {
			v.processor(m)
		}
	})
	if v.processors == 0 {
		v.add(levelFail, "", "warmpath envoy-config --config FILE", "it has no external processor, so it does not ask the router")
		return v.findings, nil
	}
	walk(doc, v.visit)
	if v.choosers == 0 {
		v.add(levelFail, "clusters", "warmpath envoy-config --config FILE, or an InferencePool as backend", "no cluster takes its endpoint from x-gateway-destination-endpoint: what the router decides is ignored")
	}
	return v.findings, nil
}

// walk calls visit with every object of a JSON document.
func walk(v any, visit func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(v)
		for _, e := range v {
			walk(e, visit)
		}
	case []any:
		for _, e := range v {
			walk(e, visit)
		}
	}
}

// visit looks at one object that is no external processor.
func (v *envoyDump) visit(m map[string]any) {
	typ, _ := m["@type"].(string)
	switch {
	case strings.HasSuffix(typ, ".http_connection_manager.v3.HttpConnectionManager"):
		v.connections(m)
	case strings.HasSuffix(typ, ".listener.v3.Listener"):
		v.listener(m)
	case strings.HasSuffix(typ, ".cluster.v3.Cluster"):
		v.cluster(m)
	}
	if r, ok := m["route"].(map[string]any); ok && (r["cluster"] != nil || r["weighted_clusters"] != nil || r["cluster_header"] != nil) {
		v.route(m, r)
	}
}

func (v *envoyDump) processor(m map[string]any) {
	v.processors++
	about := "ext_proc " + text(m, "grpc_service", "envoy_grpc", "cluster_name")
	need := v.cfg.longestDecision()
	if t := duration(m, envoyMessageTimeout, "message_timeout"); t <= need {
		v.add(levelFail, about, fmt.Sprintf("set message_timeout to %s (Envoy Gateway: EnvoyExtensionPolicy, spec.extProc[].messageTimeout)", need+messageMargin),
			"message_timeout is %s, and the router may take %s to decide: requests get 504, or pass it by", t, need)
	}
	if m["failure_mode_allow"] != true {
		v.add(levelWarn, about, "set failure_mode_allow to true (Envoy Gateway: failOpen)", "failure_mode_allow is off: without the router no request is answered, and running answers break with it")
	}
	mode := text(m, "processing_mode", "request_body_mode")
	switch mode {
	case "BUFFERED", "BUFFERED_PARTIAL":
		v.buffered = true
	case "FULL_DUPLEX_STREAMED":
	case "", "NONE":
		v.add(levelFail, about, "set processing_mode.request_body_mode to BUFFERED (Envoy Gateway: processingMode.request.body: Buffered)", "the router sees no request bodies, so neither model nor prompt")
	default:
		v.add(levelFail, about, "set processing_mode.request_body_mode to BUFFERED or FULL_DUPLEX_STREAMED", "request_body_mode is %s, which the router does not speak", mode)
	}
	if text(m, "processing_mode", "response_header_mode") == "SKIP" {
		v.add(levelWarn, about, "set processing_mode.response_header_mode to SEND", "the router sees no answers: it does not learn which endpoint served or failed")
	}
	if m["allow_mode_override"] != true && text(m, "processing_mode", "response_trailer_mode") != "SEND" {
		v.add(levelWarn, about, "set allow_mode_override to true, or processing_mode.response_trailer_mode to SEND", "the router does not learn when an answer ends: requests in flight are counted short")
	}
}

func (v *envoyDump) connections(m map[string]any) {
	about := "listener " + text(m, "stat_prefix")
	if t := duration(m, envoyIdleTimeout, "stream_idle_timeout"); t > 0 && t < leastIdleTimeout {
		v.add(levelFail, about, "set stream_idle_timeout to 3600s (Envoy Gateway: ClientTrafficPolicy, timeout.http.streamIdleTimeout)", "stream_idle_timeout is %s: an answer whose first token takes longer is cut", t)
	}
	if t := duration(m, 0, "request_timeout"); t > 0 && t < time.Minute {
		v.add(levelWarn, about, "set request_timeout to 0s", "request_timeout is %s: a large prompt over a slow line is cut", t)
	}
	if t := duration(m, 0, "common_http_protocol_options", "max_stream_duration"); t > 0 && t < leastRouteTimeout {
		v.add(levelFail, about, "set common_http_protocol_options.max_stream_duration to 0s", "max_stream_duration is %s: longer answers are cut", t)
	}
}

func (v *envoyDump) listener(m map[string]any) {
	n := number(m, envoyBufferLimit, "per_connection_buffer_limit_bytes")
	if want := v.cfg.ExtProc.MaxBodyBytes; v.buffered && n < want {
		v.add(levelWarn, "listener "+text(m, "name"), fmt.Sprintf("set per_connection_buffer_limit_bytes to %d (Envoy Gateway: ClientTrafficPolicy, connection.bufferLimit), or extproc.max_body_bytes to %d", want, n),
			"request bodies above %s are answered with 413, before the router's own limit of %s", byteSize(n), byteSize(want))
	}
}

func (v *envoyDump) route(m, r map[string]any) {
	about := "route " + text(m, "name")
	if about == "route " {
		about = "route to " + text(r, "cluster")
	}
	if t := duration(r, envoyRouteTimeout, "timeout"); t > 0 && t < leastRouteTimeout {
		v.add(levelFail, about, "set the route's timeout to 0s (Envoy Gateway: HTTPRoute, timeouts.request: 0s)", "its timeout is %s: longer answers are cut", t)
	}
	if t := duration(r, 0, "idle_timeout"); t > 0 && t < leastIdleTimeout {
		v.add(levelFail, about, "set the route's idle_timeout to 3600s", "its idle_timeout is %s: an answer whose first token takes longer is cut", t)
	}
}

func (v *envoyDump) cluster(m map[string]any) {
	name := text(m, "name")
	walk(m["load_balancing_policy"], func(p map[string]any) {
		if typ, _ := p["@type"].(string); strings.HasSuffix(typ, ".override_host.v3.OverrideHost") {
			v.choosers++
		}
	})
	if text(m, "type") == "ORIGINAL_DST" && (boolean(m, "original_dst_lb_config", "use_http_header") || m["original_dst_lb_config"] != nil) {
		v.choosers++
	}
	least := envoyMaxRequests
	if thresholds, ok := at(m, "circuit_breakers", "thresholds").([]any); ok {
		for _, t := range thresholds {
			if t, ok := t.(map[string]any); ok && (text(t, "priority") == "" || text(t, "priority") == "DEFAULT") {
				least = min(number(t, envoyMaxRequests, "max_requests"), number(t, envoyMaxRequests, "max_connections"), number(t, envoyMaxRequests, "max_pending_requests"))
			}
		}
	}
	if least < leastRequests {
		v.add(levelWarn, "cluster "+name, "set circuit_breakers.thresholds: max_connections, max_pending_requests and max_requests to 100000 (Envoy Gateway: BackendTrafficPolicy, circuitBreaker)",
			"it takes %d requests or connections at a time; more are answered with 503", least)
	}
}

// at returns the value at a path of keys, nil if there is none.
func at(m map[string]any, path ...string) any {
	var v any = m
	for _, key := range path {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[key]
	}
	return v
}

func text(m map[string]any, path ...string) string {
	s, _ := at(m, path...).(string)
	return s
}

func boolean(m map[string]any, path ...string) bool { return at(m, path...) == true }

// duration reads a protobuf duration as JSON has it, such as "0.200s".
func duration(m map[string]any, otherwise time.Duration, path ...string) time.Duration {
	if t, err := time.ParseDuration(text(m, path...)); err == nil {
		return t
	}
	return otherwise
}

// number reads a number, which wrapped 64-bit ones write as text.
func number(m map[string]any, otherwise int, path ...string) int {
	switch n := at(m, path...).(type) {
	case float64:
		return int(n)
	case string:
		if i, err := strconv.Atoi(n); err == nil {
			return i
		}
	}
	return otherwise
}

// printFindingsJSON prints all findings as one object.
func printFindingsJSON(w io.Writer, all []finding) error {
	b, err := json.MarshalIndent(map[string]any{"findings": all}, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
