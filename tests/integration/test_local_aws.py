"""The embedded AWS as a process, how it counts calls, and what makes moto fast."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import moto.backends
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3 import models as models_of_s3
from moto.s3.models import FakeKey
from moto.sqs import models
from moto.sqs.exceptions import ReceiptHandleIsInvalid

from celery_sqs.testing import fast_moto, large_bodies
from celery_sqs.testing.aws import LISTENING
from celery_sqs.testing.large_bodies import TakeLargeBodies
from faceapp.local import calls
from tests.support.aws import COUNTER, session
from tests.support.services import part_environ

COMMAND = [sys.executable, "-m", "faceapp.local.aws"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an embedded AWS of this module's own; its process ends well when it is told to."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], env=part_environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith(LISTENING)
    yield line.removeprefix(LISTENING).strip()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output == ""


@pytest.fixture
def counted(served: str) -> str:
    """The same, with every count at zero."""
    ask(served, "DELETE")
    return served


def ask(url: str, method: str = "GET") -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    connection.request(method, calls.PATH, headers=COUNTER)
    document: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return document


def client(url: str, service: str) -> Any:
    return session().client(service, endpoint_url=url)


def test_calls_are_counted_by_service_and_operation(counted: str) -> None:
    s3, sqs, cloudformation = (client(counted, service) for service in ("s3", "sqs", "cloudformation"))
    s3.create_bucket(Bucket="counted")
    s3.put_object(Bucket="counted", Key="a/b", Body=b"1")
    s3.copy_object(Bucket="counted", Key="c", CopySource="counted/a/b")
    assert s3.get_object(Bucket="counted", Key="a/b")["Body"].read() == b"1"
    s3.list_objects_v2(Bucket="counted")
    s3.delete_objects(Bucket="counted", Delete={"Objects": [{"Key": "c"}]})
    url = sqs.create_queue(QueueName="counted")["QueueUrl"]
    sqs.receive_message(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody="hello")
    assert len(sqs.receive_message(QueueUrl=url)["Messages"]) == 1
    assert cloudformation.list_stacks()["StackSummaries"] == []
    found = ask(counted)
    assert found["calls"] == {
        "cloudformation": {"ListStacks": 1},
        "s3": {
            "CopyObject": 1,
            "DeleteObjects": 1,
            "GetObject": 1,
            "ListObjectsV2": 1,
            "PutBucket": 1,
            "PutObject": 1,
        },
        "sqs": {"CreateQueue": 1, "ReceiveMessage": 1, calls.EMPTY: 1, "SendMessage": 1},
    }
    assert found["cpu_s"] > 0


def test_counting_begins_again(counted: str) -> None:
    client(counted, "sqs").list_queues()
    before = ask(counted)
    assert before["calls"] == {"sqs": {"ListQueues": 1}}
    after = ask(counted, "DELETE")
    assert after["calls"] == {}
    assert after["cpu_s"] < before["cpu_s"]


def test_a_request_without_a_signature_is_counted_as_such() -> None:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/bucket/key", "wsgi.input": io.BytesIO()}
    assert calls.identify(environ) == ("unsigned", "GetObject")


@pytest.mark.parametrize("key", ["plain", "a b", "a%20b", "Zoë/O'Neil", "a+b", "100%"])
def test_an_objects_key_is_kept_as_it_is(served: str, key: str) -> None:
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="keys")
    s3.put_object(Bucket="keys", Key=key, Body=key.encode())
    assert s3.get_object(Bucket="keys", Key=key)["Body"].read() == key.encode()
    assert key in [each["Key"] for each in s3.list_objects_v2(Bucket="keys")["Contents"]]


LARGE = bytes(range(256)) * 8 * 1024


def test_a_large_object_is_kept_as_it_came(served: str) -> None:
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="large")
    for data in (LARGE, LARGE[::-1]):
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        assert s3.put_object(Bucket="large", Key="a", Body=data)["ETag"] == etag
        answer = s3.get_object(Bucket="large", Key="a")
        assert (answer["Body"].read(), answer["ETag"], answer["ContentLength"]) == (data, etag, len(data))
    s3.copy_object(Bucket="large", Key="b", CopySource="large/a")
    s3.delete_object(Bucket="large", Key="a")
    ranged = s3.get_object(Bucket="large", Key="b", Range="bytes=-300")
    assert ranged["Body"].read() == LARGE[::-1][-300:]


def test_a_condition_holds_for_a_large_object(served: str) -> None:
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="conditions")

    def put(n: int) -> int:
        try:
            answer = s3.put_object(Bucket="conditions", Key="a", Body=LARGE + bytes([n]), IfNoneMatch="*")
        except ClientError as error:
            answer = error.response
        return int(answer["ResponseMetadata"]["HTTPStatusCode"])

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(put, range(8)))
    assert sorted(statuses) == [200] + [412] * 7
    first = statuses.index(200)
    assert s3.get_object(Bucket="conditions", Key="a")["Body"].read() == LARGE + bytes([first])


def test_large_parts_make_one_object(served: str) -> None:
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="parts")
    s3.upload_fileobj(io.BytesIO(LARGE * 6), "parts", "a", Config=TransferConfig(multipart_chunksize=5 * 2**20))
    answer = s3.get_object(Bucket="parts", Key="a")
    assert answer["Body"].read() == LARGE * 6
    assert answer["ETag"].endswith('-3"')


def test_a_large_object_in_chunks_is_kept_without_their_heads(served: str) -> None:
    """As boto3 sends it to an address with TLS: with its checksum after it."""
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="chunks")
    url = urlsplit(s3.generate_presigned_url("put_object", {"Bucket": "chunks", "Key": "a"}))
    body = b"%x\r\n%b\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n"
    checksum = base64.b64encode(zlib.crc32(LARGE).to_bytes(4, "big"))
    connection = http.client.HTTPConnection(url.netloc, timeout=240)
    fields = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "X-Amz-Decoded-Content-Length": str(len(LARGE)),
        "X-Amz-Trailer": "x-amz-checksum-crc32",
    }
    connection.request("PUT", f"{url.path}?{url.query}", body % (len(LARGE), LARGE, checksum), fields)
    assert connection.getresponse().status == 200
    connection.close()
    assert s3.get_object(Bucket="chunks", Key="a")["Body"].read() == LARGE


def test_a_large_object_that_is_cut_off_is_not_kept(served: str) -> None:
    s3 = client(served, "s3")
    s3.create_bucket(Bucket="cut")
    url = urlsplit(s3.generate_presigned_url("put_object", {"Bucket": "cut", "Key": "a"}))
    with socket.create_connection((url.hostname, url.port), timeout=240) as connection:
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        connection.sendall(head.encode() + LARGE[:-1])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert "Contents" not in s3.list_objects_v2(Bucket="cut")


def test_moto_writes_and_hashes_no_large_object_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would get an answer meanwhile."""
    monkeypatch.setattr(FakeKey, "value", vars(FakeKey)["value"])  # what mend() sets ends with the test
    large_bodies.mend()
    kept: list[FakeKey] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        monkeypatch.setattr(models_of_s3, "md5_hash", None)
        kept.append(FakeKey("a", environ["wsgi.input"].read(), "123456789012", "us-east-1"))
        return [kept[0].etag.encode()]

    environ = {"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": str(len(LARGE)), "wsgi.input": io.BytesIO(LARGE)}
    body = environ["wsgi.input"]
    [etag] = TakeLargeBodies(app)(environ, lambda *_: None)  # type: ignore[arg-type] # start_response
    assert etag.decode() == f'"{hashlib.md5(LARGE, usedforsecurity=False).hexdigest()}"'
    assert kept[0]._value_buffer is environ["wsgi.input"] is not body
    assert kept[0].value == LARGE


