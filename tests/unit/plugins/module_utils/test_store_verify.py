# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Reading a store again finds whatever was done to it, and nothing else."""

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
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.progress import Progress
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_verify import Verification
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, Places, artifact, digest, tree_of

VERSIONS = {"1.0.0": {"config.json": b"{}", "tiny.gguf": BODY}, "1.1.0": {"config.json": b"{ }", "tiny.gguf": BODY}}


class Host:
    """A store, and the folder that its files come from."""

    def __init__(self, root: Path, upstream: Path, versions: dict[str, dict[str, bytes]]) -> None:
        self.store = Store(root)
        self.artifacts = []
        for version, contents in versions.items():
            for path, body in contents.items():
                place = upstream / version / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(body)
            self.artifacts.append(artifact(f"file://{upstream}/{version}", contents, version))
        self.known = [Known(each, ("locked",)) for each in self.artifacts]

    def stage(self, link: bool = True) -> list[str]:
        done = Staging(self.store, self.artifacts, link=link).run(Fetcher([Places()]))
        return [action for found in done for action in found.actions]

    def verify(self, known=None, **options):
        return Verification(self.store, self.known if known is None else known, **options).run()

    def flip(self, body: bytes, position: int = 0) -> None:
        """Change one byte of a content, as a failing disk would."""
        blob = self.store.blobs / digest(body)
        status = blob.stat()
        blob.chmod(0o600)
        with blob.open("r+b") as handle:
            handle.seek(position)
            byte = handle.read(1)
            handle.seek(position)
            handle.write(bytes([byte[0] ^ 1]))
        blob.chmod(0o440)
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(body: bytes, position: int) -> bytes:
    return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]


def row(version: str, path: str, expected: str, actual: str) -> dict:
    return {"model": "tiny", "version": version, "file": path, "expected": expected, "actual": actual}


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path / "store", tmp_path / "upstream", VERSIONS)
    made.stage()
    return made


def test_a_sound_store_is_read_once(host):
    progress = Progress(host.store.incoming, "verify1")
    found = host.verify(progress=progress)
    assert found.damaged == [] and found.set_aside == []
    assert found.contents == 3 and found.bytes_read == len(BODY) + 5 == progress.done == progress.total


def test_a_flipped_byte_is_named_for_each_version_and_only_that_content_comes_again(host):
    host.flip(BODY, 77)
    damaged = [row(version, "tiny.gguf", digest(BODY), digest(flipped(BODY, 77))) for version in VERSIONS]
    assert host.verify(keep_marks=False).damaged == damaged and (host.store.blobs / digest(BODY)).exists()
    found = host.verify()
    assert found.damaged == damaged and found.set_aside == [digest(BODY)]
    # Until it was staged again, the trees have the damaged file, and this says so.
    again = host.verify()
    assert again.damaged == damaged and again.set_aside == []
    actions = host.stage()
    assert [action for action in actions if "fetch" in action] == [f"fetch tiny.gguf ({len(BODY) >> 20}.0 MiB)"]
    assert host.verify().damaged == [] and tree_of(host.store.root) == VERSIONS["1.0.0"]


def test_without_a_list_trees_and_contents_still_have_names(host):
    host.flip(b"{}")
    assert host.verify(known=[]).damaged == [row("1.0.0", "config.json", digest(b"{}"), digest(flipped(b"{}", 0)))]
    [again] = host.verify(known=[]).damaged
    assert (again["file"], again["expected"]) == ("config.json", "unknown")


def test_a_depot_without_trees_is_read_too(tmp_path):
    host = Host(tmp_path / "depot", tmp_path / "upstream", VERSIONS)
    host.stage(link=False)
    host.flip(b"{}")
    assert host.verify(known=[]).damaged[0]["file"] == f"blobs/sha256/{digest(b'{}')}"
    host.stage(link=False)
    host.flip(b"{}")
    assert [(each["version"], each["file"]) for each in host.verify().damaged] == [("1.0.0", "config.json")]
    # What is gone is not damaged: a depot brings it again where it is needed.
    assert host.verify().damaged == []


def test_files_that_went_and_came_are_named(host):
    tree = host.store.models / "tiny" / "1.0.0"
    (tree / "config.json").unlink()
    (tree / "stranger").write_bytes(b"x")
    assert host.verify().damaged == [
        row("1.0.0", "config.json", digest(b"{}"), "missing"),
        row("1.0.0", "stranger", "no such file", "present"),
    ]


def test_a_file_in_the_wrong_place_is_named(host):
    tree = host.store.models / "tiny" / "1.0.0"
    (tree / "config.json").unlink()
    os.link(host.store.blobs / digest(b"{ }"), tree / "config.json")
    assert host.verify().damaged == [row("1.0.0", "config.json", digest(b"{}"), digest(b"{ }"))]


def test_what_was_read_counts_as_verified_and_what_is_damaged_does_not(host):
    blob = host.store.blobs / digest(BODY)
    os.utime(blob, (1, 1))
    assert not host.store.marks.fits(digest(BODY), blob.stat())
    host.verify()
    assert host.store.marks.fits(digest(BODY), blob.stat())
    host.flip(BODY)
    host.verify()
    assert host.store.marks.when(digest(BODY)) is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    contents=st.dictionaries(st.sampled_from(["a", "b", "d/a", "d/e/b"]), st.binary(min_size=1, max_size=50), min_size=1, max_size=4),
    which=st.integers(0, 3),
    position=st.integers(0, 49),
    damage=st.booleans(),
)
def test_exactly_what_was_damaged_is_found_and_mended(contents, which, position, damage):
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder) / "store", Path(folder) / "upstream", {"1.0.0": contents})
        host.stage()
        victim = contents[sorted(contents)[which % len(contents)]]
        if damage:
            host.flip(victim, position % len(victim))
        found = host.verify()
        assert [each["file"] for each in found.damaged] == sorted(path for path, body in contents.items() if damage and body == victim)
        host.stage()
        assert host.verify().damaged == [] and tree_of(host.store.root) == contents
