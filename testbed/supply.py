#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Supply a testbed fleet with what a real one gets from outside: model files and engine images.

For each source in the inventory's catalog that is a file here (file://) or on the upstream host's file server (http://) it
makes a tiny model: a GGUF file where the source's name ends in .gguf, otherwise a directory as transformers writes it; and it
pushes the images of the catalog's engines to the upstream host's registry. Other sources are filled by the tests that use
them. What is there already stays as it is.

Two variables of the inventory, both optional, say more:
  testbed_models          {file or directory: {option of make_tiny_gguf.py or make_tiny_safetensors.py: value}} for those that
                          are no model like any other
  testbed_engine_images   {name:tag in the registry: image of the testbed} for images that the catalog does not name
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import fleet as testbed

HERE = Path(__file__).parent
FILES = "/srv/files"
GGUF = ".gguf"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the inventory asks for."""

    catalog: list[dict]
    recipes: dict[str, dict]
    images: dict[str, str]


def read_wanted(hostvars: dict[str, dict], state: Path) -> Wanted:
    """The variables as the inventory has them; the state directory is the one variable that they may use."""
    for values in hostvars.values():
        if "llm_fleet_models" in values:
            names = ("llm_fleet_models", "testbed_models", "testbed_engine_images")
            text = json.dumps([values.get(name) for name in names])
            catalog, recipes, images = json.loads(text.replace("{{ testbed_state_dir }}", str(state)))
            return Wanted(catalog, recipes or {}, images or {})
    return Wanted([], {}, {})


def seed(name: str) -> int:
    """`tiny` is the model that everybody uses; each other name gives a model of its own."""
    return 0 if name == "tiny" else int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)


def options(recipe: dict) -> list[str]:
    """A recipe as arguments of what makes models: {idle_layers: 60, broken: true} is --idle-layers=60 --broken."""
    names = {key: f"--{key.replace('_', '-')}" for key in sorted(recipe)}
    return [names[key] if recipe[key] is True else f"{names[key]}={recipe[key]}" for key in names if recipe[key] is not False]


def make_model(path: Path, recipe: dict) -> None:
    """Write the model if it is not there, or was made by another recipe. The same recipe always gives the same bytes."""
    one_file = path.suffix == GGUF
    name = path.stem if one_file else path.name
    maker = HERE / ("make_tiny_gguf.py" if one_file else "make_tiny_safetensors.py")
    arguments = options({"seed": seed(name), **recipe})
    # Which recipe made it lies beside it.
    made_by, text = path.with_name(f"{name}.recipe"), f"{' '.join(arguments)}\n"
    if path.exists() and made_by.exists() and made_by.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made_by.unlink(missing_ok=True)
    fresh = path.with_name(f"{name}.new")
    if fresh.is_dir():
        shutil.rmtree(fresh)
    done = subprocess.run([sys.executable, str(maker), *arguments, str(fresh)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise testbed.FleetError(f"{path.name}: {maker.name}: {done.stderr.strip()[-500:]}")
    if path.is_dir():
        shutil.rmtree(path)
    fresh.rename(path)
    made_by.write_text(text)
    print(f"  model          {path.name}, {sum(file.stat().st_size for file in files_of(path)) / 1e6:.1f} MB", flush=True)


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in [path, *path.rglob("*")] if file.is_file())


def sums(path: Path) -> str:
    """The SHA256SUMS of a directory, by which the lock knows its files: HTTP has no listing."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path)}\n" for file in files_of(path))


def serve_folder(fleet: testbed.Fleet, path: Path, served: str) -> None:
    """Put a model's directory on the upstream host's file server at the path `served`, if it has another or none."""
    container, target, wanted = fleet.container(fleet.upstream()), f"{FILES}{served.rstrip('/')}", sums(path)
    check = 'cd "$0" && sha256sum --check --quiet SHA256SUMS >/dev/null && cat SHA256SUMS'
    if testbed.docker("exec", container, "sh", "-c", check, target, check=False).strip() == wanted.strip():
        return
    testbed.docker("exec", container, "rm", "-rf", target)
    testbed.docker("exec", container, "install", "-d", target)
    testbed.docker("cp", f"{path}/.", f"{container}:{target}")
    with tempfile.NamedTemporaryFile("w", prefix="llm-fleet-sums-") as file:
        file.write(wanted)
        file.flush()
        testbed.docker("cp", file.name, f"{container}:{target}/SHA256SUMS")
    testbed.docker("exec", container, "chmod", "-R", "a+rX", target)


def serve_model(fleet: testbed.Fleet, path: Path, served: str) -> None:
    """Put a model file on the upstream host's file server at the path `served`, if it has another or none."""
    container, target = fleet.container(fleet.upstream()), f"{FILES}{served}"
    has = testbed.docker("exec", container, "sha256sum", target, check=False)
    if not has.startswith(hashlib.sha256(path.read_bytes()).hexdigest()):
        testbed.docker("exec", container, "install", "-d", str(Path(target).parent))
        testbed.docker("cp", str(path), f"{container}:{target}")
        testbed.docker("exec", container, "chmod", "0644", target)


def supply(fleet: testbed.Fleet, wanted: Wanted) -> None:
    sources = [urlsplit(entry["source"]) for model in wanted.catalog for entry in model["versions"].values()]
    files = [parts for parts in sources if parts.scheme == "file" or (parts.scheme, parts.hostname) == ("http", fleet.upstream().address)]
    strangers = sorted(set(wanted.recipes) - {Path(parts.path).name for parts in files})
    if strangers:
        raise testbed.FleetError(f"testbed_models: the catalog has no source with the name {', '.join(strangers)}")
    for parts in sorted(set(files)):
        name = Path(parts.path).name
        path = Path(parts.path) if parts.scheme == "file" else fleet.state / "models" / name
        make_model(path, wanted.recipes.get(name, {}))
        if parts.scheme == "http":
            (serve_model if path.suffix == GGUF else serve_folder)(fleet, path, parts.path)
    for engine in sorted({model["engine"] for model in wanted.catalog}):
        testbed.push_image(fleet, f"{testbed.PREFIX}/{engine}")
    for reference, image in sorted(wanted.images.items()):
        testbed.push_image(fleet, f"{testbed.PREFIX}/{image}", reference)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("-i", "--inventory", type=Path, required=True, help="inventory that defines the fleet")
    args = cli.parse_args()
    inventory = args.inventory.resolve()
    try:
        fleet = testbed.read_fleet(inventory)
        supply(fleet, read_wanted(testbed.read_hostvars(inventory), fleet.state))
    except testbed.FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
