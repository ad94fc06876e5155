# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Waits until engines answer, the way gateways will ask them: over HTTP, at the published address.

An engine may load for a quarter of an hour, so waiting is patient; but one that keeps stopping will not get better,
and is reported as soon as that is clear.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import fill
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release import placeholder_values

# The restart policy may save an engine whose GPU is not free yet; beyond that it only repeats itself.
RESTARTS = 5
REQUEST_TIMEOUT = 5
ANSWER_LIMIT = 1 << 20
# Engines are neighbours: what a node uses to reach the web has no part in this.
OPENER = build_opener(ProxyHandler({}))


class Target(NamedTuple):
    """One instance: where it answers, what has to be true of its answers, and the key that it asks for."""

    id: str
    url: str
    checks: list[dict[str, Any]]
    key: str


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
    checks = instance.get("ready") or interfaces.get(record["engine"], {}).get("ready", [])
    values = placeholder_values(record, record["container"]["port"])
    filled = [{key: fill(value, values) if isinstance(value, str) else value for key, value in check.items()} for check in checks]
    host = f"[{address}]" if ":" in address else address
    key = keys.get(instance["model"], "") if record["container"]["api_key_environment"] else ""
    return Target(instance["id"], f"http://{host}:{instance['port']}", filled, key)


def unready(target: Target, container: Container) -> str:
    """Why an instance is not ready; an empty string if it is."""
    for check in target.checks:
        reason = failed_check(target, check)
        if reason:
            return reason
    if not target.checks and container.health not in ("healthy", "none"):
        return f"its container is {container.health}"
    return ""


def failed_check(target: Target, check: dict[str, Any]) -> str:
    """Why a check of a profile (`path`, `status`, `contains`) does not hold; an empty string if it does."""
    request = Request(target.url + check["path"])
    if target.key:
        request.add_unredirected_header("Authorization", f"Bearer {target.key}")
    what = f"GET {request.full_url}"
    try:
        with OPENER.open(request, timeout=REQUEST_TIMEOUT) as answer:
            status, body = answer.status, answer.read(ANSWER_LIMIT)
    except HTTPError as error:
        status, body = error.code, b""
        error.close()
    except URLError as error:
        return f"{what}: {getattr(error.reason, 'strerror', None) or error.reason}"
    except (OSError, http.client.HTTPException) as error:
        return f"{what}: {error or type(error).__name__}"
    if status != check.get("status", 200):
        return f"{what} answers {status} in place of {check.get('status', 200)}"
    if check.get("contains", "") not in body.decode("utf-8", "replace"):
        return f"{what} does not contain {check['contains']}"
    return ""


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
        before = self.look(list(waiting)) if waiting else {}
        given_up: dict[str, str] = {}
        while waiting:
            reasons = {}
            for name, container in self.look(list(waiting)).items():
                lost = hopeless(container, before[name])
                reason = lost or unready(waiting[name], container)
                if lost:
                    given_up[name] = lost
                elif reason:
                    reasons[name] = reason
            waiting = {name: target for name, target in waiting.items() if name in reasons}
            if waiting and self.clock() >= deadline:
                return {**given_up, **{name: f"{why} after {timeout:g} seconds" for name, why in reasons.items()}}
            if waiting:
                self.pause(1)
        return given_up
