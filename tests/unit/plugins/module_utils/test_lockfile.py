# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import check_locked, parse_lockfile

NAME = "models.lock.yml"
DIGEST = "ab" * 32
LOCK = {
    "lockfile": 1,
    "images": {"llamacpp": {"image": "registry.example:5000/llamacpp", "digest": f"sha256:{DIGEST}"}},
    "models": {
        "tiny": {
            "1.0.0": {
                "source": "https://models.example/tiny",
                "format": "gguf",
                "size": 12,
                "files": [
                    {"path": "tiny.gguf", "size": 10, "sha256": DIGEST},
                    {"path": "extra/card.md", "size": 2, "sha256": "cd" * 32},
                ],
            },
        },
    },
}
PROFILES = {"llamacpp": {"formats": ["gguf"]}, "vllm": {"formats": ["safetensors"]}}
TINY = {"name": "tiny", "version": "1.0.0", "engine": "llamacpp"}


def changed(*path, to=None):
    """The lockfile with one value changed, or taken out where `to` is None."""
    lock = copy.deepcopy(LOCK)
    part = lock
    for key in path[:-1]:
        part = part[key]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return lock


def parse(lock):
    return parse_lockfile(yaml.safe_dump(lock), NAME)


def test_a_sound_lockfile_comes_back_as_it_is():
    assert parse(LOCK) == (LOCK, [])


FILE = ("models", "tiny", "1.0.0", "files", 0)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("lockfile",), 2, "lockfile"),
        (("lockfile",), "1", "lockfile"),
        (("lockfile",), None, ""),
        (("images",), None, ""),
        (("models",), None, ""),
        (("modles",), {}, ""),
        (("images", "llamacpp", "digest"), DIGEST, "images.llamacpp.digest"),
        (("images", "llamacpp", "digest"), f"sha256:{DIGEST[1:]}", "images.llamacpp.digest"),
        (("images", "llamacpp", "image"), "llamacpp:latest", "images.llamacpp.image"),
        (("images", "llamacpp", "tag"), "latest", "images.llamacpp"),
        (("models", "tiny"), [], "models.tiny"),
        (("models", "tiny", "1.0"), LOCK["models"]["tiny"]["1.0.0"], "models.tiny.1.0"),
        (("models", "tiny", "1.0.0", "source"), "ftp://x/y", "models.tiny.1.0.0.source"),
        (("models", "tiny", "1.0.0", "format"), None, "models.tiny.1.0.0"),
        (("models", "tiny", "1.0.0", "size"), 13, "models.tiny.1.0.0.size"),
        (("models", "tiny", "1.0.0", "files"), [], "models.tiny.1.0.0.files"),
        ((*FILE, "size"), -10, "models.tiny.1.0.0.files[0].size"),
        ((*FILE, "size"), "10", "models.tiny.1.0.0.files[0].size"),
        ((*FILE, "sha256"), DIGEST.upper(), "models.tiny.1.0.0.files[0].sha256"),
        ((*FILE, "sha256"), DIGEST + "0", "models.tiny.1.0.0.files[0].sha256"),
        ((*FILE, "sha265"), DIGEST, "models.tiny.1.0.0.files[0]"),
        ((*FILE, "path"), "extra/card.md", "models.tiny.1.0.0.files"),
        ((*FILE, "path"), "extra", "models.tiny.1.0.0.files"),
        ((*FILE, "sha256"), "cd" * 32, "models.tiny.1.0.0.files"),
    ],
)
def test_one_slip_is_one_fault_in_its_place(path, value, where):
    _lock, faults = parse(changed(*path, to=value))
    assert [fault.where for fault in faults] == [f"{NAME}: {where}" if where else NAME]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../x", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "", "a\\b", "a\nb", "x" * 256],
)
def test_no_path_leaves_the_directory_of_the_model(path):
    faults = parse(changed(*FILE, "path", to=path))[1]
    assert [fault.where for fault in faults] == [f"{NAME}: models.tiny.1.0.0.files[0].path"]


@pytest.mark.parametrize("path", ["..a", "a..b", "...", ".hidden", "a b.gguf", "ü/x.bin"])
def test_unusual_paths_are_paths(path):
    assert parse(changed(*FILE, "path", to=path))[1] == []


def test_keys_written_twice_are_faults_with_their_line():
    text = "lockfile: 1\nimages: {}\nmodels:\n  tiny: {}\n  tiny: {}\n"
    assert [fault.where for fault in parse_lockfile(text, NAME)[1]] == [f"{NAME}: line 5"]


def test_broken_yaml_is_a_fault_with_its_line():
    assert [fault.where for fault in parse_lockfile("lockfile: 1\nimages: {]\n", NAME)[1]] == [f"{NAME}: line 2"]


@pytest.mark.parametrize("text", ["", "[]", "lockfile", "---\n", None])
def test_what_is_no_lockfile_at_all_is_a_fault(text):
    lock, faults = parse_lockfile(text, NAME)
    assert lock == {}
    assert len(faults) == 1


def test_a_locked_model_has_no_fault():
    assert check_locked([TINY], LOCK, NAME, PROFILES) == []


@pytest.mark.parametrize(
    ("changes", "what", "where"),
    [
        ({"name": "big"}, "'big' is not locked", "models"),
        ({"version": "1.1.0"}, "version 1.1.0 is not locked", "models.tiny"),
    ],
)
def test_what_the_catalog_wants_must_be_locked(changes, what, where):
    faults = check_locked([{**TINY, **changes}], LOCK, NAME, PROFILES)
    assert [fault.where for fault in faults] == [f"{NAME}: {where}"]
    assert what in faults[0].what


def test_a_locked_version_is_proposed():
    assert "1.0.0" in check_locked([{**TINY, "version": "1.1.0"}], LOCK, NAME, PROFILES)[0].fix


def test_a_format_that_the_engine_does_not_read_is_a_fault_and_so_is_an_engine_without_image():
    faults = check_locked([{**TINY, "engine": "vllm"}], LOCK, NAME, PROFILES)
    assert [fault.where for fault in faults] == [f"{NAME}: models.tiny.1.0.0.format", f"{NAME}: images"]


def test_a_missing_image_is_one_fault_however_many_models_need_it():
    models = [TINY, {**TINY, "name": "big"}]
    faults = check_locked(models, {**LOCK, "images": {}}, NAME, PROFILES)
    assert [fault.where for fault in faults if "image" in fault.what] == [f"{NAME}: images"]


def test_what_the_catalog_got_wrong_is_not_blamed_on_the_lockfile():
    assert check_locked([{**TINY, "version": None, "engine": None}], LOCK, NAME, PROFILES) == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = [("models",), ("images",), FILE[:2], FILE[:3], FILE[:4], FILE, (*FILE, "path"), (*FILE, "size")]


@given(st.sampled_from(PATHS), ANYTHING)
def test_anything_that_yaml_can_hold_is_either_read_as_it_is_or_a_fault(path, value):
    written = changed(*path, to=value)
    lock, faults = parse(written)
    assert faults or lock == written
    check_locked([TINY], lock, NAME, PROFILES)
