# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Files and directories of the controller."""

from __future__ import annotations

import os
import socket

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source


@pytest.fixture
def model(tmp_path):
    """A directory with a model in it."""
    folder = tmp_path / "a model"
    for name, body in {"config.json": b"{}", "w-1.safetensors": b"1", "sub/t.json": b"[]", ".git/HEAD": b"x", ".DS_Store": b""}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def listed(path) -> dict:
    return {file.path: file.size for file in open_source(f"file://{path}").resolve().files}


def refused(path) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_source(f"file://{path}").resolve()
    return str(caught.value)


def test_a_file_is_one_file(model):
    resolution = open_source(f"file://{model}/config.json").resolve()
    assert resolution.source == f"file://{model}/config.json"
    assert [(file.path, file.size, file.sha256) for file in resolution.files] == [("config.json", 2, None)]


def test_a_directory_is_taken_with_what_is_below_it_but_not_what_tools_hide_there(model):
    resolution = open_source(f"file://{model}").resolve()
    assert {file.path: file.size for file in resolution.files} == {"config.json": 2, "sub/t.json": 2, "w-1.safetensors": 1}
    assert resolution.format == "safetensors"


@pytest.mark.parametrize("end", ["", "/"])
def test_every_file_can_be_read_where_it_lies(model, end):
    source = open_source(f"file://{model}{end}")
    assert source.web.get(source.locate("sub/t.json")).body == b"[]"
    single = open_source(f"file://{model}/config.json")
    assert single.web.get(single.locate("config.json")).body == b"{}"


def test_a_link_within_is_a_file(model):
    (model / "same.json").symlink_to("config.json")
    assert listed(model)["same.json"] == 2


def test_a_directory_that_is_reached_through_a_link_is_one(model, tmp_path):
    (tmp_path / "current").symlink_to(model)
    assert listed(tmp_path / "current") == listed(model)


def test_a_link_that_leads_out_is_refused(model, tmp_path):
    (tmp_path / "elsewhere").write_text("secret")
    for name, target in {"out": "../elsewhere", "absolute": "/etc/passwd", "sub/folder": str(model / "sub")}.items():
        (model / name).symlink_to(target)
    message = refused(model)
    assert all(name in message for name in ("out", "absolute", "sub/folder"))


def test_nor_is_it_followed_when_it_comes_later(model, tmp_path):
    source = open_source(f"file://{model}")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError):
        source.locate("config.json")
    with pytest.raises(ArtifactError):
        source.locate("../a model2/x")


def test_what_is_no_file_or_leads_nowhere_is_named(model, tmp_path, monkeypatch):
    os.mkfifo(model / "pipe")
    monkeypatch.chdir(model)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        (model / "dangling").symlink_to("missing")
        message = refused(model)
    assert all(name in message for name in ("pipe", "socket", "dangling"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_named(model):
    (model / "config.json").chmod(0)
    (model / "sub").chmod(0)
    message = refused(model)
    assert "config.json" in message
    assert "sub" in message


def test_a_name_that_cannot_be_printed_is_refused(model):
    os.close(os.open(os.fsencode(model) + b"/bad\xff", os.O_CREAT))
    assert "bad" in refused(model)


def test_nothing_there(tmp_path):
    assert "no such file" in refused(tmp_path / "missing")
    assert "holds no files" in refused(tmp_path)
