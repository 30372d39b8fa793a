"""Log lines in both formats, the request id on its way through the system, and what must not be in a log."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import boto3
import pytest

from faceapp import broker, logs, tasks
from faceapp.broker.messages import FORGET
from faceapp.config import Settings
from faceapp.errors import GalleryMismatch, StorageUnavailable
from faceapp.gallery import Gallery, NewPhoto
from faceapp.schema import Box, Enrolment, Face, Failure, PhotoFailure, Recognition
from faceapp.storage import Storage
from tests.support.aws import BEARER, KEY
from tests.support.services import celery_worker, environ, wait_until
from tests.support.web import BOUNDARY, File, client_of, form, plain, problem, web_server

SECRET = "a-secret-key-that-nobody-may-see"


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged; the logging of the tests' process is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.NARRATORS + logs.TELLTALES}
    root.handlers.clear()
    yield lambda: capsys.readouterr().err
    logs.unbind()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_json_line_says_who_when_and_for_which_request(written: Callable[[], str]) -> None:
    logs.configure(replace(Settings(), log_format="json"), service="faceapp-web")
    logs.bind(request_id="abc")
    logging.getLogger("a.b").warning("%s\n\u2028%d", "é", 1, extra={"fields": {"seconds": 0.5}, "data": "not ours"})
    logs.unbind()
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("a.b").exception("failed")
    text = written()
    assert len(text.splitlines()) == 2
    first, second = lines(text)
    assert first["time"].endswith("Z")
    assert len(first.pop("time")) == len("2026-01-02T03:04:05.678Z")
    assert first.pop("pid") > 1
    assert first == {
        "level": "WARNING",
        "service": "faceapp-web",
        "logger": "a.b",
        "message": "é\n\u20281",
        "request_id": "abc",
        "seconds": 0.5,
        "process": "MainProcess",
    }
    assert "request_id" not in second
    assert second["exception"].endswith("ValueError: wrong")


def test_a_human_line_has_the_request_id_once(written: Callable[[], str]) -> None:
    logs.configure(Settings())
    logs.bind(request_id="abc")
    logging.getLogger("a").info("here")
    logging.getLogger("a").info("abc: here")
    logs.unbind()
    logging.getLogger("a").info("there")
    assert [line.partition("MainProcess ")[2] for line in written().splitlines()] == [
        "a: here [abc]",
        "a: abc: here",
        "a: there",
    ]


def test_a_warning_is_a_line(written: Callable[[], str]) -> None:
    logs.configure(replace(Settings(), log_format="json"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("beware", stacklevel=1)
        logging.captureWarnings(False)
    [line] = lines(written())
    assert (line["level"], line["logger"]) == ("WARNING", "py.warnings")
    assert "beware" in line["message"]


@pytest.mark.parametrize("name", logs.TELLTALES)
def test_what_tells_of_contents_is_quiet_at_every_level(written: Callable[[], str], name: str) -> None:
    logs.configure(replace(Settings(), log_level="DEBUG"))
    logging.getLogger(name).info("a name")
    logging.getLogger("kombu.transport.SQS").debug("a call")
    text = written()
    assert "a name" not in text
    assert "a call" in text


# The request id.


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("chosen", ["a", "A-b_c.9", "x" * 64])
def test_a_client_may_choose_the_request_id(stack: Settings, chosen: str) -> None:
    answer = client_of(stack).post("/", data={"text": "x"}, headers={"X-Request-ID": chosen})
    assert answer.headers["X-Request-ID"] == chosen
    assert problem(answer, 400, "file_missing")["request_id"] == chosen


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("chosen", ["", "x" * 65, "a b", "a/b", "../a", "é", 'a"b', "a\tb"])
def test_another_request_id_is_ours(stack: Settings, chosen: str) -> None:
    answer = client_of(stack).get("/v1/people", headers={"X-Request-ID": chosen})
    assert answer.headers["X-Request-ID"] != chosen
    assert len(bytes.fromhex(answer.headers["X-Request-ID"])) == 16


@pytest.mark.usefixtures("aws")
def test_a_key_is_no_request_id(stack: Settings) -> None:
    """It came back in the answer, and was in every line and message."""
    answer = client_of(stack).get("/v1/people", headers={"X-Request-ID": f"a.{KEY}"})
    assert KEY not in answer.headers["X-Request-ID"]


@pytest.mark.parametrize("format", ["human", "json"])
def test_no_line_has_a_key(written: Callable[[], str], format: Literal["human", "json"]) -> None:
    logs.configure(replace(Settings(), log_format=format))
    try:
        raise ValueError(KEY)
    except ValueError:
        logging.getLogger("a").exception("401 POST /?key=%s", KEY, extra={"fields": {"key": KEY}})
    text = written()
    assert "401 POST /?key=fa_" in text
    assert KEY not in text


UNREADABLE = [
    f"GET /v1/people HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {KEY} of Secretname\r\n\r\n",
    "GET /v1/people/Secretname\r\n\r\n",
    "GET /v1/people/Secretname HTTP/x\r\nHost: localhost\r\n\r\n",
    "GET v1/people/Secretname HTTP/1.1\r\nHost: localhost\r\nSCRIPT_NAME: /Secretname\r\n\r\n",
]


def test_a_request_that_cannot_be_read_is_not_quoted(aws_endpoint: str, stack: Settings, tmp_path: Path) -> None:
    """gunicorn's lines had the text that it could not read."""
    log = tmp_path / "log"
    with web_server(aws_endpoint, stack, log) as (url, _):
        address = urlsplit(url)
        for head in UNREADABLE:
            with socket.create_connection((address.hostname, address.port), timeout=240) as client:
                client.sendall(head.encode())
                assert client.recv(100).startswith(b"HTTP/1.1 4")
        wait_until(lambda: "Invalid request: InvalidHeader" in log.read_text(), what="the line")
        text = log.read_text()
    assert "Invalid request: InvalidRequestLine" in text or "Invalid request: InvalidHTTPVersion" in text
    assert "Secretname" not in text
    assert KEY not in text


