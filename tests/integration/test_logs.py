"""Log lines in both formats, the request ids that a client may choose, and what must not be in a log."""

from __future__ import annotations

import json
import logging
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
import pytest

from faceapp import broker, tasks
from faceapp.config import Settings
from faceapp.errors import GalleryMismatch, StorageUnavailable
from faceapp.observability import logs
from faceapp.people import Gallery, NewPhoto
from faceapp.schema import Box, Enrolment, Face, Failure, PhotoFailure, Recognition
from faceapp.storage import Storage
from tests.support.aws import KEY
from tests.support.services import wait_until
from tests.support.web import client_of, problem, web_server


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
