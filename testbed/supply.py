#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Supply a testbed fleet with what a real one gets from outside: model files and engine images.

For each source in the inventory's catalog that is a file here (file://) or on the upstream host's file server (http://) it
makes a tiny model; and it pushes the images of the catalog's engines to the upstream host's registry. Other sources are
filled by the tests that use them. What is there already stays as it is.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import fleet as testbed

MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")
FILES = "/srv/files"


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


def serve_model(fleet: testbed.Fleet, path: Path, served: str) -> None:
    """Put a model file on the upstream host's file server at the path `served`, if it has another or none."""
    container, target = fleet.container(fleet.upstream()), f"{FILES}{served}"
    has = testbed.docker("exec", container, "sha256sum", target, check=False)
    if not has.startswith(hashlib.sha256(path.read_bytes()).hexdigest()):
        testbed.docker("exec", container, "install", "-d", str(Path(target).parent))
        testbed.docker("cp", str(path), f"{container}:{target}")
        testbed.docker("exec", container, "chmod", "0644", target)


def supply(fleet: testbed.Fleet, catalog: list[dict]) -> None:
    for source in sorted({entry["source"] for model in catalog for entry in model["versions"].values()}):
        parts = urlsplit(source)
        if parts.scheme == "file":
            make_model(Path(parts.path))
        elif parts.hostname == fleet.upstream().address and parts.scheme == "http":
            path = fleet.state / "models" / Path(parts.path).name
            make_model(path)
            serve_model(fleet, path, parts.path)
    for engine in sorted({model["engine"] for model in catalog}):
        testbed.push_image(fleet, f"{testbed.PREFIX}/{engine}")


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("-i", "--inventory", type=Path, required=True, help="inventory that defines the fleet")
    args = cli.parse_args()
    inventory = args.inventory.resolve()
    try:
        fleet = testbed.read_fleet(inventory)
        supply(fleet, read_catalog(inventory, fleet.state))
    except testbed.FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
