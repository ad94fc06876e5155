# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module that reads what the operator wrote, and what it makes of a lockfile."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile
from ansible_collections.localfirst.llm_fleet.tests.unit.support.host_answers import BARE_HOST

SOURCES = {version: {"source": f"https://models.example/tiny-{version}.gguf"} for version in ("1.0.0", "1.2.0", "1.2.5", "2.0.0")}
FACTS = {**BARE_HOST, "gpus": []}
HOSTS = [{"name": "gw1", "address": "10.0.0.1", **FACTS}, {"name": "gpu1", "address": "10.0.0.2", **FACTS}]


def locked(selected=None):
    """A lockfile with all versions; each has a file of its own."""
    versions = {
        version: {
            "asked": entry["source"],
            "source": entry["source"],
            "format": "gguf",
            "files": [{"path": "tiny.gguf", "size": 10, "sha256": f"{number:064x}"}],
        }
        for number, (version, entry) in enumerate(SOURCES.items())
    }
    choice = {"selected": {"tiny": selected}} if selected else {}
    images = {"llamacpp": {"image": "registry.example/llamacpp", "digest": f"sha256:{'a' * 64}"}}
    return render_lockfile({"images": images, "models": {"tiny": versions}, **choice})


@pytest.fixture
def plan(run_module, tmp_path):
    """Plan for one model, with a version or constraint and the text of a lockfile."""

    def run(version: str, text: str, **arguments) -> dict:
        (tmp_path / "models.lock.yml").write_text(text)
        model = {"name": "tiny", "version": version, "versions": SOURCES, "engine": "llamacpp"}
        return run_module(
            "fleet_plan",
            clients=[],
            profiles=read_profiles([BUILT_IN])[0],
            ca_dir=str(tmp_path),
            gateways=["gw1"],
            nodes=["gpu1"],
            asked=["gw1", "gpu1"],
            **{"models": [model], "hosts": HOSTS, "lockfile": str(tmp_path / "models.lock.yml"), **arguments},
        )

    return run


@pytest.mark.parametrize(("version", "selected"), [("~1.2", "1.2.0"), ("^1", "1.2.5"), ("latest", "2.0.0"), (">=1 <1.2", "1.0.0")])
def test_a_constraint_means_the_version_that_was_selected_when_the_fleet_was_locked(plan, version, selected):
    result = plan(version, locked({"asked": version, "version": selected}))
    assert result["faults"] == []
    assert result["plan"]["models"]["tiny"]["version"] == selected
    assert [instance["version"] for instance in result["plan"]["instances"]] == [selected]
    # The same as with that version written out: no release knows of constraints.
    assert result["plan"] == plan(selected, locked())["plan"]


@pytest.mark.parametrize("selected", [None, {"asked": "~1.2", "version": "1.2.5"}])
def test_nothing_is_selected_at_run_time(plan, selected):
    result = plan("^2", locked(selected))
    assert result["failed"] and "selected" in result["msg"]
    assert "localfirst.llm_fleet.lock" in result["faults"][0]["fix"]


def test_half_a_lockfile_is_no_lockfile(plan):
    result = plan("1.0.0", locked()[:-10])
    assert result["failed"] and "cut off" in result["msg"]


def test_a_fleet_that_was_never_locked_is_told_to_lock(plan, tmp_path):
    result = plan("1.0.0", locked(), lockfile=str(tmp_path / "nowhere.yml"))
    [fault] = result["faults"]
    assert fault["what"] == f"there is no lockfile {tmp_path}/nowhere.yml" and "localfirst.llm_fleet.lock)" in fault["fix"]


def test_a_port_is_no_range(plan):
    result = plan("1.0.0", locked(), port_range=[20000])
    assert result["failed"] and "llm_fleet_port_range" in result["msg"]


def test_a_file_changed_by_hand_is_named_with_its_line(plan):
    text = locked()
    result = plan("1.0.0", text.replace(f"{0:064x}", "f" * 64))
    [fault] = result["faults"]
    line = 1 + next(n for n, line in enumerate(text.splitlines()) if "digest:" in line and "image" not in line)
    assert f"line {line}: models.tiny.1.0.0.digest" in fault["where"]


