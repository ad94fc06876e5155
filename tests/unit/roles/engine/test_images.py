# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""How images come to a node: the role's own tasks, against a stand-in for Docker's API."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.tests.unit.conftest import REPO
from ansible_collections.localfirst.llm_fleet.tests.unit.support.docker_images import DockerImages

IMAGE = "ghcr.io/engines/echo@sha256:" + "e" * 64
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
ID = f"sha256:{hashlib.sha256(CONFIG).hexdigest()}"
MANIFEST = json.dumps({"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": ID}, "layers": []}).encode()
MANIFEST_ID = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
OLD = {"config.json": CONFIG, "manifest.json": b'[{"Config": "config.json"}]'}
NEW = {
    f"blobs/sha256/{ID[7:]}": CONFIG,
    f"blobs/sha256/{MANIFEST_ID[7:]}": MANIFEST,
    "index.json": json.dumps({"manifests": [{"digest": MANIFEST_ID}]}).encode(),
}


class Node:
    """This machine as a node, with a docker command that knows its platform and an API that knows images."""

    def __init__(self, folder, containerd=False):
        self.folder = folder
        self.archives = folder / "archives"
        self.archives.mkdir()
        (folder / "work").mkdir()
        (folder / "bin").mkdir()
        program = folder / "bin" / "docker"
        program.write_text("#!/bin/sh\necho linux/amd64\n")
        program.chmod(0o755)
        self.docker = DockerImages(folder, containerd)

    def archive(self, files):
        with tarfile.open(self.archives / "engines.tar", "w") as archive:
            for name, body in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))

    def bring(self, *options, ids=None, image=IMAGE, **variables):
        """Run the tasks; returns the process and, where they did not fail, what each image is run by."""
        record = {"image": image, "container": {}, **({"image_ids": ids} if ids else {})}
        instance = {"id": "tiny-0-a", "model": "tiny", "version": "1", "release": "r", "port": 1, "gpus": [], "record": record}
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {
                "ansible_python_interpreter": sys.executable,
                "engine_instances": [instance],
                "engine_work_dir": str(self.folder / "work" / "engines"),
                "__engine_host": {"instances": [], "docker": {"state": "running", "version": "24.0.9"}},
                **variables,
            },
            "tasks": [
                {
                    "name": "Bring",
                    "ansible.builtin.include_role": {"name": "localfirst.llm_fleet.engine", "tasks_from": "images.yml", "public": True},
                },
                {
                    "name": "Tell",
                    "ansible.builtin.copy": {"content": "{{ llm_fleet_image_names | to_json }}", "dest": str(self.folder / "names.json")},
                    "check_mode": False,
                    "changed_when": False,
                },
            ],
        }
        (self.folder / "play.yml").write_text(yaml.safe_dump([play]))
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.docker.socket}", "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        command = [str(REPO / ".venv" / "bin" / "ansible-playbook"), "-i", "localhost,", str(self.folder / "play.yml"), *options]
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
        return done, json.loads((self.folder / "names.json").read_text()) if done.returncode == 0 else None


@pytest.fixture
def node(tmp_path):
    with (one := Node(tmp_path)).docker:
        yield one


def test_an_image_out_of_an_archive_is_loaded_once_and_run_by_its_id(node):
    node.archive(OLD)
    archives = {"engine_image_archives": [str(node.archives)], "ids": {"linux/amd64": ID}}
    done, _names = node.bring("--check", **archives)
    assert f"load {IMAGE}" in done.stdout and node.docker.loads == 0
    done, names = node.bring(**archives)
    assert names == {IMAGE: ID} and "changed=0" not in done.stdout
    done, names = node.bring(**archives)
    assert names == {IMAGE: ID} and "changed=0" in done.stdout
    assert (node.docker.loads, node.docker.pulls) == (1, [])
    assert list((node.folder / "work").iterdir()) == []


