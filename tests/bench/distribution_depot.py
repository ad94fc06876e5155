#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The depot of the bench distribution.py where there is no nginx: hands out blobs and torrents over TLS to holders of a certificate."""

from __future__ import annotations

import re
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

root, address, port, certificate, key, ca = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(root + self.path)
        if not re.fullmatch(r"/(blobs|torrents)/sha256/[0-9a-f]{64}(\.torrent)?", self.path) or not path.is_file():
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = path.stat().st_size
        first, end = (int(asked[1]), int(asked[2] or size - 1) + 1) if asked else (0, size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        with path.open("rb") as handle:
            handle.seek(first)
            while first < end and (data := handle.read(min(1 << 18, end - first))):
                self.wfile.write(data)
                first += len(data)

    def log_message(self, *_arguments) -> None:
        """Nobody reads it."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain(certificate, key)
server = Server((address, int(port)), Handler)
# The handshake is the connection's own thread's work, not that of the one that accepts.
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("ready", flush=True)
server.serve_forever()
