# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the modules about a host's store have in common: their options, and how they end.

The options' documentation is in plugins/doc_fragments/store.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError

STORE = {"store": {"type": "path", "default": "/var/lib/llm_fleet/store"}}

_STORED = {
    "path": {"type": "str", "required": True},
    "size": {"type": "int", "required": True},
    "sha256": {"type": "str", "required": True},
}
_FILES = {"type": "list", "elements": "dict", "options": {**_STORED, "from": {"type": "str"}, "content": {"type": "str"}}}
_NAMES = {"model": {"type": "str", "required": True}, "version": {"type": "str", "required": True}}
_SOURCE = {"source": {"type": "str", "default": ""}}

VERSION = {**_NAMES, **_SOURCE, "files": {**_FILES, "default": []}}

# A version's signature, and what it takes to verify it: of planned artifacts on depots.
_SIGNATURE = {
    "type": "dict",
    "options": {
        "content": {"type": "str", "required": True},
        "sha256": {"type": "str", "required": True},
        "signer": {"type": "str", "required": True},
        "left_out": {"type": "list", "elements": "str", "default": []},
        "file": {"type": "str", "default": "model.sig"},
        "format": {"type": "str", "default": ""},
        "by": {"type": "str", "choices": ["key", "ca"], "required": True},
        "trust": {"type": "str", "required": True},
        "identity": {"type": "str", "default": ""},
    },
}

ARTIFACTS = {
    "artifacts": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            **_NAMES,
            **_SOURCE,
            "files": {**_FILES, "required": True},
            "format": {"type": "str"},
            "size": {"type": "int"},
            "signature": _SIGNATURE,
        },
    }
}

# What modules take as `known` or `keep`.
KNOWN = {
    "type": "list",
    "elements": "dict",
    "options": {
        **_NAMES,
        "files": {"type": "list", "elements": "dict", "default": [], "options": {**_STORED, "from": {"type": "str"}}},
        "signature": _SIGNATURE,
        "reasons": {"type": "list", "elements": "str", "default": []},
    },
}

TRANSFER = {
    "stores": {"type": "list", "elements": "path", "default": []},
    "suppliers": {"type": "list", "elements": "str", "default": []},
    "sources": {"type": "str", "no_log": True},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "ca_path": {"type": "path"},
    "bandwidth": {"type": "int", "default": 0},
    "link": {"type": "bool", "default": True},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "reserve": {"type": "int", "default": 1024**3},
    "lock_timeout": {"type": "int", "default": 3600},
    "timeout": {"type": "int", "default": 30},
    "retries": {"type": "int", "default": 5},
}


def answer(module: AnsibleModule, work: Callable[[], dict], place: str = "store") -> None:
    """End the module with what `work` returns, or with the fault that it raised. `place`: the option with the directory it works on."""
    try:
        result = work()
    except ArtifactError as error:
        module.fail_json(msg=str(error), fault=error.fault.as_dict(), **error.details)
    except OSError as error:
        fault = ArtifactError.from_os_error(error, module.params[place])
        module.fail_json(msg=str(fault), fault=fault.fault.as_dict())
    module.exit_json(**result)
