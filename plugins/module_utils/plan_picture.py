# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The plan as a picture: each host with a bar for its memory and one for each GPU, filled by what runs there. Pure: data in, SVG out."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.fit import demand_of, takes

GIB = 2**30
# Okabe and Ito's colours, which people with any kind of colour vision tell apart, less the black of letters and a yellow like paper.
# https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
WIDTH, MARGIN, TITLE, BAR, GAP = 440, 16, 28, 22, 6
LABEL, TEXT = 118, 12
COLUMNS = 3


class Part(NamedTuple):
    """What one instance takes of a bar."""

    instance: str
    model: str
    version: str
    size: int | None  # bytes; None where nobody knows, and then the whole bar is its own


class Bar(NamedTuple):
    """One GPU, or the memory of a host."""

    label: str
    name: str
    size: int | None  # bytes; None where nobody knows
    parts: list


def plan_picture(plan: dict, hosts: list, title: str = "") -> str:
    """The plan as an SVG document.

    :param plan: as the module fleet_plan returns it.
    :param hosts: the GPU nodes [{"name", "memory_bytes", "gpus": [{"uuid", "name", "memory"}], "note"}]; sizes in bytes, or None where
        nobody knows. ``note`` stands beside the host's name, and is empty where there is nothing to say.
    :param title: stands above the picture.
    """
    cards = [(host, _bars(plan, host)) for host in sorted(hosts, key=lambda host: host["name"])]
    colours = _colours(plan)
    top = MARGIN + (TITLE if title else 0)
    drawn, bottom = _cards(cards, colours, top)
    legend, height = _legend(colours, plan, bottom)
    width = MARGIN + min(COLUMNS, max(1, len(cards))) * (WIDTH + MARGIN)
    head = [_text(MARGIN, MARGIN + 14, title, size=16, weight="bold")] if title else []
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" role="img" aria-label={quoteattr(title or "The plan of the fleet")}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *head,
        *drawn,
        *legend,
        "</svg>",
        "",
    ])


def nodes_shown(nodes: list, answered: dict, plan: dict) -> list:
    """The GPU nodes as `plan_picture` takes them.

    nodes: [{"name", "gpus": UUIDs, "reachable"}]; answered: {name: what host_info told}.
    """
    shown = []
    for node in nodes:
        host = answered.get(node["name"], {})
        names = {uuid: gpu.get("name", "") for gpu in (host.get("gpu") or {}).get("gpus", []) for uuid in _uuids(gpu)}
        sizes = host.get("gpu_memory") or {}
        note = "" if node["reachable"] else "cannot be reached"
        shown.append({
            "name": node["name"],
            "memory_bytes": host.get("memory_bytes"),
            "gpus": [{"uuid": uuid, "name": names.get(uuid, ""), "memory": sizes.get(uuid)} for uuid in node["gpus"]],
            "note": "in maintenance" if node["name"] in plan.get("maintenance", {}) else note,
        })
    return shown


def _uuids(gpu: dict) -> list:
    return [gpu["uuid"], *(one["uuid"] for one in gpu["mig"]["devices"])]


def _bars(plan: dict, host: dict) -> list[Bar]:
    """The bars of one host: first its memory, where engines without GPUs are, then each GPU."""
    here = [it for it in plan["instances"] if it["host"] == host["name"]]
    sizes = {gpu["uuid"]: gpu.get("memory") for gpu in host["gpus"]}
    on_gpu = defaultdict(list)
    in_memory = []
    for it in sorted(here, key=lambda it: it["id"]):
        record = plan["releases"].get(it["release"], {})
        if not it["gpus"]:
            in_memory.append(Part(it["id"], it["model"], it["version"], (record.get("container") or {}).get("memory_bytes")))
        for uuid in it["gpus"]:
            on_gpu[uuid].append(Part(it["id"], it["model"], it["version"], takes(demand_of(record, len(it["gpus"])), sizes.get(uuid))))
    bars = [Bar("memory", "", host.get("memory_bytes"), in_memory)] if in_memory else []
    known = [gpu["uuid"] for gpu in host["gpus"]]
    gpus = [*host["gpus"], *({"uuid": uuid, "name": "gone", "memory": None} for uuid in on_gpu if uuid not in known)]
    for index, gpu in enumerate(gpus):
        bars.append(Bar(f"GPU {index}", gpu.get("name") or gpu["uuid"], gpu.get("memory"), on_gpu[gpu["uuid"]]))
    return bars


