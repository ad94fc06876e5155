#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Supply a testbed fleet with what a real one gets from outside: model files, engine images, a lockfile.

For each model version in the inventory's catalog it writes a tiny model to <state>/models/, puts it on the upstream
host's file server too, pushes the engine's image to that host's registry and locks it all in <state>/models.lock.yml.
What is there already stays as it is.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import fleet as testbed

MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")
FILES = "/srv/files/models"


def read_catalog(inventory: Path, state: Path) -> list[dict]:
    """The catalog as the inventory has it; the state directory is the one variable that it may use."""
    for values in testbed.read_hostvars(inventory).values():
        if "llm_fleet_models" in values:
            text = json.dumps(values["llm_fleet_models"])
            return json.loads(text.replace("{{ testbed_state_dir }}", str(state)))
    return []


def seed(name: str) -> int:
    """`tiny` is the model that everybody uses; each other name gives a model of its own."""
    return 0 if name == "tiny" else int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)


def make_model(path: Path) -> None:
    """Write the model file if it is not there. The same name always gives the same bytes."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    command = [sys.executable, str(MAKE_MODEL), "--seed", str(seed(path.stem)), str(fresh)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise testbed.FleetError(f"{MAKE_MODEL.name}: {done.stderr.strip()[-500:]}")
    fresh.rename(path)
    print(f"  model          {path.name}, {path.stat().st_size / 1e6:.1f} MB", flush=True)


def serve_model(fleet: testbed.Fleet, path: Path, digest: str) -> None:
    """Put a model file on the upstream host's file server, if it has another or none."""
    container = fleet.container(fleet.upstream())
    has = testbed.docker("exec", container, "sha256sum", f"{FILES}/{path.name}", check=False)
    if not has.startswith(digest):
        testbed.docker("exec", container, "install", "-d", FILES)
        testbed.docker("cp", str(path), f"{container}:{FILES}/{path.name}")
        testbed.docker("exec", container, "chmod", "0644", f"{FILES}/{path.name}")


def lock(fleet: testbed.Fleet, catalog: list[dict]) -> dict:
    """Supply everything that the catalog names and return the lockfile's content."""
    locked: dict = {"images": {}, "models": {}}
    for model in catalog:
        for version, entry in model["versions"].items():
            path = fleet.state / "models" / entry["source"].rsplit("/", 1)[-1]
            make_model(path)
            size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            serve_model(fleet, path, digest)
            locked["models"].setdefault(model["name"], {})[version] = {
                "asked": entry["source"],
                "source": entry["source"],
                "format": "gguf",
                "files": [{"path": path.name, "size": size, "sha256": digest}],
            }
    for engine in sorted({model["engine"] for model in catalog}):
        locked["images"][engine] = {
            "image": f"{fleet.upstream().address}:5000/{engine}",
            "digest": testbed.push_image(fleet, f"{testbed.PREFIX}/{engine}"),
        }
    return locked


def lockfile_text(locked: dict) -> str:
    """The text as the collection itself writes it."""
    sys.path.insert(0, str(testbed.REPO / ".venv" / "collections"))
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile

    return render_lockfile(locked)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("-i", "--inventory", type=Path, required=True, help="inventory that defines the fleet")
    args = cli.parse_args()
    inventory = args.inventory.resolve()
    try:
        fleet = testbed.read_fleet(inventory)
        text = lockfile_text(lock(fleet, read_catalog(inventory, fleet.state)))
        if testbed.write_if_changed(fleet.state / "models.lock.yml", text):
            print(f"  lockfile       {fleet.state / 'models.lock.yml'}", flush=True)
    except testbed.FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
