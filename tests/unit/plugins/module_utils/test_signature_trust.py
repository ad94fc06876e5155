# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who signed: only the key or the certificates that the catalog trusts, with real keys, certificates and OpenSSL."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import signature_trust
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    Foreign,
    Malformed,
    SignatureError,
    parse_bundle,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_key import SigningKey
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import CertificateTrust, KeyTrust
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import (
    CODE_SIGNING,
    CURVES,
    SERVER,
    Authority,
    Key,
    key,
    pem_of,
)

FILES = {"tiny.gguf": "ab" * 32}


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority()


def bundle_of(text: str):
    return parse_bundle(text.encode())


def signed_with(authority: Authority, *above: Authority, **options):
    certificates = pem_of(authority.issue(key("signer"), **options), *(each.certificate for each in above))
    return bundle_of(key("signer").sign(FILES, certificates))


def spki(public) -> str:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize("curve", CURVES)
def test_a_key_on_each_curve_signs(curve):
    mine = key("mine", curve)
    bundle = bundle_of(mine.sign(FILES))
    assert KeyTrust(mine.public).verify(bundle) == (mine.fingerprint, "")
    assert bundle.files() == FILES


def test_the_fingerprint_is_what_sha256sum_prints_of_the_file(tmp_path):
    _private, public = key().write(tmp_path)
    printed = subprocess.run(["sha256sum", public], capture_output=True, text=True, check=True).stdout.split()[0]
    assert key().fingerprint == f"sha256:{printed}"


def test_a_foreign_key_is_refused_whatever_it_says_of_itself():
    foreign = key("foreign").sign(FILES)
    with pytest.raises(Foreign, match="another key"):
        KeyTrust(key().public).verify(bundle_of(foreign))
    data = json.loads(foreign)
    for material in ({"hint": key().fingerprint[len("sha256:") :]}, {"rawBytes": "AAAA"}):
        data["verificationMaterial"] = {"publicKey": material}
        with pytest.raises(Foreign, match="not that of the key"):
            KeyTrust(key().public).verify(bundle_of(json.dumps(data)))


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_makes_another_set_of_files(position, bit):
    text = bytearray(_SIGNED)
    text[position % len(text)] ^= 1 << bit
    try:
        bundle = parse_bundle(bytes(text))
        KeyTrust(key().public).verify(bundle)
    except SignatureError:
        return
    assert bundle.files() == FILES  # it was in a part that says nothing, such as the name of a key that nobody reads


_SIGNED = key().sign(FILES).encode()


@pytest.mark.parametrize(
    ("pem", "clue"),
    [
        ("", "no public key"),
        ("hello", "no public key"),
        (key().pem.decode(), "private key"),
        (spki(rsa.generate_private_key(65537, 2048).public_key()), "elliptic curve"),
        (spki(ec.generate_private_key(ec.SECP256K1()).public_key()), "secp256k1"),
    ],
)
def test_what_is_no_key_for_models_is_refused(pem, clue):
    with pytest.raises(SignatureError) as error:
        KeyTrust(pem)
    assert clue in error.value.what and "openssl" in error.value.fix


def test_a_certificate_of_the_ca_signs(root):
    signer = CertificateTrust(root.pem).verify(signed_with(root))
    assert signer == (key("signer").fingerprint, "signer")


def test_a_chain_leads_to_the_ca(root):
    between = Authority("Between", above=root)
    assert CertificateTrust(root.pem).verify(signed_with(between, between)).identity == "signer"
    with pytest.raises(Foreign, match="does not hold"):
        CertificateTrust(root.pem).verify(signed_with(between))
    # Whoever trusts the one between need not trust the one above.
    assert CertificateTrust(between.pem).verify(signed_with(between)).identity == "signer"


def test_another_ca_of_the_same_name_is_refused(root):
    with pytest.raises(Foreign, match="certificate"):
        CertificateTrust(root.pem).verify(signed_with(Authority(root.name)))


def test_a_signer_is_no_ca(root):
    """Whoever has a certificate for signing cannot issue another one."""
    issued = root.issue(key("signer"), "signer")
    fake = Authority.__new__(Authority)
    fake.key, fake.name, fake.certificate = key("signer"), "signer", issued
    with pytest.raises(Foreign):
        CertificateTrust(root.pem).verify(bundle_of(key("other").sign(FILES, pem_of(fake.issue(key("other"), "other"), issued))))


def test_the_system_s_own_cas_are_not_trusted(root, monkeypatch, tmp_path):
    other = Authority("Public CA")
    (tmp_path / "public.pem").write_text(other.pem)
    subprocess.run(["openssl", "rehash", tmp_path], check=True)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(Foreign):
        CertificateTrust(root.pem).verify(signed_with(other))


@pytest.mark.parametrize(("days", "clue"), [((-20, -1), "expired"), ((1, 20), "not yet valid")])
def test_a_certificate_out_of_its_time_is_refused(days, clue):
    old = Authority("Old CA", days=(-30, 30))
    with pytest.raises(Foreign, match=clue):
        CertificateTrust(old.pem).verify(signed_with(old, days=days))


