#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the gateway adds to the upstream direct, and to HAProxy with TLS and no policy: requests per second, latency.

The gateway is the role's own: it is applied to a host of a small fleet, with a plan, a token and all its rules. In
place of an engine stands an HAProxy with one fixed answer, so that the gateway is what is measured. wrk sends the
same request, over connections that stay open, to each of them in turn.
"""
from __future__ import annotations

import argparse
import http.client
import json
import operator
import os
import re
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import yaml
from harness import (
    HERE,
    REPO,
    STATE,
    BenchError,
    ansible_version,
    beside,
    fleet,
    main,
    on,
    playbook,
    report,
    rounds,
    run,
    say,
)

INVENTORY = HERE / "inventory" / "gateway.yml"
GATEWAY, UPSTREAM = "10.203.2.10", "10.203.2.21"
MODEL, BARE_PORT = "tiny", 9443
DIRECT, BARE = "upstream direct", "HAProxy, TLS only"
BY_BODY, BY_PATH = "gateway, model in body", "gateway, model in path"
# So much that no request is refused for its number: more than a catalog may grant.
CLIENT = {"name": "bench", "limits": {"requests_per_minute": 100_000_000, "concurrent": 10_000}}
MESSAGE = {"role": "assistant", "content": "A fleet is a number of hosts. " * 8}
ANSWER = {
    "id": "chatcmpl-bench",
    "object": "chat.completion",
    "created": 0,
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE}],
    "usage": {"prompt_tokens": 64, "completion_tokens": 64, "total_tokens": 128},
}
COLUMNS = {
    "target": "target",
    "body_bytes": "body",
    "requests_per_second": "req/s",
    "rate_to_direct": ": direct",
    "rate_to_tls_only": ": TLS only",
    "p50_ms": "p50 ms",
    "p50_ms_over_direct": "+ direct",
    "p50_ms_over_tls_only": "+ TLS only",
    "p99_ms": "p99 ms",
    "p99_ms_over_direct": "+ direct",
    "p99_ms_over_tls_only": "+ TLS only",
}


def plan() -> dict:
    """A real plan for one node; only its artifact and image are made up, because nothing is started from them."""
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import make_plan
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import engine_interfaces, wanted_releases

    engine = "llamacpp"
    profile = REPO / "plugins" / "module_utils" / "engine_profiles" / f"{engine}.yml"
    profiles = {engine: yaml.safe_load(profile.read_text())}
    digest = "0" * 64
    source = "file:///bench.gguf"
    wanted = {
        "name": MODEL,
        "version": "1.0.0",
        "versions": {"1.0.0": {"source": source}},
        "engine": engine,
        "context": 512,
        # More slots than wrk has connections: a queue would be measured in place of the gateway.
        "parallel": 128,
        "access": ["bench"],
    }
    models, _, faults = check_catalog([wanted], [{"name": "bench"}], profiles, ["answers"])
    if faults:
        raise BenchError("\n".join(fault.text() for fault in faults))
    file = {"path": "bench.gguf", "size": 1, "sha256": digest}
    lock = {
        "images": {engine: {"image": "bench/llamacpp", "digest": f"sha256:{digest}"}},
        "models": {MODEL: {"1.0.0": {"source": source, "format": "gguf", "size": 1, "files": [file]}}},
    }
    result = make_plan(
        models,
        wanted_releases(models, lock, profiles),
        engine_interfaces(profiles, [engine]),
        [{"name": "answers", "address": UPSTREAM, "gpus": [], "reachable": True}],
        None,
    )
    if result.faults or len(result.plan["instances"]) != 1:
        raise BenchError(f"the bench's own plan is wrong: {result.faults} {result.plan['instances']}")
    return result.plan


def start_haproxy(host: str, template: Path, **values: object) -> None:
    """Start an HAProxy of the bench's own on a host, beside whatever runs there."""
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    target = f"/run/bench-{template.name}"
    on(host, f"[ ! -f {target}.pid ] || kill $(cat {target}.pid) || true\ncat > {target} <<'END'\n{text}END\n")
    on(host, f"haproxy -D -f {target} -p {target}.pid")


def prepare() -> tuple[str, int]:
    """Bring up upstream, gateway and bare HAProxy; return a token and the upstream's port."""
    bench_plan = plan()
    port = bench_plan["instances"][0]["port"]
    answer = "/run/bench-answer.json"
    on("answers", f"cat > {answer} <<'END'\n{json.dumps(ANSWER)}\nEND")
    start_haproxy("answers", HERE / "upstream.cfg", port=port, model=MODEL, answer=answer)
    say("applying the role gateway")
    variables = STATE / "plan.json"
    variables.write_text(json.dumps({"bench_plan": bench_plan, "bench_clients": [CLIENT]}))
    playbook(HERE / "gateway.yml", INVENTORY, "-e", f"@{variables}")
    config = on("gw1", "cat /etc/haproxy/haproxy.cfg")
    certificate = re.search(r"^\s*bind .*? crt (\S+)", config, re.MULTILINE)
    if not certificate:
        raise BenchError("the gateway's configuration names no certificate")
    values = {"bare_port": BARE_PORT, "certificate": certificate[1], "upstream": UPSTREAM, "port": port}
    start_haproxy("gw1", HERE / "bare.cfg", **values)
    file = STATE / "token"
    # The playbook leaves a file that is there alone, and its token would be an earlier fleet's.
    file.unlink(missing_ok=True)
    issue = ("-e", "do=issue", "-e", "client=bench", "-e", f"token_file={file}")
    playbook(REPO / "playbooks" / "tokens.yml", INVENTORY, *issue)
    return file.read_text().strip(), port


