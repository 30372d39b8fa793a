"""kombu's SQS channel, asking SQS less and repaired for fanout, replies and no-ack consumers."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.transport import SQS, virtual
from kombu.transport.SQS.exceptions import DoesNotExistQueueException
from kombu.transport.virtual.base import queue_declare_ok_t

from celery_sqs.aws import Aws
from celery_sqs.errors import BrokerUnavailable
from celery_sqs.queues.temporary import LONGEST_NAME, code_of, temporary_queues
from celery_sqs.transport import delay, offload, priorities
from celery_sqs.transport.deletions import Deletions, Done
from celery_sqs.transport.fanout import (
    FANOUT_EXCHANGES,
    REPLY_EXCHANGE,
    RETENTION_S,
    Fanout,
    arn,
    listener_attributes,
    topic_name,
)
from celery_sqs.transport.http import CLOCKS_AGREE_S, AsyncConnection
from celery_sqs.transport.intake import Intake
from celery_sqs.transport.polls import polls
from celery_sqs.transport.step_polls import StepPoller
from celery_sqs.transport.visibility import Keeper

logger = logging.getLogger(__name__)

LISTENER_DELETES_WITHIN_S = 20.0
"""Events that were taken outside a worker are deleted so late: they are not seen again for a minute, and twice would do
no harm."""
GATHER_S = 0.25
"""Between two receives outside a worker."""
EVENTS = "celeryev"
"""Celery's exchange for events, unless its setting `event_exchange` and the option of that name say otherwise."""
AGAIN_AFTER_S = 3
"""A message whose task failed is delivered again after this long."""
ROOM_WAITS_S = 2.0
"""With less than half of the prefetch free, a worker asks for messages after so long."""
LISTEN_S = 5
"""Outside an event loop the highest priority step is listened to for so long, then the others are looked at."""
URL = "celery-sqs:queue"
"""In a received message: the URL of its queue, where that is a priority step."""
REPLY_QUEUES = 64
"""Whose URLs a worker knows."""


class Gate:
    """An application's `refuse`, which `inspect stats` can tell of."""

    def __init__(self, refuse: Callable[[str], str]) -> None:
        self._refuse = refuse

    def __call__(self, body: str) -> str:
        return self._refuse(body)

    def __json__(self) -> str:
        return getattr(self._refuse, "__qualname__", type(self._refuse).__qualname__)


