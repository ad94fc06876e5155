# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The lock playbook where versions have to be signed, as an operator runs it: signing, verifying, refusing."""

from __future__ import annotations

import json

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_bundle import parse_bundle
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.signature_trust import CertificateTrust, KeyTrust
from ansible_collections.localfirst.llm_fleet.tests.unit.playbooks.test_lock import Controller, changes
from ansible_collections.localfirst.llm_fleet.tests.unit.support.lock_builders import locked, model
from ansible_collections.localfirst.llm_fleet.tests.unit.support.signature_builders import Authority, Key, key, pem_of
from ansible_collections.localfirst.llm_fleet.tests.unit.support.store_builders import digest

PASSWORD = "geheim-und-länger"


@pytest.fixture
def controller(tmp_path):
    (tmp_path / "inventory").mkdir()
    (tmp_path / "tiny.gguf").write_bytes(b"weights")
    return Controller(tmp_path / "inventory")


def catalog(controller: Controller, *signatures: dict | None) -> None:
    """A model for each signature that is demanded; None for one without."""
    source = f"file://{controller.folder.parent}/tiny.gguf"
    models = [model(f"m{number}", {"1.0.0": source}) for number, _signature in enumerate(signatures)]
    controller.catalog([{**each, **({"signature": wanted} if wanted else {})} for each, wanted in zip(models, signatures)])


def secrets_of(mine: Key) -> list[str]:
    """What would give the private key away, however it is shown."""
    lines = mine.pem.decode().splitlines()
    return [PASSWORD, json.dumps(PASSWORD)[1:-1], *(line for line in lines if not line.startswith("-----"))]


def test_a_version_is_signed_once_and_the_key_is_shown_nowhere(controller, tmp_path):
    mine = Key(password=PASSWORD)
    private, public = mine.write(tmp_path)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    catalog(controller, {"key": str(public)})
    code, output = controller.run()
    assert code != 0 and "there is no signature 'model.sig'" in output and "sign_key" in output

    sign = ["-e", f"sign_key={private}", "-e", f"sign_password_file={tmp_path / 'password'}"]
    code, output = controller.run(*sign, "--check", "--diff", "-vvv")
    assert code == 0 and f"sign it with {mine.fingerprint[:20]}" in output and not controller.lockfile.exists()
    code, shown = controller.run(*sign, "-vvv")
    assert code == 0 and changes(shown) == 1
    text = controller.lockfile.read_text()
    for secret in secrets_of(mine):
        assert secret not in output + shown + text
    bundle = parse_bundle(locked(text)["m0", "1.0.0"]["signature"]["content"].encode())
    assert KeyTrust(mine.public).verify(bundle).fingerprint == mine.fingerprint
    assert bundle.files() == {"tiny.gguf": digest(b"weights")}

    code, output = controller.run(*sign)
    assert code == 0 and changes(output) == 0 and controller.lockfile.read_text() == text


def test_a_password_may_come_from_a_vault_s_variable(controller, tmp_path):
    mine = Key(password=PASSWORD)
    private, public = mine.write(tmp_path)
    catalog(controller, {"key": str(public)})
    variables = tmp_path / "vault.yml"
    variables.write_text(yaml.safe_dump({"sign_password": PASSWORD}))
    code, output = controller.run("-e", f"sign_key={private}", "-e", f"@{variables}", "-vvv")
    assert code == 0 and all(secret not in output for secret in secrets_of(mine))
    variables.write_text(yaml.safe_dump({"sign_password": "falsches-kennwort"}))
    controller.lockfile.unlink()
    code, output = controller.run("-e", f"sign_key={private}", "-e", f"@{variables}", "-vvv")
    assert code != 0 and "cannot be opened with this password" in output and "falsches" not in output


def test_only_the_named_model_is_signed_and_only_with_the_key_of_the_catalog(controller, tmp_path):
    _private, public = key().write(tmp_path)
    other, other_public = key("other").write(tmp_path, "other")
    catalog(controller, {"key": str(public)}, {"key": str(other_public)})
    code, output = controller.run("-e", f"sign_key={other}", "-e", "sign_model=m1")
    assert code != 0 and "llm_fleet_models[m0].versions.1.0.0.signature" in output and "[m1]" not in output
    code, output = controller.run("-e", f"sign_key={other}")
    assert code != 0 and "another key signed it" in output and "[m0]" in output and not controller.lockfile.exists()
    code, output = controller.run("-e", f"sign_key={tmp_path}/gone.key")
    assert code != 0 and "gone.key cannot be read" in output


def test_a_certificate_signs(controller, tmp_path):
    root = Authority("Models CA")
    between = Authority("Between", above=root)
    private, _public = key("signer").write(tmp_path)
    (tmp_path / "ca.pem").write_text(root.pem)
    (tmp_path / "chain.pem").write_text(pem_of(between.issue(key("signer"), email="models@example.com"), between.certificate))
    catalog(controller, {"ca": str(tmp_path / "ca.pem"), "identity": "models@example.com"})
    code, output = controller.run("-e", f"sign_key={private}", "-e", f"sign_certificate={tmp_path / 'chain.pem'}")
    assert code == 0, output
    signature = locked(controller.lockfile.read_text())["m0", "1.0.0"]["signature"]
    assert signature["identity"] == "models@example.com"
    CertificateTrust(root.pem).verify(parse_bundle(signature["content"].encode()))


def test_a_fleet_that_takes_signed_versions_only_refuses_all_others_at_once(controller, tmp_path):
    private, public = key().write(tmp_path)
    catalog(controller, {"key": str(public)}, None, None)
    enforced = ["-e", '{"llm_fleet_require_signatures": true}', "-e", f"sign_key={private}"]
    code, output = controller.run(*enforced)
    assert code != 0 and output.count("llm_fleet_require_signatures") >= 2 and not controller.lockfile.exists()
    assert "llm_fleet_models[m1].versions.1.0.0.signature" in output and "llm_fleet_models[m2].versions.1.0.0.signature" in output
    catalog(controller, *[{"key": str(public)}] * 3)
    assert controller.run(*enforced)[0] == 0
    assert all("signature" in entry for entry in locked(controller.lockfile.read_text()).values())


def test_files_that_changed_after_they_were_signed_are_not_signed_again(controller, tmp_path):
    private, public = key().write(tmp_path)
    (tmp_path / "model.sig").write_text(key().sign({"tiny.gguf": digest(b"weights")}))
    catalog(controller, {"key": str(public)})
    (tmp_path / "tiny.gguf").write_bytes(b"weightz")
    code, output = controller.run("-e", f"sign_key={private}")
    assert code != 0 and "changed since they were signed" in output and not controller.lockfile.exists()
