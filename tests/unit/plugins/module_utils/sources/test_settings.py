# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Whose settings hold for a source, and that no message shows one."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.settings import (
    Settings,
    all_secrets,
    check_settings,
    settings_for,
)

SECRET = "hunter2-hunter2"


def faults_of(value) -> list:
    faults = []
    check_settings(value, "llm_fleet_sources", faults)
    assert SECRET not in repr(faults)
    return faults


class TestWhich:
    ALL = {
        "hf://": {"token": "all"},
        "hf://org/": {"token": "org"},
        "hf://org/name": {"token": "name"},
        "oci://registry.example": {"token": "registry"},
        "oci://registry.example/team/": {"token": "team"},
        "https://files.example/models": {"token": "models"},
    }

    @pytest.mark.parametrize(
        ("source", "token"),
        [
            ("hf://other/name", "all"),
            ("hf://org/other", "org"),
            ("hf://org/name", "name"),
            ("hf://org/name@main", "name"),
            ("hf://org/name?files=*.gguf", "name"),
            ("hf://org/name2", "org"),
            ("oci://registry.example/tiny:1", "registry"),
            ("oci://registry.example/team/tiny:1", "team"),
            ("https://files.example/models/tiny.gguf", "models"),
        ],
    )
    def test_the_longest_beginning_wins(self, source, token):
        assert settings_for(self.ALL, source).token == token

    @pytest.mark.parametrize(
        "source",
        [
            "oci://registry.example.net/tiny:1",
            "oci://registry.example:5000/tiny:1",
            "https://files.example/models-of-others/tiny.gguf",
            "http://files.example/models/tiny.gguf",
            "s3://bucket/key",
        ],
    )
    def test_it_is_never_another_servers(self, source):
        assert settings_for(self.ALL, source) == Settings()

    @pytest.mark.parametrize("nothing", [None, {}])
    def test_there_may_be_none(self, nothing):
        assert settings_for(nothing, "hf://org/name") == Settings()


class TestChecks:
    def test_all_that_is_sound_comes_back(self):
        given = {
            "s3://": {
                "endpoint": "https://s3.example:9000/",
                "access_key": "key",
                "secret_key": SECRET,
                "proxy": "http://u:p@proxy.example:3128",
                "ca_path": "/etc/ca.pem",
                "headers": {"X-Id": "1"},
                "validate_certs": False,
                "timeout": 10,
                "retries": 0,
                "token": "",
                "password": None,
            }
        }
        faults = []
        clean = check_settings(given, "llm_fleet_sources", faults)
        assert faults == []
        expected = {key: value for key, value in given["s3://"].items() if value not in ("", None)}
        assert clean == {"s3://": {**expected, "endpoint": "https://s3.example:9000"}}

    @pytest.mark.parametrize(
        ("entry", "key"),
        [
            ({"tokn": SECRET}, ""),
            ({"token": 12345}, ".token"),
            ({"token": f"{SECRET}\n"}, ".token"),
            ({"password": [SECRET]}, ".password"),
            ({"endpoint": f"https://u:{SECRET}@hub.example"}, ".endpoint"),
            ({"endpoint": "hub.example"}, ".endpoint"),
            ({"proxy": f"socks5://u:{SECRET}@proxy"}, ".proxy"),
            ({"token_file": "relative"}, ".token_file"),
            ({"headers": {"X": f"{SECRET}\nY: z"}}, ".headers.X"),
            ({"headers": {"X Y": SECRET}}, ".headers"),
            ({"headers": SECRET}, ".headers"),
            ({"timeout": 0}, ".timeout"),
            ({"retries": -1}, ".retries"),
            ({"validate_certs": "no"}, ".validate_certs"),
            (SECRET, ""),
        ],
    )
    def test_each_fault_is_named_with_its_place(self, entry, key):
        (fault,) = faults_of({"hf://": entry})
        assert fault.where == f"llm_fleet_sources.hf://{key}"

    @pytest.mark.parametrize("value", [[], SECRET, {3: {}}, {"hub": {}}, {f"https://u:{SECRET}@host/": {}}, {"ftp://host/": {}}])
    def test_what_is_no_mapping_of_sources(self, value):
        assert [fault.where for fault in faults_of(value)] == ["llm_fleet_sources"]

    def test_whoever_passes_faulty_ones_is_told(self):
        with pytest.raises(ArtifactError) as caught:
            settings_for({"hf://": {"timeout": SECRET[:0] or "x", "retries": "y"}}, "hf://org/name")
        assert "and 1 more" in str(caught.value)


class TestSecrets:
    def test_they_are_not_in_the_text_of_the_settings(self):
        settings = Settings(token=SECRET, password=SECRET, headers={"X": SECRET}, proxy=f"http://u:{SECRET}@p:1", region="eu")
        assert SECRET not in f"{settings} {settings!r}"
        assert "eu" in repr(settings)

    def test_they_are_listed_for_masking(self):
        given = {
            "hf://": {"token": "t1", "headers": {"X": "t2"}},
            "s3://": {"secret_key": "t3", "session_token": "t4", "proxy": "http://u:t%355@p:1"},
            "oci://": {"username": "u", "password": "t6"},
        }
        assert set(all_secrets(given)) == {"t1", "t2", "t3", "t4", "t%355", "t55", "t6"}

    @pytest.mark.parametrize("kind", ["token", "password", "secret_key"])
    def test_they_are_read_from_files_of_the_host_that_asks(self, tmp_path, kind):
        (tmp_path / "secret").write_text(f"{SECRET}\n")
        settings = settings_for({"hf://": {f"{kind}_file": str(tmp_path / "secret")}}, "hf://org/name")
        assert getattr(settings, kind) == SECRET
        assert settings.secrets() == [SECRET]

    @pytest.mark.parametrize("content", [None, b"", f"{SECRET}\nmore".encode(), b"\xff\xfe", b"x" * 100_000])
    def test_a_file_without_one_is_named(self, tmp_path, content):
        path = tmp_path / "secret"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            settings_for({"hf://": {"token_file": str(path)}}, "hf://org/name")
        assert str(path) in str(caught.value)
        assert SECRET not in str(caught.value)

    def test_a_file_for_another_source_is_not_opened(self):
        assert settings_for({"s3://": {"secret_key_file": "/missing"}}, "hf://org/name") == Settings()


def test_a_source_that_is_none_is_named_without_being_repeated():
    with pytest.raises(ArtifactError) as caught:
        open_source(f"https://u:{SECRET}@host/path")
    assert SECRET not in str(caught.value)
