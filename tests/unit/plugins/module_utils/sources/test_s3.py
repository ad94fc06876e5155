# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Sources in buckets, against moto's server: real requests, signatures and answers of S3."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.artifact import ArtifactError
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source
from ansible_collections.localfirst.llm_fleet.tests.unit.support.mlflow_server import MlflowServer

ROOT = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
FILES = {
    "models/tiny/1.0/tiny.gguf": b"GGUF" + bytes(range(256)) * 40,
    "models/tiny/1.0/sub dir/a+b%20c.json": b"{}",
    "models/tiny/1.0/": b"",
    "models/tiny/1.0-other/other.gguf": b"other",
}


@pytest.fixture(scope="module", autouse=True)
def nobody():
    """No credentials or settings of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
        yield


@pytest.fixture(scope="module")
def endpoint(nobody):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint):
    """A client of a server that holds one bucket with FILES, and lets everybody do everything."""
    post(f"{endpoint}/moto-api/reset", b"")
    client = boto3.client("s3", endpoint_url=endpoint, **ROOT)
    client.create_bucket(Bucket="weights")
    for key, body in FILES.items():
        client.put_object(Bucket="weights", Key=key, Body=body)
    return client


@pytest.fixture
def guarded(endpoint, bucket):
    """The server asks for signatures now. The client's user may read below models/tiny/ only; returns its two keys."""
    iam = boto3.client("iam", endpoint_url=endpoint, **ROOT)
    iam.create_user(UserName="reader")
    allowed = [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::weights"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::weights/models/tiny/*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    post(f"{endpoint}/moto-api/reset-auth", b"0")
    yield {"access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]}
    post(f"{endpoint}/moto-api/reset-auth", b"inf")


def post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request, timeout=10).close()


def source(text: str, endpoint: str, **settings):
    keys = {"access_key": "testing", "secret_key": "testing", "retries": 0, "timeout": 5, "endpoint": endpoint}
    return open_source(text, {"s3://": {**keys, **settings}})


def refusal(text: str, endpoint: str, **settings):
    with pytest.raises(ArtifactError) as caught:
        source(text, endpoint, **settings).resolve()
    fault = caught.value.fault
    assert fault.where == text
    return fault


def fetch(request) -> bytes:
    with urllib.request.urlopen(request.url, timeout=5) as answer:
        return answer.read()


def sizes(resolution) -> dict[str, int]:
    return {file.path: file.size for file in resolution.files}


def test_files_are_the_objects_below_the_prefix(endpoint, bucket):
    found = source("s3://weights/models/tiny/1.0", endpoint).resolve()
    assert sizes(found) == {"sub dir/a+b%20c.json": 2, "tiny.gguf": len(FILES["models/tiny/1.0/tiny.gguf"])}
    assert found.source == "s3://weights/models/tiny/1.0"
    assert found.format == "gguf"


def test_versions_of_a_registry_whose_files_are_in_a_bucket(endpoint, guarded):
    """The registry names the bucket; llm_fleet_sources says how it is asked."""
    with MlflowServer() as registry:
        registry.register("tiny", "1", "s3://weights/models/tiny/1.0")
        settings = {"mlflow://": {"endpoint": registry.url}, "s3://weights/": {"endpoint": endpoint, "retries": 0, **guarded}}
        here = open_source("mlflow://tiny/1", settings)
        assert "tiny.gguf" in sizes(here.resolve())
        request = open_source("mlflow://tiny/1", settings).locate("tiny.gguf")
        assert request.where == f"{endpoint}/weights/models/tiny/1.0/tiny.gguf" and "Signature=" in request.url
        registry.register("tiny", "2", "s3://weights/models/tiny/1.0/tiny.gguf")
        with pytest.raises(ArtifactError, match="no folder with files"):
            open_source("mlflow://tiny/2", settings).resolve()


def test_a_long_listing_is_read_to_its_end(endpoint, bucket):
    for number in range(8):
        bucket.put_object(Bucket="weights", Key=f"many/{number}.bin", Body=b"x")
    assert bucket.list_objects_v2(Bucket="weights", Prefix="many/")["IsTruncated"]
    assert len(source("s3://weights/many/", endpoint).resolve().files) == 8


def test_a_whole_bucket(endpoint, bucket):
    assert "models/tiny/1.0/tiny.gguf" in sizes(source("s3://weights", endpoint).resolve())


def test_a_pattern_chooses_files(endpoint, bucket):
    found = source("s3://weights/models/tiny/1.0?files=*.gguf", endpoint).resolve()
    assert list(sizes(found)) == ["tiny.gguf"]


def test_a_pattern_that_fits_nothing_says_what_is_there(endpoint, bucket):
    assert "tiny.gguf" in refusal("s3://weights/models/tiny/1.0?files=*.safetensors", endpoint).fix


@pytest.mark.parametrize("key", ["models/tiny/1.0/tiny.gguf", "models/tiny/1.0/sub dir/a+b%20c.json", "odd/[1],*.gguf"])
def test_one_object_can_be_named_itself(endpoint, bucket, key):
    bucket.put_object(Bucket="weights", Key=key, Body=FILES.get(key, b"odd"))
    found = source("s3://weights/" + urllib.request.quote(key), endpoint).resolve()
    assert sizes(found) == {key.rpartition("/")[2]: len(FILES.get(key, b"odd"))}
    # The pinned address alone leads to the same bytes.
    again = source(found.source, endpoint)
    assert again.resolve() == found
    assert fetch(again.locate(found.files[0].path)) == FILES.get(key, b"odd")


def test_every_file_can_be_fetched_by_its_signed_url(endpoint, bucket):
    here = source("s3://weights/models/tiny/1.0", endpoint)
    for file in here.resolve().files:
        assert fetch(here.locate(file.path)) == FILES[f"models/tiny/1.0/{file.path}"]


def test_what_messages_show_of_a_signed_url_is_no_secret(endpoint, bucket):
    request = source("s3://weights/models/tiny/1.0", endpoint).locate("tiny.gguf")
    assert "Signature=" in request.url
    assert request.where == f"{endpoint}/weights/models/tiny/1.0/tiny.gguf"
    assert "Signature" not in repr(request)


def test_digests_are_known_where_the_server_keeps_them(endpoint, bucket):
    body = b"weights" * 1000
    bucket.put_object(Bucket="weights", Key="summed/a.bin", Body=body, ChecksumAlgorithm="SHA256")
    bucket.put_object(Bucket="weights", Key="summed/b.bin", Body=body, ChecksumAlgorithm="CRC32")
    found = source("s3://weights/summed", endpoint).resolve()
    assert [file.sha256 for file in found.files] == [hashlib.sha256(body).hexdigest(), None]


def test_the_digest_of_the_digests_of_parts_is_none(endpoint, bucket):
    upload = bucket.create_multipart_upload(Bucket="weights", Key="parts/a.bin", ChecksumAlgorithm="SHA256")
    where = {"Bucket": "weights", "Key": "parts/a.bin", "UploadId": upload["UploadId"]}
    sent = []
    for number, body in enumerate((b"a" * (5 << 20), b"b"), start=1):
        part = bucket.upload_part(**where, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256")
        sent.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]})
    bucket.complete_multipart_upload(**where, MultipartUpload={"Parts": sent})
    assert source("s3://weights/parts", endpoint).resolve().files[0].sha256 is None


def test_a_bucket_that_is_not_there(endpoint, bucket):
    fault = refusal("s3://nosuchbucket/models", endpoint)
    assert "'nosuchbucket'" in fault.what and endpoint in fault.what


def test_a_prefix_that_is_not_there(endpoint, bucket):
    fault = refusal("s3://weights/models/tiny/2.0", endpoint)
    assert "models/tiny/2.0" in fault.what and "prefix" in fault.fix


def test_signed_requests_are_let_in(endpoint, guarded):
    found = source("s3://weights/models/tiny/1.0", endpoint, **guarded).resolve()
    assert "tiny.gguf" in sizes(found)


def test_a_secret_that_does_not_belong_to_the_key(endpoint, guarded):
    fault = refusal("s3://weights/models/tiny/1.0", endpoint, **{**guarded, "secret_key": "wrong" * 8})
    assert "secret key" in fault.what and "secret_key" in fault.fix
    assert "wrong" not in fault.text() and guarded["access_key"] not in fault.text()


def test_a_key_that_the_server_does_not_know(endpoint, guarded):
    fault = refusal("s3://weights/models/tiny/1.0", endpoint, access_key="AKIANOSUCHKEY0000000", secret_key="x" * 40)
    assert "access key" in fault.what and "access_key" in fault.fix


def test_a_key_without_the_right_to_read(endpoint, bucket, guarded):
    fault = refusal("s3://weights/models/other.gguf", endpoint, **guarded)
    assert "refuses access" in fault.what and "s3:GetObject" in fault.fix


def test_a_key_of_which_half_is_missing(endpoint, bucket):
    with pytest.raises(ArtifactError) as caught:
        open_source("s3://weights/models", {"s3://": {"endpoint": endpoint, "access_key": "testing"}}).resolve()
    assert "both access_key and secret_key" in caught.value.fault.fix


def test_without_credentials_requests_are_anonymous(endpoint, bucket):
    bucket.put_object_acl(Bucket="weights", Key="models/tiny/1.0/tiny.gguf", ACL="public-read")
    here = open_source("s3://weights/models/tiny/1.0", {"s3://": {"endpoint": endpoint, "retries": 0}})
    assert "tiny.gguf" in sizes(here.resolve())
    request = here.locate("tiny.gguf")
    assert "?" not in request.url and fetch(request) == FILES["models/tiny/1.0/tiny.gguf"]


def test_nobody_listens_at_the_endpoint():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        fault = refusal("s3://weights/models", endpoint)
    assert f"{endpoint} cannot be reached" in fault.what and "refused" in fault.what


def test_the_endpoint_has_no_address():
    fault = refusal("s3://weights/models", "http://s3.invalid:9000")
    assert "http://s3.invalid:9000 cannot be resolved" in fault.what and "DNS" in fault.fix


def test_a_name_that_boto3_takes_for_no_name():
    fault = refusal("s3://weights/models", "http://s3_storage:9000")
    assert "s3_storage" in fault.what and "endpoint" not in fault.what


def test_the_endpoint_is_slow():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        fault = refusal("s3://weights/models", endpoint, timeout=1)
    assert "cannot be reached" in fault.what


class Page(BaseHTTPRequestHandler):
    """A web page for whatever is asked; remembers who asked for what."""

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"<html>Welcome!</html>")

    def log_message(self, *_args):
        pass


@pytest.fixture
def page():
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.asked, server.status = [], 200
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("status", [200, 404])
def test_the_endpoint_is_no_storage(page, status):
    page.status = status
    fault = refusal("s3://weights/models", f"http://127.0.0.1:{page.server_port}")
    assert "does not speak S3" in fault.what and "endpoint" in fault.fix


def test_a_proxy_is_used_and_the_operators_headers_are_sent(page):
    proxy = f"http://127.0.0.1:{page.server_port}"
    refusal("s3://weights/models", "http://s3.invalid:9000", proxy=proxy, headers={"X-Tenant": "blue"})
    (asked, headers), *_more = page.asked
    assert asked.startswith("http://s3.invalid:9000/weights?") and headers["X-Tenant"] == "blue"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def encrypted(page, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    page.socket = context.wrap_socket(page.socket, server_side=True)
    return f"https://127.0.0.1:{page.server_port}"


def test_an_endpoint_without_tls(page):
    fault = refusal("s3://weights/models", f"https://127.0.0.1:{page.server_port}")
    assert "does not speak TLS" in fault.what and "http://" in fault.fix


def test_a_certificate_of_somebody_unknown(encrypted):
    fault = refusal("s3://weights/models", encrypted)
    assert "not trusted" in fault.what and "ca_path" in fault.fix


def test_a_list_of_authorities_that_is_not_there(encrypted):
    with pytest.raises(ArtifactError) as caught:
        source("s3://weights/models", encrypted, ca_path="/nonexistent/ca.pem").resolve()
    assert caught.value.fault.where == "/nonexistent/ca.pem"


@pytest.mark.parametrize("trust", ["ca_path", "validate_certs"])
def test_a_certificate_that_is_trusted(encrypted, certificate, page, trust):
    settings = {"ca_path": str(certificate[0])} if trust == "ca_path" else {"validate_certs": False}
    refusal("s3://weights/models", encrypted, **settings)  # a web page, but an encrypted one
    assert page.asked


def test_without_boto3_the_message_says_what_to_install(tmp_path):
    """In a Python of its own, one that has nothing but the standard library."""
    collections = next(Path(p) for p in sys.path if (Path(p) / "ansible_collections" / "localfirst").is_dir())
    code = "from ansible_collections.localfirst.llm_fleet.plugins.module_utils.sources import open_source as o\n" \
           "try: o('s3://weights/models', {}).resolve()\nexcept Exception as error: print(error)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(collections)}, text=True, capture_output=True, check=True
    )
    assert "python3-boto3" in done.stdout