def test_connections_are_kept_alive(served: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(served).netloc, timeout=240)
    connection.request("GET", calls.PATH, headers=COUNTER)
    connection.getresponse().read()
    first = connection.sock
    connection.request("GET", calls.PATH, headers=COUNTER)
    connection.getresponse().read()
    assert first is not None
    assert connection.sock is first
    connection.close()


def test_nothing_is_lost_and_nothing_comes_twice(served: str) -> None:
    """moto under threads loses what is sent while something is deleted, and gives two receivers the same message."""
    sqs, total = client(served, "sqs"), 200
    url, all_sent = sqs.create_queue(QueueName="race")["QueueUrl"], threading.Event()

    def receive() -> list[str]:
        bodies, last = list[str](), False
        while not last:
            # An empty answer says that nothing is left only where nothing more is sent.
            last = all_sent.is_set()
            answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=3, WaitTimeSeconds=2)
            for message in answer.get("Messages", ()):
                last = False
                bodies.append(message["Body"])
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return bodies

    with ThreadPoolExecutor(8) as pool:
        receivers = [pool.submit(receive) for _ in range(4)]
        list(pool.map(lambda n: sqs.send_message(QueueUrl=url, MessageBody=str(n)), range(total)))
        all_sent.set()
        received = [body for receiver in receivers for body in receiver.result()]
    assert sorted(received, key=int) == [str(n) for n in range(total)]


