"""The loop: look at the queue and the instances, let the policy decide, act. `faceapp scaler [--dry-run]`.

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
from collections.abc import Callable, Mapping, Sequence

from faceapp import tracing
from faceapp.broker.janitor import Janitor
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable, ConfigError, FaceappError
from faceapp.forgetting import LostOrders
from faceapp.scaling.alarms import Alarms
from faceapp.scaling.budget import Spent
from faceapp.scaling.dry_run import DryRunFleet
from faceapp.scaling.fleet import EC2Fleet, Fleet
from faceapp.scaling.lease import Lease
from faceapp.scaling.machine import Machine, dead_boots, orphans
from faceapp.scaling.metrics import Arrivals, Believed, Boots, Depth
from faceapp.scaling.observe import Phases
from faceapp.scaling.policies.base import Counts, Decision, Observation, Policy
from faceapp.scaling.status import Snapshot, Status, StatusServer
from faceapp.scaling.turnover import turn_over
from faceapp.scaling.workers import Listener, Workers

logger = logging.getLogger(__name__)

QUIET_S = 60.0
"""A line a minute while nothing changes."""
DEAD_BOOTS = 3
QUARANTINE_S = 600.0
"""After so many dead boots in a row nothing is started for so long, then one to see."""


class Scaler:
    """One scaler. `tick` looks, decides and acts once; not safe to share between threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        policy: Policy,
        fleet: Fleet,
        depth: Depth,
        workers: Workers,
        lease: Lease | None,
        status: Status,
        listen: Callable[[], Listener] | None = None,
        alarms: Alarms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a `lease` nobody else is asked, without `listen` no events are taken: for a dry run."""
        self._settings, self._policy, self._fleet, self._depth = settings, policy, fleet, depth
        self._workers, self._lease, self._status, self._clock = workers, lease, status, clock
        self._believed, self._arrivals = Believed(), Arrivals(clock())
        self._boots = Boots(settings.scaler_boot_s)
        self._phases = Phases(workers, clock=clock)
        self._new_listener = listen
        self._alarms = alarms
        self._listener: Listener | None = None
        self._spent = Spent(settings.scaler_daily_instance_s)
        self._quarantined_s: float | None = None
        self._held_back = ""
        self._said: dict[str, float] = {}
        self._wanted = -1
        self._quiet_from_s = float("-inf")

    def tick(self) -> None:
        """Raises FaceappError when something does not answer; the next tick tries again."""
        leader = self._leads()
        machines = self._fleet.instances()
        counts = self._ask()
        observation = self._observe(machines, counts)
        decision = self._policy.decide(observation) if leader else Decision(wanted=0, reason="stands by")
        if leader:
            old = {each.id for each in machines if each.billed and each.outdated(self._fleet.latest)}
            most = self._settings.scaler_max_instances
            decision = turn_over(decision, observation, old=old, max_instances=most)
            decision = self._limit(decision, machines, observation)
        taken: dict[str, int] = {}
        try:
            if leader:
                taken = self._act(decision, machines)
            tracing.note({"faceapp.wanted": decision.wanted, **{f"faceapp.{what}": n for what, n in taken.items()}})
        finally:
            self._report(leader, decision, observation, machines, taken)

    def close(self) -> None:
        """End without stopping anything; another scaler may begin at once."""
        self._listen(False)
        if self._lease:
            with contextlib.suppress(FaceappError):
                self._remember()
                self._lease.release()

    def _leads(self) -> bool:
        if self._lease is None:
            return True
        led = self._lease.held
        leader = False
        try:
            leader = self._lease.hold()
        except FaceappError as error:
            self.warn("lease", error.detail)
            self._status.error("lease", error.code)
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
        self._spent.recall(self._lease.memory)
        service_s = self._lease.memory.get("service_s")
        if isinstance(service_s, (int, float)) and service_s > 0:
            self._workers.service_s = float(service_s)

    def _remember(self) -> None:
        assert self._lease
        self._lease.memory = {**self._spent.memory, "service_s": self._workers.service_s}

    def _ask(self) -> Counts | None:
        try:
            counts = self._depth.ask()
        except BrokerUnavailable as error:
            self.warn("counts", f"{error.detail} Nothing is started or stopped meanwhile.")
            self._status.error("get_queue_attributes", error.code)
            self._believed.clear()
            return None
        done = self._workers.done
        counts = self._believed.update(counts, done=done)
        self._arrivals.update(counts, done=done, now_s=self._clock())
        return counts

    def _observe(self, machines: Sequence[Machine], counts: Counts | None) -> Observation:
        for each in machines:
            if each.ours and each.boot_s is not None:
                self._boots.add(each.id, each.run_s, each.boot_s)
        boot_s = self._boots.quantile(0.5)
        return Observation(
            now_s=self._clock(),
            counts=counts,
            service_s=self._workers.service_s,
            boot_p50_s=boot_s,
            boot_p90_s=self._boots.quantile(0.9),
            arrivals=self._arrivals.bins(self._clock()),
            instances=self._phases.instances(machines, counts, boot_s=boot_s),
        )

    def _limit(self, decision: Decision, machines: Sequence[Machine], observation: Observation) -> Decision:
        """The decision within today's budget, and without starts while boots come to nothing."""
        self._held_back = ""
        self._spent.update(self._fleet.now_s, sum(each.ours and each.billed for each in machines))
        if self._lease:
            self._remember()
        if self._spent.over:
            self._held_back = "budget"
            self.warn("budget", f"today's {self._settings.scaler_daily_instance_s} instance-seconds are used up")
            running = tuple(each.id for each in observation.instances if each.phase != "draining")
            return Decision(wanted=0, drain=running, reason="today's instance-seconds are used up")
        dead = dead_boots(machines)
        if dead < DEAD_BOOTS:
            self._quarantined_s = None
        elif decision.start:
            self._held_back = "dead_boots"
            starts = self._probe(dead, observation)
            reason = f"{dead} boots in a row came to nothing: {decision.reason}"
            return Decision(
                wanted=decision.wanted, start=starts, drain=decision.drain, replace=decision.replace, reason=reason
            )
        return decision

    def _probe(self, dead: int, observation: Observation) -> int:
        """How many to start although the last `dead` boots failed: one, now and then."""
        if self._quarantined_s is None:
            self._quarantined_s = self._clock()
        left_s = self._quarantined_s + QUARANTINE_S - self._clock()
        self.warn(
            "quarantine",
            f"ALARM: {dead} instances in a row never reported. Look at their image and network; one more is tried in "
            f"{max(0.0, left_s):.0f} s",
            level=logging.ERROR,
        )
        if left_s > 0 or observation.phase("booting"):
            return 0
        self._quarantined_s = self._clock()
        return 1

    def _act(self, decision: Decision, machines: Sequence[Machine]) -> dict[str, int]:
        taken: dict[str, int] = {}
        self._fleet.tidy()
        for measured in (True, False):
            self._fleet.mark_ready(self._phases.newly_ready(machines, measured=measured), measured=measured)
        by_id = {each.id: each for each in machines}
        silent = [each for each in decision.replace if each in by_id and by_id[each].ready]
        dead = [each for each in decision.replace if each not in silent]
        drain = [*decision.drain, *silent, *self._phases.deserted(machines)]
        for each in silent:
            logger.warning("%s (%s) went silent: it is stopped and replaced", by_id[each].name, each)
        if dead:
            self._say_dead([by_id[each] for each in dead if each in by_id])
            taken["replaced"] = len(self._fleet.drain(dead, dead_boots=dead_boots(machines) + len(dead)))
        if drain:
            taken["drained"] = len(self._fleet.drain(dict.fromkeys(drain)))
        if decision.start:
            taken["started"] = len(self._fleet.start(decision.start))
        return {name: count for name, count in taken.items() if count}

    def _say_dead(self, machines: Sequence[Machine]) -> None:
        for each in machines:
            logger.warning(
                "%s (%s) never reported in %.0f s: it is stopped and replaced", each.name, each.id, each.age_s
            )

    def _report(
        self,
        leader: bool,
        decision: Decision,
        observation: Observation,
        machines: Sequence[Machine],
        taken: Mapping[str, int],
    ) -> None:
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
                spent_s=self._spent.seconds,
                lease_token=self._lease.token if self._lease else 0,
                events_alive=self._workers.path_alive,
                acted=bool(taken),
                tasks_done=self._workers.done,
                dead_boots=dead_boots(machines),
                orphans=len(orphans(machines)),
                held_back=(self._held_back or ("aws" if trouble else "")) if leader else "",
            )
        )
        if leader and self._alarms:
            self._alarms.tell(dead_boots=dead_boots(machines), spent_s=self._spent.seconds)
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