class Channel(Intake):
    """kombu's SQS channel, asking SQS less and repaired for fanout, replies and no-ack consumers."""

    _fanout: Fanout | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._work: set[str] = set()  # the queues that are consumed here, on SQS's names
        self._temporary: set[str] = set()
        self._asyncs: dict[str | None, tuple[Any, AsyncSQSConnection]] = {}
        super().__init__(*args, **kwargs)
        self._starved: set[str] = set()
        self._pollers: dict[str, StepPoller] = {}
        self._asked_s: dict[str, float] = {}  # when a queue's last poll began
        self._loop_thread = 0
        self._room_from_s: float | None = None  # since when a part of the prefetch is free and nothing is asked for
        self._turns: dict[str, priorities.Turns] = {}
        self._answered: dict[str, None] = {}  # reply queues, the least recently used first
        self._received_s = float("-inf")
        self._keeper = Keeper(self._quick)
        self._deletions = Deletions(self._quick, self._keeper, lambda: self._offload, self._call_later)
        refuse = self.transport_options.get("refuse")
        if refuse and not hasattr(refuse, "__json__"):
            self.transport_options["refuse"] = Gate(refuse)

    @cached_property
    def aws(self) -> Aws:
        """Where this connection asks AWS, and as whom."""
        option = self.transport_options.get
        limits = {name: option(name) for name in ("connections", "used_tag", "bucket_owner") if option(name)}
        return Aws(
            region=option("region") or "",
            endpoint_url=self.endpoint_url or option("endpoint_url") or "",
            access_key_id=self.conninfo.userid or "",
            secret_access_key=self.conninfo.password or "",
            config=option("client-config") or {},
            **limits,
        )

    @cached_property
    def _offload(self) -> offload.Offload:
        """Where the text of a message goes that is larger than SQS takes."""
        option, limit_bytes = self.transport_options.get, self._limit_bytes
        prefix = option("messages_prefix", offload.PREFIX)
        bucket = option("messages_bucket") or ""
        return offload.Offload(aws=self.aws, bucket=bucket, prefix=prefix, limit_bytes=limit_bytes)

    @property
    def _limit_bytes(self) -> int:
        """How long a message's JSON may be."""
        limit_bytes = int(self.transport_options.get("largest_message_bytes", offload.LIMIT_BYTES))
        return limit_bytes * 3 // 4 if self.sqs_base64_encoding else limit_bytes

    @property
    def region(self) -> str:
        # kombu goes to its default region where boto3 finds none, and boto3 does not read AWS_REGION.
        return self.aws.asked_region()

    @property
    def fanout(self) -> Fanout:
        if not self._fanout:
            self._fanout = Fanout(self)
        return self._fanout

    # What kombu's channel leaves out, or does in its way, where the options do not say it.

    @cached_property
    def supports_fanout(self) -> bool:
        return bool(self.transport_options.get("supports_fanout", True))

    @cached_property
    def sqs_base64_encoding(self) -> bool:
        return bool(self.transport_options.get("sqs_base64_encoding", False))

    @cached_property
    def fetch_message_attributes(self) -> Any:
        return self.transport_options.get("fetch_message_attributes", ["ApproximateReceiveCount", "SentTimestamp"])

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
        given = {
            # One client for those who say the region and those who leave it to boto3.
            "region": None if region == self.region else region,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "session_token": session_token,
        }
        aws = replace(self.aws, **{name: value for name, value in given.items() if value})
        if config is not None or session_token:  # with credentials that will have run out at the next use
            return aws.client(service, extra=config)
        # Events: the loop that acknowledges tasks must not wait long for them.
        return aws.quick(service) if service == "sns" else aws.shared(service)

    def _quick(self, url: str) -> Any:
        """A client for calls about the queue at `url` that an event loop waits for, and that may fail."""
        for name, own in self.predefined_queues.items():
            if own["url"] == url:
                return self.sqs(queue=name)
        return self.aws.quick("sqs")

    def sqs(self, queue: str | None = None) -> Any:
        # A process's own queues are not among the predefined ones.
        return super().sqs(queue=queue if queue in self.predefined_queues else None)

    def _update_queue_cache(self, queue_name_prefix: str) -> None:
        if self.predefined_queues:
            super()._update_queue_cache(queue_name_prefix)
            return
        # kombu lists the account's queues for every channel (celery/kombu#761). A least-privilege role may not list,
        # and the names are known: each queue is looked up by name when it is first used. One is asked for here, since
        # a connection that cannot be used must fail while it is being made: that is when Celery waits longer before
        # each new try.
        try:
            self._resolve_queue_url(self._first_queue)
        except DoesNotExistQueueException:
            if not self._creates_queues:
                raise self._no_queue(self.canonical_queue_name(self._first_queue)) from None

    @property
    def _first_queue(self) -> str:
        """The work queue by which the account is known."""
        names: list[str] = self.transport_options.get("work_queues") or ["celery"]
        return names[0]

    @property
    def _creates_queues(self) -> bool:
        return bool(self.transport_options.get("create_queues", True))

    @cached_property
    def _priority_steps(self) -> tuple[int, ...]:
        return tuple(self.transport_options.get("priority_steps") or ())

    def _steps_of(self, queue: str) -> tuple[str, ...]:
        """The queues of a work queue's priority steps, the highest first; the queue alone where it has none."""
        is_others = self.canonical_queue_name(queue) in self._temporary or queue.endswith(REPLY_EXCHANGE)
        return priorities.queues_of(queue, () if is_others else self._priority_steps)

    def _most(self, url: str) -> int:
        """How many messages one receive from this queue asks for."""
        # While SQS knows one message of a group to be taken it hands out no other; of one call it hands out several.
        return 1 if url.endswith(".fifo") else self._get_message_estimate()

    @staticmethod
    def _no_queue(name: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"the queue {name} does not exist, and is not to be made here: deploy the stack first")

    def _resolve_queue_url(self, queue: str) -> str:
        name = self.canonical_queue_name(queue)
        if self.predefined_queues and name not in self._temporary:
            found: str = super()._resolve_queue_url(queue)
            return found
        if name not in self._queue_cache:
            try:
                self._queue_cache[name] = self.sqs().get_queue_url(QueueName=name)["QueueUrl"]
            except self.sqs().exceptions.QueueDoesNotExist:
                raise DoesNotExistQueueException(f"Queue with name '{name}' doesn't exist in SQS") from None
        url: str = self._queue_cache[name]
        return url

    def canonical_queue_name(self, queue_name: str) -> str:
        if self.predefined_queues and queue_name in self.predefined_queues:
            return queue_name
        # A host's name can be 63 characters long, and the prefix 32; kombu does not look at the length
        # (celery/kombu#387). Names come here more than once.
        name: str = super().canonical_queue_name(queue_name.removeprefix(self.queue_name_prefix))
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def queue_of(self, queue: str) -> tuple[str, str]:
        """The URL and the ARN of a queue."""
        url = self._new_queue(queue)
        return url, arn(self.sqs(), "sqs", url, url.rpartition("/")[2])

    def topic_of(self, exchange: str) -> str:
        """The ARN of an exchange's topic."""
        return arn(self.sqs(), "sns", self._any_url(), topic_name(self.queue_name_prefix.removesuffix("-"), exchange))

    def _any_url(self) -> str:
        """The URL of a queue of this account. Raises BrokerUnavailable when there is none, and none may be made."""
        for url in self._queue_cache.values():
            return str(url)
        return str(self._new_queue(self._first_queue))

    def queue_declare(self, queue: str | None = None, **kwargs: Any) -> Any:
        if queue and (kwargs.get("auto_delete") or kwargs.get("exclusive")):
            self._temporary.add(self.canonical_queue_name(queue))
        for step in self._steps_of(queue)[1:] if queue else ():
            self._new_queue(step)
        try:
            return super().queue_declare(queue=queue, **kwargs)
        except ClientError as error:
            # Who only sends, or gives `max_deliveries`, needs no right to see how long a queue is.
            counting = error.operation_name == "GetQueueAttributes" and code_of(error).startswith("AccessDenied")
            if not counting or kwargs.get("passive"):
                raise
            return queue_declare_ok_t(queue, 0, 0)

    def exchange_declare(self, exchange: str | None = None, type: str = "direct", **kwargs: Any) -> Any:
        # Events go to everybody who listens. A topic exchange would need bindings that the processes share; SQS has
        # none, and Celery makes exceptions for Redis and Pub/Sub only (celery/celery#4279).
        is_events = exchange == self.transport_options.get("event_exchange", EVENTS)
        return super().exchange_declare(exchange, "fanout" if is_events else type, **kwargs)

    def _create_queue(self, queue_name: str, attributes: dict[str, str]) -> dict[str, str]:
        if queue_name not in self._temporary:
            if not self._creates_queues and not self.predefined_queues:
                # It has limits and a redrive policy that only the stack's template knows.
                raise self._no_queue(queue_name)
            made: dict[str, str] = super()._create_queue(queue_name, attributes)
            return made
        account = self._any_url()
        fanout = [name for name, each in self.state.exchanges.items() if each["type"] == "fanout"]
        topics = [self.topic_of(exchange) for exchange in dict.fromkeys([*FANOUT_EXCHANGES, *fanout])]
        attributes |= listener_attributes(arn(self.sqs(), "sqs", account, queue_name), topics)
        if queue_name.endswith("-pidbox") or queue_name.startswith(f"{self.queue_name_prefix}{EVENTS}"):
            attributes["MessageRetentionPeriod"] = str(RETENTION_S)
        return {"QueueUrl": temporary_queues.make(self.aws, queue_name, attributes)}

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not self.closed and len(self._steps_of(queue)) > 1:
            queue = priorities.queue_for(queue, self._get_message_priority(message), self._priority_steps)
        # A copy: a publisher that tries again works the delay out anew.
        properties = dict(message.get("properties", {}))
        message = {**message, "properties": properties}
        # A FIFO queue takes no delay for single messages.
        if not queue.endswith(".fifo") and not {"delay_seconds", "DelaySeconds"} & properties.keys():
            seconds = delay.delay_s(delay.left_s(message.get("headers"), time.time()))
            properties |= {"delay_seconds": seconds} if seconds else {}
        if self.closed:
            # The connection was given up while SQS did not answer. kombu's own error is none of a connection, so
            # publishing would not be tried again over a new one.
            raise ConnectionError("the connection to SQS was given up")
        # kombu makes a queue that is not there. A remote-control reply's is not when whoever asked has gone since: the
        # new one would be nobody's (many are left behind: celery/celery#8348).
        if not queue.endswith(REPLY_EXCHANGE):
            super()._put(queue, self._offload.fitted(message, where=queue), **kwargs)
            return
        # It is none of the application's queues, which may take less.
        offload.check(message, max(self._limit_bytes, offload.LIMIT_BYTES), where=queue)
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

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
        # Several queues get it: no worker could tell when all have read an object in S3.
        limit_bytes = min(self._limit_bytes, offload.SNS_LIMIT_BYTES)
        offload.check(message, limit_bytes, where=f"all that listen to {exchange}")
        super()._put_fanout(exchange, message, routing_key, **kwargs)

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        if self.hub:
            self.hub.call_later(seconds, call)

    def soon(self, call: Callable[..., None], *args: Any) -> None:
        """Let the event loop call this at once. Any thread may call it."""
        if threading.get_ident() != self._loop_thread:
            self.hub.call_soon(call, *args)
        else:
            # From a timer, which is how curl hands over an answer that comes at once, call_soon is for after the loop's
            # next sleep: up to a second in which the queue is not asked.
            self.hub.call_later(0, call, *args)

    def pause_s(self, asked_s: float) -> float:
        """How long to wait after a poll that began at `asked_s` (monotonic) and brought nothing."""
        # kombu pauses for the whole polling_interval after a long poll as well, which has waited already: messages that
        # come meanwhile wait, too.
        return max(0.0, asked_s + (self.connection.polling_interval or 0) - time.monotonic())

    def asynsqs(self, queue: str | None = None) -> AsyncSQSConnection:
        own = queue if queue in self.predefined_queues else None
        client = self.sqs(queue=own)
        known: tuple[Any, AsyncSQSConnection] | None = self._asyncs.get(own)
        if known is None or known[0] is not client:  # one with a role's credentials is renewed with them
            connection = AsyncConnection(
                sqs_connection=client,
                region=client.meta.region_name,
                message_system_attribute_names=self.get_message_attributes["MessageSystemAttributeNames"],
            )
            known = self._asyncs[own] = client, connection
        return known[1]

    def _schedule_queue(self, queue: str) -> None:
        # What is raised here, for want of credentials while a role's have run out and new ones cannot be had, ends the
        # connection, the worker, or the queue's polling for ever, depending on what it is.
        try:
            self._poll_soon(queue)
        except Exception as error:
            logger.warning("cannot ask SQS for messages of %s: %r", queue, error)
            if self.canonical_queue_name(queue) in self._work:
                polls.failed(repr(error))
            self._loop1(queue)

    def _poll_soon(self, queue: str) -> None:
        self._asked_s[queue] = time.monotonic()
        if queue in self._active_queues:
            self._use(queue)
        # While the prefetch is full kombu looks every polling_interval whether it still is (without one it is the busy
        # loop of celery/kombu#685), which caps a process at prefetch / interval tasks a second. The ack or reject that
        # makes room says so at once.
        if queue in self._active_queues and not self._has_room():
            self._starved.add(queue)
            return
        self._room_from_s = None
        if queue in self._active_queues and queue in self._pollers:
            self._pollers[queue].polls.look()
        else:
            super()._schedule_queue(queue)

    def _has_room(self) -> bool:
        """Whether half of the prefetch is free, since asking for one message costs as much as for ten.

        After a while any of it, since a process of the pool may have nothing to do. With priorities any of it at once:
        a worker that asks late takes the highest that there is.
        """
        limit, room_from_s = self.qos.prefetch_count, self._room_from_s
        if self._priority_steps or (room_from_s and time.monotonic() - room_from_s >= ROOM_WAITS_S):
            return bool(self.qos.can_consume())
        return not limit or 2 * self.qos.can_consume_max_estimate() >= limit

    def _feed(self) -> None:
        if self._starved and self._room_from_s is None and self.qos.can_consume():
            self._room_from_s = time.monotonic()
            self._call_later(ROOM_WAITS_S, self._feed)
        while self._starved and self.hub and self._has_room():
            try:
                queue = self._starved.pop()
            except KeyError:  # another thread of the pool was faster
                return
            self.soon(self._schedule_queue, queue)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        self._loop_thread = threading.get_ident()
        self._starved.discard(queue)  # consuming starts polling anew
        if len(steps := self._steps_of(queue)) > 1 and not no_ack:
            self._pollers[queue] = StepPoller(self, queue, steps)
        if not no_ack:
            self._work.add(self.canonical_queue_name(queue))
        if queue not in self.predefined_queues and (no_ack or self.canonical_queue_name(queue) in self._temporary):
            temporary_queues.adopt(self.aws, self._new_queue(queue))
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _use(self, queue: str) -> None:
        """Note that a temporary queue is in use; if it was deleted as abandoned, make and subscribe it anew."""
        is_own = queue in self._noack_queues or self.canonical_queue_name(queue) in self._temporary
        if is_own and not temporary_queues.use(self._new_queue(queue)):
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
        if self._deletions.waiting_s > LISTENER_DELETES_WITHIN_S:
            self._deletions.flush()
        url, answer = self._receive(queue, *args, **kwargs)
        self._received_s = time.monotonic()
        news = self._whole(url, self._news(queue, answer.get("Messages", [])))
        if self.canonical_queue_name(queue) in self._work:  # a worker without an event loop: gevent, eventlet
            news = self._take_in(queue, url, news)
        return {**answer, "Messages": news}

    def _receive(
        self, queue: str, max_number_of_messages: int = 1, wait_time_seconds: int | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The URL of a queue, or of one of its priority steps, and SQS's answer."""
        wait_s = self.wait_time_seconds if wait_time_seconds is None else wait_time_seconds
        steps = self._steps_of(queue)
        if len(steps) == 1:
            return self._receive_from(queue, max_number_of_messages, wait_s)
        turns = self._turns.setdefault(queue, priorities.Turns(steps))
        for step in turns.next():
            found = self._receive_from(step, max_number_of_messages, 0)
            turns.note(step, empty="Messages" not in found[1])
            if "Messages" in found[1]:
                return found
        return self._receive_from(steps[0], max_number_of_messages, min(wait_s, LISTEN_S))

    def _receive_from(self, queue: str, count: int, wait_s: int) -> tuple[str, dict[str, Any]]:
        url = self._new_queue(queue)
        answer: dict[str, Any] = self.sqs(queue=queue).receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=min(count, self._most(url)),
            WaitTimeSeconds=wait_s,
            **{name: which for name, which in self.get_message_attributes.items() if which},
        )
        for each in answer.get("Messages", ()):
            each[URL] = url
        return url, answer

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        # kombu deletes each message with a call of its own (celery/kombu#1336); ten go into one. Only while an event
        # loop runs and the queue is consumed: a worker that is shutting down deletes at once.
        try:
            info = self.qos.get(delivery_tag).delivery_info
            done, queue = Done.of(info["sqs_queue"], info["sqs_message"]), info["routing_key"]
        except KeyError:
            done, queue = None, None
        try:
            if done and self.hub and queue in self._active_queues:
                virtual.Channel.basic_ack(self, delivery_tag, multiple)
                self._deletions.add(done)
            elif done and done.object:  # which stays unless SQS says that the message is deleted
                virtual.Channel.basic_ack(self, delivery_tag, multiple)
                self._deletions.add(done)
                self._deletions.flush()
            else:
                super().basic_ack(delivery_tag, multiple)
                self._keeper.drop(delivery_tag)
        finally:
            self._feed()

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        for step in self._steps_of(queue):
            super()._delete(step, *args, **kwargs)
            # kombu forgets the URL under a name that it does not keep it by, so the queue could not be made again.
            if step not in self.predefined_queues:
                self._queue_cache.pop(self.canonical_queue_name(step), None)

    def _size(self, queue: str) -> int:
        return sum(super(Channel, self)._size(step) for step in self._steps_of(queue))

    def _purge(self, queue: str) -> int:
        """Take every message out of the queue; returns how many there were, as far as SQS knows."""
        return sum(self._purge_step(step) for step in self._steps_of(queue))

    def _purge_step(self, queue: str) -> int:
        size: int = super()._size(queue)
        url = self._new_queue(queue)
        try:
            self._quick(url).purge_queue(QueueUrl=url)
        except ClientError as error:
            if "PurgeQueueInProgress" not in code_of(error):
                raise
            # SQS does it once a minute.
            while messages := self._quick(url).receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
                entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
                self._quick(url).delete_message_batch(QueueUrl=url, Entries=entries)
        return size

    def basic_cancel(self, consumer_tag: str) -> Any:
        self._deletions.flush()
        return super().basic_cancel(consumer_tag)

    def close(self) -> None:
        self._keeper.close()
        self._deletions.flush()
        super().close()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._keeper.drop(delivery_tag)
        try:
            info = self.qos.get(delivery_tag).delivery_info
            failed = None if requeue or not self._has_redrive_policy(None, info["sqs_queue"]) else info["sqs_message"]
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
        news, is_work = self._news(qname, received), self.canonical_queue_name(qname) in self._work
        if is_work:
            polls.note(answered=bool(messages))
        if qname in self.connection._callbacks:  # else kombu hands them all back
            news = self._whole(queue, news)
            news = self._take_in(qname, queue, news) if is_work else news
        for each in news:
            # One by one: what is raised here, for a message that makes no sense, ends the worker, or its polling
            # (celery/kombu#2421).
            try:
                super()._on_messages_ready(queue, qname, {"Messages": [each]})
            except Exception:
                logger.exception("a message that cannot be taken in stays in %s", qname)
                self._keeper.drop(each["ReceiptHandle"])
                self.qos.reject(each["ReceiptHandle"])
        return len(received)

    def _get_from_sqs(self, queue_name: str, *args: Any, **kwargs: Any) -> Any:
        # Until a poll has succeeded the worker does not look ready, so the first one does not wait for messages.
        if queue_name.endswith(".fifo"):
            kwargs["count"] = 1  # as in _most
        if queue_name in self._work and not polls.working:
            return self._get_at_once(queue_name, *args, **kwargs)
        return super()._get_from_sqs(queue_name, *args, **kwargs)

    def _get_at_once(
        self, queue_name: str, queue_url: str, connection: AsyncSQSConnection, count: int = 1, callback: Any = None
    ) -> Any:
        return connection.receive_message(
            queue_name, queue_url, number_messages=count, wait_time_seconds=0, callback=callback
        )

    def _message_to_python(self, message: Any, queue_name: str, q_url: str) -> Any:
        payload = super()._message_to_python(message, queue_name, message.get(URL, q_url))
        # The payload has the text: the message goes to a pool's process as well, once is enough.
        message["Body"] = message.get(offload.SENT, message["Body"])
        if "properties" in payload:  # it has none where it is acknowledged already
            count = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            # So that Celery's worker_deduplicate_successful_tasks works (celery/celery#3270, celery/kombu#1022).
            payload["properties"]["delivery_info"]["redelivered"] = count > 1
        return payload

    def _restore(self, message: Any) -> None:
        # What a worker that leaves has taken and not begun. kombu sends such a message anew, with all its tries, and
        # leaves the old one to come back as well.
        info = message.delivery_info
        self._keeper.drop(info["sqs_message"]["ReceiptHandle"])
        self._hand_back(info["sqs_queue"], [info["sqs_message"]])

    def _loop1(self, queue: str, messages_fetched: Any = None) -> None:
        # A closed channel has no connection, which kombu asks for the pause before the next poll. What is raised here
        # keeps the event loop from the answers to other polls.
        if self.closed:
            return
        pause_s = 0.0 if messages_fetched else self.pause_s(self._asked_s.get(queue, float("-inf")))
        if pause_s:
            self.hub.call_later(pause_s, self._schedule_queue, queue)
        else:
            self.soon(self._schedule_queue, queue)

    def _delete_message(self, queue_name: str, message: Any) -> None:
        # kombu deletes a no-ack consumer's messages through the asynchronous client, which needs an event loop:
        # outside a worker (inspect, Flower) there is none and it fails (celery/kombu#746). And one by one.
        self._deletions.add(Done.of(self._new_queue(queue_name), message))

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
    implements = SQS.Transport.implements.extend(exchange_type=frozenset(["direct", "topic", "fanout"]))
