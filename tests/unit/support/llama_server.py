# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A double: stands for llama-server where a unit test needs one and computing is not the point.

It speaks HTTP as llama-server does for /health, /v1/completions and /v1/chat/completions, with streams, and for /v1/embeddings,
/tokenize and /apply-template; every answer is "one two three", every word is a token. Files in $STANDIN say what goes wrong:
`loading` (not ready while it is there), `broken` (ends at once), `hold` (streams stop after the first word while it is
there). It writes its arguments to `arguments.json`.
It leaves out everything else: the testbed's image has the real thing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONTROL = Path(os.environ["STANDIN"])
WORDS = ("one ", "two ", "three")


def tokens(asked: dict) -> dict:
    return {"tokens": [{"id": number, "piece": word} for number, word in enumerate(asked["content"].split())]}


def embeddings(asked: dict) -> dict:
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    data = [{"embedding": [0.5, float(len(text))], "index": number} for number, text in enumerate(texts)]
    return {"data": data, "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)}}


OTHERS = {
    "/tokenize": tokens,
    "/apply-template": lambda asked: {"prompt": " ".join(message["content"] for message in asked["messages"])},
    "/v1/embeddings": embeddings,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        loading = (CONTROL / "loading").exists()
        self.answer(503 if loading else 200, {"status": "loading" if loading else "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path in OTHERS:
            try:
                return self.answer(200, OTHERS[self.path](asked))
            except TypeError:
                return self.answer(400, {"error": {"code": 400, "message": "that is no text", "type": "invalid_request_error"}})
        chat = self.path == "/v1/chat/completions"
        if not asked.get("stream"):
            text = "".join(WORDS)
            return self.answer(200, {"choices": [{"message": {"content": text}} if chat else {"text": text}]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in WORDS:
            self.event(json.dumps({"choices": [{"delta": {"content": word}} if chat else {"text": word}]}))
            while (CONTROL / "hold").exists():
                time.sleep(0.02)
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.event(json.dumps({"choices": [{"delta": {}, "text": "", "finish_reason": "stop"}]}))
            self.event(json.dumps({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self, status: int, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments) -> None:
        pass


if __name__ == "__main__":
    (CONTROL / "arguments.json").write_text(json.dumps(sys.argv[1:]))
    (CONTROL / "pid").write_text(str(os.getpid()))
    if (CONTROL / "broken").exists():
        sys.exit(3)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
