# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The store on a real file system, fed by a real web server."""

from __future__ import annotations

import os
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_staging import Staging
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import (
    BODY,
    Places,
    artifact,
    digest,
    leftovers,
    tree_of,
)

CONTENTS = {"config.json": b"{}", "weights/1.gguf": BODY, "weights/2.gguf": BODY[::-1], "copy.json": b"{}"}


class Host:
    """A store, and a web server that has what it needs."""

    def __init__(self, server: RangeServer, root) -> None:
        self.server = server
        self.root = root
        self.store = Store(root)

    def serve(self, contents: dict[str, bytes], version="1.0.0", **faults) -> Artifact:
        for path, body in contents.items():
            self.server.add(f"/{version}/{path}", body, **faults)
        return artifact(f"{self.server.url}/{version}", contents, version)

    def present(self, wanted: Artifact, reserve=0):
        return Staging(self.store, [wanted], reserve=reserve, lock_timeout=5).run(Fetcher([Places(retries=0)]))[0]


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


@pytest.fixture
def host(server, tmp_path):
    return Host(server, tmp_path / "store")


def test_a_version_arrives_whole_and_each_content_once(host):
    wanted = host.serve(CONTENTS)
    found = host.present(wanted)
    assert tree_of(host.root) == CONTENTS
    assert found.bytes_moved == len(BODY) * 2 + 2
    assert len(host.server.requests) == 3  # two paths hold the same bytes
    assert len(list(host.store.blobs.iterdir())) == 3 and not list(host.store.incoming.glob("*.part"))


def test_nobody_else_may_write_or_read(host):
    host.present(host.serve(CONTENTS))
    for folder, _folders, files in os.walk(host.store.models):
        assert os.stat(folder).st_mode & 0o777 == 0o750
        assert all(os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o440 for name in files)


