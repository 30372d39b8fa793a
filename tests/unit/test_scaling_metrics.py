"""Arrivals, boots and what the workers' events tell."""

from __future__ import annotations

from typing import Any

import pytest

from celery_sqs import events
from celery_sqs.pace import HEARTBEAT_S
from celery_sqs.scaler.estimates import FIRST, NOISE, OUTLIER, Arrivals, Believed, Boots, ServiceTime
from celery_sqs.scaler.machine import READY, Machine
from celery_sqs.scaler.observe import DESERTED_S, PATIENCE_S, ZERO_S, Phases
from celery_sqs.scaler.policies.base import BIN_S, BINS, Counts
from celery_sqs.scaler.workers import PATH_S, PING, SILENT_S, Workers
from faceapp.work.pace import with_seconds, worked_s
from tests.support import echo


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def counts(visible: int, in_flight: int = 0) -> Counts:
    return Counts(visible=visible, in_flight=in_flight)


# How far counts are believed.


def test_small_differences_are_noise() -> None:
    """Averaging is worth its cost: without it the nine workloads are 3 % dearer (E3)."""
    believed = Believed()
    seen = [believed.update(counts(n), done=0).visible for n in (100, 104, 97, 103, 96, 103, 97)]
    assert all(abs(each - 100) <= 2 for each in seen)


def test_what_finished_tasks_explain_is_expected() -> None:
    believed = Believed()
    believed.update(counts(95, 5), done=7)
    assert believed.update(counts(48, 2), done=57).outstanding == 50
    assert believed.update(counts(0, 0), done=107) == counts(0, 0)


def test_one_old_answer_lasts_no_longer_than_itself() -> None:
    """E3: an answer that is far off is passed on once, and not held for three looks."""
    believed = Believed()
    seen = [believed.update(counts(n), done=0).visible for n in (0, 0, 80, 0, 0)]
    assert seen == [0, 0, 80, 0, 0]


def test_more_is_believed_at_once() -> None:
    believed = Believed()
    assert [believed.update(counts(n), done=0).visible for n in (0, 50, 80)] == [0, 50, 80]


def test_nothing_is_compared_across_a_gap() -> None:
    believed = Believed()
    believed.update(counts(100), done=0)
    believed.clear()
    near = round(100 * (1 + NOISE / 2))
    assert believed.update(counts(near), done=0).outstanding == near


# Arrivals.


def test_arrivals_are_what_was_done_and_what_the_queue_grew_by() -> None:
    arrivals = Arrivals(0.0)
    # 10 at the start are from before; then 4 a second come and 2 a second are done.
    for second in range(20):
        arrivals.update(counts(10 + 2 * second), done=2 * second, now_s=float(second))
    assert arrivals.bins(20.0) == (16.0, 20.0, 20.0, 20.0)


def test_a_fall_that_was_wrong_is_set_against_the_rise_after_it() -> None:
    arrivals = Arrivals(0.0)
    for second, depth in ((0, 100), (4, 60), (6, 100), (11, 100)):
        arrivals.update(counts(depth), done=0, now_s=float(second))
    assert arrivals.bins(15.0) == (0.0, 20.0, 0.0)


def test_there_are_bins_of_one_minute_at_most() -> None:
    arrivals = Arrivals(0.0)
    arrivals.update(counts(0), done=0, now_s=0.0)
    arrivals.update(counts(7), done=0, now_s=1.0)
    assert arrivals.bins(BIN_S) == (7.0,)
    assert arrivals.bins(1e6) == (0.0,) * BINS


# Boots.


def test_boot_quantiles_are_the_settings_until_there_are_some() -> None:
    boots = Boots(45.0)
    assert boots.quantile(0.5) == boots.quantile(0.9) == 45.0
    for n in range(1, 11):
        boots.add(f"i-{n}", 1000, float(n))
        boots.add(f"i-{n}", 1000, float(n))
    assert boots.quantile(0.5) == 5.0
    assert boots.quantile(0.9) == 9.0


def test_the_last_forty_boots_count() -> None:
    boots = Boots(45.0)
    for n in range(100):
        boots.add("i-1", n, float(n))
    assert boots.quantile(0.0) == 60.0


# Seconds of a photo.


def test_the_first_photos_count_at_once() -> None:
    """E5: what was assumed is forgotten with the first measurement."""
    service = ServiceTime(1.0)
    service.add(0.035)
    assert service.seconds == 0.035
    for _ in range(20):
        service.add(0.035)
    assert service.seconds == pytest.approx(0.035)


