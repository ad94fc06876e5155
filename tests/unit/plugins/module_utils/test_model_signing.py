# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The judge: what the program `model_signing` signs is accepted here, and the other way round."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import SignatureError, parse_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_files import compare
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import CertificateTrust, KeyTrust
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import CURVES, Authority, key, pem_of

PROGRAM = shutil.which("model_signing", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="model_signing is not installed (testbed/requirements.txt)")


def judge(*arguments: object) -> subprocess.CompletedProcess:
    """One call of the real program."""
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def model(tmp_path) -> Path:
    """A model as people have it: files in folders, and what git keeps beside them."""
    folder = tmp_path / "tiny"
    (folder / "sub").mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(bytes(range(256)) * 99)
    (folder / "sub" / "tokenizer ä.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    (folder / ".gitattributes").write_text("*.gguf filter=lfs")
    return folder


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("model.sig", ".gitattributes")
    }


def never(_name: str) -> bool:
    return False


@pytest.mark.parametrize("curve", CURVES)
def test_what_it_signs_with_a_key_is_accepted(model, tmp_path, curve):
    private, _public = key("judge", curve).write(tmp_path)
    done = judge("sign", "key", model, "--private_key", private, "--signature", model / "model.sig")
    assert done.returncode == 0, done.stderr
    bundle = parse_bundle((model / "model.sig").read_bytes())
    assert KeyTrust(key("judge", curve).public).verify(bundle).fingerprint == key("judge", curve).fingerprint
    assert compare(bundle.files(), files_of(model), never) == []


@pytest.mark.parametrize("curve", CURVES)
def test_it_accepts_what_is_signed_here_with_a_key(model, tmp_path, curve):
    mine = key("judge", curve)
    _private, public = mine.write(tmp_path)
    signature = model / "model.sig"
    signature.write_text(mine.sign(files_of(model)))
    verify = ("verify", "key", model, "--signature", signature, "--public_key", public)
    done = judge(*verify)
    assert done.returncode == 0, done.stdout + done.stderr
    (model / "empty").write_text("not any more")
    done = judge(*verify)
    assert done.returncode != 0 and "empty" in done.stdout + done.stderr


def test_certificates_go_both_ways(model, tmp_path):
    root = Authority("Root")
    between = Authority("Between", above=root)
    certificate = between.issue(key("judge"), "signer")
    private, _public = key("judge").write(tmp_path)
    paths = {name: tmp_path / f"{name}.pem" for name in ("root", "between", "leaf")}
    for name, each in (("root", root.certificate), ("between", between.certificate), ("leaf", certificate)):
        paths[name].write_text(pem_of(each))
    signature = model / "model.sig"
    done = judge(
        "sign", "certificate", model, "--private_key", private, "--signing_certificate", paths["leaf"],
        "--certificate_chain", paths["between"], "--signature", signature,
    )
    assert done.returncode == 0, done.stderr
    bundle = parse_bundle(signature.read_bytes())
    assert CertificateTrust(root.pem, "signer").verify(bundle).identity == "signer"
    assert compare(bundle.files(), files_of(model), never) == []

    signature.write_text(key("judge").sign(files_of(model), pem_of(certificate, between.certificate)))
    done = judge("verify", "certificate", model, "--signature", signature, "--certificate_chain", paths["root"])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_it_signs_by_itself_is_accepted(model, tmp_path):
    private, _public = key("judge").write(tmp_path)
    signature = tmp_path / "tiny.sig"
    done = judge("sign", "key", model / "tiny.gguf", "--private_key", private, "--signature", signature)
    assert done.returncode == 0, done.stderr
    bundle = parse_bundle(signature.read_bytes())
    KeyTrust(key("judge").public).verify(bundle)
    digest = files_of(model)["tiny.gguf"]
    assert compare(bundle.files(), {"tiny.gguf": digest}, never) == []
    with pytest.raises(SignatureError, match="changed"):
        compare(bundle.files(), {"tiny.gguf": "00" * 32}, never)
