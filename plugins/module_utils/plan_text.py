# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A plan in sentences: what it changes, and what has to wait."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.placement_rules import is_wanted


def changes(before: dict, plan: dict, leaving: list) -> list:
    """What applying the plan changes. Empty when it is the plan that was applied last, and nothing leaves."""
    return [
        *_instances(before, plan),
        *(f"{it['host']}: remove {it['id']} ({_what(it)}), drained first" for it in leaving),
        *_ports(before["ports"], plan["ports"]),
        *_models(before["models"], plan["models"]),
        *(f"engine {name}: its interface changes" for name in _changed(before["engines"], plan["engines"])),
        *(_release(name, before["releases"][name], plan["releases"][name]) for name in _changed(before["releases"], plan["releases"])),
    ]


def pending(plan: dict, models: dict) -> list:
    """What the catalog wants and this plan does not do."""
    rolling = plan.get("rollouts", {})
    waiting = [name for name, entry in plan["models"].items() if entry["pending"] and name in models and name not in rolling]
    sentences = [rollout(name, plan["models"][name]) for name in waiting]
    sentences += [open_rollout(name, one) for name, one in sorted(rolling.items())]
    for instance in plan["instances"]:
        model, name = models.get(instance["model"]), f"{instance['host']}: {instance['id']}"
        if instance["model"] in rolling:
            continue
        if not is_wanted(instance, model):
            sentences.append(f"{name} is no longer wanted, and stays until the host can be reached")
        elif len(instance["gpus"]) != model["gpus"]:
            sentences.append(f"{name} has {_gpus(len(instance['gpus']))} until a rollout to another release gives it {model['gpus']}")
    return sentences


def rollout(name: str, entry: dict) -> str:
    """A pending rollout. The releases are named too, because settings may change without the version."""
    versions = f"{entry['version']} -> {entry['wanted_version']}"
    sentence = f"{name}: pending rollout {versions} (release {entry['release']} -> {entry['wanted_release']})"
    for one in entry.get("rejected") or []:
        if one["release"] == entry["wanted_release"]:
            sentence += f"; rejected at {one['at']}: {one['why']}"
    override = entry.get("override")
    if override:
        sentence += f"; {override['who']} chose {override['version']} by hand at {override['at']}"
    return sentence


def open_rollout(name: str, rollout: dict) -> str:
    """A rollout that has begun and not ended."""
    versions = f"{rollout['from_version']} -> {rollout['to_version']}"
    return (
        f"{name}: rollout {versions} (release {rollout['from']} -> {rollout['to']}) is open since {rollout['started']}, begun by"
        f" {rollout['who']}: rollout.yml continues it, rollback.yml takes it back"
    )


def _what(instance: dict) -> str:
    model = f"{instance['model']} {instance['version']}, release {instance['release']}"
    gpus = f", {_gpus(len(instance['gpus']))}" if instance["gpus"] else ""
    return f"{model}, port {instance['port']}{gpus}"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _instances(before: dict, plan: dict) -> list:
    known = {(it["id"], it["host"]): it for it in before["instances"]}
    sentences = []
    for instance in plan["instances"]:
        old = known.get((instance["id"], instance["host"]))
        if old is None:
            sentences.append(f"{instance['host']}: create {instance['id']} ({_what(instance)})")
        elif old != instance:
            fields = [f"{key} {old[key]} -> {instance[key]}" for key in sorted(old) if old[key] != instance[key]]
            sentences.append(f"{instance['host']}: change {instance['id']} ({', '.join(fields)})")
    return sentences


def _ports(before: dict, after: dict) -> list:
    lost = [name for name in before if name not in after]
    return [f"ports {before[name]}-{before[name] + 1}: no longer kept for {name}" for name in lost]


def _models(before: dict, after: dict) -> list:
    sentences = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if new is None:
            sentences.append(f"gateways: forget {name}")
        elif old is None:
            sentences.append(f"gateways: serve {name} {new['version']} to {_plain(new['access'])}")
        elif old["release"] != new["release"]:
            releases = f"release {old['release']} -> {new['release']}"
            sentences.append(f"gateways: serve {name} {new['version']} ({releases})")
        if new is None:
            continue
        old = old or {**new, "pending": False, "wanted_release": new["release"]}
        for key in ("access", "queue", "replicas"):
            if old[key] != new[key]:
                sentences.append(f"{name}: {key} {_plain(old[key])} -> {_plain(new[key])}")
        if old["wanted_release"] != new["wanted_release"]:
            if new["wanted_release"] is None:
                sentences.append(f"{name}: no longer in the catalog")
            elif new["pending"]:
                sentences.append(rollout(name, new))
            elif old["pending"]:
                sentences.append(f"{name}: no rollout is pending any more")
    return sentences


def _changed(before: dict, after: dict) -> list:
    return [name for name in after if name in before and after[name] != before[name]]


def _release(name: str, old: dict, new: dict) -> str:
    """What may change of a release that stays the same one."""
    known = {"fit": "what is known of its memory", "gpus": "the number of its GPUs"}
    what = [words for key, words in known.items() if old.get(key) != new.get(key)]
    if {key: old[key] for key in set(old) - set(known)} != {key: new[key] for key in set(new) - set(known)}:
        what.append("its source")
    return f"release {name}: {', '.join(what)} {'change' if len(what) > 1 else 'changes'}"


def _plain(value: object) -> str:
    return (", ".join(value) or "nobody") if isinstance(value, list) else str(value)