def test_a_cold_first_photo_is_outvoted() -> None:
    service = ServiceTime(1.0)
    for seconds in (0.9, 0.03, 0.04, 0.03, 0.04)[:FIRST]:
        service.add(seconds)
    assert service.seconds == 0.04


def test_what_the_model_took_at_its_start_counts_until_a_photo_was_measured() -> None:
    """E5."""
    service = ServiceTime(1.0)
    service.hint(0.05)
    assert service.seconds == 0.05
    assert not service.measured
    service.add(0.03)
    service.hint(0.07)
    assert service.seconds == 0.03


def test_what_was_measured_before_a_restart_is_not_assumed() -> None:
    service = ServiceTime(1.0)
    service.recall(0.2)
    service.hint(5.0)
    assert service.seconds == 0.2
    service.add(0.3)
    assert 0.2 < service.seconds < 0.21


def test_one_photo_that_ran_into_its_limit_starts_no_fleet() -> None:
    service = ServiceTime(1.0)
    service.recall(0.03)
    service.add(60.0)
    assert service.seconds < 0.03 * (1 + OUTLIER / 20)


# What events tell.

HOST = "app-tier-instance-1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers(clock: Clock) -> Workers:
    return Workers(service_s=1.0, worked_s=worked_s, clock=clock)


def say(workers: Workers, *kinds: str, pid: int = 1, host: str = HOST, **more: Any) -> None:
    for kind in kinds:
        workers.on_event({"type": kind, "hostname": f"celery@{host}", "pid": pid, **more})


def test_a_worker_is_heard_and_says_goodbye(workers: Workers, clock: Clock) -> None:
    assert workers.heard_s(HOST) is None
    say(workers, "worker-online")
    clock.now_s += 3
    assert workers.heard_s(HOST) == 3
    assert workers.idle_s(HOST) == 3
    assert workers.left_s(HOST) is None
    say(workers, "worker-offline")
    assert workers.heard_s(HOST) is workers.idle_s(HOST) is None
    assert workers.left_s(HOST) == 0
    say(workers, "worker-online", pid=2)
    assert workers.left_s(HOST) is None


def test_what_a_worker_tells_after_its_goodbye_does_not_bring_it_back(workers: Workers, clock: Clock) -> None:
    say(workers, "worker-online", "worker-offline", timestamp=100.0)
    clock.now_s += 1
    say(workers, "task-received", "task-started", "task-succeeded", uuid="a", timestamp=101.0)
    say(workers, "worker-heartbeat", active=1, timestamp=99.0)  # overtaken on its way
    assert workers.left_s(HOST) == 1
    assert workers.idle_s(HOST) is None
    assert workers.done == 1
    say(workers, "worker-heartbeat", active=0, timestamp=160.0)
    assert workers.left_s(HOST) is None


def test_a_worker_is_busy_from_the_message_to_the_end(workers: Workers, clock: Clock) -> None:
    say(workers, "worker-online")
    say(workers, "task-received", "task-started", uuid="a")
    say(workers, "task-received", uuid="b")
    clock.now_s += 5
    say(workers, "task-succeeded", uuid="a", runtime=5.0)
    assert workers.idle_s(HOST) == 0
    say(workers, "task-started", "task-failed", uuid="b")
    clock.now_s += 2
    assert workers.idle_s(HOST) == 2
    assert workers.done == 2


def test_a_heartbeat_puts_right_what_lost_events_left(workers: Workers, clock: Clock) -> None:
    say(workers, "task-received", "task-started", uuid="a")
    clock.now_s += 100
    say(workers, "worker-heartbeat", active=1)
    assert workers.idle_s(HOST) == 0
    say(workers, "worker-heartbeat", active=0)
    clock.now_s += 4
    assert workers.idle_s(HOST) == 4


def test_the_service_time_is_an_average_by_instance(workers: Workers) -> None:
    """Two at once, half a second each: four a second. The heartbeat says how many run (E1)."""
    say(workers, "worker-heartbeat", active=2)
    for n in range(200):
        say(workers, "task-received", "task-started", uuid=f"a{n}")
        say(workers, "task-received", "task-started", uuid=f"b{n}")
        say(workers, "task-succeeded", uuid=f"a{n}", runtime=0.5)
        say(workers, "task-succeeded", uuid=f"b{n}", runtime=0.5)
    assert workers.service_s == pytest.approx(0.25, rel=0.01)


