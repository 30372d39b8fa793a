"""What upstream lacks: each of these runs upstream's own code and fails when an override of ours has become needless.

A test's name says what could go then; its docstring says where that is.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.useragent
import botocore.utils
import celery.app.amqp
import celery.app.defaults
import celery.events
import celery.events.event
import flower.app
import flower.events
import pycurl
import pytest
import tornado.netutil
from billiard.einfo import ExceptionInfo
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.heartbeat import Heart
from celery.worker.request import Request
from flower.inspector import Inspector
from flower.utils.broker import Broker
from flower.views import BaseHandler
from gevent.pywsgi import WSGIHandler
from gunicorn.arbiter import Arbiter
from kombu import Connection, pidbox
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.asynchronous.http import Headers
from kombu.asynchronous.http.curl import CurlClient
from kombu.transport import SQS
from moto.sqs import models
from multipart import ParserError, PushMultipartParser, parse_content_disposition
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

import celery_sqs.flower.app
from celery_sqs import aws as sqs_aws
from celery_sqs import events
from celery_sqs.control import Replies
from celery_sqs.flower import guard
from celery_sqs.flower.pages import HANDLERS
from celery_sqs.transport.http import AsyncConnection
from celery_sqs.transport.messages import TASK_DEFAULTS
from faceapp import broker
from faceapp.config import Settings, aws
from faceapp.http.server import is_stopped
from faceapp.recognition import files, vision
from tests.support.services import PATIENCE_S, wait_until

LONGEST_POLL_S = 20


@contextmanager
def channel_of(transport: type[Any], settings: Settings) -> Iterator[Any]:
    options = broker.create_app(settings).conf.broker_transport_options
    with Connection("sqs://", transport=transport, transport_options=options) as connection:
        yield connection.default_channel


@pytest.fixture
def kombus(stack: Settings) -> Iterator[Any]:
    """A channel of kombu's, with the product's settings."""
    with channel_of(SQS.Transport, stack) as channel:
        yield channel


@pytest.fixture
def ours(stack: Settings) -> Iterator[Any]:
    """A channel of the product's, with the same settings."""
    with channel_of(broker.Transport, stack) as channel:
        yield channel
        channel.hub = None


