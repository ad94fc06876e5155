# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Stands for the command line of NVIDIA's container toolkit, and for its container runtime.

What it does as the original: `--version`; `runtime configure --runtime=docker [--config=F] [--set-as-default]
[--cdi.enabled] [--dry-run]` merges Docker's JSON and leaves every other key alone; `cdi generate [--output=F] [--format=]`
writes a CDI specification with a device for each GPU by index and by UUID, for each MIG device, and `all`; `cdi list` names
what the specifications in /etc/cdi and /var/run/cdi have. As `nvidia-container-runtime` it looks at NVIDIA_VISIBLE_DEVICES of
the container that is created, and hands on to runc. As `nvidia-container-runtime-hook`, which Docker runs for `--gpus`, it
looks at the same variable. Either way the container gets an nvidia-smi that lists the GPUs which it was given, and no other.

What it leaves out: other runtimes than Docker, `--remove`, libraries, and devices where the host has none. What a container was
given stands in variables TESTBED_GPU_<n>=<UUID>, which the hook writes into that nvidia-smi, as it comes too late for variables.

It asks nvidia-smi what there is, and fails as the original where that cannot talk to the driver. Python 3.9 or later.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

VERSION = "@VERSION@"
KIND = "nvidia.com/gpu"
SPEC_DIRS = ("/etc/cdi", "/var/run/cdi")
# What a container's nvidia-smi is: with `-L`, the one way in which it is asked there, it lists what the container was given.
CONTAINER_SMI = Path("/usr/lib/testbed-nvidia/container-nvidia-smi")
GPU = re.compile(r"GPU (\d+): .*\(UUID: ([^)]+)\)")
MIG = re.compile(r"\s+MIG .*Device\s+(\d+): \(UUID: ([^)]+)\)")


def say(level: str, text: str) -> None:
    print(f"{level}[0000] {text}", file=sys.stderr)


