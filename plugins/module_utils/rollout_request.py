# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""From what an operator asks (`-e model=… -e version=…`) to an open rollout, with all that stands in its way. Pure: no I/O."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog_rollout import duration
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.client_registry import stamp
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_choice import with_gpus
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import engine_interfaces, wanted_releases
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout import (
    Opened,
    Request,
    abandon,
    closed_leaving,
    commit,
    earlier_release,
    open_rollout,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.rollout_story import common_progress, rollout_lines, rollout_story

ASKED = {
    "model": {"type": "str", "required": True},
    "version": {"type": "str"},
    "strategy": {"type": "str", "choices": ["auto", "surge", "replace"]},
    "bake": {"type": "str"},
    "accept_outage": {"type": "bool", "default": False},
    "retry_rejected": {"type": "bool", "default": False},
    "undo": {"type": "bool", "default": False},
    "who": {"type": "str", "required": True},
    "why": {"type": "str", "default": ""},
    "only": {"type": "str"},
    "close": {"type": "str", "choices": ["commit", "abandon", "tidy"]},
    "rejected": {"type": "str", "default": ""},
}


class Rollouts:
    """What can be rolled out: the catalog as it was checked, the lockfile, the engine profiles, and the plan that was applied last."""

    def __init__(self, models: list[dict], lock: dict, profiles: dict, current: dict | None) -> None:
        self.models = {model["name"]: model for model in models}
        self.lock = lock
        self.profiles = profiles
        self.current = current

    def open(self, asked: dict[str, Any], nodes: list[dict], answered: dict[str, dict]) -> Opened:
        """nodes: all GPU nodes, with "reachable"; answered: what host_info told of each host that answered."""
        model = self.models.get(asked["model"])
        if model is None:
            advice = suggestion(asked["model"], self.models, "models")
            return self.refuse(Fault(f"the catalog has no model {asked['model']}", "-e model=…", advice))
        if self.current is None:
            return self.refuse(Fault("the fleet runs nothing yet", "the fleet's plan", "run site.yml first"))
        if asked["only"] and self.current.get("rollouts", {}).get(model["name"], {}).get("id") != asked["only"]:
            return self.refuse()  # it has ended meanwhile, one way or the other
        faults: list[Fault] = []
        bake = duration(asked["bake"], "-e bake=…", faults) if asked["bake"] else None
        wanted = wanted_releases([model], self.lock, self.profiles)[model["name"]]
        target, found = self.target(model, wanted, asked, nodes)
        if faults or found:
            return self.refuse(*faults, *found)
        request = Request(
            id=f"r-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}",
            model=model["name"],
            who=asked["who"],
            started=stamp(datetime.now(timezone.utc)),
            bake=bake,
            **{key: asked[key] for key in ("why", "strategy", "accept_outage", "retry_rejected", "undo")},
        )
        return open_rollout(self.current, request, target, wanted, self.interface(target), model["rollout"], self.hosts(nodes, answered))

    def close(self, asked: dict[str, Any]) -> tuple[dict, list[dict]]:
        """The plan without the rollout, and the instances that go. One that is closed already stays so."""
        if asked["close"] == "tidy" or asked["model"] not in self.current.get("rollouts", {}):
            return self.current, []
        now = stamp(datetime.now(timezone.utc))
        if asked["close"] == "commit":
            plan = commit(self.current, asked["model"], now)
        else:
            plan = abandon(self.current, asked["model"], now, asked["rejected"])
        return plan, closed_leaving(self.current, plan)

    def refuse(self, *faults: Fault) -> Opened:
        return Opened(self.current or {}, None, False, list(faults))

    def target(self, model: dict, wanted: dict, asked: dict[str, Any], nodes: list[dict]) -> tuple[dict | None, list[Fault]]:
        """The release to go to."""
        name, version = model["name"], asked["version"]
        rolling = self.current.get("rollouts", {}).get(name)
        if asked["undo"]:
            return (self.current["releases"][rolling["to"]], []) if rolling else earlier_release(self.current, name)
        if version is None:
            return wanted, []
        if version not in self.lock["models"].get(name, {}):
            known = self.lock["models"].get(name, {})
            advice = f"{suggestion(version, known, 'locked versions')}; a version that the catalog has is locked by lock.yml"
            return None, [Fault(f"version {version} of {name} is not locked", "-e version=…", advice)]
        form, readable = self.lock["models"][name][version]["format"], self.profiles[model["engine"]]["formats"]
        if form not in readable:
            what = f"version {version} of {name} is {form}, and {model['engine']} reads {', '.join(readable)}"
            return None, [Fault(what, "-e version=…", "choose a version in a format that the engine reads, or another engine")]
        # Another version may need another number of GPUs.
        models, faults = with_gpus([{**model, "version": version}], self.lock, self.profiles, nodes, self.current)
        return wanted_releases(models, self.lock, self.profiles)[name], faults

    def interface(self, record: dict) -> dict:
        """What gateways and probes have to know of the engine: by its profile, or as the plan has it where that is gone."""
        engine = record["engine"]
        if engine in self.profiles:
            return engine_interfaces(self.profiles, [engine])[engine]
        return self.current["engines"][engine]

    def hosts(self, nodes: list[dict], answered: dict[str, dict]) -> dict[str, dict]:
        """What `open_rollout` has to know of each GPU node."""
        held = {gpu for instance in self.current["instances"] for gpu in instance["gpus"]}
        return {
            node["name"]: {
                "reachable": node["reachable"],
                "memory_free": answered.get(node["name"], {}).get("memory_free", 0),
                "gpu_free": answered.get(node["name"], {}).get("gpu_free", {}),
                **{key: node[key] for key in ("gpu_memory", "gpu_memory_reserve") if key in node},
                "gpus_idle": [gpu for gpu in node["gpus"] if gpu not in held],
                "standing": [one["id"] for one in answered.get(node["name"], {}).get("instances", [])],
            }
            for node in nodes
        }

    def told(self, opened: Opened, asked: dict[str, Any], gateways: list[dict]) -> dict[str, Any] | None:
        """The open rollout for its coordinator and for people; gateways: what host_info told of each one that answered."""
        if opened.rollout is None:
            return None
        model = self.models[asked["model"]]
        routes = [gateway.get("routes", {}).get(model["name"], {}) for gateway in gateways]
        story = rollout_story(opened.plan, model["name"], common_progress(opened.rollout, routes))
        return {**story, "resumed": opened.resumed, "lines": rollout_lines(story), "gates": model["gates"], "smoke": model["smoke"]}