def _colours(plan: dict) -> dict:
    """{model: colour}, by the order of names. With more models than colours some share one; each part names its model too."""
    models = sorted({it["model"] for it in plan["instances"]} | set(plan["models"]))
    return {model: COLOURS[index % len(COLOURS)] for index, model in enumerate(models)}


def _cards(cards: list, colours: dict, top: int) -> tuple[list, int]:
    """All hosts, some beside each other, each new one where the columns are shortest; and where the lowest ends."""
    ends = [top] * min(COLUMNS, max(1, len(cards)))
    drawn = []
    for host, bars in cards:
        column = ends.index(min(ends))
        x, y = MARGIN + column * (WIDTH + MARGIN), ends[column]
        height = TITLE + max(1, len(bars)) * (BAR + GAP) + GAP
        drawn.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="6" fill="#f6f7f9" stroke="#c9ced6"/>')
        drawn.append(_text(x + 10, y + 19, host["name"], size=14, weight="bold"))
        if host.get("note"):
            drawn.append(_text(x + WIDTH - 10, y + 19, host["note"], fill="#8a4b00", anchor="end"))
        if not bars:
            drawn.append(_text(x + 10, y + TITLE + 15, "nothing runs here", fill="#5b6470"))
        for index, shown in enumerate(bars):
            drawn += _bar(shown, x + 10, y + TITLE + index * (BAR + GAP), WIDTH - 20, colours)
        ends[column] = y + height + MARGIN
    return drawn, max(ends)


def _bar(memory: Bar, x: int, y: int, width: int, colours: dict) -> list:
    """One bar: its label, its frame, what fills it, and how much is free."""
    left, room = x + LABEL, width - LABEL
    size = f"{memory.size / GIB:.0f} GiB" if memory.size else ""
    lines = [
        _text(x, y + 15, f"{memory.label} {size}".strip(), fill="#333a44"),
        f'<rect x="{left}" y="{y}" width="{room}" height="{BAR}" fill="#ffffff" stroke="#9aa3af">'
        f"<title>{escape(' '.join(filter(None, (memory.label, memory.name, size))))}</title></rect>",
    ]
    offset = 0.0
    for part in memory.parts:
        share = min(1.0, part.size / memory.size) if part.size and memory.size else 1 / len(memory.parts)
        wide = max(1.0, min(share * room, room - offset))
        told = f"{part.model} {part.version}"
        takes = f"{part.size / GIB:.1f} GiB" if part.size else "all of it"
        lines.append(
            f'<rect x="{left + offset:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{colours[part.model]}">'
            f"<title>{escape(f'{part.instance}: {told}, {takes}')}</title></rect>"
        )
        letters = int((wide - 8) / 6.6)
        if letters >= 3:
            shown = told if len(told) <= letters else told[: letters - 1] + "…"
            lines.append(_text(left + offset + 4, y + 15, shown, fill=_letters(colours[part.model])))
        offset += wide
    if not memory.parts:
        lines.append(_text(left + 6, y + 15, "free", fill="#5b6470"))
    return lines


def _legend(colours: dict, plan: dict, top: int) -> tuple[list, int]:
    """What each colour stands for, with the number of replicas; and the height of it all."""
    counts: dict = defaultdict(int)
    for model, _replica in {(it["model"], it["replica"]) for it in plan["instances"]}:
        counts[model] += 1
    lines, y = [], top
    for model, colour in colours.items():
        replicas = f"{counts[model]} replica" if counts[model] == 1 else f"{counts[model]} replicas"
        lines.append(f'<rect x="{MARGIN}" y="{y}" width="14" height="14" fill="{colour}"/>')
        lines.append(_text(MARGIN + 22, y + 12, f"{model}, {replicas}"))
        y += 20
    return lines, y + MARGIN


def _letters(colour: str) -> str:
    """White or black, whichever is read better on a colour: the luminance of WCAG 2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    # The luminance at which both have the same contrast.
    return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 else "#111418"


def _text(x: float, y: float, words: str, size: int = TEXT, fill: str = "#111418", weight: str = "", anchor: str = "") -> str:
    more = "".join(f' {name}="{value}"' for name, value in (("font-weight", weight), ("text-anchor", anchor)) if value)
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"{more}>{escape(words)}</text>'
