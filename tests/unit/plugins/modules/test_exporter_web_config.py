# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The module as Ansible runs it; what it writes, read by a real exporter where one is installed, over real TLS."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import web_config
from ansible_collections.localfirst.llm_fleet.tests.unit.support.fleet_ca import FleetCa
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gateway_bench import free_port

# NODE_EXPORTER in the environment names another program.
NODE_EXPORTER = os.environ.get("NODE_EXPORTER") or shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")


class Host:
    def __init__(self, folder: Path, run_module) -> None:
        self.folder, self.run_module = folder, run_module
        self.ca = FleetCa(folder)
        self.pair = self.ca.issue("server", client=False)
        self.file = folder / "web.yml"
        self.bin = folder / "bin"
        self.bin.mkdir()

    def call(self, **arguments) -> dict:
        arguments = {"username": "monitor", "cost": 4, **arguments}
        if "password_hash" not in arguments:
            arguments.setdefault("password", "s3cret")
        return self.run_module("exporter_web_config", path=self.bin, **{
            "dest": str(self.file), "cert_file": "server.pem", "key_file": "server.key", **arguments,
        })

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)


@pytest.fixture
def host(tmp_path, run_module):
    return Host(tmp_path, run_module)


def test_a_second_call_changes_nothing(host):
    first = host.call(mode="0640")
    assert first["changed"] and len(first["actions"]) == 1
    assert host.file.stat().st_mode & 0o777 == 0o640
    before = host.file.read_bytes(), host.file.stat().st_mtime_ns
    second = host.call(mode="0640")
    assert not second["changed"] and second["actions"] == []
    assert (host.file.read_bytes(), host.file.stat().st_mtime_ns) == before


def test_another_password_or_user_changes_the_file(host):
    host.call()
    old = web_config.users_of(host.file.read_text())["monitor"]
    assert host.call(password="0ther")["actions"] == [f"{host.file}: a new password for monitor"]
    assert web_config.users_of(host.file.read_text())["monitor"] != old
    renamed = host.call(username="prometheus", password="0ther")
    assert f"{host.file}: monitor may no longer ask" in renamed["actions"]
    assert list(web_config.users_of(host.file.read_text())) == ["prometheus"]


def test_a_hash_of_the_operators_is_taken_as_it_is(host):
    text = "$2y$10$" + "a" * 53
    assert host.call(password_hash=text)["changed"]
    assert web_config.users_of(host.file.read_text()) == {"monitor": text}
    assert not host.call(password_hash=text)["changed"]


def test_check_mode_writes_nothing_and_works_on_a_bare_host(host):
    for name in host.pair:
        Path(name).unlink()
    result = host.call(check_mode=True, diff=True)
    assert result["changed"] and result["actions"] and not host.file.exists()


def test_neither_password_nor_hash_is_shown(host):
    host.call()
    text = web_config.users_of(host.file.read_text())["monitor"]
    result = host.call(password="an0ther", diff=True)
    shown = str({**result, "invocation": {}})
    assert text not in shown and "an0ther" not in str(result) and "s3cret" not in str(result)
    assert "********" in result["diff"]["before"]


def test_without_a_certificate_nothing_is_written(host):
    Path(host.pair.certificate).unlink()
    result = host.call()
    assert result["failed"] and str(host.folder / "server.pem") in result["msg"] and not host.file.exists()


def test_a_certificate_of_another_key_is_refused(host):
    other = host.ca.issue("other", client=False)
    shutil.copy(other.key, host.pair.key)
    result = host.call()
    assert result["failed"] and "not a certificate for the key" in result["msg"] and not host.file.exists()


@pytest.mark.parametrize("wrong, said", [
    ({"username": "a:b"}, "colon"), ({"password": ""}, "empty"), ({"password": "x" * 73}, "72 bytes"),
    ({"password_hash": "plain"}, "htpasswd"), ({"cost": 3}, "cost is 3"), ({"cost": 31}, "cost is 31"),
])
def test_what_cannot_be_used_is_refused_with_a_way_out(host, wrong, said):
    result = host.call(**wrong)
    assert result["failed"] and said in result["msg"] and not host.file.exists()


def test_promtool_has_the_last_word(host):
    strict = """#!/bin/sh
        test "$1 $2" = "check web-config" && grep -q min_version "$3" && echo "$3: not like this" >&2
        exit 1"""
    host.program("promtool", strict)
    result = host.call()
    assert result["failed"] and f"{host.file}: not like this" in result["msg"] and not host.file.exists()
    assert sorted(path.name for path in host.folder.iterdir() if path.name.startswith(".web-")) == []
    host.program("promtool", "#!/bin/sh\nexit 0\n")
    assert host.call()["changed"]


class Exporter:
    """A real exporter on loopback."""

    def __init__(self, host: Host) -> None:
        self.port, self.ca = free_port(), host.ca.pem
        flag = "--web.config.file"
        self.process = subprocess.Popen(
            [NODE_EXPORTER, f"--web.listen-address=127.0.0.1:{self.port}", f"{flag}={host.file}", "--collector.disable-defaults"],
            stderr=subprocess.PIPE,
        )
        for line in self.process.stderr:
            if b"TLS is enabled" in line:
                break

    def status(self, user: str = "", password: str = "") -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=ssl.create_default_context(cafile=self.ca))
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()} if user else {}
        for _attempt in range(50):
            try:
                connection.request("GET", "/metrics", headers=headers)
                return connection.getresponse().status
            except ConnectionRefusedError:
                time.sleep(0.1)
        raise AssertionError("the exporter does not listen")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.mark.skipif(not NODE_EXPORTER, reason="there is no node exporter here: apt-get install prometheus-node-exporter")
def test_a_real_exporter_asks_for_the_password_and_takes_up_a_new_one_by_itself(host):
    host.call()
    exporter = Exporter(host)
    try:
        assert [exporter.status(), exporter.status("monitor", "wrong"), exporter.status("other", "s3cret")] == [401, 401, 401]
        assert exporter.status("monitor", "s3cret") == 200
        host.call(password="0ther")
        assert [exporter.status("monitor", "s3cret"), exporter.status("monitor", "0ther")] == [401, 200]
    finally:
        exporter.close()
