package relay

import (
	"context"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// Network is how names are looked up and connections made. Where a field is nil
// it is as the machine does it.
type Network struct {
	// Dial opens a connection to host:port.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Lookup returns the addresses of a host, which is none itself.
	Lookup func(ctx context.Context, host string) ([]string, error)
}

// addresses returns the ip:port that a host:port leads to, in the order in
// which they should be tried.
func (n Network) addresses(ctx context.Context, hostPort string) ([]netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(hostPort); err == nil {
		return []netip.AddrPort{ap}, nil
	}
	host, service, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	lookup := n.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	ips, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, text := range ips {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return out, nil
}

// outgoing is how this process calls others.
type outgoing struct {
	tls       TLSConfig
	tokenFile string
	network   Network
}

// client returns a connection to one address that is made with the first call,
// and lives for one stream: the caller makes pauses between attempts. name is
// the host:port that the address was found under, which the server's
// certificate must have.
func (o outgoing) client(address, name string) (*grpc.ClientConn, error) {
	creds, err := o.tls.client()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig(),
		grpc.WithAuthority(name),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}
	if o.tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{o.tokenFile}))
	}
	if o.network.Dial != nil {
		options = append(options, grpc.WithContextDialer(o.network.Dial))
	}
	return grpc.NewClient("passthrough:///"+address, options...)
}

// maxMessage bounds one message either way.
const maxMessage = 4 << 20

// serverOptions are those of every server here.
func serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(4096),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}
