# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Keys, certificates and signatures for tests, made anew for each run."""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_key import SigningKey

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
CODE_SIGNING = x509.ExtendedKeyUsageOID.CODE_SIGNING
SERVER = x509.ExtendedKeyUsageOID.SERVER_AUTH


class Key:
    """A key pair as PEM."""

    def __init__(self, curve: ec.EllipticCurve | None = None, password: str = "") -> None:
        self.private = ec.generate_private_key(curve or ec.SECP256R1())
        cipher = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        self.pem = self.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
        self.public = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()
        self.fingerprint = "sha256:" + hashlib.sha256(self.public.encode()).hexdigest()
        self.password = password

    def sign(self, files: Mapping[str, str], certificates: str = "", name: str = "tiny-1.0.0") -> str:
        return SigningKey(self.pem, self.password, certificates.encode()).sign(name, files)

    def write(self, folder: Path, name: str = "models") -> tuple[Path, Path]:
        """The paths of its two files."""
        private, public = folder / f"{name}.key", folder / f"{name}.pub"
        private.write_bytes(self.pem)
        private.chmod(0o600)
        public.write_text(self.public)
        return private, public


def key(name: str = "mine", curve: str = "P-256") -> Key:
    """The same key for the same name, because making one takes longer than most tests."""
    return _key(name, curve)


@functools.cache
def _key(_name: str, curve: str) -> Key:
    return Key(CURVES[curve])


class Authority:
    """A CA, of its own or issued by another one."""

    def __init__(self, name: str = "Test CA", above: Authority | None = None, **options) -> None:
        self.key = Key()
        self.name = name
        self.above = above
        self.certificate = (above or self).issue(self.key, name, ca=True, **options)

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)

    def issue(
        self,
        holder: Key,
        name: str = "signer",
        *,
        ca: bool = False,
        days: tuple[int, int] = (-10, 10),
        usage: bool | None = True,
        purposes: tuple | None = (CODE_SIGNING,),
        email: str = "",
    ) -> x509.Certificate:
        """A certificate valid between `days` from now; `usage` is its right to sign, None to say nothing about that."""
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(_called(self.name))
            .public_key(holder.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if usage is not None:
            builder = builder.add_extension(_usage(sign=usage and not ca, ca=ca), critical=True)
        if purposes is not None and not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        if email:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(email)]), critical=False)
        return builder.sign(self.key.private, hashes.SHA256())


def pem_of(*certificates: x509.Certificate) -> str:
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _usage(sign: bool, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=not sign and not ca,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )
