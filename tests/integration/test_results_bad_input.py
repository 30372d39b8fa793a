"""What results do when AWS refuses, when a result cannot be kept, when a part is lost, when clocks differ."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, signals, states
from celery.app.task import Context
from celery.app.trace import trace_task
from celery.exceptions import ChordError, Reject
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import EncodeError

import celery_sqs
from celery_sqs import ResultsUnavailable
from celery_sqs.results import backend as backend_module
from celery_sqs.results import store as store_module
from celery_sqs.results.backend import Backend
from tests.faults.proxy import Answer, Exchange, FaultProxy, refused, unavailable
from tests.support.aws import plain_client
from tests.support.services import PATIENCE_S, wait_until


def denied(exchange: Exchange) -> Answer:
    return refused(exchange, 403, "AccessDenied", "not authorized")


def same(found: Any) -> Any:
    return found


def odd() -> object:
    """What no serializer takes."""
    return object()


class World:
    """An application, its bucket, and a proxy in front of AWS."""

    def __init__(self, endpoint: str, proxy: FaultProxy, *, bucket: bool = True, **conf: Any) -> None:
        self.proxy, self.prefix = proxy, f"b{uuid.uuid4().hex[:8]}"
        self.bucket = f"{self.prefix}-results" if bucket else ""
        if bucket:
            plain_client("s3", endpoint).create_bucket(Bucket=self.bucket)
        self.app = Celery(self.prefix, set_as_current=False)
        options = celery_sqs.Options(
            prefix=self.prefix, results_bucket=self.bucket, wait_s=1, endpoint_url=proxy.url, region="us-east-1"
        )
        celery_sqs.configure(self.app, options)
        self.app.conf.update(conf)
        for name in ("part", "callback"):
            self.app.task(name=name)(same)
        self.app.task(name="odd")(odd)

    @property
    def backend(self) -> Backend:
        found: Backend = self.app.backend
        return found

    def request(self, task_id: str = "", **more: Any) -> Context:
        """What a worker has of a message."""
        return Context(id=task_id or uuid.uuid4().hex, task="part", args=[], kwargs={}, **more)

    def sent(self) -> list[Any]:
        """The arguments of the callbacks that were sent: their messages are taken out of the queue."""
        sqs, found = plain_client("sqs", f"http://{self.proxy._upstream.netloc}"), []
        names = [f"{self.prefix}-celery"]
        for name in names:
            try:
                url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
            except sqs.exceptions.QueueDoesNotExist:
                continue
            while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
                found += [message["Body"] for message in messages]
        return found

    def chord(self, size: int = 2) -> Chord:
        return Chord(self, size)


class Chord:
    """A chord whose parts a worker has run, up to what becomes of them."""

    def __init__(self, world: World, size: int) -> None:
        self.world, self.group, self.body_id = world, uuid.uuid4().hex, uuid.uuid4().hex
        self.signature = world.app.signature("callback", task_id=self.body_id)
        world.backend.set_chord_size(self.group, size)

    def request(self, n: int) -> Context:
        return self.world.request(
            f"{self.group}-{n}", group=self.group, group_index=n, chord=dict(self.signature), ignore_result=True
        )

    def end(self, n: int, result: Any = 1) -> None:
        request = self.request(n)
        self.world.backend.mark_as_done(request.id, result, request)


@pytest.fixture
def proxy(aws: str) -> Iterator[FaultProxy]:
    with FaultProxy(aws) as proxy:
        yield proxy


Make = Callable[..., World]


@pytest.fixture
def make(aws: str, proxy: FaultProxy) -> Iterator[Make]:
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(aws, proxy, **options))
        return made[-1]

    yield make
    for each in made:
        each.backend.collector.close(delete_queue=True)


@pytest.fixture
def world(make: Make) -> World:
    return make()


def test_a_result_that_may_not_be_written_is_answered_and_says_so(world: World) -> None:
    task_id = uuid.uuid4().hex
    world.backend.on_task_call(None, task_id)
    with world.proxy.fault(denied, service="s3", operations=("PutObject",)):
        request = world.request(task_id, reply_to=world.backend.reply_queue)
        with pytest.raises(
            ResultsUnavailable, match=rf"s3:PutObject on s3://{world.bucket}/\S+{task_id} failed"
        ) as raised:
            world.backend.mark_as_done(task_id, 7, request)
    assert not raised.value.passing
    assert world.app.AsyncResult(task_id).get(timeout=PATIENCE_S) == 7


def test_a_state_that_may_not_be_written_lets_the_task_run(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with world.proxy.fault(denied, service="s3"):
        world.backend.store_result("id", None, states.STARTED)
    assert "the state STARTED of id is not stored" in caplog.text


ASKING: dict[str, Callable[[AsyncResult], Any]] = {
    "get": lambda result: result.get(timeout=PATIENCE_S),
    "state": lambda result: result.state,
    "group": lambda result: result.app.GroupResult("g", [result]).get(timeout=PATIENCE_S),
}


@pytest.mark.parametrize("ask", ASKING)
def test_whoever_may_not_read_the_bucket_is_told(world: World, ask: str) -> None:
    """Waiting would be for ever: nothing else knows of a task that another process sent."""
    result = world.app.AsyncResult(uuid.uuid4().hex)
    told = pytest.raises(ResultsUnavailable, match=r"s3:GetObject and s3:ListBucket on .*AccessDenied")
    with world.proxy.fault(denied, service="s3", operations=("GetObject",)), told:
        ASKING[ask](result)


def test_a_bucket_that_is_not_there_is_named(make: Make, aws: str) -> None:
    world = make()
    plain_client("s3", aws).delete_bucket(Bucket=world.bucket)
    for ask in (
        lambda: world.app.AsyncResult("any").get(timeout=PATIENCE_S),
        lambda: world.backend.mark_as_done("any", 1, world.request("any")),
        lambda: world.chord(),
        lambda: GroupResult("g", [], app=world.app).save(backend=world.backend),
    ):
        with pytest.raises(ResultsUnavailable, match=f"s3://{world.bucket}/.*NoSuchBucket"):
            ask()


def test_a_worker_says_at_its_start_that_a_bucket_is_not_there(
    make: Make, aws: str, caplog: pytest.LogCaptureFixture
) -> None:
    world, other = make(), make()
    assert world.backend is not other.backend
    consumer = type("Consumer", (), {"app": world.app})()
    signals.worker_ready.send(sender=consumer)
    assert caplog.text == ""
    plain_client("s3", aws).delete_bucket(Bucket=world.bucket)
    with world.proxy.fault(denied, service="s3"):
        signals.worker_ready.send(sender=consumer)
    assert caplog.text == ""  # it does not know
    signals.worker_ready.send(sender=consumer)
    assert f"There is no bucket {world.bucket}: make it" in caplog.text


def test_a_chord_whose_parts_may_not_be_listed_fails_once(world: World) -> None:
    chord = world.chord()
    with world.proxy.fault(denied, service="s3", operations=("ListObjectsV2",)):
        for n in range(2):
            with pytest.raises(ResultsUnavailable, match="s3:ListBucket"):
                chord.end(n)
        with pytest.raises(ChordError, match=r"is not counted: s3:ListBucket on .*AccessDenied"):
            world.app.AsyncResult(chord.body_id).get(timeout=PATIENCE_S)
    chord.end(0)  # delivered again, when the right is there
    assert world.sent() == []


def test_a_chord_whose_parts_may_not_be_read_fails(world: World) -> None:
    chord = world.chord()
    chord.end(0)
    with world.proxy.fault(denied, service="s3", operations=("GetObject",)), pytest.raises(ResultsUnavailable):
        chord.end(1)
    chord.end(1)
    assert len(world.sent()) == 1, "its claim could not be read: it goes on where it was"


def test_a_chord_that_may_not_be_cleared_away_is_done_all_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    chord = world.chord()
    with world.proxy.fault(denied, service="s3", operations=("DeleteObjects",)):
        for n in (0, 1, 1, 0):
            chord.end(n)
    assert len(world.sent()) == 1
    assert "stay behind: s3:DeleteObject" in caplog.text


def test_a_part_is_counted_when_s3_answers_again(world: World) -> None:
    chord = world.chord(1)
    tries = 0

    def twice(exchange: Exchange) -> Answer:
        nonlocal tries
        tries += 1
        return unavailable(exchange) if tries <= 9 else exchange.forward()  # botocore tries four times

    with world.proxy.fault(twice, service="s3", operations=("PutObject",)):
        chord.end(0)
    assert len(world.sent()) == 1


@pytest.mark.parametrize("late", [True, False])
def test_a_part_that_s3_does_not_take_for_long_comes_again(
    world: World, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(backend_module, "PATIENCE_S", 0.1)
    world.app.tasks["part"].acks_late = late
    chord = world.chord(1)
    with world.proxy.fault(unavailable, service="s3"), pytest.raises(Reject if late else ResultsUnavailable) as raised:
        chord.end(0)
    assert getattr(raised.value, "requeue", None) is (True if late else None)
    chord.end(0)
    assert len(world.sent()) == 1


def test_s3_that_asks_to_try_a_conditional_write_again_is_asked_again(world: World) -> None:
    """A 409 was taken for another's win: two parts may both get one, and none would send the callback."""
    assert world.backend.store is not None
    tries = 0

    def busy(exchange: Exchange) -> Answer:
        nonlocal tries
        tries += 1
        if tries > 2:
            return exchange.forward()
        return refused(exchange, 409, "ConditionalRequestConflict", "a conflicting operation is under way")

    with world.proxy.fault(busy, service="s3", operations=("PutObject",)):
        assert world.backend.store.put_new("claim", b"mine")
    assert not world.backend.store.put_new("claim", b"yours")
    always = lambda exchange: refused(exchange, 409, "ConditionalRequestConflict", "still")  # noqa: E731
    with world.proxy.fault(always, service="s3") as hits, pytest.raises(ResultsUnavailable) as raised:
        world.backend.store.put_new("other", b"mine")
    assert raised.value.passing
    assert hits["PutObject"] == store_module.BUSY_TRIES


