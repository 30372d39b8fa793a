"""What events and remote control over SNS and SQS cost, and how fast they are: `python -m benchmarks.broker`.

Four measurements, each with real processes on an embedded AWS of its own; `--only` takes some of them.

- `lag`: from a task's end to Flower's page. A task notes the time as the last thing that it does and answers with it;
  the page has it when Flower's JSON, asked all the time over HTTP, says SUCCESS. Tasks wait instead of computing, so
  that fifteen worker processes on few cores behave like fifteen machines, and events are not measured as a shortage of
  CPU. Once with a steady load of which the workers are two thirds busy, once with all tasks at once.
- `ping`: `celery -A faceapp.tasks inspect ping --timeout 3` as a process, with the same fifteen workers. How long it
  takes includes Python's start.
- `load`: photos through the whole path (`benchmarks.path`) with two workers of one process, as two small instances,
  alternately with events and control off (Celery's own options do that) and on, with Flower listening; and the
  requests to SNS and SQS as the emulator logs them, until all answers and events have come. The peer is
  `benchmarks.broker_plain`: kombu's and Celery's own events and control, repaired just so far that they work.
- `idle`: requests to SNS and SQS that one more idle worker makes in an hour: what three workers make more than one,
  halved, in the same minutes on four systems: without listeners (its own), and with Flower and the scaler listening.
  What happens rarer than once in `--idle-s` (a queue's note of its use: every ten minutes) needs a longer one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil

from benchmarks.broker_plain import HEARTBEAT_S
from benchmarks.live import photos_in_turn
from benchmarks.path import System, burst, cpu_s, free_port, users_environ
from benchmarks.table import print_table
from celery_sqs.transport.fanout import FANOUT_EXCHANGES, topic_name
from faceapp.config import Settings
from faceapp.local.processes import Service, Services
from faceapp.local.up import IMAGE
from faceapp.operations.samples import PEOPLE, sample_photos
from faceapp.security import credential
from faceapp.stack import data_tier as stack

LAG_GOAL_S = 2.0
PING_TIMEOUT_S = 3
THROUGHPUT_GOAL = 0.9
IDLE_GOAL = 600
WORK_S = 0.5
BUSY = 2 / 3
CONCURRENCY = 100
WARM_UP = 40
SETTLE_S = 5.0
GRACE_S = 40.0
"""To end a worker in."""
LONG_POLL_S = 20
PAUSE_S = 7.0
"""Between starts of idle workers: heartbeats at the same moment would be received with one request."""
POLL_S = 0.05
OFF = [
    "--without-heartbeat",
    "--without-gossip",
    "--without-mingle",
    "--",
    "worker.send_task_events=off",
    "worker.enable_remote_control=off",
]
"""Celery's options for a worker that says nothing and takes no orders."""
PLAIN = ["--heartbeat-interval", str(HEARTBEAT_S)]


@dataclass(frozen=True)
class Variant:
    """How workers and Flower are started."""

    name: str
    app: str
    options: list[str] = field(default_factory=list)
    flower: list[str] = field(default_factory=list)
    """Flower's command; nobody listens where there is none."""


