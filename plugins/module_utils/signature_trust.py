# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Who has to have signed, and whether it was them: elliptic curve keys, and certificates that a CA has issued.

It needs the Python package `cryptography`, which ansible-core brings to the controller and every distribution has
(python3-cryptography). Chains of certificates are left to `openssl verify`: nobody should write that anew.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    Bundle,
    Foreign,
    Malformed,
    SignatureError,
)

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    HAS_CRYPTOGRAPHY = True
    # What cryptography raises of a malformed certificate, now or when a part of it is asked for: not all of these are ValueErrors.
    UNREADABLE: tuple = (
        ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm
    )
except ImportError:
    HAS_CRYPTOGRAPHY = False
    UNREADABLE = ()

MARK = "sha256:"
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # each signs with a hash of its own strength
CURVES_FIX = "make one: openssl ecparam -name prime256v1 -genkey -noout -out models.key; openssl ec -in models.key -pubout -out models.pub"
SIGNER_FIX = "find out who signed it, or name that signer in the catalog if you trust them"
OPENSSL_ERROR = re.compile(r"error \d+ at (\d+) depth lookup: *(.+)")


class Signer(NamedTuple):
    """Who signed: the fingerprint of the key, and the name that a certificate gives its holder."""

    fingerprint: str
    identity: str = ""


class KeyTrust:
    """One public key."""

    def __init__(self, pem: str) -> None:
        need_cryptography()
        try:
            self.key = serialization.load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            hint = " It is a private key, which has no place there." if "PRIVATE KEY" in pem else ""
            raise SignatureError(f"this is no public key in PEM.{hint}", CURVES_FIX) from None
        check_curve(self.key)

    def verify(self, bundle: Bundle, fresh: bool = True) -> Signer:
        """The signer; raises Foreign where it is not this key. A key has no end, so `fresh` means nothing here."""
        mine = fingerprint(self.key)
        if bundle.chain:
            raise Foreign("it was signed with a certificate, and the catalog names a key", SIGNER_FIX)
        if bundle.hint and MARK + bundle.hint != mine:
            raise Foreign(f"another key signed it ({_short(MARK + bundle.hint)}, and not {_short(mine)})", SIGNER_FIX)
        check_signature(self.key, bundle)
        return Signer(mine)


class CertificateTrust:
    """Certificates for signing that one of these CAs has issued; with `identity`, only those of that name."""

    def __init__(self, ca: str, identity: str = "") -> None:
        need_cryptography()
        self.ca = ca
        self.identity = identity
        if "-----BEGIN CERTIFICATE-----" not in ca:
            raise SignatureError("this is no certificate in PEM", "name the file with the CA's certificate, not with its key")

    def verify(self, bundle: Bundle, fresh: bool = True) -> Signer:
        """The signer; raises Foreign where it is nobody whom this CA vouches for.

        With `fresh` the certificates have to be valid now; without, when the signer's own began to be.
        """
        if not bundle.chain:
            raise Foreign("it was signed with a key, and the catalog names a CA", SIGNER_FIX)
        leaf = _certificate(bundle.chain[0])
        now = datetime.datetime.now(datetime.timezone.utc)
        verify_chain(self.ca, bundle.chain, now if fresh else _valid_from(leaf))
        _check_usage(leaf)
        names = _names(leaf)
        if self.identity and self.identity not in names:
            raise Foreign(f"{_listed(names)} signed it, and not '{self.identity}'", SIGNER_FIX)
        with _readable("the key of the signer's certificate", CURVES_FIX):
            key = leaf.public_key()
        check_curve(key)
        check_signature(key, bundle)
        return Signer(fingerprint(key), self.identity or next(iter(names), ""))


Trust = Any  # KeyTrust or CertificateTrust


def need_cryptography() -> None:
    if not HAS_CRYPTOGRAPHY:
        raise SignatureError(
            f"signatures need the Python package cryptography, which {sys.executable} does not have",
            "install python3-cryptography from the distribution",
        )


def fingerprint(key: Any) -> str:
    """What a key is called, here and in signatures: the SHA-256 of its PEM file, as `sha256sum models.pub` prints it."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return MARK + hashlib.sha256(pem).hexdigest()


def check_curve(key: Any) -> None:
    """Only keys that the format knows."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        kind = f"a key on the curve {curve}" if curve else "no key on an elliptic curve"
        raise SignatureError(f"this is {kind}; P-256, P-384 and P-521 sign models", CURVES_FIX)


