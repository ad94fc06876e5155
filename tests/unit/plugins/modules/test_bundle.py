# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Bundles written, signed, carried, tampered with, verified and imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.bundle_manifest import blob_path
from ansible_collections.localfirst.llm_fleet.tests.unit.support.bundle_builders import LOCK, Writer, names
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import Authority, key, pem_of
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, digest

OLD, NEW = b"the weights of 1.0.0", b"the weights of 1.1.0"
IMAGE, DEB = "images/echo-0123.tar", "packages/debian-12-amd64/haproxy_2.6_amd64.deb"


class Sides(Writer):
    """Both sides of an air gap."""

    def __init__(self, folder: Path, run_module) -> None:
        super().__init__(folder, run_module)
        self.private, self.public = key().write(folder)
        self.into = folder / "imported"
        self.signature: dict = {"key": str(self.public)}

    def info(self, bundle: Path, **arguments) -> dict:
        return self.run_module("bundle_info", **{"bundle": str(bundle), "signature": self.signature, "into": str(self.into), **arguments})

    def digest(self, bundle: Path) -> str:
        return f"sha256:{digest((bundle / 'manifest.json').read_bytes())}"

    def take(self, bundle: Path, check_mode: bool = False) -> dict:
        found = self.info(bundle)
        assert "failed" not in found, found["msg"]
        arguments = {"bundle": str(bundle), "manifest": found["manifest"], "into": str(self.into), "check_mode": check_mode}
        taken = self.run_module("bundle_import", **arguments)
        noted = self.run_module("bundle_import", note=True, **arguments)
        return {"found": found, "changed": taken["changed"] or noted["changed"], "actions": taken["actions"]}


@pytest.fixture
def sides(tmp_path, run_module):
    return Sides(tmp_path, run_module)


@pytest.fixture
def bundle(sides) -> Path:
    return sides.write("first", {"tiny 1.0.0": {"tiny.gguf": OLD}}, {IMAGE: b"an image", DEB: BODY}, key=str(sides.private))


def test_a_bundle_names_every_file_and_says_who_vouches_for_it(sides, bundle):
    found = sides.info(bundle)
    assert found["signer"] == key().fingerprint and found["bytes"] == len(OLD + LOCK + BODY + b"an image") and found["base"] == ""
    (model,) = found["models"]
    assert model["files"] == [{"path": "tiny.gguf", "size": len(OLD), "sha256": digest(OLD)}]
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    assert {each["path"]: each["kind"] for each in listed} == {
        blob_path(digest(OLD)): "artifact", IMAGE: "image", DEB: "package", "models.lock.yml": "lockfile",
    }


