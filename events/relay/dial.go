package relay

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// Dialer opens a connection to host:port.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// outgoing is how this process calls others.
type outgoing struct {
	tls       TLSConfig
	tokenFile string
	// dial is nil for the network's own.
	dial Dialer
}

// client returns a connection that is made with the first call, and lives for
// one stream: the caller makes pauses between attempts.
func (o outgoing) client(address string) (*grpc.ClientConn, error) {
	creds, err := o.tls.client()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}
	if o.tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{o.tokenFile}))
	}
	if o.dial != nil {
		options = append(options, grpc.WithContextDialer(o.dial))
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