def hash_of(key: Any) -> Any:
    """The hash that goes with a key's curve."""
    return ec.ECDSA(getattr(hashes, CURVES[key.curve.name])())


def check_signature(key: Any, bundle: Bundle) -> None:
    try:
        key.verify(bundle.signature, bundle.message, hash_of(key))
    except InvalidSignature:
        raise Foreign(
            f"the signature is not that of the key {_short(fingerprint(key))}, or what it signs was changed", SIGNER_FIX
        ) from None


def verify_chain(ca: str, chain: tuple[bytes, ...], when: datetime.datetime) -> None:
    """Whether certificates lead from the first one to a CA, and all were valid at a moment. The system's own CAs do not count."""
    with tempfile.TemporaryDirectory() as folder:
        trusted, between, leaf = (Path(folder, name) for name in ("ca.pem", "between.pem", "leaf.pem"))
        trusted.write_text(ca, encoding="utf-8")
        leaf.write_text(_pem(chain[0]), encoding="ascii")
        between.write_text("".join(map(_pem, chain[1:])), encoding="ascii")
        command = ["openssl", "verify", "-CAfile", trusted, "-no-CApath", "-no-CAstore", "-partial_chain", "-auth_level", "2"]
        command += ["-untrusted", between] if chain[1:] else []
        try:
            done = subprocess.run(
                [*command, "-attime", str(int(when.timestamp())), leaf], capture_output=True, text=True, timeout=60, check=False
            )
        except FileNotFoundError:
            raise SignatureError("there is no openssl, which checks certificates", "install openssl from the distribution") from None
    if done.returncode != 0:
        found = OPENSSL_ERROR.search(done.stderr)
        which = "its certificate" if found and found[1] == "0" else "the chain of its certificate"
        reason = found[2].strip() if found else " ".join(done.stderr.split())[:200]
        fix = "have it signed with a valid certificate that the catalog's CA has issued"
        raise Foreign(f"{which} does not hold: {reason}", fix)


@contextlib.contextmanager
def _readable(part: str, fix: str = "sign it again") -> Iterator[None]:
    try:
        yield
    except UNREADABLE:
        raise Malformed(f"{part} cannot be read", fix) from None


def _certificate(der: bytes) -> Any:
    with _readable("the signer's certificate"):
        return x509.load_der_x509_certificate(der)


def _pem(der: bytes) -> str:
    return _certificate(der).public_bytes(serialization.Encoding.PEM).decode("ascii")


def _valid_from(certificate: Any) -> datetime.datetime:
    # The one with a time zone came with cryptography 42; distributions have older ones.
    with _readable("the dates of the signer's certificate"):
        found = getattr(certificate, "not_valid_before_utc", None)
        return found or certificate.not_valid_before.replace(tzinfo=datetime.timezone.utc)


def _check_usage(leaf: Any) -> None:
    """A certificate says what its key is for. One for a web server signs no models, though its CA is the right one."""
    usage, extended = _extension(leaf, x509.KeyUsage), _extension(leaf, x509.ExtendedKeyUsage)
    purposes = x509.ExtendedKeyUsageOID
    if usage is not None and not usage.digital_signature:
        fits = False
    elif extended is not None:
        fits = purposes.CODE_SIGNING in extended or purposes.ANY_EXTENDED_KEY_USAGE in extended
    else:
        fits = usage is not None
    if not fits:
        fix = "issue one with keyUsage digitalSignature and extendedKeyUsage codeSigning"
        raise Foreign("its certificate is not one for signing", fix)


def _names(leaf: Any) -> list[str]:
    """What a certificate calls its holder: the alternative names, and the common name."""
    found: list[str] = []
    alternative = _extension(leaf, x509.SubjectAlternativeName)
    if alternative is not None:
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            found += alternative.get_values_for_type(kind)
    with _readable("the subject of the signer's certificate"):
        found += [str(name.value) for name in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return [name for name in found if name.isprintable()]


def _extension(certificate: Any, kind: Any) -> Any:
    with _readable("the extensions of the signer's certificate"):
        try:
            return certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None


def _listed(names: list[str]) -> str:
    return " alias ".join(ascii(name) for name in names[:3]) or "somebody without a name"


def _short(mark: str) -> str:
    """Enough of a fingerprint for people to compare."""
    return ascii(mark[: len(MARK) + 16])[1:-1]
