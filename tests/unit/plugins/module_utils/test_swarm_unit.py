# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""When the peer program is started and ended, and what is said where it does not run."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import swarm_unit
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_client import PeerGone, PeerRefused
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.swarm_unit import PeerUnit


class Killed(BaseException):
    """The run ends here."""


class Host:
    """systemd, and a program that answers while its unit runs."""

    def __init__(self, folder) -> None:
        self.running = False
        self.starts = True
        self.comes_back = False  # systemd starts one that was killed again
        self.trouble: Exception | None = None  # why it is there and does not do what it is asked
        self.killed_at = ""  # what it says to systemd when the run is killed
        self.runs_with: tuple[str, str] = ("", "")
        self.leases: dict[str, list] = {}
        self.said: list[str] = []
        self.path = folder / "run" / "peer.service"
        self.settings = folder / "peer.json"
        self.unit = PeerUnit(self.path, self.settings, self, self.command, folder / "lock")

    def command(self, arguments: list[str]) -> tuple[int, str, str]:
        if arguments[0] == "journalctl":
            return 0, "listen: address not available\n", ""
        self.said.append(" ".join(arguments[1:]))
        if arguments[1] == self.killed_at:
            raise Killed
        if arguments[1] in ("start", "restart"):
            self.running, self.trouble = self.starts, None
            self.runs_with = (self.path.read_text(), self.settings.read_text())
        elif arguments[1] == "stop":
            self.running, self.leases = False, {}
        return 0, "", ""

    def _answer(self) -> None:
        if not self.running:
            raise PeerGone("no socket") from FileNotFoundError()
        if self.trouble:
            raise self.trouble

    def overview(self) -> dict:
        self._answer()
        return {"leases": sorted(self.leases), "contents": {}}

    def wait(self, _seconds: float) -> None:
        self.running = self.running or self.comes_back
        self._answer()

    def join(self, lease: str, peers: list) -> None:
        self._answer()
        self.leases[lease] = peers

    def leave(self, lease: str) -> int:
        self._answer()
        self.leases.pop(lease, None)
        self.running = bool(self.leases)
        return len(self.leases)

    def enter(self, lease: str, text: str = "unit", **settings) -> bool:
        return self.unit.join(lease, [("10.0.0.1", 8446)], text, settings)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_the_first_run_starts_it_and_the_last_one_ends_it(host):
    assert host.enter("one") and host.path.read_text() == "unit" and host.leases == {"one": [("10.0.0.1", 8446)]}
    assert not host.enter("two")
    assert host.said.count("start peer.service") == 1
    assert not host.unit.leave("one") and host.path.exists() and host.running
    assert host.unit.leave("two")
    assert not host.path.exists() and not host.settings.exists() and host.said[-1] == "daemon-reload"


@pytest.mark.parametrize("later", [{"download": 2}, {"text": "unit with another fleet"}])
def test_what_a_later_run_says_holds_although_a_run_that_was_killed_left_its_lease(host, later):
    host.enter("killed", download=1)
    assert host.enter("two", **{"download": 1, **later})
    assert later.get("text", '"download": 2') in (host.path.read_text() + host.settings.read_text())
    assert host.said[-1] == "restart peer.service" and "daemon-reload" in host.said[-3:]
    # What it keeps for the other run would not survive a stop.
    assert host.said.count("stop peer.service") == 1 and sorted(host.leases) == ["killed", "two"]


@pytest.mark.parametrize("killed_at", ["daemon-reload", "reset-failed", "restart"])
def test_what_a_run_wanted_that_was_killed_before_the_program_had_it_holds_for_the_next_one(host, killed_at):
    host.enter("one", download=1)
    host.killed_at = killed_at
    with pytest.raises(Killed):
        host.enter("killed", text="other unit", download=2)
    assert '"download": 1' in host.runs_with[1]
    host.killed_at = ""
    assert host.enter("two", text="other unit", download=2)
    assert host.runs_with[0] == "other unit" and '"download": 2' in host.runs_with[1]
    assert not host.enter("three", text="other unit", download=2)
    for lease in ("one", "two", "three"):
        host.unit.leave(lease)
    assert sorted(path.name for path in host.path.parent.parent.glob("**/*") if path.is_file()) == ["lock"]


def test_one_that_was_killed_comes_back_with_the_leases_of_other_runs(host):
    for lease in ("one", "two", "three"):
        host.enter(lease)
    host.comes_back = True
    host.running = False
    assert not host.enter("four") and sorted(host.leases) == ["four", "one", "three", "two"]
    host.running = False
    assert not host.unit.leave("two") and host.path.exists() and sorted(host.leases) == ["four", "one", "three"]


def test_one_that_ended_by_itself_is_started_again_and_tidied_up_after(host):
    host.enter("one")
    host.running = False
    assert host.enter("two") and host.running
    host.running = False
    assert host.unit.leave("two") and not host.path.exists()
    assert not host.unit.leave("two")  # nothing is left to do


def silent() -> PeerGone:
    error = PeerGone("/run/control: timed out")
    error.__cause__ = TimeoutError()
    return error


REFUSED = PeerRefused("leave: [Errno 28] No space left on device")


@pytest.mark.parametrize(("trouble", "said"), [(silent(), "timed out"), (REFUSED, "No space left")])
def test_one_that_does_not_take_a_lease_back_is_not_ended_under_other_runs(host, trouble, said):
    """Its disk stands still for longer than an answer is waited for, or is full."""
    host.enter("one")
    host.enter("two")
    host.trouble = trouble
    with pytest.raises(ArtifactError) as caught:
        host.unit.leave("one")
    what, where, fix = caught.value.fault
    assert said in what and where == "peer.service" and "systemctl stop peer.service" in fix
    assert host.running and host.path.exists() and host.said.count("stop peer.service") == 1
    host.trouble = None
    assert not host.unit.leave("one") and host.unit.leave("two")


@pytest.mark.parametrize("trouble", [silent(), REFUSED])
def test_one_that_does_not_say_who_needs_it_is_started_anew_with_what_it_keeps_for_them(host, trouble):
    host.enter("one")
    host.trouble = trouble
    assert host.enter("two") and sorted(host.leases) == ["one", "two"]
    assert host.said[-1] == "restart peer.service"


def test_one_that_does_not_start_is_told_with_its_last_words(host, monkeypatch):
    monkeypatch.setattr(swarm_unit, "START", 0)
    host.starts = False
    with pytest.raises(ArtifactError) as caught:
        host.enter("one")
    what, where, fix = caught.value.fault
    assert "does not run" in what and "address not available" in what and where == "peer.service" and "journalctl" in fix
