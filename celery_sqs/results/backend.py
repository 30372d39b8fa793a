"""Celery's result backend: replies over SQS, and what must be found later in S3."""

from __future__ import annotations

import atexit
import base64
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from botocore.exceptions import BotoCoreError, ClientError
from celery import signals, states
from celery.backends.base import Backend as CeleryBackend
from celery.backends.base import SyncBackendMixin
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, Reject
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, ResultSet, allow_join_result, result_from_tuple
from kombu.common import oid_from

from celery_sqs import options as sqs_options
from celery_sqs.aws import ONCE
from celery_sqs.errors import ResultsUnavailable, ResultTooLarge
from celery_sqs.hooks import GivenUp, Life
from celery_sqs.queues import sweeper
from celery_sqs.results.chords import INDEXED, Chord, indexed_size
from celery_sqs.results.collector import ENCODED, Collector
from celery_sqs.results.store import AT_ONCE, Store, is_missing
from celery_sqs.transport.messages import TRIES

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_REPLY_BYTES = 240 * 1024
"""A longer answer is sent without its result, which is in S3: an SQS queue may take 256 KiB only."""
URLS = 128
"""Of reply queues, known to a process that answers."""
STORED = "stored"
"""In a reply: the result is in the bucket."""
LOOK_AFTER_S = 2.0
"""Whoever waits for a reply looks into the bucket after this long, and then less and less often: the reply may be
lost."""
LOOK_AT_MOST_EVERY_S = 10.0
LOOK_FOR_OTHERS_EVERY_S = 0.5
"""For the result of a task that another process sent, which is told of it: the first pause."""
PATIENCE_S = 60.0
"""A worker that has a result to store, or a chord's part to count, tries again for so long while S3 does not answer."""
PAUSES_S = (0.5, 8.0)
"""Between two such tries: the first, which doubles, and the longest."""
NO_BUCKET = (
    "A chord's parts, a group that is saved and a result by id need a bucket: "
    "Options(results_bucket=...), or results_bucket in result_backend_transport_options."
)


class ProcessAddress(threading.local):
    """What an app keeps for each thread, in which the address for answers is the whole process's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def oid(self) -> str:
        return str(self._app.backend.address())

    @oid.setter
    def oid(self, _: str) -> None:
        """Celery's own, of a thread that looked for one just before there was this."""


def _is_tried_again(app: Any, state: str, request: Any) -> bool:
    """Whether SQS will deliver the message of a task that failed once more: then this is not the answer yet."""
    if state != states.FAILURE:  # a revoked one is acknowledged
        return False
    try:
        task = app.tasks[request.task]
        if not task.acks_late or task.acks_on_failure_or_timeout:
            return False
        message = request.properties["delivery_info"]["sqs_message"]
        return int(message["Attributes"]["ApproximateReceiveCount"]) < int(message[TRIES])
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


