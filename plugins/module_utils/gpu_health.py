# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The health of a host's GPUs over time: what one look finds, put together with what earlier looks found. Pure: no I/O.

`assess()` takes what gpu_info returns and the state that the last look left, and returns the new state. A state is a JSON document;
`findings` is what people read, `memory` is what the next look has to know.

* An XID that needs a reset stays until the GPU was reset or the machine has booted, also when the journal has forgotten it.
* What a look sees counts after as many looks in a row as its rule says, and is gone after three looks without it.
* What a look could not see, because the driver did not answer, stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_health_rules as rules

FORMAT = 1
LOOKS_UNTIL_GONE = 3
# States of gpu_info in which each GPU was asked, and those in which the host itself is the finding.
TOLD = ("ready", "lost")
HOST = ("no_driver", "not_loaded", "mismatch", "failing")


class Settings(NamedTuple):
    """What an operator can choose."""

    interval: int = 60  # seconds between looks
    throttle_looks: int = 5
    remember: int = 86400  # seconds that an XID which is a warning is shown after it was last logged
    severities: Mapping[str, str] = {}  # of findings, by name: "" for no finding, warning or critical

    def severity(self, name: str, default: str) -> str:
        return self.severities.get(name, default)


class Boot(NamedTuple):
    """The boot that this look belongs to. XIDs from before `since` belong to another one, whatever the journal says."""

    id: str
    since: str = ""


class Candidate(NamedTuple):
    """What one look sees: the name of a rule, the GPU's address or an empty string for the host, and what to tell."""

    name: str
    gpu: str
    text: str


def assess(facts: Mapping[str, Any], previous: Mapping[str, Any], settings: Settings, boot: Boot, now: float) -> dict[str, Any]:
    """The state after a look. `previous` is the state before, or empty."""
    before = previous if previous.get("format") == FORMAT else {}
    same = before.get("boot") == boot.id
    memory = before.get("memory", {})
    time = iso(now)
    gpus = _gpus(facts, before)
    known = _known(facts, memory.get("known", {}))
    resets = {**(memory.get("resets", {}) if same else {})}
    if same:
        resets.update(dict.fromkeys(_reset_since(facts, memory), before["checked"]))
    logged = [entry for entry in facts["xids"] if entry["time"] >= boot.since]
    for entry in logged:
        if rules.ends_reset(entry["code"], entry["text"]):
            resets[entry["address"]] = max(entry["time"], resets.get(entry["address"], ""))
    xids = _counted(logged, memory.get("xids", {}) if same else {}, resets)
    looks = _looks(facts, known, memory.get("looks", {}) if same else {}, settings, time)
    # A GPU that does not answer says no UUID, and one that is gone has no place any more.
    uuids = {**{one["address"]: uuid for uuid, one in known.items()}, **{gpu["address"]: gpu["uuid"] for gpu in gpus if gpu["uuid"]}}
    uuids.update({uuid: uuid for uuid in known})
    gpus = [{**gpu, "uuid": uuids.get(gpu["address"], "")} for gpu in gpus]
    findings = [*_seen(looks, settings), *_logged(xids, resets, settings, now)]
    findings = [{**one, "uuid": uuids.get(one["gpu"], "")} for one in findings]
    findings.sort(key=lambda one: (-rules.SEVERITIES.index(one["severity"]), one["gpu"], one["finding"]))
    severity = rules.worst([one["severity"] for one in findings])
    return {
        "format": FORMAT,
        "checked": time,
        "interval": settings.interval,
        "boot": boot.id,
        "state": facts["state"],
        "problem": facts["problem"],
        "severity": severity,
        "drain": severity == rules.CRITICAL,
        "gpus": [{**gpu, "severity": rules.worst([one["severity"] for one in findings if one["gpu"] == gpu["address"]])} for gpu in gpus],
        "findings": findings,
        "memory": {"known": known, "resets": resets, "xids": xids, "looks": looks, **_to_compare(facts, memory if same else {})},
    }


def forget(state: Mapping[str, Any], gpus: list[str], now: float) -> dict[str, Any]:
    """The state without what was found so far of these GPUs (addresses or UUIDs), or of all: somebody has reset or replaced them."""
    memory = state.get("memory", {})
    known = memory.get("known", {})
    addresses = {*memory.get("xids", {}), *(one["address"] for one in known.values()), ""}
    wanted = {*addresses, *known} if not gpus else {*gpus, *(known[gpu]["address"] for gpu in gpus if gpu in known)}
    return {
        **state,
        "memory": {
            **memory,
            "known": {uuid: one for uuid, one in known.items() if uuid not in wanted and one["address"] not in wanted},
            "resets": {**memory.get("resets", {}), **dict.fromkeys((wanted & addresses) - {""}, iso(now))},
            "looks": {key: one for key, one in memory.get("looks", {}).items() if one["gpu"] not in wanted},
        },
    }


