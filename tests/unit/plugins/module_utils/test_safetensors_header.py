# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Headers of safetensors files."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.header_bytes import BytesReader, HeaderError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.safetensors_header import read_safetensors
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gguf_builder import safetensors


def read(data: bytes) -> dict[str, int]:
    return read_safetensors(BytesReader(data))


def test_bytes_are_counted_by_number_format():
    assert read(safetensors({"a": ("BF16", 100), "b": ("F32", 8), "c": ("BF16", 20)})) == {"BF16": 120, "F32": 8}


def framed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 100) + b"{}",
        framed(b"[]"),
        framed(b"nonsense"),
        framed(b"\xff\xfe"),
        framed(b"[" * 100_000),
        framed(b'{"a": 1}'),
        framed(b'{"a": {"dtype": "F32"}}'),
        framed(b'{"a": {"dtype": "F32", "data_offsets": [4, 0]}}'),
        framed(b'{"a": {"dtype": "F32", "data_offsets": [true, 4]}}'),
    ],
)
def test_what_is_no_header_is_said_in_words(data):
    with pytest.raises(HeaderError) as caught:
        read(data)
    assert str(caught.value)


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: framed(text.encode())))
def test_whatever_the_bytes_are_there_is_a_header_or_an_error(data):
    try:
        read(data)
    except HeaderError as error:
        assert str(error)
