"""A burst of photos, ours beside two other designs on the same machine: Celery + Redis, and simple polling.

`python -m benchmarks.load` posts the same photos, all at once, to each of them in turn: the same model and the same
work (faceapp.work.worker), as many worker processes, an embedded AWS of its own for each that has just been started,
and the client of `faceapp bench load`. Workers are ready before the burst begins, so no boots are in it. What differs
is the way from the web tier to the workers and back:

ours      Celery over SQS, one reader of a response queue for all who wait; gunicorn's gevent
redis     Celery over Redis, results over Redis' publish and subscribe; gunicorn's gevent
polling   plain SQS messages, a thread a request, each of which polls one response queue that all of them share

Each has `--limit` seconds; one that is not done by then is shown with what it did. The exit status is 1 unless all of
ours came back right.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from benchmarks.load_polling import READY
from benchmarks.load_web import REDIS_URL
from benchmarks.path import EXPECTED, PHOTOS_IN_TURN, burst, free_port
from benchmarks.table import print_table
from faceapp.bench import report
from faceapp.bench.load import Options, Run, load
from faceapp.bench.photos import Photo
from faceapp.config import Settings
from faceapp.local.processes import Services
from faceapp.operations import open_files
from faceapp.operations.samples import PEOPLE, sample_photos
from faceapp.security import credential
from faceapp.stack import data_tier as stack
from faceapp.storage import Storage

REDIS_SERVER = "redis-server"
POLLING_GOAL = 3.0
REDIS_GOAL = 1.5
OTHER_CONNECTIONS = 100
START_S = 120
CELERY_READY = " ready."
NAMES = {"ours": "ours", "redis": "Celery + Redis", "polling": "simple polling"}


@dataclass(frozen=True, kw_only=True)
class Design:
    """How its processes are started."""

    web: list[str]
    workers: list[list[str]]
    ready: str
    """What a worker's log says once it takes messages."""


def gunicorn(app: str, worker_class: str, settings: Settings) -> list[str]:
    """One process, as our web tier has."""
    options = {
        "worker-class": worker_class,
        "threads": settings.web_connections,
        "worker-connections": settings.web_connections,
        "backlog": 4096,
        "timeout": 600,
        "bind": f"127.0.0.1:{settings.web_port}",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "gunicorn", "--no-control-socket", *given, f"{app}:web()"]


def celery(app: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO"]


def design(name: str, settings: Settings) -> Design:
    if name == "ours":
        web = [sys.executable, "-m", "faceapp", "web"]
        return Design(web=web, workers=[celery("faceapp.tasks")], ready=CELERY_READY)
    if name == "redis":
        web = gunicorn("benchmarks.load_redis", "gevent", settings)
        return Design(web=web, workers=[celery("benchmarks.load_redis")], ready=CELERY_READY)
    worker = [sys.executable, "-m", "benchmarks.load_polling"]
    web = gunicorn("benchmarks.load_polling", "gthread", settings)
    return Design(web=web, workers=[worker] * settings.worker_processes, ready=READY)


@contextmanager
def running(name: str, options: argparse.Namespace) -> Iterator[Settings]:
    """The design's processes, ready for photos; none is left afterwards."""
    settings_environ = {
        "FACEAPP_PREFIX": f"bench-{uuid.uuid4().hex[:8]}",
        "FACEAPP_WEB_PORT": str(free_port()),
        "FACEAPP_WEB_WAITING": str(max(options.concurrency, options.photos)),
        "FACEAPP_WEB_CONNECTIONS": str(max(options.concurrency, options.photos) + OTHER_CONNECTIONS),
        "FACEAPP_WEB_WAIT_S": str(options.limit),
        "FACEAPP_WORKER_PROCESSES": str(options.workers),
    }
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "OPENBLAS_NUM_THREADS": "1", **settings_environ}
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder), environ) as services:
        aws = services.start("aws", [sys.executable, "-m", "faceapp.local.aws", "--port", "0"])
        services.wait_for(lambda: "listening on" in aws.log.read_text(), timeout_s=START_S, what="no embedded AWS")
        environ["AWS_ENDPOINT_URL"] = aws.log.read_text().rsplit("listening on ", 1)[1].split()[0]
        os.environ["AWS_ENDPOINT_URL"] = environ["AWS_ENDPOINT_URL"]
        boto3.setup_default_session()
        settings = Settings.from_environ(environ)
        stack.apply(settings)
        # In a process of its own: this one is the client.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(enrol, [settings])
        if name == "redis":
            start_redis(services, environ, folder)
        made = design(name, settings)
        services.start("web", made.web)
        workers = [services.start(f"worker {n}", command) for n, command in enumerate(made.workers)]
        services.wait_for(
            lambda: answers(web_url(settings)) and all(made.ready in each.log.read_text() for each in workers),
            timeout_s=START_S,
            what="the web tier or a worker is not ready",
        )
        yield settings
        services.look()


