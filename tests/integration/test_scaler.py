"""The loop on the embedded AWS: what it does, what it leaves alone, and what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

import celery_sqs
from celery_sqs.errors import BrokerUnavailable, FleetError, LeaseLost
from celery_sqs.scaler.alarms import Alarms
from celery_sqs.scaler.budget import Spent
from celery_sqs.scaler.core import DEAD_BOOTS, QUARANTINE_S
from celery_sqs.scaler.depths import Depths
from celery_sqs.scaler.fleet.ec2 import EC2Fleet
from celery_sqs.scaler.lease import LEASE_S, Lease
from celery_sqs.scaler.loop import QUIET_S, Scaler
from celery_sqs.scaler.machine import Machine, Naming
from celery_sqs.scaler.policies import create
from celery_sqs.scaler.policies.base import Counts, Decision, Observation, Policy
from celery_sqs.scaler.status import Status
from celery_sqs.scaler.workers import PING, Workers
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.errors import ConfigError
from faceapp.scaler import options, run
from faceapp.stack import data_tier as deployment
from tests.support.aws import plain_client
from tests.support.services import REPOSITORY, environ, free_port, wait_until

IMAGE = "ami-12c6146b"


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Wants:
    """A policy that does as the test says, and keeps what it saw."""

    name = "wants"
    max_instances = 4

    def __init__(self) -> None:
        self.next = Decision(wanted=0)
        self.seen: list[Observation] = []

    def decide(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        decision, self.next = self.next, Decision(wanted=self.next.wanted, reason=self.next.reason)
        return decision if observation.counts else Decision(wanted=decision.wanted, replace=decision.replace)


class Scripted(Depths):
    """Counts that the test wrote down; None: SQS does not answer."""

    def __init__(self, *script: Counts | None) -> None:
        self.script = list(script)

    def ask(self) -> Counts:
        counts = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if counts is None:
            raise BrokerUnavailable("The queue does not answer.")
        return counts


@dataclasses.dataclass
class Rig:
    """A scaler and all that it is made of."""

    scaler: Scaler
    policy: Any
    fleet: EC2Fleet
    lease: Lease
    workers: Workers
    status: Status
    clock: Clock

    def tick(self, count: int = 1, *, every_s: float = 3.0) -> None:
        for _ in range(count):
            self.scaler.tick()
            self.clock.now_s += every_s

    def say(self, kind: str, *numbers: int, **more: Any) -> None:
        """An event of the workers with these numbers."""
        for number in numbers:
            host = f"app-tier-instance-{number}"
            self.workers.on_event({"type": kind, "hostname": f"celery@{host}", "pid": 1, **more})


@pytest.fixture
def settings(aws: str) -> Settings:
    found = Settings(
        prefix=f"t{uuid.uuid4().hex[:12]}",
        worker_image=IMAGE,
        worker_type="t3.micro",
        scaler_max_instances=4,
        scaler_policy="depth",
        queue_wait_s=0,
    )
    deployment.apply(found, client=plain_client("cloudformation", aws))
    return found


@pytest.fixture
def ec2(aws: str) -> Any:
    """A client of its own: tests make it refuse."""
    return boto3.session.Session().client("ec2", endpoint_url=aws)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rig(settings: Settings, ec2: Any, aws: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    """Makes scalers of the same stack. EC2's clock goes as the test's does, from the time that it is now: a launch is
    when it was first seen, however long the machine took for it."""
    skew_s = time.time() - clock()
    launches: dict[tuple[str, datetime], float] = {}

    machine = Naming.machine

    def describe(naming: Naming, described: dict[str, Any], *, now_s: float) -> Machine:
        launched_s = launches.setdefault((described["InstanceId"], described["LaunchTime"]), now_s)
        return machine(naming, {**described, "LaunchTime": datetime.fromtimestamp(launched_s, UTC)}, now_s=now_s)

    monkeypatch.setattr(EC2Fleet, "_see_clock", lambda fleet, _: setattr(fleet, "_skew_s", skew_s))
    monkeypatch.setattr(Naming, "machine", describe)

    def make(
        policy: Policy | None = None,
        *,
        depths: Depths | None = None,
        settings: Settings = settings,
        alarms: Alarms | None = None,
    ) -> Rig:
        policy = policy or Wants()
        lease = Lease(
            options(settings), aws_of(settings), client=plain_client("s3", aws), owner=uuid.uuid4().hex, clock=clock
        )
        workers, status = Workers(service_s=1.0, clock=clock), Status(options(settings), aws_of(settings))
        fleet = EC2Fleet(
            options(settings), aws_of(settings), client=ec2, fence=lease.fence, clock=clock, on_error=status.error
        )
        workers.on_event({"type": PING, "hostname": "scaler"})
        scaler = Scaler(
            options(settings),
            policy=policy,
            fleet=fleet,
            depths=depths or Depths(aws_of(settings), [settings.request_queue]),
            workers=workers,
            lease=lease,
            status=status,
            alarms=alarms,
            clock=clock,
        )
        return Rig(scaler, policy, fleet, lease, workers, status, clock)

    return make


def refuse(client: Any, operation: str, code: str, message: str = "as it is") -> None:
    """Let every call of `operation` fail."""
    error = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    answer = AWSResponse("", 400, HTTPHeaders(), None)
    client.meta.events.register(f"before-call.ec2.{operation}", lambda **_: (answer, error), unique_id=operation)


def relent(client: Any, operation: str) -> None:
    client.meta.events.unregister(f"before-call.ec2.{operation}", unique_id=operation)


def running(aws: str, settings: Settings) -> list[str]:
    """The names of the running instances, as EC2 lists them."""
    answer = plain_client("ec2", aws).describe_instances(
        Filters=[
            {"Name": f"tag:{deployment.STACK_TAG}", "Values": [settings.prefix]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
    )
    found = [each for reservation in answer["Reservations"] for each in reservation["Instances"]]
    return sorted(tag["Value"] for each in found for tag in each["Tags"] if tag["Key"] == "Name")


def names(*numbers: int) -> list[str]:
    return [f"app-tier-instance-{n}" for n in numbers]


def send(aws: str, settings: Settings, count: int) -> None:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
    for _ in range(count):
        sqs.send_message(QueueUrl=url, MessageBody="photo")


def phases(observation: Observation) -> list[str]:
    return sorted(each.phase for each in observation.instances)


def test_a_decision_is_done_and_the_next_one_sees_it(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    r = rig()
    r.policy.next = Decision(wanted=2, start=2, reason="two")
    r.tick(2)
    assert running(aws, settings) == names(1, 2)
    assert phases(r.policy.seen[-1]) == ["booting", "booting"]

    r.say("worker-online", 1, 2)
    r.tick(2)
    assert phases(r.policy.seen[-1]) == ["ready", "ready"]
    assert all(each.idle_s is not None for each in r.policy.seen[-1].instances)

    [first, _] = r.policy.seen[-1].instances
    r.policy.next = Decision(wanted=1, drain=(first.id,), reason="one")
    r.tick(2)
    assert running(aws, settings) == names(2)
    assert r.status.document()["instances"] == {"booting": 0, "ready": 1, "draining": 0, "stopping": 0, "stopped": 1}


def test_an_upgrade_replaces_one_after_the_other(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    """There is always somebody for the photos that wait, and in the end nobody of the old image."""
    r = rig(create(options(settings)))
    ec2 = plain_client("ec2", aws)
    r.fleet.check()
    send(aws, settings, 2)
    r.tick()
    r.say("worker-online", 1, 2)
    r.tick()
    template = f"{settings.prefix}-worker"
    ec2.create_launch_template_version(
        LaunchTemplateName=template, SourceVersion="1", LaunchTemplateData={"ImageId": "ami-1e749f67"}
    )
    seen: list[list[str]] = []
    for _ in range(40):
        r.tick()
        r.say("worker-online", *(int(each.rpartition("-")[2]) for each in running(aws, settings)))
        seen.append(running(aws, settings))
    assert all(2 <= len(each) <= 3 for each in seen)
    answer = ec2.describe_instances(Filters=[{"Name": f"tag:{deployment.STACK_TAG}", "Values": [settings.prefix]}])
    found = [each for reservation in answer["Reservations"] for each in reservation["Instances"]]
    images = {each["ImageId"] for each in found if each["State"]["Name"] == "running"}
    assert images == {"ami-1e749f67"}
    assert "stopped" not in {each["State"]["Name"] for each in found}


def test_zero_to_n_to_zero_by_depth(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    r = rig(create(options(settings)))
    r.tick()
    assert running(aws, settings) == []
    send(aws, settings, 10)
    r.tick()
    assert running(aws, settings) == names(1, 2, 3, 4)
    r.say("worker-online", 1, 2, 3, 4)
    sqs = plain_client("sqs", aws)
    sqs.purge_queue(QueueUrl=sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"])
    for n in range(10):
        r.say("task-succeeded", 1 + n % 4, uuid=str(n), runtime=0.1)
    r.tick(5)
    assert running(aws, settings) == []


def test_a_restart_in_the_middle_of_a_burst_changes_nothing(
    rig: Callable[..., Rig], aws: str, settings: Settings
) -> None:
    send(aws, settings, 10)
    first = rig(create(options(settings)))
    first.tick()
    first.say("worker-online", 1, 2, 3)
    first.say("task-succeeded", 1, uuid="a", runtime=0.25)
    first.tick()
    before = {each.id: (each.name, each.state) for each in first.fleet.instances()}

    # Killed: the lease runs out.
    second = rig(create(options(settings)))
    second.tick()
    assert not second.status.document()["leader"]
    second.clock.now_s += LEASE_S
    second.tick(3)
    document = second.status.document()
    assert document["leader"]
    assert {each.id: (each.name, each.state) for each in second.fleet.instances()} == before
    assert document["instances"]["ready"] == 3, "the marks are in the tags"
    assert document["service_s"] == pytest.approx(first.workers.service_s)
    assert document["wanted"] == 4


def test_of_two_scalers_one_acts(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    first, second = rig(), rig()
    for r in (first, second):
        r.policy.next = Decision(wanted=2, start=2)
        r.tick()
    assert running(aws, settings) == names(1, 2)
    assert second.policy.seen == []
    assert second.status.document()["reason"] == "stands by"


def test_a_scaler_that_lost_its_lease_unawares_does_nothing(
    rig: Callable[..., Rig], aws: str, settings: Settings
) -> None:
    first, second = rig(), rig()
    first.tick()
    second.tick()

    def meanwhile(observation: Observation) -> Decision:
        """The first halts in the middle of its tick for longer than a lease."""
        second.scaler.tick()
        first.clock.now_s += LEASE_S
        second.scaler.tick()
        return Decision(wanted=3, start=3)

    first.policy.decide = meanwhile
    with pytest.raises(LeaseLost):
        first.scaler.tick()
    assert running(aws, settings) == []
    assert second.status.document()["leader"]


def test_a_scaler_that_ends_stops_nothing_and_the_next_begins_at_once(
    rig: Callable[..., Rig], aws: str, settings: Settings
) -> None:
    first = rig()
    first.policy.next = Decision(wanted=1, start=1)
    first.tick()
    first.scaler.close()
    assert running(aws, settings) == names(1)
    second = rig()
    second.tick()
    assert second.status.document()["leader"]


def test_counts_that_lie_stop_nothing(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    lies = [Counts(visible=n, in_flight=0) for n in (100, 0, 100, 29, 100, 0, 100)]
    r = rig(create(options(settings)), depths=Scripted(*lies))
    for _ in lies:
        r.tick()
        r.say("worker-heartbeat", 1, 2, 3, 4, active=0)
        assert running(aws, settings) == names(1, 2, 3, 4)


def test_without_counts_nothing_changes_and_it_is_said_once_a_minute(
    rig: Callable[..., Rig], aws: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    r = rig(create(options(settings)), depths=Scripted(Counts(visible=4, in_flight=0), None))
    r.tick()
    r.say("worker-online", 1, 2, 3, 4)
    r.tick(10)
    assert running(aws, settings) == names(1, 2, 3, 4)
    assert caplog.text.count("does not answer") == 1
    r.tick(20)
    assert caplog.text.count("does not answer") == 2
    assert r.status.document()["counts"] is None


def test_a_line_a_decision_and_one_a_minute(rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_sqs.scaler.loop")
    r = rig()
    r.policy.next = Decision(wanted=1, start=1, reason="because")
    r.tick(10)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["started 1"]
    assert "because [0 visible, 0 in flight; no instances; 1 s a message; boots 45 s]" in caplog.text
    r.tick(int(QUIET_S / 3))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["started 1", "nothing to do"]
    [decision] = r.status.document()["decisions"]
    assert decision["started"] == 1


def test_dead_boots_are_replaced_and_three_in_a_row_end_it(
    rig: Callable[..., Rig], aws: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    r = rig()
    r.policy.next = Decision(wanted=1, start=1)
    r.tick()
    for n in range(DEAD_BOOTS):
        assert "ALARM" not in caplog.text
        dead = [each.id for each in r.fleet.instances() if each.billed]
        r.policy.next = Decision(wanted=1, start=1, replace=tuple(dead))
        r.tick()
        assert caplog.text.count("never reported in") == n + 1
    # The third was replaced as well; from now on nothing starts, whoever looks.
    [replacement] = [each.id for each in r.fleet.instances() if each.billed]
    r.fleet.drain([replacement])
    r.policy.next = Decision(wanted=1, start=1)
    r.tick()
    assert running(aws, settings) == []
    assert "ALARM: 3 instances in a row never reported" in caplog.text
    r.scaler.close()

    after = rig()
    after.policy.next = Decision(wanted=1, start=1)
    after.tick()
    assert running(aws, settings) == []
    after.clock.now_s += QUARANTINE_S
    after.workers.on_event({"type": PING, "hostname": "scaler"})
    after.policy.next = Decision(wanted=4, start=4)
    after.tick()
    [probe] = running(aws, settings)
    after.say("worker-online", int(probe.rpartition("-")[2]))
    after.tick()
    after.policy.next = Decision(wanted=4, start=3)
    after.tick()
    assert len(running(aws, settings)) == 4


def test_a_worker_that_went_silent_is_replaced_but_is_no_dead_boot(
    rig: Callable[..., Rig], aws: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    r = rig()
    r.policy.next = Decision(wanted=1, start=1)
    r.tick()
    r.say("worker-online", 1)
    r.tick(2)
    [machine] = r.fleet.instances()
    r.policy.next = Decision(wanted=1, start=1, replace=(machine.id,))
    r.tick()
    assert "never reported" not in caplog.text
    [machine] = [each for each in r.fleet.instances() if each.id == machine.id]
    assert not machine.failed


def test_an_instance_whose_worker_left_is_stopped(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    """A spot notice, or somebody on the machine: SIGTERM to the worker."""
    r = rig()
    r.policy.next = Decision(wanted=2, start=2)
    r.tick()
    r.say("worker-online", 1, 2)
    r.tick()
    r.say("worker-offline", 1)
    r.tick()
    assert phases(r.policy.seen[-1]) == ["draining", "ready"]
    r.tick(8)
    assert running(aws, settings) == names(2)


def test_some_dead_boots_among_many_good_ones_are_no_row(
    rig: Callable[..., Rig], aws: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """C10: the simulator, since it runs the live rule, showed that three dead ones of twenty stopped all starts."""
    r = rig(settings=dataclasses.replace(settings, scaler_max_instances=20))
    r.policy.next = Decision(wanted=5, start=5)
    r.tick()
    r.say("worker-online", 1, 2)
    r.tick(2)
    dead = tuple(each.id for each in r.fleet.instances() if each.billed and not each.ready)
    assert len(dead) == DEAD_BOOTS
    r.policy.next = Decision(wanted=5, replace=dead)
    r.tick()
    before = len(running(aws, settings))
    r.policy.next = Decision(wanted=5, start=1)
    r.tick()
    assert len(running(aws, settings)) == before + 1
    assert "ALARM" not in caplog.text


@pytest.mark.parametrize("code", ["InvalidAMIID.NotFound", "UnauthorizedOperation", "RequestLimitExceeded"])
def test_a_start_that_aws_refuses_is_said_and_tried_again_later(
    rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    refuse(ec2, "RunInstances", code, "The image id '[ami-12c6146b]' does not exist")
    r = rig(create(options(settings)))
    send(aws, settings, 4)
    r.tick(1, every_s=0.1)
    r.tick(1, every_s=0.1)
    assert running(aws, settings) == []
    assert caplog.text.count(f"no new instances: An error occurred ({code})") == 1
    assert code in r.status.document()["reason"]
    relent(ec2, "RunInstances")
    r.clock.now_s += 60
    # The first looks at the gap and holds.
    r.tick(2)
    assert running(aws, settings) == names(1, 2, 3, 4)


CAN_FAIL = ("StopInstances", "CreateTags", "TerminateInstances", "DescribeLaunchTemplateVersions")


class Broken(Alarms):
    """Alarms that fail as nobody thought of."""

    def __init__(self) -> None:
        pass

    def tell(self, *, dead_boots: int, spent_s: float) -> None:
        raise RuntimeError("not an answer of AWS at all")


def test_whatever_fails_what_is_wanted_is_started(
    rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any
) -> None:
    """C1: every subset of the calls that a tick makes beside its starts; 40 of 40 starts were kept back."""
    r = rig(settings=dataclasses.replace(settings, scaler_max_instances=100), alarms=Broken())
    r.fleet.check()
    with contextlib.suppress(RuntimeError):
        r.tick()

    def billed() -> set[str]:
        return {each.id for each in r.fleet.instances() if each.billed}

    for size in range(len(CAN_FAIL) + 1):
        for failing in itertools.combinations(CAN_FAIL, size):
            # Past every pause.
            r.clock.now_s += 1000
            before = billed()
            for operation in failing:
                refuse(ec2, operation, "OperationNotPermitted")
            # Where stopped ones cannot be marked, the second tick makes a new one.
            for _ in range(2):
                missing = 0 if billed() - before else 1
                r.policy.next = Decision(wanted=1, start=missing, drain=tuple(sorted(before)[:1]))
                with contextlib.suppress(celery_sqs.Error, RuntimeError):
                    r.tick()
            for operation in failing:
                relent(ec2, operation)
            assert len(billed() - before) == 1, failing


def test_one_that_cannot_be_stopped_keeps_no_other(
    rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """C1: EC2 refuses a whole call for one of its instances (it is protected from being stopped)."""
    r = rig()
    r.policy.next = Decision(wanted=3, start=3)
    r.tick()
    r.say("worker-online", 1, 2, 3)
    r.tick()
    [bad, *good] = [each.id for each in r.fleet.instances() if each.billed]
    error = {"Error": {"Code": "OperationNotPermitted", "Message": "protected"}}
    error["ResponseMetadata"] = {"HTTPStatusCode": 400}  # type: ignore[dict-item]

    def protected(params: dict[str, Any], **_: Any) -> Any:
        if bad in urllib.parse.unquote(str(params["body"])):
            return AWSResponse("", 400, HTTPHeaders(), None), error
        return None

    ec2.meta.events.register("before-call.ec2.StopInstances", protected)
    r.policy.next = Decision(wanted=0, drain=(bad, *good))
    with contextlib.suppress(FleetError):
        r.tick()
    assert running(aws, settings) == names(1)
    assert f"{bad}: " in caplog.text
    r.policy.next = Decision(wanted=2, start=2)
    with contextlib.suppress(FleetError):
        r.tick()
    assert running(aws, settings) == names(1, 2, 3)


def test_a_list_that_aws_refuses_stops_nothing(rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any) -> None:
    r = rig()
    r.policy.next = Decision(wanted=1, start=1)
    r.tick()
    refuse(ec2, "DescribeInstances", "RequestLimitExceeded")
    for _ in range(3):
        with pytest.raises(FleetError, match=r"list the instances|asked again"):
            r.tick()
    assert running(aws, settings) == names(1)


def test_none_may_run(rig: Callable[..., Rig], aws: str, settings: Settings) -> None:
    none = dataclasses.replace(settings, scaler_max_instances=0)
    send(aws, settings, 3)
    for policy in ("depth", "work"):
        r = rig(create(options(dataclasses.replace(none, scaler_policy=policy))), settings=none)
        r.tick(3)
        r.scaler.close()
    assert running(aws, settings) == []


def test_the_days_budget_is_kept_and_a_restart_remembers_it(
    rig: Callable[..., Rig], aws: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    poor = dataclasses.replace(settings, scaler_daily_instance_s=100)
    first = rig(settings=poor)
    first.policy.next = Decision(wanted=3, start=3)
    first.tick()
    first.tick(12, every_s=1.0)
    assert running(aws, settings) == names(1, 2, 3)
    first.scaler.close()
    spent_s = first.lease.memory["spent_s"]
    assert 30 <= spent_s <= 50

    second = rig(settings=poor)
    second.clock.now_s += 30
    second.tick(2)
    assert running(aws, settings) == []
    assert "100 instance-seconds are used up" in caplog.text
    second.policy.next = Decision(wanted=3, start=3)
    second.tick()
    assert running(aws, settings) == []


def test_a_new_day_has_a_new_budget() -> None:
    spent = Spent(1000)
    midnight_s = 20_000 * 86_400.0
    spent.update(midnight_s - 100, 0)
    spent.update(midnight_s - 50, 10)
    assert spent.seconds == 500
    spent.update(midnight_s + 20, 10)
    assert spent.seconds == 200
    spent.update(midnight_s - 1000, 10)
    assert not spent.over


@pytest.mark.parametrize("memory", [{}, {"day": 5}, {"day": "2026-01-01", "spent_s": "much", "at_s": 0}])
def test_a_memory_of_another_shape_is_none(memory: dict[str, object]) -> None:
    spent = Spent(10)
    spent.recall(memory)
    assert spent.seconds == 0


def test_a_wall_clock_that_jumps_changes_nothing(
    rig: Callable[..., Rig], aws: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(aws, settings, 4)
    r = rig(create(options(settings)))
    r.tick()
    r.say("worker-online", 1, 2, 3, 4)
    for jump_s in (-1e8, 1e8):
        monkeypatch.setattr("celery_sqs.scaler.loop.time.time", lambda jump_s=jump_s: 1.8e9 + jump_s)
        r.tick(2)
    assert running(aws, settings) == names(1, 2, 3, 4)
    assert all(each.age_s < 600 for each in r.fleet.instances())


def test_orphans_are_said_and_left_alone(
    rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("web-instance", "app-tier-instance-7", "app-tier-instance-7", "experiment"):
        tags = [{"Key": "Name", "Value": name}, {"Key": deployment.STACK_TAG, "Value": settings.prefix}]
        ec2.run_instances(
            ImageId=IMAGE, MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}]
        )
    r = rig()
    r.tick(3)
    assert caplog.text.count("'experiment', which is no worker's name") == 1
    assert caplog.text.count("shares the name app-tier-instance-7") == 2
    assert "web-instance" not in caplog.text
    assert len(running(aws, settings)) == 4


# As a process.


@contextlib.contextmanager
def process(aws: str, settings: Settings, log: Path, *options: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`faceapp scaler`, ended when the block ends."""
    env = environ(aws, settings, FACEAPP_SCALER_POLICY="depth", FACEAPP_SCALER_TICK_S="0.2", **more)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "faceapp", "scaler", *options]
        child = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=240) as answer:
        return bytes(answer.read())


