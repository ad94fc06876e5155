# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A double: stands for llama-server where a unit test needs one and computing is not the point.

It speaks HTTP as llama-server does for /health, /v1/completions and /v1/chat/completions, with streams; every answer is
"one two three". Files in $STANDIN say what goes wrong: `loading` (not ready while it is there), `broken` (ends at
once), `hold` (streams stop after the first word while it is there). It writes its arguments to `arguments.json`.
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


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        loading = (CONTROL / "loading").exists()
        self.answer(503 if loading else 200, {"status": "loading" if loading else "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
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
