"""Requests made to cost more than their bytes, and what other clients notice of them.

`python -m benchmarks.hostile` starts the embedded AWS and one web process. One client asks /healthz and another posts
an ordinary photo, over and over; first alone, then while each shape of benchmarks.shapes is posted. The exit status is
1 when one of the two waited WAIT_S longer than it did alone, when the process's memory grew by MEMORY_MIB more than the
shape's own bytes, or when the process was replaced. Everything runs on the loopback; on a machine that does other work,
read the first line (which is without any shape) before the others.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import boto3
import psutil
from PIL import Image

from benchmarks import shapes
from benchmarks.table import print_table
from benchmarks.web_open import SERVE, memory_mib, photo_form, running
from faceapp.config import Settings
from faceapp.security import credential
from faceapp.stack import data_tier as stack

WAIT_S = 0.25
MEMORY_MIB = 64.0
PHOTO_BYTES = 19 * shapes.MIB
GIVE_UP_S = 90.0


@dataclass
class Watch:
    """The longest that each client waited, and the most memory."""

    probe_s: float = 0.0
    photo_s: float = 0.0
    peak_mib: float = 0.0
    rounds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Others:
    """The clients that send nothing bad, on threads of their own; `watch` is where they write."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self._port, self._process = port, process
        self.watch = Watch()
        self._end = threading.Event()
        body = photo_form(Image.effect_noise((250, 250), 60))
        tasks = [
            lambda: self._ask("GET", "/healthz", None, 200),
            lambda: self._ask("POST", "/v1/recognitions", body, 202),
        ]
        self._threads = [
            threading.Thread(target=self._repeat, args=[each], daemon=True) for each in (*tasks, self._look)
        ]

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def result(self) -> Watch:
        """What was seen since `watch` was set, when each client has an answer that it asked for before this call."""
        before = self.watch.rounds.copy()
        while any(self.watch.rounds[method] < before[method] + 2 for method in ("GET", "POST")):
            time.sleep(0.02)
        return self.watch

    def _repeat(self, once: Callable[[], None]) -> None:
        while not self._end.wait(0.02):
            once()

    def _look(self) -> None:
        watch = self.watch
        watch.peak_mib = max(watch.peak_mib, memory_mib(self._process))

    def _ask(self, method: str, path: str, body: bytes | None, wanted: int) -> None:
        # What began before a shape was posted says nothing about it: this process was busy making it.
        watch, began_s, failure = self.watch, time.perf_counter(), ""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP_S)
        try:
            connection.request(
                method, path, body, {**shapes.authorization(), "Content-Type": "multipart/form-data; boundary=b"}
            )
            status = connection.getresponse().status
            failure = "" if status == wanted else f"{path} {status}"
        except OSError as error:
            failure = f"{path} {type(error).__name__}"
        finally:
            connection.close()
        waited_s = time.perf_counter() - began_s
        watch.failures += [failure] if failure else []
        watch.rounds[method] += 1
        if method == "GET":
            watch.probe_s = max(watch.probe_s, waited_s)
        else:
            watch.photo_s = max(watch.photo_s, waited_s)


def post(port: int, wire: bytes, *, silent_s: float = 0.0) -> str:
    """Send the bytes and wait for the answer's status, or for `silent_s`: `-` without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=GIVE_UP_S) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(wire)
        if silent_s:
            connection.settimeout(silent_s)
        try:
            answer = connection.recv(100)
        except TimeoutError:
            return "-"
        except OSError as error:
            return type(error).__name__
    return answer[9:12].decode() or "cut"


def attack(port: int, shape: shapes.Shape, wire: bytes, *, at_once: int, seconds: float) -> str:
    """Post the shape over and over, so many at once; the statuses."""
    statuses: set[str] = set()
    until_s = time.monotonic() + seconds

    def send() -> None:
        while time.monotonic() < until_s:
            statuses.add(post(port, wire, silent_s=seconds if shape.silent else 0.0))

    threads = [threading.Thread(target=send) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return " ".join(sorted(statuses))


def rows(port: int, process: psutil.Process, options: argparse.Namespace) -> Iterator[tuple[list[str], bool]]:
    """A line for each shape, and whether it is within the bounds."""
    chosen = [*shapes.known(PHOTO_BYTES), *shapes.made_up(options.seed, options.made_up, PHOTO_BYTES)]
    with Others(port, process) as others:
        others.result()  # the first requests make caches and connections
        pids = [each.pid for each in process.children()]
        others.watch = Watch()
        time.sleep(3 * options.seconds)
        alone = others.result()
        yield line("(nothing)", "", alone, 0.0, same=True), not alone.failures
        for shape in chosen:
            if options.only and options.only not in shape.name:
                continue
            wire = shape.make()
            before_mib, own_mib = memory_mib(process), options.at_once * len(wire) / shapes.MIB
            others.watch = Watch()
            statuses = attack(port, shape, wire, at_once=options.at_once, seconds=options.seconds)
            watch = others.result()
            same = [each.pid for each in process.children()] == pids
            more_mib = max(0.0, watch.peak_mib - before_mib - own_mib)
            pids = [each.pid for each in process.children()]
            waits = max(watch.probe_s - alone.probe_s, watch.photo_s - alone.photo_s)
            fine = same and waits <= WAIT_S and more_mib <= MEMORY_MIB and not watch.failures
            yield line(shape.name, statuses, watch, more_mib, same=same), fine


def line(name: str, statuses: str, watch: Watch, more_mib: float, *, same: bool) -> list[str]:
    waits = [f"{1000 * watch.probe_s:.0f}", f"{1000 * watch.photo_s:.0f}"]
    failures = ", ".join(sorted(set(watch.failures)))
    return [name, statuses, *waits, f"{more_mib:.0f}", "same" if same else "replaced", failures]


def main() -> None:
    parser = argparse.ArgumentParser(description="requests made to cost more than their bytes")
    parser.add_argument("--seed", type=int, default=1, help="of the shapes that are made up")
    parser.add_argument("--made-up", type=int, default=28, help="how many of those")
    parser.add_argument("--at-once", type=int, default=2, help="how often a shape is posted at the same time")
    parser.add_argument("--seconds", type=float, default=3.0, help="for how long")
    parser.add_argument("--only", default="", help="only shapes with this in their name")
    options = parser.parse_args()
    os.environ.update(credential.fresh(), AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
    with running([sys.executable, "-m", "faceapp.local.aws", "--port", "0"], "listening on ") as (url, _):
        os.environ["AWS_ENDPOINT_URL"] = url
        boto3.setup_default_session()
        settings = Settings(prefix=f"bench-{uuid.uuid4().hex[:8]}")
        stack.apply(settings)
        with running([sys.executable, "-c", SERVE], "the web tier listens on ", FACEAPP_PREFIX=settings.prefix) as (
            web,
            process,
        ):
            found = list(rows(int(web.rsplit(":", 1)[1]), process, options))
    columns = ["answers", "/healthz max ms", "photo max ms", "MiB more", "process", "failures"]
    print_table(["shape", *columns], [row for row, _ in found])
    bad = [row[0] for row, fine in found if not fine]
    if bad:
        sys.exit(f"beyond the bounds: {', '.join(bad)}")


if __name__ == "__main__":
    main()
