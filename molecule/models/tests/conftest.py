# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An operator with a catalog of their own beside that of the inventory, which goes on running."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.outside import HUB_TOKEN, S3_SECRET, Outside

CONTROLLER = "10.203.1.1"  # this machine, as the hosts see it
STORE = "/var/lib/llm_fleet/store"
# What no version of the running catalog has is removed: trees of other models, and contents that nobody links to.
FORGET_TREES = f"""
cd {STORE}/models 2>/dev/null || exit 0
for model in *; do case " $KEEP " in *" $model "*) ;; *) rm -rf "$model" ;; esac; done
find {STORE}/blobs -type f -links 1 -delete; rm -rf {STORE}/incoming
"""
FORGET_BLOBS = f"""
cd {STORE}/blobs/sha256 2>/dev/null || exit 0
for blob in *; do case " $KEEP " in *" $blob "*) ;; *) rm -f "$blob" ;; esac; done
rm -rf {STORE}/incoming {STORE}/signatures
"""


class Operator:
    """Somebody with a catalog, a lockfile and a store on the controller, in a folder of their own."""

    def __init__(self, fleet, outside: Outside, folder: Path) -> None:
        self.fleet = fleet
        self.outside = outside
        self.folder = folder
        self.lockfile = folder / "models.lock.yml"
        self.store = folder / "store"
        values = fleet.inventory["_meta"]["hostvars"]["gw1"]
        self.base = json.loads(json.dumps(values["llm_fleet_models"]).replace("{{ testbed_state_dir }}", str(fleet.state)))
        self.images = dict(values["llm_fleet_engine_images"])
        self.more: dict = {}
        self.sources = {
            "oci://": {"plain_http": True},
            "hf://": {"endpoint": outside.hub},
            "ollama://": {"endpoint": outside.ollama},
            "mlflow://": {"endpoint": outside.mlflow},
            "s3://": {"endpoint": outside.s3, "region": "us-east-1", "access_key": "FLEET", "secret_key": S3_SECRET},
        }
        # Begins with what is locked and runs.
        self.lockfile.write_text((fleet.state / "models.lock.yml").read_text())

    def arguments(self, models: list[dict]) -> list[str]:
        """`-e @variables.json`: nothing secret is ever on a command line."""
        path = self.folder / "variables.json"
        path.write_text(json.dumps({
            "llm_fleet_models": [*self.base, *models],
            "llm_fleet_lockfile": str(self.lockfile),
            "llm_fleet_store_dir": str(self.store),
            "llm_fleet_sources": self.sources,
            "llm_fleet_engine_images": self.images,
            **self.more,
        }))
        path.chmod(0o600)
        return ["-e", f"@{path}"]

    def run(self, playbook: str, models: list[dict], *arguments: str, **options):
        return self.fleet.playbook(playbook, *self.arguments(models), *arguments, **options)

    def start(self, playbook: str, models: list[dict], *arguments: str, **options):
        """The run, while it runs, and the file that it prints to."""
        output = self.folder / f"{playbook}.log"
        return self.fleet.start(playbook, *self.arguments(models), *arguments, output=output, **options), output

    def lock(self, models: list[dict], *arguments: str, **options):
        return self.run("lock", models, *arguments, **options)

    def stage(self, models: list[dict], *arguments: str, **options):
        return self.run("stage", models, *arguments, **options)

    def locked(self, model: str, version: str = "1.0.0") -> dict:
        return yaml.safe_load(self.lockfile.read_text())["models"][model][version]

    def digests(self, model: str, version: str = "1.0.0") -> list[str]:
        return [file["sha256"] for file in self.locked(model, version)["files"]]


def model(name: str, source: str, engine: str = "llamacpp", host: str = "gpu1", **more) -> dict:
    """An entry of the catalog, small and on one host."""
    return {
        "name": name, "version": "1.0.0", "versions": {"1.0.0": {"source": source}}, "engine": engine, "replicas": 1,
        "context": 512, "parallel": 1, "placement": {"hosts": [host]}, "access": ["*"], **more,
    }


class Stores:
    """The stores of the hosts, looked at past everything that is tested."""

    def __init__(self, fleet) -> None:
        self.fleet = fleet

    def blobs(self, host: str) -> set[str]:
        return set(self.fleet.shell(host, f"ls {STORE}/blobs/sha256 2>/dev/null || true").split())

    def trees(self, host: str) -> dict[str, str]:
        """{path below models/: digest of what is there} of all files that an engine would see."""
        lines = self.fleet.shell(host, f"cd {STORE}/models 2>/dev/null && find . -type f -exec sha256sum {{}} + || true").splitlines()
        return {path[2:]: digest for digest, path in (line.split("  ", 1) for line in lines)}

    def models(self, host: str) -> set[str]:
        return {path.partition("/")[0] for path in self.trees(host)}

    def arrived(self, host: str, digest: str) -> int:
        """Bytes of a file that is on its way to a host."""
        return int(self.fleet.shell(host, f"stat -c %s {STORE}/incoming/{digest}.part 2>/dev/null || echo 0"))

    def flip(self, host: str, digest: str) -> None:
        """Change one byte of a content, as a failing disk does: size and time stay."""
        path = f"{STORE}/blobs/sha256/{digest}"
        self.fleet.shell(host, f"""
            touch -r {path} /tmp/time; byte=$(od -An -tu1 -j1000 -N1 {path} | tr -d ' ')
            printf "$(printf '\\\\%03o' $((byte ^ 1)))" | dd of={path} bs=1 seek=1000 conv=notrunc status=none; touch -r /tmp/time {path}
        """)

    def served(self, digest: str, to: str, since: float, depot: str = "depot1") -> list[dict]:
        """What a depot has answered to a host that asked for a content, in order."""
        log = self.fleet.shell(depot, f"journalctl -t llm_fleet_depot -o cat --no-pager --since @{int(since)} || true").splitlines()
        answers = [json.loads(line) for line in log if line.startswith("{")]
        return [each for each in answers if each["path"].endswith(digest) and each["from"] == self.fleet.address(to)]


def changed(done) -> dict:
    """Changed tasks by host, from the recap."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)}


def said(done) -> str:
    """What a run printed, on one line: Ansible folds what is long."""
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="session")
def outside(fleet) -> Outside:
    return Outside(fleet)


@pytest.fixture(scope="module")
def operator(fleet, outside, tmp_path_factory) -> Operator:
    return Operator(fleet, outside, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="session")
def stores(fleet) -> Stores:
    return Stores(fleet)


@pytest.fixture
def bare(fleet, operator):
    """All hosts have what runs, and nothing else; afterwards too."""

    def forget():
        names = " ".join({entry["name"] for entry in operator.base} | {instance["model"] for instance in fleet.instances()})
        for host in fleet.hosts("gpu_nodes"):
            fleet.shell(host, f"KEEP='{names}'\n{FORGET_TREES}")
        lock = yaml.safe_load((fleet.state / "models.lock.yml").read_text())["models"]
        keep = " ".join(file["sha256"] for versions in lock.values() for entry in versions.values() for file in entry["files"])
        for host in fleet.hosts("depots"):
            fleet.shell(host, f"KEEP='{keep}'\n{FORGET_BLOBS}")

    forget()
    yield forget
    forget()


@pytest.fixture(scope="session")
def secrets() -> list[str]:
    return [HUB_TOKEN, S3_SECRET]
