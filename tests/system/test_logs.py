"""Log lines of real processes: the request id on its way through the system, and what must not be in a log."""

from __future__ import annotations

import base64
import http.client
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import pytest

from faceapp import broker
from faceapp.broker.messages import FORGET
from faceapp.config import Settings
from faceapp.storage import Storage
from tests.support.aws import BEARER
from tests.support.services import celery_worker, environ, wait_until
from tests.support.web import BOUNDARY, File, form, plain, web_server

SECRET = "a-secret-key-that-nobody-may-see"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


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