def test_only_recognitions_are_measured(workers: Workers) -> None:
    """C3: not a page of forgetting, not a photo that expired, not what a try waited for S3."""
    lines = ("forgotten in 100 results, more to do", "failed: expired", "enrolled: obama, 2 photos", "None", "0.01")
    for n, line in enumerate(lines):
        say(workers, "task-started", "task-succeeded", uuid=str(n), result=line, runtime=0.001)
    say(workers, "task-started", "task-failed", uuid="f", runtime=0.001)
    assert workers.service_s == 1.0
    assert workers.done == len(lines) + 1
    say(workers, "task-started", "task-succeeded", uuid="r", result=with_seconds("done: no_face", 0.25), runtime=30.0)
    assert workers.service_s == 0.25


def test_a_worker_from_before_an_upgrade_is_measured_by_its_runtime(workers: Workers) -> None:
    say(workers, "task-succeeded", uuid="old", result="done: obama (1 face)", runtime=0.4)
    assert workers.service_s == 0.4


def test_a_worker_says_how_many_it_works_on_and_what_its_model_takes(workers: Workers) -> None:
    """E5: the seconds are those of the instance, which has two processes."""
    say(workers, "worker-online", processes=2, trial_s=0.1)
    assert workers.service_s == 0.05
    say(workers, "task-succeeded", uuid="a", result=with_seconds("done: obama (1 face)", 0.06))
    assert workers.service_s == 0.03


def test_an_end_before_its_start_leaves_nothing_behind(workers: Workers, clock: Clock) -> None:
    """E1: SNS and SQS promise no order."""
    say(workers, "worker-online", timestamp=100.0)
    say(workers, "task-succeeded", uuid="a", runtime=0.5, timestamp=102.0)
    say(workers, "task-started", uuid="a", timestamp=101.5)
    say(workers, "task-received", uuid="a", timestamp=101.4)
    clock.now_s += 1
    assert workers.idle_s(HOST) == 1
    assert workers.done == 1
    say(workers, "task-succeeded", uuid="a", runtime=0.5, timestamp=102.0)
    assert workers.done == 1, "the same event twice"


def test_a_lost_end_is_known_from_the_next_start(workers: Workers, clock: Clock) -> None:
    """E1: one process runs one task."""
    say(workers, "worker-online", processes=1, timestamp=100.0)
    for n in range(50):
        say(workers, "task-received", "task-started", uuid=f"lost-{n}", timestamp=101.0 + n)
    say(workers, "task-received", "task-started", uuid="last", timestamp=200.0)
    say(workers, "task-succeeded", uuid="last", runtime=0.5, timestamp=201.0)
    clock.now_s += 2
    assert workers.idle_s(HOST) == 2


def test_a_worker_whose_coming_up_is_heard_last_is_busy(workers: Workers) -> None:
    """E1: its first task overtook it."""
    say(workers, "task-received", "task-started", uuid="a", timestamp=101.0)
    say(workers, "worker-online", timestamp=100.0)
    assert workers.idle_s(HOST) == 0
    assert workers.online_heard(HOST)
    say(workers, "worker-online", timestamp=100.0)
    assert workers.idle_s(HOST) == 0


def test_the_next_runs_worker_is_heard_under_the_same_number_though_its_coming_up_was_lost(
    workers: Workers, clock: Clock
) -> None:
    """E1: after a boot, process ids repeat."""
    say(workers, "worker-online", pid=7, timestamp=100.0)
    clock.now_s += 100
    workers.expect_new(HOST, age_s=30)
    say(workers, "task-succeeded", pid=7, uuid="old", timestamp=165.0)
    assert workers.heard_s(HOST) is None
    say(workers, "task-received", pid=7, uuid="new", timestamp=195.0)
    assert workers.heard_s(HOST) == 0


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": 7, "hostname": "x"},
        {"type": "task-succeeded"},
        {"type": "task-succeeded", "hostname": "celery@x", "runtime": "long"},
        {"type": "task-succeeded", "hostname": "celery@x", "runtime": -5},
        {"type": "worker-heartbeat", "hostname": "celery@x", "active": None},
        {"type": "task-sent", "hostname": "gen1@web"},
    ],
)
def test_odd_events_do_no_harm(workers: Workers, event: dict[str, Any]) -> None:
    workers.on_event(event)
    assert workers.service_s == 1.0
    assert workers.heard_s("web") is None


def test_the_last_runs_worker_says_nothing_about_this_run(workers: Workers, clock: Clock) -> None:
    say(workers, "worker-online", "task-received", pid=7, uuid="a")
    clock.now_s += 100
    workers.expect_new(HOST, age_s=10)
    assert workers.heard_s(HOST) is None
    say(workers, "task-succeeded", "worker-heartbeat", "worker-offline", pid=7, uuid="a", active=0)
    assert workers.heard_s(HOST) is workers.left_s(HOST) is None
    assert workers.done == 1
    say(workers, "worker-online", pid=7)
    clock.now_s += 50
    workers.expect_new(HOST, age_s=60)
    assert workers.heard_s(HOST) == 50


