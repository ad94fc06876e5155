# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What a version may be without: what its source passes over, and nothing that it would have taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_choice import engines_read, matches, passed_over
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import parse_source

HUB = "hf://org/tiny@main"
NAMES = st.lists(
    st.sampled_from([
        "model.safetensors", "model.gguf", "model.bin", "sub/model.safetensors", "README.md", "config.json", ".gitattributes",
        ".cache/model.safetensors", "chat_template.jinja", "logo.PNG",
    ]),
    min_size=1, unique=True,
)


@pytest.mark.parametrize(
    ("source", "taken", "may_lack", "has_to_have"),
    [
        (f"{HUB}?files=*Q4*.gguf,config.json", ["a-Q4.gguf", "config.json"], ["a-Q8.gguf", "README.md"], ["b-Q4.gguf", "x/b-Q4.gguf"]),
        (HUB, ["m.safetensors"], ["README.md", "m.bin", "m.gguf", ".git/x", "a/.b/c"], ["n.safetensors", "config.json", "x.jinja"]),
        (HUB, ["m.gguf"], ["README.md", ".gitattributes"], ["m.bin", "mmproj.gguf", "m.safetensors", "config.json"]),
        ("https://files.example/tiny/", ["m.gguf"], ["SHA256SUMS", ".x"], ["README.md", "m.bin", "config.json", "a/SHA256SUMS"]),
        ("https://files.example", ["m.gguf"], [".x"], ["config.json"]),
        ("https://files.example/tiny/m%20a.gguf", ["m a.gguf"], ["config.json", "n.gguf", "README.md"], []),
        ("https://files.example/tiny/m.gguf", ["n.gguf"], [], ["m.gguf", "config.json"]),
        ("file:///srv/tiny/m.gguf", ["m.gguf"], ["config.json", "n.gguf"], []),
        ("file:///srv/tiny/m.gguf", ["n.gguf"], [".x"], ["m.gguf", "config.json"]),
        ("file:///srv/tiny", ["m.gguf"], [".x", "a/.x"], ["SHA256SUMS", "README.md", "config.json"]),
        ("s3://models/tiny/m.gguf", ["m.gguf"], ["config.json"], []),
        ("s3://models/tiny", ["m.gguf"], [], [".x", "README.md", "config.json"]),
        ("s3://models/tiny?files=*.gguf", ["m.gguf"], ["config.json"], ["mmproj.gguf"]),
        ("oci://registry.example/tiny:1", ["m.gguf"], [], [".x", "README.md", "config.json"]),
        ("mlflow://tiny/1", ["m.gguf"], [], [".x", "README.md", "config.json"]),
        ("ollama://tiny:1b", ["blobs/x"], [], [".x", "README.md", "blobs/y"]),
    ],
)
def test_what_a_source_passes_over(source, taken, may_lack, has_to_have):
    url = parse_source(source)
    assert [name for name in may_lack + has_to_have if passed_over(url, name, taken)] == may_lack


@settings(deadline=None)
@given(NAMES)
def test_what_is_not_taken_is_what_was_passed_over_and_what_is_taken_cannot_be_left_out(names):
    taken = engines_read(names)
    for name in names:
        others = [each for each in taken if each != name]
        assert passed_over(parse_source(HUB), name, others) is (name not in taken)


@given(st.text("ab/*?.", min_size=1, max_size=4), st.text("ab/.", min_size=1, max_size=4))
def test_a_pattern_takes_or_passes_over(pattern, name):
    try:
        url = parse_source(f"s3://models/tiny?files={pattern.replace('?', '%3F')}")
    except ValueError:
        return
    assert passed_over(url, name, ["x"]) is not matches(name, [pattern])
