"""kombu's SQS transport, asking SQS less and repaired for fanout, replies and no-ack consumers."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from typing import Any

import pycurl
from botocore.exceptions import BotoCoreError, ClientError
from kombu.asynchronous.aws.connection import AsyncHTTPSConnection
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.transport import SQS, TRANSPORT_ALIASES, virtual
from kombu.transport.SQS.exceptions import DoesNotExistQueueException
from vine import promise

from celery_sqs.clocks import sent_s
from celery_sqs.control import REPLY_EXCHANGE
from celery_sqs.queues.clients import QUICK, quick_sqs_client
from celery_sqs.queues.temporary import SECOND, temporary_queues
from celery_sqs.transport.fanout import FANOUT_EXCHANGES, Fanout, arn, listener_attributes, topic_name
from celery_sqs.transport.polls import polls
from faceapp import aws
from faceapp.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

DELETE_WITHIN_S = 0.5
"""A done task's message is deleted with nine others, or after this long."""
LISTENER_DELETES_WITHIN_S = 20.0
"""The same for events taken outside a worker: they are not seen again for a minute, and twice would do no harm."""
GATHER_S = 0.25
"""Between two receives outside a worker."""
AGAIN_AFTER_S = 3
"""A message whose task failed is delivered again after this long."""
CLOCKS_AGREE_S = 2.0
CLOCK = "faceapp:clock"
"""In a received message: add it to this machine's time.monotonic() for the time by SQS, which the message's times are
by. A worker's own clock may be minutes away."""
REPLY_QUEUES = 64
"""Whose URLs a worker knows."""
LONGEST_NAME = 80 - len(SECOND)
"""Of a queue: SQS takes 80 characters."""


def _clock_s(date: str | None) -> float:
    """What time it is by SQS, which answered at `date`, less this machine's monotonic clock (s).

    The answer says whole seconds, so a clock that agrees with it is believed.
    """
    own_s = time.time()
    sqs_s = sent_s(date)
    return (own_s if abs(sqs_s - own_s) <= CLOCKS_AGREE_S else sqs_s) - time.monotonic()


class HTTPConnection(AsyncHTTPSConnection):
    """kombu's, whose requests come to an end, and trust the authorities that boto3 does."""

    def getrequest(self) -> Any:
        # kombu tells curl nothing of its time limit (celery/kombu#2488): a poll whose connection went dead would be the
        # queue's last.
        request = super().getrequest()
        request.on_prepare = promise(self._prepare)
        # As bytes: pycurl takes text for ASCII, so that no poll would work where the folder of the installation has any
        # other letter in its name. And the authorities that boto3 would trust, since the two must not differ.
        request.ca_certs = os.fsencode(os.environ.get("AWS_CA_BUNDLE") or request.ca_certs)
        return request

    def _prepare(self, curl: Any) -> None:
        curl.setopt(pycurl.CONNECTTIMEOUT, aws.DEFAULTS["connect_timeout"])
        curl.setopt(pycurl.TIMEOUT, math.ceil(self.timeout))


class AsyncConnection(AsyncSQSConnection):
    """kombu's asynchronous SQS calls, with time for the longest long poll and no way out for a refusal."""

    def get_http_connection(self) -> AsyncHTTPSConnection:
        # kombu allows every request 20 s, just when the longest long poll answers.
        return HTTPConnection(timeout=aws.DEFAULTS["read_timeout"], http_client=self._httpclient)

    def _on_list_ready(self, parent: Any, markers: Any, operation: str, response: Any) -> Any:
        # kombu raises on 4xx, which throttling and a token that has just run out are, into the event loop: that logs
        # it, or ends by it, and the queue is never polled again (celery/kombu#931, which was mended for 5xx only).
        try:
            answer = super()._on_list_ready(parent, markers, operation, response)
        except Exception as error:
            logger.warning("SQS refused %s: %s", operation, error)
            return []
        messages = answer.get("Messages", ()) if answer else ()
        for each in messages:
            # kombu's curl client puts an answer's headers to the request's.
            each[CLOCK] = _clock_s(response.response.request.headers.get("Date"))
        return answer


