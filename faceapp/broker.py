"""Celery on SQS: the transport, the message format and the app's settings.

kombu's SQS transport carries tasks. What it lacks for replies, events and remote control over SNS is added here by
overriding a few methods; each override says why it is there, and tests/test_broker.py fails when upstream makes one
needless.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cache
from typing import Any

import boto3
import celery.app.amqp
import celery.app.events
import celery.events.dispatcher
import celery.events.event
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery, signals
from kombu import Queue
from kombu.asynchronous import get_event_loop
from kombu.asynchronous.aws.connection import AsyncHTTPSConnection
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.transport import SQS, TRANSPORT_ALIASES, virtual
from kombu.transport.SQS.exceptions import DoesNotExistQueueException

from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

DELETE_WITHIN_S = 0.5
"""A done task's message is deleted with nine others, or after this long."""

EVENTS_WITHIN_S = 1.0
"""A worker's task events go out together, after this long."""
EVENTS_TOGETHER = 100
"""Or when so many wait: about 50 KB, where SNS takes 256 and bills each 64 as a message."""
HEARTBEAT_S = 30.0
"""Between two heartbeats of a worker; Celery's own 2 s would be 43,000 messages a day and worker."""

CLIENT_CONFIG: dict[str, Any] = {
    # A fixed one: botocore builds its own anew for every call, which takes a sixth of the call's CPU.
    "user_agent": f"faceapp boto3/{boto3.__version__}",
    "tcp_keepalive": True,
    "connect_timeout": 3,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "max_pool_connections": 32,
}
"""botocore's settings for SQS; reading waits longer than the longest long poll (20 s)."""

TASK_DEFAULTS: dict[str, Any] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "kwargsrepr": "{}",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""Headers of Celery's message protocol 2 with the value that a worker assumes where a message does not carry them."""


class AMQP(celery.app.amqp.AMQP):
    """Celery's message protocol 2 without the headers that only repeat a default.

    They are a third of the message, and ours must fit into the request queue's 1,024 bytes. `origin` goes too: it is a
    host name of any length that nothing reads.
    """

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **{**kwargs, "origin": "-"})
        headers = {
            name: value
            for name, value in message.headers.items()
            if name != "origin" and (name not in TASK_DEFAULTS or value != TASK_DEFAULTS[name])
        }
        if headers.get("root_id") == headers["id"]:
            del headers["root_id"]
        return message._replace(headers=headers)


class _AsyncSQSConnection(AsyncSQSConnection):
    def get_http_connection(self) -> AsyncHTTPSConnection:
        # kombu gives up on every request after 20 s, just when the longest long poll answers.
        return AsyncHTTPSConnection(timeout=CLIENT_CONFIG["read_timeout"], http_client=self._httpclient)


