# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Waits until engines answer, the way gateways will ask them: over HTTP, at the published address.

An engine may load for a quarter of an hour, so waiting is patient; but one that keeps stopping will not get better,
and is reported as soon as that is clear. Nor will one that serves other files than those that were locked.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import fill
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import placeholder_values

# The restart policy may save an engine whose GPU is not free yet; beyond that it only repeats itself.
RESTARTS = 5
# An engine that refuses to load its model may wait for a GPU; it is asked again, but not for ever.
PRELOADS = 5
REQUEST_TIMEOUT = 5
ANSWER_LIMIT = 1 << 20
# Engines are neighbours: what a node uses to reach the web has no part in this.
OPENER = build_opener(ProxyHandler({}))
DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Target(NamedTuple):
    """One instance: where it answers, what has to be true of its answers, and the key that it asks for."""

    id: str
    url: str
    checks: list[dict[str, Any]]
    key: str
    preload: dict[str, str] | None = None


class Failure(NamedTuple):
    """What keeps an instance from being ready."""

    reason: str
    answered: bool = False  # the engine is up, and what it says is not (yet) what is asked of it
    final: bool = False  # and will not change


class Container(NamedTuple):
    """What Docker says of an instance."""

    state: str  # created, running, restarting, exited, ...; "absent" where there is no container
    health: str = "none"
    restarts: int = 0
    exit_code: int = 0
    out_of_memory: bool = False

    @property
    def end(self) -> str:
        return "it ran out of memory" if self.out_of_memory else f"exit code {self.exit_code}"


def make_target(instance: dict[str, Any], interfaces: dict[str, Any], keys: dict[str, str], address: str) -> Target:
    """The target for an instance of the plan; `interfaces` are the plan's engines."""
    record = instance["record"]
    interface = interfaces.get(record["engine"], {})
    values = placeholder_values(record, record["container"]["port"])

    def filled(template: dict[str, Any]) -> dict[str, Any]:
        return {key: fill(value, values) if isinstance(value, str) else value for key, value in template.items()}

    checks = [filled(check) for check in instance.get("ready") or interface.get("ready", [])]
    preload = filled(interface["preload"]) if interface.get("preload") else None
    host = f"[{address}]" if ":" in address else address
    key = keys.get(instance["model"], "") if record["container"]["api_key_environment"] else ""
    return Target(instance["id"], f"http://{host}:{instance['port']}", checks, key, preload)


def unready(target: Target, container: Container) -> Failure | None:
    """What keeps an instance from being ready; None if nothing does."""
    for check in target.checks:
        failure = failed_check(target, check)
        if failure:
            return failure
    if not target.checks and container.health not in ("healthy", "none"):
        return Failure(f"its container is {container.health}")
    return None


def failed_check(target: Target, check: dict[str, Any]) -> Failure | None:
    """How a check of a profile (`path`, `status`, `contains`) fails; None if it does not."""
    request = Request(target.url + check["path"])
    what = f"GET {request.full_url}"
    status, text, trouble = ask(target, request, REQUEST_TIMEOUT)
    if trouble:
        return Failure(f"{what}: {trouble}")
    wanted = check.get("status") or 200
    if status != wanted:
        return Failure(f"{what} answers {status} in place of {wanted}")
    expected = check.get("contains") or ""
    if expected not in text:
        return Failure(f"{what} does not contain {expected}{_digests(expected, text)}", True, bool(check.get("final")))
    return None


def ask(target: Target, request: Request, timeout: float) -> tuple[int, str, str]:
    """(status, body, why there is none of both)."""
    if target.key:
        request.add_unredirected_header("Authorization", f"Bearer {target.key}")
    try:
        try:
            with OPENER.open(request, timeout=timeout) as answer:
                return answer.status, answer.read(ANSWER_LIMIT).decode("utf-8", "replace"), ""
        except HTTPError as error:
            with error:
                return error.code, error.read(ANSWER_LIMIT).decode("utf-8", "replace"), ""
    except URLError as error:
        return 0, "", str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, http.client.HTTPException) as error:
        return 0, "", str(error) or type(error).__name__


