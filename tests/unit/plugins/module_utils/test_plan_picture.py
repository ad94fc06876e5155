# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The plan as a picture: what a person looks for in it is in it, inside its frame, and in the right proportion."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan_picture import nodes_shown, plan_picture
from ansible_collections.localfirst.llm_fleet.tests.unit.plugins.module_utils.fleet_builders import host, model, plan

GIB = 2**30
SVG = "{http://www.w3.org/2000/svg}"


def shown(node: dict, memory: int = 80 * GIB, **other) -> dict:
    gpus = [{"uuid": uuid, "name": "NVIDIA H100", "memory": memory} for uuid in node["gpus"]]
    return {"name": node["name"], "memory_bytes": 512 * GIB, "gpus": gpus, **other}


def drawn(catalog: list, nodes: list, use: dict | None = None, **other) -> ET.Element:
    planned = plan(catalog, nodes).plan
    for record in planned["releases"].values():
        record["container"]["memory_bytes"] = 128 * GIB
        if use and record["model"] in use:
            record["fit"] = {"override": use[record["model"]]}
    return ET.fromstring(plan_picture(planned, [shown(node, **other) for node in nodes], title="The fleet"))


def words(svg: ET.Element) -> list:
    return [text.text for text in svg.iter(f"{SVG}text")]


def boxes(svg: ET.Element) -> dict:
    """{the title of a rectangle: the rectangle}."""
    return {title.text: box for box in svg.iter(f"{SVG}rect") for title in box.iter(f"{SVG}title")}


def test_every_host_gpu_and_model_is_there():
    svg = drawn([model("chat", 2, 1), model("code", 1, 2)], [host("gpu1", 2), host("gpu2", 2)])
    assert {"The fleet", "gpu1", "gpu2", "chat, 2 replicas", "code, 1 replica"} <= set(words(svg))
    instances = [title for title in boxes(svg) if ":" in title]
    assert sum(title.startswith("chat-") for title in instances) == 2 and any(title.startswith("code-0-a") for title in instances)


def test_a_bar_is_filled_by_as_much_as_the_model_needs():
    svg = boxes(drawn([model("chat", 1, 1)], [host("gpu1", 1)], {"chat": 20 * GIB}))
    [frame] = [box for title, box in svg.items() if title.startswith("GPU 0")]
    [part] = [box for title, box in svg.items() if title.startswith("chat-0-a")]
    assert float(part.get("width")) == pytest.approx(float(frame.get("width")) / 4, abs=0.2)


def test_without_an_estimate_the_gpu_is_all_its_own():
    svg = boxes(drawn([model("chat", 1, 1)], [host("gpu1", 1)]))
    [frame] = [box for title, box in svg.items() if title.startswith("GPU 0")]
    [part] = [box for title, box in svg.items() if title.startswith("chat-0-a")]
    assert part.get("width") == f"{float(frame.get('width')):.1f}"


def test_an_engine_on_the_cpu_is_shown_in_the_memory_of_its_host():
    svg = boxes(drawn([model("small", 1, 0)], [host("gpu1", 1)]))
    [frame] = [box for title, box in svg.items() if title.startswith("memory")]
    [part] = [box for title, box in svg.items() if title.startswith("small-0-a")]
    assert float(part.get("width")) == pytest.approx(float(frame.get("width")) / 4, abs=0.2)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_everything_lies_inside_the_picture(count):
    svg = drawn([model("chat", "all", 1)], [host(f"gpu{number:02}", number % 4 + 1) for number in range(count)])
    width, height = float(svg.get("width")), float(svg.get("height"))
    for box in svg.iter(f"{SVG}rect"):
        assert float(box.get("x", 0)) + float(box.get("width")) <= width
        assert float(box.get("y", 0)) + float(box.get("height")) <= height


def test_no_part_leaves_its_bar_whatever_it_is_said_to_need():
    svg = boxes(drawn([model("chat", 1, 1)], [host("gpu1", 1)], {"chat": 900 * GIB}))
    [frame] = [box for title, box in svg.items() if title.startswith("GPU 0")]
    [part] = [box for title, box in svg.items() if title.startswith("chat-0-a")]
    assert float(part.get("x")) + float(part.get("width")) <= float(frame.get("x")) + float(frame.get("width"))


def test_odd_names_stay_text():
    planned = plan([model("a", 1, 1)], [host("gpu1", 1)]).plan
    svg = ET.fromstring(plan_picture(planned, [shown(host("gpu1", 1), note='<script>"&')], title='a & "b" <c>'))
    assert {'a & "b" <c>', '<script>"&'} <= set(words(svg))


def test_a_gpu_that_is_gone_is_still_shown_where_something_runs_on_it():
    planned = plan([model("a", 1, 1)], [host("gpu1", 1)]).plan
    svg = ET.fromstring(plan_picture(planned, [{"name": "gpu1", "memory_bytes": None, "gpus": []}]))
    assert any("gone" in title for title in boxes(svg))


def test_an_empty_fleet_is_a_picture_too():
    assert ET.fromstring(plan_picture(plan([], []).plan, [])).tag == f"{SVG}svg"


def test_nodes_are_shown_with_what_they_told():
    gpu = {"uuid": "GPU-1", "name": "NVIDIA L4", "mig": {"devices": []}}
    answered = {"gpu1": {"memory_bytes": 64 * GIB, "gpu": {"gpus": [gpu]}, "gpu_memory": {"GPU-1": 24 * GIB}}}
    nodes = [
        {"name": "gpu1", "gpus": ["GPU-1"], "reachable": True},
        {"name": "gpu2", "gpus": ["GPU-2"], "reachable": False},
        {"name": "gpu3", "gpus": [], "reachable": False},
    ]
    first, second, third = nodes_shown(nodes, answered, {"maintenance": {"gpu3": {}}})
    assert first["gpus"] == [{"uuid": "GPU-1", "name": "NVIDIA L4", "memory": 24 * GIB}] and first["note"] == ""
    assert second["gpus"][0]["memory"] is None and second["note"] == "cannot be reached"
    assert third["note"] == "in maintenance"
