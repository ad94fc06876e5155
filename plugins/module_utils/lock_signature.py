# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The signatures of versions while they are locked: found, verified, and kept in their entries.

A signature that is kept is verified again with every lock, and its source is not asked for it any more. Only where none is kept,
or somebody else has to sign now, it is looked for where the catalog says: beside the model's files, or on the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import (
    LARGEST,
    Foreign,
    Malformed,
    SignatureError,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_check import text_of, trust_of, verify, verify_again
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import Demand
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_files import may_lack
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import Trust
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import parse_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import Resolution, Source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import Refused


class Absent(SignatureError):
    """There is no signature where one should be."""


class LockSignatures:
    """Finds and verifies the signatures that a catalog demands."""

    def __init__(
        self, demands: Mapping[tuple[str, str], Demand], files: Mapping[str, Mapping[str, str]], all_settings: Mapping[str, Any]
    ) -> None:
        """`files` are read_files' of what the demands name on the controller, which may be another host than this one."""
        self.demands = demands
        self.files = files
        self.all_settings = all_settings

    def demand(self, model: str, version: str) -> Demand | None:
        return self.demands.get((model, version))

    def signed(self, model: str, version: str, entry: dict, listing: Resolution | None, signs: bool) -> tuple[dict, bool]:
        """The entry with the signature that the catalog demands, and whether it still has to be signed.

        `listing` is what its source has, where that was asked for already. Raises SignatureError where the signature does not
        hold; where somebody `signs` the version after this, it need not have one yet. Files that were changed after the right
        one had signed them are refused all the same.
        """
        demand = self.demand(model, version)
        plain = {key: value for key, value in entry.items() if key != "signature"}
        if demand is None:
            return plain, False
        trust = trust_of(demand, self.files)
        try:
            return {**plain, "signature": self._kept_or_found(model, entry, listing, demand, trust)}, False
        except (Absent, Foreign, Malformed):
            if not signs:
                raise
            return plain, True

    def _kept_or_found(self, model: str, entry: dict, listing: Resolution | None, demand: Demand, trust: Trust) -> dict:
        first: SignatureError | None = None
        if "signature" in entry:
            try:
                return verify_again(model, entry, demand, trust)
            except (Foreign, Malformed) as error:
                first = error
        source = open_source(entry["source"], self.all_settings)
        listing = listing or source.resolve()
        text = self._found(source, listing, demand)
        if text is None:
            raise first or Absent(f"there is no signature '{demand.file}'", _absent_fix(demand, entry))
        # An Ollama store is made of the weights alone, whatever lies beside them.
        beside = {file.path for file in listing.files} if any("from" in file for file in entry["files"]) else set()
        rule = may_lack(demand.source, entry)
        return verify(model, entry, text, demand, trust, lambda name: (name in beside or listing.left_out(name)) and rule(name))

    def _found(self, source: Source, listing: Resolution, demand: Demand) -> str | None:
        """The signature's text from where the catalog says that it lies; None where it is not there."""
        if demand.file.startswith("/"):
            return text_of(demand.file, self.files) if demand.file in self.files else None
        request = source.beside(demand.file, listing)
        if request is None:
            return None
        try:
            return source.web.get(request, LARGEST).body.decode("utf-8")
        except Refused as error:
            if error.status == 404:
                return None
            raise
        except UnicodeDecodeError:
            raise Malformed("the signature is no text", "put the file there that model_signing wrote") from None


def _absent_fix(demand: Demand, entry: dict) -> str:
    mine = "sign it yourself (-e sign_key=…)"
    if demand.file.startswith("/"):
        return f"put it there, or {mine}"
    if parse_source(entry["source"]).scheme == "ollama":
        return f"a registry of Ollama's kind has no place for one: name a file on the controller (signature.file), or {mine}"
    return f"put it beside the model's files, say where it is (signature.file), or {mine}"