@pytest.mark.parametrize("operation", ["SendMessage", "GetQueueUrl"])
def test_a_reply_that_may_not_be_sent_is_found_in_the_bucket(
    world: World, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    task_id = uuid.uuid4().hex
    world.backend.on_task_call(None, task_id)
    with world.proxy.fault(denied, service="sqs", operations=(operation,)) as hits:
        world.backend.mark_as_done(task_id, 7, world.request(task_id, reply_to=world.backend.reply_queue))
    assert hits[operation] == 1
    assert "no answer sent to" in caplog.text
    assert world.app.AsyncResult(task_id).get(timeout=PATIENCE_S) == 7


def test_a_reply_queue_that_may_not_be_made_stops_the_call(world: World) -> None:
    with (
        world.proxy.fault(denied, service="sqs", operations=("CreateQueue",)),
        pytest.raises(ResultsUnavailable, match=f"no reply queue {world.prefix}-replies-.*AccessDenied"),
    ):
        world.app.send_task("part", (1,))


@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch", "TagQueue", "DeleteQueue"])
def test_a_reply_queue_that_may_not_be_used_leaves_the_bucket(world: World, operation: str) -> None:
    with world.proxy.fault(denied, service="sqs", operations=(operation,)):
        for n in range(2):
            task_id = uuid.uuid4().hex
            world.backend.on_task_call(None, task_id)
            world.backend.mark_as_done(task_id, n, world.request(task_id, reply_to=world.backend.reply_queue))
            assert world.app.AsyncResult(task_id).get(timeout=PATIENCE_S) == n


def test_without_a_bucket_a_timeout_says_why_nothing_came(make: Make, aws: str) -> None:
    world = make(bucket=False)
    task_id = uuid.uuid4().hex
    with world.proxy.fault(denied, service="sqs", operations=("ReceiveMessage",)):
        world.backend.on_task_call(None, task_id)
        wait_until(lambda: world.backend.collector.trouble, what="the refusal")
        with pytest.raises(CeleryTimeoutError, match=r"within 0.1 s; the queue \S+ cannot be read: .*AccessDenied"):
            world.app.AsyncResult(task_id).get(timeout=0.1)


@pytest.mark.parametrize("bucket", [True, False])
def test_a_result_that_cannot_be_serialised_is_a_failure(make: Make, bucket: bool) -> None:
    world = make(bucket=bucket)
    task = world.app.tasks["odd"]
    task_id = uuid.uuid4().hex
    world.backend.on_task_call(None, task_id)
    request = {"id": task_id, "reply_to": world.backend.reply_queue, "task": "odd"}
    trace_task(task, task_id, [], {}, request=request, app=world.app)
    with pytest.raises(EncodeError, match="not JSON serializable"):
        world.app.AsyncResult(task_id).get(timeout=PATIENCE_S)


def test_a_part_that_cannot_be_serialised_fails_its_chord(world: World) -> None:
    task, chord = world.app.tasks["odd"], world.chord()
    chord.end(0)
    in_chord = {"group": chord.group, "group_index": 1, "chord": dict(chord.signature)}
    part = {"id": f"{chord.group}-1", "task": "odd", **in_chord}
    trace_task(task, part["id"], [], {}, request=part, app=world.app)
    with pytest.raises(ChordError, match="EncodeError"):
        world.app.AsyncResult(chord.body_id).get(timeout=PATIENCE_S)


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("bucket", [True, False])
def test_results_of_any_serializer_arrive(make: Make, serializer: str, bucket: bool) -> None:
    """Other than JSON they ended the task with an internal error, after its work was done."""
    world = make(bucket=bucket, result_serializer=serializer, accept_content=["json", serializer])
    for state, result in ((states.SUCCESS, {"a": [1, "ü"]}), (states.FAILURE, KeyError("sofa"))):
        task_id = uuid.uuid4().hex
        world.backend.on_task_call(None, task_id)
        request = world.request(task_id, reply_to=world.backend.reply_queue)
        world.backend.store_result(task_id, result, state, request=request)
        came = world.app.AsyncResult(task_id).get(timeout=PATIENCE_S, propagate=False)
        assert repr(came) == repr(result)
    if bucket:
        chord = world.chord(1)
        chord.end(0, {"a": 1})
        assert len(world.sent()) == 1


def test_the_lost_part_of_a_chord_is_the_one_that_is_not_ready(world: World) -> None:
    """Nobody can tell lost from slow; who asks sees which part it is."""
    chord = world.chord(3)
    results = [world.app.AsyncResult(f"{chord.group}-{n}") for n in range(3)]
    body = world.app.AsyncResult(chord.body_id, parent=world.app.GroupResult(chord.group, results))
    for n in (0, 2):
        request = chord.request(n)
        request.ignore_result = False
        world.backend.mark_as_done(request.id, n, request)
    with pytest.raises(CeleryTimeoutError):
        body.get(timeout=0.1)
    assert [each.id for each in body.parent.results if not each.ready()] == [f"{chord.group}-1"]
    chord.end(1)  # a dead letter that is sent again, say
    assert len(world.sent()) == 1


@pytest.mark.parametrize("ahead_s", [-86_400, 86_400])
def test_clocks_that_differ_play_no_part(world: World, monkeypatch: pytest.MonkeyPatch, ahead_s: int) -> None:
    now = time.time
    chord = world.chord()
    chord.end(0)
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    task_id = uuid.uuid4().hex
    world.backend.on_task_call(None, task_id)
    chord.end(1)
    world.backend.mark_as_done(task_id, 7, world.request(task_id, reply_to=world.backend.reply_queue))
    assert world.app.AsyncResult(task_id).get(timeout=PATIENCE_S) == 7
    assert len(world.sent()) == 1


def test_a_clock_that_s3_does_not_take_is_named(world: World) -> None:
    said = "The difference between the request time and the current time is too large."
    skewed = lambda exchange: refused(exchange, 403, "RequestTimeTooSkewed", said)  # noqa: E731
    with world.proxy.fault(skewed, service="s3"), pytest.raises(ResultsUnavailable, match=said) as raised:
        world.backend.mark_as_done("any", 1, world.request("any"))
    assert not raised.value.passing


def test_a_group_is_yielded_as_its_tasks_end_and_joined_in_its_order(world: World) -> None:
    ids = [uuid.uuid4().hex for _ in range(6)]
    group = world.app.GroupResult("g", [world.app.AsyncResult(each) for each in ids])

    def end(n: int) -> None:
        world.backend.mark_as_done(ids[n], n, world.request(ids[n], reply_to=world.backend.reply_queue))

    for mine in ids[:4]:  # the last two are another process's, and found in the bucket
        world.backend.on_task_call(None, mine)
    order = [4, 3, 0, 5, 2, 1]
    end(order[0])
    yielded = []
    for n, (task_id, _) in enumerate(world.backend.get_many(ids, timeout=PATIENCE_S)):
        yielded.append(ids.index(task_id))
        if n + 1 < len(order):
            end(order[n + 1])
    assert yielded == order
    assert group.get(timeout=PATIENCE_S) == group.join_native(timeout=PATIENCE_S) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(CeleryTimeoutError):
        list(world.backend.get_many([*ids, "missing"], timeout=0.1))
