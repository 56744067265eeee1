"""A client of a router's cache-state server, in Python.

usage: client.py PROTO_DIR ADDRESS ARGUMENTS_AS_JSON

It generates its code from the .proto files, reports three blocks, evicts the
last, reads the state back, and prints what it saw as JSON.
"""

import json
import subprocess
import sys
import tempfile

proto_dir, address, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
generated = tempfile.mkdtemp()
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", "-I", proto_dir, "--python_out", generated,
     "--grpc_python_out", generated, "cachestate.proto", "read.proto"],
    check=True,
)
sys.path.insert(0, generated)

import cachestate_pb2 as cs
import cachestate_pb2_grpc as cs_grpc
import grpc
import read_pb2 as rd
import read_pb2_grpc as rd_grpc

channel = grpc.insecure_channel(address)
reports, reader = cs_grpc.CacheStateStub(channel), rd_grpc.ReaderStub(channel)

identity = cs.Identity(
    endpoint=arguments["endpoint"], model=arguments["model"], hash_scheme=arguments["scheme"],
    seed_fingerprint=arguments["seed"], incarnation=1,
)
device = cs.Place(tier=cs.TIER_DEVICE)
added = cs.Added(
    scopes=[cs.Scope(id=1, root=arguments["root"], block_size=arguments["block_size"])],
    runs=[cs.Run(parent=arguments["root"], scope=1, contents=arguments["contents"], places=[device])],
)
messages = [
    cs.CacheStateReport(hello=cs.Hello(identity=identity, heartbeat_ms=60000)),
    cs.CacheStateReport(snapshot_begin=cs.SnapshotBegin(cursor=cs.Cursor(incarnation=1), trust=cs.TRUST_EXACT)),
    cs.CacheStateReport(snapshot_end=cs.SnapshotEnd()),
    cs.CacheStateReport(delta=cs.Delta(sequence=1, trust=cs.TRUST_EXACT, added=added)),
]
answered = []
stream = reports.ReportCacheState(iter(messages), timeout=20)
for ack in stream:
    answered.append([ack.applied.incarnation, ack.applied.sequence, ack.resync])

evicted = cs.Delta(
    sequence=2, trust=cs.TRUST_EXACT,
    evicted=cs.Evicted(removals=[cs.Removal(place=device, blocks=arguments["blocks"][2:])]),
)
ack = reports.PublishEvent(cs.CacheEvent(identity=identity, delta=evicted), timeout=20)
answered.append([ack.applied.incarnation, ack.applied.sequence, ack.resync])

lookup = reader.LookupRoute(rd.LookupRouteRequest(model=arguments["model"], token_ids=arguments["tokens"]), timeout=20)
state = reader.GetCacheState(rd.GetCacheStateRequest(endpoint=arguments["endpoint"], blocks=True), timeout=20)
watched = next(iter(reader.WatchState(rd.WatchStateRequest(), timeout=20)))
print(json.dumps({
    "acks": answered,
    "reason": rd.ReasonCode.Name(lookup.reason),
    "held": [m.held_blocks for m in lookup.matches],
    "blocks": sorted(b.block for b in state.held_blocks),
    "source": state.publishers[0].source,
    "watched": [cs.Trust.Name(s.trust) for s in watched.changed],
}))