class Channel(SQS.Channel):
    """kombu's SQS channel, asking SQS less and repaired for fanout, replies and no-ack consumers."""

    _asynsqs: AsyncSQSConnection | None
    _clients: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012 - one per process on purpose
    _clients_lock = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starved: set[str] = set()
        self._done: list[tuple[str, str]] = []

    def _new_boto_client(self, service: Any, region: Any, *credentials: Any, config: Any = None, **named: Any) -> Any:
        # boto3 clients are safe to share between threads and cost 30 ms and megabytes each; kombu makes one a channel.
        key = (os.getpid(), service, region, bool(config), self.endpoint_url)
        with self._clients_lock:
            if key not in self._clients:
                self._clients[key] = super()._new_boto_client(service, region, *credentials, config=config, **named)
            return self._clients[key]

    def _update_queue_cache(self, queue_name_prefix: str) -> None:
        # kombu lists the account's queues for every channel. A least-privilege role may not list, and the names are
        # known: each queue is looked up by name when it is first used. One is asked for here, since a connection that
        # cannot be used must fail while it is being made: that is when Celery waits longer before each new try.
        self._resolve_request_queue()

    def _resolve_request_queue(self) -> None:
        name = self.transport_options["request_queue"]
        try:
            self._resolve_queue_url(name.removeprefix(self.queue_name_prefix))
        except DoesNotExistQueueException:
            raise BrokerUnavailable(f"the queue {name} does not exist: deploy the stack first") from None

    def _resolve_queue_url(self, queue: str) -> str:
        name = self.canonical_queue_name(queue)
        if name not in self._queue_cache:
            try:
                self._queue_cache[name] = self.sqs().get_queue_url(QueueName=name)["QueueUrl"]
            except self.sqs().exceptions.QueueDoesNotExist:
                raise DoesNotExistQueueException(f"Queue with name '{name}' doesn't exist in SQS") from None
        url: str = self._queue_cache[name]
        return url

    def _create_queue(self, queue_name: str, attributes: dict[str, str]) -> Any:
        # The request queue has limits and a redrive policy that only the stack's template knows.
        if queue_name == self.transport_options["request_queue"]:
            raise BrokerUnavailable(f"the queue {queue_name} does not exist: deploy the stack first")
        return super()._create_queue(queue_name, attributes)

    def asynsqs(self, queue: str | None = None) -> AsyncSQSConnection:
        if self._asynsqs is None:
            self._asynsqs = _AsyncSQSConnection(
                sqs_connection=self.sqs(queue=queue),
                region=self.region,
                message_system_attribute_names=self.get_message_attributes["MessageSystemAttributeNames"],
            )
        return self._asynsqs

    def _schedule_queue(self, queue: str) -> None:
        # While the prefetch is full kombu looks every polling_interval whether it still is, which caps a process at
        # prefetch / interval tasks a second. The ack or reject that makes room says so at once.
        if queue in self._active_queues and not self._has_room():
            self._starved.add(queue)
        else:
            super()._schedule_queue(queue)

    def _has_room(self) -> bool:
        """Whether half of the prefetch is free: asking for a single message costs as much as for ten."""
        limit = self.qos.prefetch_count
        return not limit or 2 * self.qos.can_consume_max_estimate() >= limit

    def _feed(self) -> None:
        while self._starved and self.hub and self._has_room():
            self.hub.call_soon(self._schedule_queue, self._starved.pop())

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        self._starved.discard(queue)  # consuming starts polling anew
        return super().basic_consume(queue, *args, **kwargs)

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        # kombu deletes each message with a call of its own; ten go into one. Only while an event loop runs and the
        # queue is consumed: a worker that is shutting down deletes at once.
        try:
            info = self.qos.get(delivery_tag).delivery_info
            done, queue = (info["sqs_queue"], info["sqs_message"]["ReceiptHandle"]), info["routing_key"]
        except KeyError:
            done, queue = None, None
        try:
            if done and self.hub and queue in self._active_queues:
                virtual.Channel.basic_ack(self, delivery_tag, multiple)
                self._delete_soon(done)
            else:
                super().basic_ack(delivery_tag, multiple)
        finally:
            self._feed()

    def _delete_soon(self, done: tuple[str, str]) -> None:
        self._done.append(done)
        if len(self._done) >= SQS.SQS_MAX_MESSAGES:
            self._delete_done()
        elif len(self._done) == 1:
            self.hub.call_later(DELETE_WITHIN_S, self._delete_done)

    def _delete_done(self) -> None:
        """Delete the messages whose tasks are done. One that stays is delivered again, and done again."""
        todo, self._done = self._done, []
        for url in {url for url, _ in todo}:
            entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, (of, receipt) in enumerate(todo) if of == url]
            try:
                failed = self.sqs().delete_message_batch(QueueUrl=url, Entries=entries).get("Failed", ())
            except (BotoCoreError, ClientError) as error:
                failed = [str(error)]
            if failed:
                logger.warning("could not delete all of %d messages whose tasks are done: %s", len(entries), failed)

    def basic_cancel(self, consumer_tag: str) -> Any:
        self._delete_done()
        return super().basic_cancel(consumer_tag)

    def close(self) -> None:
        self._delete_done()
        super().close()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().basic_reject(delivery_tag, requeue)
        finally:
            self._feed()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._feed()

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> int:
        # kombu hands on an empty list, not a response, when SQS answered 5xx or not in time.
        return super()._on_messages_ready(queue, qname, messages) if messages else 0

    def _delete_message(self, queue_name: str, message: Any) -> None:
        # kombu deletes a no-ack consumer's messages through the asynchronous client, which needs an event loop:
        # outside a worker (inspect, Flower) there is none and it fails.
        self.sqs().delete_message(QueueUrl=self._new_queue(queue_name), ReceiptHandle=message["ReceiptHandle"])

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # A remote-control reply goes to the queue of the process that asked. kombu looks for it in bindings that only
        # that process has; the name says it as well.
        if exchange.startswith("reply."):
            return [f"{routing_key}.{exchange}"]
        found: list[str] = super()._lookup(exchange, routing_key, default)
        return found


class Transport(SQS.Transport):
    """kombu's SQS transport that says it can fan out (over SNS); upstream can but declares direct exchanges only."""

    Channel = Channel
    implements = SQS.Transport.implements.extend(exchange_type=frozenset(["direct", "fanout"]))


