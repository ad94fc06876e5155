# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""However many runs there are at once, and wherever they are killed: what is linked is verified and complete, and the
next run finishes the work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.staging_worker import FAULT, KILLED, Workers
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import (
    Places,
    artifact,
    assert_sound,
    digest,
    leftovers,
    tree_of,
)

# Thousands of fsyncs are a matter of minutes on a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Body(bytes):
    """Bytes whose description fits a line."""

    def __repr__(self) -> str:
        return super().__repr__() if len(self) < 50 else f"Body([{self[0]}]) * {len(self)}"


# Few paths and few contents, so that versions share files and paths share contents.
PATHS = st.sampled_from(["a", "b", "d/a", "d/e/b"])
BODIES = st.binary(max_size=40) | st.integers(0, 3).map(lambda seed: Body(bytes([seed]) * 3000))
CONTENTS = st.dictionaries(PATHS, BODIES, min_size=1, max_size=4)
# Where what others see changes; most lines of a run only look.
STEPS = ["adopt", "finish", "set", "take", "write", "restart", "discard", "link", "_build", "_repair", "hold", "live"]
LEAVING = ["remove", "_finish_leaving", "_set_aside", "drop_part", "only_in"]
# A run of a few files comes to about this many lines of our code; past the end nobody is killed.
KILLS = (
    st.none()
    | st.integers(1, 2500)
    | st.tuples(st.sampled_from(STEPS), st.integers(1, 30)).map(list)
    | st.tuples(st.sampled_from(["_build", "adopt"]), st.integers(1, 40)).map(list)
)
LEAVING_KILLS = KILLS | st.tuples(st.sampled_from(LEAVING), st.integers(1, 15)).map(list)
NAPS = st.lists(st.integers(1, 2000), max_size=4)


@pytest.fixture(scope="module")
def workers():
    running = Workers()
    yield running
    running.close()


class Stage:
    """A web server and a store, and jobs for the workers on both."""

    def __init__(self, server: RangeServer, root: Path, versions: dict[str, dict[str, bytes]]) -> None:
        self.server = server
        self.root = root
        self.versions = versions
        for version, contents in versions.items():
            for path, body in contents.items():
                server.add(f"/{version}/{path}", body)

    def job(self, *versions: str, do="stage", **options) -> dict:
        entries = []
        for version in versions:
            made = artifact("", self.versions[version], version)
            entries.append(["tiny", version, f"{self.server.url}/{version}", [file.as_dict() for file in made.files]])
        return {"do": do, "store": str(self.root), "artifacts": entries, **options}

    def sound(self) -> None:
        assert_sound(self.root, self.versions)


OLD = {"a": b"x" * 3000, "b": b"{}", "d/a": b"z"}
NEW = {"a": b"x" * 3000, "b": b"{ }", "d/e/b": b"u" * 40}


@pytest.mark.parametrize("function", [*STEPS, "prepare", "own", "_sweep_links", "read_again"])
def test_one_staging_killed_at_every_line_of_what_it_changes(workers, function):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for line in range(1, 100):
            stage = Stage(server, Path(folder) / str(line), {"1.0.0": OLD, "2.0.0": NEW})
            assert workers.run(stage.job("1.0.0"))[0]["status"] == 0
            hurt = stage.root / "models/tiny/1.0.0/b"
            hurt.unlink()
            hurt.write_bytes(b"hurt")  # so that there is a tree to repair beside the one to build,
            os.utime(stage.root / "blobs/sha256" / digest(OLD["a"]))  # a content to read again,
            (stage.root / "incoming" / f"{digest(NEW['b'])}.part").write_bytes(b"too long")  # and a part to throw away
            [ended] = workers.run(stage.job("2.0.0", "1.0.0", kill_at=[function, line]))
            assert_sound(stage.root, {"2.0.0": NEW})
            assert (tree_of(stage.root) or {}).get("b") in (b"hurt", OLD["b"])
            assert workers.run(stage.job("2.0.0", "1.0.0"))[0]["status"] == 0
            assert (tree_of(stage.root), tree_of(stage.root, "2.0.0")) == (OLD, NEW)
            if ended["status"] == 0:
                break
        assert line > 1, "that function is not part of a staging"


@settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=CONTENTS,
    second=CONTENTS,
    cuts=st.lists(st.integers(0, 3000), max_size=3),
    rounds=st.lists(st.tuples(KILLS, NAPS, KILLS, NAPS), min_size=1, max_size=3),
)
def test_two_stagings_at_once_killed_anywhere(workers, first, second, cuts, rounds):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stage = Stage(server, Path(folder) / "store", {"1.0.0": first, "2.0.0": second})
        for resource in server.resources.values():
            resource.cuts = list(cuts)
        for kill, naps, other_kill, other_naps in rounds:
            ended = workers.run(
                stage.job("1.0.0", "2.0.0", kill_at=kill, naps=naps),
                stage.job("2.0.0", kill_at=other_kill, naps=other_naps),
            )
            assert {each["status"] for each in ended} <= {0, KILLED}, ended
            stage.sound()
        [last] = workers.run(stage.job("1.0.0", "2.0.0"))
        assert last["status"] == 0, last
        assert (tree_of(stage.root), tree_of(stage.root, "2.0.0")) == (first, second)
        [again] = workers.run(stage.job("1.0.0", "2.0.0"))
        assert (again["moved"], again["actions"]) == (0, [])
        assert leftovers(stage.root) == sorted(
            {f"blobs/sha256/{digest(body)}" for contents in (first, second) for body in contents.values()}
            | {f"models/tiny/{version}/{path}" for version, contents in stage.versions.items() for path in contents}
        )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    old=CONTENTS,
    new=CONTENTS,
    kill=KILLS,
    naps=NAPS,
    other_kill=LEAVING_KILLS,
    other_naps=NAPS,
    do=st.sampled_from(["remove", "verify"]),
)
def test_staging_beside_removal_or_verification(workers, old, new, kill, naps, other_kill, other_naps, do):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stage = Stage(server, Path(folder) / "store", {"1.0.0": old, "2.0.0": new})
        assert workers.run(stage.job("1.0.0"))[0]["status"] == 0
        ended = workers.run(
            stage.job("2.0.0", kill_at=kill, naps=naps), stage.job("1.0.0", do=do, kill_at=other_kill, naps=other_naps)
        )
        assert {each["status"] for each in ended} <= {0, KILLED}, ended
        assert not any(each.get("damaged") for each in ended)
        stage.sound()
        if ended[0]["status"] == 0:
            assert tree_of(stage.root, "2.0.0") == new
        for job in (stage.job("2.0.0"), stage.job("1.0.0", do="remove")):
            assert workers.run(job)[0]["status"] == 0
        assert tree_of(stage.root, "2.0.0") == new and tree_of(stage.root) is None


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=CONTENTS, second=CONTENTS, naps=NAPS, other_naps=NAPS)
def test_two_stagings_at_once_fetch_each_content_once(workers, first, second, naps, other_naps):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stage = Stage(server, Path(folder) / "store", {"1.0.0": first, "2.0.0": second})
        ended = workers.run(stage.job("1.0.0", "2.0.0", naps=naps), stage.job("2.0.0", "1.0.0", naps=other_naps))
        assert [each["status"] for each in ended] == [0, 0], ended
        contents = {digest(body): len(body) for each in (first, second) for body in each.values()}
        assert sum(each["moved"] for each in ended) == server.sent == sum(contents.values())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=CONTENTS, kill=KILLS, naps=NAPS)
def test_a_source_with_wrong_bytes_leads_to_nothing_whenever_it_ends(workers, contents, kill, naps):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        stage = Stage(server, Path(folder) / "store", {"1.0.0": contents})
        changed = sorted(contents)[0]
        server.add(f"/1.0.0/{changed}", bytes(byte ^ 1 for byte in contents[changed]))
        [ended] = workers.run(stage.job("1.0.0", kill_at=kill, naps=naps))
        stage.sound()
        right = list(contents.values()).count(contents[changed]) > 1 or not contents[changed]
        assert ended["status"] in ((0, KILLED, FAULT) if right else (KILLED, FAULT)), ended
        assert right or tree_of(stage.root) is None


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(min_size=2, max_size=3000),
    position=st.integers(0, 3000),
    garbage=st.binary(max_size=3000),
    etag=st.sampled_from([None, "", 'W/"1"', '"1"']),
    ranges=st.booleans(),
    cuts=st.lists(st.integers(0, 3000), max_size=3),
)
def test_whatever_lies_in_the_way_the_right_file_arrives(body, position, garbage, etag, ranges, cuts):
    """A part may hold the beginning of the file, of another one, or of none at all."""
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(folder)
        store.prepare()
        server.add("/f", body, etag=etag, ranges=ranges, cuts=list(cuts))
        (store.incoming / f"{digest(body)}.part").write_bytes(body[:position] + garbage)
        wanted = artifact(server.url, {"f": body})
        Staging(store, [wanted]).run(Fetcher([Places(retries=3)]))
        assert tree_of(Path(folder)) == {"f": body}
