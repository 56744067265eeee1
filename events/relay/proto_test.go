package relay

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// The generated code is what the .proto gives.
func TestProto_GeneratedCodeIsCurrent(t *testing.T) {
	python := os.Getenv("WARMPATH_TEST_PYTHON")
	if python == "" {
		t.Skip("WARMPATH_TEST_PYTHON names no Python with grpcio-tools; make test installs one")
	}
	out := t.TempDir()
	if b, err := exec.CommandContext(t.Context(), "../../.ci/proto", python, out).CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, b)
	}
	for _, name := range []string{"cachestate.pb.go", "cachestate_grpc.pb.go", "peer.pb.go", "peer_grpc.pb.go", "read.pb.go", "read_grpc.pb.go"} {
		want, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("cachestatepb", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is not what the .proto gives; run: make proto", name)
		}
	}
}

// Whatever is added to the protocol: what relays and routers say has no room for
// text but for the names that are meant to be there, and nothing that could hold
// token ids.
func TestProto_HasNoRoomForTokens(t *testing.T) {
	said := map[string]bool{
		"Identity.endpoint": true, "Identity.model": true, "Identity.hash_scheme": true,
		"Scope.adapter": true, "Scope.tenant": true, "ReportAck.reason": true, "Unknown.reason": true, "Standing.last_batch": true,
	}
	seen := map[protoreflect.FullName]bool{}
	var look func(m protoreflect.MessageDescriptor)
	look = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			name := string(m.Name()) + "." + string(f.Name())
			switch f.Kind() {
			case protoreflect.MessageKind:
				look(f.Message())
			case protoreflect.StringKind, protoreflect.BytesKind:
				if !said[name] {
					t.Errorf("%s can hold text", name)
				}
			case protoreflect.Uint32Kind, protoreflect.Int32Kind, protoreflect.Uint64Kind, protoreflect.Int64Kind:
				if f.IsList() && f.Name() != "groups" && f.Name() != "other_groups" {
					t.Errorf("%s is a list of small integers, as token ids are", name)
				}
			}
			if strings.Contains(string(f.Name()), "token") {
				t.Errorf("%s is called after tokens", name)
			}
		}
	}
	for _, m := range []protoreflect.ProtoMessage{
		&pb.SubscribeRequest{}, &pb.SubscribeResponse{}, &pb.CacheStateReport{}, &pb.CacheEvent{}, &pb.ReportAck{}, &pb.SnapshotsRequest{}, &pb.SnapshotsResponse{},
	} {
		look(m.ProtoReflect().Descriptor())
	}
	if len(seen) < 22 {
		t.Errorf("only %d messages seen", len(seen))
	}
}
