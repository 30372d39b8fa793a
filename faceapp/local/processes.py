"""The services as processes: each in a session of its own with its output in a file, and none left over.

When the supervisor itself is killed, a reaper process sees its pipe close and stops what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from faceapp.errors import LocalError

GRACE_S = 10.0
"""From SIGTERM to SIGKILL: long enough for a worker to end the photos it has begun."""
POLL_S = 0.05
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 64 * 1024
TROUBLE = (" WARNING ", " ERROR ", " CRITICAL ", "Error: ")
"""What a log line about something wrong contains."""

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 30.0
"""A process that crashed is started again after a second, and twice as long each time until it has run for a minute."""
WELL_AFTER_S = 60.0
MOST_RESTARTS = 5
"""Restarts in a row of a process that never runs for `WELL_AFTER_S`: more would only hide what is wrong."""


def restart_pause_s(crashes: int) -> float:
    """Seconds to wait before a process is started again that crashed `crashes` times in a row."""
    return float(min(LONGEST_RESTART_S, FIRST_RESTART_S * 2 ** (crashes - 1)))


@dataclass
class Service:
    """A running process, `name`d for people; its process group has the same id as itself."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]
    started_s: float
    restarts: bool = False
    """Whether it is started again when it ends by itself."""
    holds: str = ""
    """What is lost with the process, as a sentence."""
    crashes: int = 0
    again_at_s: float | None = None
    """When it is started again, while it is down."""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def end(self) -> str:
        """How the process ended."""
        status = self.process.returncode
        return f"by signal {-status}" if status < 0 else f"with status {status}"

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        return log_tail(self.log)


def log_tail(log: Path) -> str:
    """The last lines of a log; empty when it cannot be read."""
    return "\n".join(_last_lines(log)[-LOG_TAIL_LINES:])


def log_trouble(log: Path) -> str:
    """The last warnings and errors in a log, or its last lines when it has none."""
    lines = _last_lines(log)
    trouble = [line for line in lines if any(sign in line for sign in TROUBLE)]
    return "\n".join((trouble or lines)[-LOG_TAIL_LINES:])


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


class Reaper:
    """A process that stops the process groups it was told of when this process ends, however that comes about."""

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faceapp.local.reaper", str(grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """Stop this process group when the time comes."""
        self._tell(f"+{group}")

    def discard(self, group: int) -> None:
        """Leave it alone: it has ended."""
        self._tell(f"-{group}")

    def close(self) -> None:
        """Let it do its work now, and end."""
        self.release()
        self._process.wait()

    def release(self) -> None:
        """For a forked child: it must not keep the pipe open behind its parent's back."""
        assert self._process.stdin
        # A killed reaper may have left lines unread: nobody needs them.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        # The reaper may have been killed: then nobody watches, and everything else still works.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