def test_imported_images_are_there_whatever_else_is(node):
    """Directories of the inventory's own do not hide what bundles brought."""
    node.archive(OLD)
    node.archives.rename(node.folder / "images")
    node.archives.mkdir()
    variables = {"engine_image_archives": [str(node.archives)], "llm_fleet_bundle_dir": str(node.folder)}
    assert node.bring(ids={"linux/amd64": ID}, **variables)[1] == {IMAGE: ID}
    assert (node.docker.loads, node.docker.pulls) == (1, [])


def test_what_no_archive_holds_is_pulled_by_digest_from_the_mirror(node):
    node.archive(OLD)
    reference = IMAGE.replace("ghcr.io", "hub.example/mirror")
    variables = {"engine_image_archives": [str(node.archives)], "engine_image_mirror": "hub.example/mirror"}
    assert node.bring(ids={"linux/amd64": "sha256:" + "0" * 64}, **variables)[1] == {IMAGE: reference}
    assert node.bring(**variables)[1] == {IMAGE: reference}
    assert (node.docker.loads, node.docker.pulls) == (0, [reference])


def test_without_mirror_and_archives_an_image_comes_from_its_registry(node):
    assert node.bring()[1] == {IMAGE: IMAGE}
    assert node.docker.pulls == [IMAGE]


def test_where_containerd_keeps_images_they_are_known_by_the_manifest_of_the_archive(tmp_path):
    with (node := Node(tmp_path, containerd=True)).docker:
        archives = {"engine_image_archives": [str(node.archives)], "ids": {"linux/amd64": ID}}
        node.archive(NEW)
        assert node.bring(**archives)[1] == {IMAGE: MANIFEST_ID}
        node.docker.images.clear()
        node.archive(OLD)  # without a manifest nobody can say what Docker will call it
        done, _names = node.bring(**archives)
        assert done.returncode != 0 and "llm_fleet_image_mirror" in done.stdout
        assert list((node.folder / "work").iterdir()) == []


@pytest.mark.parametrize("containerd", [False, True])
def test_without_a_lockfile_the_digest_in_the_name_has_to_lead_to_the_archived_image(tmp_path, containerd):
    """As role dcgm_exporter has its image: registries know it by its manifest, Docker by what that names."""
    image, other = (f"hub.example/dcgm-exporter@{digest}" for digest in (MANIFEST_ID, "sha256:" + "0" * 64))
    with (node := Node(tmp_path, containerd)).docker:
        archives = {"engine_image_archives": [str(node.archives)]}
        node.archive(NEW)
        assert node.bring(image=image, **archives)[1] == {image: MANIFEST_ID if containerd else ID}
        done, _names = node.bring(image=image, **archives)
        assert "changed=0" in done.stdout and (node.docker.loads, node.docker.pulls) == (1, [])
        # Another digest is another image, whatever the archive is called.
        assert node.bring(image=other, **archives)[1] == {other: other} and node.docker.pulls == [other]
        # Nor is one that came without the bytes that would prove it: it may have any manifest.
        node.archive(OLD)
        assert node.bring(image=image, **archives)[1] == {image: image} and node.docker.pulls == [other, image]


def test_what_is_not_to_be_had_is_told_with_what_to_do(node):
    node.archive(OLD)
    node.docker.refuses = True
    done, _names = node.bring(engine_image_archives=[str(node.archives)])
    said = " ".join(done.stdout.split())
    assert done.returncode != 0 and f"{node.archives} proves to hold {IMAGE} for linux/amd64" in said
    assert "import a bundle that has the image" in said and "no such host" in said


def test_a_damaged_archive_stops_before_anything_is_loaded(node):
    (node.archives / "engines.tar").write_bytes(b"half of it")
    done, _names = node.bring(engine_image_archives=[str(node.archives)], ids={"linux/amd64": ID})
    assert done.returncode != 0 and "engines.tar" in done.stdout and node.docker.loads == 0