def _digests(expected: str, text: str) -> str:
    """Where a digest was expected: the ones that are there."""
    if not DIGEST.search(expected):
        return ""
    found = ", ".join(dict.fromkeys(DIGEST.findall(text)))
    return f", it has the digest {found}" if found else ", and no other digest"


class Preload:
    """Has an engine load its model.

    It answers when it has, and would take an early leave for a change of mind; so this goes on beside the waiting.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self.asked = 0
        self.rest = 0
        self.trouble = ""
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        """Ask, unless an answer is still to come. After each refusal the engine has longer to recover."""
        if not self.target.preload or self.asked >= PRELOADS or (self.thread and self.thread.is_alive()):
            return
        self.rest -= 1
        if self.rest < 0:
            self.asked += 1
            self.rest = 2**self.asked
            self.thread = threading.Thread(target=self._ask, daemon=True)
            self.thread.start()

    @property
    def refused(self) -> bool:
        """Whether the engine refused as often as it was to be asked."""
        return bool(self.trouble) and self.asked >= PRELOADS and not (self.thread and self.thread.is_alive())

    def _ask(self) -> None:
        preload = self.target.preload
        headers = {"Content-Type": "application/json"}
        request = Request(self.target.url + preload["path"], preload["body"].encode(), headers)
        status, text, trouble = ask(self.target, request, self.timeout)
        self.trouble = "" if status == 200 else trouble or f"POST {preload['path']} answers {status}: {_message(text)}"


def _message(text: str) -> str:
    """What an engine says went wrong, in one short line."""
    try:
        said = json.loads(text)["error"]
        text = said if isinstance(said, str) else said["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:500] or "nothing"


def hopeless(container: Container, before: Container) -> str:
    """Why there is no use in waiting; an empty string if there is."""
    if container.state == "absent":
        return "its container is gone"
    if container.state in ("exited", "dead"):
        return f"its container stopped ({container.end})"
    restarts = container.restarts - before.restarts
    return f"it stopped {restarts} times ({container.end})" if restarts >= RESTARTS else ""


class Waiter:
    """Waits for several instances at once."""

    def __init__(
        self,
        look: Callable[[list[str]], dict[str, Container]],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.look = look
        self.clock = clock
        self.pause = pause

    def wait(self, targets: Iterable[Target], timeout: float) -> dict[str, str]:
        """Return why each instance that is not ready is not; nothing once all are."""
        deadline = self.clock() + timeout
        waiting = {target.id: target for target in targets}
        preloads = {name: Preload(target, timeout) for name, target in waiting.items()}
        before = self.look(list(waiting)) if waiting else {}
        given_up: dict[str, str] = {}
        while waiting:
            reasons = {}
            for name, container in self.look(list(waiting)).items():
                failure = None
                lost = hopeless(container, before[name])
                if not lost:
                    failure = unready(waiting[name], container)
                    lost = self._lost(failure, preloads[name])
                if lost:
                    given_up[name] = lost
                elif failure:
                    reasons[name] = _told(failure, preloads[name])
            waiting = {name: target for name, target in waiting.items() if name in reasons}
            if waiting and self.clock() >= deadline:
                return {**given_up, **{name: f"{why} after {timeout:g} seconds" for name, why in reasons.items()}}
            if waiting:
                self.pause(1)
        return given_up

    @staticmethod
    def _lost(failure: Failure | None, preload: Preload) -> str:
        """Why there is no use in waiting for an engine that runs; an empty string if there is."""
        if failure is None or failure.final:
            return failure.reason if failure else ""
        if preload.refused:
            return f"its model does not load ({preload.trouble})"
        if failure.answered:
            preload.run()
        return ""


def _told(failure: Failure, preload: Preload) -> str:
    """The failure, with what the engine said of loading its model."""
    return f"{failure.reason} ({preload.trouble})" if preload.trouble else failure.reason
