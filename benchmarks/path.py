"""The whole path under load beside the bare pipeline: CPU seconds a photo, photos a second, AWS calls a photo.

`python -m benchmarks.path` starts the embedded AWS, the web tier and a worker with a process per core, as `make up`
does, posts photos from 100 connections at once (a new connection per request, as classic clients do), and runs the same
photos through the bare pipeline (decode, detect, align, embed; nothing else) before and after, in as many processes.
The emulator's CPU is counted apart: on AWS it is not yours.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.table import print_table
from faceapp.config import Settings
from faceapp.local.processes import Services
from faceapp.operations.samples import PEOPLE, sample_photos
from faceapp.security import credential
from faceapp.stack import data_tier as stack

PHOTOS_IN_TURN = ("obama3.jpg", "biden.jpg", "obama.jpg", "obama2.jpg", "astronaut.png")
EXPECTED = {"biden": "biden", "astronaut": "eileen_collins", "obama": "obama", "obama2": "obama", "obama3": "obama"}
CPU_GOAL = 1.6
CALLS_GOAL = 8.0


@dataclass(frozen=True)
class Load:
    """What one burst of photos cost: CPU seconds by tier, AWS calls, and how long each answer took."""

    wall_s: float
    cpu_s: dict[str, float]
    calls: dict[str, int]
    latencies_s: list[float]
    wrong: int


def users_environ() -> dict[str, str]:
    """This process's environment without anything of an AWS or of faceapp's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FACEAPP_"))}


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and all below it, those that have ended included."""
    times = process.cpu_times()
    own: float = times.user + times.system + times.children_user + times.children_system
    return own + sum(cpu_s(child) for child in process.children())


def bare_cpu_s(photos: list[Path], count: int, processes: int) -> float:
    """CPU seconds a photo of the bare pipeline, in `processes` processes at once."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return statistics.mean(pool.map(_bare, [(photos, count // processes)] * processes, chunksize=1))


def _bare(work: tuple[list[Path], int]) -> float:
    from faceapp.recognition import Recogniser

    photos, count = work
    settings = Settings()
    recogniser = Recogniser(**settings.photo_limits)
    contents = [photo.read_bytes() for photo in photos]
    for content in contents:
        recogniser.describe(content)
    started_s = time.process_time()
    for n in range(count):
        recogniser.describe(contents[n % len(contents)])
    return (time.process_time() - started_s) / count


