"""AWS calls for tasks and of an idle worker, beside Celery's own way on SQS: `python -m benchmarks.calls`.

An embedded AWS of its own, one worker of two processes with Celery's defaults, and this process, which sends the tasks
and gets their results one after the other. "stock" is Celery with kombu's SQS transport, and Celery's S3 backend where
there are results; it has no events and no remote control on SQS. Idle is the same worker afterwards.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from celery import Celery

import celery_sqs
from benchmarks.broker import Site, calls, celery, started
from benchmarks.table import print_table

BUCKET = "bench-results"
KIND = "BENCH_KIND"
NOTES = "BENCH_NOTES"
SERVICES = ("s3", "sns", "sqs")
BESIDE = {
    "celery_sqs, no results": "stock, no results",
    "celery_sqs, replies": "stock, S3",
    "celery_sqs, bucket": "stock, S3",
}
"""What is measured, and what it is to be no more than."""
KINDS = ("stock, no results", "celery_sqs, no results", "stock, S3", "celery_sqs, replies", "celery_sqs, bucket")
CONCURRENCY = 2
PATIENCE_S = 900.0
SETTLE_S = 5.0
"""Until the last messages are deleted."""
LONG_POLL_S = 20.0


def make_app(kind: str) -> Celery:
    """The application of this kind; its queues have names of their own."""
    prefix = f"calls{KINDS.index(kind)}"
    made = Celery("calls", set_as_current=False)
    if kind.startswith("celery_sqs"):
        bucket = BUCKET if kind.endswith("bucket") else ""
        celery_sqs.configure(made, celery_sqs.Options(prefix=prefix, results_bucket=bucket))
    else:
        made.conf.update(
            broker_url="sqs://",
            broker_transport_options={"queue_name_prefix": f"{prefix}-"},
            broker_connection_retry_on_startup=True,
        )
    if kind.endswith("S3"):
        made.conf.update(
            result_backend="s3",
            s3_bucket=BUCKET,
            s3_endpoint_url=os.environ["AWS_ENDPOINT_URL"],
            s3_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )
    made.conf.task_ignore_result = kind.endswith("no results")
    made.task(note, name="benchmarks.note")
    return made


def note(n: int) -> int:
    """Note that a task has been done, and return what it was called with."""
    with open(os.environ[NOTES], "a") as notes:
        notes.write(".")
    return n


if KIND in os.environ:  # a worker's process
    app = make_app(os.environ[KIND])


def measure(kind: str, *, tasks: int, idle_s: float) -> tuple[Counter[str], Counter[str]]:
    """The calls for so many tasks, and those of an idle worker in `idle_s`."""
    with started() as (services, environ):
        site = Site(services, environ)
        boto3.setup_default_session()  # each embedded AWS has a key of its own
        client: Any = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        notes = services.log_folder / "notes"
        notes.touch()
        environ |= {KIND: kind, NOTES: str(notes)}
        sender = make_app(kind)
        command = celery("benchmarks.calls", "worker", "--loglevel", "INFO", "-c", str(CONCURRENCY))
        worker = services.start("worker", command)
        services.wait_for(lambda: " ready." in worker.log.read_text(), timeout_s=240, what="the worker is not ready")
        run(sender, notes, 1)  # what is asked once: queues' URLs and attributes
        calls(site.endpoint, reset=True)
        run(sender, notes, tasks)
        busy = calls(site.endpoint, SERVICES)
        time.sleep(LONG_POLL_S)
        calls(site.endpoint, reset=True)
        time.sleep(idle_s)
        return busy, calls(site.endpoint, SERVICES)


def run(sender: Celery, notes: Path, tasks: int) -> None:
    """Send tasks and wait until they are done, for their results if they have any."""
    before = notes.stat().st_size
    task = sender.tasks["benchmarks.note"]
    sent = [task.delay(n) for n in range(tasks)]
    if not sender.conf.task_ignore_result:
        assert [each.get(timeout=PATIENCE_S) for each in sent] == list(range(tasks))
    until_s = time.monotonic() + PATIENCE_S
    while notes.stat().st_size < before + tasks:
        assert time.monotonic() < until_s, "tasks are lost"
        time.sleep(0.1)
    time.sleep(SETTLE_S)


def report(title: str, found: Mapping[str, Counter[str]]) -> list[str]:
    """Print the table; returns the kinds that made more calls than what they stand beside."""
    names = sorted({name for each in found.values() for name in each})
    total = {kind: sum(each.values()) for kind, each in found.items()}
    rows = [[name, *(str(found[kind][name]) for kind in found)] for name in names]
    print_table([title, *found], [*rows, ["all", *(str(total[kind]) for kind in found)]])
    return [kind for kind, other in BESIDE.items() if {kind, other} <= found.keys() and total[kind] > total[other]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    given = parser.parse_args()
    found = {kind: measure(kind, tasks=given.tasks, idle_s=given.idle_s) for kind in given.only}
    more = report(f"calls for {given.tasks:,} tasks", {kind: busy for kind, (busy, _) in found.items()})
    more += report(f"calls of an idle worker in {given.idle_s:g} s", {kind: idle for kind, (_, idle) in found.items()})
    if more:
        sys.exit(f"more calls than stock: {', '.join(more)}")


if __name__ == "__main__":
    main()
