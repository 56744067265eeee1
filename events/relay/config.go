package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Config is that of the process beside an engine, warmpath relay.
type Config struct {
	// Listen is the ip:port on which routers subscribe; empty: none can.
	Listen string `yaml:"listen" help:"warmpath relay: ip:port on which routers subscribe; empty: none can"`
	// Endpoint is the ip:port of the engine as routers know it; empty: the
	// address in the pool is.
	Endpoint string `yaml:"endpoint" help:"warmpath relay: ip:port of the engine as routers know it, such as $(POD_IP):8000, where the pool has its local address; empty: they are the same"`
	// ReportTo are routers, host:port, that the relay reports to by itself, all
	// addresses of a name among them.
	ReportTo []string `yaml:"report_to" help:"warmpath relay: host:port of routers' cachestate.listen that the relay reports to by itself; a name may lead to many of them, and is looked up again and again; empty: none"`
	// Window is how long added blocks wait for more of them. Evictions and
	// clears never wait.
	Window time.Duration `yaml:"window" help:"warmpath relay: how long added blocks wait, to be told together; evictions never wait; 0s: nothing does"`
	// LogBytes bounds the changes that are kept for routers that come back or
	// are slow; one that has fallen behind them gets a snapshot.
	LogBytes int `yaml:"log_bytes" help:"warmpath relay: memory for the latest changes of one publisher; a router that has fallen behind them gets a snapshot"`
	// Heartbeat is the longest silence of a stream.
	Heartbeat time.Duration `yaml:"heartbeat" help:"warmpath relay: longest silence of a stream, at most 20s; routers take three times as much for a lost connection"`
	// Timeout bounds every call to a router and every answer awaited.
	Timeout time.Duration `yaml:"timeout" help:"warmpath relay: time for a router to take one report"`
	// DrainTimeout bounds the delivery of what is buffered at the end.
	DrainTimeout time.Duration `yaml:"drain_timeout" help:"warmpath relay: time to deliver what is buffered when the process is stopped"`
	// BackoffMin and BackoffMax bound the pause before a router is tried again.
	BackoffMin time.Duration `yaml:"backoff_min" help:"warmpath relay: shortest pause before a router is tried again"`
	BackoffMax time.Duration `yaml:"backoff_max" help:"warmpath relay: longest such pause"`
	TLS        TLSConfig     `yaml:"tls"`
	// TokensFile lists the tokens with which routers may subscribe, those of the
	// subject read.
	TokensFile string `yaml:"tokens_file" help:"warmpath relay: file of lines read TOKEN that says which routers may subscribe, by their cachestate.token_file; empty: those with a certificate of tls.client_ca, and without that everybody who can reach listen and names the fingerprint of the seed"`
	// TokenFile holds the token that the relay shows to routers.
	TokenFile string `yaml:"token_file" help:"warmpath relay: file with the token that is shown to routers, one that their cachestate.tokens_file binds to this endpoint; empty: none"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:5560", Window: 20 * time.Millisecond, LogBytes: 4 << 20,
		Heartbeat: time.Second, Timeout: 5 * time.Second, DrainTimeout: 5 * time.Second,
		BackoffMin: 200 * time.Millisecond, BackoffMax: 5 * time.Second,
	}
}

// maxHeartbeat is the longest of which routers' patience has room for three.
const maxHeartbeat = maxPatience / 3

// Validate reports every fault of c, one an error, each starting with the
// field's path below "relay".
func (c Config) Validate() error {
	var errs []error
	if c.Listen != "" {
		if _, err := netip.ParseAddrPort(c.Listen); err != nil {
			errs = append(errs, fmt.Errorf("listen: %q is not ip:port; use for example 0.0.0.0:5560", c.Listen))
		}
	}
	if ap, err := netip.ParseAddrPort(c.Endpoint); c.Endpoint != "" && (err != nil || ap.String() != c.Endpoint) {
		errs = append(errs, fmt.Errorf("endpoint: %q is not ip:port; use the address that routers have in their pool, such as 10.0.0.7:8000", c.Endpoint))
	}
	if c.TokensFile != "" && c.Listen == "" {
		errs = append(errs, errors.New("tokens_file: set, but nothing is served; set listen, or empty it"))
	}
	errs = append(errs, validateHostPorts("report_to", c.ReportTo)...)
	if c.Window < 0 || c.Window > time.Minute {
		errs = append(errs, fmt.Errorf("window: %s is out of range; use 0s to 1m, such as 20ms", c.Window))
	}
	if c.LogBytes < 64<<10 {
		errs = append(errs, fmt.Errorf("log_bytes: %d would make snapshots the rule; use %d or more", c.LogBytes, 64<<10))
	}
	if c.Heartbeat > maxHeartbeat {
		errs = append(errs, fmt.Errorf("heartbeat: %s is too long, routers take a relay that is silent for a minute for lost; use %s or less", c.Heartbeat, maxHeartbeat))
	}
	errs = append(errs, positive("heartbeat", c.Heartbeat), positive("timeout", c.Timeout), positive("drain_timeout", c.DrainTimeout))
	errs = append(errs, validateBackoff(c.BackoffMin, c.BackoffMax)...)
	errs = append(errs, c.TLS.validate(c.Listen != "", len(c.ReportTo) > 0)...)
	return errors.Join(errs...)
}

// Warnings lists what is allowed and probably not what was meant, in the form
// of [Config.Validate].
func (c Config) Warnings() []string {
	ap, err := netip.ParseAddrPort(c.Listen)
	if err != nil || ap.Addr().IsLoopback() || c.TLS.ClientCA != "" || c.TokensFile != "" {
		return nil
	}
	return []string{fmt.Sprintf("listen: %q can be reached from other machines, and whoever names the fingerprint of the seed, which goes over the wire in clear without tls, can read the hashes of what the engine holds; "+
		"set tls with client_ca, or tokens_file, or let the network admit routers alone", c.Listen)}
}

// RouterConfig is that of a router: how it follows relays, and what it serves
// to them and to tools.
type RouterConfig struct {
	// Listen is the ip:port for relays that report by themselves and for the
	// read API; empty: neither is served.
	Listen string `yaml:"listen" help:"ip:port of the gRPC server for relays that report by themselves and for the read API; empty: none"`
	// GiveUp is how long a publisher's state is kept, and not trusted, while
	// its relay cannot be had; then the engine's own stream takes over.
	GiveUp time.Duration `yaml:"give_up" help:"how long a relay may be away, or say nothing that can be taken, before its endpoint is fed by the engine's own events, if there are any, and its state dropped"`
	// Timeout bounds the beginning of a stream, and its silence until the relay
	// has said how often it speaks.
	Timeout time.Duration `yaml:"timeout" help:"time for a relay to answer"`
	// BackoffMin and BackoffMax bound the pause before a relay is tried again.
	BackoffMin time.Duration `yaml:"backoff_min" help:"shortest pause before a relay is tried again"`
	BackoffMax time.Duration `yaml:"backoff_max" help:"longest such pause"`
	TLS        TLSConfig     `yaml:"tls"`
	// TokensFile lists who may call, one a line: a subject and its token.
	TokensFile string `yaml:"tokens_file" help:"file of lines SUBJECT TOKEN that says who may call: an endpoint's ip:port or name for its relay, read for the read API; empty: certificates decide"`
	// SnapshotFile is where the router writes what it knows of engines when it
	// ends, and reads it when it starts; empty: it starts with nothing.
	SnapshotFile string `yaml:"snapshot_file" help:"file in which a router that is stopped leaves what it knows of the engines' caches, for the next one to go on from; needs index.seed_file; empty: none"`
	// Peers are other routers, host:port, that are asked at the start for what
	// they know. All addresses of a name count, but for this process's own.
	Peers []string `yaml:"peers" help:"host:port of other routers' cachestate.listen, which are asked at the start for what they know of the engines' caches; a name may lead to many of them and to this one, as that of a headless Service does; needs index.seed_file; empty: nobody is asked"`
	// PeersTimeout is how long publishers may wait for what peers say, from the
	// first one that they are asked for.
	PeersTimeout time.Duration `yaml:"peers_timeout" help:"time for all peers together to tell what they know, from the first event stream that they are asked for; what is not known by then is asked of the engines"`
	// PeersTokenFile holds the token that the router shows to peers, and to
	// nobody else.
	PeersTokenFile string `yaml:"peers_token_file" help:"file with the token that is shown to peers alone, one that their cachestate.tokens_file has for read; empty: none"`
	// TokenFile holds the token that the router shows to relays. These are
	// wherever an endpoint says its relay is, so that whoever can make a pod
	// that is taken for an engine can get this token.
	TokenFile string `yaml:"token_file" help:"file with the token that is shown to relays, wherever an endpoint says its relay is, one that their relay.tokens_file has for read; let it open nothing else; empty: none"`
}

// DefaultRouterConfig returns the defaults.
func DefaultRouterConfig() RouterConfig {
	return RouterConfig{
		GiveUp: 10 * time.Second, Timeout: 5 * time.Second, PeersTimeout: 30 * time.Second,
		BackoffMin: 200 * time.Millisecond, BackoffMax: 5 * time.Second,
	}
}

// Validate reports every fault of c, one an error, each starting with the
// field's path below "cachestate".
func (c RouterConfig) Validate() error {
	var errs []error
	if c.Listen != "" {
		ap, err := netip.ParseAddrPort(c.Listen)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("listen: %q is not ip:port; use for example 0.0.0.0:9005", c.Listen))
		case !ap.Addr().IsLoopback() && c.TLS.ClientCA == "" && c.TokensFile == "":
			errs = append(errs, fmt.Errorf("listen: %q can be reached from other machines, and nothing says who may call; set tls with client_ca, or tokens_file, or listen on 127.0.0.1:%d", c.Listen, ap.Port()))
		}
	}
	errs = append(errs, positive("give_up", c.GiveUp), positive("timeout", c.Timeout), positive("peers_timeout", c.PeersTimeout))
	errs = append(errs, validateHostPorts("peers", c.Peers)...)
	if c.PeersTokenFile != "" && len(c.Peers) == 0 {
		errs = append(errs, fmt.Errorf("peers_token_file: %q, but no peers are asked, so that nobody is shown the token; set peers, or empty it", c.PeersTokenFile))
	}
	if c.PeersTokenFile != "" && c.PeersTokenFile == c.TokenFile {
		errs = append(errs, fmt.Errorf("peers_token_file: %q is token_file as well, which every relay is shown, and whoever has it could read what peers are told; use another token in another file", c.PeersTokenFile))
	}
	if len(c.Peers) > 0 && c.TLS.Cert != "" && c.TLS.CA == "" {
		errs = append(errs, errors.New("tls.ca: empty, but peers are asked, who serve with TLS if they have the tls.cert that is set here; set it to the authorities that signed their certificates"))
	}
	errs = append(errs, validateBackoff(c.BackoffMin, c.BackoffMax)...)
	errs = append(errs, c.TLS.validate(c.Listen != "", true)...)
	return errors.Join(errs...)
}

func positive(field string, d time.Duration) error {
	if d < time.Millisecond {
		return fmt.Errorf("%s: %s is too short; use 1ms or more", field, d)
	}
	return nil
}

func validateHostPorts(field string, list []string) (errs []error) {
	for i, a := range list {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("%s[%d]: %q is not host:port; use for example warmpath:9005", field, i, a))
		}
	}
	return errs
}

func validateBackoff(least, most time.Duration) []error {
	errs := []error{positive("backoff_min", least)}
	if most < least {
		errs = append(errs, fmt.Errorf("backoff_max: %s is less than backoff_min, %s; use a longer duration", most, least))
	}
	return errs
}
