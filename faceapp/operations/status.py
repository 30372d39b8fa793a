"""The whole system at a glance: queues, instances, workers, the scaler and the people.

Each part is asked at the same time as the others, and one that does not answer says so in a sentence.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs import status
from celery_sqs.clocks import answered_s
from celery_sqs.door import is_loopback_url
from celery_sqs.scaler.machine import Machine, Naming
from celery_sqs.status import AWS_ANSWERS_S, Part
from faceapp.config import Settings, aws
from faceapp.errors import FaceappError, FleetError
from faceapp.operations.queues import client as sqs
from faceapp.operations.queues import queues
from faceapp.people import People
from faceapp.stack import data_tier as stack
from faceapp.storage import Storage

STATES = ["pending", "running", "stopping", "stopped"]
FRESH_S = 60.0
"""A worker of an instance that has run for less may still be on its way."""

Asked = partial(status.Asked, expected=(FaceappError,))


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
class Status(status.Status):
    """All of it, at `time_s` (Unix time)."""

    work: ClassVar[str] = "requests"
    advice: ClassVar[str] = "'faceapp dead-letters list' says why"

    aws: str
    """Which AWS it was, in words."""
    instances: Part[tuple[Instance, ...]]
    people: Part[int]

    @property
    def parts(self) -> tuple[Part[Any], ...]:
        queues, workers, *others = super().parts
        return (queues, self.instances, workers, self.people, *others)

    @property
    def problems(self) -> tuple[str, ...]:
        return (*super().problems, *self._silent)

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


def ask(settings: Settings, app: Any, *, aws: str) -> Status:
    """Ask every part, all at once: takes a few seconds at most. `app` is the Celery app whose workers are asked."""
    until_s = time.monotonic() + status.ANSWERS_WITHIN_S
    scaler = Asked("The scaler does", lambda: status.scaler(settings.scaler_host, settings.scaler_port))
    counted = Asked("The queues do", lambda: tuple(queues(sqs(), settings)))
    instances = Asked("The instances do", lambda: _instances(settings))
    workers = Asked("The workers do", lambda: status.workers(app))
    people = Asked("The people do", lambda: len(People(Storage(settings)).list_people()))
    return Status(
        time_s=time.time(),
        prefix=settings.prefix,
        aws=aws,
        queues=counted.part(until_s),
        instances=instances.part(until_s),
        workers=workers.part(until_s),
        scaler=scaler.part(until_s),
        people=people.part(until_s),
        # An account's answers on its web-instance only.
        scaler_expected=is_loopback_url(os.environ.get("AWS_ENDPOINT_URL", "")),
    )


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
