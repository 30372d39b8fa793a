"""MessageGroupId through `apply_async`: the order of a FIFO queue's groups, and fair queues."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.place import Place, notes, place
from tests.support.services import wait_until

FIFO = "celery.fifo"


@pytest.fixture
def fifo(aws: str) -> Place:
    # As an application makes it: its first message to a queue that has groups.
    return place(aws, queues=[FIFO])


@pytest.fixture
def fair(aws: str) -> Place:
    return place(aws)


def lines_of(folder: Path, group: str) -> list[str]:
    return [each for each in notes(folder) if each.startswith(group)]


def in_turn(group: str, count: int) -> list[str]:
    return [f"{group}{n} {what}" for n in range(count) for what in ("begins", "ends")]


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.slow)])
def test_a_group_is_done_in_order_and_two_at_the_same_time(fifo: Place, tmp_path: Path, pool: str) -> None:
    """One receive hands out several messages of a group: four processes would do them all at once."""
    app, seconds = fifo.app, 0.3
    for n in range(5):
        for group in "ab":
            app.send_task("orders.note", args=[f"{group}{n}", seconds], MessageGroupId=group, ignore_result=True)
    with fifo.worker(tmp_path, "--pool", pool, "--concurrency", "4"):
        wait_until(lambda: len(notes(tmp_path)) == 20, what="all tasks")
        wait_until(lambda: not any(fifo.counts(FIFO)), what="the deletions")
    assert lines_of(tmp_path, "a") == in_turn("a", 5)
    assert lines_of(tmp_path, "b") == in_turn("b", 5)
    assert notes(tmp_path).index("b0 begins") < notes(tmp_path).index("a4 ends")


@pytest.mark.slow
def test_a_group_waits_for_a_countdown(fifo: Place, tmp_path: Path) -> None:
    app = fifo.app
    with fifo.worker(tmp_path, "--concurrency", "4"):
        app.send_task("orders.note", args=["a0"], countdown=4, MessageGroupId="a", ignore_result=True)
        app.send_task("orders.note", args=["a1"], MessageGroupId="a", ignore_result=True)
        wait_until(lambda: len(notes(tmp_path)) == 4, what="both tasks")
    assert notes(tmp_path) == in_turn("a", 2)


def test_a_failing_task_does_not_hold_its_group(fifo: Place, tmp_path: Path) -> None:
    app = fifo.app
    app.send_task("orders.fail", args=["a0"], MessageGroupId="a", ignore_result=True)
    app.send_task("orders.note", args=["a1"], MessageGroupId="a", ignore_result=True)
    with fifo.worker(tmp_path, "--concurrency", "4"):
        wait_until(lambda: len(notes(tmp_path)) == 3, what="both tasks")
    assert notes(tmp_path) == ["a0 fails", "a1 begins", "a1 ends"]


def test_a_deduplication_id_is_sqs_business(fifo: Place) -> None:
    app, same = fifo.app, uuid.uuid4().hex
    for _ in range(2):
        options = {"MessageGroupId": "a", "MessageDeduplicationId": same}
        app.send_task("orders.note", args=["a0"], ignore_result=True, **options)
    assert sum(fifo.counts(FIFO)) == 1
    app.send_task("orders.note", args=["a0"], ignore_result=True, MessageGroupId="a")
    assert sum(fifo.counts(FIFO)) == 2


@pytest.mark.parametrize("queue", ["celery", FIFO])
def test_a_retry_keeps_its_group(aws: str, tmp_path: Path, queue: str) -> None:
    mine = place(aws, queues=[queue])
    options = {"MessageGroupId": "g", "MessageDeduplicationId": uuid.uuid4().hex} if queue == FIFO else {}
    mine.app.send_task("orders.fail_once", args=["a"], ignore_result=True, **{"MessageGroupId": "g", **options})
    with mine.worker(tmp_path, "--concurrency", "2"):
        wait_until(lambda: len(notes(tmp_path)) == 2, what="the second try")
    assert notes(tmp_path) == ["a 0 g 0", "a 1 g 0"]


def test_another_task_of_a_task_has_no_group_of_it(fair: Place) -> None:
    sent = fair.app.send_task("orders.length", args=["x"], ignore_result=True)
    [message] = received(fair)
    assert json.loads(message["Body"])["headers"]["id"] == sent.id
    assert "MessageGroupId" not in message["Attributes"]


def received(mine: Place, queue: str = "celery") -> list[Any]:
    answer = mine.sqs.receive_message(QueueUrl=mine.queue(queue), MessageSystemAttributeNames=["All"])
    return list(answer["Messages"])


def test_a_fair_queue_knows_the_group(fair: Place) -> None:
    """Celery asked for it in celery/celery#8352."""
    fair.app.send_task("orders.length", args=["x"], MessageGroupId="tenant-7", ignore_result=True)
    [message] = received(fair)
    assert message["Attributes"]["MessageGroupId"] == "tenant-7"


def test_a_message_that_is_sent_on_keeps_its_group(fair: Place) -> None:
    app = fair.app
    app.send_task("orders.length", args=["x"], MessageGroupId="tenant-7", ignore_result=True)
    [message] = received(fair)
    with app.connection_for_read() as connection:
        connection.default_channel._send_on(fair.queue(), message, 0)
        connection.default_channel._deletions.flush()
    [again] = received(fair)
    assert again["Attributes"]["MessageGroupId"] == "tenant-7"


@pytest.mark.parametrize("text", ["x", "x" * 3000])
def test_a_message_in_s3_keeps_its_group(aws: str, text: str) -> None:
    mine = place(aws, queues=[FIFO], largest_message_bytes=2048)
    mine.app.send_task("orders.length", args=[text], MessageGroupId="g", ignore_result=True)
    [message] = received(mine, FIFO)
    assert message["Attributes"]["MessageGroupId"] == "g"
    assert len(mine.objects()) == (len(text) > 2048)