def test_what_was_locked_in_time_holds_when_the_certificate_has_ended():
    old = Authority("Old CA", days=(-30, 30))
    assert CertificateTrust(old.pem).verify(signed_with(old, days=(-20, -1)), fresh=False).identity == "signer"


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, True),
        ({"purposes": None}, True),
        ({"purposes": (SERVER, CODE_SIGNING)}, True),
        ({"usage": None}, True),
        ({"purposes": (SERVER,)}, False),
        ({"usage": False}, False),
        ({"usage": False, "purposes": None}, False),
        ({"usage": None, "purposes": None}, False),
    ],
)
def test_a_certificate_has_to_be_one_for_signing(root, options, fits):
    bundle = signed_with(root, **options)
    if fits:
        CertificateTrust(root.pem).verify(bundle)
    else:
        with pytest.raises(Foreign, match="not one for signing"):
            CertificateTrust(root.pem).verify(bundle)


def test_the_identity_is_the_one_that_was_named(root):
    bundle = signed_with(root, email="models@example.com")
    for identity in ("models@example.com", "signer"):
        assert CertificateTrust(root.pem, identity).verify(bundle).identity == identity
    for identity in ("example.com", "models@example.co", "Signer"):
        with pytest.raises(Foreign, match="models@example"):
            CertificateTrust(root.pem, identity).verify(bundle)


def test_key_and_certificate_do_not_stand_for_each_other(root):
    with pytest.raises(Foreign, match="names a key"):
        KeyTrust(key("signer").public).verify(signed_with(root))
    with pytest.raises(Foreign, match="names a CA"):
        CertificateTrust(root.pem).verify(bundle_of(key().sign(FILES)))


def test_a_certificate_is_no_signature(root):
    """The certificate is the right one, and its holder signed something else."""
    mine, other = (json.loads(key("signer").sign(files, pem_of(root.issue(key("signer"))))) for files in (FILES, {"b": "cd" * 32}))
    mine["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"]
    with pytest.raises(Foreign, match="not that of the key"):
        CertificateTrust(root.pem).verify(bundle_of(json.dumps(mine)))


def test_certificates_that_cannot_be_read_are_refused(root):
    data = json.loads(key("signer").sign(FILES, pem_of(root.issue(key("signer")))))
    data["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = "AAAA"
    with pytest.raises(Malformed):
        CertificateTrust(root.pem).verify(bundle_of(json.dumps(data)))
    with pytest.raises(SignatureError, match="no certificate"):
        CertificateTrust(key().pem.decode())


VERSION = b"\xa0\x03\x02\x01"  # what stands before the last byte of a certificate's version


@pytest.mark.parametrize(
    ("was", "now", "part"),
    [
        (VERSION + b"\x02", VERSION + b"\x07", "certificate"),
        (b"\x0c\x06signer", b"\x0c\x06sign\xff\xff", "subject"),
        (b"\x81\x12models@", b"\x83\x12models@", "extensions"),
        (b"\x81\x12models@", b"\xa0\x12models@", "extensions"),
    ],
)
def test_a_malformed_certificate_is_refused_whatever_is_wrong_with_it(root, monkeypatch, was, now, part):
    # Some of it a CA would have to sign: what OpenSSL lets through has to be refused as well.
    monkeypatch.setattr(signature_trust, "verify_chain", lambda *_arguments: None)
    certificate = root.issue(key("signer"), email="models@example.com").public_bytes(serialization.Encoding.DER)
    assert certificate.count(was) == 1
    bundle = dataclasses.replace(bundle_of(key("signer").sign(FILES)), chain=(certificate.replace(was, now),))
    for fresh in (True, False):
        with pytest.raises(Malformed, match=f"{part}.* cannot be read"):
            CertificateTrust(root.pem).verify(bundle, fresh)


def test_a_malformed_certificate_signs_nothing(root):
    certificate = root.issue(key("signer")).public_bytes(serialization.Encoding.DER).replace(VERSION + b"\x02", VERSION + b"\x07")
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(certificate).decode()}\n-----END CERTIFICATE-----\n"
    with pytest.raises(SignatureError, match="cannot be read"):
        SigningKey(key("signer").pem, certificates=pem.encode())


def test_a_signing_key_with_a_password():
    locked = Key(password="geheim")
    assert KeyTrust(locked.public).verify(bundle_of(locked.sign(FILES))).fingerprint == locked.fingerprint
    for password in ("", "falsch-und-lang"):
        with pytest.raises(SignatureError) as error:
            SigningKey(locked.pem, password)
        assert "password" in error.value.what and "falsch" not in str(error.value)
    with pytest.raises(SignatureError, match="no password"):
        SigningKey(key().pem, "geheim")
    with pytest.raises(SignatureError, match="no private key"):
        SigningKey(key().public.encode())


def test_a_signing_key_has_its_own_certificate(root):
    with pytest.raises(SignatureError, match="not that of the signing key"):
        SigningKey(key().pem, certificates=pem_of(root.issue(key("signer"))).encode())
    with pytest.raises(SignatureError, match="cannot be read"):
        SigningKey(key().pem, certificates=b"hello")