def test_the_signature_is_one_that_model_signing_verifies(sides, bundle):
    pytest.importorskip("model_signing")
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", str(bundle / "manifest.json.sig")]
    command += ["--public_key", str(sides.public), str(bundle / "manifest.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes() + b"\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_second_run_keeps_manifest_and_signature(sides, bundle):
    before = {name: (bundle / name).read_bytes() for name in names(bundle)}
    arguments = {"bundle": str(bundle), "wanted": [blob_path(digest(OLD)), IMAGE, DEB, "models.lock.yml"], "key": str(sides.private)}
    models = json.loads(before["manifest.json"])["models"]
    assert sides.run_module("bundle_seal", models=models, **arguments)["changed"] is False
    assert {name: (bundle / name).read_bytes() for name in names(bundle)} == before


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove", "link"])
@pytest.mark.parametrize("path", [blob_path(digest(OLD)), DEB, "models.lock.yml"])
def test_a_file_that_is_not_what_the_manifest_says_is_named(sides, bundle, path, spoil):
    file = bundle / path
    body = file.read_bytes()
    if spoil == "flip":
        file.write_bytes(bytes([body[0] ^ 1]) + body[1:])
    elif spoil == "cut":
        file.write_bytes(body[:-1])
    else:
        file.unlink()
    if spoil == "link":
        (bundle.parent / "elsewhere").write_bytes(body)
        file.symlink_to(bundle.parent / "elsewhere")
    refused = sides.info(bundle)
    assert refused["failed"] and [fault["where"] for fault in refused["faults"]] == [str(file)]
    assert not sides.into.exists()


def test_all_faults_come_at_once(sides, bundle):
    (bundle / "manifest.json.sig").unlink()
    (bundle / IMAGE).unlink()
    (bundle / DEB).write_bytes(b"other bytes")
    said = sides.info(bundle)["msg"]
    assert "not signed" in said and IMAGE in said and DEB in said


def test_a_manifest_that_was_changed_is_refused_although_its_files_fit(sides, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    forged = b"the weights of somebody else"
    (bundle / IMAGE).write_bytes(forged)
    for each in manifest["files"]:
        if each["path"] == IMAGE:
            each |= {"size": len(forged), "sha256": digest(forged)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = sides.info(bundle)["faults"]
    assert "changed after it was signed" in fault["what"]
    # Whoever takes it unsigned gets what is there.
    assert "failed" not in sides.info(bundle, unsigned=True)


def test_a_bundle_of_somebody_else_is_refused(sides):
    other, _public = key("other").write(sides.folder, "other")
    bundle = sides.write("theirs", {"tiny 1.0.0": {"tiny.gguf": OLD}}, key=str(other))
    assert "another key signed it" in sides.info(bundle)["msg"]


def test_nothing_is_trusted_unless_somebody_says_whom(sides, bundle):
    assert "llm_fleet_bundle_signature" in sides.info(bundle, signature={})["msg"]
    assert "llm_fleet_bundle_signature" in sides.info(bundle, signature={"key": str(sides.public), "ca": "/x"})["msg"]
    gone = sides.info(bundle, signature={"key": str(sides.folder / "gone.pub")})
    assert "gone.pub cannot be read: no such file" in gone["msg"]
    unsigned = sides.write("unsigned", {"tiny 1.0.0": {"tiny.gguf": OLD}})
    assert "the bundle is not signed" in sides.info(unsigned)["msg"]
    assert sides.info(unsigned, unsigned=True)["signer"] == ""


def test_a_certificate_of_the_right_name_vouches_too(sides):
    authority, signer = Authority(), key("signer")
    private, _public = signer.write(sides.folder, "signer")
    (sides.folder / "chain.pem").write_text(pem_of(authority.issue(signer, "fleet", email="fleet@example.com")))
    (sides.folder / "ca.pem").write_text(authority.pem)
    options = {"key": str(private), "certificate": str(sides.folder / "chain.pem")}
    bundle = sides.write("certified", {"tiny 1.0.0": {"tiny.gguf": OLD}}, **options)
    ca = {"ca": str(sides.folder / "ca.pem")}
    assert sides.info(bundle, signature={**ca, "identity": "fleet@example.com"})["signer"] == signer.fingerprint
    assert "signed it, and not 'eve@example.com'" in sides.info(bundle, signature={**ca, "identity": "eve@example.com"})["msg"]


@pytest.mark.parametrize(
    "said",
    [{"identity": ""}, {"identity": None}, {"identity": 0}, {"identity": " "}, {"identity": ["a"]}, {"key": ""}, {"ca": 5}, {"ca": None}],
)
def test_an_identity_that_is_left_empty_is_not_everybody(sides, said):
    authority, stranger = Authority(), key("stranger")
    private, _public = stranger.write(sides.folder, "stranger")
    (sides.folder / "chain.pem").write_text(pem_of(authority.issue(stranger, "mallory", email="mallory@example.com")))
    (sides.folder / "ca.pem").write_text(authority.pem)
    bundle = sides.write("theirs", {}, key=str(private), certificate=str(sides.folder / "chain.pem"))
    (fault,) = sides.info(bundle, signature={"ca": str(sides.folder / "ca.pem"), **said})["faults"]
    assert "names no text as" in fault["what"] and "llm_fleet_bundle_signature" in fault["fix"]


def test_a_bundle_is_signed_anew_where_only_the_certificate_is_another(sides):
    authority, signer = Authority(), key("signer")
    private, _public = signer.write(sides.folder, "signer")
    (sides.folder / "ca.pem").write_text(authority.pem)
    ca = {"ca": str(sides.folder / "ca.pem")}
    bundle = sides.write("certified", {"tiny 1.0.0": {"tiny.gguf": OLD}}, key=str(private))
    before = (bundle / "manifest.json").read_bytes()
    models = json.loads(before)["models"]
    assert "signed with a key" in sides.info(bundle, signature=ca)["msg"]

    def seal(certificate: str) -> list[str]:
        (sides.folder / "chain.pem").write_text(certificate)
        arguments = {"wanted": [blob_path(digest(OLD)), "models.lock.yml"], "models": models, "key": str(private)}
        if certificate:
            arguments["certificate"] = str(sides.folder / "chain.pem")
        return sides.run_module("bundle_seal", bundle=str(bundle), **arguments)["actions"]

    ended = pem_of(authority.issue(signer, days=(-9, -1)))
    renewed = pem_of(authority.issue(signer))
    for certificate, clue in ((ended, "expired"), (renewed, ""), ("", "signed with a key")):
        assert seal(certificate) == [f"sign it with {signer.fingerprint[:23]}"] and seal(certificate) == []
        assert clue in sides.info(bundle, signature=ca).get("msg", "")
        assert sides.info(bundle, signature=ca).get("failed", False) is bool(clue)
    assert (bundle / "manifest.json").read_bytes() == before


def test_what_is_imported_is_what_the_manifest_names(sides, bundle):
    (bundle / "images" / "stray.tar").write_bytes(b"nobody vouches for this")
    told = sides.take(bundle, check_mode=True)
    assert told["changed"] and not sides.into.exists()
    assert sides.take(bundle)["actions"] == told["actions"]
    # Files of models go to stores.
    assert names(sides.into) == {"imported.json", "models.lock.yml", IMAGE, DEB}
    assert (sides.into / DEB).read_bytes() == BODY
    assert sides.take(bundle)["changed"] is False


def test_an_import_takes_only_the_manifest_that_was_verified(sides, bundle):
    wrong = sides.run_module("bundle_import", bundle=str(bundle), manifest=f"sha256:{'0' * 64}", into=str(sides.into))
    assert wrong["failed"] and not sides.into.exists()


def test_an_incremental_bundle_has_what_is_new_and_counts_on_the_rest(sides, bundle):
    models = {"tiny 1.0.0": {"tiny.gguf": OLD}, "tiny 1.1.0": {"tiny.gguf": NEW}}
    changed = {IMAGE: b"an image", DEB: BODY, "images/echo-4567.tar": b"another image"}
    more = sides.write("second", models, changed, key=str(sides.private), base=str(bundle / "manifest.json"))
    assert names(more) == {"manifest.json", "manifest.json.sig", blob_path(digest(NEW)), "images/echo-4567.tar"}
    sides.take(bundle)
    found = sides.take(more)["found"]
    assert {model["version"] for model in found["models"]} == {"1.0.0", "1.1.0"} and found["base"] != ""
    assert {IMAGE, DEB, "images/echo-4567.tar"} <= names(sides.into)
    # A third one may go on from the second, which has not all of it.
    third = sides.write("third", models, {**changed, "wheels/a.whl": b"a"}, key=str(sides.private), base=str(more))
    assert names(third) == {"manifest.json", "manifest.json.sig", "wheels/a.whl"} and sides.take(third)["changed"]


def test_an_incremental_bundle_without_its_base_names_what_lacks(sides, bundle):
    models = {"tiny 1.0.0": {"tiny.gguf": OLD}, "tiny 1.1.0": {"tiny.gguf": NEW}}
    more = sides.write("second", models, {IMAGE: b"an image", DEB: BODY}, key=str(sides.private), base=str(bundle))
    refused = sides.info(more)
    assert {path for path in (IMAGE, DEB, "models.lock.yml", blob_path(digest(OLD))) if path in refused["msg"]} == {
        IMAGE, DEB, "models.lock.yml", blob_path(digest(OLD)),
    }
    assert "import the bundle first" in refused["msg"] and not sides.into.exists()
    sides.take(bundle)
    (sides.into / IMAGE).unlink()
    assert [fault["what"] for fault in sides.info(more)["faults"]] == [
        f"this bundle counts on {IMAGE}, which an earlier one was to bring"
    ]


def test_a_bundle_never_loses_its_files_to_a_base(sides, bundle, tmp_path):
    before, copy = names(bundle), tmp_path / "copy.json"
    shutil.copyfile(bundle / "manifest.json", copy)
    for base in (bundle, copy, sides.write("other", {"tiny 1.0.0": {"tiny.gguf": OLD}})):
        refused = sides.run_module("bundle_seal", bundle=str(bundle), wanted=["models.lock.yml", IMAGE], base=str(base))
        assert [fault["where"] for fault in refused["faults"]] == [str(bundle)] and names(bundle) == before
    # The same incremental bundle may be written again.
    for _time in range(2):
        more = sides.write("more", {"tiny 1.1.0": {"tiny.gguf": NEW}}, base=str(bundle))
    assert blob_path(digest(NEW)) in names(more)


def test_a_file_that_rotted_is_no_part_of_a_bundle(sides, bundle):
    blob = bundle / blob_path(digest(OLD))
    blob.write_bytes(OLD[:-1] + b"?")
    refused = sides.run_module("bundle_seal", bundle=str(bundle), wanted=[blob_path(digest(OLD))])
    assert "is not named by its digest" in refused["msg"] and "brought anew" in refused["msg"]


def test_an_index_comes_after_its_packages_and_is_never_an_older_one(sides):
    place = "packages/debian-12-amd64"
    debs = {f"{place}/a_1_all.deb": BODY, f"{place}/z_1_all.deb": BODY}
    first, second = (
        sides.write(name, {}, {f"{place}/Packages": index, **debs}, key=str(sides.private))
        for name, index in (("first", b"index 1\n"), ("second", b"index 2\n"))
    )
    sides.take(first)
    # Of the second, a depot did not get all, so it is not noted.
    sides.run_module("bundle_import", bundle=str(second), manifest=sides.info(second)["manifest"], into=str(sides.into))
    assert (sides.into / place / "Packages").read_bytes() == b"index 2\n"
    assert sides.take(first)["actions"] == ["take 1 files of the kind package"]
    assert (sides.into / place / "Packages").read_bytes() == b"index 1\n"
    # One that broke off at a package has left the index that fits.
    (sides.into / place / "z_1_all.deb").unlink()
    (second / place / "z_1_all.deb").write_bytes(BODY[:-1] + b"?")
    found = sides.run_module("bundle_import", bundle=str(second), manifest=sides.digest(second), into=str(sides.into))
    assert found["failed"] and (sides.into / place / "Packages").read_bytes() == b"index 1\n"


def test_what_was_to_be_in_the_bundle_and_is_not_is_a_fault(sides):
    refused = sides.run_module("bundle_seal", bundle=str(sides.folder / "empty"), wanted=["models.lock.yml", IMAGE])
    assert [Path(fault["where"]).name for fault in refused["faults"]] == [Path(IMAGE).name, "models.lock.yml"]
    assert not (sides.folder / "empty" / "manifest.json").exists()


def test_a_signature_stays_where_nothing_has_changed(sides, bundle):
    wanted = ["models.lock.yml", IMAGE, DEB, blob_path(digest(OLD))]
    first = sides.run_module("bundle_seal", bundle=str(bundle), wanted=wanted)
    assert first["signed"] is False and first["changed"]  # no models are named any more
    sides.run_module("bundle_seal", bundle=str(bundle), wanted=wanted, key=str(sides.private))
    again = sides.run_module("bundle_seal", bundle=str(bundle), wanted=wanted)
    assert again["signed"] is True and again["changed"] is False and again["actions"] == []


def test_a_bundle_that_changes_loses_its_signature(sides, bundle):
    sides.write("first", {"tiny 1.0.0": {"tiny.gguf": NEW}})
    assert not (bundle / "manifest.json.sig").exists() and "not signed" in sides.info(bundle)["msg"]


def test_no_message_shows_the_key_or_its_password(sides):
    locked = key("locked")
    private, _public = type(locked)(password="open sesame").write(sides.folder, "locked")
    arguments = {"bundle": str(sides.folder), "wanted": [], "key": str(private)}
    (sides.folder / "wrong").write_text("guess\n")
    for more in ({}, {"password": "not that one"}, {"password_file": str(sides.folder / "wrong")}):
        refused = json.dumps(sides.run_module("bundle_seal", **arguments, **more))
        assert "sign_key" in refused and "not that one" not in refused and "guess" not in refused and "BEGIN" not in refused
    (sides.folder / "right").write_text("open sesame\n")
    assert "failed" not in sides.run_module("bundle_seal", **arguments, password_file=str(sides.folder / "right"))


def test_a_disk_that_goes_bad_while_it_is_read_leaves_nothing_wrong(sides, bundle):
    found = sides.info(bundle)
    body = (bundle / DEB).read_bytes()
    (bundle / DEB).write_bytes(body[:-1] + b"?")
    refused = sides.run_module("bundle_import", bundle=str(bundle), manifest=found["manifest"], into=str(sides.into))
    assert refused["failed"] and "changed while it was read" in refused["msg"] and DEB not in names(sides.into)


def test_what_the_disk_says_while_a_bundle_is_closed_is_a_fault_and_leaves_no_draft(sides, bundle, small_disk):
    shutil.copytree(bundle, small_disk / "bundle")
    (small_disk / "bundle" / "manifest.json.sig").unlink()  # its room would do for the new manifest
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(bytes(2**22))
    before = names(small_disk)
    (fault,) = sides.run_module("bundle_seal", bundle=str(small_disk / "bundle"), wanted=["models.lock.yml"])["faults"]
    assert "no space left" in fault["what"] and "free some space" in fault["fix"]
    assert names(small_disk) == before


def test_a_place_that_takes_no_manifest_is_a_fault(sides):
    (sides.folder / "b" / "manifest.json").mkdir(parents=True)
    (sides.folder / "b" / "models.lock.yml").write_bytes(LOCK)
    (fault,) = sides.run_module("bundle_seal", bundle=str(sides.folder / "b"), wanted=["models.lock.yml"])["faults"]
    assert fault["what"] == "is a directory" and names(sides.folder / "b") == {"models.lock.yml"}


def test_a_place_that_cannot_have_what_earlier_bundles_brought_is_a_fault(sides, bundle):
    more = sides.write("more", {}, {IMAGE: b"an image"}, key=str(sides.private), base=str(bundle))
    said = sides.info(more, into=str(sides.folder / ("a" * 300)))["msg"]
    assert "file name too long" in said and "cannot be taken" in said


def test_imports_at_once_wait_for_each_other(sides):
    """Each of another bundle: one takes files from under the other, and forgets what that one has noted, unless they take turns."""
    images = {number: {f"images/echo-{number}.tar": b"its own", IMAGE: bytes(2**24)} for number in range(4)}
    bundles = [sides.write(str(number), {}, files, key=str(sides.private)) for number, files in images.items()]
    with ThreadPoolExecutor(len(bundles)) as pool:
        taken = list(pool.map(sides.take, bundles))
    assert [each["changed"] for each in taken] == [True] * len(bundles)
    known = json.loads((sides.into / "imported.json").read_text())["files"]
    assert known.keys() == {"models.lock.yml", *(path for files in images.values() for path in files)}


def test_a_record_that_cannot_be_read_is_no_fresh_start(sides, bundle):
    sides.take(bundle)
    (sides.into / "imported.json").write_text("{")
    assert "imported.json" in sides.info(bundle)["msg"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda bundle: shutil.rmtree(bundle / "images") or (bundle / "images").write_text("a file"), "missing, or no regular file"),
        (lambda bundle: (bundle / "manifest.json.sig").unlink() or (bundle / "manifest.json.sig").mkdir(), "the signature cannot be read"),
        (lambda bundle: (bundle / "manifest.json").unlink() or os.mkfifo(bundle / "manifest.json"), "no regular file"),
        (lambda bundle: (bundle.parent / "imported" / "imported.json").mkdir(parents=True), "it cannot be read: it is no regular file"),
        (lambda bundle: (bundle / "manifest.json.sig").unlink() or os.mkfifo(bundle / "manifest.json.sig"), "it is no regular file"),
        (
            lambda bundle: (bundle / "manifest.json.sig").unlink() or (bundle / "manifest.json.sig").symlink_to("/dev/zero"),
            "it is no regular file",
        ),
        (lambda bundle: (bundle / "manifest.json.sig").write_bytes(bytes(2**18 + 1)), "more than 262144 bytes"),
        (lambda bundle: os.truncate(bundle / "manifest.json", 2**26 + 1), "more than 67108864 bytes"),
        (lambda bundle: (bundle.parent / "models.pub").unlink() or os.mkfifo(bundle.parent / "models.pub"), "it is no regular file"),
    ],
)
def test_what_is_no_file_is_a_fault(sides, bundle, spoil, said):
    spoil(bundle)
    assert said in sides.info(bundle)["msg"]


def test_a_pipe_is_no_key_and_no_signature_that_stays(sides, bundle):
    (bundle / "manifest.json.sig").unlink()
    os.mkfifo(bundle / "manifest.json.sig")
    wanted = {"bundle": str(bundle), "wanted": ["models.lock.yml"]}
    os.mkfifo(sides.folder / "pipe")
    for option in ("key", "password_file", "certificate"):
        files = {"key": str(sides.private), option: str(sides.folder / "pipe")}
        (fault,) = sides.run_module("bundle_seal", **wanted, **files)["faults"]
        assert fault["where"] == f"sign_{option}" and "no regular file" in fault["what"]
    assert sides.run_module("bundle_seal", **wanted, key=str(sides.private))["signed"] is True


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(sides, bundle):
    (bundle / DEB).chmod(0)
    assert "permission denied" in sides.info(bundle)["msg"]


def test_a_copied_bundle_is_the_same(sides, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "stick")
    assert sides.take(tmp_path / "stick")["found"]["manifest"] == sides.info(bundle)["manifest"]
