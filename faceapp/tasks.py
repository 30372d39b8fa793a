"""The tasks that travel over the queue: `celery -A faceapp.tasks worker` runs them.

A message names a request and an object, never pixels or file names. The web tier imports this module to dispatch, so
the model is loaded only where the work is done.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import UserDict
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from celery import signals, states
from celery.exceptions import Reject
from kombu.exceptions import OperationalError

from celery_sqs.events import tell_of_worker
from celery_sqs.flower import use
from celery_sqs.transport.http import CLOCK
from faceapp import broker
from faceapp.broker import GivenUp
from faceapp.broker.messages import ERASE, FORGET
from faceapp.config import settings
from faceapp.errors import FaceappError, NotFound, RecognitionNotFound, StorageUnavailable
from faceapp.observability import logs, tracing
from faceapp.operations import flower
from faceapp.schema import Enrolment, Recognition
from faceapp.work.forgetting import Place
from faceapp.work.given_up import Undertaker
from faceapp.work.pace import with_seconds

if TYPE_CHECKING:
    from faceapp.work.worker import Worker

logger = logging.getLogger(__name__)

Done = TypeVar("Done")

NAMES_SHOWN = 5
"""People whom the short line of an answer names."""

LONGEST_DELAY_S = 900
"""SQS holds no message back for longer."""

app = broker.create_app(settings())
undertaker = Undertaker(settings())
tracing.enabled()
use(app, flower.options(settings()))


class Answer(UserDict[str, Any]):
    """A task's answer: the document as JSON carries it, and one short line for people.

    Celery's events carry an answer's repr, up to 1,024 characters of it. No dict, because Celery writes those out.
    """

    def __init__(self, document: dict[str, Any], *, line: str) -> None:
        super().__init__(document)
        self._line = line

    def __json__(self) -> dict[str, Any]:
        return self.data

    def __repr__(self) -> str:
        return self._line


def _worker() -> Worker:
    # A process per core: a matrix product must not start threads. Read when numpy is imported, here for the first time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from faceapp.work.worker import this_worker

    return this_worker()


@app.task(bind=True, name="faceapp.recognize")
def recognize(self: Any, request_id: str) -> Answer | None:
    """Recognise the photo stored under `request_id`; the answer is a `schema.Recognition` document.

    None when there is one already that is not to be overwritten by this one: it is in S3.
    """
    queued_s = _queued_s(self.request)
    if undertaker.is_expired(queued_s):
        return answer(undertaker.fail(request_id, undertaker.expired()))
    return _patiently(lambda: _recognise(request_id, queued_s))


def _recognise(request_id: str, queued_s: float) -> Answer | None:
    """One try. The scaler plans with its seconds, so waits between tries are not in them."""
    started_s = time.perf_counter()
    result = _worker().recognise(request_id, queued_s=queued_s)
    if result is None or (result.failure and result.failure.code == RecognitionNotFound.code):
        return answer(result)
    return answer(result, worked_s=time.perf_counter() - started_s)


@app.task(bind=True, name="faceapp.enrol")
def enrol(self: Any, request_id: str) -> Answer | None:
    """Enrol the photos waiting under `request_id`; the answer is a `schema.Enrolment` document.

    None when nothing waits there: a second delivery of a message whose work is done.
    """
    if undertaker.is_expired(_queued_s(self.request)):
        return answer(undertaker.fail_enrolment(request_id, undertaker.expired(), drop=True))
    try:
        return _patiently(lambda: answer(_worker().enrol(request_id)))
    except NotFound:
        return None


@app.task(bind=True, name=FORGET)
def forget(self: Any, order_id: str, sweep: int = 1, start: str = "") -> Answer | None:
    """Forget somebody in a page of results, as the order says; the next page is another task's."""

    def work() -> Answer | None:
        done = _worker().forgetting.go_on(order_id, Place(sweep=sweep, start=start))
        if done.next:
            # Sent before this message is deleted: a task that is killed between the two is done again, and so is what
            # it sent.
            place = done.next
            _send_on(self, [order_id, place.sweep, place.start], delay_s=min(math.ceil(place.wait_s), LONGEST_DELAY_S))
        damaged = f" ({done.unreadable} of them damaged)" if done.unreadable else ""
        rest = "more to do" if done.next else "done"
        line = f"forgotten in {_count(done.erased + done.changed, 'result')}{damaged}, {rest}"
        counts = {"erased": done.erased, "changed": done.changed, "unreadable": done.unreadable}
        return Answer(counts, line=line)

    return _patiently(work)


def _send_on(task: Any, arguments: list[Any], *, delay_s: int) -> None:
    """Send the task's message on, to be delivered in `delay_s`."""
    try:
        task.apply_async(
            args=arguments,
            ignore_result=True,
            # Else Celery makes a queue for answers, which nobody waits for.
            reply_to=task.request.reply_to or settings().response_queue,
            headers={"request_id": logs.request_id()},
            delay_seconds=delay_s,
        )
    except (OperationalError, BotoCoreError, ClientError) as error:
        raise Reject(error, requeue=True) from error


