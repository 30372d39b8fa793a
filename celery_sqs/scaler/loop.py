"""The loop: look at the queues and the instances, let the policy decide, act. `python -m celery_sqs scaler -A APP`.

Everything it knows is looked up anew after a start: instances and their marks in EC2's tags, the counts in SQS, today's
instance-seconds and the service time in the lease's document. A restart in the middle of a burst changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from celery import Celery

from celery_sqs import options as application
from celery_sqs.errors import BrokerUnavailable, ConfigurationError, Error, FleetError, LeaseLost
from celery_sqs.queues.janitor import Janitor
from celery_sqs.scaler.alarms import Alarms
from celery_sqs.scaler.core import Core, Orders
from celery_sqs.scaler.depths import Depths
from celery_sqs.scaler.fleet.base import Fleet, FleetMaker
from celery_sqs.scaler.fleet.dry_run import DryRunFleet
from celery_sqs.scaler.fleet.ec2 import EC2Fleet
from celery_sqs.scaler.lease import Lease
from celery_sqs.scaler.listener import Listener
from celery_sqs.scaler.machine import Machine, dead_boots, orphans
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.policies import create
from celery_sqs.scaler.policies.base import Counts, Decision, Observation, Policy
from celery_sqs.scaler.status import Snapshot, Status
from celery_sqs.scaler.status_server import StatusServer
from celery_sqs.scaler.workers import Workers

logger = logging.getLogger(__name__)

QUIET_S = 60.0
"""A line a minute while nothing changes."""


class Steps:
    """Steps of which each is taken, whatever becomes of the others."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take one; an error ends this step only, and is kept."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Error):
                logger.exception("%s failed", name)
            self.errors.append(error)

    def close(self) -> None:
        """Raise what the steps raised: the error, or a FleetError that names all of them."""
        if len(self.errors) == 1 or any(isinstance(each, LeaseLost) for each in self.errors):
            raise next((each for each in self.errors if isinstance(each, LeaseLost)), self.errors[0])
        if self.errors:
            raise FleetError(" ".join(dict.fromkeys(_sentence(each) for each in self.errors)))


