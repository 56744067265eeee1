"""A tokenizer server with vLLM's /tokenize, over the tokenizers that PyPI's
mistral-common carries.

    python mistral_server.py [--delay SECONDS]

It listens on a free port of 127.0.0.1 and prints one line of JSON with its
address. The models are v3, v7 and tekken. It ends when its standard input does.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
import mistral_common

DATA = os.path.join(os.path.dirname(mistral_common.__file__), "data")
FILES = {
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240911.json",
}
tokenizers = {}
lock = threading.Lock()


def tokenizer(model):
    with lock:
        if model not in tokenizers:
            tokenizers[model] = MistralTokenizer.from_file(os.path.join(DATA, FILES[model]))
        return tokenizers[model]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    delay = 0.0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.delay)
        if self.path != "/tokenize" or body.get("model") not in FILES:
            return self.answer(404, {"error": {"message": "no such model or path"}})
        t = tokenizer(body["model"])
        try:
            if "prompt" in body:
                ids = t.instruct_tokenizer.tokenizer.encode(body["prompt"], bos=body.get("add_special_tokens", True), eos=False)
            else:
                request = {"messages": body["messages"], "tools": body.get("tools")}
                ids = t.encode_chat_completion(ChatCompletionRequest.model_validate(request)).tokens
        except Exception as e:  # the library's many ways to refuse a prompt
            return self.answer(400, {"error": {"message": str(e)}})
        try:
            self.answer(200, {"count": len(ids), "max_model_len": 32768, "tokens": ids, "token_strs": None})
        except BrokenPipeError:
            pass  # the client has given up

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    Handler.delay = parser.parse_args().delay
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(json.dumps({"http": "127.0.0.1:%d" % server.server_address[1]}), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    server.shutdown()


main()
