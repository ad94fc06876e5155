# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The places that models come from, each through its own protocol.

Every kind is imported when the first URL of it is opened: boto3 alone takes longer to load than most lookups take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import SourceUrl, parse_source

if TYPE_CHECKING:
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import Source
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings


def open_source(text: str, all_settings: Mapping[str, Any] | None = None) -> Source:
    """The source that a URL names, with the settings of `llm_fleet_sources` that are meant for it."""
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import settings_for

    try:
        url = parse_source(text)
    except ValueError as error:
        raise ArtifactError(error.args[0], "the source", error.args[1]) from None
    source = source_of(url, settings_for(all_settings, text))
    source.all_settings = all_settings or {}
    return source


def source_of(url: SourceUrl, settings: Settings) -> Source:
    """The source of a parsed URL."""
    # Written out, because Ansible packs for a host only the modules that it sees imported.
    if url.scheme in ("http", "https"):
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.http import HttpSource as kind
    elif url.scheme == "file":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.local import LocalSource as kind
    elif url.scheme == "hf":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.hf import HfSource as kind
    elif url.scheme == "oci":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.oci import OciSource as kind
    elif url.scheme == "ollama":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.ollama import OllamaSource as kind
    elif url.scheme == "mlflow":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.mlflow import MlflowSource as kind
    elif url.scheme == "s3":
        from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.s3 import S3Source as kind
    else:
        raise ArtifactError(f"'{url.scheme}' is not a known kind of source", "the source", "correct it in the catalog")
    return kind(url, settings)