def agent_word(state: Mapping[str, Any]) -> str:
    """What HAProxy's agent-check is told: a share of the server's weight and nothing else.

    Words such as `ready` or `drain` would change the server's administrative state, which belongs to rollouts and operators.
    """
    return "0%\n" if state["drain"] else "100%\n"


def iso(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _gpus(facts: Mapping[str, Any], before: Mapping[str, Any]) -> list[dict[str, str]]:
    """The GPUs of this look; those of the last one where the driver tells of none."""
    told = facts["gpus"] if facts["state"] in TOLD else before.get("gpus", [])
    return [{"address": gpu["address"], "uuid": gpu["uuid"], "name": gpu["name"]} for gpu in told]


def _known(facts: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """All GPUs that were ever seen here, by UUID. One in whose place there is a new one was replaced."""
    if facts["state"] not in TOLD:
        return dict(known)
    there = {gpu["uuid"]: {"address": gpu["address"], "name": gpu["name"]} for gpu in facts["gpus"] if gpu["uuid"]}
    # Places move when a card is gone, so one that was known before replaces none.
    places = {one["address"] for uuid, one in there.items() if uuid not in known}
    return {**{uuid: one for uuid, one in known.items() if one["address"] not in places}, **there}


def _to_compare(facts: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """What the next look compares with, to see that a GPU was reset in between."""
    module = facts["driver"]["module_version"] or memory.get("module", "")
    if facts["state"] not in TOLD:
        return {"module": module, "gpu": memory.get("gpu", {})}
    gpus = {
        gpu["address"]: {"uncorrected": gpu["ecc"]["uncorrected"], "recovery": gpu["recovery"]}
        for gpu in facts["gpus"]
        if gpu["state"] == "ready"
    }
    return {"module": module, "gpu": {**memory.get("gpu", {}), **gpus}}


def _reset_since(facts: Mapping[str, Any], memory: Mapping[str, Any]) -> set[str]:
    """The addresses of GPUs that were reset after the last look.

    The driver was loaded anew in another version, or counts errors from zero again, or no longer asks for the reset that it asked for.
    """
    if facts["state"] not in TOLD:
        return set()
    old, module = memory.get("gpu", {}), facts["driver"]["module_version"]
    reloaded = bool(module and memory.get("module")) and module != memory["module"]
    found = set()
    for gpu in facts["gpus"]:
        was = old.get(gpu["address"])
        if was is None or gpu["state"] != "ready":
            continue
        errors, asked = (was["uncorrected"], gpu["ecc"]["uncorrected"]), (was["recovery"], gpu["recovery"])
        counts_anew = None not in errors and errors[0] > errors[1]
        if reloaded or counts_anew or (asked[0] and not asked[1]):
            found.add(gpu["address"])
    return found


def _counted(entries: list[dict[str, Any]], before: Mapping[str, Any], resets: Mapping[str, str]) -> dict[str, Any]:
    """XIDs since boot by address and code.

    The journal forgets, and only its newest entries are read: what was counted once stays counted.
    """
    counts = {address: {code: dict(one) for code, one in codes.items()} for address, codes in before.items()}
    for address, code in sorted({(entry["address"], entry["code"]) for entry in entries}):
        told = [entry for entry in entries if (entry["address"], entry["code"]) == (address, code)]
        one = counts.setdefault(address, {}).setdefault(str(code), {"count": 0, "first": "", "last": "", "at_last": 0, "text": ""})
        at_last = [entry for entry in told if entry["time"] == one["last"]]
        for entry in [*at_last[one["at_last"] :], *(entry for entry in told if entry["time"] > one["last"])]:
            _add(one, code, entry, resets.get(address, ""))
    return counts


def _add(one: dict[str, Any], code: int, entry: Mapping[str, Any], reset: str) -> None:
    """Count one XID. Its text is kept where nothing worse was logged since the last reset; of actions asked for, the last one."""
    if one["last"] <= reset:
        one.update(first=entry["time"], text=entry["text"])
    new, old = (rules.SEVERITIES.index(rules.judge_xid(code, text)[0]) for text in (entry["text"], one["text"]))
    if code == rules.RECOVERY_XID or new >= old:
        one["text"] = entry["text"]
    one.update(at_last=one["at_last"] + 1 if entry["time"] == one["last"] else 1, count=one["count"] + 1, last=entry["time"])


def _logged(xids: Mapping[str, Any], resets: Mapping[str, str], settings: Settings, now: float) -> list[dict[str, Any]]:
    """Findings from XIDs."""
    found = []
    for address, codes in xids.items():
        for code, one in codes.items():
            default, advice = rules.judge_xid(int(code), one["text"])
            severity = settings.severity(f"xid-{code}", default)
            old = one["last"] < iso(now - settings.remember)
            if severity == rules.GOOD or one["last"] <= resets.get(address, "") or (severity == rules.WARNING and old):
                continue
            times = "" if one["count"] == 1 else f" ({one['count']} times since boot)"
            text = f"{rules.title(int(code))}{times}: {one['text']}".rstrip(": ")
            found.append(_finding(f"xid-{code}", address, severity, one["first"], text, advice))
    return found


def _candidates(facts: Mapping[str, Any], known: Mapping[str, Any]) -> list[Candidate]:
    """What this look sees."""
    seen = [Candidate(facts["state"], "", facts["problem"])] if facts["state"] in HOST else []
    manager = facts["fabric_manager"]
    if manager.get("needed") and not manager.get("active"):
        seen.append(Candidate("fabric_manager", "", "the fabric manager does not run, and the NVSwitches need it"))
    if facts["state"] not in (*TOLD, "no_gpu"):
        return seen
    if facts["state"] == "lost" and not any(gpu["state"] == "lost" for gpu in facts["gpus"]):
        seen.append(Candidate("lost", "", facts["problem"]))
    there, silent = {gpu["uuid"] for gpu in facts["gpus"]}, {gpu["address"] for gpu in facts["gpus"] if not gpu["uuid"]}
    gone = {uuid: one for uuid, one in known.items() if uuid not in there and one["address"] not in silent}
    seen += [Candidate("missing", uuid, f"{one['name']} was at {one['address']} and is not on the bus") for uuid, one in gone.items()]
    for gpu in facts["gpus"]:
        seen += _of_gpu(gpu)
    return seen


def _of_gpu(gpu: Mapping[str, Any]) -> list[Candidate]:
    where = gpu["address"]
    if gpu["state"] == "lost":
        return [Candidate("lost", where, "it does not answer, or fell off the bus")]
    seen = []
    if gpu["recovery"]:
        seen.append(Candidate(rules.RECOVERY.get(gpu["recovery"], "recovery"), where, f"the driver asks for: {gpu['recovery']}"))
    if gpu["repair"] == "failed":
        seen.append(Candidate("memory_failed", where, "its memory is worn out and cannot be repaired any more"))
    if gpu["repair"] == "pending":
        seen.append(Candidate("memory_pending", where, "a part of its memory is replaced by a spare one at the next reset"))
    if gpu["ecc"]["uncorrected"]:
        seen.append(Candidate("uncorrected", where, f"{gpu['ecc']['uncorrected']} uncorrected memory errors since the last reset"))
    if gpu["throttle"]:
        seen.append(Candidate("throttle", where, f"it runs slower to protect itself: {', '.join(gpu['throttle'])}"))
    return seen


def _looks(facts: Mapping[str, Any], known: Mapping[str, Any], before: Mapping[str, Any], settings: Settings, time: str) -> dict[str, Any]:
    """How often each candidate was seen in a row, and whether it counts by now."""
    seen = {f"{one.name} {one.gpu}": one for one in _candidates(facts, known)}
    told = facts["state"] in (*TOLD, "no_gpu")
    looks = {}
    for key, one in seen.items():
        was = before.get(key, {"seen": 0, "since": time, "counts": False})
        needed = settings.throttle_looks if one.name == "throttle" else rules.RULES[one.name].looks
        counts = was["counts"] or was["seen"] + 1 >= needed
        looks[key] = {**one._asdict(), "seen": was["seen"] + 1, "gone": 0, "since": was["since"], "counts": counts}
    for key, was in before.items():
        if key in seen:
            continue
        # What is of one GPU cannot be seen while the driver does not answer.
        if was["gpu"] and not told:
            looks[key] = dict(was)
        elif was["counts"] and was["gone"] + 1 < LOOKS_UNTIL_GONE:
            looks[key] = {**was, "gone": was["gone"] + 1}
    return looks


def _seen(looks: Mapping[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Findings from looks."""
    found = []
    for one in looks.values():
        severity = settings.severity(one["name"], rules.RULES[one["name"]].severity)
        if one["counts"] and severity != rules.GOOD:
            found.append(_finding(one["name"], one["gpu"], severity, one["since"], one["text"], rules.RULES[one["name"]].advice))
    return found


def _finding(name: str, gpu: str, severity: str, since: str, text: str, advice: str) -> dict[str, Any]:
    return {"finding": name, "gpu": gpu, "severity": severity, "since": since, "text": text, "advice": advice.replace("{gpu}", gpu)}
