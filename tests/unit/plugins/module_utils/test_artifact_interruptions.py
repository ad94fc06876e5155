# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whenever a run ends too early: what is linked is verified and complete, and the next run finishes the work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import artifact_fetch, artifact_store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import (
    artifact,
    assert_sound,
    digest,
    tree_of,
)

# Thousands of fsyncs are a matter of minutes on a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Few paths and few contents, so that versions share files and paths share contents.
PATHS = st.sampled_from(["a", "b", "d/a", "d/e/b"])
BODIES = st.binary(max_size=40) | st.integers(0, 3).map(lambda seed: bytes([seed]) * 3000)
CONTENTS = st.dictionaries(PATHS, BODIES, min_size=1, max_size=4)
# Each call that changes what a reader of the store could see, or what survives a power cut.
STEPS = [(artifact_store.os, name) for name in ("link", "rename", "replace", "fsync", "chmod", "chown", "truncate")] + [
    (artifact_fetch.Part, "write"),
    (artifact_store.Path, "unlink"),
    (artifact_store.Path, "mkdir"),
]


class PowerCut(BaseException):
    """Nothing of ours may catch it: after it there is no more code."""


class Fuse:
    """Lets a number of steps happen, then cuts the power before or after the next one."""

    def __init__(self, steps: int, after: bool) -> None:
        self.left = steps
        self.after = after

    def wrap(self, function):
        def step(*args, **kwargs):
            if self.left == 0 and not self.after:
                raise PowerCut
            self.left -= 1
            result = function(*args, **kwargs)
            if self.left < 0:
                raise PowerCut
            return result

        return step

    def __enter__(self) -> Fuse:
        self.patches = [mock.patch.object(owner, name, self.wrap(getattr(owner, name))) for owner, name in STEPS]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, kind, _error, _traceback) -> bool:
        for patch in self.patches:
            patch.stop()
        return kind is PowerCut


def work(store: Store, wanted, removing=()) -> None:
    with store.locked(5):
        for old in removing:
            store.remove(old)
        found = store.survey(wanted)
        if found.actions:
            store.place(wanted, found, Fetcher(timeout=5, retries=3, pause=lambda _seconds: None))


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    old=CONTENTS,
    new=CONTENTS,
    keep_old=st.booleans(),
    brought=st.booleans(),
    cuts=st.lists(st.integers(0, 3000), max_size=3),
    interruptions=st.lists(st.tuples(st.integers(0, 45), st.booleans()), min_size=1, max_size=3),
)
def test_any_interruption_leaves_a_sound_store(old, new, keep_old, brought, cuts, interruptions):
    with RangeServer() as server, tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        root = Path(folder) / "store"
        store = Store(root)
        versions = {}
        for version, contents in (("1.0.0", old), ("2.0.0", new)):
            versions[version] = artifact(f"{server.url}/{version}", contents, version)
            for path, body in contents.items():
                server.add(f"/{version}/{path}", body)
        work(store, versions["1.0.0"])
        for resource in server.resources.values():
            resource.cuts = list(cuts)
        if brought:
            body = next(iter(new.values()))
            (store.incoming / digest(body)).write_bytes(body)
        leaving = [] if keep_old else [versions["1.0.0"]]
        for steps, after in interruptions:
            with Fuse(steps, after):
                work(store, versions["2.0.0"], leaving)
            assert_sound(root, {"1.0.0": old, "2.0.0": new})
            if keep_old:
                assert tree_of(root) == old
        work(store, versions["2.0.0"], leaving)
        assert tree_of(root, "2.0.0") == new
        assert tree_of(root) == (old if keep_old else None)
        assert store.survey(versions["2.0.0"]).actions == []
        assert not [path for path in root.rglob("*.new") if path.parent != store.incoming]


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
        server.add("/f", body, etag=etag, ranges=ranges, cuts=list(cuts))
        wanted = artifact(f"{server.url}/f", {"f": body})
        store.incoming.mkdir()
        (store.incoming / f"{digest(body)}.part").write_bytes(body[:position] + garbage)
        work(store, wanted)
        assert tree_of(Path(folder)) == {"f": body}
