#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for NVIDIA's DCGM exporter, whose image cannot be had offline, and for the GPUs that it measures.

It does what the original (4.5) does:
  * options --collectors (-f), --address (-a), --collect-interval (-c), --devices (-d), --no-hostname (-n), --web-config-file, and the
    environment variables that set the same; NODE_NAME as the host's name;
  * the list of counters as comma-separated values with comments; a line that has not three fields, is no field of DCGM or has no type of
    Prometheus' ends it at its start;
  * /metrics with the labels gpu, UUID, pci_bus_id, device, modelName and Hostname, with GPU_I_PROFILE and GPU_I_ID for each MIG
    instance of a GPU that has any, and fields of type `label` as labels of all others; /health, and a page at /;
  * exporter-toolkit's web configuration: TLS with the certificate as it is when a connection begins, users with bcrypt hashes as they are
    when a request comes, 401 for everybody else and for every path.
Which GPUs there are, and how they fare, stands in the scenario of the double nvidia-smi: /etc/testbed/gpus.json (or $TESTBED_GPUS), read at
every request. A lost GPU has no metrics, a field that it cannot tell has none for that GPU.
It leaves out: everything of Kubernetes, NVSwitches, links and processors, fields other than those in `measure`, HTTP/2, the rest of the
web configuration. Numbers that the scenario does not give are made up and do not move.

