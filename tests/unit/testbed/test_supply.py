# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Model files and directories are what the inventory's recipes say, and the fleet for rollouts is the others' with a node more."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "testbed"))
import fleet as testbed  # noqa: E402
import supply  # noqa: E402

SMALL = {"seed": 5, "layers": 1, "dim": 32, "ffn": 32, "heads": 2, "kv_heads": 1, "words": 300}
INVENTORY, ROLLOUT = REPO / "molecule" / "inventory", REPO / "molecule" / "rollout" / "inventory"


def made(path: Path, **recipe) -> bytes:
    supply.make_model(path, {**SMALL, **recipe})
    return path.read_bytes()


def tensors(path: Path) -> dict:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def inventory(tmp_path):
    """`inventory(models, **more)`: a fleet of one host outside, with that catalog, as an inventory file."""

    def write(sources: list[str], **more) -> tuple:
        versions = {f"1.{n}.0": {"source": source} for n, source in enumerate(sources)}
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps({"all": {
            "hosts": {"upstream": {"ansible_host": "10.203.99.2", "testbed_image": "upstream"}},
            "vars": {
                "testbed_network": {"name": "nobody-starts-this", "subnet": "10.203.99.0/24"},
                "testbed_state": str(tmp_path / "state"),
                "llm_fleet_models": [{"name": "talk", "engine": "llamacpp", "versions": versions}],
                **more,
            },
        }}))
        fleet = testbed.read_fleet(path)
        return fleet, supply.read_wanted(testbed.read_hostvars(path), fleet.state)

    return write


def test_a_file_is_made_once(tmp_path):
    path = tmp_path / "models" / "talk-1.0.0.gguf"
    made(path)
    before = path.stat()
    made(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_it_is_made_anew_by_another_recipe_and_the_first_one_gives_the_first_bytes(tmp_path):
    path = tmp_path / "talk-1.0.0.gguf"
    first = made(path)
    assert made(path, seed=6) != first
    assert made(path) == first


def test_a_file_that_nobody_knows_the_recipe_of_is_made_anew(tmp_path):
    first = made(tmp_path / "one.gguf")
    (tmp_path / "two.gguf").write_bytes(b"GGUF of an earlier testbed")
    assert made(tmp_path / "two.gguf") == first


def test_without_a_recipe_each_name_gives_a_model_of_its_own():
    assert supply.seed("tiny") == 0
    assert supply.seed("one") != supply.seed("two")


def test_an_option_that_there_is_not_is_told_with_the_file(tmp_path):
    with pytest.raises(testbed.FleetError, match=r"(?s)talk-1\.0\.0\.gguf: .*--sped"):
        made(tmp_path / "talk-1.0.0.gguf", sped=2)
    assert list(tmp_path.iterdir()) == []


def test_idle_layers_leave_the_model_as_it_is(tmp_path):
    made(tmp_path / "model.gguf")
    made(tmp_path / "slow.gguf", idle_layers=2)
    model, slow = tensors(tmp_path / "model.gguf"), tensors(tmp_path / "slow.gguf")
    assert all(np.array_equal(slow[name], model[name]) for name in model)
    more = {name: data for name, data in slow.items() if name not in model}
    assert {name.split(".")[1] for name in more} == {"1", "2"}
    adding = {name: data for name, data in more.items() if name.endswith(("attn_output.weight", "ffn_down.weight"))}
    assert len(adding) == 4 and not any(data.any() for data in adding.values())
    assert all(data.any() for name, data in more.items() if name not in adding)


def test_a_broken_file_begins_like_a_model_and_cannot_be_read(tmp_path):
    good, broken = made(tmp_path / "good.gguf"), made(tmp_path / "broken.gguf", broken=True)
    assert broken[:8] == good[:8]
    with pytest.raises((ValueError, IndexError, OverflowError, KeyError)):
        gguf.GGUFReader(tmp_path / "broken.gguf")


def test_the_recipe_of_a_file_is_found_by_its_name(inventory, tmp_path):
    fleet, wanted = inventory(
        ["file://{{ testbed_state_dir }}/models/a.gguf"],
        testbed_models={"a.gguf": SMALL}, testbed_engine_images={"llamacpp:flaky": "llamacpp-flaky"},
    )
    # There is no such registry: this ends where the images would be pushed.
    with pytest.raises(testbed.FleetError, match="testbed_publish"):
        supply.supply(fleet, wanted)
    assert (tmp_path / "state" / "models" / "a.gguf").read_bytes() == made(tmp_path / "same.gguf")
    assert wanted.images == {"llamacpp:flaky": "llamacpp-flaky"}


def test_a_source_that_is_no_gguf_file_is_a_directory(inventory, tmp_path):
    fleet, wanted = inventory(
        [f"file://{{{{ testbed_state_dir }}}}/models/{name}" for name in ("a-1.0.0/", "a-1.0.1")], testbed_models={"a-1.0.0": SMALL}
    )
    with pytest.raises(testbed.FleetError, match="testbed_publish"):
        supply.supply(fleet, wanted)
    folder = tmp_path / "state" / "models" / "a-1.0.0"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a-1.0.0", "a-1.0.0.recipe", "a-1.0.1", "a-1.0.1.recipe"]
    listed = [line.split("  ")[1] for line in supply.sums(folder).splitlines()]
    assert listed == sorted(path.name for path in folder.iterdir()) and "config.json" in listed


def test_a_directory_is_made_once_and_anew_by_another_recipe(tmp_path):
    folder = tmp_path / "talk-1.0.0"
    supply.make_model(folder, SMALL)
    before, inode = supply.sums(folder), folder.stat().st_ino
    supply.make_model(folder, SMALL)
    assert folder.stat().st_ino == inode
    (folder / "stray").touch()
    supply.make_model(folder, {**SMALL, "seed": 6})
    assert "stray" not in supply.sums(folder) != before
    supply.make_model(folder, SMALL)
    assert supply.sums(folder) == before


def test_a_recipe_for_no_file_is_a_slip(inventory, tmp_path):
    fleet, wanted = inventory(["file://{{ testbed_state_dir }}/models/a.gguf"], testbed_models={"b.gguf": SMALL})
    with pytest.raises(testbed.FleetError, match=r"b\.gguf"):
        supply.supply(fleet, wanted)
    assert not (tmp_path / "state").exists()


def test_the_fleet_for_rollouts_keeps_every_host_of_the_others():
    base, more = testbed.read_fleet(INVENTORY), testbed.read_fleet(ROLLOUT)
    assert (more.name, more.subnet, more.state) == (base.name, base.subnet, base.state)
    assert set(base.hosts) < set(more.hosts)
    assert [host.name for host in more.hosts if host not in base.hosts] == ["gpu3"]


def test_its_catalog_has_no_fault_and_a_recipe_for_each_version():
    hostvars = testbed.read_hostvars(ROLLOUT)
    wanted = supply.read_wanted(hostvars, testbed.read_fleet(ROLLOUT).state)
    profiles, _faults = read_profiles([BUILT_IN])
    nodes = [host for host in hostvars if host.startswith("gpu")]
    models, _clients, faults = check_catalog(wanted.catalog, hostvars["gw1"]["llm_fleet_clients"], profiles, nodes)
    assert faults == []
    files = {Path(version["source"]).name for model in models for version in model["versions"].values()}
    assert files == set(wanted.recipes)