def test_what_is_wrong_may_also_be_returned(plan):
    result = plan("9.9.9", locked(), strict=False)
    assert not result.get("failed") and result["faults"] and result["plan"]["instances"] == []


def test_a_catalog_that_is_gone_does_not_empty_the_fleet(plan):
    served = plan("1.0.0", locked())["plan"]
    hosts = [{**host, "plan": served} for host in HOSTS]
    refused = plan("1.0.0", locked(), models=[], hosts=hosts)
    assert refused["failed"] and [fault["where"] for fault in refused["faults"]] == ["llm_fleet_models"]
    assert "tiny" in refused["faults"][0]["what"]
    assert not plan("1.0.0", locked(), models=[], hosts=hosts, allow_empty_catalog=True).get("failed")


def test_an_image_that_was_named_anew_has_to_be_locked(plan):
    text = locked().replace(f'digest: "sha256:{"a" * 64}"', f'digest: "sha256:{"a" * 64}", asked: "registry.example/llamacpp:1"')
    assert not plan("1.0.0", text, engine_images={"llamacpp": "registry.example/llamacpp:1"}).get("failed")
    refused = plan("1.0.0", text, engine_images={"llamacpp": "registry.example/llamacpp:2"})
    assert "images.llamacpp" in refused["faults"][0]["where"]


def gpu_node(state, *uuids, listed=None):
    """The fleet's hosts, where the node has these GPUs, as host_info tells them, and llm_fleet_gpus may list some."""
    gpus = [{"uuid": uuid, "state": "ready", "mig": {"mode": "", "devices": []}} for uuid in uuids]
    gpu = {"state": state, "problem": "" if state == "ready" else "something is broken", "gpus": gpus}
    return [HOSTS[0], {**HOSTS[1], "gpus": listed, "gpu": gpu}]


def gpu_model(count=1):
    return {"name": "tiny", "version": "1.0.0", "versions": SOURCES, "engine": "llamacpp", "gpus": 1, "replicas": count}


def test_a_node_whose_gpus_nobody_lists_offers_those_that_answer(plan):
    result = plan("1.0.0", locked(), models=[gpu_model(2)], hosts=gpu_node("ready", "GPU-1", "GPU-2"))
    assert sorted(it["gpus"] for it in result["plan"]["instances"]) == [["GPU-1"], ["GPU-2"]]
    assert result["gpu_problems"] == [] and "warnings" not in result
    restricted = plan("1.0.0", locked(), models=[gpu_model()], hosts=gpu_node("ready", "GPU-1", "GPU-2", listed=["GPU-2"]))
    assert [it["gpus"] for it in restricted["plan"]["instances"]] == [["GPU-2"]]


@pytest.mark.parametrize("state", ["mismatch", "not_loaded", "failing", "lost"])
def test_a_driver_that_falls_silent_changes_no_plan_and_is_told(plan, state):
    before = plan("1.0.0", locked(), models=[gpu_model()], hosts=gpu_node("ready", "GPU-1", "GPU-2"))["plan"]
    silent = [{**host, "plan": before} for host in gpu_node(state)]
    after = plan("1.0.0", locked(), models=[gpu_model()], hosts=silent)
    assert after["plan"] == before and after["leaving"] == [] and after["actions"] == []
    assert after["gpu_problems"] == ["gpu1: something is broken"] and "gpu1: something is broken" in str(after["warnings"])
    # It gets nothing new, though its second GPU was free.
    more = plan("1.0.0", locked(), models=[gpu_model(2)], hosts=silent)
    assert more["failed"] and "0 of 1 GPUs free" in more["msg"]


def test_an_instance_leaves_the_gpu_that_is_lost_while_others_answer(plan):
    before = plan("1.0.0", locked(), models=[gpu_model()], hosts=gpu_node("ready", "GPU-1", "GPU-2"))["plan"]
    [held] = before["instances"][0]["gpus"]
    other = "GPU-2" if held == "GPU-1" else "GPU-1"
    after = plan("1.0.0", locked(), models=[gpu_model()], hosts=[{**host, "plan": before} for host in gpu_node("lost", other)])
    assert [it["gpus"] for it in after["plan"]["instances"]] == [[other]] and [it["gpus"] for it in after["leaving"]] == [[held]]