def form(field: str, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The content type and the body of a form that uploads `files` (contents by file name)."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, content in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])


def post(port: int, photo: Path, content: bytes) -> str:
    """What `POST /` answers to a photo, over a new connection."""
    content_type, body = form("inputFile", {photo.name: content})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/", body, {"Content-Type": content_type})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return text if answer.status == 200 else f"{answer.status}: {text}"


def burst(port: int, photos: list[Path], *, count: int, concurrency: int) -> tuple[list[float], int]:
    """Post `count` photos from `concurrency` threads: the latencies in seconds and how many answers were wrong."""
    contents = [photo.read_bytes() for photo in photos]
    todo = collections.deque(range(count))
    latencies_s: list[float] = []
    wrong: list[str] = []

    def client() -> None:
        while True:
            try:
                n = todo.popleft() % len(photos)
            except IndexError:
                return
            started_s = time.perf_counter()
            answer = post(port, photos[n], contents[n]).strip()
            latencies_s.append(time.perf_counter() - started_s)
            if answer != f"{photos[n].stem}:{EXPECTED[photos[n].stem]}":
                wrong.append(answer)

    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in wrong[:5]:
        print(f"wrong: {answer}")
    return latencies_s, len(wrong)


class System:
    """The embedded AWS, the web tier and a worker, as processes; `make up` without the rest."""

    def __init__(self, services: Services, environ: dict[str, str], *, processes: int) -> None:
        # The services have this very dict as their environment.
        environ |= credential.fresh()
        aws = services.start("aws", [sys.executable, "-m", "faceapp.local.aws", "--port", "0"])
        services.wait_for(lambda: "listening on" in aws.log.read_text(), timeout_s=60, what="no embedded AWS")
        self.endpoint = aws.log.read_text().rsplit("listening on ", 1)[1].split()[0]
        environ |= {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "FACEAPP_WEB_PORT": str(free_port()),
            "FACEAPP_WORKER_PROCESSES": str(processes),
        }
        os.environ.update(environ)
        self.settings = Settings.from_environ(environ)
        stack.apply(self.settings)
        web = services.start("web", [sys.executable, "-m", "faceapp", "web"])
        worker = services.start("worker", [sys.executable, "-m", "celery", "-A", "faceapp.tasks", "worker"])
        self.tiers = {
            name: psutil.Process(service.process.pid)
            for name, service in {"web": web, "worker": worker, "emulator": aws}.items()
        }
        services.wait_for(self._is_ready, timeout_s=120, what="the web tier is not ready")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.web_port}/readyz") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def enrol(self, people: dict[str, list[Path]]) -> None:
        for name, photos in people.items():
            content_type, body = form("photo", {photo.name: photo.read_bytes() for photo in photos})
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.settings.web_port}/v1/people/{name}",
                data=body,
                headers={"Content-Type": content_type, "Authorization": f"Bearer {self.settings.local_key}"},
                method="PUT",
            )
            urllib.request.urlopen(request).close()

    def load(self, photos: list[Path], *, count: int, concurrency: int) -> Load:
        """Measure one burst."""
        access = credential.aws_keys(self.settings.local_key)["AWS_ACCESS_KEY_ID"]
        calls, headers = f"{self.endpoint}/faceapp/calls", {"Authorization": f"Bearer {access}"}
        urllib.request.urlopen(urllib.request.Request(calls, headers=headers, method="DELETE")).close()
        before = {name: cpu_s(process) for name, process in self.tiers.items()}
        started_s = time.perf_counter()
        latencies_s, wrong = burst(self.settings.web_port, photos, count=count, concurrency=concurrency)
        wall_s = time.perf_counter() - started_s
        spent = {name: cpu_s(process) - before[name] for name, process in self.tiers.items()}
        with urllib.request.urlopen(urllib.request.Request(calls, headers=headers)) as answer:
            counts = json.load(answer)["calls"]
        made = {f"{service} {name}": n for service, each in counts.items() for name, n in each.items()}
        return Load(wall_s, spent, made, latencies_s, wrong)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path", description=__doc__)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="of the worker and the bare pipeline"
    )
    options = parser.parse_args()

    samples = sample_photos()
    photos = [samples[name] for name in PHOTOS_IN_TURN]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "FACEAPP_QUEUE_WAIT_S": "20"}
    bare = [bare_cpu_s(photos, options.photos // 2, options.processes)]
    with tempfile.TemporaryDirectory() as folder:
        services_environ: dict[str, str] = dict(environ)
        with Services(Path(folder), services_environ) as services:
            system = System(services, services_environ, processes=options.processes)
            system.enrol({name: [samples[photo] for photo in names] for name, names in PEOPLE.items()})
            burst(system.settings.web_port, photos, count=40, concurrency=options.concurrency)
            load = system.load(photos, count=options.photos, concurrency=options.concurrency)
    bare.append(bare_cpu_s(photos, options.photos // 2, options.processes))
    _report(load, statistics.mean(bare), options)


def _report(load: Load, bare: float, options: argparse.Namespace) -> None:
    ms = {name: seconds / options.photos * 1000 for name, seconds in load.cpu_s.items()}
    ours = ms["web"] + ms["worker"]
    ratio = ours / (bare * 1000)
    print_table(
        ["CPU a photo", "ms", "of the bare pipeline"],
        [
            ["bare pipeline (decode, detect, align, embed)", f"{bare * 1000:.1f}", "1.00"],
            ["web tier", f"{ms['web']:.1f}", f"{ms['web'] / bare / 1000:.2f}"],
            ["workers", f"{ms['worker']:.1f}", f"{ms['worker'] / bare / 1000:.2f}"],
            ["web and workers", f"{ours:.1f}", f"{ratio:.2f} (goal: at most {CPU_GOAL})"],
            ["emulator, counted apart", f"{ms['emulator']:.1f}", ""],
        ],
    )
    billed = {name: n for name, n in load.calls.items() if "(empty)" not in name}
    calls = sum(billed.values()) / options.photos
    print_table(
        ["AWS call", "a photo"],
        [
            *([name, f"{n / options.photos:.2f}"] for name, n in sorted(load.calls.items())),
            ["all but empty polls", f"{calls:.2f} (goal: at most {CALLS_GOAL:g})"],
        ],
    )
    ordered = sorted(load.latencies_s)
    print(
        f"{options.photos} photos at concurrency {options.concurrency}, {options.processes} worker processes: "
        f"{options.photos / load.wall_s:.1f} photos/s, answers after {statistics.median(ordered):.2f} s (median), "
        f"{ordered[int(len(ordered) * 0.99)]:.2f} s (p99); wrong or lost: {load.wrong}"
    )
    if load.wrong:
        sys.exit("some answers were wrong")


if __name__ == "__main__":
    main()
