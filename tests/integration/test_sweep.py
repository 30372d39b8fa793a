"""Sweeping what killed processes left behind, for any application: the command, and one of the workers."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import celery_sqs
from celery_sqs.queues.janitor import EVERY_S, Janitor, Suspects
from celery_sqs.queues.sweeper import SWEPT_TAG, TAKE_OVER_S, Turn
from tests.support.aws import ACCESS, session
from tests.support.services import REPOSITORY, users_environ, wait_until

OLD_S = 7200


class Left:
    """An application's work queue, and queues that others left: abandoned, in use, and not temporary at all."""

    def __init__(self, endpoint: str) -> None:
        self.prefix = f"s{uuid.uuid4().hex[:8]}"
        self.sqs = session().client("sqs", endpoint_url=endpoint, region_name="eu-west-1")
        now_s = int(time.time())
        tag = celery_sqs.Options.used_tag
        self.make("celery")
        self.make("replies-dead", **{tag: str(now_s - OLD_S)})
        self.make("replies-alive", **{tag: str(now_s)})
        self.keys = {"ALONE_KEY_ID": ACCESS["AWS_ACCESS_KEY_ID"], "ALONE_SECRET": ACCESS["AWS_SECRET_ACCESS_KEY"]}
        self.env = users_environ(ALONE_PREFIX=f"{self.prefix}-", ALONE_ENDPOINT=endpoint, **self.keys)

    def make(self, name: str, **tags: str) -> None:
        self.sqs.create_queue(QueueName=f"{self.prefix}-{name}", tags=tags)

    def names(self) -> set[str]:
        urls = self.sqs.list_queues(QueueNamePrefix=self.prefix)["QueueUrls"]
        return {url.rpartition(f"{self.prefix}-")[2] for url in urls}

    def sweep(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "celery_sqs", "sweep", "-A", "tests.support.alone", *options]
        return subprocess.run(command, cwd=REPOSITORY, env=self.env, capture_output=True, text=True, timeout=240)


@pytest.fixture
def left(aws: str) -> Left:
    return Left(aws)


def test_the_command_deletes_what_is_abandoned(left: Left) -> None:
    looked = left.sweep("--dry-run")
    assert looked.stdout == f"looks abandoned: {left.prefix}-replies-dead\n", looked.stderr
    assert left.names() == {"celery", "replies-dead", "replies-alive"}
    done = left.sweep("--at-once")
    assert done.stdout == f"deleted: {left.prefix}-replies-dead\n", done.stderr
    assert left.names() == {"celery", "replies-alive"}
    assert left.sweep("--at-once").stdout == ""


def test_the_command_says_what_it_lacks(left: Left) -> None:
    left.sqs.delete_queue(QueueUrl=left.sqs.get_queue_url(QueueName=f"{left.prefix}-celery")["QueueUrl"])
    failed = left.sweep("--at-once")
    assert failed.returncode == 1
    assert "NonExistentQueue" in failed.stderr
    assert "Traceback" not in failed.stderr
    unknown = subprocess.run(
        [sys.executable, "-m", "celery_sqs", "sweep", "-A", "no.such.module"], capture_output=True, text=True
    )
    assert unknown.returncode == 2
    assert "there is no module 'no.such.module' here" in unknown.stderr


def options(left: Left, aws: str) -> celery_sqs.Options:
    return celery_sqs.Options(prefix=left.prefix, region="eu-west-1", endpoint_url=aws, sweep=True)


def test_one_worker_of_all_sweeps(left: Left, aws: str) -> None:
    own = options(left, aws)
    turns = [Turn(own) for _ in range(5)]
    assert [turn() for turn in turns] == [True, False, False, False, False]
    assert [turn() for turn in turns] == [True, False, False, False, False], "the one that has begun goes on"
    url = left.sqs.get_queue_url(QueueName=f"{left.prefix}-celery")["QueueUrl"]
    long_ago = int(time.time() - TAKE_OVER_S - 1)
    left.sqs.tag_queue(QueueUrl=url, Tags={SWEPT_TAG: f"gone:{long_ago}"})
    assert [turn() for turn in turns[1:]] == [True, False, False, False], "another takes over"
    left.sqs.tag_queue(QueueUrl=url, Tags={SWEPT_TAG: "nonsense"})
    assert turns[4]()


def test_a_worker_with_the_option_sweeps(left: Left, aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In its own time: what a worker starts when it is ready is the janitor, made faster here."""
    started: list[Janitor] = []

    def start(self: Janitor) -> None:
        self._every_s = 0.1
        started.append(self)
        original(self)

    original = Janitor.start
    monkeypatch.setattr(Janitor, "start", start)
    monkeypatch.setattr("celery_sqs.queues.janitor.Suspects", lambda: Suspects(apart_s=0.3))
    from celery import Celery, signals

    for sweeps in (False, True):
        app: Any = Celery(left.prefix, set_as_current=False)
        celery_sqs.configure(
            app, celery_sqs.Options(prefix=left.prefix, region="eu-west-1", endpoint_url=aws, sweep=sweeps)
        )
        signals.worker_ready.send(sender=type("Consumer", (), {"app": app}))
        assert len(started) == sweeps
    wait_until(lambda: left.names() == {"celery", "replies-alive"}, what="the sweep")
    started[0].stop()
    assert EVERY_S > 60
