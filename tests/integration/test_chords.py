"""Chords: how many names they list, and that their callbacks run once, whatever dies when."""

from __future__ import annotations

import importlib
import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group

import celery_sqs
from celery_sqs.aws import Aws
from celery_sqs.results import chords
from celery_sqs.results.chords import Chord, Complete
from celery_sqs.results.store import Store
from tests.support.aws import plain_client
from tests.support.services import PATIENCE_S, REPOSITORY, aws_environ, celery_worker, users_environ


class Killed(BaseException):
    """What a signal does to a process."""


class Counted(Store):
    """Counts what is listed; `kill_at` is the number of the call at which the process is killed."""

    names_listed = lists = calls = 0
    kill_at = -1

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed

    def names(self, under: str) -> Iterator[str]:
        self._step()
        self.lists += 1
        for name in super().names(under):
            self.names_listed += 1
            yield name

    def put(self, key: str, body: bytes) -> None:
        self._step()
        super().put(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        self._step()
        made = super().put_new(key, body)
        self._step()
        return made

    def delete(self, *keys: str) -> None:
        self._step()
        super().delete(*keys)


@pytest.fixture
def store(aws: str) -> Counted:
    bucket = f"b{uuid.uuid4().hex[:12]}"
    plain_client("s3", aws).create_bucket(Bucket=bucket)
    return Counted(Aws(), bucket, "results/")


def fresh(store: Store) -> Chord:
    return Chord(store, uuid.uuid4().hex)


@pytest.mark.parametrize("order", ["given", "turned round", "shuffled"])
@pytest.mark.slow
def test_a_large_chord_lists_each_name_a_few_times(store: Counted, order: str) -> None:
    """Each part listed all: 1,000 parts read half a million names."""
    size, counted = 300, fresh(store)
    counted.set_size(size)
    indexes = list(range(size))
    if order == "turned round":
        indexes.reverse()
    elif order == "shuffled":
        random.Random(7).shuffle(indexes)
    wholes = [counted.end_part(f"t{n}", n, b"%d" % n, indexed=size) for n in indexes]
    assert [each is not None for each in wholes] == [False] * (size - 1) + [True]
    assert wholes[-1] is not None
    assert wholes[-1].parts == [b"%d" % n for n in range(size)]
    # A block is listed as it grows, and all of them when one is whole.
    assert store.names_listed < size * chords.BLOCK / 2 + 4 * size
    assert store.lists <= size + size // chords.BLOCK + 1


@pytest.mark.slow
def test_parts_that_end_at_once_send_one_callback(store: Store) -> None:
    for _ in range(50):
        counted = fresh(store)
        counted.set_size(4)
        barrier = threading.Barrier(4)

        def end(n: int, counted: Chord = counted, barrier: threading.Barrier = barrier) -> Complete | None:
            barrier.wait()
            return counted.end_part(f"t{n}", n, b"")

        with ThreadPoolExecutor(4) as threads:
            assert sum(each is not None for each in threads.map(end, range(4))) == 1


@pytest.mark.parametrize("indexed", [None, 3], ids=["all listed", "its block listed"])
def test_a_part_killed_anywhere_and_delivered_again_sends_the_callback(
    store: Counted, monkeypatch: pytest.MonkeyPatch, indexed: int | None
) -> None:
    monkeypatch.setattr(chords, "BLOCK", 2)
    monkeypatch.setattr(chords, "BLOCK_DIGITS", 1)
    sent = 0

    def deliver(counted: Chord, n: int) -> None:
        nonlocal sent
        if counted.end_part(f"t{n}", n, b"", indexed=indexed):
            sent += 1
            counted.finish()

    killed = 0
    while True:  # at every call that a part makes, until none is left
        store.kill_at, sent = -1, 0
        counted = fresh(store)
        counted.set_size(3)
        deliver(counted, 2)
        deliver(counted, 0)
        store.calls, store.kill_at = 0, killed + 1
        try:
            deliver(counted, 1)
            break
        except Killed:
            killed += 1
        before = sent
        deliver(counted, 1)
        for n in range(3):  # and each comes once more
            deliver(counted, n)
        assert sent in (1, before + 1), f"killed at call {killed}"
        assert sent >= 1
    assert killed >= 8


def test_what_a_part_came_to_first_counts(store: Store) -> None:
    """A message that is delivered twice may come to something else, while another process reads the parts."""
    counted = fresh(store)
    counted.set_size(2)
    assert counted.end_part("a", 0, b"first") is None
    assert counted.end_part("a", 0, b"second") is None
    whole = counted.end_part("b", 1, b"b")
    assert whole is not None
    assert whole.parts == [b"first", b"b"]
    again = counted.end_part("b", 1, b"other")
    assert again is not None
    assert again.again
    assert again.parts == whole.parts


def test_parts_without_an_index_and_added_ones_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chords, "BLOCK", 2)
    monkeypatch.setattr(chords, "BLOCK_DIGITS", 1)
    counted = fresh(store)
    counted.set_size(4)
    ended: list[Callable[[], Complete | None]] = [
        lambda: counted.end_part("a", 0, b"a", indexed=4),
        lambda: counted.end_part("b", 1, b"b", indexed=4),
        lambda: counted.end_part("added", 1, b"added", indexed=4),
        lambda: counted.end_part("c", 2, b"c", indexed=4),
        lambda: counted.end_part("d", 3, b"d", indexed=4),
    ]
    counted.add("added")
    assert [each() is not None for each in ended] == [False] * 4 + [True]
    nested = fresh(store)
    nested.set_size(3)
    assert [nested.end_part(each, None, b"") is not None for each in "abc"] == [False, False, True]