def status_of(port: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(get(port, "/status"))
    except OSError:
        return {}
    return found


def test_the_command_scales_shows_it_and_ends_without_stopping_anything(
    aws: str, settings: Settings, tmp_path: Path
) -> None:
    send(aws, settings, 3)
    port, log = free_port(), tmp_path / "log"
    with process(aws, settings, log, FACEAPP_SCALER_PORT=str(port), FACEAPP_SCALER_MAX_INSTANCES="2") as child:
        wait_until(lambda: status_of(port).get("wanted") == 2, timeout_s=240, what="a decision")
        wait_until(lambda: running(aws, settings) == names(1, 2), timeout_s=120, what="the instances")
        wait_until(lambda: status_of(port)["instances"]["booting"] == 2, timeout_s=120, what="the next tick")
        document = status_of(port)
        assert document["policy"] == "depth"
        assert document["leader"] is True
        assert document["counts"] == {"visible": 3, "in_flight": 0, "delayed": 0}
        assert all(len(sample) == 7 for sample in document["history"])
        assert document["decisions"][-1]["started"] == 2
        metrics = get(port, "/metrics").decode()
        assert 'faceapp_scaler_messages{state="visible"} 3.0' in metrics
        assert 'faceapp_scaler_instances{phase="booting"} 2.0' in metrics
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(port, "/secrets")
        sqs = plain_client("sqs", aws)
        s3 = plain_client("s3", aws)
        sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"])
        wait_until(lambda: status_of(port)["counts"] is None, timeout_s=120, what="a tick without counts")
        child.send_signal(signal.SIGTERM)
        assert child.wait(240) == 0
    [lease] = s3.list_objects_v2(Bucket=settings.gallery_bucket)["Contents"]
    assert json.loads(s3.get_object(Bucket=settings.gallery_bucket, Key=lease["Key"])["Body"].read())["holder"] == ""
    assert "Contents" not in s3.list_objects_v2(Bucket=settings.out_bucket)
    assert running(aws, settings) == names(1, 2)
    assert "the instances stay as they are" in log.read_text()


def test_the_command_in_a_dry_run_changes_nothing(aws: str, settings: Settings, tmp_path: Path) -> None:
    send(aws, settings, 3)
    log = tmp_path / "log"
    with (
        socket.create_server(("127.0.0.1", 0)) as acting,
        process(aws, settings, log, "--dry-run", FACEAPP_SCALER_PORT=str(acting.getsockname()[1])) as child,
    ):
        wait_until(lambda: "would create app-tier-instance-1, app-tier-instance-2" in log.read_text(), what="a line")
        child.terminate()
        assert child.wait(240) == 0
    assert running(aws, settings) == []
    s3 = plain_client("s3", aws)
    assert "Contents" not in s3.list_objects_v2(Bucket=settings.gallery_bucket), "a lease was taken"


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        ({"FACEAPP_PREFIX": "nobody"}, 1, "nobody-req-queue"),
        ({"FACEAPP_SCALER_POLICY": "dpeth"}, 2, "work or depth"),
        ({"FACEAPP_SCALER_MODE": "quick"}, 2, "fast or balanced or eco"),
        ({"FACEAPP_SCALER_MAX_INSTANCES": "-1"}, 2, "a whole number, 0 to 1000"),
        ({"FACEAPP_SCALER_MAX_INSTANCES": "many"}, 2, "a whole number, 0 to 1000"),
        ({"FACEAPP_SCALER_TICK_S": "0"}, 2, "FACEAPP_SCALER_TICK_S"),
    ],
)
def test_the_command_refuses_with_a_sentence(
    aws: str, settings: Settings, more: dict[str, str], code: int, sentence: str
) -> None:
    command = [sys.executable, "-m", "faceapp", "scaler"]
    env = {**environ(aws, settings), **more}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = dataclasses.replace(settings, scaler_port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="FACEAPP_SCALER_PORT"):
            run(busy)


def test_a_stack_without_workers_image_is_said(stack: Settings) -> None:
    with pytest.raises(ConfigError, match="FACEAPP_WORKER_IMAGE"):
        run(dataclasses.replace(stack, scaler_policy="depth"))


def test_history_has_a_sample_every_few_seconds_and_ends(settings: Settings, rig: Callable[..., Rig]) -> None:
    from celery_sqs.scaler.status import HISTORY_S, SAMPLE_S, Snapshot

    status = Status(options(settings), aws_of(settings))

    def samples(times_s: Sequence[float]) -> list[float]:
        for time_s in times_s:
            status.update(
                Snapshot(
                    time_s=time_s,
                    leader=True,
                    wanted=0,
                    reason="",
                    counts=None,
                    instances={},
                    service_s=1.0,
                    boot_p50_s=1.0,
                    spent_s=0.0,
                )
            )
        return [sample[0] for sample in status.document()["history"]]

    assert samples([100.0 + n for n in range(10)]) == [100.0, 103.0, 106.0, 109.0]
    assert len(samples([200.0 + 3 * n for n in range(1000)])) == HISTORY_S / SAMPLE_S + 1
