#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What clients notice of a rollout, what it costs beyond loading and draining, and how soon a bad release is gone.

Two gateways, three nodes, one replica on each; clients stream through both gateways all the while. Four runs, one after the
other: site.yml with nothing to do (so much does a playbook on the same machine disturb clients), a surge to the next
version, a replacement back to the first, and a surge to a slow version that fails while its canary has clients.

The fleet is this bench's own, as in the others: it begins with nothing that an earlier test left, and takes nothing from
one that is at work. The bad version answers, and slowly: so its clients leave it because requests go elsewhere, and for no
other reason. One that crashes would be left at once by itself.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import (
    HERE,
    REPO,
    STATE,
    BenchError,
    ansible,
    ansible_version,
    fleet,
    main,
    on,
    playbook,
    report,
    run,
    say,
    seconds,
)
from rollout_times import rollback_times, rollout_times

from ansible_collections.localfirst.llm_fleet.tests.load.report import Report
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad, answer_prefix

INVENTORY = HERE / "inventory" / "rollout.yml"
GATEWAYS = ["10.203.2.10:443", "10.203.2.11:443"]
NODES = 3
MODEL, FIRST, SECOND, BAD = "talk", "1.0.0", "1.1.0", "2.0.0"
# People who read. Clients that ask without a pause would measure how the machine shares its time.
CLIENTS = {"tokens": (32, 160), "pause": 1.0, "seconds": 3600}
# Nothing is measured by probes: it is the requests of clients that find the bad release out.
FAILS_UNDER_CLIENTS = {
    "bench_gates": {"path": "none", "slowdown": 3},
    "bench_rollout": {"batches": [1, 2, 3], "canary": {"share": 33, "bake": "120s", "min_requests": 10}},
}
COLUMNS = {
    "what": "run",
    "total_s": "s",
    "streams": "streams",
    "broken": "broken",
    "other_faults": "other faults",
    "longest_stall_s": "stall s",
    "longest_first_token_s": "first token s",
    "fixed_s": "fixed s",
    "load_s": "load s",
    "drain_s": "drain s",
    "canary_s": "canary s",
    "overhead_s": "overhead s",
    "overhead_per_host_s": "per host",
    "setup_s": "setup s",
    "rollback_s": "rollback s",
}


def play(name: str, *variables: str) -> None:
    playbook(REPO / "playbooks" / f"{name}.yml", INVENTORY, *(part for one in variables for part in ("-e", one)))


def rolled_out(version: str, *variables: str) -> dict:
    """The report of a rollout, and its moments; one that was taken back has them, too."""
    file = STATE / "rollout.json"
    file.unlink(missing_ok=True)
    began = time.time()
    try:
        play("rollout", f"model={MODEL}", f"version={version}", f"report_file={file}", *variables)
    except BenchError:
        if not file.exists():
            raise
    return {"began": began, "ended": time.time(), **json.loads(file.read_text())}


def setup() -> float:
    """Seconds of one `ansible -m setup` on all hosts, as in the bench of site.yml: how quick this machine is right now."""
    def gather() -> str:
        return ansible("ansible", "gateways:gpu_nodes", "-i", INVENTORY, "-m", "ansible.builtin.setup")

    # Connections stay open for two minutes (ansible.cfg), and are opened here.
    gather()
    return seconds(gather)


