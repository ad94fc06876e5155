# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Users and hashes of an exporter's web configuration, with the C library's bcrypt."""

from __future__ import annotations

import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import web_config

# Hashes of these passwords from the test vectors of the Openwall project, who wrote the bcrypt that the C library has.
KNOWN = {
    "U*U": "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
    "": "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy",
}
CHARACTERS = st.characters(exclude_characters=":", categories=["L", "N", "P", "S", "Zs"])
NAMES = st.text(CHARACTERS, min_size=1, max_size=20).filter(str.isprintable)
crypt = web_config.system_crypt()


def test_hashes_that_others_made_are_recognised():
    for password, text in KNOWN.items():
        assert web_config.fits(password, text, crypt)
        assert not web_config.fits(password + "x", text, crypt)


@settings(max_examples=15, deadline=None)
@given(st.text(min_size=1, max_size=18).filter(lambda text: "\0" not in text))
def test_a_new_hash_fits_its_password_and_no_other(password):
    text = web_config.new_hash(password, 4, crypt)
    web_config.check_hash(text)
    assert web_config.fits(password, text, crypt) and not web_config.fits(f"{password}.", text, crypt)
    assert web_config.new_hash(password, 4, crypt) != text, "each has a salt of its own"


def test_a_c_library_without_bcrypt_is_an_error_that_says_what_to_do():
    with pytest.raises(web_config.Refused, match="htpasswd"):
        web_config.new_hash("secret", 10, lambda _key, _setting: "*0")


@given(NAMES, st.sampled_from(sorted(KNOWN.values())))
def test_what_is_written_is_yaml_and_is_read_again(name, text):
    web_config.check_user(name)
    written = web_config.render("Managed\nSecond line", "server.pem", "a \"key\": #1", {name: text})
    assert web_config.users_of(written) == {name: text}
    assert yaml.safe_load(written) == {
        "tls_server_config": {"cert_file": "server.pem", "key_file": "a \"key\": #1", "min_version": "TLS12"},
        "basic_auth_users": {name: text},
    }
    assert text not in web_config.masked(written)


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "a\0"])
def test_a_user_that_basic_authentication_cannot_have_is_refused(name):
    with pytest.raises(web_config.Refused, match="choose another"):
        web_config.check_user(name)


@pytest.mark.parametrize("password", ["", "a\0b", "x" * 73, "ü" * 37])
def test_a_password_that_bcrypt_would_cut_is_refused_and_not_shown(password):
    with pytest.raises(web_config.Refused) as refusal:
        web_config.check_password(password)
    assert not password or password not in str(refusal.value)
    web_config.check_password("x" * 72)


@pytest.mark.parametrize("text", ["", "secret", KNOWN["U*U"][:-1], KNOWN["U*U"] + "x", KNOWN["U*U"].replace("$05$", "$03$"), "$6$abc$def"])
def test_what_is_no_hash_is_refused(text):
    with pytest.raises(web_config.Refused, match="htpasswd"):
        web_config.check_hash(text)


def test_a_file_of_somebody_elses_has_no_users():
    assert web_config.users_of("basic_auth_users:\n  alice: $2y$10$x\n") == {}
    assert web_config.users_of(string.printable) == {}
