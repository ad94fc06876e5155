# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Signatures of models in the format of OpenSSF Model Signing 1.0, read and written. Pure: no cryptography, no I/O.

A signature is one JSON file of three layers, each with a specification of its own:

    Sigstore bundle v0.3      who signed: a public key's fingerprint, or a chain of certificates
      DSSE envelope           the signed bytes, and the signature over them
        in-toto statement     what was signed: the name and digest of every file of the model

Only files that are hashed as a whole with SHA-256 can be compared with a lockfile; that is what `model_signing` writes
unless it is told otherwise. Everything else is refused with the way to sign anew. Nothing that stands in the statement is
looked at before the signature over it was verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault

DEFAULT_NAME = "model.sig"  # what `model_signing sign` calls its file
LARGEST = 256 * 1024  # bytes; the lockfile carries the whole of it. Enough for about 1200 files
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")  # never signed, because they are about the repository
WHOLE = "."  # the name of the only file, where a file was signed and not a directory

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

SIGN_AGAIN = "sign it again with model_signing 1.1 or newer, or with lock and -e sign_key=…"
KEYLESS_FIX = (
    "Sigstore's keyless signatures are proven by servers on the internet (Fulcio, Rekor), which a fleet does not ask: "
    "sign with a key or a certificate of your own"
)
_NAME = re.compile(r"(?!/)[^\\\x00-\x1f\x7f\ud800-\udfff]{1,1024}")
_DIGEST = re.compile("[0-9a-f]{64}")


class SignatureError(Exception):
    """What is wrong with a signature, and what to do about it; whoever asked knows where it belongs."""

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}; {fix}")

    def fault(self, where: str) -> Fault:
        return Fault(self.what, where, self.fix)


class Malformed(SignatureError):
    """This is no signature that can be read here."""


class Foreign(SignatureError):
    """It is a signature, but not of the one who should have signed."""


class Mismatch(SignatureError):
    """The right one signed, but other files."""


@dataclass(frozen=True)
class Bundle:
    """A signature, read and not yet verified."""

    hint: str  # fingerprint of the key that signed, as the signer says; empty in signatures from before model_signing 1.1
    chain: tuple[bytes, ...]  # certificates in DER, the signer's first; empty where a key signed
    payload: bytes
    signature: bytes

    @property
    def message(self) -> bytes:
        """The bytes that are signed: DSSE's pre-authentication encoding."""
        kind = PAYLOAD_TYPE.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.payload), self.payload)

    def files(self) -> dict[str, str]:
        """{name: sha256} of the signed files. To be asked only once the signature was verified."""
        return _signed_files(self.payload)


def parse_bundle(data: bytes) -> Bundle:
    """A signature file as data; raises Malformed."""
    if len(data) > LARGEST:
        what = f"the signature has {len(data)} bytes, more than {LARGEST}"
        raise Malformed(what, "have a part of the files signed: one format of the weights, without what no engine reads")
    bundle = _json(data, "the signature")
    media = bundle.get("mediaType")
    if media != MEDIA_TYPE:
        raise Malformed(f"this is no Sigstore bundle v0.3 (mediaType {_shown(media)})", SIGN_AGAIN)
    hint, chain = _material(_part(bundle, "verificationMaterial", dict))
    envelope = _part(bundle, "dsseEnvelope", dict)
    kind = envelope.get("payloadType")
    if kind != PAYLOAD_TYPE:
        raise Malformed(f"what was signed is no in-toto statement (payloadType {_shown(kind)})", SIGN_AGAIN)
    signatures = _part(envelope, "signatures", list)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise Malformed(f"there are {len(signatures)} signatures in it, and not one", SIGN_AGAIN)
    return Bundle(hint, chain, _bytes(envelope, "payload"), _bytes(signatures[0], "sig"))


def render_statement(name: str, files: Mapping[str, str], ignored: Iterable[str] = (DEFAULT_NAME,)) -> bytes:
    """The statement that somebody signs for a model: `files` are {name: sha256}."""
    resources = [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in sorted(files)]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted({*ignored, *IGNORED}),
            },
            "resources": resources,
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode()


def render_bundle(bundle: Bundle) -> str:
    """The signature file of a bundle: ASCII, on one line."""
    if bundle.chain:
        certificates = [{"rawBytes": _base64(certificate)} for certificate in bundle.chain]
        material: dict[str, Any] = {"x509CertificateChain": {"certificates": certificates}}
    else:
        material = {"publicKey": {"hint": bundle.hint}}
    return json.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**material, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": _base64(bundle.payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": _base64(bundle.signature), "keyid": ""}],
            },
        },
        separators=(",", ":"),
    )


# The layers, from the outside to the inside


