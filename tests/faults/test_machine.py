"""Machines whose disk is full, whose clock is wrong, and whose role's credentials run out."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from faceapp.local.processes import Service
from tests.faults import proxy as faults
from tests.faults.conftest import Record, Running
from tests.faults.outage import Stream, account, alive
from tests.faults.proxy import FaultProxy
from tests.faults.system import System, burst
from tests.support.aws import ACCESS
from tests.support.services import REPOSITORY, environ, wait_until

LIFETIME_S = 5.0
GAP_S = 6.0


class Role:
    """A role's credentials, as an instance or a container gets them: over HTTP, for a time, and then others.

    `gap` is what happens instead: `refused`, or `stale` (the last ones, which have expired, with a later end: what
    botocore makes of an instance's that it cannot renew); "" for nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expires_s: dict[str, float] = {}
        self.gap = ""
        self.url = ""

    def issue(self) -> dict[str, str] | None:
        """The credentials of this moment; None when there are none to be had."""
        with self._lock:
            if self.gap == "refused":
                return None
            if self.gap != "stale" and not any(time.time() < each - 1 for each in self._expires_s.values()):
                self._expires_s[f"session-{len(self._expires_s)}"] = time.time() + LIFETIME_S
            session, expires_s = list(self._expires_s.items())[-1]
            if self.gap == "stale":
                expires_s = time.time() + LIFETIME_S
        expires = datetime.fromtimestamp(expires_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"AccessKeyId": ACCESS["AWS_ACCESS_KEY_ID"], "SecretAccessKey": ACCESS["AWS_SECRET_ACCESS_KEY"]}
        return {**keys, "Token": session, "Expiration": expires}

    def begin(self, gap: str) -> None:
        """From now on there is none that is valid."""
        with self._lock:
            self.gap = gap
            self._expires_s = dict.fromkeys(self._expires_s, time.time() - 1)

    def is_expired(self, session: str) -> bool:
        with self._lock:
            return time.time() > self._expires_s.get(session, 0.0)

    @property
    def issued(self) -> int:
        return len(self._expires_s)


@contextmanager
def role() -> Iterator[Role]:
    """Serve until the block ends."""
    service = Role()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = service.issue()
            body = json.dumps(document or {"code": "InternalError", "message": "no"}).encode()
            self.send_response(200 if document else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not to stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_port}/credentials"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow_fault
@pytest.mark.parametrize("gap", ["refused", "stale"])
def test_credentials_that_run_out(run: Running, record: Record, aws: str, gap: str) -> None:
    with (
        FaultProxy(aws) as proxy,
        role() as given,
        run(endpoint=proxy.url, workers=0, web=False, task_time_limit_s=30, visibility_s=32) as system,
    ):
        environment = {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": given.url,
        }
        with proxy.fault(faults.expired(given.is_expired)):
            system.start_worker(**environment)
            system.start_web(**environment)
            with alive(*system.services.running):
                sent = Stream(system, 100, at_once=10, pace_s=0.2)
                wait_until(lambda: len(sent.replies) >= 3, timeout_s=240, what="the first replies")
                before = given.issued
                wait_until(lambda: given.issued > before, what="new credentials")
                given.begin(gap)
                with faults.lasting(GAP_S):
                    pass
                given.begin("")
                found, refused = account(system, sent)
        assert given.issued > before + 1
        record(
            f"credentials that last {LIFETIME_S:g} s, and none for {GAP_S:g} s ({gap})",
            f"{given.issued} used, {len(refused)} photos refused with 503",
            found,
        )


def limit_files(service: Service, size_bytes: int) -> None:
    """From now on no file may grow past this in the process and those below it: a disk without room for more."""
    process = psutil.Process(service.process.pid)
    for each in [process, *process.children(recursive=True)]:
        each.rlimit(psutil.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def test_a_full_disk(run: Running, record: Record) -> None:
    """Photos need no disk: not in the web tier, not in the worker. What is not there afterwards is the log."""
    with run() as system, alive(*system.services.running):
        logs = [each.log for each in system.services.running]
        for each in system.services.running:
            limit_files(each, 0)
        sizes = [log.stat().st_size for log in logs]
        sent = burst(system, 40)
        found, refused = account(system, sent)
        assert not refused
        assert [log.stat().st_size for log in logs] == sizes
        for each in system.services.running:
            limit_files(each, resource.RLIM_INFINITY)
        account(system, burst(system, 3))
        assert all(log.stat().st_size > size for log, size in zip(logs, sizes, strict=True))
        record("a full disk, of the web tier and of the worker", "all answered, nothing logged", found)


# No test of the clock is about AWS's signatures: AWS refuses what was signed by a clock five minutes (SQS) or fifteen
# (S3) away, and botocore does not correct it. Instances set their clocks by Amazon's time service.
AHEAD_S, BEHIND_S = 7200, -7200
WRONG_CLOCK = """
import os, time

def wrong(now, unit):
    return lambda: now() + int(open(os.environ["WRONG_CLOCK"]).read()) * unit

time.time, time.time_ns = wrong(time.time, 1), wrong(time.time_ns, 10**9)
"""
"""Python runs it first, as sitecustomize; by how many seconds it is wrong says the file that WRONG_CLOCK names."""


class Clock:
    """A wrong clock for the processes that get its `environment`; `set` makes it jump."""

    def __init__(self, folder: Path, ahead_s: int) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WRONG_CLOCK)
        self.set(ahead_s)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        self.environment = {"PYTHONPATH": path, "WRONG_CLOCK": str(folder / "ahead")}

    def set(self, ahead_s: int) -> None:
        (self._folder / "new").write_text(str(ahead_s))
        (self._folder / "new").replace(self._folder / "ahead")


@pytest.mark.slow_fault
def test_clocks_that_are_wrong_and_jump(run: Running, record: Record, aws: str, tmp_path: Path) -> None:
    jumping, behind = Clock(tmp_path / "jumping", AHEAD_S), Clock(tmp_path / "behind", BEHIND_S)
    with run(workers=0, web=False) as system:
        workers = [system.begin_worker(**each.environment) for each in (jumping, behind)]
        system.start_web(**jumping.environment)
        for each in workers:
            system.wait_for_worker(each)
        with alive(*system.services.running):
            sent = Stream(system, 80, at_once=20, pace_s=0.1)
            wait_until(lambda: len(sent.replies) >= 15, timeout_s=240, what="the first replies")
            jumping.set(BEHIND_S)
            found, refused = account(system, sent)
            assert not refused
            # Whoever is the scaler sweeps what is abandoned, by any clock: nothing of these is.
            before = temporary(system)
            assert len(before) >= len(workers)
            for ahead_s in (0, AHEAD_S):
                clock = Clock(tmp_path / f"sweeping-{ahead_s}", ahead_s)
                env = environ(aws, system.settings, **clock.environment)
                subprocess.run([sys.executable, "-c", SWEEP], env=env, cwd=REPOSITORY, check=True, timeout=240)
            assert temporary(system) == before
        for photo_id in system.results():
            result = system.storage.get_result(photo_id)
            assert result
            timings = dataclasses.asdict(result.timings)
            assert all(0 <= seconds < 300 for seconds in timings.values()), timings
        record(
            "workers' clocks two hours ahead and behind; one and the web tier's jump by four",
            "names and times right, no queue swept",
            found,
        )


SWEEP = (
    "from celery_sqs.queues.janitor import Suspects, sweep; from faceapp import broker; "
    "from faceapp.config import settings; "
    "sweep(broker.options(settings()), Suspects(apart_s=0))"
)


def temporary(system: System) -> set[str]:
    """The stack's queues that processes made for themselves."""
    urls = system.sqs.list_queues(QueueNamePrefix=f"{system.settings.prefix}-").get("QueueUrls", [])
    return {url for url in urls if system.sqs.list_queue_tags(QueueUrl=url).get("Tags")}
