"""An application at a glance: its queues, its workers and its scaler.

Each part is asked at the same time as the others, and one that does not answer says so in a sentence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from celery_sqs import options as sqs_options
from celery_sqs.aws import ONCE
from celery_sqs.errors import BrokerUnavailable, Error, ScalerUnreachable
from celery_sqs.options import Options
from celery_sqs.queues.counts import DEAD_LETTERS, TASKS, Queue, queue, work_queues
from celery_sqs.queues.letters import dead_letter_queues
from celery_sqs.scaler import client as scaler_client

WORKERS_ANSWER_S = 2.5
"""Workers that have not answered by then count as silent."""
AWS_ANSWERS_S = 3.0
ANSWERS_WITHIN_S = 10.0
"""A part that takes longer counts as silent, whatever its own time limits and tries are."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part(Generic[T]):
    """What one part of the system answered, or the sentence that says why it did not."""

    value: T | None = None
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that answered Celery's remote control."""

    name: str
    processes: int
    active: int | None
    """Tasks at work; None when it did not answer that in time."""
    uptime_s: float


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """What the scaler says of itself."""

    leader: bool
    wanted: int
    reason: str
    trouble: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """All of it, at `time_s` (Unix time)."""

    work: ClassVar[str] = TASKS
    """The kind of the work queues, and what waits in them."""
    advice: ClassVar[str] = "'python -m celery_sqs dead-letters list' says why"

    time_s: float
    prefix: str
    queues: Part[tuple[Queue, ...]]
    workers: Part[tuple[Worker, ...]]
    scaler: Part[Scaler]
    scaler_expected: bool = False
    """Whether the scaler should answer: not every application has one, and it may be reachable on its machine only."""

    @property
    def parts(self) -> tuple[Part[Any], ...]:
        """Those that have to answer."""
        return (self.queues, self.workers, *((self.scaler,) if self.scaler_expected else ()))

    @property
    def problems(self) -> tuple[str, ...]:
        """What somebody should look at, a sentence each; empty when all is well."""
        found = list(dict.fromkeys(each.trouble for each in self.parts if each.trouble))
        for each in self.queues.value or ():
            if each.kind == DEAD_LETTERS and each.messages:
                found.append(f"{each.messages} dead letters wait: {self.advice}.")
            if each.kind == self.work and each.messages and self._nobody_works:
                found.append(f"{each.messages} {self.work} wait, and there is neither a worker nor a scaler.")
        if self.scaler.value and self.scaler.value.trouble:
            found.append(f"The scaler is in trouble: {self.scaler.value.trouble}")
        return tuple(found)

    @property
    def healthy(self) -> bool:
        return not self.problems

    @property
    def _nobody_works(self) -> bool:
        return self.workers.value == () and self.scaler.value is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON: each part is `value` (null when it did not answer) and `trouble`."""
        return {**asdict(self), "problems": list(self.problems), "healthy": self.healthy}


def ask(app: Celery) -> Status:
    """Ask every part of `app`, all at once: takes a few seconds at most."""
    given = sqs_options.of(app)
    until_s = time.monotonic() + ANSWERS_WITHIN_S
    asked_scaler = Asked("The scaler does", lambda: scaler(given.scaler.status_host, given.scaler.status_port))
    asked_queues = Asked("The queues do", lambda: tuple(queues(given)))
    asked_workers = Asked("The workers do", lambda: workers(app))
    return Status(
        time_s=time.time(),
        prefix=given.prefix,
        queues=asked_queues.part(until_s),
        workers=asked_workers.part(until_s),
        scaler=asked_scaler.part(until_s),
    )


class Asked(Generic[T]):
    """A part that is being asked, in a daemon thread: nobody waits for one whose tries take minutes to fail."""

    def __init__(self, what: str, ask: Callable[[], T], *, expected: tuple[type[Exception], ...] = ()) -> None:
        """`what` begins a sentence; `expected` are errors that say what is the matter, beside celery_sqs's own."""
        self._what, self._ask = what, ask
        self._expected: tuple[type[Exception], ...] = (Error, *expected)
        self._answer: Future[Part[T]] = Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer.set_result(self._part())
        except Exception as error:
            self._answer.set_exception(error)

    def _part(self) -> Part[T]:
        try:
            return Part(value=self._ask())
        except self._expected as error:
            return Part(trouble=str(error))
        except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
            return Part(trouble=f"AWS cannot be asked: {error}")

    def part(self, until_s: float) -> Part[T]:
        """The answer, or that there was none until then (time.monotonic)."""
        try:
            return self._answer.result(max(0.0, until_s - time.monotonic()))
        except TimeoutError:
            return Part(trouble=f"{self._what} not answer within {ANSWERS_WITHIN_S:g} s.")


def queues(options: Options) -> Iterator[Queue]:
    """The work queues, and where their dead letters go. Raises BrokerUnavailable when SQS does not answer, and when a
    queue is not there that nobody makes."""
    sqs = options.aws.client("sqs", read_timeout=AWS_ANSWERS_S, retries=ONCE)
    found = work_queues(options, sqs)
    if not options.create_queues and (missing := set(options.queue_names) - {each.name for each in found}):
        raise BrokerUnavailable(f"The queue {min(missing)} does not exist, and is not to be made.")
    yield from found
    try:
        for each in dead_letter_queues(options, sqs):
            if counted := queue(sqs, each.name, DEAD_LETTERS):
                yield counted
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"SQS does not say where dead letters go: {error}") from error


def workers(app: Celery) -> tuple[Worker, ...]:
    """Those that answer. Raises BrokerUnavailable when they cannot be asked."""
    try:
        stats = app.control.inspect(timeout=WORKERS_ANSWER_S).stats() or {}
        # Of those that answered: with their number known, nobody waits for more.
        active = app.control.inspect(list(stats), timeout=WORKERS_ANSWER_S).active() or {} if stats else {}
    except (BotoCoreError, ClientError, KombuError, OperationalError, OSError, Error) as error:
        raise BrokerUnavailable(f"The workers cannot be asked: {error}") from error
    return tuple(
        Worker(
            name=name,
            processes=int(each.get("pool", {}).get("max-concurrency", 0)),
            active=len(active[name]) if name in active else None,
            uptime_s=float(each.get("uptime", 0)),
        )
        for name, each in sorted(stats.items())
        if isinstance(each, dict)
    )


def scaler(host: str, port: int) -> Scaler:
    """What the scaler there says. Raises ScalerUnreachable when it does not answer."""
    document = scaler_client.ask(host, port)
    if document is None:
        raise ScalerUnreachable(
            f"The scaler does not answer at {host}:{port}: it is not running, or not reachable from here."
        )
    return Scaler(
        leader=bool(document.get("leader")),
        wanted=int(document.get("wanted") or 0),
        reason=str(document.get("reason") or ""),
        trouble=str(document.get("trouble") or ""),
    )