def celery(app: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", app, *arguments]


PLAIN_APP = "benchmarks.broker_plain"
FACEAPP_FLOWER = [sys.executable, "-m", "faceapp", "flower"]
ON_VARIANT = Variant("faceapp, on", "faceapp.tasks", flower=FACEAPP_FLOWER)
OFF_VARIANT = Variant("faceapp, off", "faceapp.tasks", OFF)
PLAIN_ON = Variant("plain, on", PLAIN_APP, PLAIN, celery(PLAIN_APP, "flower"))
PLAIN_OFF = Variant("plain, off", PLAIN_APP, OFF)
ECHO = Variant("faceapp", "benchmarks.broker_echo", flower=FACEAPP_FLOWER)
PLAIN_ECHO = Variant("plain", PLAIN_APP, PLAIN, celery(PLAIN_APP, "flower"))


class Site:
    """An embedded AWS with the stack in it, and the processes that are started on it."""

    def __init__(self, services: Services, environ: dict[str, str]) -> None:
        self.services = services
        # The services have this very dict as their environment.
        environ |= credential.fresh()
        aws = services.start("aws", [sys.executable, "-m", "faceapp.local.aws", "--port", "0"])
        services.wait_for(lambda: "listening on" in aws.log.read_text(), timeout_s=60, what="no embedded AWS")
        self.endpoint = aws.log.read_text().rsplit("listening on ", 1)[1].split()[0]
        self.environ = environ
        environ |= {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(environ)
        self.settings = Settings.from_environ(environ)
        stack.apply(self.settings)


@contextmanager
def started() -> Iterator[tuple[Services, dict[str, str]]]:
    """Services, and the environment that they share: nothing of the caller's AWS, and ports that are free."""
    environ = {
        **users_environ(),
        "PYTHONUNBUFFERED": "1",
        "FACEAPP_QUEUE_WAIT_S": str(LONG_POLL_S),
        "FACEAPP_FLOWER_PORT": str(free_port()),
        "FACEAPP_SCALER_PORT": str(free_port()),
    }
    # Flower's own command takes these names; without the second its JSON asks for a password.
    environ |= {"FLOWER_PORT": environ["FACEAPP_FLOWER_PORT"], "FLOWER_UNAUTHENTICATED_API": "true"}
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder), environ, grace_s=GRACE_S) as services:
        yield services, environ


def calls(endpoint: str, services: Sequence[str] = ("sns", "sqs"), *, reset: bool = False) -> Counter[str]:
    """Requests to these services by operation since the last reset."""
    headers = {"Authorization": f"Bearer {os.environ['AWS_ACCESS_KEY_ID']}"}
    request = urllib.request.Request(f"{endpoint}/faceapp/calls", headers=headers, method="DELETE" if reset else "GET")
    with urllib.request.urlopen(request) as answer:
        counts = json.load(answer)["calls"]
    return Counter(
        {f"{name.upper()} {operation}": n for name in services for operation, n in counts.get(name, {}).items()}
    )


def start_workers(services: Services, variant: Variant, count: int, *, pause_s: float = 0.0) -> list[Service]:
    """Workers with one process each, ready; `pause_s` between the starts."""
    workers: list[Service] = []
    for n in range(1, count + 1):
        time.sleep(pause_s if workers else 0.0)
        command = celery(variant.app, "worker", "--loglevel", "INFO", "-n", f"w{n}@host", "-c", "1", *variant.options)
        workers.append(services.start(f"worker {n}", command))
    services.wait_for(
        lambda: all(" ready." in each.log.read_text() for each in workers), timeout_s=240, what="a worker is not ready"
    )
    return workers


