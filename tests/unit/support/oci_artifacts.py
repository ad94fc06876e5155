# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Artifacts in a real registry, pushed as their makers push them: files by the `oras` client, other layouts through its parts.

`registry` is host:port of any registry that speaks plain HTTP and lets everybody write, a test's own or a testbed's.
Each function returns the digest of the manifest that it pushed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import requests

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def push_files(registry: str, name: str, files: list[Path], titles: dict[Path, str] | None = None, **notes: str) -> str:
    """`oras push registry/name files`. `name` is repository:tag, `titles` names that differ from the files' own."""
    import oras.client

    client = oras.client.OrasClient(insecure=True)
    extra = {str(path): {"org.opencontainers.image.title": title} for path, title in (titles or {}).items()}
    annotations = files[0].parent / f".{hashlib.sha256(name.encode()).hexdigest()[:8]}.annotations.json"
    annotations.write_text(json.dumps(extra))
    try:
        answer = client.push(
            target=f"{registry}/{name}",
            files=[str(path) for path in files],
            disable_path_validation=True,
            annotation_file=str(annotations),
            manifest_annotations=notes or None,
            quiet=True,
        )
    finally:
        annotations.unlink()
    return answer.headers["Docker-Content-Digest"]


def push_layers(registry: str, name: str, layers: list[dict], config: tuple[str, bytes] | None = None, **fields) -> str:
    """Any manifest. A layer is {"body": bytes, "mediaType": ..., "annotations": {...}}; `config` its media type and bytes."""
    repository = name.partition(":")[0]
    kind, body = config or ("application/vnd.oci.empty.v1+json", b"{}")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": kind, **push_blob(registry, repository, body)},
        "layers": [
            {**{key: value for key, value in layer.items() if key != "body"}, **push_blob(registry, repository, layer["body"])}
            for layer in layers
        ],
        **fields,
    }
    return push_manifest(registry, name, manifest)


def push_modelpack(registry: str, name: str, files: dict[str, bytes], licences: list[str], form: str = "raw") -> str:
    """What ModelPack's `modctl build --raw` and `modctl push` leave in a registry; form "tar" is that without --raw."""
    config = {
        "descriptor": {"name": name.partition(":")[0], "licenses": licences},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{hashlib.sha256(body).hexdigest()}" for body in files.values()]},
        "config": {"format": "gguf"},
    }
    layers = [
        {
            "body": body,
            "mediaType": f"application/vnd.cncf.model.weight.v1.{form}",
            "annotations": {"org.cncf.model.filepath": path},
        }
        for path, body in files.items()
    ]
    kind = "application/vnd.cncf.model.config.v1+json"
    return push_layers(
        registry, name, layers, (kind, json.dumps(config).encode()), artifactType="application/vnd.cncf.model.manifest.v1+json"
    )


def push_index(registry: str, name: str, digests: list[str], notes: list[dict] | None = None) -> str:
    """A list of manifests that are in the repository already, one a platform; `notes` are their annotations."""
    repository = name.partition(":")[0]
    listed = []
    for number, digest in enumerate(digests):
        body = requests.get(
            f"http://{registry}/v2/{repository}/manifests/{digest}", headers={"Accept": OCI_MANIFEST}, timeout=10
        ).content
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(body)}
        entry["platform"] = {"os": "linux", "architecture": ("amd64", "arm64", "ppc64le")[number]}
        listed.append({**entry, **({"annotations": notes[number]} if notes and notes[number] else {})})
    return push_manifest(registry, name, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})


def push_manifest(registry: str, name: str, manifest: dict) -> str:
    repository, _colon, tag = name.partition(":")
    answer = requests.put(
        f"http://{registry}/v2/{repository}/manifests/{tag}",
        data=json.dumps(manifest),
        headers={"Content-Type": manifest["mediaType"]},
        timeout=10,
    )
    answer.raise_for_status()
    return answer.headers["Docker-Content-Digest"]


def push_blob(registry: str, repository: str, body: bytes) -> dict:
    """Upload a blob; returns its digest and size, as a descriptor has them."""
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    begun = requests.post(f"http://{registry}/v2/{repository}/blobs/uploads/", timeout=10)
    begun.raise_for_status()
    done = requests.put(
        begun.headers["Location"],
        params={"digest": digest},
        data=body,
        headers={"Content-Type": "application/octet-stream"},
        timeout=10,
    )
    done.raise_for_status()
    return {"digest": digest, "size": len(body)}
