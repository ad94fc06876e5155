# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.source_url import check, is_pinned, parse_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "path", "revision", "options"),
    [
        ("hf://org/name", "", "org/name", "", {}),
        (f"hf://org/na.me_1@{COMMIT}", "", "org/na.me_1", COMMIT, {}),
        ("hf://org/name@refs/pr/1", "", "org/name", "refs/pr/1", {}),
        ("hf://org/name@v1?files=*.safetensors,config.json", "", "org/name", "v1", {"files": ["*.safetensors", "config.json"]}),
        ("hf://org/name?files=a%2Cb%20c.gguf,sub/*", "", "org/name", "", {"files": ["a,b c.gguf", "sub/*"]}),
        ("oci://registry.example:5000/team/tiny:1.0.0", "registry.example:5000", "team/tiny", "1.0.0", {}),
        (f"oci://localhost/tiny@{DIGEST}", "localhost", "tiny", DIGEST, {}),
        ("oci://[fd00::1]:5000/tiny", "[fd00::1]:5000", "tiny", "latest", {}),
        ("ollama://tiny", "registry.ollama.ai", "library/tiny", "latest", {}),
        ("ollama://llama3.2:1b", "registry.ollama.ai", "library/llama3.2", "1b", {}),
        ("ollama://me/tiny:q4", "registry.ollama.ai", "me/tiny", "q4", {}),
        ("ollama://mirror.example/tiny", "mirror.example", "library/tiny", "latest", {}),
        ("ollama://mirror:5000/me/tiny:q4", "mirror:5000", "me/tiny", "q4", {}),
        ("ollama://mirror/me/tiny", "mirror", "me/tiny", "latest", {}),
        ("mlflow://tiny/3", "", "tiny", "3", {}),
        ("mlflow://prod.chat.my%20model@champion", "", "prod.chat.my model", "@champion", {}),
        ("s3://models/chat/tiny", "models", "chat/tiny", "", {}),
        ("s3://models/a%20b/?files=*.gguf", "models", "a b/", "", {"files": ["*.gguf"]}),
        ("https://host:8443/a/b?x=1", "host:8443", "/a/b", "", {}),
        ("http://10.0.0.1/a%20b.gguf", "10.0.0.1", "/a%20b.gguf", "", {}),
        ("file:///srv/a b%20?#.gguf", "", "/srv/a b%20?#.gguf", "", {}),
    ],
)
def test_each_kind_of_address_has_its_parts(text, host, path, revision, options):
    url = parse_source(text)
    assert url == (text.partition(":")[0], host, path, revision, options, text)