def test_a_slip_of_the_pen_in_the_list_is_a_fault(plan):
    refused = plan("1.0.0", locked(), models=[gpu_model()], hosts=gpu_node("ready", "GPU-1a", "GPU-2", listed=["GPU-1"]))
    assert refused["failed"] and refused["faults"][0]["where"] == "host gpu1" and "did you mean 'GPU-1a'?" in refused["msg"]


def with_gpus(*uuids, memory=80 * 2**30):
    hosts = gpu_node("ready", *uuids)
    for gpu in hosts[1]["gpu"]["gpus"]:
        gpu.update(name="NVIDIA H100", memory_total=memory, memory_free=memory)
    return hosts


def test_what_would_be_without_a_node(plan):
    hosts = with_gpus("GPU-1", "GPU-2")
    now = plan("1.0.0", locked(), models=[gpu_model()], hosts=hosts)["plan"]
    hosts = [{**host, "plan": now} for host in hosts]
    result = plan("1.0.0", locked(), models=[gpu_model()], hosts=hosts, what_if={"without": "gpu1"})
    assert result["failed"] and "no host can take replica 0 of tiny" in result["msg"]
    # With another in its place, what ran there moves.
    result = plan("1.0.0", locked(), models=[gpu_model()], hosts=hosts, what_if={"without": "gpu1", "with": "gpu2:gpu1"})
    assert [it["host"] for it in result["plan"]["instances"]] == ["gpu2"]
    assert [it["host"] for it in result["leaving"]] == ["gpu1"]


@pytest.mark.parametrize(("asked", "room"), [("gpu2:gpu1", 2), ("gpu2:4x24g", 4), ("gpu2:gpu1, gpu3:1x80g", 3)])
def test_what_would_be_with_more_nodes(plan, asked, room):
    hosts = with_gpus("GPU-1", "GPU-2")
    assert plan("1.0.0", locked(), models=[gpu_model(2 + room)], hosts=hosts)["failed"]
    result = plan("1.0.0", locked(), models=[gpu_model(2 + room)], hosts=hosts, what_if={"with": asked})
    assert "plan" in result, result["msg"]
    gpus = [gpu for it in result["plan"]["instances"] for gpu in it["gpus"]]
    assert len(gpus) == len(set(gpus)) == 2 + room
    assert plan("1.0.0", locked(), models=[gpu_model(3 + room)], hosts=hosts, what_if={"with": asked})["failed"]


@pytest.mark.parametrize(("asked", "said"), [
    ({"without": "gpu7"}, "there is no node gpu7"),
    ({"with": "gpu2"}, "'gpu2' does not say what the node is like"),
    ({"with": "gpu1:gpu1"}, "there is a node gpu1 already"),
    ({"with": "gpu2:gpu3"}, "'gpu3' is no node that answered"),
    ({"with": "gpu2:8x80"}, "gpu9:8x80g"),
])
def test_what_cannot_be_imagined_is_told(plan, asked, said):
    refused = plan("1.0.0", locked(), hosts=with_gpus("GPU-1"), what_if=asked)
    assert refused["failed"] and said in refused["msg"]


def test_a_legacy_engine_is_one_warning_whatever_the_number_of_models_and_hosts(plan):
    images = 'llamacpp: {image: "registry.example/llamacpp"'
    text = locked().replace(images, images.replace("llamacpp", "tgi")).replace("format: gguf", "format: safetensors")
    models = [{"name": "tiny", "version": "1.0.0", "versions": SOURCES, "engine": "tgi", "replicas": "all"}]
    result = plan("1.0.0", text, models=models)
    assert result["faults"] == []
    [warning] = result["engine_warnings"]
    assert len(result["warnings"]) == 1 and "tiny" in warning and "vllm" in warning
    assert plan("1.0.0", locked())["engine_warnings"] == []
