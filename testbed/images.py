#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Build the testbed's images from the recipes in testbed/images/.

A recipe with `suite` becomes a new root made by mmdebstrap, one with `base` is another image and what is added to it:
packages, and packages from PyPI too (`python`). `doubles` names programs of testbed/doubles/ that go to /opt/doubles/.
An image carries the hash of its recipe as a label and is built again only when the recipe changed.
Needs nothing but Python 3.11 and mmdebstrap: images are built while the virtual environment still installs.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

RECIPES = Path(__file__).resolve().parent / "images"
DOUBLES = RECIPES.parent / "doubles"
PREFIX = "llm-fleet-testbed"
LABEL = f"{PREFIX}.recipe"
# Marks containers in which an image is being made. The image inherits the label with another value, so that hosts
# that run from it are never taken for leftovers of a build.
BUILDING, BUILT = f"{PREFIX}.build=running", f"{PREFIX}.build=done"
MIRROR = os.environ.get("DEBIAN_MIRROR", "")
DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))
SUDO = [] if os.geteuid() == 0 else ["sudo"]
# The lines of mmdebstrap's log that say how far it is.
SHOWN = ("I: running apt", "I: download", "I: extract", "I: install", "I: creating")
# Those of the demo.
DEFAULT = ["debian12", "debian12-gpu", "debian13", "debian13-gpu", "llamacpp", "mirror", "ollama"]


class BuildError(Exception):
    """A build step failed; the message says which and how."""


def say(name: str, text: str) -> None:
    print(f"  {name:<14} {text}", flush=True)


def load(name: str) -> dict:
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise BuildError(f"{name}: no such image; there are: {known}")
    return tomllib.loads(path.read_text())


def recipe_hash(name: str) -> str:
    """Hash of everything that goes into an image: its recipe, the files it names, its base, the mirror."""
    recipe, digest = load(name), hashlib.sha256(MIRROR.encode())
    digest.update((RECIPES / f"{name}.toml").read_bytes())
    parts = [RECIPES / part for part in (recipe.get("overlay"), recipe.get("setup")) if part]
    for path in [*parts, *doubles(name, recipe)]:
        for file in sorted(p for p in [path, *path.rglob("*")] if p.is_file() and p.suffix != ".pyc"):
            digest.update(f"{os.path.relpath(file, RECIPES)} {file.stat().st_mode & 0o100:o}\n".encode())
            digest.update(file.read_bytes())
    if "base" in recipe:
        digest.update(recipe_hash(recipe["base"]).encode())
    return digest.hexdigest()[:16]


def doubles(name: str, recipe: dict) -> list[Path]:
    """The directories of the doubles that an image holds."""
    found = [DOUBLES / double for double in recipe.get("doubles", ())]
    for path in found:
        if not path.is_dir():
            raise BuildError(f"{name}: there is no double {path}")
    return found


def chain(name: str) -> list[str]:
    """An image with all that it is built on, the lowest first."""
    base = load(name).get("base")
    return [*(chain(base) if base else ()), name]


