# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Signs the files of a model with a private key. Nothing that is raised here repeats what is in the key, or its password."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import regular_files
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    DEFAULT_NAME,
    LARGEST,
    Bundle,
    SignatureError,
    render_bundle,
    render_statement,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import (
    CURVES_FIX,
    HAS_CRYPTOGRAPHY,
    MARK,
    UNREADABLE,
    check_curve,
    fingerprint,
    hash_of,
    need_cryptography,
)

if HAS_CRYPTOGRAPHY:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization


class SigningKey:
    """A private key, and the certificates that go with it if it is known by one."""

    def __init__(self, pem: bytes, password: str = "", certificates: bytes = b"") -> None:
        need_cryptography()
        self.key = _private_key(pem, password)
        check_curve(self.key.public_key())
        self.chain = _chain(certificates)
        if self.chain and _holder(self.chain[0]) != self.fingerprint:
            raise SignatureError(
                "the first certificate is not that of the signing key", "put the signer's certificate first, those of CAs between after it"
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key.public_key())

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """The certificates as they stand in a signature."""
        return tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in self.chain)

    def sign(self, name: str, files: Mapping[str, str], ignored: Iterable[str] = (DEFAULT_NAME,)) -> str:
        """The text of a signature file for a model; `files` are {name: sha256}."""
        chain = self.chain_der
        payload = render_statement(name, files, ignored)
        unsigned = Bundle(self.fingerprint[len(MARK) :], chain, payload, b"")
        signature = self.key.sign(unsigned.message, hash_of(self.key))
        return render_bundle(Bundle(unsigned.hint, chain, payload, signature))


def read_key_files(params: Mapping[str, Any], faults: list[Fault]) -> dict[str, bytes]:
    """What lies in the files that a module's options `key`, `password_file` and `certificate` name; nothing for those that name none."""
    return {name: _read(f"sign_{name}", params[name], faults) for name in ("key", "password_file", "certificate")}


def open_key(read: Mapping[str, bytes], password: str, faults: list[Fault]) -> SigningKey | None:
    """The private key in what `read_key_files` returned. Without a password, the first line of the password's file is that."""
    password = password or read["password_file"].decode(errors="replace").split("\n")[0].rstrip("\r")
    try:
        return SigningKey(read["key"], password, read["certificate"])
    except SignatureError as error:
        faults.append(error.fault("sign_key"))
        return None


def _read(where: str, path: str | None, faults: list[Fault]) -> bytes:
    try:
        return regular_files.read(path, LARGEST) if path else b""
    except OSError as error:
        what = f"{path} cannot be read on the controller: {(error.strerror or str(error)).lower()}"
        faults.append(Fault(what, where, "correct the path, or let the user who runs this read it"))
        return b""


def _private_key(pem: bytes, password: str) -> Any:
    try:
        return serialization.load_pem_private_key(pem, password.encode() if password else None)
    except TypeError:
        if password:
            raise SignatureError("the signing key has no password, and one was given", "leave the password out") from None
        raise SignatureError("the signing key has a password", "give it with sign_password_file, or sign_password from a vault") from None
    except (ValueError, UnsupportedAlgorithm):
        if password:
            raise SignatureError("the signing key cannot be opened with this password", "check both of them") from None
        raise SignatureError("this is no private key in PEM", CURVES_FIX) from None


def _chain(certificates: bytes) -> list[Any]:
    # Read one by one: distributions have versions of cryptography that know no other way.
    end = b"-----END CERTIFICATE-----"
    parts = [part + end for part in certificates.split(end)[:-1]]
    try:
        return [x509.load_pem_x509_certificate(part[part.index(b"-----BEGIN CERTIFICATE-----") :]) for part in parts] or _none(certificates)
    except UNREADABLE:
        raise SignatureError("the certificates for the signing key cannot be read", "name a file with certificates in PEM") from None


def _holder(certificate: Any) -> str:
    try:
        return fingerprint(certificate.public_key())
    except UNREADABLE:
        raise SignatureError("the key of the first certificate cannot be read", CURVES_FIX) from None


def _none(certificates: bytes) -> list[Any]:
    if certificates.strip():
        raise ValueError
    return []
