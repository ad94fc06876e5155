# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The unit as it is rendered, its arguments on a real exporter where one is installed, and an archive fetched from a real server."""

from __future__ import annotations

import configparser
import hashlib
import http.server
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import free_port
from ansible_collections.localfirst.llm_fleet.tests.unit.support.role_template import Role

REPO = Path(__file__).resolve().parents[4]
NODE_EXPORTER = os.environ.get("NODE_EXPORTER") or shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
SAID = {"stdout": "node_exporter, version 1.5.0 (branch: debian/sid, revision: 1.5.0-1+b6)\n  go version: go1.19.8", "stderr": ""}


def role(**variables) -> Role:
    facts = {"os_family": "Debian", "distribution": "Debian", "machine": "x86_64"}
    return Role("node_exporter", **{
        "ansible_facts": facts, "ansible_managed": "managed", "llm_fleet_address": "10.0.0.5", "llm_fleet_ca_dir": "/srv/ca",
        "llm_fleet_monitor_password": "s3cret", "__node_exporter_said": SAID, **variables,
    })


def unit(one: Role) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(one.render("llm-fleet-node-exporter.service.j2").replace("\\\n", ""))
    return parser


def command(one: Role) -> list[str]:
    return shlex.split(unit(one)["Service"]["ExecStart"])


@pytest.mark.parametrize("settings, listen", [
    ({}, "10.0.0.5:9100"), ({"llm_fleet_address": "fd00::5", "node_exporter_port": 9101}, "[fd00::5]:9101"),
])
def test_it_listens_on_the_private_address_only(settings, listen):
    arguments = command(role(**settings))
    assert [argument for argument in arguments if "listen-address" in argument] == [f"--web.listen-address={listen}"]
    assert "--web.config.file=/etc/llm_fleet/node_exporter/web.yml" in arguments


@pytest.mark.parametrize("said, option", [
    ({"stdout": "node_exporter, version 1.3.1 (branch: HEAD)", "stderr": ""}, "--web.config"),
    ({"stdout": "", "stderr": "node_exporter, version 1.10.2 (branch: HEAD)"}, "--web.config.file"),
    ({"rc": 2}, "--web.config.file"),  # check mode on a bare host
])
def test_the_option_that_this_version_has(said, option):
    assert f"{option}=/etc/llm_fleet/node_exporter/web.yml" in command(role(__node_exporter_said=said))


def test_further_arguments_come_through_as_they_are():
    wanted = ["--collector.systemd", r'--collector.filesystem.mount-points-exclude=^/(dev|"x y")($|/)']
    line = unit(role(node_exporter_arguments=wanted))["Service"]["ExecStart"]
    # systemd takes %% and $$ for one of each.
    assert [one.replace("%%", "%").replace("$$", "$") for one in shlex.split(line)][-2:] == wanted


def test_it_has_no_privilege():
    service = unit(role())["Service"]
    assert service["User"] == "llm-fleet-exporter" and service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict" and service["NoNewPrivileges"] == "yes" and service["Restart"] == "always"


@pytest.mark.parametrize("settings, fits", [
    ({}, True),
    ({"llm_fleet_address": "0.0.0.0"}, False), ({"llm_fleet_address": "gpu1"}, False), ({"llm_fleet_address": "1.2.3"}, False),
    ({"llm_fleet_ca_dir": "ca"}, False),
    ({"llm_fleet_monitor_password": ""}, False),
    ({"llm_fleet_monitor_password": "", "node_exporter_password_hash": "$2y$10$x"}, True),
    ({"node_exporter_source": "binary"}, False),
    ({"node_exporter_source": "binary", "node_exporter_version": "1.9.1", "node_exporter_sha256": "a" * 64}, True),
    ({"ansible_facts": {"os_family": "RedHat", "distribution": "RedHat", "machine": "x86_64"}}, False),
])
def test_what_it_was_given_is_checked(settings, fits):
    one = role(**settings)
    conditions = []
    for task in one.tasks("check.yml"):
        that = task.get("ansible.builtin.assert", {}).get("that", [])
        conditions += that if isinstance(that, list) else [that]
    assert all(one.evaluate(condition) for condition in conditions) is fits


@pytest.mark.parametrize("states, running", [
    (["active", "inactive", "inactive"], ["prometheus-node-exporter.service"]),
    (["inactive", "active", "failed"], ["node_exporter.service"]),
    (["inactive", "inactive", "inactive"], []), ([], []),
])
def test_an_exporter_of_the_operators_is_seen(states, running):
    assert role(__node_exporter_active={"stdout_lines": states}).evaluate("__node_exporter_running") == running


