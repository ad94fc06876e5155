# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""One file on its way from a web server into a part, for tests."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import Artifact, ArtifactError, File
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_fetch import Fetcher
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact_part import Part
from ansible_collections.localfirst.llm_fleet.tests.unit.support.range_server import RangeServer
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import BODY, Places, digest

FILE = File("tiny.gguf", len(BODY), digest(BODY))
ARTIFACT = Artifact("tiny", "1.0.0", "", (FILE,))


class Download:
    """One file, one server, one place for what arrives."""

    def __init__(self, server: RangeServer, folder) -> None:
        self.server = server
        self.part = folder / f"{FILE.sha256}.part"
        self.validator = self.part.with_suffix(".validator")
        self.pauses: list[float] = []
        self.counted = 0

    def run(self, file=FILE, url=None, **options):
        """From one place, or from several in this order."""
        urls = [url] if isinstance(url, str) else [f"{self.server.url}/f"] if url is None else url
        places = [Places(*urls, **{"pause": self.pauses.append, **options})] if urls else []
        fetcher = Fetcher(places, advance=self.advance)
        with Part.take(self.part, file) as part:
            moved = fetcher.fetch(Artifact("tiny", "1.0.0", "", (file,)), file, part)
            part.finish()
            return moved

    def advance(self, count: int) -> None:
        self.counted += count

    def fails(self, **arguments) -> ArtifactError:
        with pytest.raises(ArtifactError) as caught:
            self.run(**arguments)
        return caught.value

    def interrupt_at(self, position: int) -> None:
        """Leave what a run that was killed at `position` leaves."""
        self.part.write_bytes(BODY[:position])
        self.validator.write_text(f'{self.server.url}/f\n{self.server.resources["/f"].tag()}')

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.part.parent.iterdir())
