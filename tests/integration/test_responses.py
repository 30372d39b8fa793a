"""Answers over the response queue, on the embedded SQS."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import threading
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_sqs.aws import Aws
from celery_sqs.results import MAX_REPLY_BYTES, Collector, backend
from celery_sqs.results import collector as collector_module
from celery_sqs.results.collector import DELIVERIES
from celery_sqs.transport.messages import TRIES as TRIES_KEY
from faceapp import broker
from faceapp.broker import TRIES, FaceappCelery
from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from tests.support.services import PATIENCE_S, wait_until


@pytest.fixture
def settings(stack: Settings) -> Settings:
    return Settings(prefix=stack.prefix, queue_wait_s=1)


@pytest.fixture
def app(settings: Settings) -> Iterator[FaceappCelery]:
    app = broker.create_app(settings)
    yield app
    app.backend.collector.close(delete_queue=True)


def expected(app: FaceappCelery) -> str:
    """A task id whose answer this process expects."""
    task_id = uuid.uuid4().hex
    app.backend.on_task_call(None, task_id)
    return task_id


def answer(app: FaceappCelery, task_id: str, result: Any, *, to: str | None = None, state: str = "SUCCESS") -> None:
    """What a worker does when the task is done."""
    request = SimpleNamespace(reply_to=to or app.backend.reply_queue)
    app.backend.store_result(task_id, result, state, request=request)


def put(queue: str, body: str) -> None:
    sqs = broker.sqs_client()
    sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName=queue)["QueueUrl"], MessageBody=body)


def queues(prefix: str) -> list[str]:
    found = broker.sqs_client().list_queues(QueueNamePrefix=prefix).get("QueueUrls", ())
    return [url.rsplit("/", 1)[-1] for url in found]


def test_each_thread_gets_its_own_answer(app: FaceappCelery) -> None:
    task_ids = [expected(app) for _ in range(60)]
    got: dict[str, Any] = {}

    def ask(task_id: str) -> None:
        got[task_id] = app.AsyncResult(task_id).get(timeout=240)

    threads = [threading.Thread(target=ask, args=(task_id,)) for task_id in task_ids]
    for thread in threads:
        thread.start()
    for task_id in reversed(task_ids):
        answer(app, task_id, f"for {task_id}")
    for thread in threads:
        thread.join(PATIENCE_S)

    assert got == {task_id: f"for {task_id}" for task_id in task_ids}
    assert app.backend.collector.counts == {"delivered": 60}


def test_first_calls_at_once_share_one_reader(app: FaceappCelery) -> None:
    start, seen = threading.Barrier(16), set()

    def first_call() -> None:
        start.wait()
        seen.add(app.backend.collector)

    threads = [threading.Thread(target=first_call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


def test_a_doubled_and_a_late_answer_are_dropped_and_counted(app: FaceappCelery) -> None:
    task_id, counts = expected(app), app.backend.collector.counts
    answer(app, task_id, "first")
    assert app.AsyncResult(task_id).get(timeout=240) == "first"
    answer(app, task_id, "again")
    answer(app, task_id, "and again")
    keep_reading = expected(app)

    wait_until(lambda: counts["late"] == 2)
    answer(app, keep_reading, "still works")
    assert app.AsyncResult(keep_reading).get(timeout=240) == "still works"


@pytest.mark.parametrize(
    "body", ["", "no json", "[]", "{}", '"text"', '{"task_id": 1}', '{"task_id": [], "status": {}}']
)
def test_a_corrupt_answer_is_dropped_and_counted(app: FaceappCelery, body: str) -> None:
    task_id = expected(app)
    put(app.backend.reply_queue, body or " ")
    wait_until(lambda: app.backend.collector.counts["corrupt"] == 1)

    answer(app, task_id, "fine")
    assert app.AsyncResult(task_id).get(timeout=240) == "fine"


def test_what_was_read_is_deleted(app: FaceappCelery) -> None:
    task_ids = [expected(app) for _ in range(25)]
    for task_id in task_ids:
        answer(app, task_id, None)
    for task_id in task_ids:
        app.AsyncResult(task_id).get(timeout=240)
    sqs = broker.sqs_client()
    url = sqs.get_queue_url(QueueName=app.backend.reply_queue)["QueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    def left() -> int:
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(attributes[name]) for name in names)

    wait_until(lambda: left() == 0, what="an empty response queue")


def test_an_answer_too_long_for_sqs_comes_without_its_result(app: FaceappCelery) -> None:
    task_id = expected(app)
    answer(app, task_id, "x" * MAX_REPLY_BYTES)
    assert app.AsyncResult(task_id).get(timeout=240) is None


def test_only_our_response_queues_are_answered(app: FaceappCelery, stack: Settings) -> None:
    answer(app, "id", "stolen", to=stack.request_queue)
    answer(app, "id", "lost", to=f"{stack.response_queue}-that-is-gone")

    sqs = broker.sqs_client()
    url = sqs.get_queue_url(QueueName=stack.request_queue)["QueueUrl"]
    assert "Messages" not in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=0)


def test_an_unfinished_task_answers_nothing(app: FaceappCelery) -> None:
    task_id = expected(app)
    answer(app, task_id, None, state="STARTED")
    answer(app, task_id, "done")
    assert app.AsyncResult(task_id).get(timeout=240) == "done"
    assert app.backend.collector.counts == {"delivered": 1}


@pytest.mark.parametrize(("delivery", "answered"), [(1, False), (2, False), (3, True)])
def test_a_failure_is_answered_when_it_is_the_last_try(app: FaceappCelery, delivery: int, answered: bool) -> None:
    task_id = expected(app)
    message = {"Attributes": {"ApproximateReceiveCount": str(delivery)}, TRIES_KEY: TRIES}

    request = SimpleNamespace(
        task="celery.backend_cleanup",
        reply_to=app.backend.reply_queue,
        properties={"delivery_info": {"sqs_message": message}},
    )
    app.backend.store_result(task_id, ValueError("broken"), "FAILURE", request=request)
    if answered:
        with pytest.raises(ValueError, match="broken"):
            app.AsyncResult(task_id).get(timeout=240)
    else:
        answer(app, task_id, "the next try worked")
        assert app.AsyncResult(task_id).get(timeout=240) == "the next try worked"


def test_the_last_try_is_the_one_that_the_stack_says() -> None:
    assert f"maxReceiveCount: {TRIES}" in deployment.template()


def test_an_answer_nobody_fetches_is_forgotten(app: FaceappCelery) -> None:
    collector = app.backend.collector
    result = app.AsyncResult(expected(app))
    assert collector.waiting == 1
    del result
    gc.collect()
    other = expected(app)
    wait_until(lambda: collector.waiting == 1)
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult(other).get(timeout=0.05)


def test_two_processes_have_two_queues_and_leave_none(settings: Settings) -> None:
    one, two = broker.create_app(settings), broker.create_app(settings)
    first, second = expected(one), expected(two)
    assert one.backend.reply_queue != two.backend.reply_queue
    answer(two, second, "two")
    answer(two, first, "one", to=one.backend.reply_queue)
    assert one.AsyncResult(first).get(timeout=240) == "one"
    assert two.AsyncResult(second).get(timeout=240) == "two"

    for app in (one, two):
        app.backend.collector.close(delete_queue=True)
    assert queues(settings.response_queue) == [settings.response_queue]


@pytest.mark.parametrize(
    ("name", "slot", "suffix"), [("", 0, ""), ("", 3, "-3"), ("i-0a", 0, "-i-0a-0"), ("i-0a", 2, "-i-0a-2")]
)
def test_a_web_process_reads_its_slots_queue(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, slot: int, suffix: str
) -> None:
    monkeypatch.setattr(broker.app, "_slot", None)
    broker.use_slot(slot)
    app = broker.create_app(dataclasses.replace(settings, web_name=name))
    assert app.backend.reply_queue == settings.response_queue + suffix
    task_id = expected(app)
    answer(app, task_id, slot)
    assert app.AsyncResult(task_id).get(timeout=240) == slot
    app.backend.collector.close(delete_queue=False)


def test_a_forked_child_does_not_take_its_parents_answers(app: FaceappCelery) -> None:
    mine = app.backend.reply_queue
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, app.backend.reply_queue.encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read_end, 200).decode()
    assert theirs.startswith(app.settings.response_queue)
    assert theirs != mine


def test_reading_goes_on_when_the_queue_was_deleted(app: FaceappCelery) -> None:
    first = expected(app)
    answer(app, first, 1)
    assert app.AsyncResult(first).get(timeout=240) == 1
    sqs, name = broker.sqs_client(), app.backend.reply_queue
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])

    second = expected(app)
    wait_until(lambda: name in queues(name), what="the new queue")
    answer(app, second, 2)
    assert app.AsyncResult(second).get(timeout=240) == 2


def test_an_answer_before_its_question_waits(settings: Settings) -> None:
    """A worker may be faster than the thread that asks to come to waiting."""
    collector = Collector(Aws(), settings.response_queue, wait_s=1)
    collector.expect("fast")
    put(settings.response_queue, json.dumps({"task_id": "fast", "status": "SUCCESS", "result": 7}))
    wait_until(lambda: collector.peek("fast"))
    meta = collector.wait("fast", 0.0)
    assert meta is not None
    assert meta["result"] == 7
    collector.close(delete_queue=False)


def test_two_web_servers_without_a_name_leave_each_others_answers(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """C11: both read the stack's response queue."""
    advice = broker.options(settings, broker.create_app(settings)).hooks.advice_on_shared_replies
    one, two = (Collector(Aws(), settings.response_queue, wait_s=1, advice=advice) for _ in range(2))
    ids = [[uuid.uuid4().hex for _ in range(10)] for _ in range(2)]
    for collector, mine in zip((one, two), ids, strict=True):
        for each in mine:
            collector.expect(each)
    for each in [each for pair in zip(*ids, strict=True) for each in pair]:
        put(settings.response_queue, json.dumps({"task_id": each, "status": "SUCCESS", "result": each}))
    for collector, mine in zip((one, two), ids, strict=True):
        for each in mine:
            meta = collector.wait(each, PATIENCE_S)
            assert meta is not None
            assert meta["result"] == each
        collector.close(delete_queue=False)
    assert one.counts["delivered"] == two.counts["delivered"] == 10
    assert one.counts["late"] == two.counts["late"] == 0
    warned = [each for each in caplog.records if "FACEAPP_WEB_NAME" in each.getMessage()]
    assert len(warned) == (one.counts["left"] > 0) + (two.counts["left"] > 0)


