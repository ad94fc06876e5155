# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""A CA and certificates as the fleet has them, in files: real ones, for tests with real handshakes."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Pair(NamedTuple):
    """Paths of a certificate and its key."""

    certificate: str
    key: str


class FleetCa:
    """Signs certificates into one directory."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("llm_fleet CA")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = self._sign(self._name, self._key, [(x509.BasicConstraints(True, 0), True), (usage, True)])
        self.pem = _write(folder / f"{name}.pem", made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, client: bool) -> Pair:
        """A certificate for 127.0.0.1 (a server's) or for nobody in particular (a client's)."""
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        extensions = [(x509.ExtendedKeyUsage([purpose]), False)]
        if not client:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            extensions.append((x509.SubjectAlternativeName([address]), False))
        return self._issue(name, extensions)

    def issue_server(self, name: str, address: str) -> Pair:
        """A certificate for a server at another address."""
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        return self._issue(name, [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False), (names, False)])

    def issue_peer(self, name: str, content: str) -> Pair:
        """A certificate for both sides of a connection between peers, for contents of this name."""
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = x509.SubjectAlternativeName([x509.DNSName(content)])
        return self._issue(name, [(x509.ExtendedKeyUsage(purposes), False), (names, False)])

    def _issue(self, name: str, extensions: list) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_subject(name), key, extensions)
        raw = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Pair(
            _write(self.folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            _write(self.folder / f"{name}.key", raw),
        )

    def _sign(self, subject: x509.Name, key, extensions: list) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    path.chmod(0o600)
    return str(path)
