package extproc

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"time"
)

// Config is the configuration of the server that Envoy talks to.
type Config struct {
	// Listen is host:port, or unix:PATH of a socket.
	Listen string `yaml:"listen" help:"host:port or unix:PATH on which Envoy finds the router"`
	// TLS is optional.
	TLS TLSConfig `yaml:"tls"`
	// DecisionTimeout bounds a decision, from the last byte of the request to
	// the reply. Envoy's message_timeout must be longer.
	DecisionTimeout time.Duration `yaml:"decision_timeout" help:"time for a decision, from the request's last byte to the reply; below Envoy's message_timeout"`
	// MaxBodyBytes bounds a request's body, also after unpacking; a larger one
	// is answered with 413. Envoy's own buffer limit must not be larger.
	MaxBodyBytes int `yaml:"max_body_bytes" help:"largest request body, also when unpacked; larger ones get 413; not below Envoy's buffer limit"`
	// ConcurrentBodyBytes bounds the bytes of large bodies that are received and
	// decided on at a time; others wait in Envoy, for a short time.
	ConcurrentBodyBytes int `yaml:"concurrent_body_bytes" help:"bytes of request bodies above 64 KiB that are received and decided on at a time; more wait for their turn in Envoy, for a tenth of a second at most; 0 is 1 MiB for each processor"`
	// ResponseHeaders adds x-warmpath-* headers to answers, which say what was
	// decided and why.
	ResponseHeaders bool `yaml:"response_headers" help:"add x-warmpath-* headers to answers: endpoint, strategy, matched tokens, reason"`
	// ClearRouteCache has Envoy choose the request's route again when its
	// headers tell the endpoint. Only routes that match on those headers need it.
	ClearRouteCache bool `yaml:"clear_route_cache" help:"have Envoy choose the route again once target-pod is set, for routes that match on it; not needed otherwise"`
	// AIBrixHeaders adds the headers that AIBrix's gateway plugin answers with:
	// request-id, routing-strategy, target-pod and target-pod-ip. They tell
	// clients the names of pods, so they are off by default.
	AIBrixHeaders bool `yaml:"aibrix_headers" help:"add the headers of AIBrix's gateway to answers, for clients that read them: request-id, routing-strategy, target-pod (the pod's name) and target-pod-ip (its ip:port)"`
	// SampleResponses is the share of answers, from 0 to 1, whose bodies are
	// looked at to compare the engine's report of cached tokens with what was
	// predicted. It costs a message for every piece of such an answer.
	SampleResponses float64 `yaml:"sample_responses" help:"share of answers, 0 to 1, whose reported cached tokens are compared with the prediction"`
	// Conformance obeys the hooks of the conformance suite of the Gateway API
	// Inference Extension, by which a client chooses its endpoint.
	Conformance bool `yaml:"conformance" help:"obey the test hooks of the Gateway API Inference Extension's conformance suite, by which clients choose endpoints; for that suite only"`
	// DrainDelay is for how long new requests are still served after the end of
	// the process was asked for, so that Envoy's health checks notice first.
	DrainDelay time.Duration `yaml:"drain_delay" help:"how long a router that is being stopped serves on while its health says it is not ready"`
	// DrainTimeout bounds how long requests may then go on before their streams
	// are closed, which does not hurt the requests.
	DrainTimeout time.Duration `yaml:"drain_timeout" help:"how long running requests are then waited for before their streams are closed, which does not hurt them"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Listen:          "127.0.0.1:9002",
		DecisionTimeout: 2 * time.Second,
		MaxBodyBytes:    32 << 20,
		ResponseHeaders: true,
		DrainDelay:      2 * time.Second,
		DrainTimeout:    30 * time.Second,
	}
}

// concurrentBodyBytes is ConcurrentBodyBytes, or its default.
func (c Config) concurrentBodyBytes() int64 {
	if c.ConcurrentBodyBytes > 0 {
		return int64(c.ConcurrentBodyBytes)
	}
	return int64(bytesPerProcessor * runtime.GOMAXPROCS(0))
}

// maxBody keeps a message, which has the body and its framing, below the
// 2 GiB that gRPC can carry.
const maxBody = 1 << 30

// Validate reports every fault of c, one an error, each starting with the
// field's path below "extproc".
func (c Config) Validate() error {
	var errs []error
	if path, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		if path == "" {
			errs = append(errs, fmt.Errorf("listen: %q has no path; use for example unix:/run/warmpath.sock", c.Listen))
		}
	} else if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		errs = append(errs, fmt.Errorf("listen: %q is not host:port; use for example 127.0.0.1:9002, or unix:PATH", c.Listen))
	}
	errs = append(errs, c.TLS.validate()...)
	if c.DecisionTimeout <= 0 {
		errs = append(errs, fmt.Errorf("decision_timeout: %s is not positive; use for example 2s", c.DecisionTimeout))
	}
	if c.MaxBodyBytes <= 0 || c.MaxBodyBytes > maxBody {
		errs = append(errs, fmt.Errorf("max_body_bytes: %d is out of range; use 1 to %d", c.MaxBodyBytes, maxBody))
	}
	if c.ConcurrentBodyBytes < 0 {
		errs = append(errs, fmt.Errorf("concurrent_body_bytes: %d is negative; use for example 8388608, or 0 for the default", c.ConcurrentBodyBytes))
	}
	if !(c.SampleResponses >= 0 && c.SampleResponses <= 1) {
		errs = append(errs, fmt.Errorf("sample_responses: %v is out of range; use 0 to 1", c.SampleResponses))
	}
	if c.DrainDelay < 0 {
		errs = append(errs, fmt.Errorf("drain_delay: %s is negative; use 0s or more", c.DrainDelay))
	}
	if c.DrainTimeout < 0 {
		errs = append(errs, fmt.Errorf("drain_timeout: %s is negative; use 0s or more", c.DrainTimeout))
	}
	return errors.Join(errs...)
}
