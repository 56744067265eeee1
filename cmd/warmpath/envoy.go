package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/warmpath/warmpath/deploy/envoy"
	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/routing/pool"
)

// EnvoyConfig is what the bootstrap that envoy-config writes says about Envoy
// itself. It changes nothing in this process.
type EnvoyConfig struct {
	Listen string `yaml:"listen" help:"ip:port where Envoy takes requests"`
	Admin  string `yaml:"admin" help:"ip:port of Envoy's admin page"`
	// Router is host:port or unix:PATH. Empty: extproc.listen, over loopback if
	// that is a wildcard.
	Router string `yaml:"router" help:"host:port or unix:PATH where Envoy reaches the router; empty: extproc.listen, over loopback if that is a wildcard"`
	// RouterTLS is how Envoy and the router know each other where extproc.tls is
	// set.
	RouterTLS RouterTLSConfig `yaml:"router_tls"`
	// Engines are host:port of names that resolve to the engines, for Envoys that
	// follow what the names resolve to. Empty: the static pool.
	Engines []string `yaml:"engines" help:"host:port of names that resolve to all engines, such as a headless Service's, one for each port; empty: the addresses in pool.static"`
	// ModelHeader is where a request may tell its model before its body. Empty:
	// nowhere. The default is the header that the body-based router of the
	// Gateway API Inference Extension sets.
	ModelHeader string `yaml:"model_header" help:"request header that tells the model before the body does, so that requests keep to engines that serve it while the router is away; empty: none"`
	// BodyMode is how Envoy hands request bodies to the router.
	BodyMode string `yaml:"body_mode" help:"how Envoy hands request bodies to the router: buffered, or full_duplex_streamed, piece by piece as they come"`
	// MessageTimeout is how long Envoy waits for one answer of the router. 0:
	// the longest decision and a second.
	MessageTimeout time.Duration `yaml:"message_timeout" help:"how long Envoy waits for one answer of the router; 0s: its decision deadline and 1s"`
}

// RouterTLSConfig names files on Envoy's machine, in PEM.
type RouterTLSConfig struct {
	CA   string `yaml:"ca" help:"file, for Envoy, of the authorities that have signed extproc.tls.cert, PEM"`
	Cert string `yaml:"cert" help:"file, for Envoy, of its certificate where extproc.tls.client_ca asks for one, PEM"`
	Key  string `yaml:"key" help:"file, for Envoy, of the key of that certificate, PEM"`
}

// DefaultEnvoyConfig returns the section where nothing is set.
func DefaultEnvoyConfig() EnvoyConfig {
	return EnvoyConfig{Listen: "127.0.0.1:8080", Admin: "127.0.0.1:9901", ModelHeader: "x-gateway-model-name", BodyMode: bodyBuffered}
}

// The values of [EnvoyConfig.BodyMode].
const (
	bodyBuffered = "buffered"
	bodyDuplex   = "full_duplex_streamed"
)

// Validate reports every fault of c.
func (c EnvoyConfig) Validate() error {
	errs := []error{validateListen("listen", c.Listen), validateListen("admin", c.Admin), oneOf("body_mode", c.BodyMode, bodyBuffered, bodyDuplex)}
	if c.Router != "" {
		if _, err := envoyAddress(c.Router); err != nil {
			errs = append(errs, fmt.Errorf("router: %w", err))
		}
	}
	for i, e := range c.Engines {
		if _, err := envoyAddress(e); err != nil || strings.HasPrefix(e, unixPrefix) || !isName(e) {
			errs = append(errs, fmt.Errorf("engines[%d]: %q is not a name and a port; use for example engines.default.svc:8000", i, e))
		}
	}
	if c.ModelHeader != "" && !isHeaderName(c.ModelHeader) {
		errs = append(errs, fmt.Errorf("model_header: %q is not a header's name; use lower-case letters, digits and -, for example x-gateway-model-name", c.ModelHeader))
	}
	if slices.Contains(extproc.RoutingHeaders(), c.ModelHeader) {
		errs = append(errs, fmt.Errorf("model_header: %q is removed from every request; use for example x-gateway-model-name", c.ModelHeader))
	}
	if c.MessageTimeout < 0 {
		errs = append(errs, fmt.Errorf("message_timeout: %s is negative; use 0s for the default", c.MessageTimeout))
	}
	if (c.RouterTLS.Cert == "") != (c.RouterTLS.Key == "") {
		errs = append(errs, errors.New("router_tls: cert and key go together; set both or none"))
	}
	return errors.Join(errs...)
}

