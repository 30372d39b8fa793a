"""kombu's SQS transport, asking SQS less and repaired for fanout, replies and no-ack consumers."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from kombu.asynchronous.aws.connection import AsyncHTTPSConnection
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.transport import SQS, TRANSPORT_ALIASES, virtual
from kombu.transport.SQS.exceptions import DoesNotExistQueueException

from faceapp.broker.clients import CLIENT_CONFIG, QUICK_CONFIG, quick_sqs_client
from faceapp.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

DELETE_WITHIN_S = 0.5
"""A done task's message is deleted with nine others, or after this long."""


class AsyncConnection(AsyncSQSConnection):
    """kombu's asynchronous SQS calls, with time for the longest long poll and no way out for a refusal."""

    def get_http_connection(self) -> AsyncHTTPSConnection:
        # kombu gives up on every request after 20 s, just when the longest long poll answers.
        return AsyncHTTPSConnection(timeout=CLIENT_CONFIG["read_timeout"], http_client=self._httpclient)

    def _on_list_ready(self, parent: Any, markers: Any, operation: str, response: Any) -> Any:
        # kombu raises on 4xx, which throttling and a token that has just run out are, into the event loop: that logs
        # it, or ends by it, and the queue is never polled again.
        try:
            return super()._on_list_ready(parent, markers, operation, response)
        except Exception as error:
            logger.warning("SQS refused %s: %s", operation, error)
            return []


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
        if config is not None:  # made for one use, with credentials that will have run out at the next
            return super()._new_boto_client(service, region, *credentials, config=config, **named)
        key = (os.getpid(), service, region, self.endpoint_url)
        # Events: the loop that acknowledges tasks must not wait long for them.
        config = QUICK_CONFIG if service == "sns" else None
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

    def _delete(self, queue: str, *args: Any, **named: Any) -> None:
        super()._delete(queue, *args, **named)
        # kombu forgets the queue by another name than it remembers it by.
        self._queue_cache.pop(self.canonical_queue_name(queue), None)

    def _create_queue(self, queue_name: str, attributes: dict[str, str]) -> Any:
        # The request queue has limits and a redrive policy that only the stack's template knows.
        if queue_name == self.transport_options["request_queue"]:
            raise BrokerUnavailable(f"the queue {queue_name} does not exist: deploy the stack first")
        return super()._create_queue(queue_name, attributes)

    def asynsqs(self, queue: str | None = None) -> AsyncSQSConnection:
        if self._asynsqs is None:
            self._asynsqs = AsyncConnection(
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
                failed = quick_sqs_client().delete_message_batch(QueueUrl=url, Entries=entries).get("Failed", ())
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
        except (BotoCoreError, ClientError) as error:
            # It comes again when its visibility timeout is over. Raising would end the worker, and keep the place in
            # the prefetch for ever.
            logger.warning("a message stays out of sight for its whole visibility timeout: %s", error)
            self.qos.reject(delivery_tag)
        finally:
            self._feed()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._feed()

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> int:
        # kombu hands on an empty list, not a response, when SQS answered 5xx or not in time.
        received = messages.get("Messages", ()) if messages else ()
        for each in received:
            # One by one: what is raised here ends the worker, or its polling.
            try:
                super()._on_messages_ready(queue, qname, {"Messages": [each]})
            except Exception:
                logger.exception("a message that cannot be taken in stays in %s", qname)
                self.qos.reject(each["ReceiptHandle"])
        return len(received)

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


TRANSPORT_ALIASES["sqs"] = "faceapp.broker.transport:Transport"
