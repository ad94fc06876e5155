# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""From catalog to lockfile: each version's source is asked what it has, and each file gets its digest.

What is locked stays as it is until the catalog names another source or somebody asks for an update; what moved
upstream is told. All sources are asked before anything fails, so that one run shows everything there is to mend.
A version that a host uses is never taken away, nor given other contents: it would no longer be that version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import ollama_store, semver
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError, human
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.faults import Fault, suggestion
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_bytes import Digests, Unread
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_changes import (
    Use,
    changed_files,
    describe,
    dropped_faults,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_outcome import Lock, Outcome, Wanted, WantedImage, unasked
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_shape import shape_of_version
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lock_signature import LockSignatures
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import FORMAT
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile, version_digest
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import SignatureError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_demand import where_of
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import SourceUrl, is_pinned, parse_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import RemoteFile, Resolution
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.oci import image_digest, image_ids, parse_image
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import Settings, settings_for

OLLAMA = "ollama"  # the format of a directory that Ollama can serve from
TOOL = "localfirst.llm_fleet 0.1.0"
EVERYTHING = "all"
AT_ONCE = 4  # sources that are asked at the same time


def unknown_engines(images: Iterable[str], profiles: Iterable[str]) -> list[Fault]:
    """Images for engines that no profile describes: a slip of the pen would lock the profile's own image in their place."""
    return [
        Fault(f"there is no engine '{name}'", f"llm_fleet_engine_images.{name}", suggestion(name, profiles, "engines"))
        for name in sorted(set(images) - set(profiles))
    ]


class Locker:
    """Locks what a catalog names."""

    def __init__(
        self,
        models: list[dict],
        profiles: dict[str, Any],
        engine_images: dict[str, str],
        all_settings: dict[str, Any],
        current: dict[str, Any],
        digests: Digests,
        *,
        update: Iterable[str] = (),
        in_use: Iterable[Use] = (),
        complete: bool = True,
        allow_drop: bool = False,
        local_files: bool = True,
        signatures: LockSignatures | None = None,
        sign: Iterable[str] = (),
    ) -> None:
        """`models` are check_catalog's, `current` is parse_lockfile's or empty; all of it has passed its checks."""
        self.models = models
        self.profiles = profiles
        self.engine_images = engine_images
        self.all_settings = all_settings
        self.current = current
        self.digests = digests
        self.update = set(update)
        self.in_use = list(in_use)
        self.complete = complete
        self.allow_drop = allow_drop
        self.local_files = local_files
        self.signatures = signatures or LockSignatures({}, {}, all_settings)
        self.sign = set(sign)

    def run(self) -> Lock:
        """Ask every source, then judge what that leads to."""
        lock = Lock(faults=[*self._unknown_names(), *self._unnamed_images()])
        versions, images = self._wanted(), self._wanted_images()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(self._settle, [*versions, *images]))
        outcomes = dict(zip([*versions, *images], answers))
        for outcome in answers:
            lock.faults += outcome.faults
            lock.drift += [outcome.drift] if outcome.drift else []
            lock.unasked += [outcome.unasked] if outcome.unasked else []
            lock.shapeless += [outcome.shapeless] if outcome.shapeless else []
            lock.unsigned += [outcome.unsigned] if outcome.unsigned else []
        data = self._assemble(versions, images, outcomes, lock.faults)
        # Of these it is not known yet what they will be, so nothing is known to change either.
        postponed = {(w.model, w.version) for w in versions if outcomes[w].unread or outcomes[w].faults}
        lock.faults += dropped_faults(self.current, data, postponed, self.in_use, self.complete, self.allow_drop)
        lock.actions = [
            *describe(self.current, data, postponed),
            *(f"{w.title}: download {outcomes[w].unread} to learn its digests, and lock it" for w in versions if outcomes[w].unread),
        ]
        if not lock.faults:
            lock.text = render_lockfile(data)
        return lock

    # What is to be locked

    def _wanted(self) -> list[Wanted]:
        found = [
            Wanted(model["name"], version, entry["source"], tuple(self.profiles[model["engine"]]["formats"]))
            for model in self.models
            for version, entry in model["versions"].items()
        ]
        return sorted(found)

    def _engines(self) -> list[str]:
        return sorted({model["engine"] for model in self.models})

    def _image_of(self, engine: str) -> str | None:
        return self.engine_images.get(engine) or self.profiles[engine].get("image")

    def _wanted_images(self) -> list[WantedImage]:
        return [WantedImage(engine, image) for engine in self._engines() if (image := self._image_of(engine))]

    def _unnamed_images(self) -> Iterator[Fault]:
        for engine in self._engines():
            if not self._image_of(engine):
                advice = f'name it there, as in {engine}: "registry.example:5000/{engine}:1.0"'
                yield Fault(f"nothing says which image the engine '{engine}' has", f"llm_fleet_engine_images.{engine}", advice)

    def _unknown_names(self) -> Iterator[Fault]:
        models = {EVERYTHING, *(model["name"] for model in self.models)}
        for name in sorted(self.update - models - set(self._engines())):
            advice = suggestion(name, {*models, *self._engines()}, "models and engines")
            yield Fault(f"'{name}' is neither a model of the catalog nor the engine of one", "update", advice)
        for name in sorted(self.sign - models):
            yield Fault(f"'{name}' is no model of the catalog", "sign_model", suggestion(name, models, "models"))

    # Asking

    def _settle(self, wanted: Wanted | WantedImage) -> Outcome:
        """Whatever goes wrong with one source is told beside what goes wrong with the others."""
        try:
            return self._signed(wanted, self._version(wanted)) if isinstance(wanted, Wanted) else self._image(wanted)
        except ArtifactError as error:
            return Outcome(faults=[_at_source(error, wanted.where)])
        except OSError as error:
            return Outcome(faults=[_at_source(ArtifactError.from_os_error(error, wanted.where), wanted.where)])

    def _updates(self, name: str) -> bool:
        return not self.update.isdisjoint({name, EVERYTHING})

    def _version(self, wanted: Wanted) -> Outcome:
        if parse_source(wanted.asked).scheme == "file" and not self.local_files:
            fix = "lock on the controller (llm_fleet_lock_host: localhost), or put the files where the depot can fetch them"
            return Outcome(faults=[Fault("file:// is a path on the controller, and a depot is to lock it", wanted.where, fix)])
        old = (self.current.get("models") or {}).get(wanted.model, {}).get(wanted.version)
        if old is None or old.get("asked") != wanted.asked or old["format"] not in wanted.formats:
            return self._anew(wanted, open_source(wanted.asked, self.all_settings).resolve(), old)
        if is_pinned(parse_source(wanted.asked)):
            return self._shaped(wanted, Outcome(old))  # nothing can have moved, so nobody has to be asked
        try:
            resolution = open_source(wanted.asked, self.all_settings).resolve()
            if self._updates(wanted.model):
                return self._anew(wanted, resolution, old)
            return self._shaped(wanted, Outcome(old, self._version_drift(wanted, old, resolution)))
        except ArtifactError as error:
            if self._updates(wanted.model):
                raise
            # What is locked stays valid whether or not its source still answers.
            return Outcome(old, unasked=unasked(wanted, error))

    def _version_drift(self, wanted: Wanted, old: dict, resolution: Resolution) -> dict | None:
        resolution = replace(resolution, files=self._needed(wanted, resolution, old))
        changes = changed_files(old, resolution, lambda file, digest: self.digests.moved(resolution.source, file, digest))
        return {
            "title": wanted.title,
            "model": wanted.model,
            "version": wanted.version,
            "asked": wanted.asked,
            "locked": old["source"],
            "now": resolution.source,
            "changes": changes,
        } if changes else None

    def _anew(self, wanted: Wanted, resolution: Resolution, old: dict | None) -> Outcome:
        """The entry of a version as its source has it now."""
        listing, resolution = resolution, replace(resolution, files=self._needed(wanted, resolution, old))
        known = _known_digests(old, resolution)
        unread, files = [], []
        for file in resolution.files:
            file = known.get((file.path, file.size), file)
            try:
                files.append(self.digests.of(resolution.source, file))
            except Unread:
                unread.append(file)
        if unread:
            sizes = [file.size for file in unread]
            amount = human(sum(sizes)) if None not in sizes else f"{len(unread)} files of unknown size"
            return Outcome(old, unread=amount)
        form, entries = self._layout(wanted, resolution, files)
        if form not in wanted.formats:
            fix = f"choose another engine, or a source with: {', '.join(sorted(wanted.formats))}"
            return Outcome(faults=[Fault(f"the engine does not read what is there (format '{form}')", wanted.where, fix)])
        entries = sorted(entries, key=lambda entry: entry["path"])
        entry = {
            "asked": wanted.asked,
            "source": resolution.source,
            "format": form,
            **({"licence": resolution.licence} if resolution.licence else {}),
            "size": sum(entry["size"] for entry in entries),
            "digest": version_digest(entries),
            "files": entries,
        }
        if old is not None and old["digest"] == entry["digest"]:
            # What is known of the same bytes stays known.
            entry.update({key: old[key] for key in ("shape", "signature") if key in old})
        return self._shaped(wanted, Outcome(entry, listing=listing))

    def _signed(self, wanted: Wanted, outcome: Outcome) -> Outcome:
        """The same, with the signature that the catalog demands of the version."""
        if outcome.entry is None or outcome.faults or outcome.unread:
            return outcome
        signs = not self.sign.isdisjoint({wanted.model, EVERYTHING})
        try:
            entry, unsigned = self.signatures.signed(wanted.model, wanted.version, outcome.entry, outcome.listing, signs)
        except SignatureError as error:
            return replace(outcome, faults=[error.fault(where_of(wanted.model, wanted.version))])
        return replace(outcome, entry=entry, unsigned={"model": wanted.model, "version": wanted.version} if unsigned else None)

    def _shaped(self, wanted: Wanted, outcome: Outcome) -> Outcome:
        """The same, with the shape of the version where its files say it. A lockfile of an earlier release gets it by and by."""
        entry = outcome.entry
        if entry.get("shape"):
            return outcome
        shape, why = shape_of_version(entry, self.digests, self.all_settings)
        if shape is None:
            return replace(outcome, shapeless={"title": wanted.title, "why": why})
        return replace(outcome, entry={**entry, "shape": shape})

    def _needed(self, wanted: Wanted, resolution: Resolution, old: dict | None) -> tuple[RemoteFile, ...]:
        """The files that the engine gets: nothing but weights has a place in an Ollama store, and a signature is none of them."""
        if _becomes_ollama(wanted, resolution):
            return tuple(file for file in resolution.files if ollama_store.is_made_of(file.path))
        demand = self.signatures.demand(wanted.model, wanted.version)
        if demand is None:
            return resolution.files
        # A version that was locked with its signature among the files keeps it there.
        has = {file["path"] for file in old["files"]} if old else set()
        return tuple(file for file in resolution.files if file.path in has or not demand.leaves_out(file.path))

    @staticmethod
    def _layout(wanted: Wanted, resolution: Resolution, files: list[RemoteFile]) -> tuple[str, list[dict]]:
        """The files as the engine wants to find them, and their format then."""
        if resolution.format == OLLAMA:
            manifest = next(file.content for file in files if file.content is not None)
            return OLLAMA, ollama_store.from_manifest(wanted.model, manifest)
        entries = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]
        if _becomes_ollama(wanted, resolution):
            return OLLAMA, ollama_store.from_gguf(wanted.model, entries)
        return resolution.format or "files", entries

    def _image(self, wanted: WantedImage) -> Outcome:
        old = (self.current.get("images") or {}).get(wanted.engine)
        same = old is not None and old.get("asked") == wanted.asked
        image = parse_image(wanted.asked)
        settings = settings_for(self.all_settings, image.text)
        if is_pinned(image):
            return self._pinned_image(wanted, image, settings, old)
        try:
            repository, digest = image_digest(wanted.asked, settings)
        except ArtifactError as error:
            if not same or self._updates(wanted.engine):
                raise
            return Outcome(old, unasked=unasked(wanted, error))
        entry = {"image": repository, "digest": digest, "asked": wanted.asked}
        if not same or self._updates(wanted.engine):
            return Outcome(_with_ids(entry, settings))
        if (old["image"], old["digest"]) == (repository, digest):
            return Outcome(old)
        drift = {"title": wanted.title, "engine": wanted.engine, "asked": wanted.asked, "locked": old["digest"], "now": digest}
        return Outcome(old, {**drift, "changes": "the tag points to another image"})

    def _pinned_image(self, wanted: WantedImage, image: SourceUrl, settings: Settings, old: dict | None) -> Outcome:
        """An image named by its digest. Its registry is asked when somebody wants that: everything else is known without it."""
        entry = {"image": f"{image.host}/{image.path}", "digest": image.revision, "asked": wanted.asked}
        if old is not None and {**old, **entry} == old:
            entry = old
        if not self._updates(wanted.engine):
            return Outcome(entry)
        try:
            return Outcome(_with_ids(entry, settings))
        except ArtifactError as error:
            return Outcome(entry, unasked=unasked(wanted, error))

    # Putting it together

    def _assemble(self, versions: list[Wanted], images: list[WantedImage], outcomes: dict, faults: list[Fault]) -> dict:
        locked: dict[str, dict] = {}
        for wanted in versions:
            if outcomes[wanted].entry is not None:
                locked.setdefault(wanted.model, {})[wanted.version] = outcomes[wanted].entry
        data = {
            "lockfile": FORMAT,
            "tool": TOOL,
            "images": {wanted.engine: outcomes[wanted].entry for wanted in images if outcomes[wanted].entry},
            "models": locked,
        }
        selected = self._selected(faults)
        if selected:
            data["selected"] = selected
        before = {key: value for key, value in self.current.items() if key != "end"}
        if {**data, "tool": before.get("tool")} == before:
            data["tool"] = before["tool"]  # whoever locks again has locked nothing
        return data

    def _selected(self, faults: list[Fault]) -> dict[str, dict]:
        """The version that each constraint means among those of the catalog."""
        selected = {}
        for model in self.models:
            constraint = model["version"]
            if semver.is_version(constraint):
                continue
            version = semver.select(constraint, list(model["versions"]))
            if version is None:
                where = f"llm_fleet_models[{model['name']}].version"
                known = ", ".join(sorted(model["versions"])) or "none"
                faults.append(Fault(f"no version fits '{constraint}'", where, f"add one to versions, which has: {known}"))
            else:
                selected[model["name"]] = {"asked": constraint, "version": version}
        return selected


def _with_ids(entry: dict, settings: Settings) -> dict:
    """The entry of an image with what Docker calls it, by which one out of an archive is known again."""
    ids = image_ids(entry["asked"], entry["digest"], settings)
    return {**entry, "ids": ids} if ids else entry


def _becomes_ollama(wanted: Wanted, resolution: Resolution) -> bool:
    """Whether the engine reads no GGUF files, but a store that can be written around them."""
    return resolution.format == "gguf" and "gguf" not in wanted.formats and OLLAMA in wanted.formats


def _known_digests(old: dict | None, resolution: Resolution) -> dict[tuple, RemoteFile]:
    """Files of the same pinned source that were read for the last lock."""
    if old is None or old["source"] != resolution.source or not is_pinned(parse_source(resolution.source)):
        return {}
    return {
        (origin, file["size"]): RemoteFile(origin, file["size"], file["sha256"])
        for file in old["files"]
        if "content" not in file and (origin := file.get("from", file["path"]))
    }


def _at_source(error: ArtifactError, where: str) -> Fault:
    """The same fault at the place in the catalog that leads to it."""
    return Fault(f"{error.fault.what} ({error.fault.where})", where, error.fault.fix)
