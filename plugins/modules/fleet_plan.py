#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_plan
short_description: Checks a fleet's catalog, lockfile and hosts, and plans what runs where
version_added: 0.1.0
description:
  - Runs on the controller, once, with what M(localfirst.llm_fleet.host_info) told of every host that answered.
  - Finds all faults before it fails, so that one run shows everything there is to mend.
  - Changes nothing. The plan is passed on as data and applied by the roles.
options:
  models:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
  clients:
    description: The clients as the operator wrote them.
    type: raw
    required: true
  profiles:
    description: Engine profiles by name, from the lookup P(localfirst.llm_fleet.engine_profiles#lookup).
    type: dict
    required: true
  lockfile:
    description: Absolute path of the lockfile on the controller.
    type: str
    required: true
  ca_dir:
    description: Absolute path of the directory of the fleet's CA on the controller.
    type: str
    required: true
  gateways:
    description: Names of all gateways.
    type: list
    elements: str
    required: true
  gateways_out:
    description: Names of the gateways that are out of service.
    type: list
    elements: str
    default: []
  nodes:
    description: Names of all GPU nodes.
    type: list
    elements: str
    required: true
  removed:
    description: Names of GPU nodes that are to give everything back.
    type: list
    elements: str
    default: []
  depots:
    description: Names of all depots. Without any, the controller hands out the files of models.
    type: list
    elements: str
    default: []
  asked:
    description: Names of the hosts that this run addresses, whether they answered or not.
    type: list
    elements: str
    required: true
  hosts:
    description:
      - The hosts that answered. To what M(localfirst.llm_fleet.host_info) returned add C(name), C(address) and, for a
        GPU node, C(gpus), the UUIDs of its GPUs.
    type: list
    elements: dict
    required: true
  port_range:
    description: First and last port that engines may be published on.
    type: list
    elements: int
    default: [20000, 29999]
  disk_reserve:
    description: Bytes that stay free on the file system of a host's store.
    type: int
    default: 1073741824
  store:
    description:
      - The controller's own store. Depots get from it what was downloaded to be locked, and ask the sources for the rest.
      - Empty if there is none.
    type: str
    default: ""
  engine_images:
    description: The engines' images as the operator names them, by engine. One that was locked from another name is a fault.
    type: dict
    default: {}
  allow_empty_catalog:
    description: Whether a fleet that serves models may be planned without any.
    type: bool
    default: false
  strict:
    description: Fail when there is a fault; otherwise return the faults, and the plan that was last applied.
    type: bool
    default: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Returns the plan before and after.
    support: full
  idempotent:
    description: The same input leads to the same plan.
    support: full
"""

EXAMPLES = r"""
- name: Check everything and plan
  localfirst.llm_fleet.fleet_plan:
    models: "{{ llm_fleet_models }}"
    clients: "{{ llm_fleet_clients }}"
    profiles: "{{ lookup('localfirst.llm_fleet.engine_profiles') }}"
    lockfile: "{{ llm_fleet_lockfile }}"
    ca_dir: "{{ llm_fleet_ca_dir }}"
    gateways: "{{ groups['gateways'] }}"
    nodes: "{{ groups['gpu_nodes'] }}"
    asked: "{{ ansible_play_hosts_all }}"
    hosts: "{{ ansible_play_hosts | map('extract', hostvars, 'llm_fleet_host') }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: always
  sample: [{"what": "unknown engine 'llamacp'", "where": "llm_fleet_models[tiny].engine", "fix": "did you mean 'llamacpp'?"}]
plan:
  description: The plan; see docs/architecture.md.
  type: dict
  returned: always
leaving:
  description: Instances that still run somewhere and are no longer wanted.
  type: list
  elements: dict
  returned: always
actions:
  description: What applying the plan does, a line each.
  type: list
  elements: str
  returned: always
  sample: ["gpu1: create tiny-0-a (tiny 1.0.0, port 20000)"]
pending:
  description: Models whose wanted release differs from the one that runs.
  type: list
  elements: str
  returned: always
artifacts:
  description:
    - The model versions whose files each host needs, by host, for what it runs and for what it is to run.
    - A depot needs those of all hosts. Files are as the lockfile has them.
  type: dict
  returned: always
  sample: {"gpu1": [{"model": "tiny", "version": "1.0.0", "source": "file:///m/tiny.gguf", "size": 6012345, "files": []}]}
bringing:
  description: What hosts that answered lack of their files, a line each.
  type: list
  elements: str
  returned: always
  sample: ["gpu1: bring 5.7 MiB of tiny 1.0.0"]
supply:
  description:
    - What the controller has to hand out, because hosts that answered lack it. With depots these are the files of the
      controller itself and what its store has from locking, otherwise all that nodes lack.
    - C(artifacts) as above, with the lacking files only; C(fetch), those that the controller has to fetch first;
      C(files), paths on the controller by digest;
      C(bytes) of all together; C(towards), the address of a host that fetches.
  type: dict
  returned: always
suppliers:
  description: Depots that hosts can fetch from. One that this run asked, and that did not answer, is left out.
  type: list
  elements: str
  returned: always
clients:
  description: The clients, with defaults filled in.
  type: list
  elements: dict
  returned: always
frozen:
  description: The run does not address every gateway, so the plan stays as it was last applied.
  type: bool
  returned: always
status:
  description: What should run and what does, a row for each instance.
  type: list
  elements: dict
  returned: always
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import preflight, staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.local_supply import local_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import LOCK_AGAIN, check_locked, exact_versions, parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import PlanResult, choose_current, make_plan
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import engine_interfaces, wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import status_rows


class FleetPlanner:
    """Reads the two files on the controller; all the rest is asked of pure functions."""

    def __init__(self, params: dict) -> None:
        self.params = params
        self.faults: list[Fault] = []
        self.gateways = set(params["gateways"])
        self.answered = {host["name"]: host for host in params["hosts"]}
        self.asked = set(params["asked"])
        self.held = {name: dict(host["blobs"]) for name, host in self.answered.items()}

    def note(self, faults: list[Fault]) -> None:
        self.faults.extend(faults)

    def run(self) -> dict:
        """Check what was written, then the hosts, then plan: the later needs the earlier to be right."""
        models, clients, lock = self.check_written()
        current = self.check_hosts()
        if not self.params["models"] and current and current["models"] and not self.params["allow_empty_catalog"]:
            self.note([_empty_catalog(current)])
        frozen = not self.gateways <= self.asked | set(self.params["gateways_out"])
        if frozen and current is None:
            self.note([_no_plan_to_keep(self.gateways - self.asked)])
        # Where nothing can be planned, what was last applied still tells what should run.
        result = PlanResult(current or {"generation": 0, "instances": [], "models": {}}, [], [], [], [])
        if not self.faults:
            result = self.plan(exact_versions(models, lock), lock, current, frozen)
        artifacts = staging.fleet_artifacts(result.plan, lock, self.params["depots"])
        supply = self.supply(artifacts)
        self.check_room(artifacts)
        return {
            "plan": result.plan,
            "artifacts": artifacts,
            "bringing": staging.bringing(artifacts, self.held),
            "supply": supply,
            "suppliers": self.suppliers(),
            "leaving": result.leaving,
            "actions": result.actions,
            "pending": result.pending,
            "clients": clients,
            "frozen": frozen,
            "status": status_rows(result.plan, self.states()),
            "diff": {"before": current or {}, "after": result.plan},
        }

    def plan(self, models: list[dict], lock: dict, current: dict | None, frozen: bool) -> PlanResult:
        params = self.params
        result = make_plan(
            models,
            wanted_releases(models, lock, params["profiles"]),
            engine_interfaces(params["profiles"], {model["engine"] for model in models}),
            self.node_list(),
            current,
            port_range=tuple(params["port_range"]),
            running={name: host["instances"] for name, host in self.answered.items()},
            frozen=frozen,
        )
        self.note(result.faults)
        return result

    def check_written(self) -> tuple:
        """What the operator wrote: paths, groups, catalog, clients, lockfile."""
        params = self.params
        self.note(preflight.check_groups(params["gateways"], params["nodes"]))
        self.note(preflight.check_paths({"llm_fleet_lockfile": params["lockfile"], "llm_fleet_ca_dir": params["ca_dir"]}))
        self.note(preflight.check_port_range(params["port_range"]))
        models, clients, faults = check_catalog(params["models"], params["clients"], params["profiles"], params["nodes"])
        self.note(faults)
        lock = {}
        if params["lockfile"].startswith("/"):
            lock = self.read_lockfile(Path(params["lockfile"]), models)
        return models, clients, lock

    def read_lockfile(self, path: Path, models: list[dict]) -> dict:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            fix = "lock the catalog (ansible-playbook localfirst.llm_fleet.lock), or take the lockfile back from git"
            self.note([Fault(f"there is no lockfile {path}", "llm_fleet_lockfile", fix)])
            return {}
        except (OSError, UnicodeDecodeError) as error:
            self.note([Fault(f"the lockfile cannot be read: {error}", "llm_fleet_lockfile", LOCK_AGAIN)])
            return {}
        lock, faults = parse_lockfile(text, str(path))
        self.note(faults)
        if not faults:
            self.note(check_locked(models, lock, path.name, self.params["profiles"], self.params["engine_images"]))
        return lock

    def check_hosts(self) -> dict | None:
        """What the hosts told; returns the plan that was last applied."""
        params = self.params
        self.note(preflight.check_reachable(params["gateways"], params["gateways_out"], self.asked, set(self.answered)))
        for name, host in sorted(self.answered.items()):
            self.note(preflight.check_host(host, name in self.gateways, name in params["depots"]))
        ca = Path(params["ca_dir"]) / "ca.pem"
        told = [host for _name, host in sorted(self.answered.items())]
        self.note(preflight.check_ca(told, ca.read_text(encoding="utf-8") if ca.is_file() else ""))
        current, faults = choose_current(self.states())
        self.note(faults)
        return current

    def check_room(self, artifacts: dict) -> None:
        """What hosts lack has to come from somewhere, and to fit."""
        lacking = {name: staging.missing(artifacts.get(name, []), held) for name, held in sorted(self.held.items())}
        if any(lacking.get(name) for name in self.params["nodes"]):
            self.note(preflight.check_depots(self.params["depots"], self.suppliers()))
        for name, files in lacking.items():
            size = sum(file["size"] for file in files.values())
            self.note(preflight.check_disk(self.answered[name], size, self.params["disk_reserve"]))

    def suppliers(self) -> list[str]:
        return [name for name in self.params["depots"] if name in self.answered or name not in self.asked]

    def supply(self, artifacts: dict) -> dict:
        """What hosts have to get from the controller, and which of it are files that lie here."""
        depots, nodes = self.params["depots"], self.params["nodes"]
        takers = {name: self.held[name] for name in depots or nodes if name in self.held}
        wanted = staging.supply(artifacts, takers, here=self.blobs_here() if depots else None)
        files, faults = local_files(wanted)
        self.note(faults)
        return {
            "artifacts": wanted,
            # What depots are handed is in the controller's store already.
            "fetch": [] if depots else [artifact for artifact in wanted if not artifact["source"].startswith(staging.LOCAL)],
            "files": files,
            "bytes": sum(artifact["size"] for artifact in wanted),
            "towards": next((self.answered[name]["address"] for name in takers), ""),
        }

    def blobs_here(self) -> set[str]:
        """The digests of what locking left in the controller's store."""
        blobs = Path(self.params["store"]) / "blobs" / "sha256"
        return {path.name for path in blobs.iterdir()} if self.params["store"] and blobs.is_dir() else set()

    def node_list(self) -> list[dict]:
        """Every GPU node that stays in the fleet; one that did not answer keeps what it has."""
        return [
            {
                "name": name,
                "address": self.answered.get(name, {}).get("address", ""),
                "gpus": self.answered.get(name, {}).get("gpus", []),
                "reachable": name in self.answered,
            }
            for name in self.params["nodes"]
            if name not in self.params["removed"]
        ]

    def states(self) -> list[dict]:
        names = sorted({*self.params["nodes"], *self.gateways})
        silent = {"plan": None, "plan_error": "", "instances": [], "reachable": False}
        return [
            {**silent, **self.answered.get(name, {}), "host": name, "reachable": name in self.answered} for name in names
        ]


def _empty_catalog(current: dict) -> Fault:
    """A catalog that is not where Ansible looks for it is as empty as one that somebody emptied."""
    return Fault(
        f"the catalog is empty, and the fleet serves {', '.join(sorted(current['models']))}",
        "llm_fleet_models",
        "write it where this inventory reads it, for instance group_vars/all.yml beside hosts.yml;"
        " to take every model away, run with -e llm_fleet_allow_empty_catalog=true",
    )


def _no_plan_to_keep(missing: set[str]) -> Fault:
    return Fault(
        f"this run leaves out {', '.join(sorted(missing))}, and no plan was ever applied that it could keep",
        "--limit",
        "run once without --limit, so that all gateways learn the plan",
    )


def main() -> None:
    names = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "raw", "required": True},
            "clients": {"type": "raw", "required": True},
            "profiles": {"type": "dict", "required": True},
            "lockfile": {"type": "str", "required": True},
            "ca_dir": {"type": "str", "required": True},
            "gateways": {**names, "required": True},
            "gateways_out": {**names, "default": []},
            "nodes": {**names, "required": True},
            "removed": {**names, "default": []},
            "depots": {**names, "default": []},
            "asked": {**names, "required": True},
            "hosts": {"type": "list", "elements": "dict", "required": True},
            "port_range": {"type": "list", "elements": "int", "default": [20000, 29999]},
            "disk_reserve": {"type": "int", "default": 1024**3},
            "store": {"type": "str", "default": ""},
            "engine_images": {"type": "dict", "default": {}},
            "allow_empty_catalog": {"type": "bool", "default": False},
            "strict": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    planner = FleetPlanner(module.params)
    result = planner.run()
    faults = [fault.as_dict() for fault in planner.faults]
    if faults and module.params["strict"]:
        module.fail_json(msg=listing(planner.faults), faults=faults)
    module.exit_json(changed=False, faults=faults, **result)


if __name__ == "__main__":
    main()
