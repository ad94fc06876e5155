# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import hashlib
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile import check_locked, exact_versions, parse_lockfile
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.lockfile_text import render_lockfile, version_digest

NAME = "models.lock.yml"
DIGEST = "ab" * 32
MANIFEST = '{"schemaVersion": 2,\n "layers": ["ä"]}\n'
FILES = [
    {"path": "extra/card.md", "size": 2, "sha256": "cd" * 32, "from": "README.md"},
    {"path": "manifest", "size": len(MANIFEST.encode()), "sha256": hashlib.sha256(MANIFEST.encode()).hexdigest(), "content": MANIFEST},
    {"path": "tiny.gguf", "size": 10, "sha256": DIGEST},
]


def entry(files=FILES, **other):
    return {
        "source": "https://models.example/tiny",
        "format": "gguf",
        "size": sum(file["size"] for file in files),
        "digest": version_digest(files),
        "files": files,
        **other,
    }


BUNDLE = '{"mediaType": "…",\n "dsseEnvelope": {}}'
SIGNATURE = {
    "signer": f"sha256:{DIGEST}",
    "identity": "models@example.com",
    "sha256": hashlib.sha256(BUNDLE.encode()).hexdigest(),
    "left_out": ["README.md", "old/tiny.gguf"],
    "content": BUNDLE,
}
ASKED = {"asked": "oci://registry.example/tiny:1.0.0", "source": f"oci://registry.example/tiny@sha256:{DIGEST}"}
LOCK = {
    "lockfile": 1,
    "tool": "localfirst.llm_fleet 0.1.0",
    "images": {
        "llamacpp": {
            "image": "registry.example:5000/llamacpp",
            "digest": f"sha256:{DIGEST}",
            "asked": "registry.example:5000/llamacpp:latest",
        }
    },
    "selected": {"tiny": {"asked": "~1.2", "version": "1.2.3"}},
    "models": {"tiny": {"1.0.0": entry(**ASKED, licence="apache-2.0"), "1.2.3": entry(FILES[:1], signature=SIGNATURE)}},
}
FILE = ("models", "tiny", "1.0.0", "files", 0)
SIGNED = ("models", "tiny", "1.2.3", "signature")
PROFILES = {"llamacpp": {"formats": ["gguf"]}, "vllm": {"formats": ["safetensors"]}}
TINY = {"name": "tiny", "version": "1.0.0", "engine": "llamacpp"}
WHOLE = render_lockfile(LOCK)


def changed(*path, to=None):
    """The lockfile with one value changed, or taken out where `to` is None."""
    lock = json.loads(json.dumps({**LOCK, "end": True}))
    part = lock
    for key in path[:-1]:
        part = part[key]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return lock


def written(lock):
    """As another program would write it: in blocks, each key on a line of its own."""

    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    return yaml.dump(lock, Dumper=NoAliases, sort_keys=False, width=10**6)


def parse(lock):
    return parse_lockfile(written(lock), NAME)


