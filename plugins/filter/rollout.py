# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the playbooks of rollouts ask of data, as filters."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import actor, canary, lease

GATES = ("ttft_p95", "tpot_p95", "error_rate", "slowdown")


def unanswered(step: dict) -> list:
    """The hosts that did not answer a delegated task, or items of its loop."""
    results = step.get("results", [step])
    return sorted({_host(result) for result in results if result.get("unreachable")})


def _host(result: dict) -> str:
    delegated = result.get("_ansible_delegated_vars") or {}
    item = result.get("item")
    while isinstance(item, dict) and "host" not in item and "item" in item:
        item = item["item"]
    return delegated.get("ansible_delegated_host") or (item["host"] if isinstance(item, dict) and "host" in item else str(item or "a host"))


def probe_targets(instances: list) -> list:
    """Instances as M(localfirst.llm_fleet.inference_probe) takes them."""
    return [
        {
            "id": it["id"],
            "release": it["release"],
            "url": f"http://[{it['address']}]:{it['port']}" if ":" in it["address"] else f"http://{it['address']}:{it['port']}",
        }
        for it in instances
    ]


def gate_limits(gates: dict) -> dict:
    """The limits among the gates of a model: those that it has."""
    return {name: gates[name] for name in GATES if gates.get(name) is not None}


def share_of(switched: list, total: int) -> int:
    """Per cent of the requests for replicas that have switched, of all replicas of a model."""
    return round(100 * len(switched) / total) if total else 0


def lock_stop(results: list) -> dict:
    """Who asked the owner of a lock to stop; an empty mapping where nobody did."""
    return lease.decide(results)["stop"] or {}


def failure_text(result: dict) -> str:
    """Why a task failed: of a loop, why its items did, each reason once."""
    items = [item for item in result.get("results") or [] if item.get("failed")]
    return "; ".join(dict.fromkeys(_reason(item) for item in items or [result]))


def _reason(result: dict) -> str:
    """What a module says; of a program that failed, which says nothing but that, its last lines."""
    text = str(result.get("msg") or "no reason given")
    said = (result.get("stderr") or "").split("\n") + (result.get("stdout") or "").split("\n") if result.get("rc") else []
    lines = [line.strip() for line in said if line.strip()]
    return f"{text}: {' / '.join(lines[-3:])}" if lines and text == "non-zero return code" else text


class FilterModule:
    """Filters of rollout.yml and rollback.yml."""

    def filters(self):
        public = (unanswered, probe_targets, gate_limits, share_of, lock_stop, failure_text, canary.canary_verdict)
        return {"actor_name": actor.named, **{function.__name__: function for function in public}}
