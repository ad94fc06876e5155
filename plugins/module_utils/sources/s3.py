# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Models in a bucket: `s3://bucket/prefix[?files=globs]`, on any server that speaks S3.

boto3 lists the objects and signs their URLs; the bytes come through the same downloads as from any web server,
so that they resume and are verified in one place. A signed URL is a credential for hours: what messages show of
it is the part before the question mark.

Nothing in S3 pins the objects of a prefix together. Their digests in the lockfile do that.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import glob
import re
import sys
from collections.abc import Iterator
from urllib.parse import quote

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources.base import (
    RemoteFile,
    Resolution,
    Source,
    guess_format,
    whatever,
)
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.web import DIRECT, Request, tls_context

try:
    import boto3
    import botocore
    import botocore.exceptions as failures
    from botocore.config import Config

    HAS_BOTO3 = True
    REFUSALS: tuple = (failures.ClientError,)
    FAILURES: tuple = (failures.BotoCoreError,)
except ImportError:
    HAS_BOTO3 = False
    REFUSALS = FAILURES = ()

# A download that breaks off is resumed with the same URL, so it has to outlive the largest file on a slow line.
SIGNED_SECONDS = 12 * 3600
ACCESS_FIX = (
    "allow s3:ListBucket on the bucket and s3:GetObject on its objects to this access key, or give another "
    "access_key and secret_key in llm_fleet_sources"
)
REGION_FIX = "give the bucket's region (and, outside AWS, its endpoint) in llm_fleet_sources"
# What servers answer, and what an operator can do about it.
ANSWERS = {
    "NoSuchBucket": (
        "there is no bucket '{bucket}' at {endpoint}",
        "correct the source, or the endpoint in llm_fleet_sources",
    ),
    "InvalidBucketName": ("'{bucket}' is no name for a bucket", "correct the source"),
    "AccessDenied": ("the server refuses access to bucket '{bucket}'", ACCESS_FIX),
    "InvalidAccessKeyId": (
        "the server does not know the access key",
        "correct access_key in llm_fleet_sources; keys of another server do not work at {endpoint}",
    ),
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the access key",
        "correct secret_key in llm_fleet_sources; a proxy that changes requests has the same effect",
    ),
    "ExpiredToken": ("the session token has expired", "give a new session_token in llm_fleet_sources"),
    "InvalidToken": ("the session token is not valid", "correct or remove session_token in llm_fleet_sources"),
    "RequestTimeTooSkewed": (
        "this host's clock and the server's are too far apart",
        "set the clock of this host, signatures are made with it",
    ),
    "PermanentRedirect": ("bucket '{bucket}' is in another region", REGION_FIX),
    "AuthorizationHeaderMalformed": ("bucket '{bucket}' is in another region", REGION_FIX),
    "IllegalLocationConstraintException": ("bucket '{bucket}' is in another region", REGION_FIX),
}
# An answer to HEAD has no body, so its code is the status.
BARE_STATUSES = {"301": "PermanentRedirect", "403": "AccessDenied", "Forbidden": "AccessDenied"}
MISSING = ("404", "NoSuchKey", "NotFound")


