"""0 -> N -> 0 for real: `faceapp up`, a hundred photos posted at once, and what the scaler makes of it.

`python -m benchmarks.live --policy depth|work --plot FILE` prints the table and draws the plot. Every instance is a
real worker process tree; what is shorter than on EC2 is the boot (FACEAPP_LOCAL_BOOT_MIN_S and _MAX_S make it longer).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import psutil

from benchmarks.path import EXPECTED, PHOTOS_IN_TURN, post, users_environ
from benchmarks.table import print_table
from celery_sqs.plots import Panel, draw
from faceapp.config import Settings
from faceapp.local.up import REGION, endpoint
from faceapp.operations.samples import sample_photos
from faceapp.security.credential import aws_keys
from faceapp.security.key_text import new_text

UP = "Ctrl-C stops everything."
KILLED = "killed, its worker did not end in time"
SAMPLE_S = 0.4
POLL_S = 0.1
PHOTOS = 100
MEMORY_GOAL_GB = 3
GONE_GOAL_S = 10
"""With the policy depth; the others keep an instance while its minute is paid for."""


class System:
    """A `faceapp up` that is ready, with its state and logs below `folder`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, settings: Settings) -> None:
        self.process, self.settings = process, settings
        self.logs = folder / "faceapp" / settings.prefix / "logs"
        key_id, secret = aws_keys(settings.local_key).values()
        session: Any = boto3.session.Session(key_id, secret, region_name=REGION)
        self.ec2 = session.client("ec2", endpoint_url=endpoint(settings))
        self.sqs = session.client("sqs", endpoint_url=endpoint(settings))

    @cached_property
    def host(self) -> psutil.Process:
        """The compute host."""
        children = psutil.Process(self.process.pid).children()
        return next(each for each in children if "faceapp.local.compute" in each.cmdline())

    @cached_property
    def queue_url(self) -> str:
        return str(self.sqs.get_queue_url(QueueName=self.settings.request_queue)["QueueUrl"])

    def instances(self) -> dict[str, str]:
        """The ids, by name, of the app-tier instances that are billed."""
        filters = [
            {"Name": "tag:Name", "Values": ["app-tier-instance-*"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        reservations = self.ec2.describe_instances(Filters=filters)["Reservations"]
        found = [instance for each in reservations for instance in each["Instances"]]
        return {tag["Value"]: each["InstanceId"] for each in found for tag in each["Tags"] if tag["Key"] == "Name"}

    def workers(self) -> dict[str, psutil.Process]:
        """The workers' parent processes by the name of their instance, which is their log's name."""
        found = {}
        for each in self.host.children():
            try:
                log = Path(os.readlink(f"/proc/{each.pid}/fd/1"))
            except OSError:
                continue
            if log.stem.startswith("app-tier-instance-"):
                found[log.stem] = each
        return found

    def counts(self) -> tuple[int, int]:
        """Visible and in-flight messages of the request queue."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return int(attributes[names[0]]), int(attributes[names[1]])

    def dead_letters(self) -> int:
        url = self.sqs.get_queue_url(QueueName=self.settings.dead_letter_queue)["QueueUrl"]
        attribute = "ApproximateNumberOfMessages"
        return int(self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[attribute])["Attributes"][attribute])

    def killed(self) -> int:
        """Workers that did not end in their grace period."""
        return (self.logs / "compute-host.log").read_text().count(KILLED)

    def done_by(self) -> dict[str, int]:
        """How many photos each instance has answered."""
        line = re.compile(r"faceapp\.work\.worker: \w+: \d+ faces")
        return {log.stem: len(line.findall(log.read_text())) for log in self.logs.glob("app-tier-instance-*.log")}

    def memory_bytes(self) -> int:
        """The host and all workers together, each shared page counted once: the sum of their proportional sets."""
        total = 0
        for each in [self.host, *self.host.children(recursive=True)]:
            try:
                rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(size) for size in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)) * 1024
        return total

    def wait_for_nothing(self, *, timeout_s: float) -> None:
        """Wait until no instance and no worker runs. Raises TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while self.instances() or self.workers():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"after {timeout_s:g} s {sorted(self.instances())}, {sorted(self.workers())} run")
            time.sleep(POLL_S)


@contextmanager
def system(folder: Path, **environ: str) -> Iterator[System]:
    """`faceapp up` on free ports, stopped at the end (killed if it does not)."""
    web_port, aws_port, scaler_port, flower_port = _free_ports(4)
    environ = {
        "FACEAPP_PREFIX": "live",
        "FACEAPP_LOCAL_KEY": new_text(),
        "FACEAPP_WEB_PORT": str(web_port),
        "FACEAPP_AWS_PORT": str(aws_port),
        "FACEAPP_SCALER_PORT": str(scaler_port),
        "FACEAPP_FLOWER_PORT": str(flower_port),
        **environ,
    }
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "faceapp", "up"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**users_environ(), **environ, "XDG_STATE_HOME": str(folder)},
        )
    try:
        while UP not in output.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"'faceapp up' ended:\n{output.read_text()}")
            time.sleep(POLL_S)
        yield System(process, folder, Settings.from_environ(environ))
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Sample:
    """One look at the system."""

    at_s: float
    visible: int
    in_flight: int
    instances: int
    """Billed ones, as EC2 says."""
    workers: int
    """Those of them whose worker's process runs, and those that still drain."""


@dataclass(frozen=True)
class Answer:
    """One photo's answer."""

    text: str
    expected: str
    latency_s: float
    at_s: float
    """When it came, on the monotonic clock."""


