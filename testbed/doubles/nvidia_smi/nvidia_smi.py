#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for nvidia-smi, and for the GPUs and the kernel module that it talks to, which no test machine here has.

Which GPUs there are stands in /etc/testbed/gpus.json (or $TESTBED_GPUS), see scenarios/. Like the original it
  * answers -q -x, -L, --query-gpu, --query-compute-apps, nvlink --status, topo -m, --version, and a short table without arguments;
  * changes persistence mode (-pm), power limit (-pl), ECC (-e) and MIG (-mig, mig -cgi, -dci, -dgi, -lgi, -lgip), resets (--gpu-reset),
    and keeps what was changed. ECC, and MIG on a GPU in use, wait for a reset or a restart; a restart takes persistence, limits and
    partitions. Partitions in use cannot be taken away, and a GPU in use cannot be reset;
  * refuses changes to all but root, and values that the GPU does not take;
  * ends with 18 where module and library differ, with 9 where no module is loaded, with 6 without a GPU, with 15 where all are lost;
    says on standard error which GPU it cannot get hold of, and tells the others;
  * hangs, and is not ended by SIGTERM, where the scenario says so ("hang": seconds).
The exit statuses are those of the manual (RETURN VALUE) and of NVML. Wordings are those that users have shown in public reports.
It leaves out: all else that the original can do; most elements of the XML; clocks, fans, PCIe links, processes other than "apps" of the
scenario and those that a test writes to /run/testbed/gpu-apps.json; MIG's media engines and several compute instances in one GPU
instance; that MIG mode does not outlast a boot since Hopper. Memory in use is what scenario and apps say.

    TESTBED_ROOT   where all its files are (default: /), for unit tests