def test_a_sound_lockfile_comes_back_as_it_is():
    assert parse({**LOCK, "end": True}) == (LOCK, [])
    assert parse_lockfile(WHOLE, NAME) == (LOCK, [])


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("lockfile",), 2, "lockfile"),
        ((*SIGNED, "content"), "{}", "models.tiny.1.2.3.signature.content"),
        ((*SIGNED, "content"), " " * 300_000, "models.tiny.1.2.3.signature.content"),
        ((*SIGNED, "sha256"), "ab", "models.tiny.1.2.3.signature.sha256"),
        ((*SIGNED, "signer"), DIGEST, "models.tiny.1.2.3.signature.signer"),
        ((*SIGNED, "left_out"), ["../x"], "models.tiny.1.2.3.signature.left_out[0]"),
        ((*SIGNED, "more"), 1, "models.tiny.1.2.3.signature"),
        (("lockfile",), "1", "lockfile"),
        (("lockfile",), None, ""),
        (("images",), None, ""),
        (("models",), {}, "selected.tiny.version"),
        (("modles",), {}, ""),
        (("tool",), 1, "tool"),
        (("end",), "true", "end"),
        (("images", "llamacpp", "digest"), DIGEST, "images.llamacpp.digest"),
        (("images", "llamacpp", "digest"), f"sha256:{DIGEST[1:]}", "images.llamacpp.digest"),
        (("images", "llamacpp", "image"), "llamacpp:latest", "images.llamacpp.image"),
        (("images", "llamacpp", "tag"), "latest", "images.llamacpp"),
        (("selected", "tiny", "asked"), "1.x", "selected.tiny.asked"),
        (("selected", "tiny", "asked"), "^2", "selected.tiny.version"),
        (("selected", "tiny", "version"), "1.2.4", "selected.tiny.version"),
        (("models", "tiny", "1.0"), LOCK["models"]["tiny"]["1.0.0"], "models.tiny.1.0"),
        (("models", "tiny", "1.0.0", "source"), "ftp://x/y", "models.tiny.1.0.0.source"),
        (("models", "tiny", "1.0.0", "source"), "hf://org/name@main", "models.tiny.1.0.0.source"),
        (("models", "tiny", "1.0.0", "asked"), "tiny", "models.tiny.1.0.0.asked"),
        (("models", "tiny", "1.0.0", "format"), None, "models.tiny.1.0.0"),
        (("models", "tiny", "1.0.0", "licence"), "", "models.tiny.1.0.0.licence"),
        (("models", "tiny", "1.0.0", "size"), 13, "models.tiny.1.0.0.size"),
        (("models", "tiny", "1.0.0", "digest"), f"sha256:{DIGEST}", "models.tiny.1.0.0.digest"),
        (("models", "tiny", "1.0.0", "files"), [], "models.tiny.1.0.0.files"),
        (("models", "tiny", "1.0.0", "files", 1), "b", "models.tiny.1.0.0.files[1]"),
        ((*FILE, "size"), -10, "models.tiny.1.0.0.files[0].size"),
        ((*FILE, "size"), "10", "models.tiny.1.0.0.files[0].size"),
        ((*FILE, "sha256"), DIGEST.upper(), "models.tiny.1.0.0.files[0].sha256"),
        ((*FILE, "sha256"), DIGEST + "0", "models.tiny.1.0.0.files[0].sha256"),
        ((*FILE, "sha256"), "0" * 64, "models.tiny.1.0.0.digest"),
        ((*FILE, "sha265"), DIGEST, "models.tiny.1.0.0.files[0]"),
        ((*FILE, "path"), "tiny.gguf", "models.tiny.1.0.0.files"),
        ((*FILE, "path"), "tiny.gguf/x", "models.tiny.1.0.0.files"),
        ((*FILE, "path"), "other", "models.tiny.1.0.0.digest"),
        ((*FILE, "sha256"), DIGEST, "models.tiny.1.0.0.files"),
        ((*FILE, "from"), "../x", "models.tiny.1.0.0.files[0].from"),
        (("models", "tiny", "1.0.0", "files", 2, "from"), "README.md", "models.tiny.1.0.0.files"),
        ((*FILE, "content"), "no", "models.tiny.1.0.0.files[0].content"),
        ((*FILE, "content"), "x" * 65537, "models.tiny.1.0.0.files[0].content"),
    ],
)
def test_one_slip_is_one_fault_in_its_place_and_line(path, value, where):
    text = written(changed(*path, to=value))
    _lock, [fault] = parse_lockfile(text, NAME)
    number, _colon, place = fault.where.removeprefix(f"{NAME}: line ").partition(": ")
    assert place == where
    line = text.splitlines()[int(number) - 1]
    if "unknown key" in fault.what:
        assert f"{path[-1]}: " in line
    elif "is missing" in fault.what:
        assert text.splitlines().index(line) == (text.splitlines().index("    1.0.0:") if where else 0)
    elif where.endswith("]"):
        assert line.lstrip().startswith("- ")
    else:
        key = where.removeprefix("models.tiny.") if path[-1] == "1.0" else where.rpartition(".")[2]
        assert line.replace("'", "").lstrip(" -").startswith(f"{key}:")
        if where.startswith("models.tiny.1.0.0"):
            assert text.index("1.0.0:") < text.index(line) < text.index("    1.2.3:")


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../x", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "", "a\\b", "a\nb", "x" * 256],
)
def test_no_path_leaves_the_directory_of_the_model(path):
    faults = parse(changed(*FILE, "path", to=path))[1]
    assert [fault.where.partition("line ")[2].partition(": ")[2] for fault in faults] == ["models.tiny.1.0.0.files[0].path"]


@pytest.mark.parametrize("path", ["..a", "a..b", "...", ".hidden", "a b.gguf", "ü/x.bin"])
def test_unusual_paths_are_paths(path):
    files = [{**FILES[0], "path": path}, *FILES[1:]]
    assert parse(changed("models", "tiny", "1.0.0", to=entry(files)))[1] == []


def test_keys_written_twice_are_faults_with_their_line():
    text = "lockfile: 1\nimages: {}\nmodels:\n  tiny: {}\n  tiny: {}\nend: true\n"
    assert [fault.where for fault in parse_lockfile(text, NAME)[1]] == [f"{NAME}: line 5"]


def test_broken_yaml_is_a_fault_with_its_line():
    assert [fault.where for fault in parse_lockfile("lockfile: 1\nimages: {]\n", NAME)[1]] == [f"{NAME}: line 2"]


def test_a_conflict_that_git_left_is_named():
    text = WHOLE.replace("models:\n", "<<<<<<< HEAD\nmodels:\n")
    [fault] = parse_lockfile(text, NAME)[1]
    assert "conflict" in fault.what
    assert fault.where == f"{NAME}: line {text.splitlines().index('<<<<<<< HEAD') + 1}"