def start_redis(services: Services, environ: dict[str, str], folder: str) -> None:
    """A server that keeps nothing on disk; its URL into the environment."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    server = services.start("redis", [REDIS_SERVER, *options])
    services.wait_for(lambda: "Ready to accept" in server.log.read_text(), timeout_s=START_S, what="no Redis")
    environ[REDIS_URL] = f"redis://127.0.0.1:{port}/0"


def web_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.web_port}"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def enrol(settings: Settings) -> None:
    """The sample people, by a worker's own work."""
    from faceapp.work.worker import Worker

    storage, worker, samples = Storage(settings), Worker(settings), sample_photos()
    for name, photos in PEOPLE.items():
        request_id = uuid.uuid4().hex
        for n, photo in enumerate(photos):
            storage.put_incoming(request_id, n, samples[photo].read_bytes(), name=name, file_name=photo)
        worker.enrol(request_id)


def distinct_photos(count: int) -> list[Photo]:
    """`count` photos, each with a file name of its own and a comment of its own: no two have the same bytes."""
    samples = sample_photos()
    names = [name for name in PHOTOS_IN_TURN if name.endswith(".jpg")]
    contents = {name: samples[name].read_bytes() for name in names}
    photos = []
    for n in range(count):
        name = names[n % len(names)]
        stem = name.removesuffix(".jpg")
        data = with_comment(contents[name], f"photo {n}")
        photos.append(Photo(file_name=f"{stem}-{n:06d}.jpg", data=data, expected=EXPECTED[stem]))
    return photos


def with_comment(jpeg: bytes, comment: str) -> bytes:
    """The JPEG with a COM segment behind its first marker (ITU-T T.81, B.2.4.5)."""
    text = comment.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text + jpeg[2:]


def measure(name: str, photos: list[Photo], options: argparse.Namespace) -> Run:
    with running(name, options) as settings:
        # Connections and caches are made by the first ones.
        count = 4 * options.workers
        burst(settings.web_port, [sample_photos()["obama3.jpg"]], count=count, concurrency=count)
        asked = Options(
            url=web_url(settings),
            api="classic",
            concurrency=options.concurrency,
            timeout_s=options.limit,
            limit_s=options.limit,
            most_failures=len(photos),
        )
        return load(asked, photos)


def row(name: str, run: Run) -> list[str]:
    found = report.document(run)
    latency_s, memory = found["latency_s"] or {}, found["web_rss_mib"]
    counts = [found["answered"], found["right"], found["photos"] - found["answered"]]
    return [
        NAMES[name] + (" (stopped)" if run.stopped else ""),
        *map(str, counts),
        f"{run.wall_s:.1f}",
        f"{found['photos_a_second']:.2f}",
        *(f"{latency_s[share]:.1f}" if latency_s else "-" for share in ("p50", "p99", "max")),
        f"{memory['peak']:.0f}" if memory else "-",
    ]


def ratios(runs: dict[str, Run]) -> list[list[str]]:
    """What is wanted, for those that ran."""
    speed = {name: report.document(run)["photos_a_second"] for name, run in runs.items()}
    goals: list[tuple[str, str, str, float, Callable[[float], bool]]] = [
        ("polling", "ours", "at least", POLLING_GOAL, lambda ratio: ratio >= POLLING_GOAL),
        ("redis", "redis", "at most", REDIS_GOAL, lambda ratio: ratio <= REDIS_GOAL),
    ]
    rows = []
    for peer, above, words, goal, met in goals:
        if peer not in runs or "ours" not in runs:
            continue
        below = "ours" if above == peer else peer
        ratio = speed[above] / speed[below] if speed[below] else float("inf")
        verdict = "met" if met(ratio) else "NOT met"
        rows.append([f"{NAMES[above]} over {NAMES[below]}", f"{ratio:.2f}", f"{words} {goal:g}", verdict])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--json", type=Path, help="write all numbers into this file")
    options = parser.parse_args()
    open_files.allow(4 * options.concurrency + 1000)
    os.environ.update(credential.fresh(), AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")

    photos, runs = distinct_photos(options.photos), dict[str, Run]()
    for name in options.only:
        if name == "redis" and not shutil.which(REDIS_SERVER):
            print(f"{NAMES[name]} is left out: there is no {REDIS_SERVER} here (Debian's package redis-server)\n")
            continue
        runs[name] = measure(name, photos, options)
        print(f"{NAMES[name]}: {len(runs[name].answered)} answered in {runs[name].wall_s:.1f} s", flush=True)
        if "interrupted" in runs[name].stopped:
            break
    print()
    _report(runs, options)
    if "ours" in runs and runs["ours"].counts() != {"right": options.photos}:
        sys.exit("not all of ours came back right")


def _report(runs: dict[str, Run], options: argparse.Namespace) -> None:
    title = f"{options.photos} photos, {options.concurrency} at once, {options.workers} processes"
    header = [title, "answered", "right", "lost", "s", "photos/s", "p50 s", "p99 s", "max s", "web peak MiB"]
    print_table(header, [row(name, run) for name, run in runs.items()])
    if found := ratios(runs):
        print_table(["photos/s", "ratio", "wanted", ""], found)
    for name, run in runs.items():
        for detail in [run.stopped, *report.document(run)["details"]]:
            if detail:
                print(f"{NAMES[name]}: {detail}")
    if options.json:
        documents: dict[str, Any] = {name: report.document(run) for name, run in runs.items()}
        options.json.write_text(json.dumps(documents, indent=2) + "\n")


if __name__ == "__main__":
    main()
