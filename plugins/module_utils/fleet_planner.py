# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the module fleet_plan does: reads the two files on the controller, has all of it checked, and plans."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import (
    gpu_supply,
    maintenance,
    preflight,
    regular_files,
    staging,
    what_if,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.client_registry import stamp
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import legacy_warnings
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_choice import with_gpus
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.local_supply import local_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import LOCK_AGAIN, check_locked, exact_versions, parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan import PlanResult, choose_current, make_plan, stray_instances
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan_picture import nodes_shown
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.plan_text import changes, pending
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import engine_interfaces, wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_request import Rollouts
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import demands, named_paths, unsigned_faults
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.views import status_rows

# Bytes that are not for engines, where a host does not say it: the driver's part of a GPU, and the rest of the machine.
GPU_MEMORY_RESERVE = 512 * 2**20
MEMORY_RESERVE = 2**30


class FleetPlanner:
    """Reads the two files on the controller; all the rest is asked of pure functions."""

    def __init__(self, params: dict) -> None:
        self.faults: list[Fault] = []
        params, faults = what_if.imagine(params)
        self.params = params
        self.note(faults)
        self.gateways = set(params["gateways"])
        self.answered = {host["name"]: host for host in params["hosts"]}
        self.asked = set(params["asked"])
        self.held = {name: dict(host["blobs"]) for name, host in self.answered.items()}
        self.gpus_held: dict[str, list[str]] = {}
        self.rollout: dict | None = None
        self.unsettled = False
        self.probes: dict[str, dict] = {}

    def note(self, faults: list[Fault]) -> None:
        self.faults.extend(faults)

    def run(self) -> dict:
        """Check what was written, then the hosts, then plan: the later needs the earlier to be right."""
        models, clients, lock = self.check_written()
        current = self.check_hosts()
        if set(self.params["nodes"]) <= set(self.answered):
            self.note(preflight.check_labels(models, [self.answered[name] for name in self.params["nodes"]]))
        if not self.params["models"] and current and current["models"] and not self.params["allow_empty_catalog"]:
            self.note([_empty_catalog(current)])
        frozen = not self.gateways <= self.asked | set(self.params["gateways_out"])
        if frozen and current is None:
            self.note([_no_plan_to_keep(self.gateways - self.asked)])
        # Where nothing can be planned, what was last applied still tells what should run.
        result = _as_applied(current)
        if (self.params["rollout"] or self.params["maintenance"]) and frozen:
            self.note([_limited(self.gateways - self.asked)])
        if not self.faults and self.params["maintenance"]:
            result = self.maintain(models, current)
        elif not self.faults and self.params["rollout"]:
            result = self.roll_out(exact_versions(models, lock), lock, current)
        elif not self.faults:
            result = self.plan(exact_versions(models, lock), lock, current, frozen)
        artifacts = self.signed(staging.fleet_artifacts(result.plan, lock, self.params["depots"]), models, lock)
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
            "nodes": nodes_shown(self.node_list(), self.answered, result.plan),
            # Not "warnings": those of a module's result are Ansible's.
            "memory_warnings": result.warnings,
            "clients": clients,
            "frozen": frozen,
            "rollout": self.rollout,
            "unsettled": self.unsettled,
            "gpu_problems": gpu_supply.problems(self.answered, self.params["nodes"]),
            "engine_warnings": legacy_warnings(models, self.params["profiles"]),
            "probes": self.probes,
            "status": status_rows(result.plan, self.states()),
            "diff": {"before": current or {}, "after": result.plan},
        }

    def plan(self, models: list[dict], lock: dict, current: dict | None, frozen: bool) -> PlanResult:
        params = self.params
        models, faults = with_gpus(models, lock, params["profiles"], self.node_list(), current)
        if faults and not frozen:
            self.note(faults)
            return _as_applied(current)
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

    def roll_out(self, models: list[dict], lock: dict, current: dict | None) -> PlanResult:
        """The plan that was applied last, with the rollout opened in it."""
        asked = self.params["rollout"]
        models, faults = with_gpus(models, lock, self.params["profiles"], self.node_list(), current)
        self.note([fault for fault in faults if fault.where.startswith(f"llm_fleet_models[{asked['model']}]")])
        rollouts = Rollouts(models, lock, self.params["profiles"], current)
        catalog = {model["name"]: model for model in models}
        if asked["close"] and current:
            plan, leaving = rollouts.close(asked)
            leaving += self.strays(plan, asked["model"], leaving)
            return PlanResult(plan, leaving, pending(plan, catalog), changes(current, plan, leaving), [])
        opened = rollouts.open(asked, self.node_list(), self.answered)
        self.note(opened.faults)
        if opened.faults:
            return _as_applied(current)
        self.rollout = rollouts.told(opened, asked, [host for name, host in sorted(self.answered.items()) if name in self.gateways])
        leaving = self.strays(opened.plan, asked["model"])
        # An earlier run has closed it, and did not get to the end of that.
        self.unsettled = self.rollout is None and (bool(leaving) or self.outdated(opened.plan))
        return PlanResult(opened.plan, leaving, pending(opened.plan, catalog), self.rollout["lines"] if self.rollout else [], [])

    def maintain(self, models: list[dict], current: dict | None) -> PlanResult:
        """The plan that was applied last, with hosts taken out of service or brought back."""
        asked = self.params["maintenance"]
        self.probes = {model["name"]: {"gates": model["gates"], "smoke": model["smoke"]} for model in models}
        if current is None:
            self.note([Fault("the fleet runs nothing yet", "the fleet's plan", "run site.yml first")])
            return _as_applied(None)
        if asked["state"] == "end":
            plan = maintenance.end(current, asked["hosts"])
        else:
            self.note(maintenance.check(current, asked["hosts"], self.params["nodes"], set(self.answered)))
            plan = maintenance.begin(current, asked["hosts"], asked["who"], asked["why"], stamp(datetime.now(timezone.utc)))
        changed = sorted(set(maintenance.under_maintenance(plan)) ^ set(maintenance.under_maintenance(current)))
        verb = {"begin": "goes out of service", "end": "is back in service"}[asked["state"]]
        return PlanResult(plan, [], [], [f"{host}: {verb}" for host in changed], [])

    def strays(self, plan: dict, model: str, known: list[dict] | None = None) -> list[dict]:
        """Instances of a model that run although the plan has none of that name there, without those that are known."""
        running = {name: host["instances"] for name, host in self.answered.items()}
        places = {(it["id"], it["host"]) for it in known or []}
        found = stray_instances(plan, running, self.node_list())
        return [it for it in found if it["model"] == model and (it["id"], it["host"]) not in places]

    def outdated(self, plan: dict) -> bool:
        """Whether a host has another plan, or a gateway a route of a rollout that is over."""
        open_ones = set(plan.get("rollouts", {}))
        return any(host["plan"] != plan or set(host.get("routes", {})) - open_ones for host in self.answered.values() if self.planned(host))

    def planned(self, host: dict) -> bool:
        """Whether the plan is noted on a host: on depots it is not."""
        return host["name"] in self.gateways or host["name"] in self.params["nodes"]

    def check_written(self) -> tuple:
        """What the operator wrote: paths, groups, catalog, clients, lockfile."""
        params = self.params
        self.note(preflight.check_groups(params["gateways"], params["nodes"]))
        self.note(preflight.check_paths({"llm_fleet_lockfile": params["lockfile"], "llm_fleet_ca_dir": params["ca_dir"]}))
        self.note(preflight.check_inventories(params["inventories"], {"llm_fleet_ca_dir": params["ca_dir"]}))
        self.note(preflight.check_port_range(params["port_range"]))
        p2p = (params["distribution"], params["peer_port"], params["depots"], params["port_range"])
        self.note(preflight.check_distribution(*p2p))
        models, clients, faults = check_catalog(params["models"], params["clients"], params["profiles"], params["nodes"])
        self.note(faults)
        lock = {}
        if params["lockfile"].startswith("/"):
            lock = self.read_lockfile(Path(params["lockfile"]), models)
        if params["require_signatures"]:
            self.note(list(unsigned_faults(models, lock)))
        return models, clients, lock

    def read_lockfile(self, path: Path, models: list[dict]) -> dict:
        try:
            text = regular_files.text_of(path)
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
            self.check_signatures(models, lock, path.name)
        return lock

    def check_signatures(self, models: list[dict], lock: dict, name: str) -> None:
        if not demands(models, lock):
            return
        # Here, because it loads cryptography, which most fleets' runs need not wait for.
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import check_signatures, read_files

        self.note(check_signatures(models, lock, name, read_files(named_paths(models))))

    def signed(self, artifacts: dict[str, list], models: list[dict], lock: dict) -> dict[str, list]:
        """Depots get what it takes to verify the signatures themselves. Who takes files from them compares digests, and needs none."""
        told: dict[tuple[str, str], dict] = {}
        if not self.faults and demands(models, lock):
            from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import hand_out, read_files

            told = hand_out(artifacts, models, lock, read_files(named_paths(models)))
        return staging.with_signatures(artifacts, self.params["depots"], told)

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
        for instance in current["instances"] if current else []:
            self.gpus_held.setdefault(instance["host"], []).extend(instance["gpus"])
        for name in params["nodes"]:
            host = self.answered.get(name, {})
            self.note(gpu_supply.check_listed(host.get("gpus"), host.get("gpu"), self.gpus_held.get(name, []), f"host {name}"))
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
        stored = self.blobs_here()
        wanted = staging.supply(artifacts, takers, here=stored if depots else None)
        files, faults = local_files(wanted, stored)
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
        """The digests of what locking, or a bundle, left in the controller's store."""
        blobs = Path(self.params["store"]) / "blobs" / "sha256"
        return {path.name for path in blobs.iterdir()} if self.params["store"] and blobs.is_dir() else set()

    def node_list(self) -> list[dict]:
        """Every GPU node that stays in the fleet; one that did not answer keeps what it has."""
        return [self.node(name) for name in self.params["nodes"] if name not in self.params["removed"]]

    def node(self, name: str) -> dict:
        host = self.answered.get(name, {})
        return {
            "name": name,
            "address": host.get("address", ""),
            "gpus": gpu_supply.node_gpus(host.get("gpus"), host.get("gpu"), self.gpus_held.get(name, [])),
            "reachable": name in self.answered,
            "labels": host.get("labels") or {},
            **gpu_supply.traits((host.get("gpu") or {}).get("gpus", [])),
            "gpu_memory": host.get("gpu_memory") or {},
            "memory": host.get("memory_bytes"),
            "gpu_memory_reserve": host.get("gpu_memory_reserve", GPU_MEMORY_RESERVE),
            "memory_reserve": host.get("memory_reserve", MEMORY_RESERVE),
        }

    def states(self) -> list[dict]:
        names = sorted({*self.params["nodes"], *self.gateways})
        silent = {"plan": None, "plan_error": "", "instances": [], "reachable": False}
        return [
            {**silent, **self.answered.get(name, {}), "host": name, "reachable": name in self.answered} for name in names
        ]


def _as_applied(current: dict | None) -> PlanResult:
    """The plan that was applied last, or an empty one, with nothing to do."""
    return PlanResult(current or {"generation": 0, "instances": [], "models": {}}, [], [], [], [])


def _empty_catalog(current: dict) -> Fault:
    """A catalog that is not where Ansible looks for it is as empty as one that somebody emptied."""
    return Fault(
        f"the catalog is empty, and the fleet serves {', '.join(sorted(current['models']))}",
        "llm_fleet_models",
        "write it where this inventory reads it, for instance group_vars/all.yml beside hosts.yml;"
        " to take every model away, run with -e llm_fleet_allow_empty_catalog=true",
    )


def _limited(missing: set[str]) -> Fault:
    return Fault(
        f"this run leaves out {', '.join(sorted(missing))}: what changes the plan needs every gateway",
        "--limit",
        "run without --limit, or declare a gateway that is away out with llm_fleet_gateways_out",
    )


def _no_plan_to_keep(missing: set[str]) -> Fault:
    return Fault(
        f"this run leaves out {', '.join(sorted(missing))}, and no plan was ever applied that it could keep",
        "--limit",
        "run once without --limit, so that all gateways learn the plan",
    )
