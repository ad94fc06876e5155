#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Reads what a fleet host is, has and runs
version_added: 0.1.0
description:
  - One call returns all that planning, preflight and status need to know of a host.
  - Reads only. Works on a bare host, where most of it is simply absent.
options:
  state_dir:
    description: Directory of the fleet's state on the host.
    type: path
    default: /var/lib/llm_fleet
  gateway:
    description: Read also what only a gateway has, HAProxy's version and the registry of tokens, and its CA.
    type: bool
    default: false
  gpus:
    description: Read also the state of GPUs and driver, which takes seconds on a node with many.
    type: bool
    default: true
  controller_clock:
    description:
      - The controller's time in seconds since 1970-01-01 UTC, at the moment when it called the module.
      - The skew between the two clocks is measured against it.
    type: float
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: See what the host runs
  localfirst.llm_fleet.host_info:
  become: true
  register: host

- name: Show its instances
  ansible.builtin.debug:
    var: host.instances
"""

RETURN = r"""
distribution:
  description: C(ID), C(VERSION_ID) and C(VERSION_CODENAME) of C(/etc/os-release); an empty string where there is none.
  type: dict
  returned: always
  sample: {"id": "debian", "version": "12", "codename": "bookworm"}
clock_skew:
  description: How many seconds the host's clock is ahead of O(controller_clock), the way of the call included.
  type: float
  returned: always
  sample: 0.3
controller_clock:
  description: O(controller_clock) as it was passed.
  type: float
  returned: when it was passed
memory_bytes:
  description: Memory of the machine, in bytes.
  type: int
  returned: always
  sample: 540431953920
memory_free:
  description: Memory that new processes can have without swapping, in bytes.
  type: int
  returned: always
  sample: 498216206336
