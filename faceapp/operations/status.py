"""The whole system at a glance: queues, instances, workers, the scaler and the people.

Each part is asked at the same time as the others, and one that does not answer says so in a sentence.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from kombu.exceptions import KombuError, OperationalError

import celery_sqs
from celery_sqs.clocks import answered_s
from celery_sqs.door import is_loopback_url
from celery_sqs.scaler.machine import Machine, Naming
from faceapp.config import Settings, aws
from faceapp.errors import BrokerUnavailable, FaceappError, FleetError, ServiceUnreachable
from faceapp.http.scaler import ScalerStatus
from faceapp.operations.queues import Queue, queues
from faceapp.operations.queues import client as sqs
from faceapp.people import People
from faceapp.stack import data_tier as stack
from faceapp.storage import Storage

WORKERS_ANSWER_S = 2.5
"""Workers that have not answered by then count as silent."""
AWS_ANSWERS_S = 3.0
ANSWERS_WITHIN_S = 10.0
"""A part that takes longer counts as silent, whatever its own time limits and tries are."""
STATES = ["pending", "running", "stopping", "stopped"]
FRESH_S = 60.0
"""A worker of an instance that has run for less may still be on its way."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part(Generic[T]):
    """What one part of the system answered, or the sentence that says why it did not."""

    value: T | None = None
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An EC2 instance that carries the stack's tag."""

    id: str
    name: str
    state: str
    """EC2's word."""
    phase: str
    """booting, ready, draining or failed while it runs (for the app tier, by the scaler's tags); else EC2's state."""
    type: str
    age_s: float
    """Since its present or last run began."""


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

    time_s: float
    prefix: str
    aws: str
    """Which AWS it was, in words."""
    queues: Part[tuple[Queue, ...]]
    instances: Part[tuple[Instance, ...]]
    workers: Part[tuple[Worker, ...]]
    scaler: Part[Scaler]
    people: Part[int]
    scaler_expected: bool = False
    """Whether the scaler should answer: the AWS is on this machine. An account's answers on its web-instance only."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What somebody should look at, a sentence each; empty when all is well."""
        parts: tuple[Part[Any], ...] = (self.queues, self.instances, self.workers, self.people)
        if self.scaler_expected:
            parts = (*parts, self.scaler)
        found = list(dict.fromkeys(each.trouble for each in parts if each.trouble))
        for queue in self.queues.value or ():
            if queue.kind == "dead letters" and queue.messages:
                found.append(f"{queue.messages} dead letters wait: 'faceapp dead-letters list' says why.")
            if queue.kind == "requests" and queue.messages and self._nobody_works:
                found.append(f"{queue.messages} requests wait, and there is neither a worker nor a scaler.")
        if self.scaler.value and self.scaler.value.trouble:
            found.append(f"The scaler is in trouble: {self.scaler.value.trouble}")
        return (*found, *self._silent)

    @property
    def healthy(self) -> bool:
        return not self.problems

    @property
    def _nobody_works(self) -> bool:
        return self.workers.value == () and self.scaler.value is None

    @property
    def _silent(self) -> list[str]:
        if self.workers.value is None:
            return []
        hosts = {each.name.rpartition("@")[2] for each in self.workers.value}
        return [
            f"{each.name} is ready, but its worker does not answer."
            for each in self.instances.value or ()
            if each.phase == "ready" and each.age_s > FRESH_S and each.name not in hosts and _number(each)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: each part is `value` (null when it did not answer) and `trouble`."""
        return {**asdict(self), "problems": list(self.problems), "healthy": self.healthy}


def ask(settings: Settings, app: Any, *, aws: str) -> Status:
    """Ask every part, all at once: takes a few seconds at most. `app` is the Celery app whose workers are asked."""
    until_s = time.monotonic() + ANSWERS_WITHIN_S
    scaler = _Asked("The scaler does", lambda: _scaler(settings))
    counted = _Asked("The queues do", lambda: tuple(queues(sqs(), settings)))
    instances = _Asked("The instances do", lambda: _instances(settings))
    workers = _Asked("The workers do", lambda: _workers(settings, app))
    people = _Asked("The people do", lambda: len(People(Storage(settings)).list_people()))
    return Status(
        time_s=time.time(),
        prefix=settings.prefix,
        aws=aws,
        queues=counted.part(until_s),
        instances=instances.part(until_s),
        workers=workers.part(until_s),
        scaler=scaler.part(until_s),
        people=people.part(until_s),
        scaler_expected=is_loopback_url(os.environ.get("AWS_ENDPOINT_URL", "")),
    )


class _Asked(Generic[T]):
    """A part that is being asked, in a daemon thread: nobody waits for one whose tries take minutes to fail."""

    def __init__(self, what: str, ask: Callable[[], T]) -> None:
        self._what, self._ask = what, ask
        self._answer: Future[Part[T]] = Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer.set_result(_part(self._ask))
        except Exception as error:
            self._answer.set_exception(error)

    def part(self, until_s: float) -> Part[T]:
        """The answer, or that there was none until then (time.monotonic)."""
        try:
            return self._answer.result(max(0.0, until_s - time.monotonic()))
        except TimeoutError:
            return Part(trouble=f"{self._what} not answer within {ANSWERS_WITHIN_S:g} s.")


def _part(ask: Callable[[], T]) -> Part[T]:
    try:
        return Part(value=ask())
    except FaceappError as error:
        return Part(trouble=error.detail)
    except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
        return Part(trouble=f"AWS cannot be asked: {error}")


def _instances(settings: Settings) -> tuple[Instance, ...]:
    filters = [
        {"Name": f"tag:{stack.STACK_TAG}", "Values": [settings.prefix]},
        {"Name": "instance-state-name", "Values": STATES},
    ]
    found, naming = [], stack.naming(settings.prefix)
    try:
        ec2 = aws.client("ec2", read_timeout=AWS_ANSWERS_S, retries=aws.ONCE)
        for page in ec2.get_paginator("describe_instances").paginate(Filters=filters):
            now_s = answered_s(page)
            for reservation in page["Reservations"]:
                found += [_instance(each, naming, now_s) for each in reservation["Instances"]]
    except (BotoCoreError, ClientError) as error:
        raise FleetError(f"EC2 does not answer: {error}") from error
    return tuple(sorted(found, key=_by_name))


def _instance(described: dict[str, Any], naming: Naming, now_s: float) -> Instance:
    machine = naming.machine(described, now_s=now_s)
    return Instance(
        id=machine.id,
        name=machine.name,
        state=machine.state,
        phase=_phase(machine),
        type=str(described.get("InstanceType", "")),
        age_s=round(machine.age_s, 1),
    )


def _phase(machine: Machine) -> str:
    if not (machine.billed and machine.ours):
        return machine.state
    if machine.draining:
        return "failed" if machine.failed else "draining"
    return "ready" if machine.ready else "booting"


def _by_name(instance: Instance) -> tuple[int, int, str]:
    """app-tier-instance-10 after app-tier-instance-9, and whatever has another name first."""
    number = _number(instance)
    return (1, number, instance.id) if number else (0, 0, instance.name)


def _number(instance: Instance) -> int | None:
    """n of a worker's name; None for any other instance."""
    return stack.naming("").number_of(instance.name)


def _workers(settings: Settings, app: Any) -> tuple[Worker, ...]:
    try:
        stats = app.control.inspect(timeout=WORKERS_ANSWER_S).stats() or {}
        # Of those that answered: with their number known, nobody waits for more.
        active = app.control.inspect(list(stats), timeout=WORKERS_ANSWER_S).active() or {} if stats else {}
    except (BotoCoreError, ClientError, KombuError, OperationalError, OSError, celery_sqs.Error) as error:
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


def _scaler(settings: Settings) -> Scaler:
    document = ScalerStatus(settings).get()
    if document is None:
        where = f"{settings.scaler_host}:{settings.scaler_port}"
        raise ServiceUnreachable(
            f"The scaler does not answer at {where}: it is not running, or not reachable from here."
        )
    return Scaler(
        leader=bool(document.get("leader")),
        wanted=int(document.get("wanted") or 0),
        reason=str(document.get("reason") or ""),
        trouble=str(document.get("trouble") or ""),
    )
