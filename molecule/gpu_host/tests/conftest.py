# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A fleet of servers with GPUs, after `hosts.yml -e prepare=all`: drivers, Docker and the toolkit are there, and nothing serves yet."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.molecule.conftest import REPO, Fleet, until
from ansible_collections.localfirst.llm_fleet.tests.load.stream_load import StreamLoad

STATE = REPO / ".testbed" / "gpus"
# GPUs as the two scenarios of the doubles have them.
GPUS = {"gpu1": 8, "gpu2": 2}


def uuids(text: str) -> list[str]:
    """The GPUs in what a program prints."""
    return re.findall(r"GPU-[0-9a-f-]+", text)


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet(REPO / "molecule" / "gpu_host" / "inventory", STATE)


@pytest.fixture(scope="session")
def image(fleet) -> str:
    """The engine's image by digest: any image will do that has a shell."""
    locked = yaml.safe_load((STATE / "models.lock.yml").read_text())["images"]["llamacpp"]
    return f"{locked['image']}@{locked['digest']}"


@pytest.fixture(scope="session")
def dcgm_image(fleet) -> str:
    address = f"{fleet.address('upstream')}:5000"
    ask = f"curl -sI -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' http://{address}/v2/dcgm-exporter/manifests/latest"
    (digest,) = [line.split()[1] for line in fleet.shell("gw1", ask).splitlines() if line.lower().startswith("docker-content-digest")]
    return f"{address}/dcgm-exporter@{digest}"


@pytest.fixture(scope="session")
def serving(fleet, dcgm_image, tmp_path_factory) -> list[str]:
    """The fleet serves. What it is are the arguments with which its playbooks are run from now on."""
    file = tmp_path_factory.mktemp("arguments") / "dcgm.json"
    file.write_text(json.dumps({"dcgm_exporter_image": dcgm_image}))
    arguments = ["-e", f"@{file}"]
    fleet.playbook("site", *arguments)
    return arguments


@pytest.fixture(scope="session")
def token(fleet, serving, tmp_path_factory) -> str:
    return fleet.token("alice", file=tmp_path_factory.mktemp("token") / "alice")


@pytest.fixture
def load(fleet, token):
    """`with load() as clients: …; clients.report`: people who ask all the while."""

    def start(**options) -> StreamLoad:
        gateways = [f"{fleet.address(name)}:443" for name in fleet.hosts("gateways")]
        options = {"clients": 4, "seconds": 900, "tokens": (16, 200), "pause": 0.8, **options}
        return StreamLoad(gateways=gateways, ca=str(fleet.ca), token=token, models=["talk"], **options)

    return start


@pytest.fixture
def scenario(fleet):
    """`with scenario("gpu2") as seen: seen["gpus"][1]["lost"] = "handle"` changes the GPUs of a node; afterwards they are well again."""
    kept = {}

    def write(node: str, seen: dict) -> None:
        text = json.dumps(seen)
        fleet.shell(node, f"cat > /etc/testbed/gpus.json <<'END'\n{text}\nEND\ntestbed-gpus apply")

    @contextlib.contextmanager
    def change(node: str):
        seen = json.loads(fleet.shell(node, "cat /etc/testbed/gpus.json"))
        kept.setdefault(node, json.dumps(seen))
        yield seen
        write(node, seen)

    yield change
    for node, text in kept.items():
        write(node, json.loads(text))


@pytest.fixture(scope="session")
def health(fleet):
    """`health("gpu2")` is the state that the node's timer has written last; with `finding=`, once it has that one."""

    def state(node: str, finding: str | None = None, gone: str | None = None) -> dict:
        def now():
            seen = json.loads(fleet.shell(node, "cat /var/lib/llm_fleet/gpu-health.json"))
            found = {one["finding"]: one for one in seen["findings"]}
            return seen if (finding is None or finding in found) and (gone is None or gone not in found) else None

        return until(now, 60)

    return state