The real thing: dcgm_exporter_image names it, and nothing else changes.
Needs python3-yaml and the C library's bcrypt.
"""
from __future__ import annotations

import argparse
import base64
import csv
import ctypes
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

SCENARIO = Path(os.environ.get("TESTBED_GPUS", "/etc/testbed/gpus.json"))
VERSION = Path("/usr/lib/testbed-nvidia/library-version")
FIELD = re.compile(r"DCGM_(FI|EXP)_[A-Z0-9_]+")
KINDS = {"gauge", "counter", "histogram", "summary", "label"}
HASH = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
# Compared where the user is unknown, so that an answer takes as long.
NOBODY = "$2y$10$CCCCCCCCCCCCCCCCCCCCC." + "a" * 31
PAGE = "<html><head><title>GPU Exporter</title></head><body><h1>GPU Exporter</h1><p><a href=\"./metrics\">Metrics</a></p></body></html>"


class Stop(Exception):
    """What the original says before it ends."""


def log(level: str, text: str) -> None:
    print(f"time={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} level={level} msg={json.dumps(text)}", file=sys.stderr, flush=True)


def read_counters(path: str) -> list[tuple[str, str, str]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Stop(f"Could not read metrics file '{path}'; err: {error}") from error
    found = []
    for record in csv.reader(line for line in lines if line.strip() and not line.startswith("#")):
        fields = tuple(field.strip(" ") for field in record)
        if len(fields) != 3:
            raise Stop(f"malformed CSV record; err: failed to parse line ({fields}), expected 3 fields")
        if not FIELD.fullmatch(fields[0]):
            raise Stop(f"could not find DCGM field; err: unknown ExporterCounter field '{fields[0]}'")
        if fields[1] not in KINDS:
            raise Stop(f"could not find Prometheus metric type '{fields[1]}'")
        found.append(fields)
    return found


class WebConfig:
    """The file as it is now; no file means neither TLS nor users."""

    _lock = threading.Lock()  # crypt(3) has one buffer for all

    def __init__(self, path: str) -> None:
        self.path = Path(path) if path else None

    def read(self) -> dict:
        if self.path is None:
            return {}
        try:
            return yaml.safe_load(self.path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise Stop(f"unable to read the web configuration {self.path}: {error}") from error

    def check(self) -> None:
        config = self.read()
        unknown = set(config) - {"tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"}
        if unknown:
            raise Stop(f"field {sorted(unknown)[0]} not found in type web.Config")
        for text in (config.get("basic_auth_users") or {}).values():
            if not HASH.fullmatch(str(text)):
                raise Stop("crypto/bcrypt: hashedSecret too short to be a bcrypted password")
        self.tls()

    def tls(self) -> ssl.SSLContext | None:
        settings = self.read().get("tls_server_config")
        if not settings:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        cert, key = (self.path.parent / settings[name] for name in ("cert_file", "key_file"))
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise Stop(f"failed to load X509KeyPair: {cert}, {key}: {error}") from error
        return context

    def allows(self, header: str) -> bool:
        users = self.read().get("basic_auth_users") or {}
        if not users:
            return True
        kind, _space, text = header.partition(" ")
        try:
            name, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except ValueError:
            return False
        if kind.lower() != "basic" or not colon:
            return False
        known = str(users.get(name, NOBODY))
        with self._lock:
            library = ctypes.CDLL("libcrypt.so.1")
            library.crypt.restype = ctypes.c_char_p
            made = library.crypt(password.encode(), known.encode()) or b""
        return name in users and made.decode() == known


def measure(gpu: dict, scenario: dict) -> dict[str, float | str | None]:
    """What DCGM says of a GPU, by field. None: it cannot tell."""
    apps = [app for app in scenario.get("apps", []) if app["uuid"] == gpu["uuid"]]
    used = gpu.get("memory_used", 0) + sum(app["memory"] for app in apps)
    errors, ecc = gpu.get("errors", {}), gpu.get("ecc")
    xids = [xid["code"] for xid in scenario.get("xids", []) if gpu["address"].startswith(xid["address"])]
    draw, busy = gpu.get("power", {}).get("draw"), bool(apps)
    seconds = int(float(Path("/proc/uptime").read_text().split()[0]))
    return {
        "DCGM_FI_DEV_GPU_UTIL": gpu.get("utilization", 100 if busy else 0),
        "DCGM_FI_DEV_MEM_COPY_UTIL": 40 if busy else 0,
        "DCGM_FI_DEV_FB_USED": used,
        "DCGM_FI_DEV_FB_FREE": gpu["memory"] - used,
        "DCGM_FI_DEV_GPU_TEMP": gpu.get("temperature"),
        "DCGM_FI_DEV_MEMORY_TEMP": gpu.get("temperature") if ecc is not None else None,
        "DCGM_FI_DEV_POWER_USAGE": draw,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": None if draw is None else int(draw * 1000) * seconds,
        "DCGM_FI_DEV_SM_CLOCK": 1980 if busy else 345,
        "DCGM_FI_DEV_MEM_CLOCK": 2619,
        "DCGM_FI_DEV_POWER_VIOLATION": 0,
        "DCGM_FI_DEV_THERMAL_VIOLATION": 0,
        "DCGM_FI_DEV_XID_ERRORS": xids[-1] if xids else 0,
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": errors.get("corrected", 0) if ecc else None,
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": errors.get("uncorrected", 0) if ecc else None,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0 if ecc else None,
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 0 if ecc else None,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0 if ecc else None,
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 0,
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": 0 if gpu.get("nvlink") else None,
        "DCGM_FI_DRIVER_VERSION": scenario.get("driver") or (VERSION.read_text().strip() if VERSION.exists() else "580.95.05"),
    }


def measure_instance(gpu: dict, instance: dict, whole: dict) -> dict:
    """What DCGM says of a MIG instance: the GPU's values, but its own memory, and no utilisation of the GPU as a whole."""
    memory = gpu["memory"] * instance.get("slices", 1) // 8
    own = {"DCGM_FI_DEV_GPU_UTIL": None, "DCGM_FI_DEV_MEM_COPY_UTIL": None, "DCGM_FI_DEV_FB_USED": 12, "DCGM_FI_DEV_FB_FREE": memory - 12}
    return {**whole, **own}


