# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Stands for dcgmi, the command line of NVIDIA's Data Center GPU Manager 4.

What it does as the original: `--version`; `discovery -l` lists the GPUs; `diag -r <level> [-j]` runs a diagnosis and prints a
table, or with -j the JSON of DCGM 4, and ends with 0, or with 226 where a test failed.

What it leaves out: all tests. Its one test, `software`, is whether nvidia-smi answers for every GPU, and fails for one that has
uncorrected ECC errors or does not answer. Levels make no difference. Python 3.9 or later.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys

VERSION = "@VERSION@"
FAILED = 226
FIELDS = "index,uuid,driver_version,ecc.errors.uncorrected.volatile.total"


def look() -> tuple[list[tuple[int, str, str]], str, str]:
    """(index, UUID, what is wrong) of each GPU, the driver's version, and why nothing can be asked."""
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
    )
    gpus, version = [], ""
    for line in asked.stdout.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == 4 and values[0].isdigit():
            number, uuid, version, errors = values
            wrong = f"{errors} uncorrectable ECC errors" if errors.isdigit() and int(errors) else ""
            gpus.append((int(number), uuid, wrong))
    return gpus, version, "" if asked.returncode == 0 else (asked.stdout + asked.stderr).strip()


def diagnose(args: argparse.Namespace) -> int:
    gpus, version, broken = look()
    if broken or not gpus:
        print(f"Error: Diagnostic could not be run because the Tesla recommended driver is not being used. {broken}".strip())
        return FAILED
    results = []
    for number, uuid, wrong in gpus:
        result = {"entity_group": "GPU", "entity_group_id": 1, "entity_id": number, "status": "Fail" if wrong else "Pass"}
        if wrong:
            result["warnings"] = [{"error_category": 7, "error_id": 4, "error_severity": 2, "warning": f"{wrong} on GPU {number} ({uuid})"}]
        results.append(result)
    failed = any(wrong for _number, _uuid, wrong in gpus)
    summary = "Fail" if failed else "Pass"
    if args.json:
        test = {"name": "software", "results": results, "test_summary": {"status": summary}}
        document = {
            "DCGM Diagnostic": {"test_categories": [{"category": "Deployment", "tests": [test]}]},
            "metadata": {"Driver Version Detected": version, "version": VERSION},
        }
        print(json.dumps(document, indent=1))
    else:
        print("Successfully ran diagnostic for group.")
        print(f"+---------------------------+\n| software          | {summary} |")
        for result in results:
            print(f"| GPU{result['entity_id']:<14} | {result['status']} |")
            for warning in result.get("warnings", []):
                print(f"| Warning: {warning['warning']} |")
        print("+---------------------------+")
    return FAILED if failed else 0


def discover(args: argparse.Namespace) -> int:
    gpus, _version, broken = look()
    if broken:
        print(f"Error: {broken}")
        return 1
    print(f"{len(gpus)} GPUs found.")
    for number, uuid, _wrong in gpus:
        print(f"| {number:<6} | Device UUID: {uuid} |")
    return 0


def main() -> int:
    cli = argparse.ArgumentParser(prog="dcgmi")
    cli.add_argument("--version", "-v", action="version", version=f"dcgmi  version: {VERSION}")
    verbs = cli.add_subparsers(required=True)
    diag = verbs.add_parser("diag")
    diag.add_argument("-r", "--run", default="1")
    diag.add_argument("-j", "--json", action="store_true")
    diag.add_argument("-i", "--entity-id")
    diag.set_defaults(act=diagnose)
    discovery = verbs.add_parser("discovery")
    discovery.add_argument("-l", "--list", action="store_true")
    discovery.set_defaults(act=discover)
    args = cli.parse_args()
    return args.act(args)


if __name__ == "__main__":
    sys.exit(main())
