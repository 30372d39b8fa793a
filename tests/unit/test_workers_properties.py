"""The picture of the workers, whatever becomes of their events: lost, doubled, late, in any order, garbage."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_sqs.pace import HEARTBEAT_S
from celery_sqs.scaler.workers import SILENT_S, Workers
from faceapp.work.pace import with_seconds, worked_s

HOSTS = [f"app-tier-instance-{n}" for n in (1, 2, 3)]
WORKED_S = 0.5
LATE_S = 2.0


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def history(rng: random.Random, seconds: float) -> list[dict[str, Any]]:
    """What three workers of one process each send while they work, rest and work again; they end with nothing to do."""
    events: list[dict[str, Any]] = []
    for number, host in enumerate(HOSTS):

        def say(at_s: float, kind: str, host: str = host, number: int = number, **more: Any) -> None:
            events.append({"type": kind, "hostname": f"celery@{host}", "pid": number, "timestamp": at_s, **more})

        now_s, n = rng.uniform(1, 5), 0
        say(now_s, "worker-online", processes=1)
        tasks: list[tuple[float, float]] = []
        while now_s < seconds:
            n += 1
            began_s = now_s + 0.01 + rng.choice((0.0, 0.0, rng.expovariate(0.2)))
            now_s = began_s + WORKED_S
            tasks.append((began_s, now_s))
            say(began_s - 0.001, "task-received", uuid=f"{host}-{n}")
            say(began_s, "task-started", uuid=f"{host}-{n}")
            line = with_seconds("done: no_face", WORKED_S)
            say(now_s, "task-succeeded", uuid=f"{host}-{n}", result=line, runtime=WORKED_S)
        beat_s = rng.uniform(1, HEARTBEAT_S)
        while beat_s < seconds + 3 * HEARTBEAT_S:
            say(beat_s, "worker-heartbeat", active=int(any(start <= beat_s < end for start, end in tasks)))
            beat_s += HEARTBEAT_S
    return events


def deliver(
    events: list[dict[str, Any]], rng: random.Random, *, lost: float, doubled: float, late_s: float
) -> list[tuple[float, dict[str, Any]]]:
    """When each arrives, in the order of arrival."""
    copies = [each for each in events if rng.random() >= lost]
    copies += [each for each in copies if rng.random() < doubled]
    return sorted(((each["timestamp"] + rng.uniform(0, late_s), each) for each in copies), key=lambda pair: pair[0])


def play(arrivals: list[tuple[float, dict[str, Any]]]) -> tuple[Workers, Clock]:
    clock = Clock()
    began_s = clock.now_s
    workers = Workers(service_s=1.0, worked_s=worked_s, clock=clock)
    for at_s, event in arrivals:
        clock.now_s = max(clock.now_s, began_s + at_s)
        workers.on_event(event)
    return workers, clock


seeds = st.integers(0, 2**32)
slowly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slowly
@given(seed=seeds, lost=st.sampled_from([0.0, 0.1, 0.5]), doubled=st.sampled_from([0.0, 0.1, 1.0]))
def test_no_ghost_outlives_the_heartbeats(seed: int, lost: float, doubled: float) -> None:
    """E1: after the work, and heartbeats that arrive, nobody is busy; and nobody is who is not there."""
    rng = random.Random(seed)
    events = history(rng, 120.0)
    work = [each for each in events if each["type"] != "worker-heartbeat"]
    arrivals = deliver(work, rng, lost=lost, doubled=doubled, late_s=LATE_S)
    beats = [each for each in events if each["type"] == "worker-heartbeat"]
    arrivals += deliver(beats, rng, lost=0.0, doubled=doubled, late_s=LATE_S)
    workers, clock = play(sorted(arrivals, key=lambda pair: pair[0]))
    assert all((workers.idle_s(host) or 0.0) > 0 for host in HOSTS)
    assert all((workers.heard_s(host) or 0.0) < SILENT_S for host in HOSTS)
    clock.now_s += 1
    assert workers.idle_s("app-tier-instance-9") is None


@slowly
@given(seed=seeds, lost=st.sampled_from([0.0, 0.001, 0.1, 0.5]), late_s=st.sampled_from([0.0, 0.3, 2.0]))
def test_the_service_time_is_true_whatever_is_lost_or_late(seed: int, lost: float, late_s: float) -> None:
    """E1: it was 0.0001 s with 0.3 s of disorder."""
    rng = random.Random(seed)
    workers, _ = play(deliver(history(rng, 60.0), rng, lost=lost, doubled=0.1, late_s=late_s))
    assert abs(workers.service_s - WORKED_S) < 1e-6


@slowly
@given(seed=seeds, doubled=st.sampled_from([0.0, 0.1, 1.0]), late_s=st.sampled_from([0.0, 2.0, 30.0]))
def test_each_end_counts_once_in_any_order(seed: int, doubled: float, late_s: float) -> None:
    """E1."""
    rng = random.Random(seed)
    events = history(rng, 60.0)
    workers, _ = play(deliver(events, rng, lost=0.0, doubled=doubled, late_s=late_s))
    assert workers.done == sum(each["type"] == "task-succeeded" for each in events)


@slowly
@given(seed=seeds)
def test_in_order_and_whole_a_worker_is_busy_while_it_works(seed: int) -> None:
    """E1: nothing of this makes the ordinary case less true."""
    busy: dict[str, str] = {}
    clock = Clock()
    workers = Workers(service_s=1.0, worked_s=worked_s, clock=clock)
    for event in sorted(history(random.Random(seed), 60.0), key=lambda each: float(each["timestamp"])):
        clock.now_s = 1000.0 + event["timestamp"]
        workers.on_event(event)
        host = event["hostname"].removeprefix("celery@")
        if event["type"] == "task-started":
            busy[host] = event["uuid"]
        elif event["type"] == "task-succeeded":
            del busy[host]
        if event["type"] in ("task-started", "task-succeeded"):
            clock.now_s += 0.001
            assert (workers.idle_s(host) == 0) == (host in busy)


garbage = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400), st.binary(max_size=3)
)
odd_events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["worker-online", "worker-heartbeat", "worker-offline", "task-received", "task-started", "task-succeeded"]
        ),
        "hostname": st.one_of(garbage, st.sampled_from([f"celery@{host}" for host in HOSTS])),
    },
    optional={
        name: garbage
        for name in ("pid", "timestamp", "uuid", "active", "runtime", "processes", "trial_s", "result", "clock")
    },
)


@slowly
@given(events=st.lists(odd_events, max_size=30))
def test_garbage_does_no_harm(events: list[dict[str, Any]]) -> None:
    """E1: whatever comes, there is a number for everything."""
    clock = Clock()
    workers = Workers(service_s=1.0, worked_s=worked_s, clock=clock)
    for event in events:
        workers.on_event(event)
        clock.now_s += 0.5
        workers.expect_new(HOSTS[0], age_s=1.0)
    assert 0 <= workers.service_s <= 86_400
    for host in HOSTS:
        assert all(value is None or value >= 0 for value in (workers.idle_s(host), workers.heard_s(host)))
