"""The transport over the embedded SQS and SNS, with real worker processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.asynchronous import Hub as EventLoop
from kombu.asynchronous import get_event_loop, set_event_loop
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.asynchronous.http.curl import CurlClient
from vine import promise

from celery_sqs.errors import BrokerUnavailable
from celery_sqs.transport import channel as channel_module
from celery_sqs.transport.http import CLOCK, AsyncConnection, HTTPConnection
from faceapp import broker
from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from tests.support import echo as echo_app
from tests.support.services import PATIENCE_S, aws_environ, celery_worker, environ, wait_until

MESSAGE_LIMIT_BYTES = 1024
TaskMaker = Callable[[Settings, str], Any]


@pytest.fixture(scope="module")
def echo_stack(system: Settings) -> None:
    """The echo app's queues; what was not finished is delivered again after two seconds."""
    deployment.apply(echo_app.SETTINGS)
    url = queue_url(echo_app.SETTINGS.request_queue)
    broker.sqs_client().set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "2"})


@pytest.fixture(scope="module")
def echo_worker(
    echo_stack: object, system: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    log = tmp_path_factory.mktemp("echo") / "log"
    with celery_worker("tests.support.echo", log, environ(aws_endpoint, system), "--concurrency", "2") as process:
        yield process


def queue_url(name: str) -> str:
    return str(broker.sqs_client().get_queue_url(QueueName=name)["QueueUrl"])


@pytest.fixture
def task_of(aws: str) -> Iterator[TaskMaker]:
    """Makes a task of an app for the given settings; only ever sent, never run."""
    apps = []

    def make(settings: Settings, name: str) -> Any:
        def body(*args: object) -> None:
            raise NotImplementedError

        apps.append(broker.create_app(settings))
        # Not for every other app, too.
        return apps[-1].task(name=name, shared=False)(body)

    yield make
    for app in apps:
        app.backend.collector.close(delete_queue=True)


def waiting_messages(name: str) -> list[str]:
    answer = broker.sqs_client().receive_message(
        QueueUrl=queue_url(name), MaxNumberOfMessages=10, VisibilityTimeout=0, WaitTimeSeconds=0
    )
    return [message["Body"] for message in answer.get("Messages", ())]


@pytest.fixture
def long_named(aws: str) -> Settings:
    """A stack whose names are as long as names may be."""
    settings = Settings(prefix=f"p{uuid.uuid4().hex[:31]}")
    sqs = broker.sqs_client()
    sqs.create_queue(QueueName=settings.request_queue, Attributes={"MaximumMessageSize": str(MESSAGE_LIMIT_BYTES)})
    sqs.create_queue(QueueName=settings.response_queue)
    return settings


def test_a_request_with_the_longest_names_fits_the_request_queue(long_named: Settings, task_of: TaskMaker) -> None:
    recognize = task_of(long_named, "faceapp.recognize")
    request_id = uuid.uuid4().hex

    recognize.apply_async(args=[request_id], task_id=request_id)

    [body] = waiting_messages(long_named.request_queue)
    assert request_id in body
    # Room for what a trace context or a longer reply queue adds.
    assert len(body.encode()) <= MESSAGE_LIMIT_BYTES - 200


def test_an_oversized_message_is_refused_where_it_is_made(long_named: Settings, task_of: TaskMaker) -> None:
    recognize = task_of(long_named, "faceapp.recognize")

    with pytest.raises(ClientError, match="1024 bytes"):
        recognize.apply_async(args=["x" * MESSAGE_LIMIT_BYTES])

    assert waiting_messages(long_named.request_queue) == []


def test_the_request_queue_is_never_made_without_the_stack(task_of: TaskMaker) -> None:
    ping = task_of(Settings(prefix="nobody-deployed-this"), "ping")

    with pytest.raises(BrokerUnavailable, match="nobody-deployed-this-req-queue"):
        ping.apply_async(ignore_result=True)


def test_a_connection_fails_while_it_is_made(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery waits longer before each new try then; a connection that fails later is tried again at once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(BotoCoreError), broker.create_app(Settings()).connection_for_write() as connection:
        connection.connect()


def test_ready_asks_for_the_queue(stack: Settings) -> None:
    broker.ready(stack)
    with pytest.raises(BrokerUnavailable, match="missing-req-queue"):
        broker.ready(Settings(prefix="missing"))


def test_a_task_goes_to_a_worker_and_its_answer_comes_back(echo_worker: object, aws: str) -> None:
    assert echo_app.echo.delay({"né": [1, 2.5, None]}).get(timeout=240) == {"né": [1, 2.5, None]}


def test_a_failed_task_raises_where_it_was_called_after_its_last_try(echo_worker: object, aws: str) -> None:
    answer = echo_app.fail.delay("as it must")

    with pytest.raises(ValueError, match="as it must"):
        answer.get(timeout=240)
    assert echo_app.app.backend.collector.counts["late"] == 0  # one answer, not one a try


def test_remote_control_answers_over_sns_and_sqs(echo_worker: object, aws: str) -> None:
    # A broadcast (fanout), a reply and a no-ack consumer in a process without an event loop.
    answers = echo_app.app.control.inspect(timeout=240, limit=1).ping()

    assert list((answers or {}).values()) == [{"ok": "pong"}]


def test_events_reach_a_listener(echo_worker: object, aws: str) -> None:
    seen: list[str] = []
    app = echo_app.app
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            with app.events.default_dispatcher() as dispatcher:
                dispatcher.send("worker-heartbeat", freq=30)
            listening.drain_events(timeout=240)

    assert seen == ["worker-heartbeat"]


def test_a_worker_killed_in_the_middle_of_a_task_loses_none(aws: str, tmp_path: Path) -> None:
    """Its message becomes visible again and the next worker answers: it is deleted only when its task is done."""
    base = Settings(prefix=f"k{uuid.uuid4().hex[:8]}", task_time_limit_s=5)
    settings = dataclasses.replace(base, prefix=echo_app.prefix(base))
    deployment.apply(settings)
    sqs, queue = broker.sqs_client(), queue_url(settings.request_queue)
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "5"})
    app = broker.create_app(settings)
    log = tmp_path / "first"
    with celery_worker("tests.support.echo", log, environ(aws, base, ECHO_HANGS="1"), "--concurrency", "1") as first:
        answer = app.send_task("tests.echo", args=["still here"])
        wait_until(lambda: b"hanging" in log.read_bytes(), what="the task's start")
        os.killpg(first.pid, signal.SIGKILL)

    with celery_worker("tests.support.echo", tmp_path / "second", environ(aws, base), "--concurrency", "1"):
        assert answer.get(timeout=240) == "still here"
    app.backend.collector.close(delete_queue=True)


