# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The role, and staging with it, on hosts that are directories of this machine: with real programs, and a double for systemd."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry, tree_of
from ansible_collections.localfirst.llm_fleet.tests.unit.support.swarm_hosts import has_libtorrent

pytestmark = pytest.mark.skipif(not has_libtorrent(), reason="needs python3-libtorrent")
BODY = random.Random(5).randbytes(2_500_000)
HOSTS = ("depot1", "gpu1", "gpu2")
PLAYBOOK = """
- hosts: depot1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer}
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer, tasks_from: join}
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer, tasks_from: offer}
      vars: {model_peer_artifacts: "{{ artifacts }}"}
- hosts: gpu1:gpu2
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer}
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer, tasks_from: join}
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_store, tasks_from: stage}
      vars: {model_store_artifacts: "{{ artifacts }}", model_store_peer: "{{ model_peer_socket | default('') }}"}
- hosts: all
  gather_facts: false
  tasks:
    # All of it is there until everybody is done.
    - ansible.builtin.command: "test -e {{ units }}/peer-{{ inventory_hostname }}.service"
      changed_when: false
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer, tasks_from: release}
"""
ABSENT = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: localfirst.llm_fleet.model_peer}
      vars: {model_peer_state: absent}
"""


class Fleet:
    """Three hosts, and a web server that serves what the depot's store has."""

    def __init__(self, folder: Path, server: RangeServer) -> None:
        self.folder = folder
        self.server = server
        self.units = folder / "units"
        self.units.mkdir()
        (folder / "bin").mkdir()
        double = folder / "bin" / "systemctl"
        shutil.copy(REPO / "tests/unit/support/systemd_units.py", double)
        double.chmod(0o755)
        (folder / "bin" / "journalctl").symlink_to("/bin/true")
        process = os.getpid()
        local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
        hosts = {
            name: {"llm_fleet_address": f"127.{10 + process // 250 % 200}.{1 + process % 250}.{100 + number}"}
            for number, name in enumerate(HOSTS)
        }
        addresses = [each["llm_fleet_address"] for each in hosts.values()]
        self.artifacts = [{"model": "tiny", "version": "1.0.0", "files": [entry("tiny.gguf", BODY)]}]
        variables = {
            **local,
            "llm_fleet_state_dir": str(folder / "{{ inventory_hostname }}"),
            "model_peer_group": "root",
            "model_peer_ca_dir": str(folder / "ca"),
            "model_peer_tls_dir": str(folder / "{{ inventory_hostname }}" / "tls"),
            "model_peer_peers": addresses,
            "model_peer_fleet": addresses,
            "model_store_user": "root",
            "model_store_reserve": 0,
            "model_store_ca_dir": str(folder / "ca"),
            "model_store_tls_dir": "{{ model_peer_tls_dir }}",
            "model_store_suppliers": [server.url],
            "artifacts": self.artifacts,
            "units": str(self.units),
        }
        inventory = {"all": {"vars": variables, "hosts": hosts}}
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        # Fixed places on hosts, which here have one machine between them.
        self.places = {
            # Role model_store's own certificate would come with its user, which this machine is spared.
            "__model_store_cert": "{{ __model_peer_cert }}",
            "__model_store_key": "{{ __model_peer_key }}",
            "__model_peer_cert": "{{ model_peer_tls_dir }}/peer.pem",
            "__model_peer_key": "{{ model_peer_tls_dir }}/peer.key",
            "__model_peer_dir": str(folder / "{{ inventory_hostname }}" / "lib"),
            "__model_peer_unit": "peer-{{ inventory_hostname }}.service",
            "__model_peer_units": str(self.units),
            "__model_peer_run": "{{ inventory_hostname }}",
            "__model_peer_socket": str(folder / "{{ inventory_hostname }}" / "s"),
            "__model_peer_settings": str(folder / "{{ inventory_hostname }}" / "peer.json"),
        }
        blobs = folder / "depot1" / "store" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        (blobs / digest(BODY)).write_bytes(BODY)

    def run(self, text: str, *arguments: str) -> str:
        playbook = self.folder / "playbook.yml"
        playbook.write_text(text)
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", self.folder / "hosts.yml", "-e", json.dumps(self.places), *arguments,
             playbook],
            env={
                **os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "UNITS_DIR": str(self.units),
                "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"), "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"),
                "ANSIBLE_ASYNC_DIR": str(self.folder / "async"),
            },
            cwd=self.folder, capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    def running(self) -> list[str]:
        return sorted(path.name for path in self.units.glob("*.service"))


@pytest.fixture
def fleet(tmp_path):
    # A socket's path has to be short.
    folder = Path(f"/tmp/peer-role-{os.getpid()}")
    folder.mkdir()
    with RangeServer() as server:
        made = Fleet(folder, server)
        yield made
    for path in made.units.glob("*.pid"):
        subprocess.run(["kill", path.read_text()], capture_output=True)
    shutil.rmtree(folder)


def test_nodes_get_a_model_from_each_other_and_nothing_stays_behind(fleet):
    said = fleet.run(PLAYBOOK, "--check")
    assert said.count("Would make a certificate") == 3, said
    assert not (fleet.folder / "gpu1" / "store").exists() and not fleet.running()
    # The depot serves what it has by then: the torrent is made in the middle of the run.
    torrents = fleet.folder / "depot1" / "store" / "torrents" / "sha256"
    fleet.server.add(f"/blobs/sha256/{digest(BODY)}", BODY)
    fleet.server.resources[f"/torrents/sha256/{digest(BODY)}.torrent"] = _FileResource(torrents / f"{digest(BODY)}.torrent")
    fleet.run(PLAYBOOK)
    for node in ("gpu1", "gpu2"):
        assert tree_of(fleet.folder / node / "store") == {"tiny.gguf": BODY}
    assert [path for path, _headers in fleet.server.requests if "/blobs/" in path] == []
    assert fleet.running() == [] and not list(fleet.folder.glob("*/peer.json")) and not list(fleet.folder.glob("*/s"))
    again = fleet.run(PLAYBOOK)
    assert again.count("changed=0") == 3, again
    fleet.run(ABSENT)
    assert not list(fleet.folder.glob("*/lib/peer")) and not list(fleet.folder.glob("*/tls/peer.*"))


class _FileResource:
    """What a web server has at a path, read when it is asked for."""

    statuses = cuts = ()
    ranges, redirect, declared, chunked, hold, pause_at, range_shift, range_first = True, "", None, False, None, 1, 0, ""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def body(self) -> bytes:
        return self.path.read_bytes()

    def tag(self) -> str:
        return ""
