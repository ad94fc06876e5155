# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A depot verifies what it gets itself: before it brings a byte, and later from what lies there."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_store import Store
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.store_signatures import StoreSignatures
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import Authority, key, pem_of
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest, entry

CONTENTS = {"tiny.gguf": b"weights" * 1000, "config.json": b"{}"}
DIGESTS = {name: digest(body) for name, body in CONTENTS.items()}


class Depot:
    """A depot's store, whoever it takes files from, and runs of the modules there."""

    def __init__(self, run_module, server: RangeServer, folder: Path) -> None:
        self.run_module = run_module
        self.server = server
        self.store = folder / "store"
        self.kept = self.store / "signatures" / "tiny" / "1.0.0.sig"
        self.text = key().sign(DIGESTS)
        for body in CONTENTS.values():
            server.add(f"/blobs/sha256/{digest(body)}", body)

    def signature(self, **changes) -> dict:
        """As fleet_plan hands it out."""
        text = changes.get("content", self.text)
        return {
            "content": text, "sha256": hashlib.sha256(text.encode()).hexdigest(), "signer": key().fingerprint, "left_out": [],
            "file": "model.sig", "format": "gguf", "by": "key", "trust": key().public, "identity": "", **changes,
        }

    def artifact(self, **changes) -> dict:
        files = [entry(name, body) for name, body in CONTENTS.items()]
        return {"model": "tiny", "version": "1.0.0", "files": files, "signature": self.signature(), **changes}

    def stage(self, check_mode: bool = False, **changes) -> dict:
        return self.run_module(
            "model_stage", check_mode=check_mode, store=str(self.store), artifacts=[self.artifact(**changes)],
            suppliers=[self.server.url], link=False, reserve=0, retries=0,
        )

    def known(self, **changes) -> list[dict]:
        return [{**self.artifact(**changes), "reasons": ["wanted"]}]

    def verify(self, **changes) -> list[dict]:
        return self.run_module("model_verify", store=str(self.store), known=self.known(**changes))["damaged"]


@pytest.fixture
def depot(run_module, tmp_path):
    with RangeServer() as server:
        yield Depot(run_module, server, tmp_path)


def test_the_signature_is_kept_beside_what_it_signs(depot):
    would = depot.stage(check_mode=True)
    assert would["changed"] and "tiny 1.0.0: keep its signature" in would["actions"] and not depot.store.exists()
    first = depot.stage()
    assert first["changed"] and depot.kept.read_text() == depot.text
    again = depot.stage()
    assert not again["changed"] and again["actions"] == []


def test_two_stagings_at_once_keep_one_signature(tmp_path):
    signatures, artifact = StoreSignatures(Store(tmp_path)), Artifact.parse("tiny", "1.0.0")

    def keep(_number: int) -> None:
        signatures.keep(artifact, "a signature" * 1000)
        assert signatures.keeps(artifact, "a signature" * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep, range(200)))
    assert [path.name for path in (tmp_path / "signatures" / "tiny").iterdir()] == ["1.0.0.sig"]


@pytest.mark.parametrize(
    ("changes", "clue"),
    [
        ({"trust": key("other").public}, "another key signed it"),
        ({"signer": key("other").fingerprint}, "signer"),
        ({"sha256": "ab" * 32}, "not the one that was locked"),
        ({"content": key("other").sign(DIGESTS)}, "another key signed it"),
        ({"content": key().sign({**DIGESTS, "config.json": "ab" * 32})}, "changed since they were signed: config.json"),
        ({"content": key().sign({"tiny.gguf": DIGESTS["tiny.gguf"]})}, "not signed: config.json"),
        ({"content": "{}"}, "mediaType"),
        ({"trust": "no key"}, "no public key"),
    ],
)
def test_nothing_is_brought_whose_signature_does_not_hold(depot, changes, clue):
    found = depot.stage(signature=depot.signature(**changes))
    assert found["failed"] and clue in found["msg"] and "tiny 1.0.0" in found["fault"]["where"]
    assert depot.server.requests == [] and not depot.kept.exists()


def test_a_certificate_that_has_ended_since_is_as_good_as_before(depot):
    ca = Authority("Models CA", days=(-30, 30))
    certificate = pem_of(ca.issue(key("signer"), email="models@example.com", days=(-20, -1)))
    signature = depot.signature(
        content=key("signer").sign(DIGESTS, certificate), signer=key("signer").fingerprint, by="ca", trust=ca.pem,
    )
    assert depot.stage(signature={**signature, "identity": "somebody@example.com"})["failed"]
    assert depot.stage(signature={**signature, "identity": "models@example.com"})["changed"]


def test_verifying_finds_a_signature_that_changed_on_the_disk(depot):
    depot.stage()
    assert depot.verify() == []
    depot.kept.chmod(0o600)
    depot.kept.write_text(depot.text.replace("a", "b", 1))
    row, = depot.verify()
    assert row["file"] == "signatures/tiny/1.0.0.sig" and row["expected"] == hashlib.sha256(depot.text.encode()).hexdigest()
    assert depot.stage()["actions"] == ["tiny 1.0.0: keep its signature"]
    assert depot.verify() == []


def test_verifying_finds_a_signer_who_is_trusted_no_more(depot):
    depot.stage()
    row, = depot.verify(signature=depot.signature(trust=key("other").public))
    assert key().fingerprint in row["expected"] and "another key" in row["actual"]


def test_a_host_that_keeps_no_signature_misses_none(depot):
    files = depot.artifact()["files"]
    depot.run_module(
        "model_stage", store=str(depot.store), artifacts=[{"model": "tiny", "version": "1.0.0", "files": files}],
        suppliers=[depot.server.url], reserve=0,
    )
    assert depot.verify() == [] and not depot.kept.exists()


def test_a_signature_goes_with_its_version(depot):
    depot.stage()
    other = [{"model": "other", "version": "1.0.0", "files": []}]
    collect = {"store": str(depot.store), "containers": False, "grace": 0}
    assert depot.run_module("model_gc", keep=depot.known(), **collect)["actions"] == [] and depot.kept.exists()
    would = depot.run_module("model_gc", keep=other, check_mode=True, **collect)
    assert "remove 1 signatures of versions that nobody names" in would["actions"] and depot.kept.exists()
    assert depot.run_module("model_gc", keep=other, **collect)["actions"] == would["actions"]
    assert not depot.kept.parent.exists()
    assert depot.run_module("model_gc", keep=other, **collect)["actions"] == []