def test_the_archive_of_this_machine():
    one = role(node_exporter_source="binary", node_exporter_version="1.9.1", node_exporter_sha256="ab" * 32)
    assert one.evaluate("__node_exporter_from").endswith("/v1.9.1/node_exporter-1.9.1.linux-amd64.tar.gz")
    assert command(one)[0] == "/opt/llm_fleet/node_exporter/1.9.1-abababababab/node_exporter"
    one.variables["ansible_facts"]["machine"] = "aarch64"
    assert one.evaluate("__node_exporter_from").endswith("linux-arm64.tar.gz")
    one.variables["node_exporter_url"] = "https://mirror.example/x.tar.gz"
    assert one.evaluate("__node_exporter_from") == "https://mirror.example/x.tar.gz"


@pytest.mark.skipif(not NODE_EXPORTER, reason="there is no node exporter here: apt-get install prometheus-node-exporter")
def test_a_real_exporter_takes_the_arguments_and_serves_files_of_others(tmp_path, run_module):
    FleetCa(tmp_path).issue("server", client=False)
    run_module("exporter_web_config", dest=str(tmp_path / "web.yml"), cert_file="server.pem", key_file="server.key", username="monitor",
               password="s3cret", cost=4)
    (tmp_path / "gpu_health.prom").write_text("llm_fleet_gpu_healthy 1\n")
    said = subprocess.run([NODE_EXPORTER, "--version"], capture_output=True, text=True, check=True)
    port = free_port()
    one = role(
        llm_fleet_address="127.0.0.1", node_exporter_port=port, node_exporter_textfile_dir=str(tmp_path),
        __node_exporter_program=NODE_EXPORTER, __node_exporter_web=str(tmp_path / "web.yml"),
        __node_exporter_said={"stdout": said.stdout, "stderr": said.stderr},
    )
    process = subprocess.Popen(command(one), stderr=subprocess.PIPE)
    try:
        for line in process.stderr:
            if b"TLS is enabled" in line:
                break
        asked = subprocess.run(
            ["curl", "--silent", "--show-error", "--retry", "20", "--retry-connrefused", "--retry-delay", "1",
             "--cacert", tmp_path / "ca.pem", "--user", "monitor:s3cret", f"https://127.0.0.1:{port}/metrics"],
            capture_output=True, text=True, check=True,
        )
        assert "llm_fleet_gpu_healthy 1" in asked.stdout and "node_memory_MemTotal_bytes" in asked.stdout
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Mirror:
    """An archive as the project makes them, on a real server."""

    def __init__(self, folder: Path) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            program = b"#!/bin/sh\necho node_exporter, version 9.9.9\n"
            entry = tarfile.TarInfo("node_exporter-9.9.9.linux-amd64/node_exporter")
            entry.size, entry.mode = len(program), 0o755
            archive.addfile(entry, io.BytesIO(program))
        (folder / "x.tar.gz").write_bytes(packed.getvalue())
        self.digest = hashlib.sha256(packed.getvalue()).hexdigest()
        self.asked = asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *_arguments):
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/x.tar.gz"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    made = Mirror(folder)
    yield made
    made.server.shutdown()
    made.server.server_close()


def play(folder: Path, *arguments: str, **variables) -> subprocess.CompletedProcess:
    """The role's step that fetches the archive, on this machine, into the test's directory."""
    role_step = {"name": "localfirst.llm_fleet.node_exporter", "tasks_from": "binary", "defaults_from": "main"}
    tasks = [{"name": "Fetch", "ansible.builtin.include_role": role_step}]
    book = folder / "play.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    variables |= {"node_exporter_source": "binary", "ansible_python_interpreter": sys.executable, "ansible_facts": {"machine": "x86_64"}}
    environment = {
        **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPO / ".venv/collections"), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_NOCOLOR": "1", "no_proxy": "*",
    }
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", book, "--extra-vars", json.dumps(variables), *arguments],
        capture_output=True, text=True, env=environment, cwd=folder, check=False,
    )


def test_an_archive_is_fetched_once_checked_and_unpacked(mirror, tmp_path):
    versions = tmp_path / "opt"
    settings = {"node_exporter_version": "9.9.9", "node_exporter_url": mirror.url, "__node_exporter_binaries": str(versions)}
    wrong = play(tmp_path, node_exporter_sha256="0" * 64, **settings)
    assert wrong.returncode != 0 and "checksum" in wrong.stdout + wrong.stderr and not list(versions.glob("9.9.9-*/node_exporter"))
    right = {**settings, "node_exporter_sha256": mirror.digest}
    check = play(tmp_path, "--check", **right)
    assert check.returncode == 0 and "Would fetch" in check.stdout and not list(versions.glob("9.9.9-*/node_exporter"))
    done = play(tmp_path, **right)
    assert done.returncode == 0, done.stdout
    (program,) = versions.glob("9.9.9-*/node_exporter")
    assert program.parent.name == f"9.9.9-{mirror.digest[:12]}" and os.access(program, os.X_OK)
    assert [path.name for path in versions.iterdir()] == [program.parent.name], "nothing is left behind"
    requests = len(mirror.asked)
    again = play(tmp_path, **right)
    assert "changed=0" in again.stdout and len(mirror.asked) == requests
