# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module that reads what the operator wrote, and what it makes of a lockfile."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile

SOURCES = {version: {"source": f"https://models.example/tiny-{version}.gguf"} for version in ("1.0.0", "1.2.0", "1.2.5", "2.0.0")}
FACTS = {
    "distribution": {"id": "debian", "version": "12", "codename": "bookworm"},
    "clock_skew": 0.0,
    "call_seconds": 0.0,
    "haproxy_version": "2.6.12-1",
    "store": {"path": "/var/lib/llm_fleet/store", "total_bytes": 2**40, "free_bytes": 2**39},
    "fleet_ca": "",
    "plan": None,
    "plan_error": "",
    "instances": [],
    "blobs": [],
    "gpus": [],
}
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