class Flower:
    """A Flower that answers over HTTP."""

    def __init__(self, services: Services, command: list[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.service = services.start("flower", command)
        services.wait_for(self._answers, timeout_s=60, what="Flower does not answer")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def succeeded(self) -> dict[str, dict[str, Any]]:
        """The tasks that its page shows as done, by id."""
        headers = {"Authorization": f"Bearer {os.environ['FACEAPP_LOCAL_KEY']}"}
        request = urllib.request.Request(f"{self.url}/api/tasks?state=SUCCESS", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, dict[str, Any]] = json.load(answer)
        return found


def forget_topics(settings: Settings) -> None:
    """Delete the topics that the template made: kombu makes its own, and SNS refuses the same ones with other tags."""
    sns: Any = boto3.client("sns")
    for topic in sns.list_topics()["Topics"]:
        if topic["TopicArn"].endswith(tuple(topic_name(settings.prefix, each) for each in FANOUT_EXCHANGES)):
            sns.delete_topic(TopicArn=topic["TopicArn"])


# lag and ping


@dataclass(frozen=True)
class Lag:
    """How late tasks were on the page: seconds for each that was seen, of `count` that were sent."""

    name: str
    lags_s: list[float]
    count: int


def lag(flower: Flower, app: Any, name: str, *, count: int, per_s: float) -> Lag:
    """Send `count` tasks, `per_s` a second (0: at once), and wait until the page shows them all as done."""
    seen_s: dict[str, float] = {}
    ended_s: dict[str, float] = {}
    sent: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            tasks = flower.succeeded()
            now_s = time.time()
            for id, task in tasks.items():
                if id not in seen_s:
                    seen_s[id], ended_s[id] = now_s, float(task["result"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    from_s = time.monotonic()
    for n in range(count):
        if per_s:
            time.sleep(max(0.0, from_s + n / per_s - time.monotonic()))
        sent.add(str(app.send_task("benchmarks.work", [WORK_S])))
    deadline_s = time.monotonic() + 60 + count * WORK_S
    while not sent <= set(seen_s) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    over.set()
    watcher.join()
    return Lag(name, sorted(seen_s[id] - ended_s[id] for id in sent if id in seen_s), count)


@dataclass(frozen=True)
class Ping:
    """One `celery inspect ping`: who answered, when the last one's line came, when the command ended."""

    answered: int
    last_s: float
    command_s: float


def ping(app: str, environ: dict[str, str]) -> Ping:
    started_s = time.monotonic()
    command = celery(app, "inspect", "ping", "--timeout", str(PING_TIMEOUT_S))
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    answered, last_s = 0, float("nan")
    for line in process.stdout:
        if re.match(r"->\s.*: OK", line):
            answered, last_s = answered + 1, time.monotonic() - started_s
    process.wait()
    return Ping(answered, last_s, time.monotonic() - started_s)


def measure_workers(options: argparse.Namespace) -> tuple[list[Lag], dict[str, list[Ping]]]:
    """`lag` and `ping`, first ours and then the peer."""
    lags: list[Lag] = []
    pings: dict[str, list[Ping]] = {}
    with started() as (services, environ):
        site = Site(services, environ)
        from benchmarks.broker_echo import app  # its settings are the environment's

        for variant, pinged in ((ECHO, "faceapp.tasks"), (PLAIN_ECHO, PLAIN_APP)):
            if variant is PLAIN_ECHO:
                forget_topics(site.settings)
            flower = Flower(services, variant.flower, site.settings.flower_port)
            workers = start_workers(services, variant, options.workers)
            time.sleep(SETTLE_S)
            if "lag" in options.only:
                per_s = BUSY * options.workers / WORK_S
                name = f"{variant.name}, {per_s:.0f} tasks a second"
                lags.append(lag(flower, app, name, count=options.tasks, per_s=per_s))
                lags.append(lag(flower, app, f"{variant.name}, all at once", count=options.tasks, per_s=0))
            if "ping" in options.only:
                pings[variant.name] = [ping(pinged, environ) for _ in range(options.pings)]
            services.stop([*workers, flower.service])
    return lags, pings


def report_lags(lags: Sequence[Lag], workers: int) -> None:
    rows = []
    for each in lags:
        if each.lags_s:
            goal = f" (goal: under {LAG_GOAL_S:g})" if each.name.startswith(ECHO.name) else ""
            p95_s = each.lags_s[int(0.95 * (len(each.lags_s) - 1))]
            row = [f"{statistics.median(each.lags_s):.2f}{goal}", f"{p95_s:.2f}", f"{each.lags_s[-1]:.2f}"]
        else:
            row = ["-", "-", "-"]
        rows.append([each.name, f"{len(each.lags_s)} of {each.count}", *row])
    print_table([f"task's end to Flower's page, {workers} workers", "seen", "median s", "p95 s", "max s"], rows)


def report_pings(pings: dict[str, list[Ping]], workers: int) -> None:
    rows = []
    for name, rounds in pings.items():
        last_s = [each.last_s for each in rounds if each.answered]
        rows.append(
            [
                name,
                ", ".join(str(each.answered) for each in rounds),
                f"{statistics.median(last_s):.1f}, {max(last_s):.1f}" if last_s else "-",
                f"{statistics.median(each.command_s for each in rounds):.1f}",
            ]
        )
    header = [
        f"celery inspect ping --timeout {PING_TIMEOUT_S}",
        f"answers, of {workers}, by round",
        "last answer after s of the command, median and worst",
        "the command took s",
    ]
    print_table(header, rows)


# load


@dataclass(frozen=True)
class Round:
    """One burst of photos."""

    photos_per_s: float
    worker_cpu_ms: float
    """A photo."""
    calls: Counter[str]
    wrong: int


def measure_burst(system: System, services: Services, variant: Variant, options: argparse.Namespace) -> Round:
    """Start what the variant says, post the photos, and stop it again."""
    workers = start_workers(services, variant, options.load_workers)
    flower = Flower(services, variant.flower, system.settings.flower_port) if variant.flower else None
    photos = photos_in_turn()
    burst(system.settings.web_port, photos, count=WARM_UP, concurrency=CONCURRENCY)
    if flower:
        _wait_for_tasks(flower, WARM_UP)
    time.sleep(SETTLE_S)
    processes = [psutil.Process(each.process.pid) for each in workers]
    before_s = sum(map(cpu_s, processes))
    load = system.load(photos, count=options.photos, concurrency=CONCURRENCY)
    spent_s = sum(map(cpu_s, processes)) - before_s
    if flower:
        _wait_for_tasks(flower, WARM_UP + options.photos)
    else:
        time.sleep(1)  # the last deletions
    counted = calls(system.endpoint)
    services.stop([*workers, *([flower.service] if flower else [])])
    time.sleep(LONG_POLL_S)  # a worker that left has a poll under way, which would take the next one's photos
    return Round(options.photos / load.wall_s, spent_s / options.photos * 1000, counted, load.wrong)


def _wait_for_tasks(flower: Flower, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while len(flower.succeeded()) < count:
        if time.monotonic() > deadline_s:
            print(f"Flower shows {len(flower.succeeded())} of {count} tasks")
            return
        time.sleep(0.5)


def measure_load(options: argparse.Namespace) -> dict[str, list[Round]]:
    """`load`: rounds of off and on in turn, and then one of each of the peer."""
    rounds: dict[str, list[Round]] = {}
    samples = sample_photos()
    with started() as (services, environ):
        system = System(services, environ, processes=1)
        system.enrol({name: [samples[photo] for photo in names] for name, names in PEOPLE.items()})
        services.stop([each for each in services.running if each.name == "worker"])
        time.sleep(LONG_POLL_S)
        del system.tiers["worker"]
        for variant in [*[OFF_VARIANT, ON_VARIANT] * options.rounds, PLAIN_OFF, PLAIN_ON]:
            if variant is PLAIN_OFF:
                forget_topics(system.settings)
            result = measure_burst(system, services, variant, options)
            rounds.setdefault(variant.name, []).append(result)
            print(f"{variant.name}: {result.photos_per_s:.1f} photos/s, load {os.getloadavg()[0]:.1f}", flush=True)
    print()
    return rounds


def report_load(rounds: dict[str, list[Round]], options: argparse.Namespace) -> None:
    off, on = rounds[OFF_VARIANT.name], rounds[ON_VARIANT.name]
    rows = [
        [str(n), f"{a.photos_per_s:.1f}", f"{b.photos_per_s:.1f}", f"{b.photos_per_s / a.photos_per_s:.2f}"]
        for n, (a, b) in enumerate(zip(off, on, strict=True), 1)
    ]
    ratio = statistics.median(b.photos_per_s / a.photos_per_s for a, b in zip(off, on, strict=True))
    medians = [statistics.median(each.photos_per_s for each in them) for them in (off, on)]
    goal = f" (goal: at least {THROUGHPUT_GOAL:g})"
    rows.append(["median", *(f"{each:.1f}" for each in medians), f"{ratio:.2f}{goal}"])
    spent = [statistics.median(each.worker_cpu_ms for each in them) for them in (off, on)]
    rows.append(["workers' CPU ms a photo, median", *(f"{each:.1f}" for each in spent), f"{spent[1] / spent[0]:.2f}"])
    print_table([f"photos/s, {options.load_workers} workers", "off", "on", "on beside off"], rows)
    _report_calls(rounds, options.photos)
    print(f"wrong or lost: {sum(each.wrong for them in rounds.values() for each in them)}\n")


def _report_calls(rounds: dict[str, list[Round]], photos: int) -> None:
    names = [each.name for each in (PLAIN_OFF, PLAIN_ON, OFF_VARIANT, ON_VARIANT)]
    mean = {
        name: {
            operation: statistics.mean(each.calls[operation] for each in rounds[name]) * 1000 / photos
            for operation in set().union(*(each.calls for them in rounds.values() for each in them))
        }
        for name in names
    }
    rows = [[operation, *(f"{mean[name][operation]:.0f}" for name in names)] for operation in sorted(mean[names[0]])]
    total = {name: sum(mean[name].values()) for name in names}
    rows.append(["all", *(f"{total[name]:.0f}" for name in names)])
    extra = [total[on] - total[off] for off, on in zip(names[::2], names[1::2], strict=True)]
    rows.append(["for events and control", "", f"{extra[0]:.0f}", "", f"{extra[1]:.0f}"])
    rows.append(["beside plain", "", "1.00", "", f"{extra[1] / extra[0]:.2f}"])
    print_table(["requests for 1,000 photos", *names], rows)


# idle


def measure_idle(options: argparse.Namespace) -> dict[bool, Counter[str]]:
    """`idle`: requests in the window that one more worker makes, without and with listeners."""
    few, many = 1, 3
    with ExitStack() as everything:
        sites: dict[tuple[bool, int], Site] = {}
        for listeners in (False, True):
            for count in (few, many):
                services, environ = everything.enter_context(started())
                environ["FACEAPP_WORKER_IMAGE"] = IMAGE  # the scaler asks for the launch template
                site = sites[listeners, count] = Site(services, environ)
                if listeners:
                    services.start("scaler", [sys.executable, "-m", "faceapp", "scaler"])
                    Flower(services, FACEAPP_FLOWER, site.settings.flower_port)
                start_workers(services, ECHO, count, pause_s=PAUSE_S)
        time.sleep(SETTLE_S)
        for site in sites.values():
            calls(site.endpoint, reset=True)
        from_s = time.monotonic()
        time.sleep(options.idle_s)
        window_s = time.monotonic() - from_s
        counted = {key: calls(site.endpoint) for key, site in sites.items()}
        for site in sites.values():
            site.services.look()
        # They end together: each waits for its long poll.
        for site in sites.values():
            for each in site.services.running:
                each.process.send_signal(signal.SIGTERM)
    hourly: dict[bool, Counter[str]] = {}
    for listeners in (False, True):
        one, three = counted[listeners, few], counted[listeners, many]
        hourly[listeners] = Counter(
            {name: round((three[name] - one[name]) / (many - few) * 3600 / window_s) for name in {*one, *three}}
        )
    return hourly


def report_idle(hourly: dict[bool, Counter[str]], window_s: float) -> None:
    names = sorted({*hourly[False], *hourly[True]})
    rows = [[name, str(hourly[False][name]), str(hourly[True][name])] for name in names]
    total = {listeners: sum(each.values()) for listeners, each in hourly.items()}
    rows.append(["all", str(total[False]), f"{total[True]} (goal: under {IDLE_GOAL})"])
    header = f"requests an hour of an idle worker, in {window_s:.0f} s"
    print_table([header, "its own", "and at Flower and the scaler"], rows)


def main() -> None:
    measurements = ("lag", "ping", "load", "idle")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.broker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=measurements, default=measurements)
    parser.add_argument("--workers", type=int, default=15, help="for lag and ping")
    parser.add_argument("--tasks", type=int, default=300, help="for lag, of each kind of load")
    parser.add_argument("--pings", type=int, default=3, help="rounds of ping")
    parser.add_argument("--photos", type=int, default=300, help="of each burst of load")
    parser.add_argument("--rounds", type=int, default=2, help="of load: off and on")
    parser.add_argument("--load-workers", type=int, default=2, help="for load")
    parser.add_argument("--idle-s", type=float, default=300.0, help="how long idle workers are counted")
    options = parser.parse_args()
    if {"lag", "ping"} & set(options.only):
        lags, pings = measure_workers(options)
        if lags:
            report_lags(lags, options.workers)
        if pings:
            report_pings(pings, options.workers)
    if "load" in options.only:
        rounds = measure_load(options)
        report_load(rounds, options)
    if "idle" in options.only:
        report_idle(measure_idle(options), options.idle_s)


if __name__ == "__main__":
    main()