class Channel(SQS.Channel):
    """kombu's SQS channel, asking SQS less and repaired for fanout, replies and no-ack consumers."""

    _asynsqs: AsyncSQSConnection | None
    _fanout: Fanout | None
    _clients: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012 - one per process on purpose
    _clients_lock = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starved: set[str] = set()
        self._answered: dict[str, None] = {}  # reply queues, the least recently used first
        self._done: list[tuple[str, str]] = []
        self._done_from_s = 0.0
        self._received_s = float("-inf")

    @property
    def region(self) -> str:
        # kombu goes to its default region where boto3 finds none, and boto3 does not read AWS_REGION.
        return aws.region()

    @property
    def fanout(self) -> Fanout:
        if not self._fanout:
            self._fanout = Fanout(self)
        return self._fanout

    def _new_boto_client(
        self,
        service: Any,
        region: Any,
        access_key_id: Any,
        secret_access_key: Any,
        session_token: Any = None,
        config: Any = None,
    ) -> Any:
        # boto3 clients are safe to share between threads and cost 30 ms and megabytes each; kombu makes one a channel.
        if config is not None:  # made for one use, with credentials that will have run out at the next
            credentials = (access_key_id, secret_access_key, session_token)
            return aws.client(service, endpoint=self.endpoint_url, credentials=credentials, extra=config)
        key = (os.getpid(), service, region, self.endpoint_url)
        # Events: the loop that acknowledges tasks must not wait long for them.
        limits = QUICK if service == "sns" else {}
        with self._clients_lock:
            if key not in self._clients:
                self._clients[key] = aws.client(service, endpoint=self.endpoint_url, **limits)
            return self._clients[key]

    def _update_queue_cache(self, queue_name_prefix: str) -> None:
        # kombu lists the account's queues for every channel (celery/kombu#761). A least-privilege role may not list,
        # and the names are known: each queue is looked up by name when it is first used. One is asked for here, since
        # a connection that cannot be used must fail while it is being made: that is when Celery waits longer before
        # each new try.
        self._resolve_request_queue()

    def _resolve_request_queue(self) -> None:
        try:
            self._resolve_queue_url(self._request_queue)
        except DoesNotExistQueueException:
            name = self.transport_options["request_queue"]
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

    def canonical_queue_name(self, queue_name: str) -> str:
        # A host's name can be 63 characters long, and the prefix 32; kombu does not look at the length
        # (celery/kombu#387).
        name: str = super().canonical_queue_name(queue_name)
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def queue_of(self, queue: str) -> tuple[str, str]:
        """The URL and the ARN of a queue."""
        url = self._new_queue(queue)
        return url, arn(self.sqs(), "sqs", url, url.rpartition("/")[2])

    def topic_of(self, exchange: str) -> str:
        """The ARN of an exchange's topic."""
        url = self._resolve_queue_url(self._request_queue)
        return arn(self.sqs(), "sns", url, topic_name(self.queue_name_prefix.removesuffix("-"), exchange))

    @property
    def _request_queue(self) -> str:
        name: str = self.transport_options["request_queue"]
        return name.removeprefix(self.queue_name_prefix)

    def _create_queue(self, queue_name: str, attributes: dict[str, str]) -> dict[str, str]:
        # The request queue has limits and a redrive policy that only the stack's template knows.
        if queue_name == self.transport_options["request_queue"]:
            raise BrokerUnavailable(f"the queue {queue_name} does not exist: deploy the stack first")
        url = self._resolve_queue_url(self._request_queue)
        topics = [self.topic_of(exchange) for exchange in FANOUT_EXCHANGES]
        attributes |= listener_attributes(arn(self.sqs(), "sqs", url, queue_name), topics)
        return {"QueueUrl": temporary_queues.make(self.sqs(), queue_name, attributes)}

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if self.closed:
            # The connection was given up while SQS did not answer. kombu's own error is none of a connection, so
            # publishing would not be tried again over a new one.
            raise ConnectionError("the connection to SQS was given up")
        # kombu makes a queue that is not there. A remote-control reply's is not when whoever asked has gone since: the
        # new one would be nobody's (many are left behind: celery/celery#8348).
        if not queue.endswith(REPLY_EXCHANGE):
            super()._put(queue, message, **kwargs)
            return
        name = self.canonical_queue_name(queue)
        try:
            self._resolve_queue_url(queue)
            super()._put(queue, message, **kwargs)
            # Each process that asks has a queue of its own, and kombu remembers every one for ever.
            self._answered.pop(name, None)
            self._answered[name] = None
            if len(self._answered) > REPLY_QUEUES:
                forgotten = next(iter(self._answered))
                del self._answered[forgotten]
                self._queue_cache.pop(forgotten, None)
        except (DoesNotExistQueueException, self.sqs().exceptions.QueueDoesNotExist):
            self._queue_cache.pop(name, None)
            self._answered.pop(name, None)
            logger.info("nobody waits at %s any more", queue)

    def asynsqs(self, queue: str | None = None) -> AsyncSQSConnection:
        if self._asynsqs is None:
            self._asynsqs = AsyncConnection(
                sqs_connection=self.sqs(queue=queue),
                region=self.region,
                message_system_attribute_names=self.get_message_attributes["MessageSystemAttributeNames"],
            )
        return self._asynsqs

    def _schedule_queue(self, queue: str) -> None:
        # What is raised here, for want of credentials while a role's have run out and new ones cannot be had, ends the
        # connection, the worker, or the queue's polling for ever, depending on what it is.
        try:
            self._poll_soon(queue)
        except Exception as error:
            logger.warning("cannot ask SQS for messages of %s: %r", queue, error)
            if queue == self._request_queue:
                polls.failed(repr(error))
            self._loop1(queue)

    def _poll_soon(self, queue: str) -> None:
        if queue in self._active_queues:
            self._use(queue)
        # While the prefetch is full kombu looks every polling_interval whether it still is (without one it is the busy
        # loop of celery/kombu#685), which caps a process at prefetch / interval tasks a second. The ack or reject that
        # makes room says so at once.
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
        if queue != self._request_queue:
            temporary_queues.adopt(self.sqs(), self._new_queue(queue))
        return super().basic_consume(queue, *args, **kwargs)

    def _use(self, queue: str) -> None:
        """Note that a temporary queue is in use; if it was deleted as abandoned, make and subscribe it anew."""
        if queue in self._noack_queues and not temporary_queues.use(self._new_queue(queue)):
            self._queue_cache.pop(self.canonical_queue_name(queue), None)
            self._fanout = None
            self._subscribe_queue_to_fanout_exchange_if_required(queue)

    def _news(self, queue: str, messages: list[Any]) -> list[Any]:
        """The messages without those that were for whoever had this queue before; those are deleted.

        A worker must not obey the command to shut down that its predecessor did not live to see.
        """
        if queue not in self._noack_queues:
            return messages
        from_ms = (temporary_queues.began_s(self._new_queue(queue)) - CLOCKS_AGREE_S) * 1000
        news = [each for each in messages if float(each.get("Attributes", {}).get("SentTimestamp", from_ms)) >= from_ms]
        for each in messages:
            if each not in news:
                self._delete_message(queue, each)
        return news

    def _receive_message(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        # Outside an event loop: Flower, the scaler. Events come from many workers in the same second; one billed call
        # takes several of them.
        self._use(queue)
        time.sleep(max(0.0, self._received_s + GATHER_S - time.monotonic()))
        if self._done and time.monotonic() - self._done_from_s > LISTENER_DELETES_WITHIN_S:
            self._delete_done()
        answer = super()._receive_message(queue, *args, **kwargs)
        self._received_s = time.monotonic()
        return {**answer, "Messages": self._news(queue, answer.get("Messages", []))}

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        # kombu deletes each message with a call of its own (celery/kombu#1336); ten go into one. Only while an event
        # loop runs and the queue is consumed: a worker that is shutting down deletes at once.
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
            self._done_from_s = time.monotonic()
            if self.hub:
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
            info = self.qos.get(delivery_tag).delivery_info
            failed = None if requeue or info["routing_key"] != self._request_queue else info["sqs_message"]
        except KeyError:
            failed = None
        try:
            if failed:
                # kombu leaves it out of sight for the rest of its visibility timeout: whoever waits would be told of
                # the third failure after minutes.
                self._hand_back(info["sqs_queue"], [failed], after_s=AGAIN_AFTER_S)
                self.qos.reject(delivery_tag)
            else:
                super().basic_reject(delivery_tag, requeue)
        except (BotoCoreError, ClientError) as error:
            # It comes again when its visibility timeout is over. Raising, as kombu does (celery/kombu#1391), would end
            # the worker, and keep the place in the prefetch for ever.
            logger.warning("a message stays out of sight for its whole visibility timeout: %s", error)
            self.qos.reject(delivery_tag)
        finally:
            self._feed()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._feed()

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> int:
        # kombu hands on an empty list, not a response, when SQS answered 5xx or not in time (since celery/kombu#1064
        # and celery/kombu#1173), and trips over it here.
        received = messages.get("Messages", []) if messages else []
        if self.closed:  # this poll was under way when the connection was given up
            self._hand_back(queue, received)
            return 0
        news = self._news(qname, received)
        if qname == self._request_queue:
            polls.note(answered=bool(messages))
            news = self._acceptable(queue, news)
        for each in news:
            # One by one: what is raised here, for a message that makes no sense, ends the worker, or its polling
            # (celery/kombu#2421).
            try:
                super()._on_messages_ready(queue, qname, {"Messages": [each]})
            except Exception:
                logger.exception("a message that cannot be taken in stays in %s", qname)
                self.qos.reject(each["ReceiptHandle"])
        return len(received)

    def _get_from_sqs(self, queue_name: str, *args: Any, **kwargs: Any) -> Any:
        # Until a poll has succeeded the worker does not look ready, so the first one does not wait for messages.
        if queue_name == self.transport_options["request_queue"] and not polls.working:
            return self._get_at_once(queue_name, *args, **kwargs)
        return super()._get_from_sqs(queue_name, *args, **kwargs)

    def _get_at_once(
        self, queue_name: str, queue_url: str, connection: AsyncSQSConnection, count: int = 1, callback: Any = None
    ) -> Any:
        return connection.receive_message(
            queue_name, queue_url, number_messages=count, wait_time_seconds=0, callback=callback
        )

    def _acceptable(self, url: str, messages: list[Any]) -> list[Any]:
        """The messages that a worker can do; the others go back at once, and are dead letters two deliveries later."""
        reasons = [self.transport_options["refused"](str(each["Body"])) for each in messages]
        for each, reason in zip(messages, reasons, strict=True):
            if reason:
                logger.warning("the message %s is left for the dead letters: %s", each.get("MessageId"), reason)
        self._hand_back(url, [each for each, reason in zip(messages, reasons, strict=True) if reason])
        return [each for each, reason in zip(messages, reasons, strict=True) if not reason]

    def _restore(self, message: Any) -> None:
        # What a worker that leaves has taken and not begun. kombu sends such a message anew, with all its tries, and
        # leaves the old one to come back as well.
        info = message.delivery_info
        self._hand_back(info["sqs_queue"], [info["sqs_message"]])

    def _hand_back(self, url: str, messages: list[Any], *, after_s: int = 0) -> None:
        """Make messages visible again; those that fail are so when their visibility timeout is over."""
        entries = [
            {"Id": str(n), "ReceiptHandle": each["ReceiptHandle"], "VisibilityTimeout": after_s}
            for n, each in enumerate(messages)
        ]
        try:
            if entries:
                quick_sqs_client().change_message_visibility_batch(QueueUrl=url, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            logger.warning("%d messages stay out of sight for their whole visibility timeout: %s", len(entries), error)

    def _loop1(self, queue: str, messages_fetched: Any = None) -> None:
        # A closed channel has no connection, which kombu asks for the pause before the next poll. What is raised here
        # keeps the event loop from the answers to other polls.
        if not self.closed:
            super()._loop1(queue, messages_fetched)

    def _delete_message(self, queue_name: str, message: Any) -> None:
        # kombu deletes a no-ack consumer's messages through the asynchronous client, which needs an event loop:
        # outside a worker (inspect, Flower) there is none and it fails (celery/kombu#746). And one by one.
        self._delete_soon((self._new_queue(queue_name), message["ReceiptHandle"]))

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # A remote-control reply goes to the queue of the process that asked. kombu looks for it in bindings that only
        # that process has, so nobody is answered (celery/celery#6727); the name says it as well.
        if exchange == REPLY_EXCHANGE:
            return [f"{routing_key}.{exchange}"]
        found: list[str] = super()._lookup(exchange, routing_key, default)
        return found


class Transport(SQS.Transport):
    """kombu's SQS transport that says it can fan out, over SNS.

    Upstream can (celery/kombu#2372), but declares direct exchanges only, so that workers leave remote control out
    (celery/kombu#2335).
    """

    Channel = Channel
    implements = SQS.Transport.implements.extend(exchange_type=frozenset(["direct", "fanout"]))


TRANSPORT_ALIASES["sqs"] = "celery_sqs.transport.channel:Transport"
