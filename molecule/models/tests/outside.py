# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The places that models come from, filled as their users fill them: over their own protocols, with their own commands."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import boto3
import requests
from botocore.config import Config

from ansible_collections.localfirst.llm_fleet.tests.unit.support.oci_artifacts import push_files

REPO = Path(__file__).resolve().parents[3]
SMALL = ("--layers", "1", "--dim", "64", "--ffn", "64", "--heads", "2", "--kv-heads", "1", "--words", "400")
HUB_TOKEN, WEB_PASSWORD, S3_SECRET = "hf_ReadsWhatIsGated", "opens-the-private-folder", "s3-secret-of-the-test"
PASSWORD_FILE = r"""
install -d /srv/files/private
printf 'fleet:%s\n' "$(openssl passwd -apr1 '{password}')" > /etc/nginx/passwords
cat > /etc/nginx/conf.d/private.conf <<'END'
server {{
    listen 8080;
    root /srv/files/private;
    auth_basic "models";
    auth_basic_user_file /etc/nginx/passwords;
}}
END
nginx -s reload
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Outside:
    """The host `upstream`, with everything that serves models there."""

    def __init__(self, fleet) -> None:
        self.fleet = fleet
        self.address = fleet.address("upstream")
        self.made = fleet.state / "outside"
        self.made.mkdir(parents=True, exist_ok=True)

    # Files

    def gguf(self, seed: int, small: bool = True) -> Path:
        """A model of its own for each seed: 0.2 MB, or 6 MB where the transfer is what matters. Both load and answer."""
        path = self.made / f"{'small' if small else 'tiny'}-{seed}.gguf"
        if not path.exists():
            fresh = path.with_suffix(".new")
            command = [sys.executable, REPO / "testbed" / "make_tiny_gguf.py", *(SMALL if small else ()), "--seed", str(seed), fresh]
            subprocess.run(command, check=True, capture_output=True)
            fresh.rename(path)
        return path

    def large(self, seed: int) -> Path:
        """32 MB that nobody loads: more than what the kernel keeps in buffers between two hosts."""
        path = self.made / f"large-{seed}.gguf"
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(b"GGUF" + random.Random(seed).randbytes(32_000_000))
            fresh.rename(path)
        return path

    def shards(self, seed: int) -> list[Path]:
        """A model in two files, named as llama.cpp wants them. Nobody loads it here."""
        whole = self.gguf(seed).read_bytes()
        paths = [self.made / f"sharded-{seed}-0000{number}-of-00002.gguf" for number in (1, 2)]
        for path, half in zip(paths, (whole[: len(whole) // 2], whole[len(whole) // 2 :]), strict=True):
            path.write_bytes(b"GGUF" + half)
        return paths

    def safetensors(self, name: str, seed: int) -> Path:
        """A directory as model makers publish it: weights, configuration, tokenizer, and what no engine reads."""
        folder = self.made / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        weights = hashlib.shake_256(str(seed).encode()).digest(64 * 64 * 4)
        header = json.dumps({"weight": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, len(weights)]}}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "seed": seed}))
        (folder / "tokenizer.json").write_text('{"version":"1.0"}')
        (folder / "README.md").write_text("# A model for tests\n")
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        return folder

    def put(self, path: Path, target: str) -> None:
        """Copy a file or directory of this machine to a path of the host."""
        container = self.fleet.container("upstream")
        self.fleet.shell("upstream", f"install -d {Path(target).parent}")
        subprocess.run(["docker", "cp", str(path), f"{container}:{target}"], check=True, capture_output=True)
        self.fleet.shell("upstream", f"chmod -R a+rX {target}")

    # Hugging Face's hub

    @property
    def hub(self) -> str:
        return f"http://{self.address}:8081"

    def hub_revision(self, repository: str, name: str, folder: Path, branch: str = "main") -> None:
        """Give a repository another commit, and let a branch point to it."""
        target = f"/srv/hub/{repository}/{name}"
        self.fleet.shell("upstream", f"rm -rf {target}")
        self.put(folder, target)
        self.fleet.shell("upstream", f"ln -sfn {name} /srv/hub/{repository}/{branch}")

    def hub_rules(self, **repositories: dict) -> None:
        """Which repositories are gated or private, and who may read them nevertheless."""
        named = {f"fleet/{name}": about for name, about in repositories.items()}
        rules = {"tokens": {HUB_TOKEN: list(named)}, "repositories": named}
        self.fleet.shell("upstream", f"cat > /srv/hub/hub.json <<'END'\n{json.dumps(rules)}\nEND\n")

    # An OCI registry

    @property
    def registry(self) -> str:
        return f"{self.address}:5000"

    def oras(self, name: str, *files: Path) -> str:
        """`oras push`; returns the manifest's digest."""
        return push_files(self.registry, name, list(files), {path: path.name for path in files})

    def image(self, engine: str) -> None:
        """Push an engine's image: the testbed's, or the one that LLM_FLEET_IMAGE_<ENGINE> names."""
        command = [sys.executable, REPO / "testbed" / "fleet.py", "push-image", "-i", REPO / "molecule" / "inventory"]
        subprocess.run([*command, f"llm-fleet-testbed/{engine}"], check=True, capture_output=True)

    # Ollama's registry

    @property
    def ollama(self) -> str:
        return f"http://{self.address}:8082"

    def ollama_put(self, name: str, model: Path) -> str:
        """Make a model there or move its tag; returns the digest of its manifest."""
        self.put(model, "/srv/new.gguf")
        program = "/opt/doubles/ollama_registry/ollama_registry.py"
        self.fleet.shell("upstream", "printf '{\"temperature\":0.5}' > /srv/params.json")
        put = f"python3 {program} put --root /srv/ollama {name} --model /srv/new.gguf --params /srv/params.json"
        return self.fleet.shell("upstream", f"{put} && chown -R sources: /srv/ollama").splitlines()[-1]

    # MLflow

    @property
    def mlflow(self) -> str:
        return f"http://{self.address}:5500"

    def mlflow_version(self, name: str, files: list[Path], alias: str, **tags: str) -> str:
        """Log files with a run, through the server's artifact proxy; register them; point an alias to them."""
        run = self._mlflow_call("runs/create", {"experiment_id": "0"})["run"]["info"]
        place = run["artifact_uri"].partition(":/")[2]
        for path in files:
            with path.open("rb") as body:
                url = f"{self.mlflow}/api/2.0/mlflow-artifacts/artifacts/{place}/model/{path.name}"
                requests.put(url, data=body, timeout=30).raise_for_status()
        if requests.get(self._mlflow("registered-models/get"), params={"name": name}, timeout=30).status_code == 404:
            self._mlflow_call("registered-models/create", {"name": name})
        listed = [{"key": key, "value": tags[key]} for key in tags]
        wanted = {"name": name, "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"], "tags": listed}
        version = str(self._mlflow_call("model-versions/create", wanted)["model_version"]["version"])
        self.mlflow_alias(name, alias, version)
        return version

    def mlflow_alias(self, name: str, alias: str, version: str) -> None:
        self._mlflow_call("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def _mlflow(self, call: str) -> str:
        return f"{self.mlflow}/api/2.0/mlflow/{call}"

    def _mlflow_call(self, call: str, body: dict) -> dict:
        answer = requests.post(self._mlflow(call), json=body, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    # S3

    @property
    def s3(self) -> str:
        return f"http://{self.address}:9000"

    def bucket(self, bucket: str, prefix: str, *files: Path) -> None:
        """Put files below a prefix, as `boto3` does it when nobody asks for checksums."""
        client = boto3.client(
            "s3", endpoint_url=self.s3, region_name="us-east-1", aws_access_key_id="FLEET", aws_secret_access_key=S3_SECRET,
            config=Config(request_checksum_calculation="when_required"),
        )
        client.create_bucket(Bucket=bucket)
        for path in files:
            client.put_object(Bucket=bucket, Key=f"{prefix}{path.name}", Body=path.read_bytes())

    # A web server

    def web(self, path: Path, served: str) -> str:
        """Serve a file; returns its URL."""
        self.put(path, f"/srv/files/{served}")
        return f"http://{self.address}/{served}"

    def private_web(self, path: Path) -> str:
        """Serve it to those who know a password."""
        self.fleet.shell("upstream", PASSWORD_FILE.format(password=WEB_PASSWORD))
        self.put(path, f"/srv/files/private/{path.name}")
        return f"http://{self.address}:8080/{path.name}"

    def fetched(self, path: str, by: str) -> list[int]:
        """The statuses with which the web server answered a host's (or an address's) requests for a path."""
        log = self.fleet.shell("upstream", "cat /var/log/nginx/access.log").splitlines()
        address = self.fleet.address(by) if by in self.fleet.inventory["_meta"]["hostvars"] else by
        asked = (line.split('"') for line in log if line.startswith(f"{address} "))
        return [int(parts[2].split()[0]) for parts in asked if parts[1].split()[:2] == ["GET", path]]