@pytest.mark.parametrize(
    "text",
    [
        "", 7, None, "/srv/a.gguf", "file://srv/a.gguf", "file:a", "HTTPS://h/a", "https://h/ä", "https://h/" + "a" * 3000,
        "https://", "https:///a", "https://user@h/a", "https://[h/a", "https://h:port/a", "https://h:99999/a", "https://h:0/a",
        "https://h/a b", "https://h/a#b", "https://h/a\n", "ftp://h/a",
        "https://h/a?X-Amz-Signature=1", "https://h/a?access_token=1", "https://h/a?a=1&sig=x",
        "hf://name", "hf://a/b/c", "hf://org/", "hf://org/name@", "hf://org/name@a..b", "hf://org/..", "hf://u:p@org/name",
        "hf://org/name?file=x", "hf://org/name?files=", "hf://org/name?files=a,", "hf://org/name?files=../x",
        "hf://org/name?files=/x", "hf://org/name?files=a&files=b", "hf://org/name?files=%ff",
        "oci://registry", "oci://registry/", "oci://registry/Tiny", "oci://registry/a:", "oci://registry/a@sha256:12",
        f"oci://registry/a:1@{DIGEST}", "oci://u:p@registry/a", "oci://registry:0/a", "oci://registry:99999/a", "oci://re gistry/a",
        "ollama://", "ollama://a/", "ollama://a:", "ollama://a/b/c/d", "ollama://a@b", "ollama://h:99999/a", "ollama://ns:tag/a b",
        "mlflow://", "mlflow://tiny", "mlflow://tiny/", "mlflow://tiny/latest", "mlflow://tiny/0", "mlflow://tiny@", "mlflow://tiny@a b",
        "mlflow://u:p@tiny", "mlflow://a%2Fb/1", "mlflow://a/1/2",
        "s3://", "s3:///x", "s3://b/x", "s3://key:secret@bucket/x", "s3://bucket/a b", "s3://bucket/%00",
    ],
)
def test_what_is_no_address_is_refused_with_advice(text):
    with pytest.raises(ValueError) as caught:
        parse_source(text)
    problem, fix = caught.value.args
    assert problem and fix
    faults = []
    assert check(text, "place", faults) is None
    assert [(fault.what, fault.where, fault.fix) for fault in faults] == [(problem, "place", fix)]


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cret@h/a", "https://user:s3cret@h/a b", "user:s3cret@h", "https://u:s3cret@[h", "https://h/a?token=s3cret",
        "hf://u:s3cret@org/name", "oci://u:s3cret@h/a", "ollama://u:s3cret@h/a", "mlflow://u:s3cret@h", "s3://k:s3cret@b/a",
        "ftp://u:s3cret@h",
    ],
)
def test_no_message_repeats_a_password(text):
    faults = []
    assert check(text, "place", faults) is None
    assert faults and "s3cret" not in str(faults)


def test_the_nearest_kind_is_named():
    with pytest.raises(ValueError) as caught:
        parse_source("olama://tiny")
    assert "'ollama'" in caught.value.args[1]


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        (f"hf://org/name@{COMMIT}", True),
        ("hf://org/name@main", False),
        ("hf://org/name", False),
        (f"oci://registry/a@{DIGEST}", True),
        ("oci://registry/a:1.0.0", False),
        ("mlflow://tiny/3", True),
        ("mlflow://tiny@champion", False),
        ("ollama://tiny:1b", False),
        ("s3://bucket/x", False),
        ("https://h/a", False),
        ("file:///a", False),
    ],
)
def test_only_some_addresses_say_themselves_which_bytes_they_mean(text, pinned):
    assert is_pinned(parse_source(text)) is pinned


@pytest.mark.parametrize(
    ("text", "revision", "there"),
    [
        ("hf://org/name?files=a,b%20c", COMMIT, f"hf://org/name@{COMMIT}?files=a,b%20c"),
        ("hf://org/name@main", COMMIT, f"hf://org/name@{COMMIT}"),
        ("oci://r:5000/a/b:1", DIGEST, f"oci://r:5000/a/b@{DIGEST}"),
        ("mlflow://my%20model@champion", "12", "mlflow://my%20model/12"),
        ("mlflow://tiny/3", "@champion", "mlflow://tiny@champion"),
        ("ollama://tiny", "1b", "ollama://registry.ollama.ai/library/tiny:1b"),
    ],
)
def test_an_address_can_be_moved_to_another_revision(text, revision, there):
    moved = parse_source(parse_source(text).at(revision))
    assert moved.text == there
    assert moved._replace(text="", revision="") == parse_source(text)._replace(text="", revision="")


@given(st.sampled_from(["hf", "oci", "ollama", "mlflow", "s3", "https", "file"]), st.text("ab1.:/@?&=%,*#[ -_", max_size=30))
def test_whatever_is_let_through_can_be_read_again(scheme, rest):
    text = f"{scheme}://{rest}"
    faults = []
    assert (check(text, "place", faults) is None) == bool(faults)
    if not faults:
        url = parse_source(text)
        assert url.text == text and url.scheme == scheme
        assert ".." not in url.path.split("/") or scheme in ("https", "file", "s3")