def test_a_poll_whose_client_has_gone_takes_no_message(served: str) -> None:
    """It would be out of sight for the whole visibility timeout, with one of its tries used up."""
    sqs = client(served, "sqs")
    url = sqs.create_queue(QueueName="abandoned")["QueueUrl"]
    once = Config(read_timeout=1, retries={"total_max_attempts": 1})
    leaving = session().client("sqs", endpoint_url=served, config=once)
    with pytest.raises(ReadTimeoutError):
        leaving.receive_message(QueueUrl=url, WaitTimeSeconds=10)
    leaving.close()
    sqs.send_message(QueueUrl=url, MessageBody="for whoever is there")

    [message] = sqs.receive_message(QueueUrl=url, AttributeNames=["ApproximateReceiveCount"])["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_a_taken_port_is_one_sentence(served: str) -> None:
    port = urlsplit(served).port
    done = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith(f"The embedded AWS cannot listen on port {port}: Address already in use")
    assert len(done.stderr.splitlines()) == 1


def queue_of(ready: int, in_flight: int, delayed: int) -> models.Queue:
    queue = models.Queue("workaround", "us-east-1", "123456789012")  # type: ignore[abstract] # as moto does
    now_ms = time.time() * 1000
    for n in range(ready + in_flight + delayed):
        message = models.Message(str(n), "body")
        message.receipt_handle = f"handle-{n}"
        if n >= ready + in_flight:
            message.delayed_until = now_ms + 60_000
        elif n >= ready:
            message.visible_at = now_ms + 60_000
        queue._messages.append(message)
    return queue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many entries as moto's SQS has asked for the time."""
    asked: list[None] = []
    upstream = models.unix_time_millis  # type: ignore[attr-defined]

    def counting() -> float:
        asked.append(None)
        return float(upstream())

    monkeypatch.setattr(models, "unix_time_millis", counting)
    return asked


def test_the_replacements_answer_what_moto_answers() -> None:
    queue = queue_of(ready=3, in_flight=2, delayed=1)
    assert fast_moto._ready(queue) == queue.messages
    assert fast_moto._delayed_count(queue) == queue.approximate_number_of_messages_delayed == 1
    assert fast_moto._in_flight_count(queue) == queue.approximate_number_of_messages_not_visible == 2
    assert fast_moto._now_ms() == pytest.approx(models.unix_time_millis(), abs=5_000)  # type: ignore[attr-defined]


def test_deleting_takes_an_old_receipt_and_a_second_time() -> None:
    queue = queue_of(ready=3, in_flight=0, delayed=0)
    queue._messages[1]._old_receipt_handles = ["older"]
    fast_moto._delete_message(queue, "older")
    fast_moto._delete_message(queue, "handle-1")
    assert [message.id for message in queue._messages] == ["0", "2"]
    with pytest.raises(ReceiptHandleIsInvalid):
        fast_moto._delete_message(queue, "never")


def test_moto_still_asks_for_the_time_per_message(clock: list[None]) -> None:
    assert len(queue_of(ready=5, in_flight=0, delayed=0).messages) == 5
    assert len(clock) >= 5, "the clock and the replaced properties in fast_moto can go"


def test_moto_still_computes_all_attributes_to_send(clock: list[None]) -> None:
    assert queue_of(ready=5, in_flight=0, delayed=0).attributes["DelaySeconds"] == 0
    assert len(clock) >= 15, "the replaced counters in fast_moto can go"


def test_moto_still_asks_every_message_about_a_deleted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counting(_: models.Message, handle: str) -> bool:
        asked.append(handle)
        return True

    monkeypatch.setattr(models.Message, "had_receipt_handle", counting)
    queue_of(ready=1, in_flight=0, delayed=0).delete_message("handle-0")
    assert len(asked) == 2, "the replaced delete_message in fast_moto can go"


def test_moto_still_lists_its_folder_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[None] = []
    upstream = moto.backends.list_of_moto_modules

    def counting() -> Any:
        listed.append(None)
        return upstream()

    monkeypatch.setattr(moto.backends, "list_of_moto_modules", counting)
    app = DomainDispatcherApplication(create_backend_app)
    assert app.get_backend_for_host("sqs.us-east-1.amazonaws.com") == "sqs"
    app.get_backend_for_host("sqs.us-east-1.amazonaws.com")
    assert len(listed) == 2, "the cache in fast_moto can go"
