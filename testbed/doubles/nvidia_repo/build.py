#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Stands for NVIDIA's package repository: a real one, signed, of small packages with the names and relations of the real ones.

What it does as NVIDIA's: a flat apt repository (suite `/`) with Packages, Release, Release.gpg and InRelease; two driver
branches with two versions each, in both flavours, as headless set and as metapackages; pinning packages; persistence daemon
and fabric manager as services; the container toolkit in two versions with an nvidia-ctk that does what it is documented to
do; DCGM with a dcgmi. apt resolves, pins, holds and upgrades them like any others. An upgrade changes libraries and module
on disk, and the loaded module only at the next boot: in between nvidia-smi says `Driver/library version mismatch`.

What it leaves out: everything that computes. No kernel module, no libraries, no CUDA, and a dkms that compiles nothing.
One version fails to install (packages.BAD_VERSION).

Nobody has to know of it: to use it, nvidia_driver_repository names the repository's address and key, as it would name a mirror's.

    build.py DIRECTORY [--key DIRECTORY] [--kernel RELEASE] [--smi DIRECTORY]

    DIRECTORY   becomes the repository, with its public key as nvidia-double.asc
    --key       GnuPG home that holds the signing key, made where it is missing (default: DIRECTORY/../nvidia-key). The
                signature is made anew by `build.py DIRECTORY --sign-only`, with another key if --key says so: a key rotation
    --kernel    whose headers are on offer (default: the kernel that runs)
    --smi       the double of nvidia-smi, which becomes part of the driver (default: ../nvidia_smi)

Needs dpkg-deb and gpg. The packages run on Debian and Ubuntu with systemd, and need the program testbed-gpus there.
"""
from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

import packages

HERE = Path(__file__).resolve().parent
KEY_FILE = "nvidia-double.asc"
FIELDS = ("Depends", "Provides", "Conflicts", "Replaces")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if text.startswith("#!") else 0o644)


def control(package: packages.Package) -> str:
    lines = [f"Package: {package.name}", f"Version: {package.version}", "Architecture: all", "Section: non-free/kernel",
             "Priority: optional", "Maintainer: localfirst.llm_fleet testbed <testbed@localhost>"]
    lines += [f"{field}: {package.fields[field]}" for field in FIELDS if field in package.fields]
    return "\n".join([*lines, f"Description: double of {package.name} for the testbed"]) + "\n"


def build_package(package: packages.Package, target: Path) -> None:
    """One .deb. Packages of the original that differ by architecture are `all` here: there is nothing but text in them."""
    with tempfile.TemporaryDirectory(prefix="nvidia-double-") as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        write(root / "DEBIAN/control", control(package))
        for name, text in package.scripts.items():
            write(root / "DEBIAN" / name, text)
        for path, text in package.files.items():
            write(root / path.lstrip("/"), text)
        for path, source in package.trees.items():
            shutil.copytree(source, root / path.lstrip("/"), ignore=shutil.ignore_patterns("__pycache__"))
        # A pin is an operator's to keep or change only while it is a configuration file.
        settings = [path for path in package.files if path.startswith("/etc/")]
        if settings:
            write(root / "DEBIAN/conffiles", "".join(f"{path}\n" for path in settings))
        name = f"{package.name}_{package.version.replace(':', '%3a')}_all.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", scratch, str(target / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def index(repository: Path) -> None:
    """Packages, Packages.gz and Release of what lies in the directory."""
    entries = []
    for file in sorted(repository.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "--field", str(file)], check=True, capture_output=True, text=True).stdout
        content = file.read_bytes()
        entries.append(
            f"{fields.rstrip()}\nFilename: ./{file.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    listing = "\n".join(entries).encode()
    (repository / "Packages").write_bytes(listing)
    (repository / "Packages.gz").write_bytes(gzip.compress(listing, mtime=0))
    sums = "".join(
        f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
        for name in ("Packages", "Packages.gz")
        for content in [(repository / name).read_bytes()]
    )
    head = ["Origin: NVIDIA", "Label: NVIDIA CUDA", f"Date: {formatdate(usegmt=True)}",
            "Description: double of NVIDIA's repository"]
    (repository / "Release").write_text("\n".join([*head, "SHA256:", sums]))


def sign(repository: Path, home: Path) -> None:
    """Sign Release with the key in a GnuPG home, made where there is none, and publish that key."""
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    gpg = ["gpg", "--batch", "--yes", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback", "--passphrase", ""]

    def run(*arguments: str) -> bytes:
        return subprocess.run([*gpg, *arguments], check=True, capture_output=True).stdout

    try:
        if not run("--list-secret-keys", "--with-colons"):
            run("--quick-generate-key", "Double of NVIDIA's repository <testbed@localhost>", "ed25519", "sign", "never")
        release = str(repository / "Release")
        run("--clearsign", "--digest-algo", "SHA256", "--output", str(repository / "InRelease"), release)
        run("--detach-sign", "--armor", "--digest-algo", "SHA256", "--output", str(repository / "Release.gpg"), release)
        (repository / KEY_FILE).write_bytes(run("--armor", "--export"))
    finally:
        # gpg leaves an agent behind for each home.
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, check=False)


def build(repository: Path, home: Path, kernel: str, smi: Path) -> None:
    repository.mkdir(parents=True, exist_ok=True)
    for old in repository.glob("*.deb"):
        old.unlink()
    ctk, dcgmi = ((HERE / name).read_text() for name in ("nvidia_ctk.py", "dcgmi.py"))
    for package in packages.everything(kernel, smi, ctk, dcgmi):
        build_package(package, repository)
    index(repository)
    sign(repository, home)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("directory", type=Path)
    cli.add_argument("--key", type=Path)
    cli.add_argument("--kernel", default=os.uname().release)
    cli.add_argument("--smi", type=Path, default=HERE.parent / "nvidia_smi")
    cli.add_argument("--sign-only", action="store_true", help="sign what is there again")
    args = cli.parse_args()
    repository = args.directory.resolve()
    home = (args.key or repository.parent / "nvidia-key").resolve()
    if args.sign_only:
        sign(repository, home)
        return 0
    if not (args.smi / "nvidia_smi.py").is_file():
        print(f"error: there is no nvidia_smi.py in {args.smi}; say where the double of nvidia-smi is with --smi", file=sys.stderr)
        return 1
    build(repository, home, args.kernel, args.smi)
    print(f"{repository}: {len(list(repository.glob('*.deb')))} packages, key {repository / KEY_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
