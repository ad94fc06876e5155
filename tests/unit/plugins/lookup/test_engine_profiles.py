# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import pytest
import yaml
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader

from ansible_collections.localfirst.llm_fleet.plugins.lookup.engine_profiles import (
    BUILT_IN,
    LookupModule,
    read_profiles,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.engine_profile import settings_check


@pytest.fixture
def lookup():
    return lambda *terms: LookupModule(loader=DataLoader()).run(list(terms))


@pytest.fixture
def llamacpp():
    return yaml.safe_load((BUILT_IN / "llamacpp.yml").read_text(encoding="utf-8"))


def write(directory, name, content):
    directory.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (directory / name).write_text(text, encoding="utf-8")
    return str(directory)


def test_the_profiles_of_the_collection_are_there_and_sound(lookup):
    [profiles] = lookup()
    assert "llamacpp" in profiles
    assert sorted(profiles) == sorted(path.stem for path in BUILT_IN.iterdir())


def test_an_operator_adds_an_engine_by_writing_one_file(lookup, llamacpp, tmp_path):
    mine = write(tmp_path / "engines", "mine.yml", {**llamacpp, "name": "mine"})
    [profiles] = lookup(mine)
    assert {"llamacpp", "mine"} <= set(profiles)


def test_later_directories_win(lookup, llamacpp, tmp_path):
    first = write(tmp_path / "first", "llamacpp.yml", {**llamacpp, "description": "First."})
    second = write(tmp_path / "second", "llamacpp.yaml", {**llamacpp, "description": "Second."})
    assert lookup([first, second])[0]["llamacpp"]["description"] == "Second."
    assert lookup(second, first)[0]["llamacpp"]["description"] == "First."


def test_every_fault_of_every_file_is_told_at_once(lookup, llamacpp, tmp_path):
    write(tmp_path, "torn.yml", "name: {torn]")
    write(tmp_path, "other.yml", {**llamacpp, "status": "good"})
    write(tmp_path, "moved.yml", llamacpp)
    with pytest.raises(AnsibleLookupError) as error:
        lookup(str(tmp_path), str(tmp_path / "nowhere"))
    for words in ("torn.yml: line 1", "other.yml: status", "moved.yml: name", "nowhere"):
        assert words in str(error.value)


def test_a_file_that_is_no_text_is_a_fault(tmp_path):
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    _profiles, faults = read_profiles([tmp_path])
    assert [fault.where for fault in faults] == [str(tmp_path / "binary.yml")]


def test_other_files_are_left_alone(lookup, tmp_path):
    write(tmp_path, "README.md", "# not a profile")
    assert lookup(str(tmp_path)) == lookup()


def test_llamacpp_gives_no_setting_that_the_fleet_decides_itself(llamacpp):
    # A setting that moves the port, the model or the API key would undo what the gateway relies on.
    flags = {words[0] for words in llamacpp["container"]["command"]}
    flags |= {"--api-key", "--api-key-file", "--model", "--ctx-size", "--slots", "--props", "--tools"}
    assert not flags & {spec.get("flag") for spec in llamacpp["settings"].values()}


def test_llamacpp_takes_a_typical_set_of_settings(llamacpp):
    faults = []
    settings_check(llamacpp)({"threads": 4, "gpu_layers": 99, "flash_attn": "on", "tensor_split": [3, 1]}, "s", faults)
    assert faults == []


@pytest.fixture
def ollama():
    return yaml.safe_load((BUILT_IN / "ollama.yml").read_text(encoding="utf-8"))


def test_ollama_shows_clients_nothing_of_its_own_api(ollama):
    # A body there may unload the model, load it with another context, or pull and delete models.
    assert all(route.split()[1].startswith("/v1/") for route in ollama["http"]["public"])


def test_ollama_gives_no_setting_that_the_fleet_decides_itself(ollama):
    variables = set(ollama["container"]["environment"]) | {"OLLAMA_DEBUG", "OLLAMA_DEBUG_LOG_REQUESTS", "OLLAMA_REMOTES"}
    assert not variables & {spec.get("env") for spec in ollama["settings"].values()}


def test_ollama_serves_a_store_that_it_cannot_change(ollama):
    container = ollama["container"]
    assert container["read_only"] and not container["writable"]
    assert container["environment"]["OLLAMA_MODELS"] == "/models"
    assert any(container["environment"]["HOME"].startswith(path) for path in container["tmpfs"])
