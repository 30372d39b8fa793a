"""Priorities on SQS, with real workers on an embedded AWS of its own: `python -m benchmarks.priorities`.

- `mix`: many tasks over four priorities wait before the workers start. The table says for each step when its first and
  last task began and the longest time in which none of it did (a step that starves has a long one). As soon as those of
  the highest are done, one of these is sent now and then while the lower ones still wait: how long until it begins.
- `idle`: requests to SQS that an idle worker makes in an hour, without priorities and with four steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from celery import Celery

import celery_sqs
from benchmarks.broker import Site, calls, started
from benchmarks.table import print_table
from faceapp.local.processes import Services

STEPS = (0, 3, 6, 9)
NOTES = "BENCH_NOTES"
PROBE_EVERY_S = 0.3
PROBED = 0.95
"""Of all tasks are done when no more of the highest are sent among them."""
LONG_POLL_S = 20.0
GOAL_S = 1.0

app = Celery("priorities", set_as_current=False)
celery_sqs.configure(
    app,
    celery_sqs.Options(
        prefix=os.environ.get("BENCH_PREFIX", "bench"),
        priority_steps=tuple(json.loads(os.environ.get("BENCH_STEPS", "[]"))),
    ),
)
app.conf.task_acks_late = True


@app.task(name="benchmarks.note")
def note(priority: int, sent_s: float, kind: str) -> None:
    """Note when the task begins, with what it is called with."""
    with open(os.environ[NOTES], "a") as notes:
        notes.write(json.dumps([kind, priority, sent_s, time.time()]) + "\n")


def sender(prefix: str, steps: Sequence[int]) -> Celery:
    """The same app for this process."""
    found = Celery("sender", set_as_current=False)
    celery_sqs.configure(found, celery_sqs.Options(prefix=prefix, priority_steps=tuple(steps)))
    return found


def send(found: Celery, priority: int, kind: str) -> None:
    found.send_task("benchmarks.note", args=[priority, time.time(), kind], priority=priority, ignore_result=True)


def start_workers(services: Services, count: int, concurrency: int) -> None:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.priorities", "worker", "--loglevel", "INFO"]
    workers = [
        services.start(f"worker {n}", [*command, "--concurrency", str(concurrency), "--hostname", f"w{n}@bench"])
        for n in range(count)
    ]
    services.wait_for(
        lambda: all(" ready." in each.log.read_text() for each in workers), timeout_s=240, what="a worker is not ready"
    )


def noted(path: Path, kind: str) -> list[tuple[int, float, float]]:
    """Priority, sending and beginning of the tasks of this kind that have begun, in that order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(((p, sent, begun) for k, p, sent, begun in lines if k == kind), key=lambda each: each[2])


def mix(count: int, workers: int, concurrency: int) -> bool:
    """Prints the table; whether all were done and none of the highest waited for a second."""
    with started() as (services, environ):
        Site(services, environ)
        path = services.log_folder / "notes"
        environ |= {"BENCH_PREFIX": "mix", "BENCH_STEPS": json.dumps(STEPS), NOTES: str(path)}
        found = sender("mix", STEPS)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: send(found, STEPS[n % len(STEPS)], "mix"), range(count)))
        from_s = time.time()
        start_workers(services, workers, concurrency)
        done = noted(path, "mix")
        while len(done) < count:
            time.sleep(PROBE_EVERY_S)
            done = noted(path, "mix")
            if sum(each[0] == 0 for each in done) == count // len(STEPS) and len(done) < PROBED * count:
                send(found, 0, "probe")
        probes = [begun - sent for _, sent, begun in noted(path, "probe")]
    rows = []
    for step in STEPS:
        begun = [each[2] - from_s for each in done if each[0] == step]
        gaps = [after - before for before, after in pairwise(begun)]
        rows.append([str(step), str(len(begun)), *(f"{each:.1f}" for each in (begun[0], begun[-1], max(gaps)))])
    print_table(["priority", "tasks", "first begins (s)", "last begins (s)", "longest without one (s)"], rows)
    print(
        f"{len(probes)} of the highest priority, sent among the others, began after {statistics.median(probes):.2f} s "
        f"(median), {max(probes):.2f} s (the longest).\n"
    )
    return max(probes) < GOAL_S


def idle(seconds: float) -> None:
    """Prints the requests to SQS that an idle worker makes in an hour."""
    rows = []
    for steps in ((), STEPS):
        with started() as (services, environ):
            site = Site(services, environ)
            environ |= {"BENCH_PREFIX": "idle", "BENCH_STEPS": json.dumps(steps), NOTES: os.devnull}
            start_workers(services, 1, 1)
            time.sleep(LONG_POLL_S)
            calls(site.endpoint, reset=True)
            time.sleep(seconds)
            found = calls(site.endpoint)
        receives = sum(count for name, count in found.items() if "ReceiveMessage" in name)
        others = sum(count for name, count in found.items() if name.startswith("SQS")) - receives
        hourly = [f"{3600 / seconds * each:.0f}" for each in (receives, others)]
        rows.append([", ".join(map(str, steps)) or "none", *hourly])
    print_table(["priority steps", "receives in an hour", "other requests to SQS"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mix", "idle"))
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--idle-s", type=float, default=120.0)
    given = parser.parse_args()
    if given.only != "idle" and not mix(given.tasks, given.workers, given.concurrency):
        sys.exit(f"one of the highest priority waited longer than {GOAL_S:g} s")
    if given.only != "mix":
        idle(given.idle_s)


if __name__ == "__main__":
    main()