def _material(material: dict) -> tuple[str, tuple[bytes, ...]]:
    """Fingerprint and certificates: a signature has one of the two."""
    if "certificate" in material:
        raise Malformed("this is a keyless signature of Sigstore's", KEYLESS_FIX)
    if ("publicKey" in material) == ("x509CertificateChain" in material):
        raise Malformed("it does not say whether a key or a certificate signed", SIGN_AGAIN)
    if "publicKey" in material:
        hint = _part(material, "publicKey", dict).get("hint") or ""
        if not isinstance(hint, str):
            raise Malformed("its fingerprint of the key is no text", SIGN_AGAIN)
        return hint, ()
    certificates = _part(_part(material, "x509CertificateChain", dict), "certificates", list)
    if not certificates or not all(isinstance(each, dict) for each in certificates):
        raise Malformed("its chain of certificates is empty", SIGN_AGAIN)
    return "", tuple(_bytes(each, "rawBytes") for each in certificates)


def _signed_files(payload: bytes) -> dict[str, str]:
    statement = _json(payload, "the signed statement")
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement.get(key) != wanted:
            raise Malformed(f"its {key} is {_shown(statement.get(key))}, and not {wanted}", SIGN_AGAIN)
    predicate = _part(statement, "predicate", dict)
    serialization = _part(predicate, "serialization", dict)
    method, kind = serialization.get("method"), serialization.get("hash_type")
    if method != "files":
        raise Malformed(f"the files were signed in pieces (method {_shown(method)})", f"{SIGN_AGAIN}; without shards")
    if kind != "sha256":
        raise _wrong_hash(kind)
    resources = _part(predicate, "resources", list)
    files: dict[str, str] = {}
    for resource in resources:
        name, digest = _resource(resource)
        if name in files:
            raise Malformed(f"it names {_shown(name)} twice", SIGN_AGAIN)
        files[name] = digest
    if not files:
        raise Malformed("it names no file", SIGN_AGAIN)
    if WHOLE in files and len(files) > 1:
        raise Malformed("it names a single file and others beside it", SIGN_AGAIN)
    _check_root(statement, resources)
    return files


def _resource(resource: Any) -> tuple[str, str]:
    if not isinstance(resource, dict):
        raise Malformed("an entry of its resources is no mapping", SIGN_AGAIN)
    name, digest = resource.get("name"), resource.get("digest")
    if resource.get("algorithm") != "sha256":
        raise _wrong_hash(resource.get("algorithm"))
    if not _plain(name):
        raise Malformed(f"{_shown(name)} is no plain path inside the model", "find out who signed this, and do not take it")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Malformed(f"the digest of {_shown(name)} is not 64 digits 0-9, a-f", SIGN_AGAIN)
    return name, digest


def _check_root(statement: dict, resources: list[dict]) -> None:
    """The statement's subject is a digest over those of all files."""
    subjects = _part(statement, "subject", list)
    digest = subjects[0].get("digest") if len(subjects) == 1 and isinstance(subjects[0], dict) else None
    if not isinstance(digest, dict) or digest.get("sha256") != _root(resources):
        raise Malformed("the digest over all its files does not fit them", SIGN_AGAIN)


def _root(resources: Iterable[Mapping[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()


def _plain(name: Any) -> bool:
    """Whether a name leads to a place inside the model, by one way only."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return False
    return name == WHOLE or not {"", ".", ".."}.intersection(name.split("/"))


def _wrong_hash(kind: Any) -> Malformed:
    return Malformed(f"its files are hashed with {_shown(kind)}, and the lockfile with sha256", f"{SIGN_AGAIN}; with sha256")


# JSON and base64, taken as strictly as signatures have to be: nothing in them may be read in two ways


def _json(data: bytes, what: str) -> dict:
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Malformed(f"{what} is not JSON: {reason}", SIGN_AGAIN) from None
    if not isinstance(found, dict):
        raise Malformed(f"{what} is no mapping", SIGN_AGAIN)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _part(mapping: dict, key: str, kind: type) -> Any:
    if not isinstance(mapping.get(key), kind):
        raise Malformed(f"its '{key}' is missing, or no {'list' if kind is list else 'mapping'}", SIGN_AGAIN)
    return mapping[key]


def _bytes(mapping: dict, key: str) -> bytes:
    text = mapping.get(key)
    try:
        found = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        found = b""
    # One text for each content: the last letter may not hide bits that nobody reads.
    if not found or _base64(found) != text:
        raise Malformed(f"its '{key}' is missing, or no base64", SIGN_AGAIN)
    return found


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _shown(value: Any) -> str:
    """What stands there, short and printable: it comes from whoever made the file."""
    shown = ascii(value) if isinstance(value, str) else "nothing" if value is None else f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