def test_parts_of_a_version_before_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie where this one's lie; who wrote the last one sees all."""
    monkeypatch.setattr(chords, "BLOCK", 2)
    monkeypatch.setattr(chords, "BLOCK_DIGITS", 1)
    group = uuid.uuid4().hex
    counted = Chord(store, group)
    counted.set_size(3)
    for n in (2, 0):
        store.put(f"chords/{group}/part-{n:010d}-t{n}", b"old")
    whole = counted.end_part("t1", 1, b"new", indexed=3)
    assert whole is not None
    assert whole.parts == [b"old", b"new", b"old"]


class Dying:
    """tests.support.dying with a prefix of its own."""

    def __init__(self, endpoint: str, folder: Path, **env: str) -> None:
        self.prefix, self.folder, self._endpoint, self._starts = f"d{uuid.uuid4().hex[:8]}", folder, endpoint, 0
        plain_client("s3", endpoint).create_bucket(Bucket=f"{self.prefix}-results")
        own = {"DYING_PREFIX": self.prefix, "DYING_FOLDER": str(folder), **env}
        self.env = {**users_environ(**aws_environ(endpoint)), **own, "PYTHONPATH": str(REPOSITORY)}
        self.app = Celery(self.prefix, set_as_current=False)
        options = celery_sqs.Options(prefix=self.prefix, results_bucket=f"{self.prefix}-results", wait_s=1)
        celery_sqs.configure(self.app, options)

    def worker(self) -> Any:
        self._starts += 1
        log = self.folder / f"worker-{self._starts}.log"
        return celery_worker("tests.support.dying", log, self.env, "--concurrency", "1")

    def send(self, name: str, step: str, what: str) -> Any:
        part = self.app.signature
        parts = [part("dying.part", (0,)), part("dying.part", (1, name, step, what))]
        return chord(parts, app=self.app)(part("dying.collect", kwargs={"name": name}))

    def ran(self, name: str) -> list[str]:
        file = self.folder / f"{name}.ran"
        return file.read_text().splitlines() if file.exists() else []


STEPS = ("before its part is stored", "after its part is stored", "after the claim", "after the callback was sent")


@pytest.fixture
def collecting(aws: str) -> Iterator[list[Celery]]:
    apps: list[Celery] = []
    yield apps
    for app in apps:
        app.backend.collector.close(delete_queue=True)