// isHeaderName tells whether name can be a header in Envoy's configuration,
// which wants lower case.
func isHeaderName(name string) bool {
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// bootstrap is the data of the template.
type bootstrap struct {
	Listen, Admin, Router         string
	TLS                           *routerTLS // nil: none
	MessageTimeout                time.Duration
	Duplex                        bool
	BufferLimitBytes              int
	Retries                       int
	RemoveHeaders                 []string
	HealthPath                    string
	HealthInterval, HealthTimeout time.Duration
	ModelHeader                   string
	Models                        []modelRoute
	// Clusters are those of the engines; the first has all of them.
	Clusters []cluster
}

// cluster is a set of engines: those of Engines, or those that Names resolve
// to.
type cluster struct {
	Name    string
	Engines []pool.Spec
	Names   []string
}

// modelRoute sends the requests for some models to the engines that serve them.
type modelRoute struct {
	Names   []string
	Cluster string
}

// Pattern is a regular expression (RE2) that matches the names, whole.
func (r modelRoute) Pattern() string {
	quoted := make([]string, len(r.Names))
	for i, n := range r.Names {
		quoted[i] = regexp.QuoteMeta(n)
	}
	return strings.Join(quoted, "|")
}

// allEngines is the name of the cluster of all engines.
const allEngines = "engines"

// modelClusters groups the models that not every engine serves by the engines
// that do: one route and one cluster for each group. An engine whose models
// will be learned may serve any, so it is in each of them: Envoy takes
// warmpath's choice only from the cluster of the route.
func modelClusters(specs []pool.Spec) ([]modelRoute, []cluster) {
	clusters := []cluster{{Name: allEngines, Engines: specs}}
	var names []string
	for _, e := range specs {
		for _, n := range slices.Concat(e.Models, e.Adapters) {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	var routes []modelRoute
	found := map[string]int{} // the route for a set of engines, by their names
	for _, n := range names {
		c := cluster{Name: allEngines + "/" + n}
		set := ""
		for _, e := range specs {
			if len(e.Models) == 0 || slices.Contains(e.Models, n) || slices.Contains(e.Adapters, n) {
				c.Engines = append(c.Engines, e)
				set += e.Name + "\n"
			}
		}
		if len(c.Engines) == len(specs) {
			continue
		}
		if i, ok := found[set]; ok {
			routes[i].Names = append(routes[i].Names, n)
			continue
		}
		found[set] = len(routes)
		routes, clusters = append(routes, modelRoute{[]string{n}, c.Name}), append(clusters, c)
	}
	return routes, clusters
}

// envoyBootstrap returns the Envoy bootstrap for the engines of cfg, which must
// be valid.
func envoyBootstrap(cfg Config) ([]byte, error) {
	b := bootstrap{
		Listen:           cfg.Envoy.Listen,
		Admin:            cfg.Envoy.Admin,
		Router:           cfg.routerAddress(),
		MessageTimeout:   cfg.messageTimeout(),
		Duplex:           cfg.Envoy.BodyMode == bodyDuplex,
		BufferLimitBytes: cfg.ExtProc.MaxBodyBytes,
		Retries:          max(1, cfg.Routing.Fallbacks),
		RemoveHeaders:    extproc.RoutingHeaders(),
		HealthPath:       cfg.Pool.Health.Path,
		HealthInterval:   cfg.Pool.Health.Interval,
		HealthTimeout:    cfg.Pool.Health.Timeout,
		ModelHeader:      cfg.Envoy.ModelHeader,
		Clusters:         []cluster{{Name: allEngines, Engines: cfg.Pool.Static.Endpoints}},
	}
	switch {
	case len(cfg.Envoy.Engines) > 0:
		b.Clusters = []cluster{{Name: allEngines, Names: cfg.Envoy.Engines}}
	case len(cfg.Pool.Static.Endpoints) == 0:
		return nil, errors.New("envoy.engines: empty, and so is pool.static.endpoints; name the Service that resolves to the engines")
	case b.ModelHeader != "":
		b.Models, b.Clusters = modelClusters(cfg.Pool.Static.Endpoints)
	}
	for _, a := range [...]struct{ field, value string }{
		{"extproc.listen", b.Router}, {"envoy.listen", b.Listen}, {"envoy.admin", b.Admin},
	} {
		if _, err := envoyAddress(a.value); err != nil {
			return nil, fmt.Errorf("%s: %w", a.field, err)
		}
	}
	var err error
	if b.TLS, err = cfg.routerTLS(); err != nil {
		return nil, err
	}
	t, err := template.New("bootstrap.yaml").Option("missingkey=error").Funcs(template.FuncMap{
		"address": envoyAddress,
		"quote":   quote,
		"seconds": func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s" },
		"isName":  isName,
		"join":    strings.Join,
	}).Parse(envoy.Bootstrap)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// routerTLS is TLS between Envoy and the router. Name is what the router's
// certificate must be for, empty on a socket, and SANType says what it is, as
// Envoy calls it.
type routerTLS struct {
	RouterTLSConfig
	Name, SANType string
}

// routerTLS returns nil if the router serves without TLS.
func (c Config) routerTLS() (*routerTLS, error) {
	server, t := c.ExtProc.TLS, &routerTLS{RouterTLSConfig: c.Envoy.RouterTLS}
	if server == (extproc.TLSConfig{}) {
		return nil, nil
	}
	if t.CA == "" {
		return nil, errors.New("envoy.router_tls.ca: empty, but extproc.tls is set; name the file with which Envoy checks the router's certificate")
	}
	if server.ClientCA != "" && t.Cert == "" {
		return nil, errors.New("envoy.router_tls.cert: empty, but extproc.tls.client_ca is set; name the file with Envoy's certificate")
	}
	address := c.routerAddress()
	if strings.HasPrefix(address, unixPrefix) {
		return t, nil
	}
	host, _, err := net.SplitHostPort(address)
	t.Name, t.SANType = host, "DNS"
	if _, bad := netip.ParseAddr(host); bad == nil {
		t.SANType = "IP_ADDRESS"
	}
	return t, err
}

// routerAddress returns where Envoy finds the ext_proc server.
func (c Config) routerAddress() string {
	if c.Envoy.Router != "" {
		return c.Envoy.Router
	}
	ap := listenAddrPort(c.ExtProc.Listen)
	if !ap.Addr().IsUnspecified() {
		return c.ExtProc.Listen
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if ap.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(loopback, ap.Port()).String()
}

const unixPrefix = "unix:"

// isName tells whether address, which is valid, needs a name to be looked up.
func isName(address string) bool {
	_, err := netip.ParseAddrPort(address)
	return err != nil && !strings.HasPrefix(address, unixPrefix)
}

// envoyAddress returns address, host:port or unix:PATH, as an Envoy address
// (config.core.v3.Address) in YAML's flow style.
func envoyAddress(address string) (string, error) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		p, err := quote(path)
		return "{pipe: {path: " + p + "}}", err
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, " /") {
		return "", fmt.Errorf("%q is not host:port; use for example 127.0.0.1:9002", address)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return "", fmt.Errorf("%q has no port from 1 to 65535, which Envoy needs; use for example %s", address, net.JoinHostPort(host, "9002"))
	}
	h, err := quote(host)
	return fmt.Sprintf("{socket_address: {address: %s, port_value: %d}}", h, port), err
}

// quote returns s as a JSON string, which is a YAML string too.
func quote(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}