# Phases.


def machine(age_s: float, state: str = "running", **tags: str) -> Machine:
    return Machine(id="i-1", name=HOST, number=1, state=state, run_s=5000, age_s=age_s, tags=tags)


def phase(phases: Phases, machine: Machine) -> str:
    [found] = phases.instances([machine], counts(5), boot_s=30.0)
    return found.phase


def test_an_instance_is_ready_when_its_worker_was_heard(workers: Workers, clock: Clock) -> None:
    phases = Phases(workers, clock=clock)
    say(workers, PING, host="scaler")
    assert phase(phases, machine(3.0, "pending")) == "booting"
    assert phase(phases, machine(500.0)) == "booting"
    say(workers, "worker-online")
    assert phase(phases, machine(30.0)) == "ready"
    assert phases.newly_ready([machine(30.0)], measured=True) == ["i-1"]
    assert phases.newly_ready([machine(30.0)], measured=False) == []
    assert phases.newly_ready([machine(30.0, **{READY: "5030"})], measured=True) == []


def test_a_marked_instance_is_ready_before_it_is_heard_again(workers: Workers, clock: Clock) -> None:
    """The scaler was started anew."""
    phases = Phases(workers, clock=clock)
    assert phase(phases, machine(40.0, **{READY: "5030"})) == "ready"
    assert phase(phases, machine(40.0, **{READY: "4000"})) == "booting"


def test_without_events_the_usual_boot_time_makes_it_ready(workers: Workers, clock: Clock) -> None:
    phases = Phases(workers, clock=clock)
    assert phase(phases, machine(31.0)) == "booting"
    clock.now_s += PATIENCE_S + 1
    assert phase(phases, machine(29.0)) == "booting"
    assert phase(phases, machine(31.0)) == "ready"
    say(workers, PING, host="scaler")
    assert phase(phases, machine(31.0)) == "booting"
    clock.now_s += PATH_S
    assert phase(phases, machine(31.0)) == "ready"


def test_without_events_zero_for_a_while_is_idle_and_nothing_else_is(workers: Workers, clock: Clock) -> None:
    phases = Phases(workers, clock=clock)

    def idle_s(seen: Counts | None) -> float | None:
        [found] = phases.instances([machine(100.0, **{READY: "5030"})], seen, boot_s=30.0)
        return found.idle_s

    assert idle_s(counts(0)) is None
    clock.now_s += ZERO_S
    assert idle_s(counts(0)) == ZERO_S
    assert idle_s(None) is None
    assert idle_s(counts(0)) is None
    clock.now_s += ZERO_S
    assert idle_s(counts(0, in_flight=1)) is None


def test_a_worker_that_went_silent_does_not_count(workers: Workers, clock: Clock) -> None:
    phases = Phases(workers, clock=clock)
    marked = machine(400.0, **{READY: "5030"})
    say(workers, "worker-online")
    clock.now_s += SILENT_S + 1
    assert phase(phases, marked) == "ready", "nobody is heard: it may be the path"
    for _ in range(int(SILENT_S / HEARTBEAT_S)):
        say(workers, PING, host="scaler")
        assert phase(phases, marked) == "ready", "it has had no chance to be heard"
        clock.now_s += HEARTBEAT_S
    clock.now_s += 1
    assert phase(phases, marked) == "booting"
    say(workers, "worker-heartbeat", active=0)
    assert phase(phases, marked) == "ready"


def test_a_worker_that_left_makes_its_instance_drain(workers: Workers, clock: Clock) -> None:
    phases = Phases(workers, clock=clock)
    marked = machine(400.0, **{READY: "5030"})
    say(workers, "worker-online", "worker-offline")
    assert phase(phases, marked) == "draining"
    assert phases.deserted([marked]) == []
    clock.now_s += DESERTED_S + 1
    assert phases.deserted([marked]) == ["i-1"]
    say(workers, "worker-online", pid=2)
    assert phase(phases, marked) == "ready"
    assert phases.deserted([marked]) == []


def test_workers_beat_slowly_and_send_events_without_an_option() -> None:
    class Worker:
        options: dict[str, Any]

    worker = Worker()
    worker.options = {"heartbeat_interval": None}
    events.beat_slowly(worker)
    assert worker.options == {"heartbeat_interval": HEARTBEAT_S}
    worker.options = {"heartbeat_interval": 5}
    events.beat_slowly(worker)
    assert worker.options == {"heartbeat_interval": 5}
    assert echo.app.conf.worker_send_task_events
