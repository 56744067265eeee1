package extproc

import (
	"context"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// The services of the gRPC health protocol that the endpoint picker protocol
// names. The empty name is the server as a whole.
const (
	// serviceLiveness: the process answers.
	serviceLiveness = "liveness"
	// serviceReadiness: requests should be sent here.
	serviceReadiness = "readiness"
)

// SetReady sets what the health service says under all names but liveness.
// Once the server drains it stays unready.
func (s *Server) SetReady(ready bool) {
	s.readiness.Lock()
	defer s.readiness.Unlock()
	state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if ready && s.draining.Err() == nil {
		state = grpc_health_v1.HealthCheckResponse_SERVING
	}
	for _, name := range []string{"", serviceReadiness, extprocv3.ExternalProcessor_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(name, state)
	}
}

// watchable ends the calls of Watch, which have no end of their own, when the
// server drains: it would wait for them.
type watchable struct {
	*health.Server
	ended context.Context
}

// Watch implements the health service.
func (w *watchable) Watch(req *grpc_health_v1.HealthCheckRequest, g grpc_health_v1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	defer context.AfterFunc(w.ended, cancel)()
	return w.Server.Watch(req, watching{g, ctx})
}

// watching is a call of Watch with another context.
type watching struct {
	grpc_health_v1.Health_WatchServer
	ctx context.Context
}

func (w watching) Context() context.Context { return w.ctx }