@app.task(bind=True, name=ERASE)
def erase(self: Any, request_id: str, left_s: int = 0) -> None:
    """Delete a photo and its result, which a task stored that was running when they were deleted.

    Until every such task has ended, in `left_s`, the message is sent on: SQS delays one by `LONGEST_DELAY_S` at most.
    """

    def work() -> None:
        _worker().forgetting.erase(request_id)
        if left_s:
            delay_s, rest = in_hops(left_s)
            _send_on(self, [request_id, *rest], delay_s=delay_s)

    _patiently(work)


def in_hops(wait_s: int) -> tuple[int, list[int]]:
    """The delay of a message that is to wait for `wait_s`, and its further argument if that is not all of it."""
    delay_s = min(wait_s, LONGEST_DELAY_S)
    return delay_s, [wait_s - delay_s] if wait_s > delay_s else []


def _give_up(task: GivenUp) -> Answer | None:
    return answer(undertaker.give_up(task))


app.give_up = _give_up


def answer(result: Recognition | Enrolment | None, *, worked_s: float | None = None) -> Answer | None:
    """The result's document with its line, such as `done: obama, unknown (2 faces)` or `failed: image_truncated`, and
    with the seconds of work that a recognition took.

    None says no more than that there is a result in S3.
    """
    if result is None:
        return None
    line = _line(result)
    return Answer(result.to_dict(), line=line if worked_s is None else with_seconds(line, worked_s))


def _line(result: Recognition | Enrolment) -> str:
    if isinstance(result, Enrolment):
        if result.failures:
            return f"refused: {result.failures[0].code}"
        return f"enrolled: {result.name}, {_count(len(result.photos), 'photo')}"
    if result.failure:
        return f"failed: {result.failure.code}"
    names = [face.name for face in result.faces]
    if not names:
        return f"done: {result.answer}"
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"done: {', '.join(names[:NAMES_SHOWN])}{more} ({_count(len(names), 'face')})"


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def _patiently(work: Callable[[], Done]) -> Done:
    """Do the work, and wait for an S3 that does not answer: each message handed back has used up one of its tries."""
    give_up_s = time.monotonic() + settings().task_time_limit_s / 2
    pause_s = 0.5
    while True:
        try:
            return work()
        except StorageUnavailable as error:
            if time.monotonic() + pause_s > give_up_s:
                raise Reject(error, requeue=True) from error
            logger.warning("trying again in %.1f s: %s", pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 8.0)
        except MemoryError as error:
            # Celery ends the whole worker on a MemoryError (celery/celery#5655), its other tasks included. It is tried
            # again: a photo that needs too much for itself is refused where it is decoded.
            raise RuntimeError("there is not enough memory for this photo") from error


def _queued_s(request: Any) -> float:
    """Seconds between the message's arrival at SQS and now, by SQS's clock; 0 when SQS did not say."""
    try:
        message = request.properties["delivery_info"]["sqs_message"]
        sent_s = float(message["Attributes"]["SentTimestamp"]) / 1000
        now_s = float(message[CLOCK]) + time.monotonic()
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0.0
    return max(0.0, now_s - sent_s)


@signals.task_prerun.connect
def _begin(task_id: str, task: Any, **_: Any) -> None:
    """What is logged from here on carries the web tier's request id; a span goes on with its trace."""
    request_id, trail = str(task.request.get("request_id", "")), ExitStack()
    # A photo that came without a request id of its own travels under it.
    request_id = request_id if logs.is_request_id(request_id) else task_id
    logs.bind(request_id=request_id, task=task.name, task_id=task_id)
    span = tracing.span(
        f"process {task.name}",
        kind="CONSUMER",
        parent=str(task.request.get("traceparent", "")),
        attributes={
            "messaging.system": "aws_sqs",
            "messaging.operation.type": "process",
            "messaging.destination.name": settings().request_queue,
            "messaging.message.id": task_id,
            "faceapp.request_id": request_id,
            "faceapp.queued_s": _queued_s(task.request),
        },
    )
    trail.enter_context(span)
    if trace_id := tracing.trace_id():
        logs.bind(trace_id=trace_id)
    task.request.trail = trail


@signals.task_postrun.connect
def _end(task: Any, state: str | None = None, **_: Any) -> None:
    tracing.note({"faceapp.state": str(state)}, failed=state != states.SUCCESS)
    if trail := task.request.get("trail"):
        trail.close()
    logs.unbind()


@signals.worker_init.connect
def _load(**_: Any) -> None:
    """Load the model and the gallery in the parent: its children start at once and share the memory.

    Ends the process when the model cannot be loaded. Celery would log what a signal's receiver raises and go on, as a
    worker that fails each photo.
    """
    tracing.load("faceapp-worker")
    try:
        _worker().warm()
        tell_of_worker(trial_s=_worker().trial_s)
    except Exception as error:
        logger.critical("the worker cannot work: %s", error, exc_info=not isinstance(error, FaceappError))
        raise SystemExit(1) from error


@signals.worker_process_init.connect
def _limit_memory(**_: Any) -> None:
    _worker().limit_memory()


@signals.worker_process_shutdown.connect
def _send_last_spans(**_: Any) -> None:
    tracing.close()


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logs.configure(settings(), service="faceapp-worker")


@signals.celeryd_init.connect
def _set_up_early(instance: Any, **_: Any) -> None:
    """Celery warns before it sets logging up, and it prints a banner, which nothing that reads JSON could read."""
    _set_up_logging()
    if settings().log_format == "json":
        instance.emit_banner = lambda: None