class Watch:
    """Looks at the system a few times a second, in a thread of its own, inside a `with` block."""

    def __init__(self, watched: System) -> None:
        self._system = watched
        self.from_s = time.monotonic()
        self.samples: list[Sample] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self.samples.append(self._look())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.samples.append(self._look())

    @property
    def peak(self) -> int:
        """The most instances that were ever seen at once."""
        return max(each.instances for each in self.samples)

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.samples.append(self._look())

    def _look(self) -> Sample:
        visible, in_flight = self._system.counts()
        instances, workers = len(self._system.instances()), len(self._system.workers())
        return Sample(time.monotonic() - self.from_s, visible, in_flight, instances, workers)


class Burst:
    """`count` photos, each posted from a thread and over a connection of its own, all at once."""

    def __init__(self, port: int, photos: Sequence[Path], *, count: int) -> None:
        self.answers: list[Answer] = []
        contents = {photo: photo.read_bytes() for photo in photos}
        self._threads = [
            threading.Thread(target=self._post, args=(port, photo, contents[photo]))
            for photo in (photos[n % len(photos)] for n in range(count))
        ]
        for thread in self._threads:
            thread.start()

    def _post(self, port: int, photo: Path, content: bytes) -> None:
        started_s = time.monotonic()
        text = post(port, photo, content).strip()
        now_s = time.monotonic()
        self.answers.append(Answer(text, f"{photo.stem}:{EXPECTED[photo.stem]}", now_s - started_s, now_s))

    def join(self) -> list[Answer]:
        """All answers, in the order in which they came."""
        for thread in self._threads:
            thread.join()
        return self.answers


def photos_in_turn() -> list[Path]:
    """The photos that are posted. Raises LocalError when one is missing."""
    samples = sample_photos()
    return [samples[name] for name in PHOTOS_IN_TURN]


@dataclass(frozen=True)
class Live:
    """What became of one burst."""

    watch: Watch
    answers: list[Answer]
    memory_bytes: int
    """Of the compute host and all workers together, right after the last answer."""
    gone_s: float
    """Seconds from the last answer until nothing ran."""


def run(watched: System, *, count: int = PHOTOS, timeout_s: float = 300.0) -> Live:
    """Wait until nothing runs, post the photos, and watch until nothing runs again."""
    watched.wait_for_nothing(timeout_s=timeout_s)
    with Watch(watched) as watch:
        answers = Burst(watched.settings.web_port, photos_in_turn(), count=count).join()
        memory_bytes = watched.memory_bytes()
        watched.wait_for_nothing(timeout_s=timeout_s)
        gone_s = time.monotonic() - answers[-1].at_s
    return Live(watch, answers, memory_bytes, gone_s)


def plot(live: Live, path: Path) -> None:
    """Messages, instances and answers over time."""
    samples = live.watch.samples
    came_s = [each.at_s - live.watch.from_s for each in live.answers]
    times_s = [each.at_s for each in samples]
    panels = [
        Panel(
            "request queue: messages",
            times_s,
            {"in flight": [each.in_flight for each in samples], "visible": [each.visible for each in samples]},
        ),
        Panel(
            "app tier: instances",
            times_s,
            {"billed (EC2)": [each.instances for each in samples], "worker runs": [each.workers for each in samples]},
        ),
        Panel("answers", times_s, {"all of them": [sum(at_s <= each.at_s for at_s in came_s) for each in samples]}),
    ]
    draw(path, panels)


def main() -> None:
    """Run the scenario and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--policy", choices=("depth", "work", "target", "step"), default="depth")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--plot", type=Path, help="the PNG file to draw")
    options = parser.parse_args()
    environ = {
        name: value for name, value in os.environ.items() if name.startswith(("FACEAPP_LOCAL", "FACEAPP_SCALER"))
    }
    environ["FACEAPP_SCALER_POLICY"] = options.policy
    with tempfile.TemporaryDirectory() as folder, system(Path(folder), **environ) as live_system:
        live = run(live_system, count=options.photos)
        wrong = _report(live, live_system, options.policy)
    if options.plot:
        plot(live, options.plot)
    if wrong:
        sys.exit("some answers were wrong")


def _report(live: Live, watched: System, policy: str) -> int:
    samples, latencies_s = live.watch.samples, sorted(each.latency_s for each in live.answers)
    wrong = [each.text for each in live.answers if each.text != each.expected]
    most = max(each.workers for each in samples)
    all_up_s = next(each.at_s for each in samples if each.workers == most)
    gone_goal = f" (goal: at most {GONE_GOAL_S:g})" if policy == "depth" else ""
    rows = [
        ["photos posted at once", str(len(live.answers))],
        ["wrong or lost", str(len(wrong))],
        ["instances at most, of those allowed", f"{live.watch.peak} of {watched.settings.scaler_max_instances}"],
        ["workers killed", str(watched.killed())],
        ["dead letters", str(watched.dead_letters())],
        ["first answer after, s", f"{latencies_s[0]:.1f}"],
        ["answers after, median and last, s", f"{statistics.median(latencies_s):.1f}, {latencies_s[-1]:.1f}"],
        [f"as many workers' processes ({most}) there after, s", f"{all_up_s:.1f}"],
        [
            "memory of host and workers at the end, GB",
            f"{live.memory_bytes / 1e9:.2f} (goal: at most {MEMORY_GOAL_GB:g})",
        ],
        ["from the last answer until nothing runs, s", f"{live.gone_s:.1f}{gone_goal}"],
    ]
    print_table([f"policy {policy}", ""], rows)
    for text in wrong[:5]:
        print(f"wrong: {text}")
    return len(wrong)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


if __name__ == "__main__":
    main()