@dataclass
class _Reading:
    """An app's reader in this process. Celery makes a backend without a lock, so two first calls may make two."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pid: int = 0
    collector: Collector | None = None


class _Parents:
    """Lets Celery look at the states of what a result waits for, whose failure it raises: a chord has as many as parts.

    Most of the time that is done by the replies that are here, without asking the bucket for each, and never for those
    whose replies come here.
    """

    def __init__(self, on_interval: Any, thread: Any) -> None:
        self._on_interval, self._thread = on_interval, thread
        # Celery has just looked.
        self._all_from_s = time.monotonic() + LOOK_AT_MOST_EVERY_S

    def look(self) -> None:
        if not self._on_interval:
            return
        began_s = time.monotonic()
        replies_only = began_s < self._all_from_s
        self._thread.looking_at = "replies" if replies_only else "what others sent"
        try:
            self._on_interval()
        finally:
            self._thread.looking_at = "all"
            if not replies_only:
                took_s = time.monotonic() - began_s
                self._all_from_s = time.monotonic() + max(LOOK_AT_MOST_EVERY_S, 10 * took_s)


class Backend(SyncBackendMixin, CeleryBackend):
    """Publishes and stores in the worker, collects in the caller's process."""

    supports_autoexpire = True
    supports_native_join = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = sqs_options.of(self.app)
        self._hooks = self._options.hooks
        self._reply_prefix = f"{self._options.queue_name_prefix}{self._options.replies}"
        self._lock = threading.Lock()
        self._reading: _Reading = self.app.__dict__.setdefault("_sqs_reading", _Reading())
        self._sender_pid = 0
        self._sending: tuple[Any, dict[str, str]] = (None, {})
        self._store_pid = 0
        self._stored: Store | None = None
        self._thread = threading.local()
        self.thread_safe = True
        if not isinstance(self.app._local, ProcessAddress):
            self._readdress()
        signals.worker_ready.connect(self._look_for_buckets)
        if self._options.sweep:
            sweeper.install()

    def _look_for_buckets(self, sender: Any, **_: Any) -> None:
        """Say it at a worker's start when a bucket is not there; its tasks would say it one by one."""
        if sender.app is not self.app:
            return
        for bucket in sorted({self._options.results_bucket, self._options.messages_bucket} - {""}):
            if is_missing(self._options.aws, bucket):
                logger.error("There is no bucket %s: make it, or what is kept there is lost", bucket)

    def _readdress(self) -> None:
        """Put this backend's address into messages, those included that Celery has composed and not sent yet.

        An app that uses settings alone makes its backend in the middle of its first call: there the message has
        Celery's own address already, which each thread has for itself.
        """
        amqp = self.app.amqp
        self.app._local = ProcessAddress(self.app)
        send = amqp.send_task_message

        def send_task_message(producer: Any, name: str, message: Any, *args: Any, **kwargs: Any) -> Any:
            reply_to = str(message.properties.get("reply_to") or "")
            if not reply_to.startswith(self._reply_prefix) and reply_to == oid_from(self.app, threads=True):
                message.properties["reply_to"] = self.address()
            return send(producer, name, message, *args, **kwargs)

        amqp.send_task_message = send_task_message

    @property
    def persistent(self) -> bool:
        """Whether a result can be found later, which Celery asks before it passes over a task that has one."""
        return bool(self._options.results_bucket)

    # What belongs to this process.

    @property
    def collector(self) -> Collector:
        """This process's reader; a forked child gets its own."""
        reading = self._reading
        with reading.lock:
            if reading.collector is None or reading.pid != os.getpid():
                reading.pid, reading.collector = os.getpid(), self._new_collector()
            return reading.collector

    def _new_collector(self) -> Collector:
        name, life = self._reply_queue()
        own, advice = self._options, self._hooks.advice_on_shared_replies
        made = Collector(own.aws, name, wait_s=own.wait_s, life=life, advice=advice)
        atexit.register(made.close, delete_queue=life == "process")
        return made

    def _reply_queue(self) -> tuple[str, Life]:
        """The name of this process's queue, and how long it lives."""
        if self._hooks.reply_queue:
            return self._hooks.reply_queue()
        return f"{self._reply_prefix}-{uuid.uuid4().hex[:12]}", "process"

    @property
    def reply_queue(self) -> str:
        """The queue that this process's answers come to."""
        return self.collector.queue_name

    @property
    def store(self) -> Store | None:
        """The bucket for what must be found later; None where there is none."""
        if not self._options.results_bucket:
            return None
        with self._lock:
            if self._store_pid != os.getpid():
                own = self._options
                self._store_pid = os.getpid()
                self._stored = Store(own.aws, own.results_bucket, own.results_prefix)
            return self._stored

    def _bucket(self) -> Store:
        """Raises NotImplementedError, as Celery's backends do for what they cannot do, where there is no bucket."""
        if self.store is None:
            raise NotImplementedError(NO_BUCKET)
        return self.store

    def _waits_elsewhere(self) -> bool:
        """Whether this is a task that calls another: its answer is looked up, if at all, and has no queue."""
        return self.store is not None and self.app.current_worker_task is not None

    def _is_asked(self, task_id: str) -> bool:
        """Whether the reply to this task comes to this process."""
        return self.collector.expects(task_id) and not self._waits_elsewhere()

    # In the caller's process.

    def address(self) -> str:
        """Where an answer to a task that is sent now is to go; empty for nowhere."""
        return "" if self._waits_elsewhere() else self.reply_queue

    def on_task_call(self, producer: Any, task_id: str) -> None:
        if not self._waits_elsewhere():
            self.collector.expect(task_id)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
        on_message: Any = None,
    ) -> dict[str, Any]:
        deadline_s = None if timeout is None else time.monotonic() + timeout
        pause_s, parents = LOOK_AFTER_S, _Parents(on_interval, self._thread)
        asked = self._is_asked(task_id)
        # The answer to what another process sent goes there: it is looked up here.
        wait = self.collector.wait if asked or not self.store else self._only_pause
        if self.store and (on_message or not asked):
            pause_s = min(interval or LOOK_FOR_OTHERS_EVERY_S, LOOK_FOR_OTHERS_EVERY_S)
            if found := self._look(task_id, on_message, only_way=not asked):
                return self._checked(found, on_interval)
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if self.store:
                left_s = pause_s if left_s is None else min(left_s, pause_s)
            if meta := wait(task_id, left_s):
                if on_message:
                    on_message(meta)
                return self._checked(self._whole(task_id, meta), on_interval)
            if found := self._look(task_id, on_message, only_way=not asked):
                return self._checked(found, on_interval)
            parents.look()
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise self._no_answer(task_id, timeout)
            if not on_message:
                pause_s = min(2 * pause_s, LOOK_AT_MOST_EVERY_S)

    def _no_answer(self, to: str, timeout_s: float | None) -> CeleryTimeoutError:
        trouble = self.collector.trouble
        return CeleryTimeoutError(f"no answer to {to} within {timeout_s} s" + (f"; {trouble}" if trouble else ""))

    def _checked(self, meta: dict[str, Any], on_interval: Any) -> dict[str, Any]:
        """The meta. Of one that failed Celery looks at its parents first, and raises what they raised."""
        if on_interval and meta["status"] in states.PROPAGATE_STATES:
            on_interval()
        return meta

    def _only_pause(self, task_id: str, seconds: float | None) -> None:
        """What a task that waits for another does, which no queue of its own would outlive."""
        time.sleep(LOOK_AFTER_S if seconds is None else seconds)

    def _look(self, task_id: str, on_message: Any = None, *, only_way: bool = False) -> dict[str, Any] | None:
        """The stored result of a task that has ended. Raises ResultsUnavailable if the bucket is the `only_way` to know
        of it, and refuses."""
        try:
            meta = self._read(task_id)
        except ResultsUnavailable as error:
            if only_way and not error.passing:
                raise
            logger.warning("the bucket does not answer%s: %s", "" if only_way else ", the reply may", error)
            return None
        if meta and on_message:
            on_message(meta)
        if not meta or meta["status"] not in states.READY_STATES:
            return None
        self.collector.forget(task_id)  # nobody has to read the queue for it any more
        return meta

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        callback: Any = None,
        propagate: bool = True,
    ) -> Any:
        self._ensure_not_eager()
        meta = self.wait_for(
            result.id, timeout=timeout, interval=interval, on_interval=on_interval, on_message=on_message
        )
        result._maybe_set_cache(dict(self.meta_from_decoded(meta)))
        return result.maybe_throw(propagate=propagate, callback=callback)

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        **_: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each task's id and meta in the order in which they end, those that have ended first.

        Raises Celery's TimeoutError, and ResultsUnavailable where only the bucket knows, and refuses.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        left, parents = dict.fromkeys(task_ids), _Parents(on_interval, self._thread)
        interval = interval or LOOK_FOR_OTHERS_EVERY_S
        first_s, pause_s = 0.0, min(interval, LOOK_FOR_OTHERS_EVERY_S)
        if all(map(self._is_asked, left)):
            first_s = pause_s = LOOK_AFTER_S
        look_s = time.monotonic() + first_s
        while left:
            looks = time.monotonic() >= look_s
            for task_id, meta in self._ended(left, look=looks):
                del left[task_id]
                meta = dict(self.meta_from_decoded(self._checked(meta, on_interval)))
                if on_message:
                    on_message(meta)
                yield task_id, meta
            if not left:
                return
            now_s = time.monotonic()
            if looks:
                look_s, pause_s = now_s + pause_s, min(2 * pause_s, LOOK_AT_MOST_EVERY_S)
            parents.look()
            if deadline_s is not None and now_s >= deadline_s:
                raise self._no_answer(f"{len(left)} tasks", timeout)
            until_s = min(look_s if self.store else now_s + interval, deadline_s or look_s, now_s + interval)
            self._wait_any([each for each in left if self._is_asked(each) or not self.store], max(0.0, until_s - now_s))

    def _wait_any(self, task_ids: list[str], seconds: float) -> None:
        if task_ids:
            self.collector.wait_any(task_ids, seconds)
        else:
            time.sleep(seconds)

    def _ended(self, task_ids: Iterable[str], *, look: bool) -> list[tuple[str, dict[str, Any]]]:
        """Those of the tasks that have ended. With `look` the bucket is asked, too."""
        here = {task_id: meta for task_id in task_ids if (meta := self.collector.peek(task_id))}
        found = {task_id: self._whole(task_id, meta) for task_id, meta in here.items()}
        if look and self.store:
            others = [task_id for task_id in task_ids if task_id not in found]
            only_way = [not self._is_asked(task_id) for task_id in others]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                metas = list(threads.map(lambda task_id, only: self._look(task_id, only_way=only), others, only_way))
            found |= {task_id: meta for task_id, meta in zip(others, metas, strict=True) if meta}
        return list(found.items())

    def remove_pending_result(self, result: Any) -> Any:
        reading = self._reading
        if reading.collector is not None and reading.pid == os.getpid():
            reading.collector.forget(result.id)
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        meta = self.collector.peek(task_id)
        if meta:
            meta = self._whole(task_id, meta)
        elif self._asks_bucket(task_id):
            meta = self._read(task_id)
        return dict(self.meta_from_decoded(meta)) if meta else {"status": states.PENDING, "result": None}

    def _asks_bucket(self, task_id: str) -> bool:
        looking_at = getattr(self._thread, "looking_at", "all")
        return looking_at == "all" or (looking_at != "replies" and not self.collector.expects(task_id))

    def _whole(self, task_id: str, meta: dict[str, Any]) -> dict[str, Any]:
        """A reply's meta as it is encoded, with its result, which may be in the bucket."""
        if encoded := meta.get(ENCODED):
            meta = dict(self.decode(base64.b64decode(encoded)))
        if not meta.get(STORED):
            return meta
        return self._read(task_id) or {"status": states.PENDING, "result": None}

    def _read(self, task_id: str) -> dict[str, Any] | None:
        if self.store is None:
            return None
        body = self.store.get(_task_key(task_id))
        return None if body is None else dict(self.decode(body))

    def _forget(self, task_id: str) -> None:
        self.collector.forget(task_id)
        if self.store:
            self.store.delete(_task_key(task_id))

    # In the worker.

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        # All ways to fail come here: what a task raises in its own process, and what the main process notes when a
        # task's process was lost or killed for its time.
        if _is_tried_again(self.app, state, request):
            return
        if state in states.EXCEPTION_STATES and state in states.READY_STATES and self._hooks.give_up:
            state, result, traceback = self._given_up(task_id, result, state, traceback, request)
        if getattr(request, "ignore_result", False):
            return
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        trouble = self._try_to_keep(task_id, state, self.encode(meta)) if self.store else None
        reply_to = getattr(request, "reply_to", None)
        if state in states.READY_STATES and reply_to:  # who waits needs no bucket
            self._answer(reply_to, meta, request)
        if trouble is None:
            return
        if state not in states.READY_STATES or getattr(request, "chord", None):
            # The task goes on; a chord's part has its own way to tell.
            logger.error("the state %s of %s is not stored: %s", state, task_id, trouble)
        elif trouble.passing:
            _patiently(lambda: self._keep(task_id, state, self.encode(meta)))
        else:
            raise trouble

    def _try_to_keep(self, task_id: str, state: str, body: Any) -> ResultsUnavailable | None:
        try:
            self._keep(task_id, state, body)
        except ResultsUnavailable as error:
            return error
        return None

    def _keep(self, task_id: str, state: str, body: Any) -> None:
        """Write a state down; none that comes late (a second delivery's, a lost worker's) over a result."""
        store = self._bucket()
        if state != states.SUCCESS:
            known = self._read(task_id)
            if known and (known["status"] == states.SUCCESS or _is_late(state, known["status"])):
                return
        store.put(_task_key(task_id), _bytes(body))

    def _answer(self, reply_to: str, meta: dict[str, Any], request: Any) -> None:
        if asked := getattr(request, "request_id", None):
            meta = {**meta, "request_id": asked}
        body = self._reply_text(meta)
        if (size := len(body.encode())) > MAX_REPLY_BYTES:
            body = self._reply_text(self._short(meta, size))
        try:
            with self._hooks.replying():
                self._reply(reply_to, body)
        except (BotoCoreError, ClientError) as error:
            # Whoever waits finds a stored result. Failing the task would only do its work again.
            logger.warning("no answer sent to %s for %s: %s", reply_to, meta["task_id"], error)

    def _reply_text(self, meta: dict[str, Any]) -> str:
        """A reply is JSON, whatever the results' serializer is."""
        encoded = self.encode(meta)
        if self.content_type == "application/json":
            return str(encoded)
        plain = {name: meta[name] for name in ("task_id", "status")}
        return json.dumps({**plain, ENCODED: base64.b64encode(_bytes(encoded)).decode()})

    def _short(self, meta: dict[str, Any], size: int) -> dict[str, Any]:
        """A reply for a result that is too large for one."""
        if self.store:
            return {**meta, "result": None, "traceback": None, STORED: True}
        if self._options.results_elsewhere:
            return {**meta, "result": None, "traceback": None}
        error = ResultTooLarge(
            f"The result has {size} bytes, and a reply carries {MAX_REPLY_BYTES}: give the app a results_bucket."
        )
        result = self.encode_result(error, states.FAILURE)
        return {**meta, "status": states.FAILURE, "result": result, "traceback": None}

    def _given_up(
        self, task_id: str, error: Any, state: str, traceback: str | None, request: Any
    ) -> tuple[str, Any, str | None]:
        """The state, the result and the traceback that are answered for a task that will not be tried again."""
        assert self._hooks.give_up is not None
        try:
            given_up = GivenUp(
                task=str(request.task),
                task_id=task_id,
                arguments=tuple(request.args or ()),
                error=str(error["exc_type"]),
            )
            instead = self._hooks.give_up(given_up)
        except Exception:  # this may be a worker's main process, which must not end by it
            logger.exception("nothing but Celery's own failure is answered for %s", task_id)
            return state, error, traceback
        return (state, error, traceback) if instead is NotImplemented else (states.SUCCESS, instead, None)

    def _reply(self, queue_name: str, body: str) -> None:
        if not queue_name.startswith(self._reply_prefix):
            logger.warning("no answer sent to %r: it is not one of our response queues", queue_name)
            return
        sqs, urls = self._sender()
        if queue_name not in urls:
            if len(urls) >= URLS:  # most processes that ask come once, with a queue of their own
                del urls[next(iter(urls))]
            urls[queue_name] = sqs.get_queue_url(QueueName=queue_name)["QueueUrl"]
        sqs.send_message(QueueUrl=urls[queue_name], MessageBody=body)

    def _sender(self) -> tuple[Any, dict[str, str]]:
        """This process's client and the URLs it knows; a forked child makes its own."""
        with self._lock:
            if self._sender_pid != os.getpid():
                # Short: a task must not be kept from ending by its answer.
                client = self._options.aws.client("sqs", read_timeout=5, retries={**ONCE, "total_max_attempts": 2})
                self._sender_pid, self._sending = os.getpid(), (client, {})
            return self._sending

    # Groups.

    def _save_group(self, group_id: str, result: Any) -> Any:
        self._bucket().put(_group_key(group_id), _bytes(self.encode({"result": result.as_tuple()})))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        body = self._bucket().get(_group_key(group_id))
        if body is None:
            return None
        meta = dict(self.decode(body))
        meta["result"] = result_from_tuple(meta["result"], self.app)
        return meta

    def _delete_group(self, group_id: str) -> None:
        self._bucket().delete(_group_key(group_id))

    # Chords.

    def ensure_chords_allowed(self) -> None:
        self._bucket()

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        """Keep the header's structure where its results alone do not say it; else let the messages say its size."""
        self._bucket()
        header = self.app.GroupResult(*header_result_args)
        # The body goes with each part's message, and may have been another chord's before.
        body.pop(INDEXED, None)
        if any(isinstance(each, GroupResult) for each in header.results):
            header.save(backend=self)
        else:
            body[INDEXED] = len(header.results)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        Chord(self._bucket(), group_id).set_size(chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        Chord(self._bucket(), chord_id).add(result.id)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        # Celery stores the success first. Where a task's process is lost after that, nothing counts its part: a worker
        # that finds the success takes the task for done (Request.on_failure, worker_deduplicate_successful_tasks).
        finished = self._end_part(request, state, result) if request and request.chord else None
        if store_result and not getattr(request, "ignore_result", False):
            self.store_result(task_id, result, state, request=request)
        if finished:
            self._finish(finished)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if request and request.chord and isinstance(exc, (WorkerLostError, TimeLimitExceeded)):
            done = self._known_outcome(request)
            if done and done[1] == states.SUCCESS:  # its process was lost after its part had been noted
                self.mark_as_done(task_id, done[2], request)
                return
        super().mark_as_failure(task_id, exc, traceback, request, *args, **kwargs)

    def _known_outcome(self, request: Any) -> Any:
        try:
            found = Chord(self._bucket(), request.group).outcome(request.id, request.group_index)
        except ResultsUnavailable as error:
            logger.warning("what %s came to is not known: %s", request.id, error)
            return None
        return found and self.decode(found)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        if finished := self._end_part(request, state, result):
            self._finish(finished)

    def _end_part(self, request: Any, state: str, result: Any) -> Chord | None:
        """Count a chord's part; for the last one, send the callback and return the chord, which is finished then."""
        task_id, group_id = request.id, request.group
        if not group_id or not task_id or _is_tried_again(self.app, state, request):
            return None
        outcome = self.encode([task_id, state, self.encode_result(result, state)])
        try:
            return _patiently(lambda: self._count(request, outcome))
        except ResultsUnavailable as error:
            logger.error("the part %s of the chord %s is not counted: %s", task_id, group_id, error)
            if error.passing and self.app.tasks[request.task].acks_late:
                # It is delivered again, and counted then.
                raise Reject(error, requeue=True) from error
            self._fail_chord(request, error)
            raise

    def _count(self, request: Any, outcome: str) -> Chord | None:
        # Doing so again does what is left to do.
        chord = Chord(self._bucket(), request.group)
        indexed = indexed_size(request.chord)
        whole = chord.end_part(request.id, request.group_index, _bytes(outcome), indexed=indexed)
        if whole is None:
            return None
        callback = maybe_signature(request.chord, app=self.app)
        if not (whole.again and self._has_begun(callback)):
            self._send_callback(callback, request.group, whole.parts)
        return chord

    def _has_begun(self, callback: Any) -> bool:
        return bool(callback.id and self._read(callback.id))

    def _fail_chord(self, request: Any, error: ResultsUnavailable) -> None:
        """Tell a chord's callback, if the bucket takes that, of a part that cannot be counted."""
        chord = Chord(self._bucket(), request.group)
        try:
            if chord.claim(request.id):
                callback = maybe_signature(request.chord, app=self.app)
                self.chord_error_from_stack(callback, ChordError(f"The part {request.id} is not counted: {error}"))
                self._finish(chord)
        except ResultsUnavailable as another:
            logger.error("the chord %s waits for ever: %s", request.group, another)

    def _finish(self, chord: Chord) -> None:
        try:
            chord.finish()
        except ResultsUnavailable as error:  # the callback has been sent
            logger.warning("objects of a chord that is done stay behind: %s", error)

    def _send_callback(self, callback: Any, group_id: str, parts: list[bytes]) -> None:
        """Send a chord's callback with its parts' results, or tell it of the part that failed."""
        try:
            results = self._header_results(group_id, parts)
        except ResultsUnavailable:
            raise
        except Exception as error:
            if not isinstance(error, ChordError):
                error = ChordError(f"Join error: {error!r}")
            logger.error("the chord %s failed: %s", group_id, error)
            self.chord_error_from_stack(callback, error)
            return
        try:
            self.app.amqp._retry_publish(callback.delay, results)
        except Exception as error:
            logger.exception("the callback of the chord %s could not be sent", group_id)
            self.chord_error_from_stack(callback, ChordError(f"Callback error: {error!r}"))

    def _header_results(self, group_id: str, parts: list[bytes]) -> list[Any]:
        outcomes = [self.decode(each) for each in parts]
        header = GroupResult.restore(group_id, backend=self, app=self.app)
        if header is None:
            return [self._unpack(each) for each in outcomes]
        by_id = {each[0]: each for each in outcomes}
        with allow_join_result():
            return [self._joined(each, by_id) for each in header.results]

    def _joined(self, result: Any, outcomes: dict[str, Any]) -> Any:
        """What a header's result comes to. The last part's own is not stored yet: its outcome is among `outcomes`."""
        if isinstance(result, ResultSet):
            return [self._joined(each, outcomes) for each in result.results]
        if result.id in outcomes:
            return self._unpack(outcomes[result.id])
        return result.get(timeout=self.app.conf.result_chord_join_timeout)

    def _unpack(self, part: Any) -> Any:
        """What a part returned. Raises ChordError, with its cause, for one that failed."""
        task_id, state, result = part
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(result)
        if state in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {task_id} raised {result!r}") from result
        return result


def _patiently(call: Callable[[], T]) -> T:
    """What `call` returns once it succeeds. Raises its ResultsUnavailable if it cannot, or after `PATIENCE_S`."""
    until_s, pause_s = time.monotonic() + PATIENCE_S, PAUSES_S[0]
    while True:
        try:
            return call()
        except ResultsUnavailable as error:
            if not error.passing or time.monotonic() + pause_s > until_s:
                raise
            logger.warning("again in %g s: %s", pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSES_S[1])


def _bytes(encoded: Any) -> bytes:
    """What Celery encoded: text, or bytes where the serializer is a binary one."""
    return encoded if isinstance(encoded, bytes) else str(encoded).encode()


def _is_late(state: str, known: str) -> bool:
    return known in states.READY_STATES and state in states.UNREADY_STATES and state != states.RETRY


def _task_key(task_id: str) -> str:
    return f"tasks/{task_id}"


def _group_key(group_id: str) -> str:
    return f"groups/{group_id}"