@pytest.mark.slow
def test_a_process_lost_at_any_step_of_a_chord_loses_no_callback(
    aws: str, tmp_path: Path, collecting: list[Celery]
) -> None:
    dying = Dying(aws, tmp_path)
    collecting.append(dying.app)
    with dying.worker():
        for n, step in enumerate(STEPS):
            assert dying.send(f"p{n}", step, "process").get(timeout=PATIENCE_S) == [0, 1], step
            assert (tmp_path / f"p{n}.died").exists(), step
    assert {step: dying.ran(f"p{n}") for n, step in enumerate(STEPS)} == {step: ["[0, 1]"] for step in STEPS}


@pytest.mark.slow
def test_a_process_lost_after_its_message_was_acknowledged_loses_no_callback(
    aws: str, tmp_path: Path, collecting: list[Celery]
) -> None:
    """Celery's default. The worker's main process ends the part, as a failure where it had not been stored."""
    dying = Dying(aws, tmp_path, DYING_ACKS="early")
    collecting.append(dying.app)
    with dying.worker():
        lost = dying.send("p0", STEPS[0], "process")
        with pytest.raises(Exception, match="exited prematurely"):
            lost.get(timeout=PATIENCE_S)
        for n, step in list(enumerate(STEPS))[1:]:
            assert dying.send(f"p{n}", step, "process").get(timeout=PATIENCE_S) == [0, 1], step
    assert [len(dying.ran(f"p{n}")) for n in range(len(STEPS))] == [0, 1, 1, 1]


@pytest.mark.slow
def test_a_worker_killed_at_any_step_of_a_chord_loses_no_callback(
    aws: str, tmp_path: Path, collecting: list[Celery]
) -> None:
    dying = Dying(aws, tmp_path)
    collecting.append(dying.app)
    results = []
    for n, step in enumerate(STEPS):
        with dying.worker() as process:
            results.append(dying.send(f"w{n}", step, "worker"))
            assert process.wait(PATIENCE_S) == -signal.SIGKILL, step
    with dying.worker():
        for result, step in zip(results, STEPS, strict=True):
            assert result.get(timeout=PATIENCE_S) == [0, 1], step
    ran = [len(dying.ran(f"w{n}")) for n in range(len(STEPS))]
    # Where the callback was sent, and its message taken by nobody, the part cannot know it.
    assert ran[:3] == [1, 1, 1]
    assert ran[3] in (1, 2)


@pytest.mark.slow
def test_parts_of_every_kind_are_counted(aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More of them than are listed together: an index that is missing or doubled would leave the chord waiting."""
    prefix = f"p{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("PARTS_PREFIX", prefix)
    plain_client("s3", aws).create_bucket(Bucket=f"{prefix}-results")
    env = users_environ(**aws_environ(aws), PARTS_PREFIX=prefix, PYTHONPATH=str(REPOSITORY))
    with celery_worker("tests.support.parts", tmp_path / "log", env, "--concurrency", "2"):
        parts = importlib.import_module("tests.support.parts")
        size = chords.BLOCK + 8
        mixed = chord([parts.KINDS[n % len(parts.KINDS)](n) for n in range(size)], parts.same.s(), app=parts.app)
        grown = chord((parts.adding.si(n) for n in range(3)), parts.same.s(), app=parts.app)
        nested = chord([group(parts.same.si(1), parts.same.si(2)), parts.same.si(3)], parts.same.s(), app=parts.app)
        waiting = [each() for each in (mixed, grown, nested)]
        found = [each.get(timeout=PATIENCE_S) for each in waiting]
    flat = [each[0] if isinstance(each, list) else each for each in found[0]]
    assert flat == list(range(size))
    assert sorted(found[1]) == [-1, -1, -1, 0, 1, 2]
    assert sorted(found[2]) == [1, 2, 3]
    parts.app.backend.collector.close(delete_queue=True)
