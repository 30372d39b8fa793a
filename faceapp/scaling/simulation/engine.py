"""The simulation: messages, a queue, instances and a policy, one event after the other.

Only what AWS is approximate about is approximate here (`gauges`): a message is sent, becomes visible, is received by a
worker with room, is worked on, and is done; an instance is started, boots, works, drains, stops and is billed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from faceapp.scaling.policies.base import Instance, Observation, Policy
from faceapp.scaling.simulation.gauges import Estimates, QueueGauge
from faceapp.scaling.simulation.workloads import Workload
from faceapp.scaling.simulation.world import Result, Trace, World

PRIOR_BOOT_S = 45.0
PRIOR_SERVICE_S = 1.0
HEARTBEAT_S = 60.0
SPOT_NOTICE_SHARE = 0.9
SLOW_BOOT = 3.0
BOOT_QUANTILES = (0.5, 0.9)


@dataclass(eq=False, slots=True)
class Message:
    sent_s: float
    service_s: float
    receives: int = 0
    done: bool = False
    dead: bool = False


@dataclass(eq=False, slots=True)
class Server:
    """One instance, from its start to its stop; the next start makes a new one with the same id."""

    id: str
    started_s: float
    phase: Literal["booting", "ready", "draining", "gone"] = "booting"
    heard: bool = False
    held: deque[tuple[Message, float]] = field(default_factory=deque)
    """Messages with the time each was received; the first is the one in work."""
    seen_busy: bool = False
    seen_idle_s: float = 0.0


class Simulation:
    """One policy over one workload. With `force`, draining stops an instance in mid-task, as StopInstances does to a
    worker that does not wait."""

    def __init__(
        self, world: World, workload: Workload, policy: Policy, *, force: bool = False, keep_trace: bool = False
    ) -> None:
        self._world = world
        self._workload = workload
        self._policy = policy
        self._force = force
        self._keep_trace = keep_trace
        seed = f"{workload.name}/{workload.seed}"
        self._fleet_rng = random.Random(f"fleet/{seed}")  # nosec B311 # repeatable
        self._queue_rng = random.Random(f"queue/{seed}")  # nosec B311 # repeatable
        self._fault_rng = random.Random(f"faults/{seed}")  # nosec B311 # repeatable
        self._gauge = QueueGauge(world, random.Random(f"gauge/{seed}"))  # nosec B311 # repeatable
        self._estimates = Estimates(service_s=PRIOR_SERVICE_S, boot_s=PRIOR_BOOT_S)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._now_s = 0.0
        self._visible: deque[Message] = deque()
        self._in_flight = 0
        self._servers: dict[str, Server] = {}
        self._stopped = [f"app-{n}" for n in range(world.max_instances, 0, -1)]
        self._next_arrival = 0
        self._latencies_s: list[float] = []
        self._done_s: list[float] = []
        self._trace: list[Trace] = []
        self._dead_letters = self._launches = self._kills = self._losses = self._duplicates = 0
        self._billed_s = 0.0

    def run(self) -> Result:
        """Run until everything is answered and stopped, or the world's tail is over."""
        arrivals = self._workload.arrivals_s
        end_s = (arrivals[-1] if arrivals else 0.0) + self._world.tail_s
        if arrivals:
            self._at(arrivals[0], self._arrive)
        self._at(0.0, self._second)
        self._at(0.0, self._tick)
        while self._events and self._events[0][0] <= end_s and not self._is_over():
            self._now_s, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        for server in list(self._servers.values()):
            self._bill(server)
        return Result(
            policy=self._policy.name,
            workload=self._workload.name,
            seed=self._workload.seed,
            slo_s=self._world.slo_s,
            messages=len(arrivals),
            latencies_s=tuple(self._latencies_s),
            done_s=tuple(self._done_s),
            dead_letters=self._dead_letters,
            billed_s=self._billed_s,
            launches=self._launches,
            kills=self._kills,
            losses=self._losses,
            duplicates=self._duplicates,
            end_s=self._now_s,
            trace=tuple(self._trace),
        )

    def _is_over(self) -> bool:
        settled = len(self._latencies_s) + self._dead_letters
        return settled == len(self._workload.arrivals_s) and not self._servers

    def _at(self, when_s: float, act: Callable[..., None], *arguments: Any) -> None:
        self._pushed += 1  # Events of the same time come in the order they were made.
        heapq.heappush(self._events, (when_s, self._pushed, act, arguments))

    # What SQS does.

    def _arrive(self) -> None:
        workload, n = self._workload, self._next_arrival
        self._visible.append(Message(self._now_s, workload.service_s[n]))
        self._next_arrival = n + 1
        if n + 1 < len(workload.arrivals_s):
            self._at(workload.arrivals_s[n + 1], self._arrive)
        self._deliver()

    def _deliver(self) -> None:
        """Give visible messages to workers whose long poll waits, one each: any of them, as SQS does."""
        while self._visible:
            waiting = [server for server in self._servers.values() if self._has_room(server)]
            if not waiting:
                return
            self._receive(self._queue_rng.choice(waiting), 1)

    def _has_room(self, server: Server) -> bool:
        free = self._world.prefetch - len(server.held)
        return server.phase == "ready" and 2 * free >= self._world.prefetch

    def _receive(self, server: Server, most: int) -> None:
        was_idle = not server.held
        for _ in range(min(most, len(self._visible), self._world.prefetch - len(server.held))):
            message = self._visible.popleft()
            message.receives += 1
            self._in_flight += 1
            server.held.append((message, self._now_s))
            if self._world.faults.duplicates and self._fault_rng.random() < self._world.faults.duplicates:
                self._visible.append(message)
        if was_idle and server.held:
            self._work(server)

    def _come_back(self, message: Message) -> None:
        """A message that was received and not deleted: visible again, or a dead letter."""
        self._in_flight -= 1
        if message.done or message.dead:
            return
        if message.receives >= self._world.max_receives:
            message.dead = True
            self._dead_letters += 1
        else:
            self._visible.appendleft(message)
            self._deliver()

    # What a worker does.

    def _work(self, server: Server) -> None:
        message, _ = server.held[0]
        self._at(self._now_s + message.service_s, self._finish, server, message)
        if self._hears(server):
            server.seen_busy = True

    def _finish(self, server: Server, message: Message) -> None:
        if server.phase == "gone":
            return  # It was killed before.
        server.held.popleft()
        self._in_flight -= 1
        if message.done or message.dead:
            self._duplicates += 1
        else:
            message.done = True
            self._latencies_s.append(self._now_s - message.sent_s)
            self._done_s.append(self._now_s)
        heard = self._hears(server)
        if heard:
            self._estimates.finished(message.service_s)
        if server.phase == "draining":
            self._stop(server)
            return
        if server.held:
            self._work(server)
        if self._has_room(server):
            self._receive(server, self._world.prefetch)
        if not server.held and heard:
            server.seen_busy, server.seen_idle_s = False, self._now_s

    def _hears(self, server: Server) -> bool:
        """Whether the worker's event arrives. When it does not, a heartbeat tells later what it is doing."""
        if self._world.faults.lost_events and self._fault_rng.random() < self._world.faults.lost_events:
            self._at(self._now_s + self._fault_rng.uniform(0, HEARTBEAT_S), self._heartbeat, server)
            return False
        return True

    def _heartbeat(self, server: Server) -> None:
        if server.phase == "gone":
            return
        server.heard = True
        if server.held:
            server.seen_busy = True
        elif server.seen_busy:
            server.seen_busy, server.seen_idle_s = False, self._now_s

    # What EC2 does.

    def _start(self, count: int) -> None:
        faults, rng = self._world.faults, self._fault_rng
        if count and faults.throttling and rng.random() < faults.throttling:
            count = 0 if rng.random() < 0.5 else count // 2
        for _ in range(min(count, len(self._stopped))):
            server = Server(self._stopped.pop(), self._now_s)
            self._servers[server.id] = server
            self._launches += 1
            boot_s = self._fleet_rng.uniform(self._world.boot_min_s, self._world.boot_max_s)
            if faults.slow_boots and rng.random() < faults.slow_boots:
                boot_s *= SLOW_BOOT
            if not (faults.dead_starts and rng.random() < faults.dead_starts):
                self._at(self._now_s + boot_s, self._ready, server)

    def _ready(self, server: Server) -> None:
        if server.phase != "booting":
            return
        server.phase = "ready"
        server.seen_idle_s = self._now_s
        server.heard = self._hears(server)
        self._estimates.booted(self._now_s - server.started_s)
        if self._world.faults.spot_losses:
            life_s = self._fault_rng.expovariate(self._world.faults.spot_losses / 3600)
            self._at(self._now_s + life_s, self._lose, server)
        self._receive(server, self._world.prefetch)

    def _lose(self, server: Server) -> None:
        if server.phase == "gone":
            return
        if self._fault_rng.random() < SPOT_NOTICE_SHARE:
            self._drain([server])
        else:
            self._losses += bool(server.held)
            self._kill(server)

    def _drain(self, servers: list[Server]) -> None:
        """Finish what is in work, give back the rest, stop: all of them in one call, so that none gets the others'."""
        busy = [server for server in servers if server.phase == "ready" and server.held]
        for server in servers:
            if server in busy:
                server.phase = "draining"
            elif server.phase != "draining":
                self._stop(server)
        for server in busy:
            while len(server.held) > 1:
                self._come_back(server.held.pop()[0])

    def _kill(self, server: Server) -> None:
        """Stop at once; what it held comes back when its visibility timeout is over."""
        for message, received_s in server.held:
            self._at(received_s + self._world.visibility_s, self._come_back, message)
        server.held.clear()
        self._stop(server)

    def _stop(self, server: Server) -> None:
        self._bill(server)
        server.phase = "gone"
        stopping_s = self._fleet_rng.uniform(self._world.stop_min_s, self._world.stop_max_s)
        self._at(self._now_s + stopping_s, self._stopped.append, server.id)

    def _bill(self, server: Server) -> None:
        del self._servers[server.id]
        self._billed_s += max(self._world.min_billed_s, self._now_s - server.started_s)

    # What the scaler does.

    def _second(self) -> None:
        visible, in_flight = len(self._visible), self._in_flight
        self._gauge.record(self._now_s, visible, in_flight)
        if self._keep_trace:
            ready = sum(server.phase != "booting" for server in self._servers.values())
            self._trace.append(
                Trace(
                    now_s=self._now_s,
                    visible=visible,
                    in_flight=in_flight,
                    ready=ready,
                    billed=len(self._servers),
                )
            )
        self._at(self._now_s + 1.0, self._second)

    def _tick(self) -> None:
        decision = self._policy.decide(self._observe())
        leaving = [self._servers[id_] for id_ in {*decision.drain, *decision.replace} if id_ in self._servers]
        leaving.sort(key=lambda server: server.id)
        if self._force:
            for server in leaving:
                self._kills += bool(server.held)
                self._kill(server)
        else:
            self._drain(leaving)
        self._start(decision.start)
        self._at(self._now_s + self._world.tick_s, self._tick)

    def _observe(self) -> Observation:
        estimates, now_s = self._estimates, self._now_s
        seen = self._gauge.read(now_s, len(self._visible), self._in_flight)
        return Observation(
            now_s=now_s,
            counts=estimates.counts(now_s, seen),
            service_s=estimates.service_s,
            boot_p50_s=estimates.boot_s(BOOT_QUANTILES[0]),
            boot_p90_s=estimates.boot_s(BOOT_QUANTILES[1]),
            arrivals=estimates.arrivals(now_s),
            instances=tuple(self._instance(server) for server in self._servers.values()),
        )

    def _instance(self, server: Server) -> Instance:
        phase: Literal["booting", "ready", "draining"] = "booting"
        if server.phase == "draining":
            phase = "draining"
        elif server.phase == "ready" and server.heard:
            phase = "ready"
        idle_s = None
        if phase == "ready":
            idle_s = 0.0 if server.seen_busy else self._now_s - server.seen_idle_s
        return Instance(id=server.id, phase=phase, billed_s=self._now_s - server.started_s, idle_s=idle_s)