class Exporter:
    def __init__(self, options: argparse.Namespace) -> None:
        self.counters = read_counters(options.collectors)
        self.web = WebConfig(options.web_config_file)
        self.hostname = "" if options.no_hostname else os.environ.get("NODE_NAME") or socket.gethostname()
        self.whole_gpus = options.devices.startswith("g")
        self.web.check()
        if not self.scenario().get("gpus"):
            raise Stop("Failed to initialize NVML; err: no GPU")

    @staticmethod
    def scenario() -> dict:
        return json.loads(SCENARIO.read_text(encoding="utf-8")) if SCENARIO.exists() else {}

    def devices(self):
        """Labels and values of all that is measured: instances where a GPU has any, else the GPU."""
        scenario = self.scenario()
        there = [gpu for gpu in scenario.get("gpus", []) if gpu.get("lost") != "bus"]
        for index, gpu in enumerate(there):
            if gpu.get("lost"):
                continue
            values = measure(gpu, scenario)
            labels = {"gpu": index, "UUID": gpu["uuid"], "pci_bus_id": f"0000{gpu['address']}".upper(), "device": f"nvidia{index}",
                      "modelName": gpu["name"]}
            instances = gpu.get("instances", []) if gpu.get("mig") and not self.whole_gpus else []
            for instance in instances:
                own = {"GPU_I_PROFILE": instance["profile"], "GPU_I_ID": instance["id"]}
                yield {**labels, **own}, measure_instance(gpu, instance, values)
            if not instances:
                yield labels, values

    def metrics(self) -> str:
        found = list(self.devices())
        constant = [name for name, kind, _text in self.counters if kind == "label"]
        lines = []
        for name, kind, text in self.counters:
            rows = [(labels, values) for labels, values in found if values.get(name) is not None]
            if kind == "label" or not rows:
                continue
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for labels, values in rows:
                more = {"Hostname": self.hostname} if self.hostname else {}
                more |= {label: values[label] for label in constant if values.get(label)}
                shown = ",".join(f'{key}="{value}"' for key, value in {**labels, **more}.items())
                lines.append(f"{name}{{{shown}}} {values[name]}")
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    exporter: Exporter

    def setup(self) -> None:
        context = self.exporter.web.tls()
        if context is not None:
            self.request.settimeout(self.timeout)
            self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        try:
            self.serve()
        except Stop as stop:
            log("ERROR", f"Unable to parse configuration: {stop}")
            self.answer(500, "Internal Server Error\n", {})

    def serve(self) -> None:
        if not self.exporter.web.allows(self.headers.get("Authorization", "")):
            self.answer(401, "Unauthorized\n", {"WWW-Authenticate": "Basic"})
        elif self.path == "/metrics":
            self.answer(200, self.exporter.metrics(), {"Content-Type": "text/plain; charset=utf-8"})
        elif self.path == "/health":
            self.answer(200, "OK", {"X-Registry-Available": "true"})
        elif self.path == "/":
            self.answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        else:
            self.answer(404, "404 page not found\n", {})

    def answer(self, status: int, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form: str, *arguments) -> None:
        """The original logs no requests."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request, client_address) -> None:
        """A client that breaks off or has no TLS is no reason to end."""
        log("DEBUG", f"http: error from {client_address[0]}: {sys.exc_info()[1]}")


def options(arguments: list[str]) -> argparse.Namespace:
    known = os.environ.get
    cli = argparse.ArgumentParser(prog="dcgm-exporter", allow_abbrev=False)
    cli.add_argument("-f", "--collectors", default=known("DCGM_EXPORTER_COLLECTORS", "/etc/dcgm-exporter/default-counters.csv"))
    cli.add_argument("-a", "--address", default=known("DCGM_EXPORTER_LISTEN", ":9400"))
    cli.add_argument("-c", "--collect-interval", type=int, default=int(known("DCGM_EXPORTER_INTERVAL", "30000")))
    cli.add_argument("-d", "--devices", default=known("DCGM_EXPORTER_DEVICES_STR", "f"))
    cli.add_argument("-n", "--no-hostname", action="store_true", default=known("DCGM_EXPORTER_NO_HOSTNAME", "") == "true")
    cli.add_argument("--web-config-file", default=known("DCGM_EXPORTER_WEB_CONFIG_FILE", ""))
    return cli.parse_args(arguments)


def main() -> int:
    asked = options(sys.argv[1:])
    log("INFO", "Starting dcgm-exporter")
    try:
        Handler.exporter = exporter = Exporter(asked)
    except Stop as stop:
        log("ERROR", str(stop))
        return 1
    host, _colon, port = asked.address.rpartition(":")
    server = Server((host.strip("[]") or "0.0.0.0", int(port)), Handler)
    log("INFO", f"Listening on address={asked.address}")
    log("INFO", f"TLS is {'disabled' if exporter.web.tls() is None else 'enabled'}.")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
