# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a store says of itself."""

from __future__ import annotations

import datetime
import json
import os
import time

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known, Report
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import Container, containers
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import Places, artifact, digest

CONTENTS = {"config.json": b"{}", "d/tiny.gguf": b"weights", "again": b"weights"}


@pytest.fixture
def bring(tmp_path):
    def run(link: bool = True, version: str = "1.0.0") -> Store:
        for path, body in CONTENTS.items():
            place = tmp_path / "upstream" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
        store = Store(tmp_path / "store")
        Staging(store, [artifact(f"file://{tmp_path}/upstream", CONTENTS, version)], link=link).run(Fetcher([Places()]))
        return store

    return run


def known(version: str = "1.0.0", contents=None, *reasons: str) -> Known:
    return Known(artifact("", contents or CONTENTS, version), reasons)


def test_a_complete_version_with_its_user(bring):
    store = bring()
    user = Container("tiny-0-a", "tiny", "1.0.0", (str(store.models / "tiny" / "1.0.0"),))
    report = Report(store, [known("1.0.0", None, "current", "locked")], [user]).as_dict()
    [row] = report["artifacts"]
    verified = datetime.datetime.fromisoformat(row.pop("verified"))
    assert abs(verified.timestamp() - time.time()) < 60
    assert row == {
        "model": "tiny",
        "version": "1.0.0",
        "path": str(store.models / "tiny" / "1.0.0"),
        "linked": True,
        "files": 3,
        "size": 9,
        "complete": True,
        "missing": [],
        "used_by": ["tiny-0-a"],
        "reasons": ["current", "locked"],
    }
    assert report["contents"] == {"count": 2, "bytes": 9} and report["unnamed"] == report["unfinished"] == {"count": 0, "bytes": 0}


def test_what_is_missing_or_no_content_of_the_store_is_named(bring):
    store = bring()
    (store.models / "tiny" / "1.0.0" / "config.json").unlink()
    (store.blobs / digest(b"weights")).unlink()
    [row] = Report(store, [known()]).as_dict()["artifacts"]
    assert not row["complete"] and row["missing"] == ["again", "config.json", "d/tiny.gguf"]
    [row] = Report(store).as_dict()["artifacts"]
    assert not row["complete"] and row["missing"] == ["again", "d/tiny.gguf"] and row["reasons"] == []


def test_a_content_that_was_touched_is_not_verified_any_more(bring):
    store = bring()
    os.utime(store.blobs / digest(b"weights"), (1, 1))
    assert Report(store).as_dict()["artifacts"][0]["verified"] is None


def test_of_two_entries_with_one_name_the_one_that_is_here_counts(bring):
    store = bring()
    entries = [known("1.0.0", {"config.json": b"other"}, "locked"), known("1.0.0", None, "current")]
    [row] = Report(store, entries).as_dict()["artifacts"]
    assert row["reasons"] == ["current"] and row["complete"]


def test_a_depot_has_as_much_of_a_version_as_it_has(bring):
    store = bring(link=False)
    more = {**CONTENTS, "more": b"not here"}
    entries = [known("1.0.0"), known("2.0.0", more), known("3.0.0", {"x": b"nothing of it"})]
    rows = Report(store, entries).as_dict()["artifacts"]
    assert [(row["version"], row["linked"], row["complete"], row["missing"]) for row in rows] == [
        ("1.0.0", False, True, []),
        ("2.0.0", False, False, ["more"]),
    ]
    assert Report(store).as_dict()["unnamed"] == {"count": 2, "bytes": 9}


def test_no_store_has_nothing(tmp_path):
    report = Report(Store(tmp_path / "none"), [known()]).as_dict()
    assert report["artifacts"] == [] and report["contents"] == {"count": 0, "bytes": 0}


class Docker:
    """Docker's command line: what it prints for each container, and containers that go while one looks."""

    def __init__(self, there: dict[str, dict], gone: tuple[str, ...] = (), error: str = "") -> None:
        self.there, self.gone, self.error = there, gone, error

    def __call__(self, command: str, *arguments: str) -> tuple[int, str, str]:
        if self.error:
            return 1, "", self.error
        if command == "ps":
            return 0, "\n".join([*self.there, *self.gone]), ""
        found = [self.there[name] for name in arguments if name in self.there]
        missing = [name for name in arguments if name not in self.there]
        return int(bool(missing)), json.dumps(found), f"Error: No such object: {missing}" if missing else ""


ENGINE = {
    "Name": "/tiny-0-a",
    "Config": {"Labels": {"llm_fleet.instance": "tiny-0-a", "llm_fleet.model": "tiny", "llm_fleet.version": "1.0.0"}},
    "Mounts": [{"Type": "bind", "Source": "/store/models/tiny/1.0.0", "Destination": "/models"}, {"Type": "tmpfs", "Source": ""}],
}
STRANGER = {"Name": "/db", "Config": {"Labels": None}, "Mounts": None}


def test_containers_are_told_by_label_or_name():
    engine = Container("tiny-0-a", "tiny", "1.0.0", ("/store/models/tiny/1.0.0",))
    assert containers(None) == [] == containers(Docker({}))
    assert containers(Docker({"a": ENGINE, "b": STRANGER})) == [Container("db", "", "", ()), engine]
    assert containers(Docker({"a": ENGINE}, gone=("c",))) == [engine]


def test_a_docker_that_does_not_tell_is_a_fault():
    with pytest.raises(ArtifactError, match="Cannot connect to the Docker daemon"):
        containers(Docker({}, error="Cannot connect to the Docker daemon at unix:///var/run/docker.sock"))
