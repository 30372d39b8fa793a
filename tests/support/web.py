"""What the tests of the web tier share: pictures, forms, problem documents, and a look at everything that is stored."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from faceapp.config import Settings, settings
from faceapp.web import create_app
from tests.support.aws import KEY
from tests.support.services import REPOSITORY, environ, wait_until

SERVE = """
from dataclasses import replace
from faceapp.observability import logs
from faceapp.config import settings
from faceapp.http.server import serve

logs.configure(settings(), service="faceapp-web")
serve(replace(settings(), web_port=0))
"""
LISTENS = "the web tier listens on "
BOUNDARY = b"----a-boundary"


@dataclass(frozen=True)
class File:
    """A file part of a form."""

    data: bytes
    name: str = "photo.jpg"
    content_type: str = ""


def form(fields: dict[str, Any]) -> bytes:
    """The body of a multipart form: each value is a text, a File, or a list of those."""
    body = b""
    for field, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            head, data = f'Content-Disposition: form-data; name="{field}"', value
            if isinstance(value, File):
                plain = re.fullmatch(r"[ !#-[\]-~]*", value.name)
                head += f'; filename="{value.name}"' if plain else f"; filename*=UTF-8''{quote(value.name)}"
                head += f"\r\nContent-Type: {value.content_type}" if value.content_type else ""
                data = value.data
            body += b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n"
            body += (data.encode() if isinstance(data, str) else data) + b"\r\n"
    return body + b"--" + BOUNDARY + b"--\r\n"


class Client(FlaskClient):
    """Flask's client, with forms of our own: its own writes larger ones to disk and mends the names of files.

    It sends the start's credential, as the page does, unless a request has headers of its own for that.
    """

    key = KEY

    def open(self, *args: Any, data: Any = None, **named: Any) -> TestResponse:
        headers = Headers(named.pop("headers", None))
        if (
            self.key
            and "Authorization" not in headers
            and "HTTP_AUTHORIZATION" not in named.get("environ_overrides", ())
        ):
            headers["Authorization"] = f"Bearer {self.key}"
        named["headers"] = headers
        if isinstance(data, dict):
            data, named["content_type"] = form(data), f"multipart/form-data; boundary={BOUNDARY.decode()}"
        return super().open(*args, data=data, **named)


def client_of(configured: Settings | None = None, *, key: str = KEY) -> Client:
    """A client of the web tier in this process, with the start's credential unless `key` says something else."""
    app = create_app(replace(configured or settings(), local_key=KEY))
    app.test_client_class = Client
    client = app.test_client()
    assert isinstance(client, Client)
    client.key = key
    return client


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(width: int = 320, height: int = 240) -> bytes:
    """A JPEG without a face."""
    return encoded(Image.linear_gradient("L").resize((width, height)).convert("RGB"))


def side_by_side(*photos: Path) -> Image.Image:
    """One picture with the faces of all."""
    images = [Image.open(photo).convert("RGB") for photo in photos]
    images = [image.resize((round(image.width * 600 / image.height), 600)) for image in images]
    whole, x = Image.new("RGB", (sum(image.width for image in images), 600)), 0
    for image in images:
        whole.paste(image, (x, 0))
        x += image.width
    return whole


def png(width: int, height: int) -> bytes:
    """A PNG of any size in a few hundred bytes: what it would decode to is not in proportion."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(1_000_000, (width // 8 + 1) * height)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def as_json(answer: TestResponse) -> Any:
    assert answer.is_json, answer.text
    return answer.json


def problem(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, checked for everything that each of them must have."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    document: dict[str, Any] = as_json(answer)
    assert document["code"] == code
    assert document["status"] == status
    assert document["title"]
    assert document["type"] == "about:blank"
    assert document["instance"] == quote(answer.request.path)
    assert document["detail"].endswith((".", ")", ":", "?")) or " " in document["detail"]
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    return document


def stored(settings: Settings) -> dict[str, list[str]]:
    """Every key in the three buckets, once the request queue is empty."""
    s3 = boto3.client("s3")
    wait_until(lambda: messages(settings) == 0, what="an empty request queue")
    found: dict[str, list[str]] = {}
    for bucket in (settings.in_bucket, settings.out_bucket, settings.gallery_bucket):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        found[bucket] = sorted(each["Key"] for page in pages for each in page.get("Contents", ()))
    return found


def nothing_new(settings: Settings, before: dict[str, list[str]]) -> bool:
    """Whether nothing is stored that was not there before. Some may have gone: other tests' people are forgotten."""
    return all(set(keys) <= set(before[bucket]) for bucket, keys in stored(settings).items())


def messages(settings: Settings) -> int:
    """How many messages the request queue has, with those in flight."""
    sqs = boto3.client("sqs")
    attributes = sqs.get_queue_attributes(
        QueueUrl=sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"],
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )["Attributes"]
    return sum(int(count) for count in attributes.values())


@contextmanager
def web_server(
    endpoint: str,
    settings: Settings,
    log: Path,
    *,
    script: str = SERVE,
    arguments: Sequence[str] = (),
    **environment: str,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The web tier as a real process on a free port: its URL and the process."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=REPOSITORY,
            env=environ(endpoint, settings, **environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: process.poll() is not None or LISTENS in log.read_text(), what="the web tier")
        assert process.poll() is None, log.read_text()
        # In JSON a quote follows.
        yield log.read_text().partition(LISTENS)[2].split()[0].rstrip('",'), process
    finally:
        process.terminate()
        try:
            process.wait(240)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
