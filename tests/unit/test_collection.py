# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for the collection as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import BUILT_IN, read_profiles
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import check_locked, parse_lockfile

REPO = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (REPO / "plugins" / "modules").glob("*.py"))


def test_the_action_group_has_every_module():
    runtime = yaml.safe_load((REPO / "meta" / "runtime.yml").read_text())
    assert runtime["action_groups"]["fleet"] == MODULES


@pytest.mark.parametrize("path", sorted((REPO / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_a_playbook_says_first_what_it_does(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "---" and lines[1].startswith("# ")
    assert f"localfirst.llm_fleet.{path.stem}" in path.read_text(), "and how it is called"


def test_the_readme_lists_every_playbook_and_role():
    readme = (REPO / "README.md").read_text()
    for playbook in (REPO / "playbooks").glob("*.yml"):
        assert f"| `{playbook.stem}` |" in readme, playbook.name
    for role in (REPO / "roles").iterdir():
        assert f"roles/{role.name}/README.md" in readme, role.name


def test_the_example_inventory_has_no_fault(tmp_path):
    """As its user would find out with preflight, but without its hosts."""
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "-i", REPO / "inventories" / "example", "--list"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )
    inventory = json.loads(done.stdout)
    nodes = inventory["gpu_nodes"]["hosts"]
    variables = inventory["_meta"]["hostvars"]["gw1"]
    profiles, faults = read_profiles([BUILT_IN])
    assert faults == []
    models, _clients, faults = check_catalog(
        variables["llm_fleet_models"], variables["llm_fleet_clients"], profiles, nodes
    )
    assert faults == []
    lock, faults = parse_lockfile((REPO / "inventories" / "example" / "models.lock.yml").read_text(), "models.lock.yml")
    assert faults == [] and check_locked(models, lock, "models.lock.yml", profiles) == []
