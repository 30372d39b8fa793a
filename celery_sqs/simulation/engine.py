"""The simulation: messages, a queue, workers, instances and the scaler, one event after the other.

The scaler is the one that runs live, `celery_sqs.scaler.core`, with all that it knows: it is fed with counts, with the
events that Celery's workers send, and with instances as EC2 lists them, and its orders are carried out. What is made up
here is AWS and the workers, approximate where they are (`gauges`): a message is sent, becomes visible, is received by a
worker with room, is worked on, and is done; an instance is started, boots, works, drains, stops and is billed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from celery_sqs.pace import EVENTS_WITHIN_S, HEARTBEAT_S
from celery_sqs.scaler.core import Core, Orders
from celery_sqs.scaler.machine import DRAINING, FAILED, READY, STARTED, Machine
from celery_sqs.scaler.plan import plan
from celery_sqs.scaler.policies.base import Counts, Policy
from celery_sqs.scaler.workers import PING, PING_S, Workers
from celery_sqs.simulation.gauges import Event, EventPath, QueueGauge
from celery_sqs.simulation.workloads import Workload, boots_s
from celery_sqs.simulation.world import Result, Trace, World

EPOCH_S = 1_800_000_000.0
"""EC2's clock at the simulation's begin: its marks are whole seconds of it."""
SPOT_NOTICE_SHARE = 0.9
SPOT_NOTICE_S = 120.0
SLOW_BOOT = 3.0


@dataclass(eq=False, slots=True)
class Message:
    sent_s: float
    service_s: float
    receives: int = 0
    done: bool = False
    dead: bool = False


@dataclass(eq=False, slots=True)
class Server:
    """One run of an instance, from its start to its stop; the next start makes a new one of the same name."""

    id: str
    name: str
    place: int
    """n of its name."""
    number: int
    """Of the run, which is its worker's process id as well."""
    started_s: float
    tags: dict[str, str]
    phase: Literal["booting", "ready", "leaving", "gone"] = "booting"
    stopping: bool = False
    """Whether EC2 was told to stop it; its worker finishes first."""
    held: deque[tuple[Message, str, float]] = field(default_factory=deque)
    """Messages with the task's id and the time each was received; the first is the one in work."""
    outbox: list[Event] = field(default_factory=list)


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
        self._boots_s = boots_s(workload.name, workload.seed, world)
        self._fleet_rng = random.Random(f"fleet/{seed}")  # nosec B311 # repeatable
        self._queue_rng = random.Random(f"queue/{seed}")  # nosec B311 # repeatable
        self._fault_rng = random.Random(f"faults/{seed}")  # nosec B311 # repeatable
        self._gauge = QueueGauge(world, random.Random(f"gauge/{seed}"))  # nosec B311 # repeatable
        self._path = EventPath(world, random.Random(f"events/{seed}"))  # nosec B311 # repeatable
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._now_s = 0.0
        # What runs live, with the simulated clock.
        self._options = options = world.options()
        self.workers = Workers(service_s=options.service_s, prefetch=world.prefetch, clock=self._clock)
        self.core = Core(options, policy=policy, workers=self.workers, clock=self._clock)
        if world.remembers:
            self.workers.service.recall(world.service_s)
        self._visible: deque[Message] = deque()
        self._in_flight = 0
        self._servers: dict[str, Server] = {}
        self._stopped = {f"i-{n}": self._new(n) for n in range(1, world.max_instances + 1)}
        self._next_arrival = self._received = 0
        self._latencies_s: list[float] = []
        self._done_s: list[float] = []
        self._trace: list[Trace] = []
        self._dead_letters = self._launches = self._kills = self._losses = self._duplicates = 0
        self._billed_s = 0.0

    def _clock(self) -> float:
        return self._now_s

    def run(self) -> Result:
        """Run until everything is answered and stopped, or the world's tail is over."""
        arrivals = self._workload.arrivals_s
        end_s = (arrivals[-1] if arrivals else 0.0) + self._world.tail_s
        if arrivals:
            self._at(arrivals[0], self._arrive)
        self._at(0.0, self._second)
        self._at(0.0, self._ping)
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
        return server.phase == "ready" and len(server.held) < self._world.prefetch

    def _receive(self, server: Server, most: int) -> None:
        was_idle = not server.held
        for _ in range(min(most, len(self._visible), self._world.prefetch - len(server.held))):
            message = self._visible.popleft()
            message.receives += 1
            self._in_flight += 1
            self._received += 1
            task = f"task-{self._received}"
            server.held.append((message, task, self._now_s))
            self._say(server, "task-received", uuid=task)
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
        message, task, _ = server.held[0]
        self._at(self._now_s + message.service_s, self._finish, server, message)
        self._say(server, "task-started", uuid=task)

    def _finish(self, server: Server, message: Message) -> None:
        if server.phase == "gone":
            return  # It was killed before.
        _, task, _ = server.held.popleft()
        self._in_flight -= 1
        if message.done or message.dead:
            self._duplicates += 1
        else:
            message.done = True
            self._latencies_s.append(self._now_s - message.sent_s)
            self._done_s.append(self._now_s)
        self._say(server, "task-succeeded", uuid=task, runtime=message.service_s)
        if server.phase == "leaving":
            self._left(server)
            return
        if server.held:
            self._work(server)
        if self._has_room(server):
            self._receive(server, self._world.prefetch)

    def _leave(self, server: Server) -> None:
        """SIGTERM: say goodbye, give back what waits, finish what is in work."""
        server.phase = "leaving"
        self._say(server, "worker-offline")
        while len(server.held) > 1:
            self._come_back(server.held.pop()[0])
        if not server.held:
            self._left(server)

    def _left(self, server: Server) -> None:
        self._flush(server)
        if server.stopping:
            self._stop(server)

    def _beat(self, server: Server) -> None:
        if server.phase == "ready":
            self._say(server, "worker-heartbeat", active=min(1, len(server.held)), processes=1)
            self._at(self._now_s + HEARTBEAT_S, self._beat, server)

    def _say(self, server: Server, kind: str, **more: Any) -> None:
        """An event, which goes out with the others of the next second."""
        event = {"type": kind, "hostname": f"celery@{server.name}", "pid": server.number}
        if not server.outbox:
            self._at(self._now_s + EVENTS_WITHIN_S, self._flush, server)
        server.outbox.append({**event, "timestamp": EPOCH_S + self._now_s, **more})

    def _flush(self, server: Server) -> None:
        for late_s, events in self._path.carry(server.outbox):
            self._at(self._now_s + late_s, self._hear, events)
        server.outbox = []

    # What EC2 does.

    def _start(self, count: int) -> None:
        planned = plan(
            self._machines(),
            count,
            max_instances=self._options.max_instances,
            per_minute=self._options.starts_per_minute,
        )
        faults, rng = self._world.faults, self._fault_rng
        chosen = planned.stopped
        if chosen and faults.throttling and rng.random() < faults.throttling:
            chosen = chosen[: 0 if rng.random() < 0.5 else len(chosen) // 2]
        for machine in chosen:
            self._launches += 1
            server = Server(
                machine.id, machine.name, machine.number or 0, self._launches, self._now_s, {**machine.tags}
            )
            server.tags[STARTED] = str(max(self._ec2_s, machine.last_mark_s + 1))
            del self._stopped[server.id]
            self._servers[server.id] = server
            boot_s = next(self._boots_s)
            if faults.slow_boots and rng.random() < faults.slow_boots:
                boot_s *= SLOW_BOOT
            if not (faults.dead_starts and rng.random() < faults.dead_starts):
                self._at(self._now_s + boot_s, self._ready, server)

    def _ready(self, server: Server) -> None:
        if server.phase != "booting" or server.stopping:
            return
        server.phase = "ready"
        self._say(server, "worker-online", processes=1, trial_s=self._world.service_s)
        self._at(self._now_s + HEARTBEAT_S, self._beat, server)
        if self._world.faults.spot_losses:
            life_s = self._fault_rng.expovariate(self._world.faults.spot_losses / 3600)
            self._at(self._now_s + life_s, self._lose, server)
        self._receive(server, self._world.prefetch)

    def _lose(self, server: Server) -> None:
        if server.phase != "ready":
            return
        if self._fault_rng.random() < SPOT_NOTICE_SHARE:
            self._leave(server)
            self._at(self._now_s + SPOT_NOTICE_S, self._take, server)
        else:
            self._take(server)

    def _take(self, server: Server) -> None:
        if server.phase != "gone":
            self._losses += bool(server.held)
            self._kill(server)

    def _drain(self, ids: Sequence[str], **mark: str) -> None:
        """StopInstances, for all in one call, so that none gets the others' messages."""
        servers = [self._servers[id] for id in sorted(ids) if id in self._servers]
        ready = [server for server in servers if server.phase == "ready"]
        for server in servers:
            server.tags.update(mark)
            server.stopping = True
            if self._force:
                self._kills += bool(server.held)
                self._kill(server)
            elif server.phase == "booting" or (server.phase == "leaving" and not server.held):
                self._stop(server)
            elif server in ready:
                server.phase = "leaving"
        if not self._force:
            for server in ready:
                self._leave(server)

    def _kill(self, server: Server) -> None:
        """Stop at once; what it held comes back when its visibility timeout is over."""
        for message, _, received_s in server.held:
            self._at(received_s + self._world.visibility_s, self._come_back, message)
        server.held.clear()
        self._stop(server)

    def _stop(self, server: Server) -> None:
        self._bill(server)
        server.phase = "gone"
        stopping_s = self._fleet_rng.uniform(self._world.stop_min_s, self._world.stop_max_s)
        self._stopped[server.id] = self._machine(server, state="stopping")
        self._at(self._now_s + stopping_s, self._stop_shows, server)

    def _stop_shows(self, server: Server) -> None:
        self._stopped[server.id] = self._machine(server, state="stopped")

    def _bill(self, server: Server) -> None:
        del self._servers[server.id]
        self._billed_s += max(self._world.min_billed_s, self._now_s - server.started_s)

    @property
    def _ec2_s(self) -> int:
        return int(EPOCH_S + self._now_s)

    def _machine(self, server: Server, *, state: str) -> Machine:
        run_s = int(server.tags[STARTED])
        age_s = max(0.0, EPOCH_S + self._now_s - run_s)
        return Machine(
            id=server.id,
            name=server.name,
            number=server.place,
            state=state,
            run_s=run_s,
            age_s=age_s,
            tags=server.tags,
        )

    def _new(self, number: int) -> Machine:
        """One that has never run."""
        name = self._options.naming.name_of(number)
        return Machine(id=f"i-{number}", name=name, number=number, state="stopped", run_s=0, age_s=EPOCH_S)

    def _machines(self) -> list[Machine]:
        running = [
            self._machine(server, state="stopping" if server.stopping else "running")
            for server in self._servers.values()
        ]
        return [*running, *self._stopped.values()]

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

    def _ping(self) -> None:
        self._hear([{"type": PING, "hostname": "scaler"}])
        self._at(self._now_s + PING_S, self._ping)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self.workers.on_event(event)

    def _tick(self) -> None:
        seen = self._gauge.read(self._now_s, len(self._visible), self._in_flight)
        counts = None if seen is None else Counts(visible=seen[0], in_flight=seen[1])
        _, orders = self.core.tick(counts, self._machines(), now_s=EPOCH_S + self._now_s)
        self._carry_out(orders)
        self._at(self._now_s + self._world.tick_s, self._tick)

    def _carry_out(self, orders: Orders) -> None:
        now = str(self._ec2_s)
        for ids, mark in ((orders.came_up, now), (orders.heard, f"{now} late")):
            for id in ids:
                self._servers[id].tags[READY] = mark
        self._drain(orders.dead, **{FAILED: f"{now} {orders.dead_boots}"})
        self._drain(orders.drain, **{DRAINING: now})
        self._start(orders.start)