def test_an_answer_that_nobody_takes_is_dropped_in_the_end(settings: Settings) -> None:
    """C11: who asked for it is gone. One's own late answers are dropped at once."""
    collector = Collector(Aws(), "no-queue", wait_s=1)
    nobodys = json.dumps({"task_id": "a", "status": "SUCCESS", "result": None})
    assert [collector._deliver(nobodys, delivery=n) for n in range(1, DELIVERIES + 1)] == [False] * (DELIVERIES - 1) + [
        True
    ]
    assert collector.counts == {"left": DELIVERIES - 1, "late": 1}
    collector = Collector(Aws(), settings.response_queue, wait_s=1)
    collector.expect("a")
    assert collector._deliver(nobodys, delivery=1)
    collector.forget("a")
    collector.expect("b")
    assert collector._deliver(nobodys, delivery=1)
    assert collector.counts == {"delivered": 1, "late": 1}
    collector.close(delete_queue=False)


def test_a_process_that_waits_for_nothing_notes_nothing(app: FaceappCelery) -> None:
    """C11: each of its requests was kept for ever."""
    collector = app.backend.collector
    for _ in range(1000):
        result = app.AsyncResult(uuid.uuid4().hex)
        del result
    gc.collect()
    assert len(collector._forgotten) == 0


def test_a_process_knows_so_many_of_its_own_requests(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "ASKED", 10)
    collector = Collector(Aws(), settings.response_queue, wait_s=1)
    for n in range(50):
        collector.expect(str(n))
        collector.forget(str(n))
    assert list(collector._asked) == [str(n) for n in range(40, 50)]
    assert len(collector._pending) <= 11  # what comes for a handle that is gone is kept for another
    collector.close(delete_queue=False)


def test_a_worker_knows_so_many_response_queues(app: FaceappCelery, monkeypatch: pytest.MonkeyPatch) -> None:
    """C11: each process that ever asked was kept for ever."""
    monkeypatch.setattr(backend, "URLS", 3)
    names = [f"{app.settings.response_queue}-{n}" for n in range(5)]
    for name in names:
        broker.sqs_client().create_queue(QueueName=name)
    for name in [*names, names[0]]:
        answer(app, "id", "x", to=name)
    assert list(app.backend._sender()[1]) == [names[3], names[4], names[0]]