class Bench:
    """The fleet with its clients."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.ca = STATE / "ca" / "ca.pem"
        file = STATE / "token"
        # The playbook leaves a file that is there alone, and its token would be an earlier fleet's.
        file.unlink(missing_ok=True)
        play("tokens", "do=issue", "client=bench", f"token_file={file}")
        self.token = file.read_text().strip()

    def watched(self, old: str, action: Callable[[], dict]) -> tuple[dict, dict, Report]:
        """What an action returned, the row of what clients saw meanwhile, and what they saw."""
        tell = {old: answer_prefix(GATEWAYS[0], self.ca, self.token, MODEL)}
        with StreamLoad(GATEWAYS, self.ca, self.token, [MODEL], clients=self.clients, tell=tell, **CLIENTS) as load:
            yardstick = setup()
            began = time.time()
            result = action()
            took = time.time() - began
        seen = load.report
        if len(seen.by_version) > 2:
            raise BenchError(f"answers of more than two versions: how they begin tells nothing: {sorted(seen.by_version)}")
        broken = seen.broken + seen.short + seen.duplicated
        row = {
            "total_s": took,
            "setup_s": yardstick,
            "streams": seen.requests,
            "broken": broken,
            "other_faults": seen.failed - broken,
            "longest_stall_s": seen.longest_stall_s,
            "longest_first_token_s": seen.longest_first_token_s,
            "ttft_p95_s": seen.ttft_p95_s,
            "faults": seen.faults,
        }
        say(f"{row['total_s']:.0f} s, {seen.requests} streams, {broken} broken, longest stall {seen.longest_stall_s:.2f} s")
        return result, row, seen

    def site(self) -> dict:
        say("clients beside site.yml, which changes nothing")
        _none, row, _seen = self.watched(FIRST, lambda: play("site") or {})
        return {"what": "site.yml, no change", **row}

    def good(self, strategy: str, old: str, new: str) -> dict:
        say(f"{strategy}: {old} -> {new}")
        told, row, _seen = self.watched(old, lambda: rolled_out(new, f"strategy={strategy}"))
        if told["outcome"] != "rolled out" or told["strategy"] != strategy:
            raise BenchError(f"this was no {strategy} that ended well: {told['outcome']}: {told['why']}")
        times = rollout_times(told["marks"], told["began"], told["ended"], NODES)
        ratio = times["overhead_per_host_s"] / row["setup_s"]
        return {"what": strategy, **row, **times, "overhead_per_host_in_setups": ratio, "marks": told["marks"]}

    def bad(self) -> dict:
        say(f"surge: {FIRST} -> {BAD}, which is slow")
        variables = STATE / "bad.json"
        variables.write_text(json.dumps(FAILS_UNDER_CLIENTS))
        told, row, seen = self.watched(FIRST, lambda: rolled_out(BAD, "strategy=surge", "retry_rejected=true", f"@{variables}"))
        if told["outcome"] != "taken back" or "slowdown" not in told["why"]:
            raise BenchError(f"the bad release was to fail by its slowness: {told['outcome']}: {told['why']}")
        times = rollback_times(told["marks"], seen.records, FIRST)
        return {"what": "surge, taken back", **row, **times, "why": told["why"], "marks": told["marks"]}


def runs_first() -> bool:
    """Whether the fleet is where this begins: it may have been kept by an earlier run that was broken off."""
    plan = json.loads(on("gw1", "cat /var/lib/llm_fleet/plan.json"))
    return plan["models"][MODEL]["version"] == FIRST and not plan["rollouts"]


def tidy(row: dict) -> dict:
    """A row with all columns, figures rounded."""
    whole = {**dict.fromkeys(COLUMNS), **row}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in whole.items()}


def headline(rows: dict[str, dict]) -> dict:
    """The figures that the aims are about; what is worse of both strategies."""
    good = [rows["surge"], rows["replace"]]
    stall, usual = max(row["longest_stall_s"] for row in good), rows["site"]["longest_stall_s"]
    return {
        "broken_streams": sum(row["broken"] for row in rows.values()),
        "longest_stall_s": stall,
        "longest_stall_without_rollout_s": usual,
        "longest_stall_ratio": round(stall / usual, 2),
        "overhead_per_host_s": max(row["overhead_per_host_s"] for row in good),
        "overhead_per_host_in_setups": max(row["overhead_per_host_in_setups"] for row in good),
        "rollback_s": rows["bad"]["rollback_s"],
    }


def bench() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--clients", type=int, default=6, help="how many stream at the same time")
    cli.add_argument("--keep", action="store_true", help="leave the fleet for another run")
    options = cli.parse_args()
    with fleet(INVENTORY, options.keep):
        say("supplying models, engine image and lockfile; first site.yml")
        run(sys.executable, Path(REPO / "testbed" / "supply.py"), "--inventory", INVENTORY)
        play("lock")
        play("site")
        if not runs_first():
            raise BenchError(f"the fleet does not run {FIRST}: remove it with testbed/fleet.py down -i {INVENTORY.relative_to(REPO)}")
        fleet_and_clients = Bench(options.clients)
        rows = {
            "site": tidy(fleet_and_clients.site()),
            "surge": tidy(fleet_and_clients.good("surge", FIRST, SECOND)),
            "replace": tidy(fleet_and_clients.good("replace", SECOND, FIRST)),
            "bad": tidy(fleet_and_clients.bad()),
        }
    report(
        "rollout",
        COLUMNS,
        [rows["surge"], rows["replace"], rows["bad"], rows["site"]],
        {"ansible": ansible_version()},
        [
            f"{NODES} nodes with one replica each, one node in a batch, 2 gateways, {options.clients} clients; all of it on one machine",
            "fixed: checks, plan, staging, opening and closing, before the first batch and after the last one, for any number of hosts",
            "overhead: the batches without loading, draining and the watching of the canary; the worse strategy counts",
            "setup: one `ansible -m setup` on the same hosts, in the same minutes: seconds of Ansible are as long as the machine is busy",
            "rollback: from the failed gate until the last request began that the old release did not answer completely",
            "stalls are as long as the machine is busy, too: they compare with those beside site.yml, which changes nothing",
        ],
        headline(rows),
    )


if __name__ == "__main__":
    raise SystemExit(main(bench))
