# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Garbage collection beside stagings, each killed anywhere: what is kept stays whole, and so does what a staging brings."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.tests.unit.support.collecting_worker import Workers
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.staging_worker import KILLED
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import artifact, assert_sound, digest, leftovers, tree_of

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Few paths and few contents, so that versions share files and paths share contents.
BODIES = st.binary(max_size=20) | st.integers(0, 3).map(lambda seed: bytes([seed]) * 40)
CONTENTS = st.dictionaries(st.sampled_from(["a", "b", "d/a", "d/e/b"]), BODIES, min_size=1, max_size=4)
STEPS = ["_remove", "_forget", "run", "drop_part", "look", "_count"]
KILLS = st.none() | st.integers(1, 2500) | st.tuples(st.sampled_from(STEPS), st.integers(1, 25)).map(list)
NAPS = st.lists(st.integers(1, 2000), max_size=4)


@pytest.fixture(scope="module")
def workers():
    running = Workers()
    yield running
    running.close()


class Place:
    """A web server, a store, and jobs for the workers on both."""

    def __init__(self, server: RangeServer, root: Path, versions: dict[str, dict[str, bytes]]) -> None:
        self.server, self.root, self.versions = server, root, versions
        for version, contents in versions.items():
            for path, body in contents.items():
                server.add(f"/{version}/{path}", body)

    def job(self, do: str, *versions: str, **options) -> dict:
        made = [artifact("", self.versions[version], version) for version in versions]
        entries = [
            ["tiny", each.version, f"{self.server.url}/{each.version}", [file.as_dict() for file in each.files]] for each in made
        ]
        return {"do": do, "store": str(self.root), "artifacts": entries, **options}

    def sound(self) -> None:
        assert_sound(self.root, self.versions)

    def exactly(self, *versions: str, link: bool = True) -> None:
        """Only these versions are here, and nothing that is none of them."""
        kept = [self.versions[version] for version in versions]
        files = {f"blobs/sha256/{digest(body)}" for contents in kept for body in contents.values()}
        if link:
            files |= {f"models/tiny/{version}/{path}" for version in versions for path in self.versions[version]}
        assert leftovers(self.root) == sorted(files)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kept=CONTENTS,
    garbage=CONTENTS,
    coming=CONTENTS,
    kill=KILLS,
    naps=NAPS,
    other_kill=KILLS,
    other_naps=NAPS,
    grace=st.sampled_from([0, 3600]),
)
def test_collection_beside_a_staging(workers, kept, garbage, coming, kill, naps, other_kill, other_naps, grace):
    """The list of what to keep does not know the version that is coming: not even then may the staging be harmed."""
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Place(server, Path(folder) / "store", {"1.0.0": kept, "2.0.0": garbage, "3.0.0": coming})
        assert workers.run(place.job("stage", "1.0.0", "2.0.0"))[0]["status"] == 0
        staging, collecting = workers.run(
            place.job("stage", "3.0.0", kill_at=kill, naps=naps),
            place.job("collect", "1.0.0", kill_at=other_kill, naps=other_naps, grace=grace),
        )
        assert {staging["status"], collecting["status"]} <= {0, KILLED}, (staging, collecting)
        place.sound()
        assert tree_of(place.root, "1.0.0") == kept
        assert workers.run(place.job("stage", "3.0.0"))[0]["status"] == 0
        assert tree_of(place.root, "3.0.0") == coming
        [last] = workers.run(place.job("collect", "1.0.0", "3.0.0", grace=0))
        assert last["status"] == 0, last
        place.exactly("1.0.0", "3.0.0")
        assert workers.run(place.job("collect", "1.0.0", "3.0.0", grace=0))[0]["actions"] == []
        assert not workers.run(place.job("read", "1.0.0", "3.0.0"))[0]["damaged"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kept=CONTENTS, garbage=CONTENTS, kill=KILLS, naps=NAPS, other_kill=KILLS, other_naps=NAPS, link=st.booleans())
def test_two_collections_at_once_with_and_without_trees(workers, kept, garbage, kill, naps, other_kill, other_naps, link):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Place(server, Path(folder) / "store", {"1.0.0": kept, "2.0.0": garbage})
        assert workers.run(place.job("stage", "1.0.0", "2.0.0", link=link))[0]["status"] == 0
        ended = workers.run(
            place.job("collect", "1.0.0", kill_at=kill, naps=naps, grace=0),
            place.job("collect", "1.0.0", kill_at=other_kill, naps=other_naps, grace=0),
        )
        assert {each["status"] for each in ended} <= {0, KILLED}, ended
        place.sound()
        assert workers.run(place.job("collect", "1.0.0", grace=0))[0]["status"] == 0
        place.exactly("1.0.0", link=link)
        [staged] = workers.run(place.job("stage", "1.0.0", link=link))
        assert (staged["status"], staged["moved"], staged["actions"]) == (0, 0, [])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(kept=CONTENTS, garbage=CONTENTS, kill=KILLS, naps=NAPS, other_kill=KILLS, other_naps=NAPS)
def test_collection_beside_a_reading(workers, kept, garbage, kill, naps, other_kill, other_naps):
    """What goes while it is read is not damaged."""
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Place(server, Path(folder) / "store", {"1.0.0": kept, "2.0.0": garbage})
        assert workers.run(place.job("stage", "1.0.0", "2.0.0"))[0]["status"] == 0
        ended = workers.run(
            place.job("collect", "1.0.0", kill_at=kill, naps=naps, grace=0),
            place.job("read", "1.0.0", "2.0.0", kill_at=other_kill, naps=other_naps),
        )
        assert {each["status"] for each in ended} <= {0, KILLED}, ended
        assert not any(each.get("damaged") for each in ended), ended
        place.sound()
        assert tree_of(place.root, "1.0.0") == kept