@pytest.mark.parametrize("text", ["", "[]", "lockfile", "---\n", None])
def test_what_is_no_lockfile_at_all_is_a_fault(text):
    lock, faults = parse_lockfile(text, NAME)
    assert lock == {}
    assert len(faults) == 1


def test_a_file_that_is_cut_off_is_refused_wherever_that_was():
    for end in range(len(WHOLE)):
        lock, faults = parse_lockfile(WHOLE[:end], NAME)
        if end < len(WHOLE.rstrip()):
            assert faults and lock == {}, WHOLE[:end][-40:]
            if end > WHOLE.index("tool:"):
                last = len(WHOLE[:end].splitlines())
                assert [fault.where.partition(": ")[2] for fault in faults] in ([f"line {last}"], [f"line {last}: end"])
                assert "cut off" in faults[0].what
        else:
            assert (lock, faults) == (LOCK, [])


@given(st.data())
def test_whatever_digit_or_letter_is_changed_in_what_files_are_is_found(data):
    """Each line of a file and of a total, any character of a path, a size or a digest."""
    lines = WHOLE.splitlines()
    at = data.draw(st.sampled_from([n for n, line in enumerate(lines) if " {path:" in line or "  size:" in line or "  digest:" in line]))
    line = lines[at].partition(', from:')[0].partition(', content:')[0]
    start = line.index("path:") + 6 if "path:" in line else line.index(":") + 2
    spot = data.draw(st.integers(start, len(line) - 1))
    other = data.draw(st.sampled_from([c for c in "0123456789abcdef/.x" if c != lines[at][spot]]))
    lines[at] = lines[at][:spot] + other + lines[at][spot + 1 :]
    _lock, faults = parse_lockfile("\n".join(lines), NAME)
    assert faults
    version = "1.0.0" if at < lines.index("    1.2.3:") else "1.2.3"
    first = lines.index(f"    {version}:") + 1
    numbers = [int(fault.where.split("line ")[1].split(":")[0]) for fault in faults]
    assert all(first <= number <= first + 12 for number in numbers)


def test_a_locked_model_has_no_fault():
    assert check_locked([TINY], LOCK, NAME, PROFILES) == []


@pytest.mark.parametrize(
    ("changes", "what", "where"),
    [
        ({"name": "big"}, "'big' is not locked", "models"),
        ({"version": "1.1.0"}, "version 1.1.0 is not locked", "models.tiny"),
        ({"version": ">=1.3"}, "no longer", "selected.tiny"),
        ({"version": "~1.2", "versions": {"1.2.4": {}}}, "no longer", "selected.tiny"),
        ({"versions": {"1.0.0": {"source": "oci://registry.example/tiny:1"}}}, "another source", "models.tiny.1.0.0.asked"),
    ],
)
def test_what_the_catalog_wants_must_be_locked(changes, what, where):
    faults = check_locked([{**TINY, **changes}], LOCK, NAME, PROFILES)
    assert [fault.where for fault in faults] == [f"{NAME}: {where}"]
    assert what in faults[0].what


def test_a_constraint_that_nothing_was_selected_for_is_a_fault():
    faults = check_locked([{**TINY, "version": "latest"}], {**LOCK, "selected": {}}, NAME, PROFILES)
    assert [fault.where for fault in faults] == [f"{NAME}: selected"]


def test_a_version_is_locked_from_where_the_catalog_says():
    sources = {"1.0.0": {"source": ASKED["asked"]}, "1.2.3": {"source": "https://models.example/never-asked"}}
    assert check_locked([{**TINY, "versions": sources}], LOCK, NAME, PROFILES) == []


@pytest.mark.parametrize(("wanted", "exact"), [("~1.2", "1.2.3"), ("^1", "1.2.3"), ("1.0.0", "1.0.0"), ("1.2.3", "1.2.3")])
def test_what_was_selected_takes_the_place_of_a_constraint(wanted, exact):
    model = {**TINY, "version": wanted}
    assert check_locked([model], LOCK, NAME, PROFILES) == []
    assert exact_versions([model], LOCK) == [{**TINY, "version": exact}]
    assert model["version"] == wanted


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
PATHS = [("models",), ("images",), ("selected",), ("selected", "tiny"), FILE[:2], FILE[:3], FILE[:4], FILE]
PATHS += [(*FILE, "path"), (*FILE, "size"), (*FILE, "content"), ("end",)]


@given(st.sampled_from(PATHS), ANYTHING)
def test_anything_that_yaml_can_hold_is_either_read_as_it_is_or_a_fault_with_its_line(path, value):
    there = {**changed(*path), path[-1]: value} if len(path) == 1 else changed(*path, to=value if value is not None else "~")
    lock, faults = parse(there)
    assert faults or {**lock, "end": True} == {key: part for key, part in there.items() if part is not None}
    assert all(": line " in fault.where for fault in faults)
    check_locked([TINY, {**TINY, "version": "~1.2"}], lock, NAME, PROFILES)
    exact_versions([{**TINY, "version": "~1.2"}], lock)
