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


@dataclass
class Service:
    """A running process, `name`d for people; its process group has the same id as itself."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def check(self) -> None:
        """Raises LocalError, with the end of the log, when the process has ended."""
        status = self.process.poll()
        if status is not None:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise LocalError(f"The {self.name} ended {how}. The end of {self.log}:\n{self.log_tail()}")


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
        self, log_folder: Path, environ: Mapping[str, str], *, follow: bool = False, grace_s: float = GRACE_S
    ) -> None:
        self.log_folder, self._environ, self._follow, self._grace_s = log_folder, environ, follow, grace_s
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
        path = self.log_folder / f"{name.replace(' ', '-')}.log"
        self._starting = True
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        service = Service(name, process, path)
        self.running.append(service)
        self._reaper.add(process.pid)
        self._starting = False
        if self._follow:
            threading.Thread(target=_follow_log, args=(service,), daemon=True).start()
        if self._interrupted:
            raise KeyboardInterrupt
        return service

    def follow_files(self, pattern: str) -> None:
        """With `follow`: show what is written from now on to the log folder's files of that pattern, old and new ones.

        These are the logs of processes that a service starts.
        """
        if self._follow:
            files = Files(self.log_folder, pattern)
            threading.Thread(target=files.follow, args=[self._over], daemon=True).start()

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Wait until `condition` holds. Raises LocalError when a service ends meanwhile, and after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for service in self.running:
                service.check()
            if time.monotonic() > deadline_s:
                ends = "\n".join(f"{each.log}:\n{each.log_tail()}" for each in self.running)
                raise LocalError(f"{what} after {timeout_s:g} s. The logs end like this:\n{ends}")
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _follow_log(service: Service) -> None:
    """Copy the log's lines to standard output, each behind the service's name, until the process has ended."""
    with service.log.open(encoding="utf-8", errors="replace") as log:
        while True:
            ended = not service.running
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