def body(size: int) -> str:
    """A question of about so many bytes, the model's name in front as common clients send it."""
    around = json.dumps({"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "TEXT"}]})
    return around.replace("TEXT", ("What is a fleet? " * size)[: max(1, size - len(around) + len("TEXT"))])


def expect_answer(url: str, token: str, text: str) -> None:
    """Each of them must give the upstream's answer: a refusal would be measured as a quick one."""
    scheme, host, path = re.fullmatch(r"(https?)://([^/]+)(/.*)", url).groups()
    context = ssl._create_unverified_context() if scheme == "https" else None
    deadline = time.monotonic() + 60
    while True:
        if context:
            connection = http.client.HTTPSConnection(host, timeout=10, context=context)
        else:
            connection = http.client.HTTPConnection(host, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request("POST", path, text, headers)
            response = connection.getresponse()
            status, found = response.status, response.read()
        except OSError as error:
            status, found = 0, str(error).encode()
        finally:
            connection.close()
        if status == 200 and json.loads(found) == ANSWER:
            return
        # Servers enter drained and become ready after the probe.
        if time.monotonic() > deadline:
            raise BenchError(f"{url} gives {status} {found[:300]!r} in place of the upstream's answer")
        time.sleep(0.5)


def load(url: str, token: str, text: str, connections: int, duration: int, pause: int = 0) -> dict:
    """What wrk saw: requests per second, and p50 and p99 of the time to the whole answer in ms."""
    environment = {**os.environ, "BENCH_TOKEN": token, "BENCH_BODY": text, "BENCH_PAUSE_MS": str(pause)}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "10s", "-s", HERE / "request.lua", url]
    output = run(*command, env=environment)
    seen = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
    if seen["refused"] or seen["broken"] or not seen["requests"]:
        raise BenchError(f"{url}: {seen['refused']} of {seen['requests']} requests refused, {seen['broken']} broken")
    rate = seen["requests"] / seen["microseconds"] * 1e6
    return {"rate": rate, "p50": seen["p50_us"] / 1000, "p99": seen["p99_us"] / 1000}


def measure(token: str, port: int, options: argparse.Namespace) -> list[dict]:
    urls = {
        DIRECT: f"http://{UPSTREAM}:{port}/v1/chat/completions",
        BARE: f"https://{GATEWAY}:{BARE_PORT}/v1/chat/completions",
        BY_BODY: f"https://{GATEWAY}:443/v1/chat/completions",
        BY_PATH: f"https://{GATEWAY}:443/m/{MODEL}/v1/chat/completions",
    }

    def case(url: str, text: str):
        def both() -> dict:
            full = load(url, token, text, options.connections, options.seconds)
            # Below saturation, or the figure would be the queue's length.
            calm = load(url, token, text, 4, options.seconds, pause=options.pause)
            return {"requests_per_second": full["rate"], "p50_ms": calm["p50"], "p99_ms": calm["p99"]}

        return both

    rows = []
    for size in options.bodies:
        text = body(size)
        for url in urls.values():
            expect_answer(url, token, text)
        say(f"questions of {len(text)} bytes")
        found = rounds(options.rounds, {name: case(url, text) for name, url in urls.items()})
        for name, figures in found.items():
            row = {"target": name, "body_bytes": len(text), **figures}
            for short, other in (("direct", found[DIRECT]), ("tls_only", found[BARE])):
                row[f"rate_to_{short}"] = beside(figures, other, "requests_per_second", operator.truediv)
                for quantile in ("p50_ms", "p99_ms"):
                    row[f"{quantile}_over_{short}"] = beside(figures, other, quantile, operator.sub)
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def bench() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--rounds", type=int, default=5, help="how often each target is measured, in turn")
    cli.add_argument("--seconds", type=int, default=2, help="how long each measurement takes")
    cli.add_argument("--connections", type=int, default=32, help="connections for requests per second")
    cli.add_argument("--pause", type=int, default=10, help="ms between requests of one of 4 connections, for latency")
    cli.add_argument("--bodies", type=int, nargs="+", default=[512, 8192], help="sizes of the question in bytes")
    cli.add_argument("--keep", action="store_true", help="leave the fleet for another run")
    options = cli.parse_args()
    if not shutil.which("wrk"):
        raise BenchError("wrk is not installed: apt-get install wrk")
    with fleet(INVENTORY, options.keep):
        token, port = prepare()
        rows = measure(token, port, options)
        haproxy = on("gw1", "haproxy -v").splitlines()[0]
    # Prints its version and then ends with 1.
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split(" Copyright")[0]
    report(
        "gateway",
        COLUMNS,
        rows,
        {"haproxy": haproxy, "wrk": wrk, "ansible": ansible_version()},
        [
            f"req/s: {options.connections} connections, as fast as they go; ': x' is the ratio to x",
            f"p50, p99: 4 connections, at most {4000 // options.pause} requests/s; '+ x' are the ms more than x",
            f"medians of {options.rounds} rounds, compared within each round; connections stay open, so no TLS handshake is in it",
            "load, gateway and upstream share the cores of one machine",
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main(bench))
