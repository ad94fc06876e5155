# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the catalog says about signatures: who has to have signed a version, and where the signature lies.

    signature: {key: "{{ inventory_dir }}/models.pub"}              for all versions of a model, or below one of them
    signature: {ca: /etc/ssl/company-ca.pem, identity: models@example.com, file: release.sig}
    signature: none                                                 below a version: this one needs none
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import optional, record, show, text, wrong
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    DEFAULT_NAME,
    IGNORED,
    KEYLESS_FIX,
)

NONE = "none"
KEYLESS = ("sigstore", "keyless", "issuer", "oidc_issuer", "identity_provider", "rekor", "fulcio")
GONE_FIX = "lock again (ansible-playbook localfirst.llm_fleet.lock), or put the version back into the catalog"
USAGE = "write signature: {key: /path/to/models.pub} or signature: {ca: /path/to/ca.pem, identity: who@example.com}"


class Demand(NamedTuple):
    """Who has to have signed a version, and where its files come from. Paths are the controller's."""

    key: str
    ca: str
    identity: str
    file: str  # name beside the model's files, or an absolute path
    source: str = ""  # as the catalog says, because a lockfile may be edited; empty where that does not have the version

    @property
    def paths(self) -> list[str]:
        """The files of the controller that tell whom to trust, and the signature where it lies there too."""
        return [path for path in (self.key, self.ca, self.file) if path.startswith("/")]

    def leaves_out(self, name: str) -> bool:
        """Whether a file at the source is no part of the model: nobody signs it, so it is not locked."""
        return name == self.file or name.split("/")[0] in IGNORED


def blank(said: Mapping[str, Any]) -> list[str]:
    """Of key, CA and identity, those that are named without a text.

    An identity is not as good as left out then: without one, everybody counts whom the CA has certified.
    """
    return [name for name in ("key", "ca", "identity") if name in said and not (isinstance(said[name], str) and said[name].strip())]


def check_model(value: Any, where: str, faults: list[Fault]) -> dict | None:
    """The schema's check of `signature` of a model."""
    keyless = [word for word in KEYLESS if value == word or (isinstance(value, Mapping) and word in value)]
    if keyless:
        return wrong(faults, f"'{keyless[0]}' is not for a fleet", where, KEYLESS_FIX)
    mine: list[Fault] = []
    found = _SIGNATURE(value, where, mine)
    if not mine and "identity" in blank(value):  # of key and CA, one without a value is as good as left out
        wrong(mine, "nothing is named as identity", f"{where}.identity", "name it, or leave it out: then any certificate of the CA will do")
    if not mine and bool(found["key"]) == bool(found["ca"]):
        wrong(mine, "it says neither which key signs nor which CA" if not found["key"] else "it names a key and a CA", where, USAGE)
    elif not mine and found["key"] and found["identity"]:
        wrong(mine, "a key has no identity", f"{where}.identity", "leave it out, or name a CA in place of the key")
    faults += mine
    return None if mine else found


def check_version(value: Any, where: str, faults: list[Fault]) -> dict | str | None:
    """The same below a version, which may do without."""
    return NONE if value == NONE else check_model(value, where, faults)


def demands(models: Iterable[Mapping[str, Any]], lock: Mapping[str, Any] | None = None) -> dict[tuple[str, str], Demand]:
    """{(model, version): who has to have signed it} of check_catalog's models; versions that nobody has to sign are not in it.

    With `lock` also of versions that are locked and not in the catalog (any more): bundles have them, and rollouts may go to them.
    What the catalog says of the model holds for them.
    """
    found = {}
    for model in models:
        for version, entry in _versions(model, lock).items():
            wanted = entry.get("signature") or model.get("signature")
            if wanted and wanted != NONE:
                said = {key: wanted.get(key) or "" for key in ("key", "ca", "identity", "file")}
                found[model["name"], version] = Demand(**said, source=entry.get("source") or "")
    return found


def unsigned_faults(models: Iterable[Mapping[str, Any]], lock: Mapping[str, Any] | None = None) -> Iterator[Fault]:
    """Versions that nobody has to sign, in a fleet that takes signed ones only (llm_fleet_require_signatures)."""
    models = list(models)
    demanded = demands(models, lock)
    for model in models:
        for version, entry in _versions(model, lock).items():
            if (model["name"], version) not in demanded:
                what = "nothing says who signs this version, and the fleet takes signed ones only (llm_fleet_require_signatures)"
                yield Fault(what, where_of(model["name"], version), USAGE if entry else GONE_FIX)


def _versions(model: Mapping[str, Any], lock: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """{version: what the catalog says of it}; nothing of those that only a lockfile has."""
    locked = ((lock or {}).get("models") or {}).get(model["name"]) or {}
    return {**{version: {} for version in locked}, **(model["versions"] or {})}


def where_of(model: str, version: str) -> str:
    """The place in the catalog that a message about a version's signature names."""
    return f"llm_fleet_models[{model}].versions.{version}.signature"


def named_paths(models: Any) -> list[str]:
    """The files of the controller that a catalog names for its signatures; it may be anything that YAML can hold."""
    found = []
    for model in models if isinstance(models, list) else []:
        versions = model.get("versions") if isinstance(model, Mapping) else None
        entries = versions.values() if isinstance(versions, Mapping) else []
        for each in [model, *entries] if isinstance(model, Mapping) else []:
            signature = each.get("signature") if isinstance(each, Mapping) else None
            values = [signature.get(key) for key in ("key", "ca", "file")] if isinstance(signature, Mapping) else []
            found += [str(value) for value in values if isinstance(value, str) and value.startswith("/")]
    return sorted(set(found))


def _path(value: Any, where: str, faults: list[Fault]) -> str | None:
    found = text()(value, where, faults)
    if found is not None and not found.startswith("/"):
        fix = f'make it absolute, for instance "{{{{ inventory_dir }}}}/{found}"'
        return wrong(faults, f"the path {show(found)} is relative", where, fix)
    return found


def _file(value: Any, where: str, faults: list[Fault]) -> str | None:
    """The signature's own place: beside the model's files, or on the controller."""
    found = text(r"[^\x00-\x1f\x7f\\]{1,1024}", "a file's name", "a name beside the model's files, or an absolute path on the controller")(
        value, where, faults
    )
    if found is not None and {"", ".", ".."}.intersection(found.lstrip("/").split("/")):
        return wrong(faults, f"{show(found)} has empty or dotted parts", where, "write the plain path")
    return found


_SIGNATURE = record({
    "key": optional(_path),
    "ca": optional(_path),
    "identity": optional(text()),
    "file": optional(_file, default=DEFAULT_NAME),
})
