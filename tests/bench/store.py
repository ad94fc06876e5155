#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What it costs to verify a store, beside `openssl dgst -sha256` of the same file, and to stage a version that shares most of another.

The first is a matter of time, measured in turn within each round. The second is a matter of bytes: all that a server
of this bench writes to its sockets, headers included, beside the size of the files that differ.
"""
from __future__ import annotations

import argparse
import hashlib
import shutil
import ssl
import statistics
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness import BenchError, beside, main, report, rounds, run, say, seconds

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.origins import Suppliers
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_verify import Verification
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import DIRECT, Web

MIB = 1 << 20
SHARDS = 10  # of which a new version changes one: it shares 90 % of its bytes
MOST_MOVED = 1.02


class CountingServer:
    """Serves blobs as a depot does, and counts every byte that it sends: status lines and headers, too."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.sent = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = blobs[self.path.rpartition("/")[2]]
                self.send_response(200)
                self.send_header("ETag", f'"{self.path}"')
                self.send_header("Content-Length", str(len(body)))
                head = b"".join(self._headers_buffer) + b"\r\n"
                self.end_headers()
                self.wfile.write(body)
                owner.sent += len(head) + len(body)

            def log_message(self, *_arguments) -> None:
                """Nobody reads it."""

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def __enter__(self) -> CountingServer:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


def random_bytes(seed: int, size: int) -> bytes:
    """Cheap bytes that no two seeds share."""
    return hashlib.shake_128(str(seed).encode()).digest(min(size, MIB)) * (size // min(size, MIB))


def artifact(version: str, files: dict[str, bytes]) -> Artifact:
    entries = [{"path": path, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()} for path, body in files.items()]
    return Artifact.parse("bench", version, "", entries)


def stage(store: Store, server: CountingServer, *artifacts: Artifact) -> int:
    """Stage artifacts and return the bytes that the server sent for it."""
    before = server.sent
    Staging(store, artifacts).run(Fetcher([Suppliers([server.url], Web(proxy=DIRECT))]))
    return server.sent - before


def read_by_this_process() -> int:
    """Bytes that this process has read so far, from a disk or not."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, value = line.split(": ")
        if name == "rchar":
            return int(value)
    raise BenchError("/proc/self/io has no rchar")


def verifying(folder: Path, size: int, count: int) -> dict:
    """MB/s of a verification, and of openssl on the same blob; and how often each byte was read."""
    body = random_bytes(1, size)
    wanted = artifact("1.0.0", {"model.gguf": body})
    store = Store(folder / "verify")
    with CountingServer({wanted.files[0].sha256: body}) as server:
        stage(store, server, wanted)
    blob = store.blob(wanted.files[0])

    def verify() -> dict:
        found = None

        def whole() -> None:
            nonlocal found
            found = Verification(store).run()

        before, took = read_by_this_process(), seconds(whole)
        if found.damaged or found.bytes_read != size:
            raise BenchError(f"this was no verification of a sound store: {found}")
        return {"rate": size / took / 1e6, "read": (read_by_this_process() - before) / size}

    def openssl() -> dict:
        took = seconds(lambda: run("openssl", "dgst", "-sha256", blob))
        return {"rate": size / took / 1e6}

    run("openssl", "dgst", "-sha256", blob)  # from here on the file is in memory, for both
    return rounds(count, {"verify": verify, "openssl": openssl})


def sharing(folder: Path, shard: int, count: int) -> dict:
    """Bytes on the wire for a version that shares nine of ten shards with one that is there."""
    old = {f"model-{n}.safetensors": random_bytes(10 + n, shard) for n in range(SHARDS)}
    new = {**old, "model-0.safetensors": random_bytes(99, shard)}
    first, second = artifact("1.0.0", old), artifact("1.1.0", new)
    blobs = {hashlib.sha256(body).hexdigest(): body for body in (*old.values(), *new.values())}
    difference = sum(file.size for file in second.contents if file not in first.contents)

    def measure() -> dict:
        root = folder / "share"
        shutil.rmtree(root, ignore_errors=True)
        with CountingServer(blobs) as server:
            stage(Store(root), server, first)
            moved = 0

            def update() -> None:
                nonlocal moved
                moved = stage(Store(root), server, second)

            took = seconds(update)
            if stage(Store(root), server, first, second):
                raise BenchError("a host that has all of it was sent something")
        return {"moved": moved, "ratio": moved / difference, "seconds": took}

    return {"difference": difference, **rounds(count, {"update": measure})["update"]}


def bench() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--rounds", type=int, default=7, help="how often each is measured, in turn")
    cli.add_argument("--mib", type=int, default=512, help="size of the file that is verified")
    options = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-fleet-bench-") as name:
        say(f"verifying {options.mib} MiB")
        found = verifying(Path(name), options.mib * MIB, options.rounds)
        say("staging a version that shares 90 %")
        shared = sharing(Path(name), 16 * MIB, min(options.rounds, 3))
    ours, theirs = found["verify"], found["openssl"]
    ratio = beside(ours, theirs, "rate", lambda one, other: one / other)
    rows = [
        {
            "what": "verify: MB/s, beside openssl",
            "ours": ours["rate"],
            "beside": theirs["rate"],
            "ratio": ratio,
            "rounds": {"ours": ours["rounds"], "beside": theirs["rounds"]},
        },
        {"what": "verify: reads of each byte", "ours": ours["read"], "beside": 1.0, "ratio": ours["read"], "rounds": ours["rounds"]},
        {
            "what": "update: bytes on the wire, beside the difference",
            "ours": float(shared["moved"]),
            "beside": float(shared["difference"]),
            "ratio": shared["ratio"],
            "rounds": shared["rounds"],
        },
    ]
    report(
        "store",
        {"what": "what", "ours": "here", "beside": "beside", "ratio": "ratio"},
        [{**row, **{key: round(row[key], 4) for key in ("ours", "beside", "ratio")}} for row in rows],
        {"openssl": run("openssl", "version").strip(), "openssl_of_python": ssl.OPENSSL_VERSION},
        [
            f"verify: model_verify's reading of a store with one file of {options.mib} MiB, beside `openssl dgst -sha256` of that file",
            f"medians of {options.rounds} rounds, compared within each round; the file is in memory for both",
            f"update: a version of {SHARDS} files of which one differs, beside the size of that one; at most {MOST_MOVED} is allowed",
        ],
    )
    worst = max(each["ratio"] for each in shared["rounds"])
    if worst > MOST_MOVED:
        raise BenchError(f"an update moved {worst:.3f} of the difference, and {MOST_MOVED} is allowed")
    if statistics.median(each["read"] for each in ours["rounds"]) > MOST_MOVED:
        raise BenchError(f"verifying read each byte {ours['read']:.2f} times")


if __name__ == "__main__":
    raise SystemExit(main(bench))
