# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A state of gpu_health as a text file for the node exporter. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_health_rules import SEVERITIES

PREFIX = "llm_fleet_gpu"
HELP = {
    "health": ("gauge", "Health of a GPU: 0 good, 1 warning, 2 critical."),
    "host_health": ("gauge", "Health of all GPUs of the host and of their driver: 0 good, 1 warning, 2 critical."),
    "finding": ("gauge", "A finding that counts now, one series each."),
    "xid_total": ("counter", "XID errors since the machine started, by code."),
    "drain": ("gauge", "Whether gateways that ask are told to send no new request to this host."),
    "health_checked_timestamp_seconds": ("gauge", "When the GPUs were last looked at."),
}


def metrics(state: Mapping[str, Any]) -> str:
    """The whole text, HELP and TYPE included; a metric without series is left out."""
    uuids = {one["address"]: one["uuid"] for one in state["gpus"]}
    values: dict[str, list[tuple[dict[str, str], float]]] = {
        "health": [(_gpu(one["uuid"], one["address"]) | {"name": one["name"]}, SEVERITIES.index(one["severity"])) for one in state["gpus"]],
        "host_health": [({}, SEVERITIES.index(state["severity"]))],
        "finding": [
            (_gpu(one["uuid"], one["gpu"]) | {"finding": one["finding"], "severity": one["severity"]}, 1) for one in state["findings"]
        ],
        "xid_total": [
            (_gpu(uuids.get(address, ""), address) | {"code": code}, one["count"])
            for address, codes in sorted(state["memory"]["xids"].items())
            for code, one in sorted(codes.items(), key=lambda item: int(item[0]))
        ],
        "drain": [({}, int(state["drain"]))],
        "health_checked_timestamp_seconds": [({}, _seconds(state["checked"]))],
    }
    return "".join(_lines(name, series) for name, series in values.items() if series)


def _gpu(uuid: str, address: str) -> dict[str, str]:
    return {"gpu": uuid, "address": address}


def _lines(name: str, series: Iterable[tuple[dict[str, str], float]]) -> str:
    kind, text = HELP[name]
    head = f"# HELP {PREFIX}_{name} {text}\n# TYPE {PREFIX}_{name} {kind}\n"
    return head + "".join(f"{PREFIX}_{name}{_labels(labels)} {value}\n" for labels, value in series)


def _labels(labels: Mapping[str, str]) -> str:
    """Labels in braces; backslash, quote and newline as the text format wants them."""
    escaped = {key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()}
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}" if labels else ""


def _seconds(time: str) -> int:
    return int(datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp())