def run(command: list[str], name: str, **kwargs) -> str:
    """Run a command that belongs to the image `name`; its output is shown only when it fails."""
    done = subprocess.run(command, text=True, capture_output=True, check=False, **kwargs)
    if done.returncode:
        raise BuildError(f"{name}: {shlex.join(command)[:160]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip()


def current_hash(name: str) -> str:
    done = subprocess.run(
        [*DOCKER, "image", "inspect", "-f", f'{{{{index .Config.Labels "{LABEL}"}}}}', f"{PREFIX}/{name}"],
        text=True, capture_output=True, check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def changes(recipe: dict, wanted: str) -> list[str]:
    """Arguments for docker import and docker commit."""
    return [a for line in [*recipe.get("config", []), f"LABEL {LABEL}={wanted} {BUILT}"] for a in ("-c", line)]


def bootstrap(name: str, recipe: dict, wanted: str) -> str:
    """Make a root file system with mmdebstrap and stream it into docker import. Return the image's id."""
    command = [*SUDO, "mmdebstrap", "--variant=minbase", f"--include={','.join(recipe['packages'])}"]
    command += [f"--aptopt={o}" for o in ('Acquire::Languages "none"', *recipe.get("apt_options", []))]
    # The documentation of a hundred packages is never unpacked; it would be removed at the end anyway.
    command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io"]
    if "overlay" in recipe:
        overlay = shlex.quote(str(RECIPES / recipe["overlay"]))
        command += [f'--customize-hook=cp -R --no-preserve=ownership,timestamps {overlay}/. "$1"/']
    for path in doubles(name, recipe):
        command += ['--customize-hook=mkdir -p "$1/opt/doubles"',
                    f'--customize-hook=cp -R --no-preserve=ownership,timestamps {shlex.quote(str(path))} "$1/opt/doubles/"']
    if "setup" in recipe:
        command += [f'--customize-hook=chroot "$1" sh -s < {shlex.quote(str(RECIPES / recipe["setup"]))}']
    # Without a mirror named, mmdebstrap takes Debian's own, with the updates and security suites.
    command += [recipe["suite"], "-", *filter(None, [MIRROR])]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False)
    log: list[str] = []

    def follow() -> None:
        for raw in maker.stderr:
            line = raw.decode(errors="replace").rstrip()
            log.append(line)
            if line.startswith(SHOWN):
                say(name, line[3:])

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    importer = subprocess.run(
        [*DOCKER, "import", *changes(recipe, wanted), "-"],
        stdin=maker.stdout, text=True, capture_output=True, check=False,
    )
    maker.stdout.close()
    code = maker.wait()
    follower.join()
    image = importer.stdout.strip()
    if code or importer.returncode:
        if importer.returncode == 0:
            subprocess.run([*DOCKER, "image", "rm", image], capture_output=True, check=False)
        raise BuildError(f"{name}: mmdebstrap ended with {code}:\n" + "\n".join([*log[-30:], importer.stderr]))
    return image


def derive(name: str, recipe: dict, wanted: str) -> str:
    """Add to a container of the base image what the recipe says, and commit it. Return the image's id."""
    say(name, f"adding {', '.join([*recipe.get('packages', ()), *recipe.get('doubles', ())])} to {recipe['base']}")
    # An engine's image would start the engine; the recipe's own configuration says what the new one starts.
    start = [*DOCKER, "run", "-d", "--entrypoint=", "--label", BUILDING, f"{PREFIX}/{recipe['base']}", "sleep", "3600"]
    container = run(start, name)
    try:
        execute = [*DOCKER, "exec", "-i", "-e", "DEBIAN_FRONTEND=noninteractive", container, "sh", "-c"]
        # The recipe's own configuration files are there before the package: dpkg keeps them.
        if "overlay" in recipe:
            run([*DOCKER, "cp", f"{RECIPES / recipe['overlay']}/.", f"{container}:/"], name)
        if "packages" in recipe:
            install = "apt-get install -qy -o Dpkg::Options::=--force-confold " + " ".join(recipe["packages"])
            run([*execute, f"apt-get update -q && {install} && apt-get clean"], name)
        for path in doubles(name, recipe):
            run([*execute, "mkdir -p /opt/doubles"], name)
            run([*DOCKER, "cp", str(path), f"{container}:/opt/doubles/"], name)
        if "python" in recipe:
            install_from_pypi(name, recipe["python"], container)
        if "setup" in recipe:
            run([*execute, (RECIPES / recipe["setup"]).read_text()], name)
        if not recipe.get("keep_package_lists"):
            run([*execute, "rm -rf /var/lib/apt/lists/*"], name)
        return run([*DOCKER, "commit", *changes(recipe, wanted), container], name)
    finally:
        subprocess.run([*DOCKER, "rm", "-fv", container], capture_output=True, check=False)


def install_from_pypi(name: str, wanted: dict, container: str) -> None:
    """Put packages into a directory of the image, for its Python.

    They are fetched by pip on this machine: what lets it reach PyPI (mirrors, proxies, certificates) lets images
    be built, and nothing of that is needed or left in the image.
    """
    say(name, f"installing {', '.join([*wanted['packages'], *wanted.get('alone', ())])} from PyPI")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[run([*DOCKER, "version", "-f", "{{.Server.Arch}}"], name)]
    # pip wants each kind of wheel by name that the image's C library (at least 2.36) can load.
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)]
    with tempfile.TemporaryDirectory(prefix="llm-fleet-pip-") as scratch:
        # Not the pip that happens to be here: where images are built first, there is none yet.
        run([sys.executable, "-m", "venv", f"{scratch}/venv"], name)
        pip = [f"{scratch}/venv/bin/python", "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check",
               "--upgrade", f"--target={scratch}/packages", f"--python-version={wanted['version']}", "--implementation=cp",
               "--only-binary=:all:", *platforms, f"--platform=manylinux2014_{machine}"]
        run([*pip, *wanted["packages"]], name)
        if "alone" in wanted:
            run([*pip, "--no-deps", *wanted["alone"]], name)
        run([*DOCKER, "exec", container, "mkdir", "-p", wanted["directory"]], name)
        run([*DOCKER, "cp", f"{scratch}/packages/.", f"{container}:{wanted['directory']}"], name)


def build(name: str, wanted: str) -> None:
    recipe, begun = load(name), time.monotonic()
    image = (derive if "base" in recipe else bootstrap)(name, recipe, wanted)
    run([*DOCKER, "tag", image, f"{PREFIX}/{name}"], name)
    say(name, f"built in {time.monotonic() - begun:.0f} s")


def remove_leftovers() -> None:
    """Remove build containers of an earlier run that was killed, and earlier images that nobody uses."""
    found = run([*DOCKER, "ps", "-aq", "--filter", f"label={BUILDING}"], "docker").split()
    if found:
        run([*DOCKER, "rm", "-fv", *found], "docker")
    run([*DOCKER, "image", "prune", "-f", "--filter", f"label={LABEL}"], "docker")


def remove_all() -> None:
    remove_leftovers()
    images = run([*DOCKER, "image", "ls", "-q", "--filter", f"label={LABEL}"], "docker").split()
    if images:
        run([*DOCKER, "image", "rm", "-f", *dict.fromkeys(images)], "docker")


def build_all(names: list[str]) -> None:
    """Build what is missing or outdated, bases first, those that don't need each other side by side."""
    order = list(dict.fromkeys(n for name in names for n in chain(name)))
    missing = {name: wanted for name in order if current_hash(name) != (wanted := recipe_hash(name))}
    if not missing:
        print("  all images are there: " + ", ".join(order), flush=True)
        return
    remove_leftovers()
    print(f"  building {', '.join(missing)}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        jobs: dict[str, concurrent.futures.Future] = {}

        def job(name: str) -> None:
            base = load(name).get("base")
            if base in jobs:
                jobs[base].result()
            build(name, missing[name])

        for name in missing:
            jobs[name] = pool.submit(job, name)
        failed = [e for e in (j.exception() for j in jobs.values()) if e]
    remove_leftovers()
    if failed:
        raise BuildError("\n".join(str(e) for e in dict.fromkeys(failed)))


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("names", nargs="*", help=f"images to build (default: {' '.join(DEFAULT)})")
    cli.add_argument("--remove", action="store_true", help="remove all images of the testbed instead")
    args = cli.parse_args()
    try:
        if args.remove:
            remove_all()
            return 0
        build_all(args.names or DEFAULT)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