def posted(url: str, photo: bytes, path: str = "/", method: str = "POST", **headers: str) -> tuple[int, str, str]:
    """One photo over a connection of its own: status, request id and text of the answer."""
    field = "inputFile" if path == "/" else "photo"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    types = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}", "Connection": "close"}
    try:
        connection.request(
            method, path, body=form({field: File(photo, "holiday.jpg")}), headers=BEARER | types | headers
        )
        answer = connection.getresponse()
        return answer.status, answer.headers["X-Request-ID"], answer.read().decode()
    finally:
        connection.close()


def asked(url: str, path: str, **headers: str) -> int:
    """The status of a GET."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    try:
        connection.request("GET", path, headers=BEARER | headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.system
def test_one_request_id_is_in_every_line_and_nothing_private_in_any(
    aws_endpoint: str, stack: Settings, tmp_path: Path, samples: dict[str, Path]
) -> None:
    web_log, worker_log = tmp_path / "web", tmp_path / "worker"
    more = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": f"token-{SECRET}",
        "FACEAPP_LOG_FORMAT": "json",
        "FACEAPP_LOG_LEVEL": "DEBUG",
    }
    name, photo = f"person-{uuid.uuid4().hex[:8]}", samples["obama.jpg"].read_bytes()
    env = environ(aws_endpoint, stack, **more)
    with (
        celery_worker("faceapp.tasks", worker_log, env, "--concurrency", "1"),
        web_server(aws_endpoint, stack, web_log, **more) as (url, _),
    ):
        assert posted(url, photo, f"/v1/people/{quote(name)}", "PUT")[0] == 201
        assert posted(url, photo, **{"X-Request-ID": "my.request_1"}) == (200, "my.request_1", f"holiday:{name}")
        status, own, text = posted(url, plain())
        assert (status, text) == (200, "holiday:no_face")
        wait_until(lambda: own in worker_log.read_text(), what="the worker's last line")
        # A name in a path that there is not, and a key where none is asked for.
        assert asked(url, f"/v2/people/{quote(name)}?of={quote(name)}", Authorization=f"Bearer {SECRET}") == 404
        # Keys are ours.
        s3 = boto3.client("s3")
        keys = {each["Key"].rpartition("/")[2] for each in s3.list_objects_v2(Bucket=stack.out_bucket)["Contents"]}
        assert not any("my.request_1" in key for key in keys)
        assert any(own in key for key in keys)
        # While they run: at their end Celery and the interpreter print lines of their own.
        web, worker = web_log.read_text(), worker_log.read_text()
    for text in (web, worker):
        assert name not in text
        assert quote(name) not in text
        assert SECRET not in text
        assert "Bearer" not in text
        for part in (photo[:24], photo[len(photo) // 2 :][:24]):
            for shown in (
                base64.b64encode(part).decode()[:30],
                part.hex(),
                repr(part)[2:-1],
                json.dumps(repr(part))[3:-2],
            ):
                assert shown not in text
        assert "holiday" not in text
    told = [line for line in lines(web) if line.get("status")]
    assert [(line["method"], line["route"], line["status"], line["outcome"]) for line in told] == [
        ("PUT", "/v1/people/<path:name>", 201, "ok"),
        ("POST", "/", 200, "ok"),
        ("POST", "/", 200, "ok"),
        ("GET", "(no such path)", 404, "not_found"),
    ]
    assert [line["request_id"] for line in told][1:3] == ["my.request_1", own]
    assert {line["service"] for line in lines(web)} == {"faceapp-web"}
    assert any(line["logger"] == "gunicorn.error" for line in lines(web))
    assert "is here, request my.request_1" in web
    assert {line["service"] for line in lines(worker)} == {"faceapp-worker"}
    done = {line["request_id"]: line for line in lines(worker) if line.get("task") == "faceapp.recognize"}
    assert set(done) == {"my.request_1", own}
    assert done[own]["task_id"] == own
    assert done["my.request_1"]["task_id"] != "my.request_1"


@pytest.mark.system
def test_damaged_objects_are_logged_by_their_ids(
    aws_endpoint: str, stack: Settings, tmp_path: Path, samples: dict[str, Path]
) -> None:
    """S10: keys have names in them, and what a damaged object holds may have more."""
    log, storage = tmp_path / "worker", Storage(stack)
    name, other = (f"person-{uuid.uuid4().hex[:8]}" for _ in range(2))
    photo_id = "a" * 24
    storage.put_gallery(f"vectors/{name}/{photo_id}", json.dumps({"version": other, "model": name}).encode())
    storage.put_gallery(f"vectors/{name}/not-an-id", name.encode())
    storage.put_gallery("snapshot", name.encode())
    storage.put_gallery("version", name.encode())
    damaged, order_id, broken_id = (uuid.uuid4().hex for _ in range(3))
    boto3.client("s3").put_object(Bucket=stack.out_bucket, Key=damaged, Body=f"{{{name}".encode())
    storage.put_gallery(f"forgetting/{broken_id}", name.encode())
    storage.put_gallery(f"forgetting/{order_id}", json.dumps({"name": name}).encode())
    env = environ(aws_endpoint, stack, FACEAPP_LOG_LEVEL="DEBUG", FACEAPP_LOG_FORMAT="json")
    app = broker.create_app(stack)
    try:
        with celery_worker("faceapp.tasks", log, env, "--concurrency", "1"):
            for each in (broken_id, order_id):
                app.send_task(FORGET, args=[each], ignore_result=True)
            photo = uuid.uuid4().hex
            storage.put_photo(photo, samples["obama.jpg"].read_bytes(), file_name=f"{other}.jpg", content_type="x")
            app.send_task("faceapp.recognize", args=[photo], ignore_result=True)
            wait_until(lambda: storage.result_exists(photo), timeout_s=240, what="the result")
            wait_until(lambda: damaged in log.read_text(), timeout_s=240, what="the damaged result")
            wait_until(lambda: broken_id in log.read_text(), timeout_s=240, what="the broken order")
            text = log.read_text()
    finally:
        app.backend.collector.close(delete_queue=True)
    assert f"the photo {photo_id} is skipped" in text
    assert f"the order {broken_id} cannot be read" in text
    assert name not in text
    assert other not in text


def test_somebody_who_is_being_forgotten_is_not_logged(stack: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """S10: whoever forgets them is faster, each time."""

    class Forgotten(Storage):
        def gallery_etag(self, key: str) -> str | None:
            if key.startswith("photos/"):
                self.delete_gallery([key])
            return super().gallery_etag(key)

    name, tries = "ada-lovelace", iter([GalleryMismatch("the end")])
    gallery = Gallery(Forgotten(stack), model="dlib", dimension=2)

    def work() -> None:
        try:
            gallery.enrol(name, [NewPhoto(data=b"photo", descriptor=[0.0, 0.0], low_descriptor=[0.0, 0.0])])
        except StorageUnavailable:
            if "trying again" in caplog.text:
                raise next(tries) from None
            raise

    with caplog.at_level("DEBUG", logger="faceapp"), pytest.raises(GalleryMismatch) as caught:
        tasks._patiently(work)
    assert "is being forgotten at this moment" in caplog.text
    assert name not in caplog.text
    assert name not in caught.value.detail


@pytest.mark.usefixtures("aws")
def test_the_longest_request_id_and_a_trace_fit_into_a_message_with_the_longest_names() -> None:
    settings = Settings(prefix=f"p{uuid.uuid4().hex[:31]}")
    sqs, photo_id = boto3.client("sqs"), uuid.uuid4().hex
    url = sqs.create_queue(QueueName=settings.request_queue, Attributes={"MaximumMessageSize": "1024"})["QueueUrl"]
    app = broker.create_app(settings)

    def body(request_id: str) -> None:
        raise NotImplementedError

    recognize = app.task(name=tasks.recognize.name, shared=False)(body)
    try:
        headers = {"request_id": "x" * 64, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        recognize.apply_async(args=[photo_id], task_id=photo_id, headers=headers)
    finally:
        app.backend.collector.close(delete_queue=True)
    [message] = sqs.receive_message(QueueUrl=url)["Messages"]
    assert headers.items() <= json.loads(message["Body"])["headers"].items()
    assert len(message["Body"].encode()) <= 1024


# What Celery's events carry.


def face(name: str) -> Face:
    return Face(box=Box(left=0, top=0, right=1, bottom=1), landmarks=(), score=1.0, name=name)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "done: no_face"),
        (["obama"], "done: obama (1 face)"),
        (["obama", "unknown"], "done: obama, unknown (2 faces)"),
        (list("abcdefg"), "done: a, b, c, d, e and 2 more (7 faces)"),
    ],
)
def test_an_answer_is_a_line_for_people_and_json_for_programs(names: list[str], line: str) -> None:
    result = Recognition(id="x", status="done", faces=tuple(face(name) for name in names))
    answer = tasks.answer(result)
    assert repr(answer) == line
    assert json.loads(tasks.app.backend.encode(answer)) == json.loads(result.to_json())


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            Recognition(id="x", status="failed", failure=Failure(code="no_image", detail="It is none.")),
            "failed: no_image",
        ),
        (Enrolment(id="x", name="obama", photos=("1", "2")), "enrolled: obama, 2 photos"),
        (
            Enrolment(id="x", name="b", failures=(PhotoFailure(file_name="a", code="no_face", detail="None."),)),
            "refused: no_face",
        ),
    ],
)
def test_an_answer_without_faces_is_a_line_too(result: Recognition | Enrolment, line: str) -> None:
    assert repr(tasks.answer(result)) == line
    assert json.loads(tasks.app.backend.encode(tasks.answer(result))) == json.loads(json.dumps(result.to_dict()))


def test_the_event_of_a_task_carries_the_line() -> None:
    from celery.app.trace import build_tracer

    def body() -> Any:
        return tasks.answer(Recognition(id="x", status="done"))

    task = tasks.app.task(name="tests.answer", shared=False)(body)
    try:
        traced = build_tracer(task.name, task, app=tasks.app)("id", (), {}, {"id": "id", "delivery_info": {}})
        assert traced[3] == "done: no_face"
    finally:
        tasks.app.tasks.pop(task.name)