def test_no_answer_in_time_is_a_timeout(stack: Settings, task_of: TaskMaker) -> None:
    with pytest.raises(CeleryTimeoutError):
        task_of(stack, "lonely").delay().get(timeout=0.1)


class Hub:
    """Stands in for the worker's event loop: notes what is to be called, and when."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []
        self.later: list[Callable[[], Any]] = []

    def call_soon(self, call: Callable[..., Any], *args: Any) -> None:
        self.soon.append(lambda: call(*args))

    def call_later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        (self.later if delay_s else self.soon).append(lambda: call(*args))


@pytest.fixture
def consuming(stack: Settings, task_of: TaskMaker) -> Iterator[Callable[..., tuple[Any, Hub, list[Any]]]]:
    """Consumes the request queue with a stand-in for the event loop, `count` messages already taken of it."""
    ping = task_of(stack, "ping")
    with ping.app.connection_for_read() as connection:

        def take(count: int, *, prefetch: int) -> tuple[Any, Hub, list[Any]]:
            for _ in range(count):
                ping.apply_async(ignore_result=True)
            channel, hub, got = connection.default_channel, Hub(), list[Any]()
            channel.hub = hub
            channel.basic_qos(0, prefetch, False)
            channel.basic_consume("req-queue", no_ack=False, callback=got.append, consumer_tag="tag")
            hub.soon.clear()
            while len(got) < count:
                channel.drain_events(timeout=PATIENCE_S)
            return channel, hub, got

        yield take
        connection.default_channel.hub = None


def undeleted(settings: Settings) -> int:
    """Messages of the request queue that SQS still has, in flight or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    url = queue_url(settings.request_queue)
    attributes = broker.sqs_client().get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def test_a_full_prefetch_waits_for_an_ack_instead_of_asking_again_and_again(
    consuming: Callable[..., tuple[Any, Hub, list[Any]]],
) -> None:
    channel, hub, got = consuming(4, prefetch=4)

    channel._schedule_queue("req-queue")
    channel.basic_ack(got[0].delivery_tag)
    assert hub.soon == []  # one free place is not worth a call
    channel.basic_reject(got[1].delivery_tag, requeue=True)
    assert len(hub.soon) == 1


