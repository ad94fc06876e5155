#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: model_lock
short_description: Makes a lockfile from a catalog
version_added: 0.1.0
description:
  - Asks the source of every model version what it has, and returns the text of a lockfile that names each file by its
    size and SHA-256, and each engine's image by its digest.
  - Writes no lockfile. Whoever calls it does, so that a pipeline may open a commit in place of it.
  - What is locked stays as it is as long as the catalog names the same source. What moved upstream is returned as
    RV(drift), and taken for what O(update) names.
  - Files whose source tells no digest are downloaded once, into O(store), and hashed. Files of this host are hashed where they are.
  - Asks all sources before it fails, and then names all faults.
  - Refuses to take away or to change a version that a host uses.
  - Verifies the signatures that the catalog demands and keeps them in the lockfile, see docs/signatures.md. Files that are not signed, were
    changed since, or are missing are faults. This needs the Python package C(cryptography) on this host.
options:
  models:
    description: The catalog as the operator wrote it, see docs/catalog.md.
    type: raw
    required: true
  profiles:
    description: Engine profiles by name, from the lookup P(localfirst.llm_fleet.engine_profiles#lookup).
    type: dict
    required: true
  engine_images:
    description:
      - The image of each engine, as C(registry/repository:tag).
      - An engine that is not named here has the image of its profile, where that names one.
    type: dict
    default: {}
  sources:
    description:
      - How sources are asked, see docs/lock.md. The JSON text of a mapping from the beginning of a URL to its settings.
      - Text, because what is in it is secret, and a mapping would be shown where something is wrong with it.
    type: str
    default: ""
  current:
    description: Text of the lockfile as it is now. Empty where there is none.
    type: str
    default: ""
  current_name:
    description: What messages call the lockfile.
    type: str
    default: models.lock.yml
  store:
    description:
      - Directory of the store on this host that keeps what has to be downloaded.
      - Where it is empty, only small files of such sources can be locked.
    type: str
    default: ""
  update:
    description: Models, and engines for their images, that get what their sources have now. V(all) is every one.
    type: list
    elements: str
    default: []
  in_use:
    description: The versions that hosts use, from the filter P(localfirst.llm_fleet.versions_in_use#filter).
    type: list
    elements: dict
    default: []
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: The version.
        type: str
        required: true
      hosts:
        description: Names of the hosts.
        type: list
        elements: str
        required: true
      digest:
        description: Digest of the version's files on these hosts.
        type: str
        default: ""
  complete:
    description: Whether O(in_use) tells of every host. If not, no version is dropped or changed without O(allow_drop).
    type: bool
    default: true
  allow_drop:
    description: Drop and change versions although not every host has told what it uses.
    type: bool
    default: false
  signature_files:
    description:
      - The files of the controller that the catalog names for its signatures, from the lookup
        P(localfirst.llm_fleet.signature_files#lookup).
    type: dict
    default: {}
  require_signatures:
    description: Whether a version without C(signature) in the catalog is a fault.
    type: bool
    default: false
  sign:
    description:
      - Models, or V(all), whose versions M(localfirst.llm_fleet.model_sign) signs after this. Of these a version that has no signature by
        the right one is no fault, and is returned in RV(unsigned).
    type: list
    elements: str
    default: []
  local_files:
    description: Whether this host is the controller, so that C(file://) means its files.
    type: bool
    default: true
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description:
      - Asks the sources, and keeps nothing in the store. A version with large files that only a download could tell the digests of is
        left as it is, and RV(actions) says so.
    support: full
  diff_mode:
    description: Returns the text before and after.
    support: full
  idempotent:
    description: The same catalog gives the same text, whatever moved upstream.
    support: full
"""

EXAMPLES = r"""
- name: Lock what the catalog names
  localfirst.llm_fleet.model_lock:
    models: "{{ llm_fleet_models }}"
    profiles: "{{ lookup('localfirst.llm_fleet.engine_profiles') }}"
    engine_images:
      llamacpp: ghcr.io/ggml-org/llama.cpp:server-cuda
    sources: "{{ {'hf://': {'token': vault_hub_token}} | to_json }}"
    current: "{{ lookup('ansible.builtin.file', '/srv/fleet/models.lock.yml', rstrip=false) }}"
    store: /srv/fleet/.store
  register: locked
  delegate_to: localhost
  run_once: true

- name: Write it
  ansible.builtin.copy:
    content: "{{ locked.text }}"
    dest: /srv/fleet/models.lock.yml
    mode: "0644"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
text:
  description: Text of the lockfile.
  type: str
  returned: success
  sample: "---\n# Written by localfirst.llm_fleet.lock. …\nlockfile: 1\n…"
actions:
  description: What differs from O(current), a line each.
  type: list
  elements: str
  returned: success
  sample: ["tiny 1.0.0: lock oci://registry.example/tiny@sha256:1f0e…"]
drift:
  description: What moved upstream since it was locked, and was not taken.
  type: list
  elements: dict
  returned: success
  contains:
    title:
      description: The model and its version, or the engine's image, for people.
      type: str
    model:
      description: Name of the model; absent for an image.
      type: str
    version:
      description: Version of the model; absent for an image.
      type: str
    engine:
      description: Name of the engine; absent for a model.
      type: str
    asked:
      description: The source, or the image, as the operator names it.
      type: str
    locked:
      description: What is locked.
      type: str
    now:
      description: What the source has now.
      type: str
    changes:
      description: Which files differ, for people.
      type: str
  sample:
    - title: chat 1.0.0
      model: chat
      version: 1.0.0
      asked: hf://example/chat@main
      locked: hf://example/chat@0123456789012345678901234567890123456789
      now: hf://example/chat@9876543210987654321098765432109876543210
      changes: "1 changed (model.safetensors)"
unasked:
  description: What is locked and stays so, although its source could not be asked whether it moved.
  type: list
  elements: dict
  returned: success
  sample: [{"title": "chat 1.0.0", "asked": "hf://example/chat@main", "why": "https://huggingface.co: …"}]
shapeless:
  description: Versions whose files do not say what their memory depends on, so that the plan does not check whether they fit.
  type: list
  elements: dict
  returned: success
  sample: [{"title": "chat 1.0.0", "why": "the file is no GGUF"}]
unsigned:
  description: Versions that the catalog demands a signature of, and that are still to be signed.
  type: list
  elements: dict
  returned: success
  contains:
    model:
      description: Name of the model.
      type: str
    version:
      description: The version.
      type: str
  sample: [{"model": "chat", "version": "1.0.0"}]
downloaded_bytes:
  description: Bytes that were downloaded to be hashed.
  type: int
  returned: success
  sample: 6012345
faults:
  description: What is wrong, where, and what to do about it.
  type: list
  elements: dict
  returned: failure
  sample:
    - what: the server answers 404 Not Found (https://models.example/tiny.gguf)
      where: llm_fleet_models[tiny].versions.1.0.0.source
      fix: check the source in the catalog, or put the file back where it was
diff:
  description: The text before and after.
  type: dict
  returned: success
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.catalog import check_catalog
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, listing
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes import Digests
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import Use
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_models import Lock, Locker, unknown_engines
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_signature import LockSignatures
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.masking import Mask
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.preflight import check_paths
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.schema import map_of, text
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import demands, unsigned_faults
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import check_settings, settings_for
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.strict_yaml import NO_YAML
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.words import WORD

# Who may use a model, and where it runs, is no matter of what it is.
ELSEWHERE = ("access", "placement")
BROKEN_FIX = "take the file back from git; where there is none, remove it and lock anew"
IMAGE = text(r"[A-Za-z0-9][^\s]*", "an image", "registry/repository:tag")


class ModelLock:
    """One call of the module."""

    def __init__(self, params: dict, check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.faults: list[Fault] = []
        self.sources = self._sources()
        self.mask = Mask(self._secrets())

    def run(self) -> tuple[Lock, int]:
        """Check what was written, then ask the sources: the later needs the earlier to be right."""
        params = self.params
        models = self._models()
        images = map_of(WORD, IMAGE)(params["engine_images"], "llm_fleet_engine_images", self.faults)
        self.faults += unknown_engines(images or {}, params["profiles"])
        current = {}
        if params["current"].strip():
            current, faults = parse_lockfile(params["current"], params["current_name"])
            # Where nothing can read it, nothing is wrong with it.
            self.faults += [fault if fault.what == NO_YAML else fault._replace(fix=BROKEN_FIX) for fault in faults]
        if params["store"]:
            self.faults += check_paths({"llm_fleet_store_dir": params["store"]})
        if self.faults:
            return Lock(faults=self.faults), 0
        digests = Digests(params["store"], self.sources, keep=not self.check_mode)
        lock = Locker(
            models,
            params["profiles"],
            images,
            self.sources,
            current,
            digests,
            update=params["update"],
            in_use=[Use(use["model"], use["version"], tuple(use["hosts"]), use["digest"]) for use in params["in_use"]],
            complete=params["complete"],
            allow_drop=params["allow_drop"],
            local_files=params["local_files"],
            signatures=LockSignatures(demands(models), params["signature_files"], self.sources),
            sign=params["sign"],
        ).run()
        if self.mask.finds_in(lock.text):
            what, fix = "a secret of llm_fleet_sources would stand in the lockfile", "take it out of the catalog's sources"
            lock.faults.append(Fault(what, "llm_fleet_models", fix))
        return lock, digests.downloaded

    def _models(self) -> list[dict]:
        models = self.params["models"]
        if isinstance(models, list):
            models = [
                {key: value for key, value in model.items() if key not in ELSEWHERE} if isinstance(model, dict) else model
                for model in models
            ]
        checked, _clients, faults = check_catalog(models, [], self.params["profiles"], [])
        self.faults += faults
        if self.params["require_signatures"]:
            self.faults += unsigned_faults(checked)
        return checked

    def _sources(self) -> dict[str, Any]:
        """The settings of sources; a message about them never shows what is in them."""
        try:
            given = json.loads(self.params["sources"] or "{}")
        except ValueError:
            self.faults.append(Fault("this is not JSON", "llm_fleet_sources", "pass it through the filter to_json"))
            return {}
        return check_settings(given, "llm_fleet_sources", self.faults) or {}

    def _secrets(self) -> list[str]:
        secrets: list[str] = []
        for prefix in self.sources:
            try:
                secrets += settings_for(self.sources, prefix).secrets()
            except ArtifactError as error:
                self.faults.append(error.fault)
        return secrets


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "raw", "required": True},
            "profiles": {"type": "dict", "required": True},
            "engine_images": {"type": "dict", "default": {}},
            "sources": {"type": "str", "default": "", "no_log": True},
            "current": {"type": "str", "default": ""},
            "current_name": {"type": "str", "default": "models.lock.yml"},
            "store": {"type": "str", "default": ""},
            "update": {"type": "list", "elements": "str", "default": []},
            "in_use": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "model": {"type": "str", "required": True},
                    "version": {"type": "str", "required": True},
                    "hosts": {"type": "list", "elements": "str", "required": True},
                    "digest": {"type": "str", "default": ""},
                },
            },
            "complete": {"type": "bool", "default": True},
            "allow_drop": {"type": "bool", "default": False},
            "signature_files": {"type": "dict", "default": {}},
            "require_signatures": {"type": "bool", "default": False},
            "sign": {"type": "list", "elements": "str", "default": []},
            "local_files": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    # Ansible masks the value of a no_log option wherever it occurs: '{}' would be cut out of every text.
    module.no_log_values.difference_update({"{}", "[]", "null"})
    locking = ModelLock(module.params, module.check_mode)
    lock, downloaded = locking.run()
    hide = locking.mask.hide
    if lock.faults:
        faults = sorted({Fault(*map(hide, fault)) for fault in lock.faults}, key=lambda fault: (fault.where, fault.what))
        module.fail_json(msg=listing(faults), faults=[fault.as_dict() for fault in faults])
    module.exit_json(
        changed=lock.text != module.params["current"] or bool(lock.actions),
        text=lock.text,
        actions=hide(lock.actions),
        drift=hide(lock.drift),
        unasked=hide(lock.unasked),
        shapeless=hide(lock.shapeless),
        unsigned=lock.unsigned,
        downloaded_bytes=downloaded,
        diff={
            "before": module.params["current"],
            "after": lock.text,
            "before_header": module.params["current_name"],
            "after_header": module.params["current_name"],
        },
    )


if __name__ == "__main__":
    main()
