# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Headers of GGUF files: real ones, and such as somebody wrote who means harm."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gguf_header import MAGIC, read_gguf
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import (
    LARGEST,
    PIECE,
    BytesReader,
    FileReader,
    HeaderError,
)
from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gguf_builder import gguf, model, text, value


def read(data: bytes):
    return read_gguf(BytesReader(data))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file that engines load."""
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    maker = [sys.executable, str(REPO / "testbed" / "make_tiny_gguf.py"), str(path)]
    subprocess.run(maker, check=True)
    return path


def test_a_file_that_engines_load_is_read_like_the_library_reads_it(tiny):
    import gguf as library

    found, known = read_gguf(FileReader(tiny)), library.GGUFReader(tiny)
    assert found.values["general.architecture"] == "llama"
    assert found.shapes == {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in known.tensors}
    assert found.data_start == known.data_offset
    assert tiny.stat().st_size - found.data_start >= sum(int(tensor.n_bytes) for tensor in known.tensors)
    assert found.lengths["tokenizer.ggml.tokens"] == len(known.fields["tokenizer.ggml.tokens"].data)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(version):
    found = read(gguf(model(), {"output.weight": (256, 1000)}, version))
    assert found.values["llama.block_count"] == 4 and found.shapes == {"output.weight": (256, 1000)}


def test_arrays_of_text_are_gone_through_and_not_kept():
    found = read(gguf({"words": ["x" * 100] * 5000, "after": 7, "layers": [1, 2, 3]}))
    assert found.values == {"after": 7, "layers": [1, 2, 3]} and found.lengths == {"words": 5000, "layers": 3}


def test_a_long_text_is_passed():
    assert read(gguf({"template": "x" * 10**6, "after": 1})).values == {"after": 1}


def test_a_header_in_many_pieces_is_one_header():
    class Crumbs(BytesReader):
        asked: list

        def read(self, offset: int, length: int) -> bytes:
            self.asked.append(length)
            return super().read(offset, length)

    reader = Crumbs(gguf({"words": ["word" * 10] * 100_000, "after": 1}))
    reader.asked = []
    assert read_gguf(reader).values == {"after": 1}
    assert len(reader.asked) < 10 and max(reader.asked) <= PIECE


def head(tensors: int = 0, keys: int = 1) -> bytes:
    return MAGIC + struct.pack("<IQQ", 3, tensors, keys)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGU",
        b"PK\x03\x04" + bytes(100),
        MAGIC + struct.pack("<IQQ", 1, 0, 0),
        struct.pack(">4sIQQ", MAGIC, 3, 0, 0),  # the other byte order
        head(2**63),
        head(0, 2**63),
        head(1000, 0),
        head() + struct.pack("<Q", 2**63),
        head() + text("key") + struct.pack("<I", 99),
        head() + text("key") + struct.pack("<IQ", 8, 2**63),
        head() + text("key") + struct.pack("<IIQ", 9, 8, 2**40),
        head() + text("key") + struct.pack("<IIQ", 9, 10, 2**61),
        head() + text("key") + struct.pack("<IIQ", 9, 9, 2),
        head(1, 0) + text("name") + struct.pack("<I", 2**31),
        gguf({"general.alignment": 0}),
        gguf({"general.alignment": "x"}),
    ],
)
def test_what_is_no_header_is_said_in_words_and_without_memory(data):
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError) as caught:
            read(data)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value) and peak < 16 * 2**20


def test_a_header_without_an_end_ends():
    """Millions of texts, each of a megabyte, from a server that never stops to send."""
    start = head() + text("words") + struct.pack("<IIQ", 9, 8, 3_000_000)

    class Endless:
        asked = 0

        def read(self, offset: int, length: int) -> bytes:
            self.asked += length
            return (start if offset == 0 else b"").ljust(length, b"\x10")[:length]

    reader = Endless()
    with pytest.raises(HeaderError):
        read_gguf(reader)
    assert reader.asked <= LARGEST + PIECE


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_are_there_is_a_header_or_an_error(data):
    sound = gguf(model(), {"output.weight": (256, 1000)})
    kind = data.draw(st.sampled_from(("noise", "cut", "bent")))
    if kind == "noise":
        broken = MAGIC + struct.pack("<I", 3) + data.draw(st.binary(max_size=400))
    elif kind == "cut":
        broken = sound[: data.draw(st.integers(0, len(sound) - 1))]
    else:
        place = data.draw(st.integers(0, len(sound) - 8))
        broken = sound[:place] + data.draw(st.binary(min_size=1, max_size=8)) + sound[place + 8 :]
    try:
        read(broken)
    except HeaderError as error:
        assert str(error)


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.integers(0, 2**64 - 1) | st.booleans() | st.text(max_size=50), max_size=20))
def test_what_is_written_is_read(values):
    kept = {key: item for key, item in values.items() if key != "general.alignment"}
    assert read(gguf(kept)).values == kept
    assert value(1) != value(True)
