"""Publishes KV events with libzmq and msgspec, the libraries of vLLM and SGLang.

The structs have the shapes that vLLM documents for its KV events: arrays before
0.24, maps with a type key since; the sockets are a PUB and a ROUTER, which
answers replay requests. It prints its two ports, then obeys one command a line
from standard input and answers each with "ok":

  publish FORMAT HASHES   a chain of one-token blocks: token = hash = 1, 2, ...
  remove FORMAT HASH      one block
  clear FORMAT            everything
  connect ENDPOINT        the PUB socket also connects to a SUB socket
  hide N                  the next N batches are not sent live

Run by interop_test.go; needs pyzmq and msgspec.
"""

import sys
import threading
import time

import msgspec
import zmq


class ArrayStored(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, tag="BlockStored"):
    block_hashes: list
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list | None = None


class ArrayRemoved(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, tag="BlockRemoved"):
    block_hashes: list
    medium: str | None


class ArrayCleared(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, tag="AllBlocksCleared"):
    pass


class MapStored(msgspec.Struct, omit_defaults=True, gc=False, tag="BlockStored"):
    block_hashes: list
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None
    lookahead_token_ids: list | None = None


class MapRemoved(msgspec.Struct, omit_defaults=True, gc=False, tag="BlockRemoved"):
    block_hashes: list
    medium: str | None
    group_idx: int | None = None


class MapCleared(msgspec.Struct, omit_defaults=True, gc=False, tag="AllBlocksCleared"):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list
    data_parallel_rank: int | None = None


FORMATS = {
    "array": (ArrayStored, ArrayRemoved, ArrayCleared, int),
    "map": (MapStored, MapRemoved, MapCleared, int),
    # VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0
    "bytes": (MapStored, MapRemoved, MapCleared, lambda n: n.to_bytes(32, "big")),
}
END = (-1).to_bytes(8, "big", signed=True)

context = zmq.Context()
pub = context.socket(zmq.PUB)
pub_port = pub.bind_to_random_port("tcp://127.0.0.1")
router = context.socket(zmq.ROUTER)
router.setsockopt(zmq.SNDHWM, 0)
router_port = router.bind_to_random_port("tcp://127.0.0.1")
buffer = []


def replay():
    while True:
        identity, empty, start = router.recv_multipart()
        assert empty == b""
        for seq, payload in list(buffer):
            if seq >= int.from_bytes(start, "big"):
                router.send_multipart((identity, b"", b"topic", seq.to_bytes(8, "big"), payload))
        router.send_multipart((identity, b"", b"", END, b""))


threading.Thread(target=replay, daemon=True).start()
print(pub_port, router_port, flush=True)
hidden = 0
for line in sys.stdin:
    command, *args = line.split()
    if command == "connect":
        monitor = pub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        pub.connect(args[0])
        monitor.recv_multipart()
        pub.disable_monitor()
        print("ok", flush=True)
        continue
    if command == "hide":
        hidden = int(args[0])
        print("ok", flush=True)
        continue
    stored, removed, cleared, name = FORMATS[args[0]]
    if command == "publish":
        n = int(args[1])
        event = stored([name(i + 1) for i in range(n)], None, [i + 1 for i in range(n)], 1, None, "GPU", None)
    elif command == "remove":
        event = removed([name(int(args[1]))], "GPU")
    else:
        event = cleared()
    seq = len(buffer)
    payload = msgspec.msgpack.encode(Batch(time.time(), [event], 0))
    buffer.append((seq, payload))
    if hidden:
        hidden -= 1
    else:
        pub.send_multipart((b"topic", seq.to_bytes(8, "big"), payload))
    print("ok", flush=True)