Standard library only. testbed-gpus, beside it, makes what stands for the PCI bus and the loaded module.
"""
from __future__ import annotations

import os
import signal
import sys
import time

import answers
import mig
from machine import Machine, Stop, bus_id, unreachable

SWITCHES = {"1": True, "ENABLED": True, "0": False, "DISABLED": False}
WITH_VALUE = ("-i", "--id", "-pm", "--persistence-mode", "-pl", "--power-limit", "-e", "--ecc-config", "-mig", "--multi-instance-gpu",
              "--format", "-cgi", "-gi", "-ci", "-f", "--filename")
SHORT = {"--id": "-i", "--persistence-mode": "-pm", "--power-limit": "-pl", "--ecc-config": "-e", "--multi-instance-gpu": "-mig",
         "--query": "-q", "--xml-format": "-x", "--list-gpus": "-L", "-r": "--gpu-reset", "--create-gpu-instance": "-cgi",
         "--default-compute-instance": "-C", "--list-gpu-instances": "-lgi", "--list-gpu-instance-profiles": "-lgip",
         "--destroy-gpu-instance": "-dgi", "--destroy-compute-instance": "-dci", "-s": "--status", "--matrix": "-m"}
KNOWN = {"-q", "-x", "-L", "--gpu-reset", "-C", "-lgi", "-lgip", "-dgi", "-dci", "--status", "-m", "--version",
         "--query-gpu", "--query-compute-apps", *WITH_VALUE}


def parse(arguments: list[str]) -> dict[str, str]:
    """{option: value}; an option without one has an empty value."""
    asked: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name not in KNOWN:
            raise Stop(2, f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n{word}\n")
        asked[name] = value if equals else next(words, "") if name in WITH_VALUE else ""
    return asked


def switch(text: str, what: str) -> bool:
    if text.upper() not in SWITCHES:
        raise Stop(2, f"Option {what} is not recognized: {text}\n")
    return SWITCHES[text.upper()]


def only_root(what: str) -> None:
    if os.geteuid() != 0:
        raise Stop(4, f"{what}: Insufficient Permissions\nTerminating early due to previous errors.\n")


def change(seen: Machine, asked: dict[str, str]) -> str:
    """-pm, -pl, -e, -mig and --gpu-reset."""
    gpus = seen.pick(asked.get("-i"))
    only_root(f"Unable to change GPU {bus_id(gpus[0])}")
    if "-mig" in asked:
        return mig.set_mode(seen, gpus, switch(asked["-mig"], "-mig"))
    text, reboot = "", False
    for gpu in gpus:
        name = bus_id(gpu)
        if gpu["lost"]:
            raise Stop(15, unreachable(gpu))
        if "-pm" in asked:
            on = switch(asked["-pm"], "-pm")
            word = "Enabled" if on else "Disabled"
            same = gpu["persistence"] == on
            text += f"Persistence mode is already {word} for GPU {name}.\n" if same else f"{word} persistence mode for GPU {name}.\n"
            seen.change(gpu, persistence=on)
        elif "-pl" in asked:
            text += set_limit(seen, gpu, asked["-pl"])
        elif "-e" in asked:
            if gpu["ecc"] is None:
                raise Stop(3, f"ECC support is not available for GPU {name}: Not Supported\nTerminating early due to previous errors.\n")
            on = switch(asked["-e"], "-e")
            seen.change(gpu, ecc_pending=on)
            text += f"{'Enabled' if on else 'Disabled'} ECC support for GPU {name}.\n"
            reboot = reboot or on != gpu["ecc"]
        else:
            text += reset(seen, gpu)
    return f"{text}All done.\n{'Reboot required.' + chr(10) if reboot else ''}"


def set_limit(seen: Machine, gpu: dict, text: str) -> str:
    power, name = gpu["power"], bus_id(gpu)
    if power.get("max") is None:
        raise Stop(3, f"Changing power management limit is not supported for GPU: {name}.\nTreating as warning and moving on.\nAll done.\n")
    try:
        limit = float(text)
    except ValueError:
        raise Stop(2, f"Option -pl is not recognized: {text}\n") from None
    if not power["min"] <= limit <= power["max"]:
        raise Stop(2, (
            f"Provided power limit {limit:.2f} W is not a valid power limit which should be between {power['min']:.2f} W and"
            f" {power['max']:.2f} W for GPU {name}\nTerminating early due to previous errors.\n"
        ))
    before = gpu["limit"]
    seen.change(gpu, limit=limit)
    return f"Power limit for GPU {name} was set to {limit:.2f} W from {before:.2f} W.\n"


def reset(seen: Machine, gpu: dict) -> str:
    if seen.in_use(gpu["uuid"], *answers.mig_uuids(gpu)):
        raise Stop(mig.IN_USE, (
            f"The following GPUs could not be reset:\n  GPU {bus_id(gpu)}: In use by another client\n\n"
            "1 device is currently being used by one or more other processes (e.g., Fabric Manager, CUDA application, graphics application"
            " such as an X server, or a monitoring application such as another instance of nvidia-smi). Please first kill all processes"
            " using this device and all compute applications running in the system.\n"
        ))
    seen.after_reset(seen.changes.setdefault(gpu["uuid"], {}))
    seen.change(gpu)
    return f"GPU {bus_id(gpu)} was successfully reset.\n"


def partitions(seen: Machine, asked: dict[str, str]) -> str:
    gpus = seen.pick(asked.get("-i"))
    if "-lgip" in asked:
        return mig.list_profiles(gpus)
    if "-lgi" in asked:
        return mig.list_instances(gpus)
    only_root("Unable to change MIG devices")
    if "-cgi" in asked:
        return mig.create(seen, gpus, asked["-cgi"], "-C" in asked)
    for what in ("-dci", "-dgi"):
        if what in asked:
            return mig.destroy(seen, gpus, what)
    raise Stop(2, "Invalid combination of input arguments. Please run 'nvidia-smi mig -h' for help.\n")


def tell(seen: Machine, asked: dict[str, str]) -> str:
    gpus = seen.pick(asked.get("-i"))
    form = asked.get("--format", "").split(",")
    if "--query-gpu" in asked:
        return answers.query_gpu(seen, gpus, asked["--query-gpu"].split(","), form)
    if "--query-compute-apps" in asked:
        return answers.query_apps(seen, gpus, asked["--query-compute-apps"].split(","), form)
    if "-L" in asked:
        return answers.listing(gpus)
    if "-q" in asked and "-x" in asked:
        for gpu in gpus:
            if gpu["lost"] == "handle":
                sys.stderr.write(unreachable(gpu))
        return answers.log(seen, gpus)
    if asked:
        raise Stop(2, "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n")
    cuda = seen.scenario.get("cuda", "13.0")
    return f"NVIDIA-SMI {seen.library}  Driver Version: {seen.module}  CUDA Version: {cuda}\n{answers.listing(gpus)}"


def run(arguments: list[str]) -> str:
    seen = Machine()
    hang = seen.scenario.get("hang")
    if hang:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(hang)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    asked = parse(arguments[1:] if command else arguments)
    seen.check_driver()
    if all(gpu["lost"] == "handle" for gpu in seen.gpus):
        raise Stop(15, "".join(map(unreachable, seen.gpus)))
    if "--version" in asked:
        return answers.version(seen)
    if command == "mig":
        return partitions(seen, asked)
    if command == "nvlink":
        return answers.links(seen.pick(asked.get("-i")))
    if command == "topo" and "-m" in asked:
        return answers.topology(seen, seen.pick(asked.get("-i")))
    if command:
        raise Stop(2, f"ERROR: Option {command} is not recognized. Please run 'nvidia-smi -h'.\n")
    if {"-pm", "-pl", "-e", "-mig", "--gpu-reset"} & set(asked):
        return change(seen, asked)
    return tell(seen, asked)


def main(arguments: list[str]) -> int:
    try:
        sys.stdout.write(run(arguments))
    except Stop as stop:
        sys.stdout.write(str(stop))
        return stop.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