TRANSPORT_ALIASES["sqs"] = "faceapp.broker:Transport"
# Events go to everybody who listens. A topic exchange would need bindings that the processes share; SQS has none.
celery.events.event.event_exchange.type = "fanout"


class EventDispatcher(celery.events.dispatcher.EventDispatcher):
    """Celery's, which publishes a worker's task events at every turn of its loop: three calls to SNS a photo."""

    def __init__(self, *args: Any, on_send_buffered: Any = None, **kwargs: Any) -> None:
        self._flush_is_due = False
        soon = self._flush_soon if on_send_buffered else None
        super().__init__(*args, **{"buffer_limit": EVENTS_TOGETHER, **kwargs}, on_send_buffered=soon)

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            get_event_loop().call_later(EVENTS_WITHIN_S, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_is_due = False
        self.flush()

    def close(self) -> None:
        self.flush()
        super().close()


class Events(celery.app.events.Events):
    dispatcher_cls = EventDispatcher


@signals.worker_init.connect
def _beat_slowly(sender: Any, **_: Any) -> None:
    # Celery has a command line option for it and no setting; 'celery -A faceapp.tasks worker' is to be enough.
    # The sender is a worker, or nobody where only the model is loaded (faceapp.local.zygote).
    options = getattr(sender, "options", None)
    if options is not None and not options.get("heartbeat_interval"):
        options["heartbeat_interval"] = HEARTBEAT_S


class FaceappCelery(Celery):
    """Celery whose callers are answered on the response queue that their process reads."""

    events_cls = Events
    settings: Settings

    @property
    def thread_oid(self) -> str:
        return str(self.backend.reply_queue)


def create_app(settings: Settings) -> FaceappCelery:
    """The Celery app for the queues that `settings` name. Opens no connection."""
    app = FaceappCelery("faceapp", amqp=AMQP, backend="faceapp.responses:ResponseBackend", set_as_current=True)
    app.settings = settings
    app.conf.update(
        broker_url="sqs://",
        broker_transport_options={
            "queue_name_prefix": f"{settings.prefix}-",
            "request_queue": settings.request_queue,
            "wait_time_seconds": settings.queue_wait_s,
            # The pause after an empty poll, which has already waited.
            "polling_interval": 0.1,
            # Of queues that kombu makes itself (events, remote control); the request queue's is the template's.
            "visibility_timeout": 60,
            "fetch_message_attributes": ["ApproximateReceiveCount", "SentTimestamp"],
            "supports_fanout": True,
            # The messages are JSON: base64 inside base64 would be three quarters more bytes.
            "sqs_base64_encoding": False,
            "body_encoding": "utf-8",
            "client-config": CLIENT_CONFIG,
        },
        broker_connection_retry_on_startup=True,
        # Threads of the web tier wait here for one of the pool's connections, for as long as the longest back-off.
        broker_pool_limit=16,
        broker_pool_acquire_timeout=60,
        task_default_queue="req-queue",
        task_queues=[Queue("req-queue", routing_key="req-queue")],
        task_create_missing_queues=False,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_backend_thread_safe=True,
        # A message is deleted when its task is done, so a killed worker's tasks are delivered again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # A task that raised or ran out of time stays in the queue: SQS delivers it again, three times, then it is a
        # dead letter. What went wrong with the photo itself is a result, not an exception.
        task_acks_on_failure_or_timeout=False,
        task_time_limit=settings.task_time_limit_s,
        task_soft_time_limit=max(1, settings.task_time_limit_s - 5),
        worker_prefetch_multiplier=4,
        worker_concurrency=settings.worker_processes,
        worker_hijack_root_logger=False,
        # The scaler knows from them which workers are there, idle or busy, and how long a photo takes.
        worker_send_task_events=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    # Made now: Celery makes it at first use without a lock, and two of them would read one queue.
    _ = app.backend
    return app


def sqs_client(**config: Any) -> Any:
    """A boto3 SQS client with this service's time limits; `config` overrides single botocore settings."""
    session = boto3.Session()
    region = session.region_name or Channel.default_region
    return session.client("sqs", region_name=region, config=Config(**{**CLIENT_CONFIG, **config}))


@cache
def _probe_client() -> Any:
    return sqs_client(read_timeout=3, retries={"mode": "standard", "total_max_attempts": 1})


def ready(settings: Settings) -> None:
    """Ask SQS for the request queue. Raises BrokerUnavailable when it does not answer or does not exist."""
    name = settings.request_queue
    try:
        url = _probe_client().get_queue_url(QueueName=name)["QueueUrl"]
        _probe_client().get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"the queue {name} does not answer: {error}") from error