class Calls(list[tuple[str, Any]]):
    """What boto3 was asked for by the test: operations and their parameters.

    Not by a thread that another test has left, which may be in the middle of a long poll.
    """

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made, make = Calls(), BaseClient._make_api_call  # type: ignore[attr-defined]

    def recording(client: BaseClient, operation: str, parameters: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            made.append((operation, parameters))
        return make(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recording)
    return made


class Hub:
    """Stands in for a worker's event loop: notes what is to be called, and when."""

    def __init__(self) -> None:
        self.soon: list[Any] = []
        self.later: list[Any] = []

    def call_soon(self, call: Any, *_: Any) -> None:
        self.soon.append(call)

    def call_later(self, delay_s: float, call: Any, *_: Any) -> None:
        (self.later if delay_s else self.soon).append(call)


def consume(channel: Any, count: int, *, prefetch: int) -> tuple[Hub, list[Any]]:
    """Take `count` messages from the request queue, as a worker with an event loop would hold them."""
    message = {
        "body": "{}",
        "headers": {},
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {"delivery_info": {"exchange": "", "routing_key": "req-queue"}},
    }
    url = channel._resolve_queue_url("req-queue")
    for _ in range(count):
        channel.sqs().send_message(QueueUrl=url, MessageBody=json.dumps(message))
    got = list[Any]()
    channel.transport_options.pop("refuse", None)  # these are no tasks
    channel.hub = hub = Hub()
    channel.basic_qos(0, prefetch, False)
    channel.basic_consume("req-queue", no_ack=False, callback=got.append, consumer_tag="tag")
    while len(got) < count:
        channel.drain_events(timeout=PATIENCE_S)
    hub.soon.clear()
    return hub, got


# celery_sqs.transport.channel


def test_the_declared_fanout_stays_while_kombu_declares_direct_exchanges_only() -> None:
    """Transport.implements"""
    assert "fanout" not in SQS.Transport.implements.exchange_type
    assert "fanout" in broker.Transport.implements.exchange_type


def test_the_longer_time_limit_stays_while_kombu_gives_a_poll_as_long_as_sqs_takes() -> None:
    """AsyncConnection.get_http_connection"""

    def limit_s(asks: type[AsyncSQSConnection]) -> float:
        return float(asks(sqs_connection=object(), http_client=object()).get_http_connection().timeout)

    assert limit_s(AsyncSQSConnection) <= LONGEST_POLL_S < limit_s(AsyncConnection)


def test_the_time_limit_set_by_hand_stays_while_kombus_does_not_reach_curl() -> None:
    """HTTPConnection.getrequest: a poll whose answer never comes would never end."""

    def limits(asks: type[AsyncSQSConnection]) -> set[int]:
        options = list[int]()
        request = asks(sqs_connection=object(), http_client=object()).get_http_connection().getrequest()
        request.headers = Headers()
        curl = SimpleNamespace(setopt=lambda option, _: options.append(option), unsetopt=lambda _: None)
        client = SimpleNamespace(on_header=print)
        CurlClient._setup_request(client, curl, request, SimpleNamespace(write=print), Headers())
        assert pycurl.URL in options
        return {pycurl.TIMEOUT, pycurl.TIMEOUT_MS} & set(options)

    assert not limits(AsyncSQSConnection)
    assert limits(AsyncConnection)


class Refusal:
    """What SQS answers to a poll whose credentials have run out, as kombu's asynchronous client hands it on."""

    status, reason = 403, "Forbidden"

    def read(self) -> bytes:
        return b"{}"


def test_the_caught_refusal_stays_while_kombu_raises_into_the_event_loop(aws: str) -> None:
    """AsyncConnection._on_list_ready"""
    named = {"sqs_connection": broker.sqs_client(), "http_client": object()}
    with pytest.raises(Exception, match="HTTP 403"):
        AsyncSQSConnection(**named)._on_list_ready(None, [], "ReceiveMessage", Refusal())
    assert AsyncConnection(**named)._on_list_ready(None, [], "ReceiveMessage", Refusal()) == []


def test_the_shared_client_stays_while_kombu_makes_one_for_each_channel(kombus: Any, ours: Any) -> None:
    """Channel._new_boto_client"""
    assert kombus.connection.client.channel().sqs() is not kombus.sqs()
    assert ours.connection.client.channel().sqs() is ours.sqs()


def test_the_lookup_by_name_stays_while_kombu_lists_the_queues(stack: Settings, calls: Calls) -> None:
    """Channel._update_queue_cache, Channel._resolve_queue_url"""
    with channel_of(SQS.Transport, stack):
        assert "ListQueues" in calls.names
    calls.clear()
    with channel_of(broker.Transport, stack):
        assert "ListQueues" not in calls.names


def test_the_shortened_names_stay_while_kombu_makes_longer_ones_than_sqs_takes(kombus: Any, ours: Any) -> None:
    """Channel.canonical_queue_name"""
    assert len(kombus.canonical_queue_name("x" * 80)) > 80
    assert len(ours.canonical_queue_name("x" * 80)) <= 80


def test_the_refusal_to_make_queues_stays_while_kombu_makes_what_the_template_should(aws: str, calls: Calls) -> None:
    """Channel._create_queue"""
    with channel_of(SQS.Transport, Settings(prefix="nobody-deployed-this-yet")) as channel:
        channel._new_queue("req-queue")
    [parameters] = [parameters for name, parameters in calls if name == "CreateQueue"]
    assert set(parameters["Attributes"]) == {"VisibilityTimeout"}


def test_the_dropped_replies_stay_while_kombu_makes_a_queue_for_nobody(kombus: Any, ours: Any, calls: Calls) -> None:
    """Channel._put"""
    for channel, makes in ((kombus, True), (ours, False)):
        calls.clear()
        channel._put(f"{makes}.reply.celery.pidbox", {"body": "{}", "properties": {}})
        assert ("CreateQueue" in calls.names) is makes


def test_the_waking_ack_stays_while_kombu_looks_now_and_then_for_room(stack: Settings) -> None:
    """Channel._schedule_queue, Channel._feed"""
    for transport, looks_again in ((SQS.Transport, True), (broker.Transport, False)):
        with channel_of(transport, stack) as channel:
            hub, [message] = consume(channel, 1, prefetch=1)
            channel._schedule_queue("req-queue")
            assert (hub.later != []) is looks_again
            channel.basic_ack(message.delivery_tag)
            assert (hub.soon == []) is looks_again
            channel.hub = None


def test_the_batches_stay_while_kombu_deletes_messages_one_by_one(stack: Settings, calls: Calls) -> None:
    """Channel.basic_ack"""
    for transport, deletions in ((SQS.Transport, ["DeleteMessage"] * 10), (broker.Transport, ["DeleteMessageBatch"])):
        with channel_of(transport, stack) as channel:
            _, messages = consume(channel, 10, prefetch=20)
            for message in messages:
                channel.basic_ack(message.delivery_tag)
            assert [name for name in calls.names if name.startswith("Delete")] == deletions
            channel.hub = None
        calls.clear()


def test_the_caught_rejection_stays_while_kombu_raises_and_keeps_the_place(kombus: Any, stack: Settings) -> None:
    """Channel.basic_reject, whose own behaviour tests/integration/test_broker.py shows"""
    _, [message] = consume(kombus, 1, prefetch=1)
    kombus.sqs().delete_queue(QueueUrl=kombus._resolve_queue_url("req-queue"))

    with pytest.raises(ClientError):
        kombus.basic_reject(message.delivery_tag, requeue=True)

    assert not kombus.qos.can_consume()
    kombus.hub = None


def test_the_empty_poll_stays_while_kombu_trips_over_its_own_empty_list(kombus: Any, ours: Any) -> None:
    """Channel._on_messages_ready"""
    with pytest.raises(AttributeError):
        kombus._on_messages_ready("url", "req-queue", [])
    assert ours._on_messages_ready("url", "req-queue", []) == 0


def test_the_caught_messages_stay_while_kombu_raises_for_one_that_makes_no_sense(kombus: Any, ours: Any) -> None:
    """Channel._on_messages_ready"""
    received = {"Messages": [{"Body": '{"properties": 5}', "ReceiptHandle": "handle"}]}
    for channel in (kombus, ours):
        channel.connection._callbacks["req-queue"] = lambda message: None
    with pytest.raises(AttributeError):
        kombus._on_messages_ready("url", "req-queue", received)
    assert ours._on_messages_ready("url", "req-queue", received) == 1


def test_the_gathering_pause_stays_while_kombu_receives_again_at_once(
    kombus: Any, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel._receive_message"""
    pauses = list[float]()
    monkeypatch.setattr(time, "sleep", pauses.append)
    for channel, rests in ((kombus, False), (ours, True)):
        pauses.clear()
        for _ in range(2):
            channel._put("req-queue", {"body": "{}", "properties": {}})
            channel._receive_message("req-queue")
        assert (sum(pauses) > 0) is rests


def test_the_other_deletion_stays_while_kombu_needs_an_event_loop_for_a_no_ack_consumer(kombus: Any, ours: Any) -> None:
    """Channel._delete_message"""
    message = {"Body": "{}", "ReceiptHandle": "handle"}
    for channel in (kombus, ours):
        channel._noack_queues.add("req-queue")
        channel.hub = None
    with pytest.raises(AttributeError):
        kombus._message_to_python(message, "req-queue", "url")
    ours._message_to_python(message, "req-queue", "url")


def test_the_look_at_the_age_stays_while_kombu_hands_on_a_predecessors_commands(kombus: Any, ours: Any) -> None:
    """Channel._news"""
    old = {"Body": "{}", "ReceiptHandle": "handle", "Attributes": {"SentTimestamp": "1000"}}
    kombus._asynsqs = SimpleNamespace(delete_message=lambda *_: None)
    for channel, commands in ((kombus, 1), (ours, 0)):
        got = list[Any]()
        name = f"host-{commands}.celery.pidbox"
        channel._noack_queues.add(name)
        channel.connection._callbacks[name] = got.append
        channel.queue_declare(queue=name, auto_delete=True)
        channel._on_messages_ready(channel._new_queue(name), name, {"Messages": [old]})
        assert len(got) == commands


def test_the_name_of_the_reply_queue_stays_while_kombu_knows_its_own_bindings_only(kombus: Any, ours: Any) -> None:
    """Channel._lookup"""
    assert kombus._lookup("reply.celery.pidbox", "someone") in ([], [None])
    assert ours._lookup("reply.celery.pidbox", "someone") == ["someone.reply.celery.pidbox"]


# celery_sqs.transport.fanout


def test_the_known_arns_stay_while_kombu_asks_for_them_to_subscribe(kombus: Any, ours: Any, calls: Calls) -> None:
    """Subscriptions, Channel._create_queue (the policy)"""
    for channel, asks in ((kombus, True), (ours, False)):
        channel.queue_declare(queue=f"listener-{asks}", auto_delete=True)
        calls.clear()
        channel.fanout.subscriptions.subscribe_queue(f"listener-{asks}", "celeryev")
        assert "Subscribe" in calls.names
        assert bool({"GetQueueAttributes", "SetQueueAttributes"} & set(calls.names)) is asks


def test_the_janitor_stays_while_kombu_asks_for_every_subscriber_at_each_start(
    kombus: Any, ours: Any, calls: Calls
) -> None:
    """Fanout.initialise_exchange"""
    kombus._new_queue("listener")
    kombus.fanout.subscriptions.subscribe_queue("listener", "celeryev")
    calls.clear()
    kombus.fanout.initialise_exchange("celeryev")
    assert calls.names == ["ListSubscriptionsByTopic", "GetQueueUrl"]
    calls.clear()
    ours.fanout.initialise_exchange("celeryev")
    assert calls == []


def test_the_computed_topic_stays_while_kombu_makes_it_with_tags(kombus: Any, ours: Any, calls: Calls) -> None:
    """Fanout._create_sns_topic"""
    kombus.fanout._get_or_create_topic("celeryev")
    [(name, parameters)] = calls
    assert name == "CreateTopic"
    assert parameters["Tags"]
    calls.clear()
    ours.fanout._get_or_create_topic("celeryev")
    assert "CreateTopic" not in calls.names


def test_the_second_try_stays_while_kombu_does_not_make_a_lost_topic_anew(kombus: Any, ours: Any) -> None:
    """Fanout.with_topic"""
    for channel in (kombus, ours):
        topic = channel.fanout._get_or_create_topic("celeryev")
        channel.fanout.get_client().delete_topic(TopicArn=topic)
    with pytest.raises(ClientError, match="NotFound"):
        kombus.fanout.publish("celeryev", "{}")
    ours.fanout.publish("celeryev", "{}")


# celery_sqs.control


def test_the_one_reply_queue_stays_while_kombu_deletes_it_after_each_question(
    kombus: Any, stack: Settings, calls: Calls
) -> None:
    """Mailbox, Replies"""
    queue = pidbox.Mailbox("celery")(kombus.connection.client).reply_queue(kombus)
    queue.declare()
    calls.clear()
    kombus.after_reply_message_received(queue.name)
    assert calls.names == ["DeleteQueue"]

    calls.clear()
    control = broker.create_app(stack).control
    assert control.broadcast("ping", reply=True, timeout=0) == []
    assert "DeleteQueue" not in calls.names
    control._replies().close(delete_queue=True)


def test_the_one_reader_stays_while_a_question_of_kombus_takes_anothers_answers(stack: Settings) -> None:
    """Replies"""
    with Connection("memory://") as connection:
        mailbox = pidbox.Mailbox("test")(connection)
        mailbox.reply_queue(connection.default_channel).declare()
        for n in range(2):
            mailbox._publish_reply({"worker": n}, "reply.test.pidbox", mailbox.oid, "second")
        assert mailbox._collect("first", limit=1, timeout=1) == []
        assert len(mailbox._collect("second", limit=2, timeout=1)) == 1

    replies = Replies(aws.of(stack), f"{stack.prefix}-", wait_s=1)
    with replies.question("first", expected=1) as first, replies.question("second", expected=2) as second:
        for n in range(2):
            replies._deliver(
                json.dumps({"headers": {"ticket": "second"}, "body": json.dumps({"worker": n})}), delivery=1
            )
        assert list(first.take(0)) == []
        assert list(second.take(0)) == [{"worker": 0}, {"worker": 1}]
    replies.close(delete_queue=True)


# celery_sqs.events


def test_the_exchange_type_stays_while_celery_sends_its_events_on_sqs_to_a_topic_exchange(ours: Any) -> None:
    """Channel.exchange_declare"""
    on_sqs = SimpleNamespace(transport=SimpleNamespace(driver_type="sqs"))
    exchange = celery.events.event.get_exchange(on_sqs)
    assert exchange.type == "topic"
    exchange(ours).declare()
    assert ours.state.exchanges["celeryev"]["type"] == "fanout"


@pytest.fixture
def dispatcher_of() -> Iterator[Callable[..., Any]]:
    """Makes a dispatcher of a worker's events, without a broker; two events wait in it."""
    with Connection("memory://") as connection, Celery(broker="memory://", set_as_current=False) as app:

        def make(cls: type[Any], on_send_buffered: Any) -> Any:
            made = cls(connection, hostname="worker", app=app, buffer_group=["task"], on_send_buffered=on_send_buffered)
            for _ in range(2):
                made.send("task-started", uuid="1")
            return made

        yield make


def test_the_pause_stays_while_celery_publishes_events_at_each_turn_of_the_loop(
    dispatcher_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EventDispatcher._flush_soon"""
    hub = Hub()
    consumer = SimpleNamespace(hub=hub, _flush_events_promise="flush")
    dispatcher_of(celery.events.EventDispatcher, lambda: Consumer.on_send_event_buffered(consumer))
    assert (hub.soon, hub.later) == (["flush", "flush"], [])

    hub = Hub()
    monkeypatch.setattr(events, "get_event_loop", lambda: hub)
    dispatcher_of(events.EventDispatcher, lambda: Consumer.on_send_event_buffered(consumer))
    assert (len(hub.soon), len(hub.later)) == (0, 1)


def test_the_last_flush_stays_while_celery_closes_a_dispatcher_with_events_in_it(
    dispatcher_of: Callable[..., Any],
) -> None:
    """EventDispatcher.close"""
    for cls, lost in ((celery.events.EventDispatcher, 2), (events.EventDispatcher, 0)):
        dispatcher = dispatcher_of(cls, None)
        dispatcher.close()
        assert len(dispatcher._group_buffer["task"]) == lost


def test_beat_slowly_stays_while_celery_has_no_setting_for_the_heartbeat() -> None:
    """beat_slowly"""
    eventer = SimpleNamespace(on_enabled=set(), on_disabled=set())
    assert Heart(timer=None, eventer=eventer).interval == 2.0
    settings = celery.app.defaults.flatten(celery.app.defaults.NAMESPACES)
    assert [name for name, _ in settings if "heart" in name] == ["broker_heartbeat", "broker_heartbeat_checkrate"]


# faceapp.broker.messages, faceapp.broker.app, faceapp.broker.clients


def test_the_shortened_headers_stay_while_celery_sends_what_is_only_a_default(stack: Settings) -> None:
    """AMQP, TASK_DEFAULTS"""
    app = broker.create_app(stack)
    sent = celery.app.amqp.AMQP(app).as_task_v2("id", "faceapp.recognize", args=["id"]).headers
    assert {name: sent[name] for name in TASK_DEFAULTS} == TASK_DEFAULTS
    assert sent["root_id"] == "id"
    assert sent["origin"]
    ours = app.amqp.as_task_v2("id", "faceapp.recognize", args=["id"]).headers
    assert not {*TASK_DEFAULTS, "root_id", "origin"} & set(ours)


def test_the_early_backend_stays_while_celery_makes_it_without_a_lock() -> None:
    """create_app"""
    both_make_one = threading.Barrier(2, timeout=PATIENCE_S)

    class App(Celery):  # type: ignore[misc]
        def _get_backend(self) -> Any:
            both_make_one.wait()
            return SimpleNamespace(thread_safe=True)

    app, made = App(set_as_current=False), list[Any]()
    threads = [threading.Thread(target=lambda: made.append(app.backend)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not both_make_one.broken


def test_thread_oid_stays_while_celery_does_not_ask_the_backend_where_answers_go(stack: Settings) -> None:
    """ProcessAddress"""
    app = broker.create_app(stack)
    ours, app._local = app.thread_oid, threading.local()
    assert app.thread_oid != app.backend.reply_queue == ours


def test_the_fixed_user_agent_stays_while_botocore_builds_one_for_each_call(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """celery_sqs.aws.DEFAULTS"""
    creator: Any = botocore.useragent.UserAgentString
    built, build = list[None](), creator._build_os_metadata

    def counting(of: Any) -> Any:
        built.append(None)
        return build(of)

    monkeypatch.setattr(creator, "_build_os_metadata", counting)
    for client, anew in ((boto3.session.Session().client("sqs"), True), (broker.sqs_client(), False)):
        client.get_queue_url(QueueName=stack.request_queue)
        built.clear()
        client.get_queue_url(QueueName=stack.request_queue)
        assert bool(built) is anew


# faceapp.tasks


class Asked:
    """A task that a worker was asked for."""

    id = "1"


def test_the_other_error_stays_while_celery_ends_the_worker_for_want_of_memory() -> None:
    """_patiently"""
    try:
        raise MemoryError
    except MemoryError:
        failed = ExceptionInfo()
    with pytest.raises(MemoryError):
        Request.on_failure(Asked(), failed)


# celery_sqs.aws


def test_the_parser_of_times_stays_while_botocore_uses_dateutil(monkeypatch: pytest.MonkeyPatch) -> None:
    """celery_sqs.aws._timestamp"""
    parser = botocore.utils.dateutil.parser  # type: ignore[attr-defined]
    parsed, parse = list[str](), parser.parse

    def counting(value: str, **named: Any) -> Any:
        parsed.append(value)
        return parse(value, **named)

    monkeypatch.setattr(parser, "parse", counting)
    moment = "2026-01-02T03:04:05.000Z"
    assert botocore.utils.parse_timestamp(moment) == sqs_aws._timestamp(moment)
    assert parsed == [moment]


# celery_sqs.flower


class Stop(BaseException):
    """Ends what would go on for ever."""


def test_the_named_place_stays_while_flower_names_its_queue_anew_at_each_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """celery_sqs.flower.app.Events.run"""
    asked = list[dict[str, Any]]()

    def receiver(_: Any, **named: Any) -> None:
        asked.append(named)
        raise Stop

    monkeypatch.setattr(flower.events, "EventReceiver", receiver)
    monkeypatch.setattr(celery_sqs.flower.app, "EventReceiver", receiver)
    with Celery(broker="memory://", set_as_current=False) as app:
        classes: list[Any] = [flower.events.Events, celery_sqs.flower.app.Events]
        for cls in classes:
            with pytest.raises(Stop):
                cls.run(SimpleNamespace(capp=app, on_event=None, place="here"))
    assert ["node_id" in named for named in asked] == [False, True]


def test_the_list_of_workers_stays_while_flower_knows_only_those_that_have_answered() -> None:
    """celery_sqs.flower.app.Flower.workers"""
    state = SimpleNamespace(workers={"worker": SimpleNamespace(alive=True)})
    cases: list[tuple[Any, list[str]]] = [(flower.app.Flower, []), (celery_sqs.flower.app.Flower, ["worker"])]
    for cls, known in cases:
        application = SimpleNamespace(
            inspector=SimpleNamespace(workers=defaultdict(dict)), events=SimpleNamespace(state=state)
        )
        assert list(cls.workers.fget(application)) == known


def test_our_socket_file_stays_while_flower_opens_its_own_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """celery_sqs.flower.app.Flower._listen"""
    modes = list[int]()

    def bind(_: str, mode: int) -> None:
        modes.append(mode)
        raise Stop

    monkeypatch.setattr(tornado.netutil, "bind_unix_socket", bind)
    application: Any = lambda request: None  # noqa: E731
    application.options = SimpleNamespace(unix_socket="socket")
    with pytest.raises(Stop):
        flower.app.Flower.start_http_server(application)
    assert modes == [0o777]


def test_our_broker_page_stays_while_flower_does_not_know_sqs() -> None:
    """celery_sqs.flower.pages"""
    assert HANDLERS
    with pytest.raises(NotImplementedError):
        Broker("sqs://")


def test_the_taken_out_headers_stay_while_flower_lets_every_page_read_its_api() -> None:
    """celery_sqs.flower.guard.OwnPagesOnly"""
    headers = HTTPHeaders()
    handler = SimpleNamespace(
        application=SimpleNamespace(options=SimpleNamespace(basic_auth=None, auth=None)),
        unauthenticated_api=True,
        set_header=headers.__setitem__,
    )
    BaseHandler.set_default_headers(handler)
    assert headers["Access-Control-Allow-Origin"] == "*"

    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "localhost"}),
        connection=SimpleNamespace(),  # type: ignore[arg-type]
    )
    _, left, _ = guard.OwnPagesOnly(request).transform_first_chunk(200, headers, b"", True)

    assert not [name for name in left if name.startswith("Access-Control-")]


def test_the_filter_stays_while_flower_warns_that_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    """celery_sqs.flower.app.make, UNANSWERED"""
    nobody = SimpleNamespace(stats=lambda: None)
    capp = SimpleNamespace(control=SimpleNamespace(inspect=lambda **_: nobody))
    with caplog.at_level(logging.WARNING, "flower.inspector"):
        Inspector._inspect(SimpleNamespace(capp=capp, timeout=1), "stats", None)
    assert [record.msg for record in caplog.records] == [celery_sqs.flower.app.UNANSWERED]


# faceapp.local.aws; what celery_sqs.testing.fast_moto replaces is in tests/integration/test_local_aws.py


def test_the_single_thread_stays_while_motos_sqs_takes_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """serve"""
    backend = models.sqs_backends["123456789012"]["us-east-1"]
    backend.create_queue("shared")
    sent = backend.send_message("shared", "body")
    both_take_it, take, taken = threading.Barrier(2, timeout=PATIENCE_S), models.Message.mark_received, list[str]()

    def taking(message: models.Message, **named: Any) -> None:
        both_take_it.wait()
        take(message, **named)

    def receive() -> None:
        taken.extend(message.id for message in backend.receive_message("shared", 1, 0, 30))

    monkeypatch.setattr(models.Message, "mark_received", taking)
    threads = [threading.Thread(target=receive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.delete_queue("shared")

    assert taken == [sent.id, sent.id]


def test_the_raw_path_stays_while_gevent_decodes_it_and_moto_once_more() -> None:
    """Handler.get_environ"""
    handler = WSGIHandler(None, ("127.0.0.1", 1), SimpleNamespace(get_environ=dict), rfile=io.BytesIO())
    handler.command, handler.path, handler.request_version = "GET", "/bucket/a%2525", "HTTP/1.1"
    handler.headers, handler.content_length = handler.MessageClass(io.BytesIO(b"\r\n"), 0), 0

    environ = handler.get_environ()

    assert "RAW_URI" not in environ
    assert environ["PATH_INFO"] == "/bucket/a%25"


# faceapp.recognition


def fails_to_import(package: str) -> str:
    """What the interpreter says to it."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode != 0
    return done.stderr


def test_the_sizes_of_files_stay_while_an_empty_one_fails_every_scrape(tmp_path: Path) -> None:
    """faceapp.http.metrics._Processes"""
    (tmp_path / "counter_1.db").touch()
    with pytest.raises(struct.error):
        MultiProcessCollector(CollectorRegistry(), path=str(tmp_path)).collect()  # type: ignore[no-untyped-call]


@pytest.mark.skipif(vision.compiled_ops(), reason="torch and torchvision belong together here")
def test_the_declaration_stays_while_torchvision_needs_its_operators_at_import() -> None:
    """faceapp.recognition.vision._declaration"""
    assert "operator torchvision::nms does not exist" in fails_to_import("torchvision")
    assert vision.facenet_pytorch()


@pytest.mark.skipif(importlib.util.find_spec("pkg_resources") is not None, reason="an older setuptools has it still")
def test_the_search_for_files_stays_while_face_recognition_models_needs_pkg_resources() -> None:
    """faceapp.recognition.files"""
    assert "pkg_resources" in fails_to_import("face_recognition_models")
    assert files


def test_our_arbiter_stays_while_gunicorn_takes_a_process_that_is_stopped_for_one_that_hangs() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid), what="the stop")
        heartbeat = SimpleNamespace(last_update=lambda: time.monotonic() - 60)
        arbiter = Arbiter.__new__(Arbiter)
        arbiter.timeout, arbiter._stats = 30, defaultdict(int)
        arbiter.WORKERS = {process.pid: SimpleNamespace(tmp=heartbeat, aborted=True)}
        arbiter.murder_workers()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_our_dispositions_stay_while_multipart_loses_names_that_are_not_plain_utf_8() -> None:
    assert parse_content_disposition("form-data; name=a; filename*=UTF-8''b.jpg") == ("form-data", "a", None)
    with pytest.raises(ParserError, match="decode"):
        list(PushMultipartParser("b").parse(b'--b\r\nContent-Disposition: form-data; filename="\xfc"\r\n\r\n'))