def test_a_second_run_does_nothing(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    again = host.present(wanted)
    assert again.actions == [] and again.bytes_moved == 0
    assert again.diff["before"] == again.diff["after"] != ""
    assert len(host.server.requests) == 3


def test_looking_changes_nothing(host):
    found = host.store.survey(host.serve(CONTENTS))
    assert found.bytes_moved == len(BODY) * 2 + 2 and len(found.missing) == 3
    assert not host.root.exists() and not host.server.requests


def test_a_new_version_fetches_only_what_it_does_not_share(host):
    host.present(host.serve(CONTENTS))
    newer = {**CONTENTS, "config.json": b"{ }"}
    found = host.present(host.serve(newer, "1.0.1"))
    assert found.bytes_moved == 3
    assert tree_of(host.root, "1.0.1") == newer and tree_of(host.root) == CONTENTS


def test_the_tree_is_not_there_before_its_last_file(host):
    gate = threading.Event()
    wanted = host.serve(CONTENTS)
    host.server.resources["/1.0.0/weights/2.gguf"].hold = gate
    thread = threading.Thread(target=host.present, args=(wanted,))
    thread.start()
    while not any(path.endswith("2.gguf") for path, _headers in host.server.requests):
        thread.join(0.01)
    assert tree_of(host.root) is None
    gate.set()
    thread.join()
    assert tree_of(host.root) == CONTENTS


def test_a_wrong_digest_in_the_last_file_means_no_tree(host):
    wanted = host.serve(CONTENTS)
    host.server.add("/1.0.0/weights/2.gguf", bytes(len(BODY)))
    with pytest.raises(ArtifactError, match=r"weights/2\.gguf has the wrong digest"):
        host.present(wanted)
    assert tree_of(host.root) is None
    assert leftovers(host.root) == sorted(f"blobs/sha256/{digest(body)}" for body in (BODY, b"{}"))


def test_a_blob_of_another_size_is_brought_again(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    os.truncate(host.store.blobs / digest(BODY), 5)
    found = host.present(wanted)
    assert found.bytes_moved == len(BODY) and "damaged" in found.actions[0]
    assert len(host.server.requests) == 4
    assert tree_of(host.root) == CONTENTS


def test_a_blob_that_was_written_to_is_found_before_it_is_linked_again(host):
    host.present(host.serve(CONTENTS))
    blob = host.store.blobs / digest(BODY)
    blob.chmod(0o600)
    with blob.open("r+b") as handle:
        handle.write(b"!")
    newer = {**CONTENTS, "config.json": b"{ }"}
    found = host.present(host.serve(newer, "1.0.1"))
    assert "weights/1.gguf" in found.actions[0] or "weights/1.gguf" in found.actions[1]
    assert found.bytes_moved == len(BODY) + 3
    assert tree_of(host.root, "1.0.1") == newer
    # The old version is mended without a byte: the store has its contents again.
    assert host.present(host.serve(CONTENTS)).bytes_moved == 0
    assert tree_of(host.root) == CONTENTS


def test_a_blob_that_was_only_touched_is_read_and_kept(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    os.utime(host.store.blobs / digest(BODY))
    found = host.present(wanted)
    assert found.bytes_moved == 0 and len(found.actions) == 1 and "read weights/1.gguf" in found.actions[0]
    assert host.present(wanted).actions == []


def test_a_host_without_trees_keeps_contents_only(host):
    wanted = host.serve(CONTENTS)
    found = Staging(host.store, [wanted], link=False).run(Fetcher([Places()]))[0]
    assert found.path == str(host.store.blobs) and found.bytes_moved == len(BODY) * 2 + 2
    assert tree_of(host.root) is None and len(list(host.store.blobs.iterdir())) == 3
    assert Staging(host.store, [wanted], link=False).run(Fetcher([]))[0].actions == []


def test_a_tree_is_mended_in_place(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    tree = host.store.tree(wanted)
    mounted = os.open(tree, os.O_RDONLY)  # as a container's mount holds it
    (tree / "config.json").unlink()
    (tree / "weights/1.gguf").unlink()
    (tree / "weights/1.gguf").write_bytes(b"changed")
    (tree / "more").mkdir()
    (tree / "more/modeling.py").write_bytes(b"import os")
    (tree / "copy.json").chmod(0o666)
    found = host.present(wanted)
    assert tree_of(host.root) == CONTENTS and not (tree / "more").exists()
    assert sorted(os.listdir(mounted)) == ["config.json", "copy.json", "weights"]
    os.close(mounted)
    assert found.bytes_moved == 0 and len(found.actions) == 3
    assert "more/modeling.py" in found.diff["before"] and "more" not in found.diff["after"]
    assert host.present(wanted).actions == []


@pytest.mark.parametrize("change", [{"config.json": b"{ }"}, {"weights/2.gguf": None}])
def test_a_version_never_changes_what_it_holds(host, change):
    host.present(host.serve(CONTENTS))
    other = {path: body for path, body in {**CONTENTS, **change}.items() if body is not None}
    with pytest.raises(ArtifactError, match="other contents") as caught:
        host.present(host.serve(other))
    assert "new version" in caught.value.fault.fix
    assert tree_of(host.root) == CONTENTS


def test_what_does_not_fit_is_refused_before_the_first_byte(host):
    wanted = host.serve(CONTENTS)
    with pytest.raises(ArtifactError, match="stay free") as caught:
        host.present(wanted, reserve=1 << 60)
    assert "free" in caught.value.fault.fix and str(host.root) in caught.value.fault.where
    assert not host.server.requests and leftovers(host.root) == []


def test_what_is_there_needs_no_space(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    assert host.present(wanted, reserve=1 << 60).actions == []


def test_verifying_reads_everything_again(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    assert host.store.verify(wanted, set_aside=True) == []
    damaged = host.store.tree(wanted) / "weights/1.gguf"
    damaged.chmod(0o600)
    with damaged.open("r+b") as handle:
        handle.write(b"!")
    changed = digest(b"!" + BODY[1:])
    expected = [{"path": "weights/1.gguf", "expected": digest(BODY), "actual": changed}]
    assert host.store.verify(wanted, set_aside=False) == expected
    assert host.store.verify(wanted, set_aside=True) == expected
    assert host.present(wanted).bytes_moved == len(BODY)
    assert host.store.verify(wanted, set_aside=True) == [] and tree_of(host.root) == CONTENTS


def test_verifying_names_what_is_missing_unreadable_or_too_much(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    tree = host.store.tree(wanted)
    (tree / "copy.json").unlink()
    (tree / "weights/1.gguf").unlink()
    (tree / "weights/1.gguf").symlink_to("/etc/passwd")
    (tree / "evil.py").touch()
    damaged = {file["path"]: file["actual"] for file in host.store.verify(wanted, set_aside=False)}
    assert sorted(damaged) == ["copy.json", "evil.py", "weights/1.gguf"]
    assert damaged["copy.json"] == "missing" and "unreadable" in damaged["weights/1.gguf"]


def test_removing_keeps_what_another_version_links_to(host):
    newer = {**CONTENTS, "config.json": b"{ }"}
    first, second = host.serve(CONTENTS), host.serve(newer, "1.0.1")
    host.present(first)
    host.present(second)
    announced = host.store.survey_removal(second).actions
    host.store.remove(second)
    assert len(announced) == 2 and digest(b"{ }") in announced[1]
    assert tree_of(host.root) == CONTENTS and tree_of(host.root, "1.0.1") is None
    host.store.remove(first)
    assert leftovers(host.root) == [] and list(host.store.models.iterdir()) == []
    assert host.store.survey_removal(first).actions == []


def test_what_an_interrupted_run_left_is_swept(host):
    wanted = host.serve(CONTENTS)
    draft = host.store.models / "tiny/.1.0.0.new/weights"
    draft.mkdir(parents=True)
    (draft / "1.gguf").write_bytes(b"half")
    host.present(wanted)
    assert os.listdir(host.store.models / "tiny") == ["1.0.0"]


def test_removing_takes_its_own_unfinished_downloads_along(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    for body in (BODY, b"other"):
        part = host.store.incoming / f"{digest(body)}.part"
        part.write_bytes(b"oth")
        part.with_suffix(".validator").write_text('"1"')
    assert any(f"{digest(BODY)}.part" in action for action in host.store.survey_removal(wanted).actions)
    host.store.remove(wanted)
    # The other one may be a download that somebody means to go on with.
    assert leftovers(host.root) == sorted(f"incoming/{digest(b'other')}.{end}" for end in ("part", "validator"))


def test_removing_leaves_alone_what_a_run_relies_on(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    part = Part.take(host.store.part(wanted.files[0]), wanted.files[0])
    with part, host.store.claims.hold({digest(BODY): len(BODY)}).held():
        announced = host.store.survey_removal(wanted).actions
        host.store.remove(wanted)
        assert not any(digest(BODY) in action for action in announced)
        assert leftovers(host.root) == [
            f"blobs/sha256/{digest(BODY)}",
            str(next(host.store.claims.folder.iterdir()).relative_to(host.root)),
            f"incoming/{wanted.files[0].sha256}.part",
        ]
    assert host.store.claims.live() == {}


def test_a_removal_that_was_interrupted_is_finished(host):
    wanted = host.serve(CONTENTS)
    host.present(wanted)
    os.rename(host.store.tree(wanted), host.store.leaving(wanted))
    (host.store.blobs / digest(BODY)).unlink()
    host.store.remove(wanted)
    assert leftovers(host.root) == [] and list(host.store.models.iterdir()) == []


def test_a_run_that_waits_too_long_says_for_what(host):
    with host.store.locked(1), pytest.raises(ArtifactError, match="another run"), Store(host.root).locked(0.2):
        pass


def test_an_unknown_owner_is_named_and_does_not_matter_while_looking(host):
    host.store = Store(host.root, owner="nobody-of-this-name")
    wanted = host.serve(CONTENTS)
    assert len(host.store.survey(wanted).missing) == 3
    with pytest.raises(ArtifactError, match="nobody-of-this-name"):
        host.present(wanted)
