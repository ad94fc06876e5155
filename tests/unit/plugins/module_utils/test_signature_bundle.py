# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Signature files as anybody may write them: what is no plain signature is refused before anything is believed of it."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    LARGEST,
    Malformed,
    parse_bundle,
    render_statement,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import key

FILES = {"config.json": "cd" * 32, "tiny.gguf": "ab" * 32}
STATEMENT = json.loads(render_statement("tiny-1.0.0", FILES))


def bundle(**changes) -> dict:
    """A sound signature file as data, with other values at the top."""
    return {**json.loads(key().sign(FILES)), **changes}


def parse(data: object):
    return parse_bundle(data if isinstance(data, bytes) else json.dumps(data).encode())


def files_of(statement: dict) -> dict[str, str]:
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    whole = bundle()
    return parse({**whole, "dsseEnvelope": {**whole["dsseEnvelope"], "payload": payload}}).files()


def with_resources(*resources: dict) -> dict:
    return {**STATEMENT, "predicate": {**STATEMENT["predicate"], "resources": list(resources)}}


def resource(**changes) -> dict:
    return {"name": "tiny.gguf", "algorithm": "sha256", "digest": "ab" * 32, **changes}


def test_what_is_written_is_read():
    found = parse(bundle())
    assert found.files() == FILES and found.chain == () and f"sha256:{found.hint}" == key().fingerprint


def test_a_signature_from_before_fingerprints_is_read():
    old = {"publicKey": {"rawBytes": "AAAA", "keyDetails": "PKIX_ECDSA_P256_SHA_256"}}
    assert parse(bundle(verificationMaterial=old)).hint == ""


@pytest.mark.parametrize(
    ("data", "clue"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no mapping"),
        (b"null", "no mapping"),
        (b"[" * 100_000, "nested"),
        (b'{"mediaType": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b" " * (LARGEST + 1), str(LARGEST)),
        (bundle(mediaType="application/json"), "mediaType"),
        (bundle(mediaType=None), "mediaType"),
        (bundle(verificationMaterial=[]), "verificationMaterial"),
        (bundle(verificationMaterial={}), "key or a certificate"),
        (bundle(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}), "keyless"),
        (bundle(verificationMaterial={"publicKey": {"hint": 3}}), "fingerprint"),
        (bundle(verificationMaterial={"publicKey": {}, "x509CertificateChain": {}}), "key or a certificate"),
        (bundle(verificationMaterial={"x509CertificateChain": {"certificates": []}}), "empty"),
        (bundle(verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "A"}]}}), "base64"),
        (bundle(dsseEnvelope=None), "dsseEnvelope"),
        (bundle(dsseEnvelope={"payloadType": "text/plain"}), "payloadType"),
        (bundle(dsseEnvelope={**bundle()["dsseEnvelope"], "signatures": []}), "0 signatures"),
        (bundle(dsseEnvelope={**bundle()["dsseEnvelope"], "signatures": [{}, {}]}), "2 signatures"),
        (bundle(dsseEnvelope={**bundle()["dsseEnvelope"], "signatures": [{"sig": "===="}]}), "base64"),
        (bundle(dsseEnvelope={**bundle()["dsseEnvelope"], "payload": "AB=="}), "base64"),  # AA== would be the same byte
        (bundle(dsseEnvelope={**bundle()["dsseEnvelope"], "payload": ""}), "base64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_signature_is_refused(data, clue):
    with pytest.raises(Malformed) as error:
        parse(data)
    assert clue in error.value.what and error.value.fix


@pytest.mark.parametrize(
    ("statement", "clue"),
    [
        ({**STATEMENT, "_type": "https://in-toto.io/Statement/v0.1"}, "_type"),
        ({**STATEMENT, "predicateType": "https://model_signing/Digests/v0.1"}, "predicateType"),
        ({**STATEMENT, "predicate": None}, "predicate"),
        ({**STATEMENT, "predicate": {**STATEMENT["predicate"], "serialization": {"method": "shards", "hash_type": "sha256"}}}, "pieces"),
        ({**STATEMENT, "predicate": {**STATEMENT["predicate"], "serialization": {"method": "files", "hash_type": "blake3"}}}, "blake3"),
        ({**STATEMENT, "predicate": {**STATEMENT["predicate"], "resources": {}}}, "resources"),
        (with_resources(), "no file"),
        (with_resources("tiny.gguf"), "no mapping"),
        (with_resources(resource(algorithm="md5")), "md5"),
        (with_resources(resource(algorithm=None)), "hashed with nothing"),
        (with_resources(resource(digest="ab" * 20)), "64 digits"),
        (with_resources(resource(digest="AB" * 32)), "64 digits"),
        (with_resources(resource(digest=None)), "64 digits"),
        (with_resources(resource(), resource()), "twice"),
        (with_resources(resource(name="."), resource()), "single file"),
        ({**STATEMENT, "subject": []}, "digest over all"),
        ({**STATEMENT, "subject": [{"name": "tiny", "digest": {"sha256": "00" * 32}}]}, "digest over all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_statement_of_another_kind_is_refused(statement, clue):
    with pytest.raises(Malformed) as error:
        files_of(statement)
    assert clue in error.value.what


@pytest.mark.parametrize(
    "name",
    ["../tiny.gguf", "a/../b", "/etc/passwd", "a//b", "./a", "a/.", "a/", "", "..", "a\\b", "a\nb", "a\x00b", "\ud800", "x" * 1025, 7],
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(Malformed, match="no plain path"):
        files_of(with_resources(resource(name=name)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("AAAA"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    ("mediaType",), ("verificationMaterial",), ("verificationMaterial", "publicKey"), ("verificationMaterial", "publicKey", "hint"),
    ("dsseEnvelope",), ("dsseEnvelope", "payload"), ("dsseEnvelope", "payloadType"), ("dsseEnvelope", "signatures"),
    ("dsseEnvelope", "signatures", 0), ("dsseEnvelope", "signatures", 0, "sig"),
]


@given(place=st.sampled_from(PLACES), value=VALUES)
@settings(max_examples=200, deadline=None)
def test_no_value_anywhere_makes_it_fail_otherwise(place, value):
    data = bundle()
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    try:
        parse(data).files()
    except Malformed as error:
        assert error.what and error.fix
