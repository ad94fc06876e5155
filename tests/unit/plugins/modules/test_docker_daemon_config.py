# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module as Ansible runs it: a process with its arguments as JSON, on real files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support import module_process

REPO = Path(__file__).resolve().parents[4]
MODULE = REPO / "plugins/modules/docker_daemon_config.py"
COLLECTIONS = REPO / ".venv/collections"

OPERATORS = '{\n\t"debug": true,\n\t"registry-mirrors": ["https://one.example"],\n\t"log-opts": {"tag": "x"}\n}'
SETTINGS = {
    "config": {"live-restore": True, "registry-mirrors": ["https://two.example"]},
    "defaults": {"log-driver": "json-file", "log-opts": {"max-size": "50m"}},
}


class Host:
    """Directories that stand for a host's, and a way to call the module on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "docker/daemon.json"
        self.state = root / "state"
        self.pidfile = root / "docker.pid"
        self.bin = root / "bin"
        self.bin.mkdir()

    def call(self, **arguments) -> dict:
        arguments = {
            "path": str(self.file), "state_dir": str(self.state), "pidfile": str(self.pidfile),
            "_ansible_remote_tmp": str(self.root / "tmp"), **arguments,
        }
        environment = {**os.environ, "PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.root)}
        return module_process.call("docker_daemon_config", arguments, environment)

    def marker(self, name: str) -> str | None:
        path = self.state / f"docker-{name}-pending"
        return path.read_text() if path.exists() else None


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def operators_host(host):
    host.file.parent.mkdir()
    host.file.write_text(OPERATORS)
    host.file.chmod(0o640)
    return host


@pytest.fixture
def running(host):
    # The test process stands for dockerd: a process id that is alive.
    host.pidfile.write_text(f"{os.getpid()}\n")


def test_on_a_bare_host_it_makes_the_file_and_takes_it_away_again(host):
    result = host.call(**SETTINGS)
    assert result["changed"] and not result["docker_running"]
    assert json.loads(host.file.read_text())["log-opts"] == {"max-size": "50m"}
    assert host.file.stat().st_mode & 0o777 == 0o644
    # It holds the operator's text, which may hold a password.
    assert (host.state / "docker-daemon.json").stat().st_mode & 0o777 == 0o600
    assert host.call(state="absent")["changed"]
    assert not host.file.parent.exists()
    assert list(host.state.iterdir()) == []


def test_a_second_call_changes_nothing(operators_host):
    operators_host.call(**SETTINGS)
    files = [operators_host.file, operators_host.state / "docker-daemon.json"]
    before = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    result = operators_host.call(**SETTINGS)
    assert not result["changed"] and result["actions"] == []
    assert result["diff"]["before"] == result["diff"]["after"]
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == before


def test_the_operators_file_comes_back_as_it_was(operators_host):
    operators_host.call(**SETTINGS)
    merged = json.loads(operators_host.file.read_text())
    assert merged["registry-mirrors"] == ["https://one.example", "https://two.example"]
    assert merged["debug"] is True and merged["log-opts"] == {"tag": "x", "max-size": "50m"}
    operators_host.call(state="absent")
    assert operators_host.file.read_text() == OPERATORS
    assert operators_host.file.stat().st_mode & 0o777 == 0o640
    assert not operators_host.call(state="absent")["changed"]


def test_what_the_operator_adds_meanwhile_stays(operators_host):
    operators_host.call(**SETTINGS)
    edited = json.loads(operators_host.file.read_text())
    edited["mtu"] = 1400
    operators_host.file.write_text(json.dumps(edited))
    assert not operators_host.call(**SETTINGS)["changed"]
    operators_host.call(state="absent")
    assert json.loads(operators_host.file.read_text()) == {**json.loads(OPERATORS), "mtu": 1400}


def test_a_setting_that_is_no_longer_wanted_goes_out_again(operators_host):
    operators_host.call(**SETTINGS)
    result = operators_host.call(config={"live-restore": True})
    assert result["changed_keys"] == ["log-driver", "log-opts", "registry-mirrors"]
    assert json.loads(operators_host.file.read_text()) == {**json.loads(OPERATORS), "live-restore": True}


def test_check_mode_foretells_and_leaves_everything_alone(operators_host):
    foretold = operators_host.call(_ansible_check_mode=True, **SETTINGS)
    assert operators_host.file.read_text() == OPERATORS and not operators_host.state.exists()
    done = operators_host.call(**SETTINGS)
    assert (foretold["actions"], foretold["diff"]) == (done["actions"], done["diff"])


def test_a_symbolic_link_stays_one(operators_host):
    target = operators_host.root / "managed.json"
    operators_host.file.rename(target)
    operators_host.file.symlink_to(target)
    operators_host.call(**SETTINGS)
    assert operators_host.file.is_symlink() and "live-restore" in target.read_text()


@pytest.mark.parametrize("text", [b'{"a": 1,\n "b" 2}', b"[]", b'{"a": "\xff"}'])
def test_a_broken_file_is_named_with_the_place_and_not_touched(operators_host, text):
    operators_host.file.write_bytes(text)
    result = operators_host.call(**SETTINGS)
    assert result["failed"] and str(operators_host.file) in result["msg"]
    assert any(place in result["msg"] for place in ("line 2, column 6", "line 1, column 1", "byte 8"))
    assert operators_host.file.read_bytes() == text and not operators_host.state.exists()


def test_a_record_of_another_file_is_not_used(operators_host):
    operators_host.call(**SETTINGS)
    result = operators_host.call(path=str(operators_host.root / "other.json"), **SETTINGS)
    assert result["failed"] and "state=absent" in result["msg"]


# What a running Docker has to be told


def test_where_no_docker_runs_nothing_is_pending(operators_host):
    operators_host.pidfile.write_text("999999999")
    result = operators_host.call(**SETTINGS)
    assert result["reload_pending"] == result["restart_pending"] == []
    assert operators_host.marker("reload") is operators_host.marker("restart") is None


@pytest.mark.usefixtures("running")
def test_a_running_docker_is_to_be_reloaded_or_restarted(operators_host):
    result = operators_host.call(**SETTINGS)
    assert result["reload_pending"] == ["live-restore", "registry-mirrors"]
    assert result["restart_pending"] == ["log-driver", "log-opts"]
    assert operators_host.marker("reload") == "live-restore\nregistry-mirrors\n"


@pytest.mark.usefixtures("running")
def test_what_is_pending_is_not_forgotten_when_a_run_ends_in_between(operators_host):
    operators_host.call(**SETTINGS)
    result = operators_host.call(**SETTINGS)
    assert not result["changed"] and result["restart_pending"] == ["log-driver", "log-opts"]
    (operators_host.state / "docker-restart-pending").unlink()
    assert operators_host.call(**SETTINGS)["restart_pending"] == []


# A dockerd that can validate


def dockerd(host: Host, script: str) -> None:
    program = host.bin / "dockerd"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_dockerd_sees_the_merged_file_before_it_is_put_in_place(operators_host):
    copy = operators_host.root / "seen.json"
    dockerd(operators_host, f'case "$1" in --help) echo "  --validate";; *) cp "${{2#--config-file=}}" {copy};; esac')
    operators_host.call(**SETTINGS)
    assert copy.read_text() == operators_host.file.read_text()


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_file_that_dockerd_refuses_is_not_put_in_place(operators_host, check_mode):
    refuse = 'case "$1" in --help) echo "  --validate";; *) echo "unknown option: foo" >&2; exit 1;; esac'
    dockerd(operators_host, refuse)
    result = operators_host.call(config={"foo": 1}, _ansible_check_mode=check_mode)
    assert result["failed"] and "unknown option: foo" in result["msg"]
    assert operators_host.file.read_text() == OPERATORS and not operators_host.state.exists()


def test_a_dockerd_that_cannot_validate_is_not_started(operators_host):
    started = operators_host.root / "started"
    dockerd(operators_host, f'[ "$1" = --help ] || touch {started}')
    assert operators_host.call(**SETTINGS)["changed"] and not started.exists()
