# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What garbage collection takes and what it leaves, on real stores, with real open files and locks."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import time
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_gc import Collector
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_report import Known
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_users import Container
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import Places, artifact, digest, leftovers, tree_of

SHARED, OLD, NEW = b"shared" * 100, b"old" * 200, b"new" * 300
VERSIONS = {"1.0.0": {"config.json": SHARED, "tiny.gguf": OLD}, "2.0.0": {"config.json": SHARED, "tiny.gguf": NEW}}


class Host:
    """A store with versions in it, and a collector for it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def bring(self, *versions: str, link: bool = True, folder: Path) -> None:
        for version in versions:
            for path, body in VERSIONS[version].items():
                (folder / version).mkdir(exist_ok=True)
                (folder / version / path).write_bytes(body)
        artifacts = [artifact(f"file://{folder}/{version}", VERSIONS[version], version) for version in versions]
        Staging(self.store, artifacts, link=link).run(Fetcher([Places()]))

    @staticmethod
    def keep(*versions: str) -> list[Known]:
        return [Known(artifact("", VERSIONS[version], version), ("locked",)) for version in versions]

    def collector(self, *versions: str, containers=(), **options) -> Collector:
        return Collector(self.store, self.keep(*versions), lambda: list(containers), **options)

    def here(self) -> list[str]:
        return sorted(version for version in VERSIONS if tree_of(self.store.root, version) is not None)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path / "store")
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    made.bring("1.0.0", "2.0.0", folder=upstream)
    return made


def age(path: Path, seconds: float = 7200) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_nobody_names_goes_and_what_is_shared_stays(host):
    collector = host.collector("2.0.0")
    announced = collector.look()
    assert host.here() == ["1.0.0", "2.0.0"]
    garbage = collector.run(5)
    assert garbage.as_dict() == announced.as_dict() and garbage.diff == announced.diff
    assert garbage.size == len(OLD) and host.here() == ["2.0.0"]
    assert leftovers(host.store.root) == sorted(
        [f"blobs/sha256/{digest(SHARED)}", f"blobs/sha256/{digest(NEW)}", "models/tiny/2.0.0/config.json", "models/tiny/2.0.0/tiny.gguf"]
    )
    assert not host.store.marks.when(digest(OLD)) and host.store.marks.when(digest(NEW))
    assert collector.run(5).actions == []


def test_bytes_that_several_versions_share_are_counted_once(host):
    shown = Collector(host.store, [Known(artifact("", {"other": b"x"}, "9.9.9"), ())]).look()
    assert shown.size == len(SHARED) + len(OLD) + len(NEW) == sum(each.size for each in shown.going)


def test_a_mounted_version_stays_whatever_the_list_says(host, tmp_path):
    tree = host.store.models / "tiny" / "1.0.0"
    for container in (
        Container("stranger", "", "", (str(tree),)),
        Container("backup", "", "", (str(host.store.root),)),
        Container("labelled", "tiny", "1.0.0", ()),
        Container("part-of-it", "", "", (str(tree / "tiny.gguf"),)),
    ):
        garbage = host.collector("2.0.0", containers=[container]).run(5)
        assert garbage.going == [] and f"used by {container.name}" in garbage.staying[0][1]
    # A monitor that sees the whole machine uses nothing by that.
    garbage = host.collector("2.0.0", containers=[Container("monitor", "", "", ("/", str(tmp_path)))]).run(5)
    assert [each.tree.version for each in garbage.going] == ["1.0.0"]


@pytest.mark.parametrize("way", ["opened", "mapped"])
def test_an_open_file_stays_with_its_version(host, way):
    path = host.store.models / "tiny" / "1.0.0" / "tiny.gguf"
    with path.open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) if way == "mapped" else None
        if mapped is not None:
            handle.close()
        garbage = host.collector("2.0.0").run(5)
        assert garbage.going == [] and garbage.staying[0][1] == ["open"]
        if mapped is not None:
            mapped.close()
    assert [each.tree.version for each in host.collector("2.0.0").run(5).going] == ["1.0.0"]


def test_a_depot_keeps_contents_that_are_named_and_those_that_just_arrived(tmp_path):
    host, upstream = Host(tmp_path / "depot"), tmp_path / "upstream"
    upstream.mkdir()
    host.bring("1.0.0", "2.0.0", link=False, folder=upstream)
    assert host.collector("2.0.0").run(5).actions == []
    age(host.store.blobs / digest(OLD))
    age(host.store.blobs / digest(NEW))
    with (host.store.blobs / digest(OLD)).open("rb"):  # somebody fetches it at this moment
        assert host.collector("2.0.0").run(5).actions == []
    garbage = host.collector("2.0.0").run(5)
    assert garbage.unnamed == {digest(OLD): len(OLD)}
    assert sorted(path.name for path in host.store.blobs.iterdir()) == sorted([digest(SHARED), digest(NEW)])


def test_another_hard_link_keeps_a_content(host, tmp_path):
    os.link(host.store.blobs / digest(OLD), tmp_path / "snapshot")
    garbage = host.collector("2.0.0").run(5)
    assert garbage.size == 0 and host.here() == ["2.0.0"] and (host.store.blobs / digest(OLD)).exists()


def test_a_claimed_content_stays(host):
    age(host.store.blobs / digest(OLD))
    with host.store.claims.hold({digest(OLD): len(OLD)}).held():
        host.collector("2.0.0").run(5)
        assert host.here() == ["2.0.0"] and (host.store.blobs / digest(OLD)).exists()
    assert host.collector("2.0.0").run(5).unnamed == {digest(OLD): len(OLD)}


def test_unfinished_downloads_go_when_they_are_old_and_nobody_has_them(host):
    made = {}
    for name in ("young", "old", "busy", digest(b"kept")):
        made[name] = host.store.incoming / f"{name}.part"
        made[name].write_bytes(bytes(10))
        (host.store.incoming / f"{name}.validator").write_text("x")
        if name != "young":
            age(made[name])
    keep = [*host.keep("1.0.0", "2.0.0"), Known(artifact("", {"kept": b"kept"}, "3.0.0"), ("wanted",))]
    with made["busy"].open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        collector = Collector(host.store, keep)
        assert collector.look().parts == {made["old"]: 10}
        garbage = collector.run(5)
    assert garbage.parts == {made["old"]: 10} and garbage.size == 10
    assert sorted(path.stem for path in host.store.incoming.glob("*.part")) == sorted(["young", "busy", digest(b"kept")])
    assert not (host.store.incoming / "old.validator").exists()


def test_what_an_interrupted_removal_left_goes_first(host):
    tree = host.store.models / "tiny" / "1.0.0"
    shutil.copytree(tree, tree.with_name(".1.0.0.old"), copy_function=os.link)
    (tree.with_name(".3.0.0.new")).mkdir()
    garbage = host.collector("2.0.0").run(5)
    assert garbage.size == len(OLD) and len(garbage.going) == 3
    assert [path.name for path in (host.store.models / "tiny").iterdir()] == ["2.0.0"]
    assert not (host.store.blobs / digest(OLD)).exists()


def test_notes_of_the_lock_are_left_alone(host):
    notes = host.store.root / "lock"
    notes.mkdir()
    (notes / "x.json").write_text("{}")
    age(notes / "x.json")
    host.collector("2.0.0").run(5)
    assert (notes / "x.json").exists()


def test_no_store_is_no_work(tmp_path):
    assert Host(tmp_path / "none").collector("1.0.0").run(5).actions == []
    assert not (tmp_path / "none").exists()
