# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of roles need: the collection's filter of addresses, as a play has it."""

from __future__ import annotations

import pytest
from ansible.plugins.loader import filter_loader

from ansible_collections.localfirst.llm_fleet.plugins.filter import addresses


@pytest.fixture(scope="session", autouse=True)
def _filters():
    # Ansible looks for the filters of a collection in what its own finder has imported, and the tests' collection is imported by pytest.
    filter_loader._ensure_non_collection_wrappers()
    for name, function in addresses.FilterModule().filters().items():
        filter_ = filter_loader._plugin_wrapper_type(function)
        filter_loader._update_object(obj=filter_, name=name, path=addresses.__file__, resolved=f"localfirst.llm_fleet.{name}")
        filter_loader._cached_non_collection_wrappers[f"localfirst.llm_fleet.{name}"] = filter_
