# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Archives as `docker save` before and after version 25 writes them, and as skopeo does."""
from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.image_archive import (
    DEPTH,
    LIST,
    BadArchive,
    read_archive,
    read_archives,
)

CONFIG = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
OTHER = CONFIG.replace(b"amd64", b"arm64")
KIND = "application/vnd.oci.image.config.v1+json"


def digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def blob(body: bytes) -> dict[str, bytes]:
    return {f"blobs/sha256/{hashlib.sha256(body).hexdigest()}": body}


def manifest(config: bytes) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {"mediaType": KIND, "digest": digest(config)}, "layers": []}).encode()


def write(path, files: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def old(config: bytes = CONFIG) -> dict[str, bytes]:
    name = f"{digest(config)[7:]}.json"
    return {name: config, "manifest.json": json.dumps([{"Config": name, "RepoTags": ["a:1"], "Layers": []}]).encode()}


def layout(*manifests: bytes, **more: bytes) -> dict[str, bytes]:
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    for body in manifests:
        files |= blob(body)
    listed = [{"digest": digest(body)} for body in manifests]
    return {**files, "index.json": json.dumps({"schemaVersion": 2, "manifests": listed}).encode(), **more}


def test_an_image_is_known_by_its_configuration(tmp_path):
    assert read_archive(write(tmp_path / "a.tar", old())) == [(digest(CONFIG), "", "linux/amd64", ())]
    body = manifest(CONFIG)
    known = (digest(CONFIG), digest(body), "linux/amd64", (digest(body),))
    assert read_archive(write(tmp_path / "b.tar", {**layout(body), **blob(CONFIG)})) == [known]
    name = next(iter(blob(CONFIG)))
    both = {**layout(body), **blob(CONFIG), "manifest.json": json.dumps([{"Config": name}]).encode()}
    assert read_archive(write(tmp_path / "c.tar", both)) == [known]


def test_of_an_image_for_several_platforms_the_one_that_is_there_counts(tmp_path):
    here, elsewhere = manifest(CONFIG), manifest(OTHER)
    index = json.dumps({"schemaVersion": 2, "manifests": [{"digest": digest(elsewhere)}, {"digest": digest(here)}]}).encode()
    files = {**layout(index), **blob(here), **blob(CONFIG)}
    (image,) = read_archive(write(tmp_path / "a.tar", files))
    assert image == (digest(CONFIG), digest(index), "linux/amd64", (digest(index), digest(here)))


def test_a_list_that_names_the_same_again_and_again_is_followed_once(tmp_path):
    body = manifest(CONFIG)
    files = {**blob(CONFIG), **blob(body)}
    on_the_way = [digest(body)]
    for _depth in range(DEPTH):
        body = json.dumps({"manifests": [{"digest": digest(body)}] * 2000}).encode()
        files |= blob(body)
        on_the_way.insert(0, digest(body))
    files["index.json"] = json.dumps({"manifests": [{"digest": digest(body), "annotations": {LIST: digest(body)}}] * 2000}).encode()
    files["manifest.json"] = json.dumps([{"Config": next(iter(blob(CONFIG)))}] * 2000).encode()
    begin = time.process_time()
    (image,) = read_archive(write(tmp_path / "a.tar", files))
    # Hours, if each were followed.
    assert image.digests == tuple(on_the_way) and time.process_time() - begin < 5


def test_each_of_two_lists_that_lead_to_an_image_proves_it(tmp_path):
    body = manifest(CONFIG)
    one, other = (json.dumps({"manifests": [{"digest": digest(body)}], "annotations": {"is": name}}).encode() for name in ("one", "other"))
    top = json.dumps({"manifests": [{"digest": digest(one)}, {"digest": digest(other)}]}).encode()
    (image,) = read_archive(write(tmp_path / "a.tar", {**layout(top), **blob(one), **blob(other), **blob(body), **blob(CONFIG)}))
    assert set(image.digests) == {digest(each) for each in (top, one, other, body)}


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0", b"-0000000001\0", b"77777777777\0", b"zzzzzzzzzzz\0"]
)
def test_a_size_that_makes_no_sense_is_the_fault_of_one_archive(tmp_path, size):
    good, bad = write(tmp_path / "good.tar", old()), write(tmp_path / "bad.tar", old())
    for member in (0, 1):
        data = bytearray(bad.read_bytes())
        start = member * 1024
        data[start + 124 : start + 136] = size
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        bad.write_bytes(data)
        archives, faults = read_archives([tmp_path])
        assert str(good) in [each["path"] for each in archives] and [fault.where for fault in faults] in ([], [str(bad)])


