#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Keeps the state of HAProxy's servers over reloads, restarts and crashes.

    haproxy-state dump         write the state file: what HAProxy says now, or said last
    haproxy-state reload PID   dump, let the master process PID load its configuration, wait for the new worker

HAProxy forgets a drain at each reload unless a file tells it, and takes a server that it has not seen before
for one that is up. So each server of the configuration gets a line in that file, and a new one is drained there:
it gets its first request when somebody has seen that it answers, and not before.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

HEADER = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port\n"
)
# Down until its health check has passed, and drained (8) until somebody says that it is ready.
NEW = "1 {backend} 1 {server} {address} 0 8 1 1 0 1 0 0 6 0 0 0 - {port} - 0 0 - - 0"


def ask(path: str, command: str) -> str:
    """What HAProxy answers on its runtime socket; nothing where it does not run."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        try:
            sock.connect(path)
            sock.sendall(f"{command}\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        except OSError:
            return ""
    return answer.decode()


def configured(text: str) -> list:
    """(backend, server, address, port) of each server of a configuration."""
    servers, section = [], ""
    for words in map(str.split, text.splitlines()):
        if words[:1] == ["server"] and section:
            address, _colon, port = words[2].rpartition(":")
            servers.append((section, words[1], address.strip("[]"), port))
        elif words and words[0] in ("global", "defaults", "frontend", "backend", "listen", "peers"):
            section = words[1] if words[0] in ("backend", "listen") else ""
    return servers


def known(text: str) -> dict:
    """{(backend, server, address, port): line} of a dump or state file."""
    lines = [line for line in text.splitlines() if len(line.split()) > 18 and not line.startswith("#")]
    return {(words[1], words[3], words[4], words[18]): line for line in lines for words in [line.split()]}


def merge(config: str, dump: str) -> str:
    """The state file for a configuration: each of its servers as it was, or drained where it is new."""
    lines = known(dump)
    servers = configured(config)
    new = {key: NEW.format(backend=key[0], server=key[1], address=key[2], port=key[3]) for key in servers}
    return HEADER + "".join(f"{lines.get(key, new[key])}\n" for key in servers)


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def worker(path: str) -> str:
    """The process id of the worker that answers on the runtime socket."""
    info = dict(line.split(": ", 1) for line in ask(path, "show info").splitlines() if ": " in line)
    return info.get("Pid", "")


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["dump", "reload"])
    parser.add_argument("pid", type=int, nargs="?")
    parser.add_argument("--config", type=Path, default=Path("/etc/haproxy/haproxy.cfg"))
    parser.add_argument("--socket", default="/run/haproxy/admin.sock")
    parser.add_argument("--state", type=Path, default=Path("/var/lib/llm_fleet/haproxy.state"))
    parser.add_argument("--timeout", type=float, default=60)
    args = parser.parse_args()
    dump = ask(args.socket, "show servers state")
    if not dump and args.state.exists():
        dump = args.state.read_text()
    write(args.state, merge(args.config.read_text(), dump))
    if args.action == "dump":
        return ""
    old = worker(args.socket)
    os.kill(args.pid, signal.SIGUSR2)
    end = time.monotonic() + args.timeout
    while worker(args.socket) in ("", old):
        if time.monotonic() > end:
            return "HAProxy did not load its new configuration; the old one goes on. See: journalctl -u haproxy"
        time.sleep(0.1)
    return ""


if __name__ == "__main__":
    sys.exit(main() or 0)
