package drive

import (
	"context"
	"math"
	"net"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

// headerDestination carries the chosen endpoints (Gateway API Inference
// Extension, endpoint picker protocol).
const headerDestination = "x-gateway-destination-endpoint"

// nullServer is the yardstick: what an external processor costs that decides
// nothing. It uses the generated API, answers the three messages of a request,
// sets one header and logs nothing. It must stay as it is: neither optimised
// nor slowed, or ratios of different versions cannot be compared.
type nullServer struct {
	extprocv3.UnimplementedExternalProcessorServer
	destination string
	messages    atomic.Uint64
}

// Process implements the external processing service.
func (s *nullServer) Process(g extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := g.Recv()
		if err != nil {
			return nil
		}
		s.messages.Add(1)
		var resp *extprocv3.ProcessingResponse
		switch req.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			resp = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
				RequestHeaders: &extprocv3.HeadersResponse{},
			}}
		case *extprocv3.ProcessingRequest_RequestBody:
			resp = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
				RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{
					HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
						Header:       &corev3.HeaderValue{Key: headerDestination, RawValue: []byte(s.destination)},
						AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
					}}},
				}},
			}}
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			resp = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
				ResponseHeaders: &extprocv3.HeadersResponse{},
			}}
		default:
			continue
		}
		if g.Send(resp) != nil {
			return nil
		}
	}
}

// run serves on listener, which it closes, until ctx ends.
func (s *nullServer) run(ctx context.Context, listener net.Listener) error {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.MaxConcurrentStreams(math.MaxUint32))
	extprocv3.RegisterExternalProcessorServer(g, s)
	defer context.AfterFunc(ctx, g.Stop)()
	return g.Serve(listener)
}
