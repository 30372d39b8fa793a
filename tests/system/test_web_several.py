"""Several web servers on one stack, as deploy/balanced.yaml has them: each reads its own response queue."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from celery_sqs.queues.janitor import Suspects, sweep
from celery_sqs.queues.temporary import ABANDONED_S
from faceapp import broker
from faceapp.broker.clients import sqs_client
from faceapp.config import Settings
from faceapp.config.aws import USED_TAG
from tests.support.services import aws_environ
from tests.support.web import plain, web_server

PHOTOS = 12


@pytest.fixture
def names() -> list[str]:
    """What no other test's web servers are called: as instances are, by an id."""
    return [f"i-{uuid.uuid4().hex[:12]}" for _ in range(2)]


@pytest.fixture(autouse=True)
def environment(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws_environ(aws_endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def pair(aws_endpoint: str, system: Settings, names: list[str], tmp_path: Path) -> Iterator[list[str]]:
    """The URLs of two web servers."""
    first, second = names
    with (
        web_server(aws_endpoint, system, tmp_path / "a", FACEAPP_WEB_NAME=first) as (a, _),
        web_server(aws_endpoint, system, tmp_path / "b", FACEAPP_WEB_NAME=second) as (b, _),
    ):
        yield [a, b]


def post(url: str, name: str) -> str:
    fields = {"inputFile": (f"{name}.jpg", plain(), "image/jpeg")}
    return (
        urllib3.PoolManager(retries=False, timeout=240).request("POST", f"{url}/", fields=fields).data.decode().strip()
    )


def answers(url: str) -> dict[str, float]:
    """What became of the messages in a web server's response queue, by outcome."""
    numbers = urllib3.PoolManager(retries=False).request("GET", f"{url}/metrics").data.decode()
    lines = [line for line in numbers.splitlines() if line.startswith("faceapp_web_answers_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def queue_tags(settings: Settings, name: str) -> dict[str, str]:
    url = sqs_client().get_queue_url(QueueName=f"{settings.response_queue}-{name}-0")["QueueUrl"]
    tags: dict[str, str] = sqs_client().list_queue_tags(QueueUrl=url).get("Tags", {})
    return tags


@pytest.mark.usefixtures("worker")
def test_two_web_servers_at_once_each_get_their_own_answers(
    system: Settings, pair: list[str], names: list[str]
) -> None:
    with ThreadPoolExecutor(2 * PHOTOS) as threads:
        sent = [(url, f"{urlsplit(url).port}-{n}") for n in range(PHOTOS) for url in pair]
        found = list(threads.map(lambda each: post(*each), sent))
    assert found == [f"{name}:no_face" for _, name in sent]
    for url, name in zip(pair, names, strict=True):
        counts = answers(url)
        assert counts["delivered"] == PHOTOS
        assert counts["late"] == counts["corrupt"] == 0
        assert time.time() - float(queue_tags(system, name)[USED_TAG]) < ABANDONED_S


@pytest.mark.usefixtures("worker")
def test_two_web_servers_without_a_name_each_get_their_own_answers(
    aws_endpoint: str, system: Settings, tmp_path: Path
) -> None:
    """C11: they read the same queue."""
    with (
        web_server(aws_endpoint, system, tmp_path / "a") as (a, _),
        web_server(aws_endpoint, system, tmp_path / "b") as (b, _),
        ThreadPoolExecutor(2 * PHOTOS) as threads,
    ):
        sent = [(url, f"{urlsplit(url).port}-{n}") for n in range(PHOTOS) for url in (a, b)]
        found = list(threads.map(lambda each: post(*each), sent))
        assert found == [f"{name}:no_face" for _, name in sent]
        for url in (a, b):
            counts = answers(url)
            assert counts["delivered"] == PHOTOS
            assert counts["late"] == counts["corrupt"] == 0


@pytest.mark.usefixtures("worker")
def test_a_web_servers_queue_stays_for_the_next_and_is_swept_when_there_is_none(
    aws_endpoint: str, system: Settings, names: list[str], tmp_path: Path
) -> None:
    name, other = names
    queue = f"{system.response_queue}-{name}-0"

    def serve(log: str, name: str) -> None:
        with web_server(aws_endpoint, system, tmp_path / log, FACEAPP_WEB_NAME=name) as (url, _):
            assert post(url, log) == f"{log}:no_face"

    serve("first", name)
    serve("neighbour", other)
    assert queue not in sweep(broker.options(system), Suspects(apart_s=0))
    sqs = sqs_client()
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: "1"})
    # Whoever comes next in its place says that it is in use again.
    serve("second", name)
    assert queue not in sweep(broker.options(system), Suspects(apart_s=0))
    sqs.tag_queue(QueueUrl=url, Tags={USED_TAG: "1"})
    assert queue in sweep(broker.options(system), Suspects(apart_s=0))
    assert USED_TAG in queue_tags(system, other)
    serve("third", name)
    assert USED_TAG in queue_tags(system, name)