gpu:
  description:
    - RV(localfirst.llm_fleet.gpu_info#module:state), RV(localfirst.llm_fleet.gpu_info#module:problem) and
      RV(localfirst.llm_fleet.gpu_info#module:gpus) of M(localfirst.llm_fleet.gpu_info). NVLink is not asked for.
  type: dict
  returned: with O(gpus=true)
  sample: {"state": "no_gpu", "problem": "", "gpus": []}
gpu_memory:
  description: Memory in bytes of what engines can be given, by UUID. That is each GPU that answers, or its MIG devices where MIG is on.
  type: dict
  returned: always
  sample: {"GPU-4f1b2c3d-0000-0000-0000-000000000000": 85520809984}
gpu_free:
  description: Free memory of the same in bytes, by UUID. What does not say is left out.
  type: dict
  returned: always
  sample: {"GPU-4f1b2c3d-0000-0000-0000-000000000000": 84289781760}
gpu_health:
  description:
    - What the last look of the role P(localfirst.llm_fleet.gpu_health#role) has found, and how many seconds ago (C(age)). Empty where it
      has not looked.
  type: dict
  returned: always
  sample:
    checked: "2026-11-28T17:10:14Z"
    age: 42.1
    interval: 60
    severity: critical
    drain: true
    findings:
      - finding: xid-79
        gpu: "0000:53:00.0"
        uuid: GPU-4f1b2c3d-0000-0000-0000-000000000000
        severity: critical
        since: "2026-11-28T17:08:02Z"
        text: "XID 79, fallen off the bus: GPU has fallen off the bus."
        advice: Drain the host, and switch its power off and on. If it comes back, have card, power and slot checked
store:
  description: Size and free space, in bytes, of the file system that holds (or will hold) the store.
  type: dict
  returned: always
  sample: {"path": "/var/lib/llm_fleet/store", "total_bytes": 3840000000000, "free_bytes": 1920000000000}
blobs:
  description: Size in bytes of each file that the store holds, by its digest.
  type: dict
  returned: always
  sample: {"1f0e3dad99908345f7439f8ffabdffc4b1f0e3dad99908345f7439f8ffabdffc": 6012345}
docker:
  description: Whether Docker is C(absent), C(stopped) or C(running), and its version.
  type: dict
  returned: always
  sample: {"state": "running", "version": "20.10.24", "restart_pending": false}
python_requests:
  description: Whether the Python that modules run with has C(requests), which the modules of community.docker need.
  type: bool
  returned: always
  sample: true
haproxy_version:
  description: Version of HAProxy that is installed, or else of the package that would be; an empty string if there is none.
  type: str
  returned: with O(gateway=true)
  sample: 2.6.12-1+deb12u4
instances:
  description: Engine containers by their labels, running or not.
  type: list
  elements: dict
  returned: always
  sample:
    - id: tiny-0-a
      model: tiny
      version: 1.0.0
      release: 0f3a5c7e9b1d
      replica: 0
      slot: a
      port: 20000
      state: running
      health: healthy
plan:
  description: The plan that was last applied here, or nothing.
  type: dict
  returned: always
plan_error:
  description: Why the plan could not be read; an empty string if it could.
  type: str
  returned: always
  sample: "/var/lib/llm_fleet/plan.json is not JSON: Expecting value: line 1 column 1 (char 0)"
clients:
  description: The registry of tokens that a gateway holds (hashes only), or nothing.
  type: dict
  returned: with O(gateway=true)
routes:
  description: Which share of a model's requests a gateway sends where, as M(localfirst.llm_fleet.gateway_route) was told, by model.
  type: dict
  returned: with O(gateway=true)
fleet_ca:
  description: PEM text of the CA that has signed the host's certificate; an empty string if there is none.
  type: str
  returned: always
"""

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_supply import memory
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_survey import GpuSurvey

LABEL = "llm_fleet."
OS_RELEASE = Path("/etc/os-release")
MEMINFO = Path("/proc/meminfo")
GATEWAY_CA = Path("/etc/haproxy/llm_fleet/ca.pem")
HOST_CA = Path("/etc/llm_fleet/tls/ca.pem")


class HostInfo:
    """Collects the parts of one host's description; each part is absent rather than an error."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.state_dir = Path(module.params["state_dir"])

    def collect(self) -> dict:
        plan, plan_error = self.read_json(self.state_dir / "plan.json")
        gpus = self.gpus() if self.module.params["gpus"] else {"gpu_memory": {}, "gpu_free": {}}
        description = {
            "distribution": self.distribution(),
            "clock_skew": self.clock_skew(),
            "controller_clock": self.module.params["controller_clock"],
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "memory_free": self.memory_free(),
            **gpus,
            "gpu_health": self.gpu_health(),
            "store": self.store(),
            "blobs": self.blobs(),
            "docker": self.docker(),
            "python_requests": importlib.util.find_spec("requests") is not None,
            "instances": self.instances(),
            "plan": plan,
            "plan_error": plan_error,
            "fleet_ca": self.fleet_ca(),
        }
        if self.module.params["gateway"]:
            description["haproxy_version"] = self.haproxy_version()
            description["clients"], _error = self.read_json(self.state_dir / "clients.json")
            routes, _error = self.read_json(self.state_dir / "routes.json")
            description["routes"] = (routes or {}).get("routes", {})
        return description

    @staticmethod
    def memory_free() -> int:
        """Bytes that a new process can have without swapping, as Linux estimates it (proc_meminfo(5), MemAvailable)."""
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        return int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024

    def gpus(self) -> dict:
        """What planning and rollouts have to know of GPUs."""
        seen = GpuSurvey().collect(details=False)
        gpu = {key: seen[key] for key in ("state", "problem", "gpus")}
        free = memory(gpu["gpus"], "memory_free")
        # Where the whole document fails, the short question may still be answered, unless nvidia-smi hangs.
        if not gpu["gpus"] and gpu["state"] != "failing":
            free = self.gpu_free()
        return {"gpu": gpu, "gpu_memory": memory(gpu["gpus"], "memory_total"), "gpu_free": free}

    def gpu_free(self) -> dict:
        """Free bytes of each GPU by its UUID; nvidia-smi counts in MiB."""
        free = {}
        listed = self.run("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits") or ""
        for line in listed.splitlines():
            uuid, _comma, mebibytes = line.partition(",")
            # A GPU in MIG mode, or one that is lost, has no number here.
            if mebibytes.strip().isdigit():
                free[uuid.strip()] = int(mebibytes) * 2**20
        return free

    def gpu_health(self) -> dict:
        """What people have to know of it; the rest of that file is for the next look."""
        state, _error = self.read_json(self.state_dir / "gpu-health.json")
        if not isinstance(state, dict) or "findings" not in state:
            return {}
        told = {key: state[key] for key in ("checked", "interval", "severity", "drain", "findings")}
        return {**told, "age": round(time.time() - (self.state_dir / "gpu-health.json").stat().st_mtime, 1)}

    def fleet_ca(self) -> str:
        path = GATEWAY_CA if self.module.params["gateway"] else HOST_CA
        return path.read_text() if path.is_file() else ""

    def clock_skew(self) -> float:
        controller_clock = self.module.params["controller_clock"]
        return 0.0 if controller_clock is None else time.time() - controller_clock

    def distribution(self) -> dict:
        fields = {}
        if OS_RELEASE.is_file():
            for line in OS_RELEASE.read_text().splitlines():
                key, separator, value = line.partition("=")
                if separator:
                    fields[key] = value.strip("\"'")
        return {
            "id": fields.get("ID", ""),
            "version": fields.get("VERSION_ID", ""),
            "codename": fields.get("VERSION_CODENAME", ""),
        }

    def store(self) -> dict:
        path = self.state_dir / "store"
        existing = path
        while not existing.exists():
            existing = existing.parent
        usage = shutil.disk_usage(existing)
        return {"path": str(path), "total_bytes": usage.total, "free_bytes": usage.free}

    def blobs(self) -> dict:
        folder = self.state_dir / "store" / "blobs" / "sha256"
        if not folder.is_dir():
            return {}
        # A file may go between the two calls.
        sizes = {path.name: _size(path) for path in folder.iterdir()}
        return {name: size for name, size in sorted(sizes.items()) if size is not None}

    def docker(self) -> dict:
        version = self.run("docker", "version", "--format", "{{.Server.Version}}")
        if version is None:
            state = "absent" if self.module.get_bin_path("dockerd", opt_dirs=["/usr/sbin"]) is None else "stopped"
        else:
            state = "running"
        pending = (self.state_dir / "docker-restart-pending").exists()
        return {"state": state, "version": (version or "").strip(), "restart_pending": pending}

    def haproxy_version(self) -> str:
        for option in ("Installed:", "Candidate:"):
            for line in (self.run("apt-cache", "policy", "haproxy") or "").splitlines():
                field, _space, value = line.strip().partition(" ")
                if field == option and value != "(none)":
                    return value
        return ""

    def instances(self) -> list:
        listed = self.run("docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}instance")
        identifiers = (listed or "").split()
        if not identifiers:
            return []
        # A container may go between the two calls: `inspect` then prints the others and fails.
        inspected = self.run("docker", "inspect", *identifiers, may_fail=True) or "[]"
        found = [self.instance(container) for container in json.loads(inspected)]
        return sorted(found, key=lambda instance: instance["id"])

    @staticmethod
    def instance(container: dict) -> dict:
        labels = container["Config"]["Labels"]
        state = container["State"]

        def number(name: str) -> int:
            value = labels.get(LABEL + name, "")
            return int(value) if value.isdigit() else -1

        return {
            "id": labels[LABEL + "instance"],
            "model": labels.get(LABEL + "model", ""),
            "version": labels.get(LABEL + "version", ""),
            "release": labels.get(LABEL + "release", ""),
            "replica": number("replica"),
            "slot": labels.get(LABEL + "slot", ""),
            "port": number("port"),
            "state": state["Status"],
            "health": state.get("Health", {}).get("Status", "none"),
        }

    @staticmethod
    def read_json(path: Path) -> tuple:
        """Return (document, error): a file that is not there is neither."""
        try:
            return json.loads(path.read_text()), ""
        except FileNotFoundError:
            return None, ""
        except ValueError as error:
            return None, f"{path} is not JSON: {error}"
        except OSError as error:
            return None, f"{path} cannot be read: {error}"

    def run(self, program: str, *arguments: str, may_fail: bool = False) -> str | None:
        """Return what the program prints; None where it is not installed or fails."""
        path = self.module.get_bin_path(program)
        if path is None:
            return None
        code, output, _errors = self.module.run_command([path, *arguments])
        return output if code == 0 or may_fail else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/llm_fleet"},
            "gateway": {"type": "bool", "default": False},
            "gpus": {"type": "bool", "default": True},
            "controller_clock": {"type": "float"},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **HostInfo(module).collect())


if __name__ == "__main__":
    main()