class Services:
    """Starts services and stops them all. A context manager: leaving it stops everything."""

    def __init__(
        self,
        log_folder: Path,
        environ: Mapping[str, str],
        *,
        follow: bool = False,
        grace_s: float = GRACE_S,
        warn: Callable[[str], None] = print,
    ) -> None:
        """`warn` is told of each service that ended and is started again."""
        self.log_folder, self._environ, self._follow, self._grace_s = log_folder, environ, follow, grace_s
        self._warn = warn
        self.running: list[Service] = []
        self._starting = False
        self._interrupted = False
        self._hurried = False
        self._over = threading.Event()
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self._reaper = Reaper()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupted = True
        self.stop()
        self._over.set()
        self._reaper.close()

    def interrupt(self) -> None:
        """For signal handlers: KeyboardInterrupt, but never between a process's start and its being noted.

        While the services are being stopped, and at the second call, it ends the grace period instead.
        """
        if self._interrupted:
            self._hurried = True
            return
        self._interrupted = True
        if not self._starting:
            raise KeyboardInterrupt

    def start(self, name: str, command: list[str]) -> Service:
        """Start `command`; its output goes to `<name>.log`, anew."""
        log = self.log_folder / f"{name.replace(' ', '-')}.log"
        log.unlink(missing_ok=True)
        self._starting = True
        service = Service(name, command, log, self._launch(command, log), time.monotonic())
        self.running.append(service)
        self._started(service)
        return service

    def _start_again(self, service: Service) -> None:
        self._starting = True
        service.process, service.started_s = self._launch(service.command, service.log), time.monotonic()
        service.again_at_s = None
        self._started(service)

    def _launch(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )

    def _started(self, service: Service) -> None:
        self._reaper.add(service.process.pid)
        self._starting = False
        if self._follow:
            threading.Thread(target=_follow_log, args=(service, service.process), daemon=True).start()
        if self._interrupted:
            raise KeyboardInterrupt

    def look(self) -> None:
        """Start again what has ended and may be, after a pause that grows.

        Raises LocalError, with the end of the log, when another service has ended, or one too often.
        """
        for service in self.running:
            if service.running:
                continue
            if service.again_at_s is None:
                self._note_end(service)
            elif time.monotonic() >= service.again_at_s:
                self._start_again(service)

    def _note_end(self, service: Service) -> None:
        now_s = time.monotonic()
        # What its process has left behind would keep its port.
        _kill_group(service.process.pid)
        self._reaper.discard(service.process.pid)
        service.crashes = 1 if now_s - service.started_s > WELL_AFTER_S else service.crashes + 1
        said = f"The {service.name} ended {service.end}"
        if not service.restarts or service.crashes > MOST_RESTARTS:
            times = f" for the {service.crashes}th time in a row" if service.crashes > MOST_RESTARTS else ""
            holds = f" {service.holds}" if service.holds else ""
            raise LocalError(f"{said}{times}.{holds} The end of {service.log}:\n{service.log_tail()}")
        pause_s = restart_pause_s(service.crashes)
        service.again_at_s = now_s + pause_s
        self._warn(f"{said} and is started again in {pause_s:g} s. Its log is {service.log}")

    def follow_files(self, pattern: str) -> None:
        """With `follow`: show what is written from now on to the log folder's files of that pattern, old and new ones.

        These are the logs of processes that a service starts.
        """
        if self._follow:
            files = Files(self.log_folder, pattern)
            threading.Thread(target=files.follow, args=[self._over], daemon=True).start()

    def wait_for(
        self, condition: Callable[[], bool], *, timeout_s: float, what: str, logs: Callable[[], Iterable[Path]] = tuple
    ) -> None:
        """Wait until `condition` holds.

        Raises LocalError when a service ends meanwhile that is not started again, and after `timeout_s`: with `what` is
        wrong and what is wrong by the `logs` (default: those of all services).
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.look()
            if time.monotonic() > deadline_s:
                found = list(logs()) or [each.log for each in self.running]
                ends = "\n".join(f"{log}:\n{log_trouble(log)}" for log in found)
                raise LocalError(f"{what} after {timeout_s:g} s. The logs say:\n{ends}")
            time.sleep(POLL_S)

    def stop(self, services: Iterable[Service] | None = None) -> None:
        """Stop the services (default: all), all at once: SIGTERM, a grace period, SIGKILL to the whole group.

        SIGTERM goes to the group's leader only, which ends its children in order.
        """
        stopping = list(self.running if services is None else services)
        for service in stopping:
            service.process.terminate()
        kill_after_grace(
            [service.process.pid for service in stopping],
            running=lambda: not self._hurried and any(service.running for service in stopping),
            grace_s=self._grace_s,
        )
        for service in stopping:
            service.process.wait()
            self.running.remove(service)
            self._reaper.discard(service.process.pid)


def kill_after_grace(groups: Iterable[int], *, running: Callable[[], bool], grace_s: float = GRACE_S) -> None:
    """Wait until nothing is running, or for the grace period; then SIGKILL to whoever is left of the groups."""
    deadline_s = time.monotonic() + grace_s
    while running() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    for group in groups:
        _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _follow_log(service: Service, process: subprocess.Popen[bytes]) -> None:
    """Copy the log's lines to standard output, each behind the service's name, until the process has ended."""
    with service.log.open(encoding="utf-8", errors="replace") as log:
        if service.crashes:  # what its predecessors wrote was copied
            log.seek(0, os.SEEK_END)
        while True:
            ended = process.poll() is not None
            for line in log:
                print(f"{service.name:>12} | {line.rstrip()}", flush=True)
            if ended:
                return
            time.sleep(POLL_S * 4)


class Files:
    """Copies lines that are written to a folder's files to standard output, each behind its file's name."""

    def __init__(self, folder: Path, pattern: str) -> None:
        """What is in the files already is not copied."""
        self._folder, self._pattern = folder, pattern
        self._open: dict[Path, IO[bytes]] = {}
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                self._open[path] = path.open("rb")
                self._open[path].seek(0, os.SEEK_END)

    def follow(self, over: threading.Event) -> None:
        """Copy until it is over."""
        while not over.wait(POLL_S * 4):
            self.copy()
        self.copy()
        self.close()

    def close(self) -> None:
        """Copy nothing any more."""
        while self._open:
            self._open.popitem()[1].close()

    def copy(self) -> None:
        """Copy what was written since the last time."""
        for path in sorted({*self._folder.glob(self._pattern), *self._open}):
            with contextlib.suppress(FileNotFoundError):
                if path not in self._open:
                    self._open[path] = path.open("rb")
            if log := self._open.get(path):
                _copy_lines(path.stem, log)
                # An open file's number is nobody else's: another one is another file.
                if not path.exists() or path.stat().st_ino != os.fstat(log.fileno()).st_ino:
                    self._open.pop(path).close()


def _copy_lines(name: str, log: IO[bytes]) -> None:
    """Copy the lines that are complete."""
    while (line := log.readline()).endswith(b"\n"):
        print(f"{name:>12} | {line.decode(errors='replace').rstrip()}", flush=True)
    log.seek(-len(line), os.SEEK_CUR)
