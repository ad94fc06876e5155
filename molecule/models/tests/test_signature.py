# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A signed version on its way from the operator's key to a depot; and one that somebody changed after it was signed."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import STORE, model, said


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one, as docs/signatures.md makes them, without a password."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for command in (
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private],
        ["openssl", "ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return private, public


@pytest.mark.long
def test_a_signed_version_reaches_the_depot_with_its_signature_and_a_changed_one_does_not(operator, outside, stores, bare, fleet, tmp_path):
    private, public = key_pair(tmp_path, "models")
    weights = outside.gguf(301)
    wanted = [model("signed", f"file://{weights}", signature={"key": str(public)})]
    done = operator.lock(wanted, check=False)
    assert done.returncode != 0 and "there is no signature" in said(done)

    operator.lock(wanted, "-e", f"sign_key={private}", "-e", "sign_model=signed")
    signature = operator.locked("signed")["signature"]
    assert signature["signer"] == f"sha256:{hashlib.sha256(public.read_bytes()).hexdigest()}"
    operator.stage(wanted)
    assert set(operator.digests("signed")) <= stores.blobs("depot1")
    kept = f"{STORE}/signatures/signed/1.0.0.sig"
    assert fleet.shell("depot1", f"sha256sum {kept}").split()[0] == signature["sha256"]

    _private, other = key_pair(private.parent, "other")
    done = operator.stage([{**wanted[0], "signature": {"key": str(other)}}], check=False)
    assert done.returncode != 0 and "another key signed it" in said(done)

    fleet.shell("depot1", f"echo >> {kept}")
    done = operator.run("verify", wanted, check=False)
    assert done.returncode != 0 and "signatures/signed/1.0.0.sig" in said(done)
    operator.stage(wanted)
    assert fleet.shell("depot1", f"sha256sum {kept}").split()[0] == signature["sha256"]