def noted(said: str, *bodies: bytes) -> dict[str, bytes]:
    """An archive as this collection writes it, with what it says of the list that its image was named by."""
    files = layout(manifest(CONFIG))
    index = json.loads(files["index.json"])
    index["manifests"][0]["annotations"] = {LIST: said}
    for body in bodies:
        files |= blob(body)
    return {**files, **blob(CONFIG), "index.json": json.dumps(index).encode()}


def test_the_list_that_an_image_was_named_by_counts_only_with_its_bytes(tmp_path):
    leads, elsewhere = (
        json.dumps({"schemaVersion": 2, "manifests": [{"digest": digest(manifest(config))}]}).encode() for config in (CONFIG, OTHER)
    )
    (image,) = read_archive(write(tmp_path / "a.tar", noted(digest(leads), leads)))
    assert image.manifest == digest(manifest(CONFIG)) and set(image.digests) == {digest(leads), digest(manifest(CONFIG))}
    # One that leads to an image that is not there proves nothing of the one that is.
    (image,) = read_archive(write(tmp_path / "b.tar", noted(digest(elsewhere), elsewhere)))
    assert image.digests == (digest(manifest(CONFIG)),)
    # Nor does the word alone, or other bytes under that name.
    with pytest.raises(BadArchive, match="lacks"):
        read_archive(write(tmp_path / "c.tar", noted(digest(leads))))
    with pytest.raises(BadArchive, match="another one than its name says"):
        read_archive(write(tmp_path / "d.tar", {**noted(digest(leads), leads), next(iter(blob(leads))): elsewhere}))


def test_a_platform_is_what_the_configuration_says(tmp_path):
    for config, platform in ((OTHER, "linux/arm64"), (b'{"os": "linux"}', ""), (b'{"os": 1, "architecture": []}', ""), (b"[]", "")):
        files = {**layout(manifest(config)), **blob(config)}
        assert [image.platform for image in read_archive(write(tmp_path / "a.tar", files))] == [platform]


def test_what_is_said_about_an_image_is_no_image(tmp_path):
    about = json.dumps({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.empty.v1+json"}, "layers": []}).encode()
    with pytest.raises(BadArchive, match="no image"):
        read_archive(write(tmp_path / "a.tar", layout(about)))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"manifest.json": b"[{}]"},
        {"manifest.json": b"{"},
        {"manifest.json": b'[{"Config": "gone.json"}]'},
        {"manifest.json": b'{"Config": "a"}'},
        {"index.json": b'{"manifests": [{"digest": "md5:1"}]}'},
        {"index.json": b"[]"},
        layout(manifest(CONFIG)),
        {**layout(manifest(CONFIG)), **dict.fromkeys(blob(CONFIG), OTHER)},
    ],
)
def test_an_archive_that_is_not_whole_is_a_fault(tmp_path, files):
    write(tmp_path / "a.tar", files)
    archives, faults = read_archives([tmp_path])
    assert archives == [] and [fault.where for fault in faults] == [str(tmp_path / "a.tar")]


def test_every_bad_file_is_told_and_others_are_left_alone(tmp_path):
    (tmp_path / "text.tar").write_text("no archive")
    cut = write(tmp_path / "cut.tar", old())
    cut.write_bytes(cut.read_bytes()[:700])
    (tmp_path / "folder.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    (tmp_path / "README.md").write_text("no archive")
    good = write(tmp_path / "good.tar", old())
    archives, faults = read_archives([tmp_path])
    assert archives == [{"path": str(good), "images": [{"id": digest(CONFIG), "manifest": "", "platform": "linux/amd64", "digests": []}]}]
    bad = ("cut.tar", "folder.tar", "pipe.tar", "text.tar", "zero.tar")
    assert [fault.where for fault in faults] == [str(tmp_path / name) for name in bad]


def test_a_folder_that_cannot_be_read_is_told_beside_the_others(tmp_path):
    good = write(tmp_path / "good.tar", old())
    archives, faults = read_archives([tmp_path / "gone", tmp_path])
    assert [each["path"] for each in archives] == [str(good)]
    assert [(fault.where, fault.what) for fault in faults] == [(str(tmp_path / "gone"), "it cannot be read: no such file or directory")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["index.json", "manifest.json", *blob(CONFIG)]), st.binary(max_size=60)), st.data())
def test_nothing_that_an_archive_can_hold_raises(tmp_path, files, data):
    path = write(tmp_path / "a.tar", files)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    read_archives([tmp_path])