class Scaler:
    """One scaler. `tick` looks, decides and acts once; not safe to share between threads."""

    def __init__(
        self,
        options: ScalerOptions,
        *,
        policy: Policy,
        fleet: Fleet,
        depths: Depths,
        workers: Workers,
        lease: Lease | None,
        status: Status,
        listen: Callable[[], Listener] | None = None,
        alarms: Alarms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a `lease` nobody else is asked, without `listen` no events are taken: for a dry run."""
        self._options, self._fleet, self._depths = options, fleet, depths
        self._workers, self._lease, self._status, self._clock = workers, lease, status, clock
        self._core = Core(options, policy=policy, workers=workers, clock=clock)
        self._new_listener = listen
        self._alarms = alarms
        self._listener: Listener | None = None
        self._said: dict[str, float] = {}
        self._wanted = -1
        self._quiet_from_s = float("-inf")

    def tick(self) -> None:
        """Raises celery_sqs.Error when something does not answer; the next tick tries again.

        What fails ends nothing but itself: whatever cannot be stopped, marked or reported, what is wanted is started.
        """
        leader = self._leads()
        machines = self._fleet.instances()
        counts = self._ask()
        if leader:
            observation, orders = self._core.tick(counts, machines, now_s=self._fleet.now_s, latest=self._fleet.latest)
        else:
            observation = self._core.observe(counts, machines)
            orders = Orders(decision=Decision(wanted=0, reason="stands by"))
        for key, (level, sentence) in orders.notes.items():
            self.warn(key, sentence, level=level)
        taken: dict[str, int] = {}
        steps = Steps()
        if leader:
            if self._lease:
                self._remember()
            taken = self._act(orders, machines, steps)
        with steps.step("the report"):
            wanted = orders.decision.wanted
            self._options.note({"wanted": wanted, **taken})
            self._report(leader, orders, observation, machines, taken)
        if leader and self._alarms:
            with steps.step("the alarms"):
                self._alarms.tell(dead_boots=dead_boots(machines), spent_s=self._core.spent.seconds)
        steps.close()

    def close(self) -> None:
        """End without stopping anything; another scaler may begin at once."""
        self._listen(False)
        if self._lease:
            with contextlib.suppress(Error):
                self._remember()
                self._lease.release()

    def _leads(self) -> bool:
        if self._lease is None:
            return True
        led = self._lease.held
        leader = False
        try:
            leader = self._lease.hold()
        except Error as error:
            self.warn("lease", str(error))
            self._status.error("lease", type(error).__name__)
            leader = self._lease.held
        if leader and not led:
            self._recall()
        self._listen(leader)
        return leader

    def _listen(self, wanted: bool) -> None:
        if wanted and not self._listener and self._new_listener:
            self._listener = self._new_listener()
            self._listener.start()
        elif self._listener and not wanted:
            self._listener.stop()
            self._listener = None

    def _recall(self) -> None:
        assert self._lease
        self._core.spent.recall(self._lease.memory)
        service_s = self._lease.memory.get("service_s")
        if isinstance(service_s, (int, float)) and service_s > 0:
            self._workers.service.recall(float(service_s))

    def _remember(self) -> None:
        assert self._lease
        service = self._workers.service
        measured = {"service_s": service.seconds} if service.measured else {}
        self._lease.memory = {**self._core.spent.memory, **measured}

    def _ask(self) -> Counts | None:
        try:
            return self._depths.ask()
        except BrokerUnavailable as error:
            self.warn("counts", f"{error} Nothing is started or stopped meanwhile.")
            self._status.error("get_queue_attributes", type(error).__name__)
            return None

    def _act(self, orders: Orders, machines: Sequence[Machine], steps: Steps) -> dict[str, int]:
        """Carry out the orders; first of all the starts, for which messages wait."""
        taken = dict.fromkeys(("replaced", "drained", "started"), 0)
        by_id = {each.id: each for each in machines}
        with steps.step("starting instances"):
            if orders.start:
                taken["started"] = len(self._fleet.start(orders.start))
        with steps.step("tidying up"):
            self._fleet.tidy()
        for ids, measured in ((orders.came_up, True), (orders.heard, False)):
            with steps.step("marking instances as ready"):
                self._fleet.mark_ready(ids, measured=measured)
        for id in orders.silent:
            logger.warning("%s (%s) went silent: it is stopped and replaced", by_id[id].name, id)
        with steps.step("replacing instances"):
            if orders.dead:
                self._say_dead([by_id[each] for each in orders.dead if each in by_id])
                taken["replaced"] = len(self._fleet.drain(orders.dead, dead_boots=orders.dead_boots))
        with steps.step("draining instances"):
            if orders.drain:
                taken["drained"] = len(self._fleet.drain(orders.drain))
        return {name: count for name, count in taken.items() if count}

    def _say_dead(self, machines: Sequence[Machine]) -> None:
        for each in machines:
            logger.warning(
                "%s (%s) never reported in %.0f s: it is stopped and replaced", each.name, each.id, each.age_s
            )

    def _report(
        self,
        leader: bool,
        orders: Orders,
        observation: Observation,
        machines: Sequence[Machine],
        taken: Mapping[str, int],
    ) -> None:
        decision = orders.decision
        trouble = self._fleet.trouble if decision.start else ""
        reason = f"{decision.reason} ({trouble})" if trouble else decision.reason
        phases: Counter[str] = Counter(each.phase for each in observation.instances)
        phases.update(each.state for each in machines if each.ours and not each.billed)
        now_s = self._clock()
        self._status.update(
            Snapshot(
                time_s=time.time(),
                leader=leader,
                wanted=decision.wanted,
                reason=reason,
                counts=observation.counts,
                instances=phases,
                service_s=observation.service_s,
                boot_p50_s=observation.boot_p50_s,
                spent_s=self._core.spent.seconds,
                lease_token=self._lease.token if self._lease else 0,
                events_alive=self._workers.path_alive,
                acted=bool(taken),
                tasks_done=self._workers.done,
                dead_boots=dead_boots(machines),
                orphans=len(orphans(machines)),
                held_back=(orders.held_back or ("aws" if trouble else "")) if leader else "",
            )
        )
        for id, why in orphans(machines).items():
            self.warn(f"orphan {id}", f"the instance {id} {why}: nobody looks after it")
        if not taken and decision.wanted == self._wanted and now_s - self._quiet_from_s < QUIET_S:
            return
        self._wanted, self._quiet_from_s = decision.wanted, now_s
        line = _line(decision.wanted, reason, observation, phases, taken)
        logger.info(line)
        if taken:
            self._status.decided(time.time(), line, taken)

    def warn(self, key: str, sentence: str, *, level: int = logging.WARNING) -> None:
        """Say it, and again each minute while it lasts."""
        if self._clock() - self._said.get(key, float("-inf")) >= QUIET_S:
            # What was said longer ago would be said again, and is often about an instance that is gone.
            self._said = {each: at_s for each, at_s in self._said.items() if self._clock() - at_s < QUIET_S}
            self._said[key] = self._clock()
            logger.log(level, sentence)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, Error) else f"Unexpected: {error!r}."


def _line(wanted: int, reason: str, seen: Observation, phases: Mapping[str, int], taken: Mapping[str, int]) -> str:
    counts = seen.counts
    depth = f"{counts.visible} visible, {counts.in_flight} in flight" if counts else "counts unknown"
    fleet = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) or "no instances"
    did = ", ".join(f"{name} {count}" for name, count in taken.items()) or "nothing to do"
    return (
        f"{did}: wanted {wanted}, {reason} [{depth}; {fleet}; {seen.service_s:.3g} s a message; "
        f"boots {seen.boot_p50_s:.0f} s]"
    )


def run(
    app: Celery,
    *,
    options: ScalerOptions | None = None,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    chores: Mapping[str, Callable[[], object]] = MappingProxyType({}),
    expected: tuple[type[Exception], ...] = (),
) -> None:
    """Scale the workers of `app` until SIGTERM or SIGINT, which stop no instance.

    The `options` stand for those that the app was configured with. The scaler that leads does the `chores` now and
    then, too; `expected` are errors of theirs that need no traceback. Raises ConfigurationError, BrokerUnavailable or
    FleetError when it cannot begin.
    """
    framework = application.of(app)
    options, aws = (options or framework.scaler).of(framework), framework.aws
    if dry_run:
        # A dry run has the port of no scaler that acts, which may run on this machine, too.
        options = replace(options, status_port=0)
    policy = create(options)
    depths = Depths(aws, framework.names_of(options.queues), absent_are_empty=framework.create_queues)
    depths.ask()
    lease = None if dry_run else Lease(options, aws)
    status = Status(options, aws)
    prefetch = options.prefetch or app.conf.worker_prefetch_multiplier
    workers = Workers(service_s=options.service_s, prefetch=prefetch, worked_s=options.worked_s)
    make: FleetMaker = options.fleet or partial(EC2Fleet, aws=aws)
    fleet = make(options, fence=lease.fence if lease else _never, on_error=status.error)
    if dry_run:
        fleet = DryRunFleet(options, fleet)
    fleet.check()
    server = StatusServer(options, status)
    scaler = Scaler(
        options,
        policy=policy,
        fleet=fleet,
        depths=depths,
        workers=workers,
        lease=lease,
        # A dry run would take the events from the scaler that acts.
        listen=None if dry_run else lambda: Listener(app, workers, place=str(server.port)),
        alarms=None if dry_run else Alarms(options, aws),
        status=status,
    )
    janitor = Janitor(
        framework,
        leads=lambda: lease is not None and lease.held,
        chores=chores,
        on_error=status.error,
        expected=expected,
    )
    stop = stop or _stop_on_signals()
    server.start()
    janitor.start()
    _say_start(options, server, dry_run=dry_run)
    try:
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                with options.span("scaler tick"):
                    scaler.tick()
            except Error as error:
                scaler.warn(re.sub(r"\d+", "", str(error)), str(error))
                status.failed(str(error))
            except Exception as error:
                logger.exception("this tick failed; the next one tries again")
                status.failed(f"unexpected: {error}")
            stop.wait(max(0.0, began_s + options.tick_s - time.monotonic()))
    finally:
        server.stop()
        janitor.stop()
        scaler.close()
    logger.info("the scaler ends; the instances stay as they are")


def _say_start(options: ScalerOptions, server: StatusServer, *, dry_run: bool) -> None:
    logger.info(
        "the scaler%s: policy %s, at most %d instances, every %g s; status on http://%s:%d/status",
        " (dry run: nothing is changed)" if dry_run else "",
        options.policy,
        options.max_instances,
        options.tick_s,
        options.status_host,
        server.port,
    )
    if not options.max_instances:
        logger.warning("at most 0 instances: none is ever started, and messages wait")


def _never() -> int:
    raise ConfigurationError("a dry run changes nothing")


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
