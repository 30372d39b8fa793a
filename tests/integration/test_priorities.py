"""Priorities on real queues: the highest first, all of them in the end, and no prefetch of low ones in between."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from celery_sqs.transport.priorities import queues_of
from tests.support.place import Place, notes, place
from tests.support.services import wait_until

STEPS = [0, 3, 6, 9]


@pytest.fixture
def mine(aws: str) -> Place:
    return place(aws, priority_steps=STEPS)


def send(mine: Place, words: dict[str, int], **options: Any) -> None:
    """Send a task for each of the words, with its priority."""
    app = mine.app
    for word, priority in words.items():
        app.send_task("orders.note", args=[word], priority=priority, ignore_result=True, **options)


def begun(folder: Path) -> list[str]:
    return [each.removesuffix(" begins") for each in notes(folder) if each.endswith(" begins")]


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.slow)])
def test_the_highest_are_done_first_and_all_of_them(mine: Place, tmp_path: Path, pool: str) -> None:
    words = {f"{priority}-{n}": priority for priority in reversed(range(10)) for n in range(4)}
    send(mine, words)
    assert [sum(mine.counts(each)) for each in queues_of("celery", STEPS)] == [12, 12, 12, 4]
    with mine.worker(tmp_path, "--pool", pool, "--concurrency", "1"):
        wait_until(lambda: len(begun(tmp_path)) >= len(words), what="all tasks")
        wait_until(lambda: not any(sum(mine.counts(each)) for each in queues_of("celery", STEPS)), what="the deletions")
    assert sorted(begun(tmp_path)) == sorted(words)
    assert [int(each[0]) < 3 for each in begun(tmp_path)[:3]] == [True] * 3
    places = [
        statistics.mean(n for n, each in enumerate(begun(tmp_path)) if low <= int(each[0]) < low + 3) for low in STEPS
    ]
    assert places == sorted(places)


@pytest.mark.slow
def test_low_ones_that_wait_let_a_high_one_pass(mine: Place, tmp_path: Path) -> None:
    """A worker took four of them with Celery's prefetch, and did them all before it."""
    app = mine.app
    for n in range(4):
        app.send_task("orders.note", args=[f"low {n}", 2.0], priority=9, ignore_result=True)
    with mine.worker(tmp_path, "--concurrency", "1"):
        wait_until(lambda: begun(tmp_path), what="the first of them")
        app.send_task("orders.note", args=["high"], priority=0, ignore_result=True)
        wait_until(lambda: len(begun(tmp_path)) == 5, what="all of them")
    assert begun(tmp_path)[:2] == ["low 0", "high"]


def test_an_idle_worker_hears_every_step_at_once(mine: Place, tmp_path: Path) -> None:
    mine.options["wait_s"] = 20
    with mine.worker(tmp_path, "--concurrency", "1"):
        for n, priority in enumerate((9, 0, 6, 3)):
            send(mine, {f"{n}": priority})
            wait_until(lambda: len(begun(tmp_path)) == n + 1, what="the task")  # noqa: B023


def test_a_retry_keeps_its_priority(mine: Place, tmp_path: Path) -> None:
    mine.app.send_task("orders.fail_once", args=["word"], priority=6, ignore_result=True)
    with mine.worker(tmp_path, "--concurrency", "1"):
        wait_until(lambda: len(notes(tmp_path)) == 2, what="the second try")
    assert notes(tmp_path) == ["word 0 None 6", "word 1 None 6"]


@contextmanager
def channel_of(mine: Place) -> Iterator[Any]:
    with mine.app.connection_for_write() as connection:
        yield connection.default_channel


def test_a_queue_counts_and_purges_all_its_steps(mine: Place) -> None:
    send(mine, {"a": 0, "b": 4, "c": 9})
    with channel_of(mine) as channel:
        assert channel._size("celery") == 3
        assert channel.queue_purge("celery") == 3
        assert channel._size("celery") == 0


def test_fifo_queues_have_steps_too(aws: str) -> None:
    mine = place(aws, queues=["celery.fifo"], priority_steps=[0, 5])
    send(mine, {"a": 0, "b": 7}, queue="celery.fifo")
    assert sum(mine.counts("celery.fifo")) == 1
    assert sum(mine.counts("celery-5.fifo")) == 1
    with channel_of(mine) as channel:
        for _ in range(2):
            channel.basic_get("celery.fifo").ack()
        assert channel._size("celery.fifo") == 0


def test_without_steps_a_priority_makes_no_queue(aws: str) -> None:
    mine = place(aws)
    send(mine, {"a": 9})
    assert sum(mine.counts("celery")) == 1
    assert len(mine.sqs.list_queues(QueueNamePrefix=f"{mine.options['prefix']}-celery")["QueueUrls"]) == 1