def test_a_process_without_work_does_not_wait_for_half_of_the_others(
    consuming: Callable[..., tuple[Any, Hub, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prefetch multiplier of 1 and long tasks, half of a pool stood idle beside a full queue."""
    channel, hub, got = consuming(8, prefetch=8)
    channel._schedule_queue("req-queue")
    monkeypatch.setattr(channel_module, "ROOM_WAITS_S", 1000.0)
    channel.basic_reject(got[0].delivery_tag, requeue=True)
    channel.basic_reject(got[1].delivery_tag, requeue=True)
    assert hub.soon == []
    [ask] = hub.later
    monkeypatch.setattr(channel_module, "ROOM_WAITS_S", 0.0)
    ask()
    assert len(hub.soon) == 1


def test_done_messages_are_deleted_together(
    stack: Settings, consuming: Callable[..., tuple[Any, Hub, list[Any]]]
) -> None:
    channel, hub, got = consuming(13, prefetch=20)

    for message in got[:9]:
        channel.basic_ack(message.delivery_tag)
    assert undeleted(stack) == 13
    channel.basic_ack(got[9].delivery_tag)
    assert undeleted(stack) == 3
    channel.basic_ack(got[10].delivery_tag)
    assert undeleted(stack) == 3
    hub.later[-1]()  # the time is up
    assert undeleted(stack) == 2


def test_a_worker_that_stops_deletes_what_is_done(
    stack: Settings, consuming: Callable[..., tuple[Any, Hub, list[Any]]]
) -> None:
    channel, _, got = consuming(3, prefetch=4)

    channel.basic_ack(got[0].delivery_tag)
    channel.basic_cancel("tag")
    assert undeleted(stack) == 2
    channel.basic_ack(got[1].delivery_tag)  # a task that ended after the consumer
    assert undeleted(stack) == 1


def test_a_deletion_that_fails_stops_no_worker(
    stack: Settings, consuming: Callable[..., tuple[Any, Hub, list[Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    channel, hub, got = consuming(1, prefetch=4)
    channel.basic_ack(got[0].delivery_tag)
    broker.sqs_client().delete_queue(QueueUrl=queue_url(stack.request_queue))

    hub.later[-1]()

    assert "could not delete" in caplog.text
    assert channel.qos.can_consume()


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "[]",
        "{}",
        '{"properties": 5}',
        '{"properties": {"delivery_info": 7}}',
        '{"body": 5, "properties": {"body_encoding": "base64"}, "headers": []}',
        '{"body": "[]", "content-type": "application/x-python-serialize", "headers": {"task": "tests.echo"}}',
    ],
)
def test_a_message_that_makes_no_sense_ends_no_worker(
    echo_worker: subprocess.Popen[bytes], aws: str, body: str
) -> None:
    broker.sqs_client().send_message(QueueUrl=queue_url(echo_app.SETTINGS.request_queue), MessageBody=body)

    assert [echo_app.echo.delay(n).get(timeout=240) for n in range(3)] == [0, 1, 2]
    assert echo_worker.poll() is None


def test_remote_control_can_be_asked_again_and_again(echo_worker: object, aws: str) -> None:
    for _ in range(3):
        assert echo_app.app.control.inspect(timeout=240, limit=1).active_queues()


class Answer:
    """An HTTP answer as kombu's asynchronous client hands it on."""

    reason = "for a test"

    def __init__(self, status: int, *, body: bytes = b"{}", date: str | None = None) -> None:
        self.status = status
        request = SimpleNamespace(headers={"Date": date})
        self.response = SimpleNamespace(status_code=status, headers={}, content=body, request=request)

    def read(self) -> bytes:
        return bytes(self.response.content)


@pytest.mark.parametrize("status", [400, 403, 500, 503])
def test_a_refused_poll_is_an_empty_one(stack: Settings, status: int) -> None:
    """Raised into the event loop, it would be the queue's last: nobody would poll again."""
    asks = AsyncConnection(sqs_connection=broker.sqs_client(), http_client=object())
    with broker.create_app(stack).connection_for_read() as connection:
        received = asks._on_list_ready(None, [], "ReceiveMessage", Answer(status))
        assert connection.default_channel._on_messages_ready("url", "req-queue", received) == 0


@pytest.mark.parametrize("date", [None, "", "soon", "Mon, 99 Nov 2026 14:00:00 GMT"])
def test_a_poll_whose_answer_has_no_readable_date_keeps_its_messages(
    aws: str, monkeypatch: pytest.MonkeyPatch, date: str | None
) -> None:
    """Raised into the event loop, it would be the queue's last poll; this machine's clock is believed."""
    monkeypatch.setattr(AsyncSQSConnection, "_on_list_ready", lambda *_: {"Messages": [{"Body": "x"}]})
    asks = AsyncConnection(sqs_connection=broker.sqs_client(), http_client=object())
    answer = asks._on_list_ready(None, [], "ReceiveMessage", Answer(200, date=date))
    assert abs(answer["Messages"][0][CLOCK] + time.monotonic() - time.time()) < 600


def test_a_poll_that_cannot_be_signed_is_tried_again(
    consuming: Callable[..., tuple[Any, Hub, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role's credentials have run out and there are no new ones yet: that must not be the queue's last poll."""
    channel, hub, _ = consuming(0, prefetch=4)

    def no_credentials(*_: Any, **__: Any) -> None:
        raise RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired.")

    monkeypatch.setattr(channel, "asynsqs", no_credentials)
    channel._schedule_queue("req-queue")
    assert len(hub.later) == 1


class NotingLoop(EventLoop):  # type: ignore[misc] # kombu has no type hints
    """kombu's, which notes how late its timers are to be called."""

    def __init__(self) -> None:
        super().__init__()
        self.delays_s: dict[str, list[float]] = defaultdict(list)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any:
        self.delays_s[getattr(callback, "__name__", "")].append(delay)
        return super().call_later(delay, callback, *args)


@pytest.fixture
def loop() -> Iterator[NotingLoop]:
    hub, before = NotingLoop(), get_event_loop()
    set_event_loop(hub)
    yield hub
    set_event_loop(before)
    if client := getattr(hub, "_current_http_client", None):
        client.close()
    hub.close()


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # how kombu calls pycurl
def test_after_a_long_poll_there_is_no_pause(loop: NotingLoop, stack: Settings, task_of: TaskMaker) -> None:
    """What came in the pause waited: a command to the workers was read after a task that had been sent after it."""
    app = task_of(stack, "ping").app
    with app.connection_for_read(transport_options={"wait_time_seconds": 1, "polling_interval": 1.0}) as connection:
        connection.default_channel.basic_consume("req-queue", no_ack=False, callback=id, consumer_tag="tag")
        wait_until(lambda: loop.run_once() or len(loop.delays_s["_schedule_queue"]) == 3, what="three empty polls")
        # moto answers the first poll over a connection at once.
        assert loop.delays_s["_schedule_queue"][1:] == [0, 0]
        connection.default_channel.basic_cancel("tag")


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # how kombu calls pycurl
def test_a_poll_whose_answer_came_by_a_timer_is_followed_at_once(
    loop: NotingLoop, stack: Settings, task_of: TaskMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu's loop slept first, for up to a second: a second message was that late."""
    polled: list[str] = []
    with task_of(stack, "ping").app.connection_for_read() as connection:
        channel = connection.default_channel
        monkeypatch.setattr(channel, "_schedule_queue", polled.append)
        channel.basic_consume("req-queue", no_ack=False, callback=id, consumer_tag="tag")
        loop.run_once()
        polled.clear()
        loop.call_later(0, channel._loop1, "req-queue", 1)
        loop.run_once()
        assert polled == ["req-queue"]
        channel.basic_cancel("tag")


@pytest.mark.parametrize("ahead_s", [-7200, -1, 0, 1, 7200])
def test_a_messages_age_is_told_by_the_clock_of_sqs(stack: Settings, ahead_s: int) -> None:
    """A worker's own clock may be hours away; one that agrees is better, since SQS says whole seconds."""
    asks = AsyncConnection(sqs_connection=broker.sqs_client(), http_client=object())
    answer = Answer(200, body=b'{"Messages": [{"Body": ""}]}', date=formatdate(time.time() - ahead_s, usegmt=True))
    [message] = asks._on_list_ready(None, [], "ReceiveMessage", answer)["Messages"]
    told_s = message[CLOCK] + time.monotonic()
    right_s = time.time() - (ahead_s if abs(ahead_s) > 2 else 0)
    assert told_s == pytest.approx(right_s, abs=2)


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # how kombu calls pycurl
def test_a_poll_whose_answer_never_comes_ends() -> None:
    hub, answers = EventLoop(), list[Any]()
    client = CurlClient(hub)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = HTTPConnection(timeout=1, http_client=client)
        connection.request("GET", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        connection.getresponse(callback=promise(answers.append))
        wait_until(lambda: hub.run_once() or answers, timeout_s=240, what="the poll's end")
    client.close()
    hub.close()
    assert answers[0].status == 599


def test_what_comes_when_the_consumer_has_gone_is_handed_back(stack: Settings, task_of: TaskMaker) -> None:
    task_of(stack, "ping").apply_async(ignore_result=True)
    with broker.create_app(stack).connection_for_read() as connection:
        channel, url = connection.default_channel, queue_url(stack.request_queue)
        received = broker.sqs_client().receive_message(QueueUrl=url)
        assert waiting_messages(stack.request_queue) == []
        channel.close()

        assert channel._on_messages_ready(url, "req-queue", received) == 0
        # Nor does what else ends then raise: it would keep the loop from the answers that are still to be handed back.
        assert channel._on_messages_ready(url, "req-queue", {}) == 0
        assert channel._on_messages_ready(url + "-gone", "req-queue", received) == 0
        channel._loop1("req-queue", 0)

    assert len(waiting_messages(stack.request_queue)) == 1


def test_what_a_consumer_has_and_did_not_begin_is_handed_back_when_it_leaves(
    stack: Settings, consuming: Callable[..., tuple[Any, Hub, list[Any]]]
) -> None:
    channel, _, got = consuming(1, prefetch=1)
    taken = got[0].delivery_info["sqs_message"]["MessageId"]

    channel.close()

    # The same message: a new one would have all its tries again, and the old one would come back as well.
    answer = broker.sqs_client().receive_message(QueueUrl=queue_url(stack.request_queue), MaxNumberOfMessages=10)
    assert [each["MessageId"] for each in answer["Messages"]] == [taken]


def test_a_message_that_cannot_be_handed_back_keeps_no_place(
    stack: Settings, consuming: Callable[..., tuple[Any, Hub, list[Any]]]
) -> None:
    channel, _, got = consuming(1, prefetch=1)
    broker.sqs_client().delete_queue(QueueUrl=queue_url(stack.request_queue))

    channel.basic_reject(got[0].delivery_tag, requeue=True)

    assert channel.qos.can_consume()


def test_importing_the_tasks_loads_no_model() -> None:
    code = "import sys, faceapp.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_half_an_answer_is_none() -> None:
    """botocore takes what came before the connection ended for a success that says nothing."""
    body = b'{"QueueUrl": "http://127.0.0.1/1/q"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_half() -> None:
            connection, _ = server.accept()
            with connection:
                while b'"q"}' not in connection.recv(65536):
                    pass
                connection.sendall(head + body[:14])

        thread = threading.Thread(target=answer_half, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in aws_environ(f"http://127.0.0.1:{server.getsockname()[1]}").items():
                patch.setenv(name, value)
            with pytest.raises(IncompleteReadError):
                broker.sqs_client().get_queue_url(QueueName="q")
        thread.join(PATIENCE_S)


def test_publishing_over_a_given_up_connection_is_an_error_of_the_connection(stack: Settings) -> None:
    with broker.create_app(stack).connection_for_write() as connection:
        channel = connection.default_channel
        channel.close()
        with pytest.raises(connection.connection_errors):
            channel._put("req-queue", {})