def devices() -> dict[str, list[str]]:
    """Names of CDI devices and the UUIDs behind each, as `nvidia-smi -L` has them."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        say("ERRO", f"failed to generate CDI spec: failed to initialize NVML: {listed.stdout.strip() or listed.stderr.strip()}")
        raise SystemExit(1)
    found: dict[str, list[str]] = {}
    gpus: dict[str, tuple[str, list[str]]] = {}
    index = ""
    for line in listed.stdout.splitlines():
        if match := GPU.match(line):
            index = match[1]
            gpus[index] = (match[2], [])
        elif (match := MIG.match(line)) and index:
            gpus[index][1].append(match[2])
            found[f"{index}:{match[1]}"] = found[match[2]] = [match[2]]
    for index, (uuid, parts) in gpus.items():
        # A GPU in MIG mode is given out in parts only.
        if not parts:
            found[index] = found[uuid] = [uuid]
    if found:
        found["all"] = [uuid for whole, parts in gpus.values() for uuid in (parts or [whole])]
    return found


def specification() -> dict:
    nodes = [path for path in ("/dev/nvidiactl", "/dev/nvidia-uvm") if os.path.exists(path)]
    everything = devices()
    numbers = {uuid: number for number, uuid in enumerate(everything.get("all", []))}
    entries = []
    for name, uuids in sorted(everything.items()):
        edits: dict = {"env": [f"TESTBED_GPU_{numbers[uuid]}={uuid}" for uuid in uuids]}
        own = [f"/dev/nvidia{name}"] if os.path.exists(f"/dev/nvidia{name}") else []
        if own:
            edits["deviceNodes"] = [{"path": path} for path in own]
        entries.append({"name": name, "containerEdits": edits})
    mount = {"hostPath": str(CONTAINER_SMI), "containerPath": "/usr/bin/nvidia-smi", "options": ["ro", "nosuid", "nodev", "bind"]}
    edits = {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": [mount]}
    if nodes:
        edits["deviceNodes"] = [{"path": path} for path in nodes]
    return {"cdiVersion": "0.5.0", "kind": KIND, "devices": entries, "containerEdits": edits}


def generate(args: argparse.Namespace) -> int:
    # JSON is YAML too, so that one writer serves both formats.
    text = json.dumps(specification(), indent=2) + "\n"
    if args.output:
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    else:
        sys.stdout.write(text)
    say("INFO", "Generated CDI spec with version 0.5.0")
    return 0


def list_devices(args: argparse.Namespace) -> int:
    names = []
    for folder in args.spec_dir or SPEC_DIRS:
        for path in sorted(Path(folder).glob("*")):
            if path.suffix in (".json", ".yaml"):
                spec = json.loads(path.read_text())
                names += [f"{spec['kind']}={device['name']}" for device in spec["devices"]]
    say("INFO", f"Found {len(names)} CDI devices")
    print("".join(f"{name}\n" for name in sorted(names)), end="")
    return 0


def configure(args: argparse.Namespace) -> int:
    if args.runtime != "docker":
        say("ERRO", f"unrecognized runtime '{args.runtime}'")
        return 1
    path = Path(args.config)
    text = path.read_text() if path.exists() else ""
    say("INFO", f"Loading config from {path}" if text else "Config file does not exist; using empty config")
    try:
        config = json.loads(text) if text.strip() else {}
    except ValueError as error:
        say("ERRO", f"unable to load config for runtime docker: {error}")
        return 1
    config.setdefault("runtimes", {})["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    if args.set_as_default:
        config["default-runtime"] = "nvidia"
    if args.cdi_enabled:
        config.setdefault("features", {})["cdi"] = True
    merged = json.dumps(config, indent=4, sort_keys=True)
    if args.dry_run:
        print(merged)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(merged)
    say("INFO", f"Wrote updated config to {path}")
    say("INFO", "It is recommended that docker daemon be restarted.")
    return 0


def asked_for(config: dict) -> list[str]:
    """A variable for each GPU that a container asks for in its environment. Ends with an error where there is no such GPU."""
    variables = config["process"].get("env", [])
    asked = next((v.partition("=")[2] for v in variables if v.startswith("NVIDIA_VISIBLE_DEVICES=")), "void")
    if asked in ("", "void", "none"):
        return []
    known = devices()
    for name in asked.split(","):
        if name not in known:
            print(f"nvidia-container-cli: device error: {name}: unknown device: unknown", file=sys.stderr)
            raise SystemExit(1)
    numbers = {uuid: number for number, uuid in enumerate(known["all"])}
    return [f"TESTBED_GPU_{numbers[uuid]}={uuid}" for name in asked.split(",") for uuid in known[name]]


def create_container(arguments: list[str]) -> None:
    """As nvidia-container-runtime: what the container asks for is given to it, then runc goes on."""
    if "create" in arguments:
        bundle = next((arguments[i + 1] for i, word in enumerate(arguments) if word in ("--bundle", "-b")), ".")
        path = Path(bundle, "config.json")
        config = json.loads(path.read_text())
        given = asked_for(config)
        if given:
            config["process"].setdefault("env", []).extend(given)
            source = {"source": str(CONTAINER_SMI), "destination": "/usr/bin/nvidia-smi", "type": "bind", "options": ["ro", "bind"]}
            config.setdefault("mounts", []).append(source)
            path.write_text(json.dumps(config))
    os.execvp("runc", ["runc", *arguments])


def prestart() -> int:
    """As nvidia-container-runtime-hook: the container is made, and its first process waits. Standard input says which it is."""
    bundle = Path(json.load(sys.stdin)["bundle"])
    config = json.loads((bundle / "config.json").read_text())
    given = asked_for(config)
    if given:
        root = bundle / config["root"]["path"]
        program = root / "usr/bin/nvidia-smi"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(CONTAINER_SMI.read_text().replace("#GIVEN", "\n".join(f"export {variable}" for variable in given)))
        program.chmod(0o755)
    return 0


def main() -> int:
    if sys.argv[1:2] == ["--as-runtime"]:
        create_container(sys.argv[2:])
    if sys.argv[1:3] == ["--as-hook", "prestart"]:
        return prestart()
    cli = argparse.ArgumentParser(prog="nvidia-ctk", allow_abbrev=False)
    cli.add_argument("--version", "-v", action="version", version=f"NVIDIA Container Toolkit CLI version {VERSION}\ncommit: double")
    verbs = cli.add_subparsers(dest="verb", required=True)
    runtime = verbs.add_parser("runtime").add_subparsers(dest="action", required=True).add_parser("configure")
    runtime.add_argument("--runtime", default="docker")
    runtime.add_argument("--config", default="/etc/docker/daemon.json")
    runtime.add_argument("--set-as-default", "--nvidia-set-as-default", action="store_true")
    runtime.add_argument("--cdi.enabled", "--cdi.enable", "--enable-cdi", dest="cdi_enabled", action="store_true")
    runtime.add_argument("--dry-run", action="store_true")
    runtime.set_defaults(run=configure)
    cdi = verbs.add_parser("cdi").add_subparsers(dest="action", required=True)
    make = cdi.add_parser("generate")
    make.add_argument("--output", default="")
    make.add_argument("--format", choices=["yaml", "json"], default="yaml")
    make.set_defaults(run=generate)
    show = cdi.add_parser("list")
    show.add_argument("--spec-dir", action="append")
    show.set_defaults(run=list_devices)
    args = cli.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
