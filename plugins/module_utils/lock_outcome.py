# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What is asked when a catalog is locked, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import Resolution


class Wanted(NamedTuple):
    """One version of a model as the catalog has it."""

    model: str
    version: str
    asked: str
    formats: tuple[str, ...]  # what the model's engine reads

    @property
    def title(self) -> str:
        return f"{self.model} {self.version}"

    @property
    def where(self) -> str:
        return f"llm_fleet_models[{self.model}].versions.{self.version}.source"


class WantedImage(NamedTuple):
    """The image of an engine as the operator names it."""

    engine: str
    asked: str

    @property
    def title(self) -> str:
        return f"image of {self.engine}"

    @property
    def where(self) -> str:
        return f"llm_fleet_engine_images.{self.engine}"


@dataclass
class Outcome:
    """What came of asking one source."""

    entry: dict | None = None
    drift: dict | None = None
    unasked: dict | None = None
    unread: str = ""  # what would have to be downloaded first
    shapeless: dict | None = None  # why nothing is known about its memory
    listing: Resolution | None = None  # all that the source has, where it was locked anew
    unsigned: dict | None = None  # what still has to be signed
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Lock:
    """A lockfile as it should be, and what led to it. With faults there is no text."""

    text: str = ""
    drift: list[dict] = field(default_factory=list)
    unasked: list[dict] = field(default_factory=list)
    shapeless: list[dict] = field(default_factory=list)
    unsigned: list[dict] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def unasked(wanted: Wanted | WantedImage, error: ArtifactError) -> dict:
    """What is said of a source that did not answer, where what is locked of it stays good."""
    return {"title": wanted.title, "asked": wanted.asked, "why": error.fault.text()}
