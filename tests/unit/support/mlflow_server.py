# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The parts of MLflow's documented REST API that reading a registered model needs, for tests.

Answers, statuses and error codes are those of MLflow 3.17. It leaves out all that writes, and everything else.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


@dataclass
class Model:
    """A registered model: its versions by number, and which of them its aliases mean."""

    versions: dict[str, dict] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class MlflowServer:
    """Serves `models`, and the files in `artifacts` by their path in the artifact store."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.artifacts: dict[str, bytes] = {}
        self.authorization = ""  # what requests must carry
        self.serves_artifacts = True
        self.requests: list[tuple[str, dict[str, str]]] = []
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(self, *_error) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def register(self, name: str, version: str, uri: str, alias: str = "", status: str = "READY", **tags: str) -> None:
        model = self.models.setdefault(name, Model())
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        model.versions[version] = {"source": uri, "status": status, "tags": listed}
        if alias:
            model.aliases[alias] = version


class Refusal(Exception):
    """An error as MLflow tells it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.body = {"error_code": code, "message": message}
        super().__init__(message)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: MlflowServer

    def do_GET(self) -> None:
        owner = self.server_owner
        owner.requests.append((self.path, dict(self.headers)))
        if owner.authorization and self.headers.get("Authorization") != owner.authorization:
            return self.answer(401, b"You are not authenticated.", "text/html")
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        try:
            if parts.path.startswith(API):
                call = getattr(self, parts.path[len(API) :].replace("/", "_").replace("-", "_"), None)
                if call is None:
                    return self.answer(404, b"<title>404 Not Found</title>", "text/html")
                return self.tell(200, call(**query))
            if parts.path.startswith(ARTIFACTS) and not owner.serves_artifacts:
                return self.answer(503, b"Endpoint disabled due to the mlflow server running without `--serve-artifacts`.", "text/plain")
            if parts.path == ARTIFACTS:
                return self.tell(200, self.listing(query.get("path", "")))
            if parts.path.startswith(f"{ARTIFACTS}/"):
                return self.file(unquote(parts.path[len(ARTIFACTS) + 1 :]))
        except Refusal as refusal:
            return self.tell(refusal.status, refusal.body)
        return self.answer(404, b"<title>404 Not Found</title>", "text/html")

    def model(self, name: str) -> Model:
        if name not in self.server_owner.models:
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"Registered Model with name={name} not found")
        return self.server_owner.models[name]

    def version(self, name: str, version: str) -> dict:
        if version not in getattr(self.server_owner.models.get(name), "versions", {}):
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"Model Version (name={name}, version={version}) not found")
        found = self.server_owner.models[name].versions[version]
        return {"name": name, "version": version, **found}

    def registered_models_get(self, name: str) -> dict:
        model = self.model(name)
        newest = [{"name": name, "version": max(model.versions, key=int)}] if model.versions else []
        aliases = [{"alias": alias, "version": version} for alias, version in model.aliases.items()]
        return {"registered_model": {"name": name, "latest_versions": newest, **({"aliases": aliases} if aliases else {})}}

    def registered_models_alias(self, name: str, alias: str) -> dict:
        model = self.model(name)
        if alias not in model.aliases:
            raise Refusal(400, "INVALID_PARAMETER_VALUE", f"Registered model alias {alias} not found.")
        return {"model_version": self.version(name, model.aliases[alias])}

    def model_versions_get(self, name: str, version: str) -> dict:
        return {"model_version": self.version(name, version)}

    def model_versions_get_download_uri(self, name: str, version: str) -> dict:
        return {"artifact_uri": self.version(name, version)["source"]}

    def listing(self, path: str) -> dict:
        """What lies directly below a path: nothing at all where it is a file or not there."""
        root = f"{path}/" if path else ""
        names: dict[str, dict] = {}
        for file, body in self.server_owner.artifacts.items():
            if file.startswith(root):
                name, deeper, _rest = file[len(root) :].partition("/")
                names[name] = {"path": name, "is_dir": bool(deeper)} | ({} if deeper else {"file_size": len(body)})
        return {"files": list(names.values())} if names else {}

    def file(self, path: str) -> None:
        if path not in self.server_owner.artifacts:
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"No such artifact: '{path}'")
        self.answer(200, self.server_owner.artifacts[path], "application/octet-stream")

    def tell(self, status: int, data: dict) -> None:
        self.answer(status, json.dumps(data).encode(), "application/json")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args) -> None:
        pass
