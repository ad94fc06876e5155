# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Debian's docker-registry as a process of a test's own, and an issuer of the tokens that it can be told to want."""

from __future__ import annotations

import base64
import datetime
import json
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

PROGRAM = shutil.which("docker-registry")
MISSING = "docker-registry is not installed here (apt-get install docker-registry)"
USER, PASSWORD = "reader", "open sesame"
HTPASSWD = f"{USER}:$2b$04$MH95o8rUJTZQnkHpzjkXrOsONwbVWk9JvcEl9wOIedPSyoJSSg6Ou\n"


class DockerRegistry:
    """A registry on a free port of 127.0.0.1. Several may share one `storage`: what is pushed to one, all of them have.

    `auth` is a part of the registry's own configuration, such as {"htpasswd": {...}}.
    """

    def __init__(self, folder: Path, storage: Path, auth: dict | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        configuration = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.address, "secret": "of a test"},
            **({"auth": auth} if auth else {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.yml"
        self.config.write_text(json.dumps(configuration))  # JSON is YAML

    def __enter__(self) -> DockerRegistry:
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen([str(PROGRAM), "serve", str(self.config)], stdout=self.log, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"docker-registry does not start: {(self.folder / 'log').read_text()[-800:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_error) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def _answers(self) -> bool:
        try:
            # No part of the API: with authentication that answers 401.
            with urlopen(f"http://{self.address}/", timeout=2):
                return True
        except OSError:
            return False


class TokenIssuer:
    """Makes out tokens to read what is asked for, to readers who give the password, or to all (`anonymous`)."""

    def __init__(self, folder: Path, anonymous: bool = False, seconds: int | None = 300) -> None:
        self.anonymous = anonymous
        self.seconds = seconds
        self.requests: list[tuple[dict, dict]] = []  # (query, headers in lower case)
        self.key, self.certificate = _self_signed()
        self.bundle = folder / "issuer.pem"
        folder.mkdir(parents=True, exist_ok=True)
        self.bundle.write_bytes(_pem(self.certificate))
        issuer = self

        class Handler(_IssuerHandler):
            owner = issuer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def auth(self) -> dict:
        """The part of a registry's configuration that makes it want these tokens."""
        realm = f"http://127.0.0.1:{self.server.server_port}/token"
        return {"token": {"realm": realm, "service": "models", "issuer": "a test", "rootcertbundle": str(self.bundle)}}

    def __enter__(self) -> TokenIssuer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def make(self, scope: str, service: str) -> str:
        """A JSON Web Token as the registry's token specification has it."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.serialization import Encoding

        kind, name, actions = scope.split(":")
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()]}
        claims = {
            "iss": "a test", "sub": USER, "aud": service, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": str(now),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = f"{_part(json.dumps(header).encode())}.{_part(json.dumps(claims).encode())}"
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_part(signature)}"


class _IssuerHandler(BaseHTTPRequestHandler):
    owner: TokenIssuer

    def do_GET(self) -> None:
        query = {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()}
        self.owner.requests.append((query, {name.lower(): value for name, value in self.headers.items()}))
        right = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if self.headers.get("Authorization") != right and not self.owner.anonymous:
            self.send_error(401)
            return
        answer = {"token": self.owner.make(query["scope"], query["service"])}
        if self.owner.seconds is not None:
            answer["expires_in"] = self.owner.seconds
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments) -> None:
        """Requests are kept in `requests`."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _pem(certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _self_signed():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer of a test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate
