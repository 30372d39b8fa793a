"""The factory of boto3's clients: the region, the connections, and that there is no other."""

from __future__ import annotations

import ast
import dataclasses
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from celery_sqs import aws as sqs_aws
from celery_sqs.scaler.alarms import Alarms
from celery_sqs.scaler.fleet.ec2 import EC2Fleet
from faceapp import broker
from faceapp.broker.clients import sqs_client
from faceapp.config import Settings, aws
from faceapp.config.aws import client as aws_client
from faceapp.config.aws import of as aws_of
from faceapp.deploy.target import Target
from faceapp.errors import ConfigError
from faceapp.scaler import options
from faceapp.storage import Storage
from tests.support.imds import metadata_service
from tests.support.services import REPOSITORY

BURST = 200
PROFILES = "[default]\nregion = eu-south-1\n[profile other]\nregion = eu-south-2\n[profile none]\n"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without AWS: nothing names a region, and this is no EC2 instance."""
    for variable in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    sqs_aws._instance_region.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2", "PROFILES": "yes"}, "eu-west-1"),
        ({"AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2", "PROFILES": "yes"}, "eu-west-2"),
        ({"PROFILES": "yes"}, "eu-south-1"),
        ({"PROFILES": "yes", "AWS_PROFILE": "other", "AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}, "eu-south-2"),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566"}, "us-east-1"),
    ],
)
def test_one_rule_says_the_region(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], region: str
) -> None:
    """C4: AWS_REGION was documented and not read, and queues went to us-east-1 in silence."""
    (nowhere / "config").write_text(PROFILES)
    if variables.pop("PROFILES", ""):
        monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere / "config"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert aws.region() == region


def test_an_instance_is_in_its_own_region(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C4"""
    with metadata_service() as service:
        service.answers["placement/availability-zone/"] = "ap-south-1b"
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        try:
            assert aws.region() == "ap-south-1"
            assert aws.region() == "ap-south-1"
            assert len(service.asked) == 2, "a token and the place, once"
        finally:
            sqs_aws._instance_region.cache_clear()


@pytest.mark.parametrize("endpoint", ["", "https://minio.example.org", "http://127.0.0.1.example.org", "http://[::1"])
def test_no_region_is_a_sentence_that_names_the_variable(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """C4: no silent default, but for an AWS on this machine."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for make in (aws.region, lambda: aws.client("sqs"), lambda: Storage(Settings()).client):
        with pytest.raises(ConfigError, match="set AWS_REGION"):
            make()


@pytest.mark.parametrize("command", ["web", "worker", "scaler", "flower"])
def test_a_service_without_a_region_does_not_start(nowhere: Path, command: str) -> None:
    """C4: the scaler ended in a traceback."""
    done = subprocess.run([sys.executable, "-m", "faceapp", command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr == f"Error: {sqs_aws.NO_REGION}\n"


def test_every_client_is_in_the_region(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C4"""
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    settings = Settings(scaler_cloudwatch="yes")
    made = [
        sqs_client(),
        aws_client("sns"),
        aws.of(settings).quick("sqs"),
        aws.of(settings).quick("sns"),
        Storage(settings).client,
        Storage(settings, quick=True).client,
        EC2Fleet(options(settings), aws_of(settings))._client,
        Alarms(options(settings), aws_of(settings))._client,
        Target(settings=settings, region="eu-north-1", account="1").client("cloudformation"),
    ]
    # The queue is asked for when a connection is made; here nobody answers.
    monkeypatch.setattr(broker.Channel, "_update_queue_cache", lambda *_: None)
    with broker.create_app(settings).connection_for_write() as connection:
        channel = connection.default_channel
        made += [channel.sqs(), channel.fanout.get_client(), channel._new_release_client(channel.sqs())]
        assert channel.region == "eu-north-1"
    assert {each.meta.region_name for each in made} == {"eu-north-1"}


def test_no_other_module_makes_clients() -> None:
    """C4: a client made elsewhere has a rule of its own."""
    makers = {"boto3", "botocore.session", "botocore.config", "botocore.client"}
    found = set()
    for path in (path for room in ("celery_sqs", "faceapp") for path in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            if makers & {*names, *(each.partition(".")[0] for each in names)}:
                found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == {"celery_sqs/aws.py"}


@contextmanager
def crowded(clients: int) -> Iterator[str]:
    """A server that answers when `clients` requests wait at once, so that each has a connection of its own."""
    everybody = threading.Barrier(clients)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            everybody.wait(240)
            self.send_response(200)
            body = b"" if self.command == "PUT" else b"{}"
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("service", ["s3", "sqs", "quick sqs"])
def test_a_burst_finds_room_in_the_pool(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, service: str
) -> None:
    """G5: "Connection pool is full, discarding connection", a dozen times in a burst of 100."""
    caplog.set_level(logging.WARNING)
    with crowded(BURST) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        # None may give up before the last has come, however busy the machine is.
        monkeypatch.setitem(sqs_aws.QUICK, "read_timeout", 240)
        own = Settings(web_connections=BURST + 1)
        storage, client = Storage(own), sqs_client(retries=aws.ONCE, read_timeout=240)

        def call(n: int) -> Any:
            if service == "s3":
                return storage.client.put_object(Bucket="b", Key=str(n), Body=b"x")
            which = aws.of(own).quick("sqs") if service == "quick sqs" else client
            return which.send_message(QueueUrl=f"{endpoint}/1/q", MessageBody=str(n))

        with ThreadPoolExecutor(BURST) as threads:
            answers = list(threads.map(call, range(BURST)))
    assert len(answers) == BURST
    assert not [each for each in caplog.messages if "pool" in each]


def test_a_client_keeps_as_many_connections_as_requests_can_be_open() -> None:
    """G5"""
    assert aws.connections(Settings(web_connections=5000)) == 5000
    assert aws.connections(Settings(web_connections=2, web_waiting=1)) == sqs_aws.LEAST_CONNECTIONS


@pytest.mark.parametrize("account", ["", "123456789012"])
def test_every_call_of_s3_says_whose_the_bucket_must_be(
    stack: Settings, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """S12: the name of a bucket that was deleted may be anybody's the next moment."""
    own = dataclasses.replace(stack, account=account)
    monkeypatch.setattr(aws, "settings", lambda: own)
    storage, said = Storage(own), list[tuple[str, Any]]()

    def listen(request: Any, event_name: str, **_: Any) -> None:
        said.append((event_name.rpartition(".")[2], request.headers.get("x-amz-expected-bucket-owner")))

    storage.client.meta.events.register("before-send.s3", listen)
    request_id = uuid.uuid4().hex
    storage.ready()
    storage.put_photo(request_id, b"x", file_name="x", content_type="image/jpeg")
    storage.get_photo(request_id)
    storage.photo_exists(request_id)
    storage.delete_photo(request_id)
    storage.put_gallery("vectors/x/1", b"x")
    storage.delete_gallery([key for key, _ in storage.list_gallery("vectors/")])
    calls = {name for name, _ in said}
    assert {"PutObject", "GetObject", "HeadObject", "DeleteObject", "DeleteObjects", "ListObjectsV2"} <= calls
    # As bytes from the parameter, or not at all.
    assert {value.decode() if isinstance(value, bytes) else value for _, value in said} == {account or None}