class S3Source(Source):
    """The objects below a prefix, or the one object that the source names."""

    def __init__(self, url, settings) -> None:
        super().__init__(url, settings)
        self.bucket = url.host
        self.prefix = url.path.strip("/")
        self._client = None

    def resolve(self) -> Resolution:
        with self._explained():
            source, files = self.url.text, self._below(f"{self.prefix}/" if self.prefix else "")
            single = not files and bool(self.prefix)
            if single:
                source, files = self._single()
        if not files:
            raise ArtifactError(
                f"bucket '{self.bucket}' has no objects below '{self.prefix}/'"
                if self.prefix
                else f"bucket '{self.bucket}' is empty",
                self.url.text,
                "correct the prefix in the source; upper and lower case matter",
            )
        wanted = self.selected(files)
        left_out = frozenset(file.path for file in files) - {file.path for file in wanted}
        return Resolution(
            source, tuple(wanted), guess_format([file.path for file in wanted]), None, whatever if single else left_out.__contains__
        )

    def locate(self, path: str, size: int | None = None, sha256: str | None = None) -> Request:
        with self._explained():
            url = self.client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": f"{self.prefix}/{path}" if self.prefix else path},
                ExpiresIn=SIGNED_SECONDS,
            )
        return Request(url, shown=url.partition("?")[0])

    @property
    def endpoint(self) -> str:
        return self.settings.endpoint or "AWS"

    @property
    def client(self):
        """boto3's client for this source, made once."""
        if self._client is None:
            if not HAS_BOTO3:
                raise ArtifactError(
                    f"s3:// needs boto3, which {sys.executable} does not have",
                    self.url.text,
                    "install python3-boto3 (or boto3 with pip) on the host that fetches",
                )
            self._client = self._make_client()
        return self._client

    def _make_client(self):
        settings = self.settings
        if bool(settings.access_key) != bool(settings.secret_key):
            raise ArtifactError(
                "the credentials are incomplete", self.url.text, "give both access_key and secret_key in llm_fleet_sources"
            )
        session = boto3.session.Session(
            aws_access_key_id=settings.access_key or None,
            aws_secret_access_key=settings.secret_key or None,
            aws_session_token=settings.session_token or None,
        )
        options = {
            # Outside AWS a bucket is seldom a name in the DNS.
            "s3": {"addressing_style": "path" if settings.endpoint else "auto"},
            "signature_version": "s3v4",
            "connect_timeout": settings.timeout,
            "read_timeout": settings.timeout,
            "retries": {"total_max_attempts": settings.retries + 1, "mode": "standard"},
            "user_agent_extra": "localfirst.llm_fleet",
        }
        if settings.proxy:
            options["proxies"] = {} if settings.proxy == DIRECT else {"http": settings.proxy, "https": settings.proxy}
        if session.get_credentials() is None:
            # Neither in the settings nor in the usual places: a public bucket, or a clear refusal.
            options["signature_version"] = botocore.UNSIGNED
        if settings.ca_path and settings.validate_certs:
            tls_context(settings.ca_path)  # says so where it cannot be read; boto3 would blame the server
        try:
            client = session.client(
                "s3",
                endpoint_url=settings.endpoint or None,
                region_name=settings.region or session.region_name or "us-east-1",
                # None leaves AWS_CA_BUNDLE and the system's trust to boto3.
                verify=(settings.ca_path or None) if settings.validate_certs else False,
                config=Config(**options),
            )
        except ValueError as error:
            raise ArtifactError(
                f"boto3 takes neither '{self.endpoint}' nor region '{settings.region}'",
                self.url.text,
                "correct them in llm_fleet_sources; a host's name has letters, digits, '-' and '.' only",
            ) from error
        # Not of presigned URLs: whoever uses one sends exactly what was signed.
        for operation in ("ListObjectsV2", "HeadObject"):
            client.meta.events.register_last(f"before-sign.s3.{operation}", self._add_headers)
        return client

    def _add_headers(self, request, **_rest) -> None:
        for name, value in self.settings.headers.items():
            request.headers[name] = value

    def _below(self, prefix: str) -> list[RemoteFile]:
        files = []
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            if "Name" not in page:
                # boto3 takes any XML, a web page too, for an empty bucket.
                raise self._no_storage("it answers something else than a listing")
            for entry in page.get("Contents", ()):
                # Consoles keep empty directories as objects whose name ends with a slash.
                if not entry["Key"].endswith("/"):
                    path = entry["Key"][len(prefix) :]
                    files.append(RemoteFile(path, entry["Size"], self._sha256(entry)))
        return files

    def _single(self) -> tuple[str, list[RemoteFile]]:
        """The object that the source names itself, pinned as the one file of the prefix above it."""
        above, _slash, name = self.prefix.rpartition("/")
        try:
            head = self.client.head_object(Bucket=self.bucket, Key=self.prefix, ChecksumMode="ENABLED")
        except failures.ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                return self.url.text, []
            raise
        source = f"s3://{self.bucket}/{quote(above)}?files={quote(glob.escape(name))}"
        self.prefix = above
        return source, [RemoteFile(name, head["ContentLength"], full_sha256(head))]

    def _sha256(self, entry: dict) -> str | None:
        """The digest of a listed object, where the server keeps one of the whole content."""
        if "SHA256" not in entry.get("ChecksumAlgorithm", ["SHA256"]) or entry.get("ChecksumType") == "COMPOSITE":
            return None
        return full_sha256(self.client.head_object(Bucket=self.bucket, Key=entry["Key"], ChecksumMode="ENABLED"))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what boto3's errors mean for an operator."""
        try:
            yield
        except REFUSALS as error:
            raise self._refused(error) from error
        except FAILURES as error:
            what, fix = self._unreachable(error)
            raise ArtifactError(what, self.url.text, fix) from error

    def _refused(self, error) -> ArtifactError:
        answer = error.response
        code = answer["Error"].get("Code", "")
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = BARE_STATUSES.get(code, code)
        if (not code or code.isdigit()) and status in (400, 404, 405, 501):
            # S3 gives a reason in XML.
            return self._no_storage(f"it answers {status}")
        what, fix = ANSWERS.get(
            code,
            (
                f"the server answers {status} {code} ({answer['Error'].get('Message', '')})",
                "look at that server's log, then run again",
            ),
        )
        named = {"bucket": self.bucket, "endpoint": self.endpoint}
        return ArtifactError(what.format(**named), self.url.text, fix.format(**named), status=status)

    def _unreachable(self, error: Exception) -> tuple[str, str]:
        reason = cause(error)
        if isinstance(error, failures.SSLError) and "certificate" not in reason.lower():
            return (
                f"{self.endpoint} does not speak TLS ({reason})",
                "check the endpoint's port in llm_fleet_sources; storage without TLS is http://",
            )
        if isinstance(error, failures.SSLError):
            return (
                f"the certificate of {self.endpoint} is not trusted ({reason})",
                "name the CA that signed it (ca_path in llm_fleet_sources)",
            )
        if isinstance(error, failures.ProxyConnectionError):
            return f"the proxy cannot be used ({reason})", "check proxy in llm_fleet_sources, or HTTPS_PROXY"
        if isinstance(error, (failures.HTTPClientError, failures.ConnectionError)):
            if "resol" in reason or "Name or service" in reason:
                return (
                    f"the name of {self.endpoint} cannot be resolved",
                    "check the endpoint in llm_fleet_sources and the DNS of this host",
                )
            return (
                f"{self.endpoint} cannot be reached ({reason})",
                "check that the server is up and that this host may reach it, then run again",
            )
        if isinstance(error, failures.PartialCredentialsError):
            return f"the credentials of this host are incomplete ({reason})", "give access_key and secret_key in llm_fleet_sources"
        if isinstance(error, failures.ParamValidationError):
            return f"'{self.bucket}' is no name for a bucket", "correct the source"
        return self._no_storage(reason).fault[::2]

    def _no_storage(self, reason: str) -> ArtifactError:
        fix = "check the endpoint in llm_fleet_sources: it is the address of the API, without the bucket"
        return ArtifactError(f"{self.endpoint} does not speak S3 ({reason})", self.url.text, fix)


def full_sha256(head: dict) -> str | None:
    """The digest of an object's whole content. What came in parts has one made of the digests of its parts."""
    value = head.get("ChecksumSHA256", "")
    in_parts = "-" in value or "-" in head.get("ETag", "")
    if in_parts or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(value, validate=True).hex()
    except binascii.Error:
        return None
    return digest if len(digest) == 64 else None


def cause(error: Exception) -> str:
    """Why it failed, in as few words as the error gives."""
    inner = getattr(error, "kwargs", {}).get("error", error)
    text = re.sub(r" \(_ssl\.c:\d+\)", "", str(getattr(inner, "reason", None) or inner))
    # urllib3 puts its objects before its words: "<… object at 0x…>: Failed to …: [Errno 111] Connection refused".
    return text.rpartition("] ")[2].rpartition(">: ")[2].strip(" '\")") or type(error).__name__
