"""Workers' instances on EC2: which there are, starting them, stopping them.

Nothing is remembered here that a restart would miss; see machine.py for the tags. EC2 shows a change late at times, so
what was just asked for is believed for a few seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import ONCE, Aws
from celery_sqs.clocks import answered_s
from celery_sqs.errors import ConfigurationError, FleetError, NoLaunchTemplate
from celery_sqs.scaler.backoff import Backoff, Trouble, trouble
from celery_sqs.scaler.machine import (
    DRAINING,
    FAILED,
    NAME,
    READY,
    STACK,
    STARTED,
    TEMPLATE,
    TIER,
    Machine,
    free_numbers,
)
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.plan import plan

logger = logging.getLogger(__name__)

STARTING = ("start_instances", "run_instances", "create_tags")
STATES = ["pending", "running", "stopping", "stopped"]
STOP_SHOWS_S = 5
"""EC2 may show a stop this much later."""
BELIEVED_S = 15.0
"""EC2 may show a start this much later."""
TEMPLATE_EVERY_S = 30.0
"""How often the launch template's latest version is asked for."""


class EC2Fleet:
    """EC2 through boto3. Not safe to share between threads.

    `fence` is called right before every call that changes something; it raises when this process must not act any
    more, and answers the fencing token. `on_error` is told of each call that failed: its name and the kind of trouble.
    """

    def __init__(
        self,
        options: ScalerOptions,
        aws: Aws,
        *,
        client: Any = None,
        fence: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        on_error: Callable[[str, str], None] = lambda operation, kind: None,
    ) -> None:
        self._options, self._naming = options, options.naming
        self._on_error = on_error
        self._template = options.launch_template
        # One attempt: the fence holds for no longer (see lease.ACT_S), and the scaler backs off by itself.
        self._client = client or aws.client("ec2", connect_timeout=2, read_timeout=10, retries=ONCE)
        self._fence, self._clock = fence, clock
        self._backoffs: dict[str, Backoff] = defaultdict(lambda: Backoff(clock=clock, rng=rng))
        self._calls = itertools.count(1)
        self._placements = _placements(options)
        self._placement = 0
        self._machines: list[Machine] = []
        self._expected: dict[str, tuple[float, Machine]] = {}
        self._skew_s = time.time() - clock()
        self._reason = ""
        self._latest, self._template_seen_s = 0, float("-inf")

    def check(self) -> None:
        """Ask for the launch template and the instances. Raises ConfigurationError when the scaler cannot work like
        this, and FleetError when EC2 does not answer."""
        try:
            self._look_at_template()
            self._describe()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code.startswith("InvalidLaunchTemplateName"):
                raise NoLaunchTemplate(f"There is no launch template {self._template}.") from error
            if trouble(error) is Trouble.REFUSED:
                raise ConfigurationError(f"EC2 does not let the scaler in: {error}") from error
            raise FleetError(f"EC2 does not answer: {error}") from error
        except BotoCoreError as error:
            raise FleetError(f"EC2 does not answer: {error}") from error

    @property
    def now_s(self) -> float:
        """EC2's clock, as its last answer showed it."""
        return self._clock() + self._skew_s

    @property
    def trouble(self) -> str:
        left_s = max(self._backoffs[operation].left_s for operation in STARTING)
        return f"{self._reason}; next attempt in {left_s:.0f} s" if left_s else ""

    @property
    def latest(self) -> int:
        return self._latest

    def instances(self) -> Sequence[Machine]:
        if left_s := self._backoffs["describe_instances"].left_s:
            raise FleetError(f"EC2 did not list the instances and is asked again in {left_s:.0f} s")
        try:
            listed: list[Machine] = self._guarded("describe_instances", self._describe)
            self._machines = self._believe(listed)
        except (ClientError, BotoCoreError) as error:
            raise FleetError(f"EC2 does not list the instances: {error}") from error
        return self._machines

    def start(self, count: int) -> Sequence[str]:
        planned = plan(
            self._machines,
            count,
            max_instances=self._options.max_instances,
            per_minute=self._options.starts_per_minute,
            # A stopped one has to be marked before it starts; a new one is born with its marks.
            pool_is_dry=any(self._backoffs[each].left_s for each in ("start_instances", "create_tags")),
            latest=self._latest,
        )
        started: list[str] = []
        if planned.stopped:
            started += self._start_stopped(planned.stopped)
        if planned.new and not self._backoffs["run_instances"].left_s:
            started += self._run_new([self._naming.name_of(each) for each in planned.new])
        return started

    def _start_stopped(self, machines: Sequence[Machine]) -> Sequence[str]:
        ids = [each.id for each in machines]
        # A run begins after every mark of the runs before, even when it begins in the same second.
        run_s = max(int(self.now_s), *(each.last_mark_s + 1 for each in machines))
        try:
            self._tag(ids, {STARTED: str(run_s)})
            self._act("start_instances", InstanceIds=ids)
        except FleetError as error:
            self._reason = f"stopped instances do not start: {error}"
            logger.error(self._reason)
            return []
        for each in machines:
            tags = {**each.tags, STARTED: str(run_s)}
            self._expect(dataclasses.replace(each, state="pending", run_s=run_s, age_s=0.0, tags=tags))
        return ids

    def _run_new(self, names: Sequence[str]) -> Sequence[str]:
        # The version that was looked up, not whichever is the latest by then: the tag must be right.
        version = str(self._latest or "")
        tags = {STACK: self._options.stack, TIER: self._options.tier, **({TEMPLATE: version} if version else {})}
        all_or_none, place = self._placements[self._placement]
        try:
            answer = self._act(
                "run_instances",
                LaunchTemplate={"LaunchTemplateName": self._template, "Version": version or "$Latest"},
                MinCount=len(names) if all_or_none else 1,
                MaxCount=len(names),
                TagSpecifications=[{"ResourceType": "instance", "Tags": self._pairs(tags)}],
                **place,
                token=True,
            )
        except FleetError as error:
            self._reason = f"no new instances: {error}"
            logger.error(self._reason)
            return []
        created = [self._naming.machine(each, now_s=self.now_s) for each in answer["Instances"]]
        for each, name in zip(created, names, strict=False):
            try:
                self._name(each, name)
            except FleetError as error:
                # They start all the same, and `tidy` names them.
                logger.error("%s has no name yet: %s", each.id, error)
        return [each.id for each in created]

    def _name(self, machine: Machine, name: str) -> None:
        # Believed before it is done: nothing else may get this name in the meantime.
        self._expect(self._naming.named(machine, name))
        self._tag([machine.id], {NAME: name})

    def drain(self, ids: Iterable[str], *, dead_boots: int = 0) -> Sequence[str]:
        wanted = list(ids)
        if not wanted:
            return []
        # Looked at again: what is not ours (any more) is never stopped.
        found = [each for each in self.instances() if each.id in wanted and each.ours and each.billed]
        if not found:
            return []
        mark = {FAILED: f"{int(self.now_s)} {dead_boots}"} if dead_boots else {DRAINING: str(int(self.now_s))}
        # EC2 refuses to stop one that is pending, and all others in the same call with it: `tidy` does it later.
        stopped: Sequence[str] = ()
        try:
            self._tag([each.id for each in found], mark)
        finally:
            # One that works without being marked is better stopped than paid for.
            stopped = self._stop([each for each in found if each.state == "running"])
        return [*stopped]

    def _stop(self, machines: Sequence[Machine]) -> Sequence[str]:
        stopped: list[str] = []
        # A spot instance of a one-time request cannot be stopped, only ended.
        for operation, spot in (("stop_instances", False), ("terminate_instances", True)):
            ids = [each.id for each in machines if each.spot == spot]
            stopped += self._end(operation, ids)
        for each in stopped:
            self._expected.pop(each, None)
        return stopped

    def _end(self, operation: str, ids: Sequence[str]) -> list[str]:
        """Stop or terminate all in one call. One that EC2 does not let go keeps no other one: it is named, and backed
        off from alone."""
        ids = [each for each in ids if not self._backoffs[f"{operation} {each}"].left_s]
        if not ids:
            return []
        try:
            self._act(operation, InstanceIds=ids)
            return list(ids)
        except FleetError as error:
            kind = trouble(error.__cause__) if isinstance(error.__cause__, ClientError) else Trouble.BUSY
            if kind is Trouble.BUSY:
                raise
            self._backoffs[operation].succeeded()
            if len(ids) == 1:
                self._backoffs[f"{operation} {ids[0]}"].failed(kind)
                raise
        ended, errors = [], []
        for each in ids:
            try:
                ended += self._end(operation, [each])
            except FleetError as error:
                errors.append(f"{each}: {error}")
        if errors:
            logger.error("%s is refused for %s", operation, "; ".join(errors))
        return ended

    def mark_ready(self, ids: Iterable[str], *, measured: bool) -> None:
        if wanted := list(ids):
            self._tag(wanted, {READY: f"{int(self.now_s)}{'' if measured else ' late'}"})

    def tidy(self) -> None:
        try:
            self._name_nameless()
        finally:
            try:
                self._stop_announced()
            finally:
                self._end_outdated()

    def _name_nameless(self) -> None:
        nameless = [each for each in self._machines if each.nameless]
        for each, number in zip(nameless, free_numbers(self._machines, len(nameless)), strict=True):
            logger.warning("%s had no name yet: it becomes %s", each.id, self._naming.name_of(number))
            self._name(each, self._naming.name_of(number))

    def _stop_announced(self) -> None:
        late_s = int(self.now_s) - STOP_SHOWS_S
        announced = [
            each
            for each in self._machines
            if each.ours and each.draining and each.state == "running" and each.last_mark_s <= late_s
        ]
        if announced:
            logger.info("%s were to stop and still run: stopping them", ", ".join(each.name for each in announced))
            self._stop(announced)

    def _end_outdated(self) -> None:
        """A stopped instance boots what it was made of, so those of an older version are made anew when needed."""
        if self._latest and self._clock() - self._template_seen_s >= TEMPLATE_EVERY_S:
            try:
                self._look_at_template()
            except (ClientError, BotoCoreError) as error:
                logger.warning("EC2 does not say which version of %s is the latest: %s", self._template, error)
        old = [each for each in self._machines if each.state == "stopped" and each.outdated(self._latest)]
        if old:
            names = ", ".join(each.name for each in old)
            logger.info("%s were made from an older version of %s: terminating them", names, self._template)
            try:
                ended = self._end("terminate_instances", [each.id for each in old])
            except FleetError as error:
                # They are not started either, so nothing else has to wait for it.
                logger.error("they stay: %s", error)
                return
            self._machines = [each for each in self._machines if each.id not in ended]

    def _look_at_template(self) -> None:
        # Before the call: a refusal is not asked about again and again.
        self._template_seen_s = self._clock()
        answer = self._client.describe_launch_template_versions(LaunchTemplateName=self._template, Versions=["$Latest"])
        self._latest = int(answer["LaunchTemplateVersions"][0]["VersionNumber"])

    def _tag(self, ids: Sequence[str], tags: dict[str, str]) -> None:
        self._act("create_tags", Resources=ids, Tags=self._pairs(tags))

    def _pairs(self, tags: dict[str, str]) -> list[dict[str, str]]:
        return [{"Key": self._naming.tag(key), "Value": value} for key, value in tags.items()]

    def _act(self, operation: str, *, token: bool = False, **arguments: Any) -> Any:
        """Change something: not while backing off, and only while the fence lets us. Raises FleetError."""
        backoff = self._backoffs[operation]
        if backoff.left_s:
            raise FleetError(f"{operation} failed and is tried again in {backoff.left_s:.0f} s")
        fence = self._fence()
        if token:
            arguments["ClientToken"] = f"{self._options.stack}-{fence}-{next(self._calls)}"
        try:
            return self._guarded(operation, lambda: getattr(self._client, operation)(**arguments))
        except (ClientError, BotoCoreError) as error:
            raise FleetError(str(error)) from error

    def _guarded(self, operation: str, call: Callable[[], Any]) -> Any:
        backoff = self._backoffs[operation]
        try:
            answer = call()
        except (ClientError, BotoCoreError) as error:
            kind = trouble(error)
            self._on_error(operation, kind.name.lower())
            if kind is Trouble.CAPACITY and operation == "run_instances" and self._next_placement():
                raise
            backoff.failed(kind)
            raise
        backoff.succeeded()
        return answer

    def _next_placement(self) -> bool:
        """Turn to the next subnet or type; False when all were tried."""
        self._placement = (self._placement + 1) % len(self._placements)
        return self._placement != 0

    def _describe(self) -> list[Machine]:
        filters = [
            {"Name": f"tag:{self._naming.tag(STACK)}", "Values": [self._options.stack]},
            {"Name": "instance-state-name", "Values": STATES},
        ]
        found: list[Machine] = []
        for page in self._client.get_paginator("describe_instances").paginate(Filters=filters):
            self._see_clock(page)
            for reservation in page["Reservations"]:
                found += [self._naming.machine(each, now_s=self.now_s) for each in reservation["Instances"]]
        return found

    def _see_clock(self, answer: Any) -> None:
        self._skew_s = answered_s(answer) - self._clock()

    def _expect(self, machine: Machine) -> None:
        self._expected[machine.id] = self._clock() + BELIEVED_S, machine
        self._machines = [each for each in self._machines if each.id != machine.id] + [machine]

    def _believe(self, listed: Sequence[Machine]) -> list[Machine]:
        """What EC2 lists, with what was asked for a moment ago and does not show yet."""
        now_s = self._clock()
        self._expected = {id: each for id, each in self._expected.items() if each[0] > now_s}
        found = {each.id: each for each in listed}
        for id, (_, expected) in self._expected.items():
            seen = found.get(id)
            if seen is None or seen.state == "stopped":
                found[id] = dataclasses.replace(expected, age_s=max(0.0, self.now_s - expected.run_s))
            elif not seen.name:
                found[id] = self._naming.named(seen, expected.name)
        return sorted(found.values(), key=lambda each: (each.number or 0, each.id))


def _placements(options: ScalerOptions) -> list[tuple[bool, dict[str, str]]]:
    """Where and as what new instances are tried, in turn: all that are wanted or none, then as many as there is
    capacity for."""
    # With subnets of another network than the account's default one, a start without any would be refused: the
    # template's security group is of that network.
    subnets = [{"SubnetId": each} for each in options.subnets] or [{}]
    types = [{}, *({"InstanceType": each} for each in options.instance_types)]
    return [(whole, {**subnet, **kind}) for whole in (True, False) for kind in types for subnet in subnets]