def _line(wanted: int, reason: str, seen: Observation, phases: Mapping[str, int], taken: Mapping[str, int]) -> str:
    counts = seen.counts
    depth = f"{counts.visible} visible, {counts.in_flight} in flight" if counts else "counts unknown"
    fleet = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) or "no instances"
    did = ", ".join(f"{name} {count}" for name, count in taken.items()) or "nothing to do"
    return (
        f"{did}: wanted {wanted}, {reason} [{depth}; {fleet}; {seen.service_s:.3g} s a message; "
        f"boots {seen.boot_p50_s:.0f} s]"
    )


def run(settings: Settings, *, dry_run: bool = False, stop: threading.Event | None = None) -> None:
    """Scale until SIGTERM or SIGINT, which stop no instance.

    Raises ConfigError, BrokerUnavailable or FleetError when it cannot begin.
    """
    from faceapp.scaling.policies import create

    policy = create(settings)
    depth = Depth(settings)
    depth.ask()
    lease = None if dry_run else Lease(settings)
    status, workers = Status(settings), Workers(service_s=settings.scaler_service_s)
    real = EC2Fleet(settings, fence=lease.fence if lease else _never, on_error=status.error)
    real.check()
    scaler = Scaler(
        settings,
        policy=policy,
        fleet=DryRunFleet(settings, real) if dry_run else real,
        depth=depth,
        workers=workers,
        lease=lease,
        # A dry run would take the events from the scaler that acts.
        listen=None if dry_run else lambda: Listener(settings, workers),
        alarms=None if dry_run else Alarms(settings),
        status=status,
    )
    server = StatusServer(settings, status)
    janitor = Janitor(
        settings,
        leads=lambda: lease is not None and lease.held,
        chores={"lost_orders": LostOrders(settings).send_again},
        on_error=status.error,
    )
    stop = stop or _stop_on_signals()
    server.start()
    janitor.start()
    _say_start(settings, server, dry_run=dry_run)
    try:
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                with tracing.span("scaler tick"):
                    scaler.tick()
            except FaceappError as error:
                scaler.warn(re.sub(r"\d+", "", error.detail), error.detail)
                status.failed(error.detail)
            except Exception as error:
                logger.exception("this tick failed; the next one tries again")
                status.failed(f"unexpected: {error}")
            stop.wait(max(0.0, began_s + settings.scaler_tick_s - time.monotonic()))
    finally:
        server.stop()
        janitor.stop()
        scaler.close()
    logger.info("the scaler ends; the instances stay as they are")


def _say_start(settings: Settings, server: StatusServer, *, dry_run: bool) -> None:
    logger.info(
        "the scaler%s: policy %s, at most %d instances, every %g s; status on http://%s:%d/status",
        " (dry run: nothing is changed)" if dry_run else "",
        settings.scaler_policy,
        settings.scaler_max_instances,
        settings.scaler_tick_s,
        settings.scaler_host,
        server.port,
    )
    if not settings.scaler_max_instances:
        logger.warning("FACEAPP_SCALER_MAX_INSTANCES=0: no instance is ever started, and photos wait")


def _never() -> int:
    raise ConfigError("a dry run changes nothing")


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
