"""The web tier under gunicorn."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from faceapp.config import Settings
from faceapp.errors import LocalError
from faceapp.http import connections
from faceapp.operations import open_files

logger = logging.getLogger(__name__)

BACKLOG = 4096
KEEPALIVE_S = 15
SPARE_CONNECTIONS = 4096
"""Connections of a process besides those it works for: idle ones, and those that are told that there is no place.

A connection above the limit is not accepted before another ends, so it is answered by nobody: this must be so many that
the limit of FACEAPP_WEB_WAITING is the one that is met.
"""
LAST_ANSWERS_S = 5
HANG_S = 30
"""A process that runs and of which nothing is heard for longer hangs, and is replaced."""
JUMP_S = 5.0
"""The arbiter looks at its processes every second: when more than this has passed, it did not run itself."""
SWITCH_S = 0.001
"""How long a thread that reads a photo's header keeps the event loop waiting at a time; Python's default is 5 ms."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable: where the processes of one server keep their numbers, so that each can tell of all."""
OTHER_FILES = 512
"""Open files of a process that are no client's connection: connections to S3 and SQS, code, logs."""


class Server(BaseApplication):  # type: ignore[misc] # gunicorn is untyped
    """Flask's app on a listening socket (its file descriptor, which gunicorn closes), in `web_processes` processes."""

    def __init__(self, settings: Settings, listener: int, *, most_connections: int) -> None:
        self.settings = settings
        self.most_connections = most_connections
        self.listener = listener
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        values = {
            "bind": f"fd://{self.listener}",
            "workers": settings.web_processes,
            "worker_class": connections.GreenletWorker,
            "worker_connections": self.most_connections,
            "keepalive": KEEPALIVE_S,
            # A client that takes a piece now and then would keep its greenlet for as long as it likes.
            "sendfile": False,
            # Requests in flight may still wait for their answers when the server is told to stop.
            "timeout": HANG_S,
            "graceful_timeout": math.ceil(settings.web_wait_s) + LAST_ANSWERS_S,
            "loglevel": settings.log_level.lower(),
            "logger_class": Lines,
            "proc_name": "faceapp-web",
            "control_socket_disable": True,
            # gunicorn would let any process of this machine say which path, script and scheme a request is of.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "pre_fork": give_slot,
            "post_worker_init": take_slot,
            "child_exit": forget_gauges,
            "on_exit": remove_metrics,
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Until SystemExit."""
        PatientArbiter(self).run()

    def load(self) -> flask.Flask:
        # Imported in the worker, so that gevent has patched what it must before boto3 and Celery are there.
        from faceapp.web import create_app

        return create_app(self.settings)


class PatientArbiter(Arbiter):  # type: ignore[misc] # gunicorn is untyped
    """gunicorn's arbiter, which kills no process for the time in which that did not run.

    gunicorn takes a heartbeat that is older than `timeout` for a process that hangs. One that was stopped (SIGSTOP, a
    terminal's Ctrl-Z, a debugger, a frozen container) has an old one, too, and would be killed just when it goes on.
    """

    looked_s = float("inf")

    def spawn_worker(self) -> int:
        """A process of ours that is told to end while it starts would take that for a signal to the arbiter that it was
        forked from, and be waited for in vain. So the signal stays pending until the process has its own handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, connections.ENDING)
        try:
            return int(super().spawn_worker())
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, connections.ENDING)

    def murder_workers(self) -> None:
        now_s = time.monotonic()
        slept, self.looked_s = now_s - self.looked_s > JUMP_S, now_s
        for pid, worker in list(self.WORKERS.items()):
            if slept or is_stopped(pid):
                worker.tmp.notify()
        super().murder_workers()


def is_stopped(pid: int) -> bool:
    """Whether a child process is stopped by a signal; False where the system does not tell."""
    if not hasattr(os, "waitid"):
        return False
    try:
        # WNOWAIT leaves it to be asked for again.
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


class Lines(Logger):  # type: ignore[misc] # gunicorn is untyped
    """gunicorn's lines, written like everybody else's in this process."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        # At DEBUG it tells each request's path, which can have a person's name in it; our own line has the pattern.
        self.error_log.setLevel(max(self.loglevel, logging.INFO))
        self.error_log.handlers.clear()
        self.error_log.propagate = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; SystemExit then. Raises LocalError if it cannot start."""
    wanted = settings.web_connections + SPARE_CONNECTIONS
    most_connections = open_files.allow(wanted + OTHER_FILES) - OTHER_FILES
    if most_connections <= settings.web_connections:
        raise LocalError(
            f"The system allows a process too few open files for {settings.web_connections} requests at once: allow "
            f"{wanted + OTHER_FILES} (ulimit -Hn), or choose a smaller FACEAPP_WEB_CONNECTIONS and FACEAPP_WEB_WAITING."
        )
    listener = listen(settings)
    # A folder that somebody else named is not ours to fill, and not ours to remove.
    os.environ.pop(METRICS_FOLDER, None)
    if settings.web_processes > 1:
        os.environ[METRICS_FOLDER] = metrics_folder()
    logger.info("the web tier listens on %s", url(listener))
    Server(settings, listener.detach(), most_connections=min(wanted, most_connections)).run()


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Opened here, since gunicorn would try five times and then exit without a sentence."""
    address = (settings.web_host, settings.web_port)
    family = socket.AF_INET6 if ":" in settings.web_host else socket.AF_INET
    try:
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise LocalError(
            f"The web tier cannot listen on {settings.web_host}:{settings.web_port} ({error.strerror or error}): "
            "stop what listens there, or choose another port with FACEAPP_WEB_PORT."
        ) from error
    listener.set_inheritable(True)
    return listener


def metrics_folder() -> str:
    """A new folder for the numbers of several processes. Raises LocalError if there can be none."""
    try:
        return tempfile.mkdtemp(prefix="faceapp-web-metrics-")
    except OSError as error:
        raise LocalError(
            f"Several web processes need a folder for their metrics ({error.strerror or error}): let TMPDIR name one "
            "that can be written to, or set FACEAPP_WEB_PROCESSES=1."
        ) from error


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def lowest_free(taken: Iterable[int]) -> int:
    """The smallest number from 0 that is not among `taken`."""
    used, slot = set(taken), 0
    while slot in used:
        slot += 1
    return slot


def give_slot(arbiter: Any, worker: Any) -> None:
    """gunicorn's pre_fork, in the arbiter: a new process takes the place, and so the queue, of one that is gone."""
    worker.slot = lowest_free(each.slot for each in arbiter.WORKERS.values())


def take_slot(worker: Any) -> None:
    """gunicorn's post_worker_init, in the new process, before its first request."""
    from faceapp import broker
    from faceapp.observability import tracing

    sys.setswitchinterval(SWITCH_S)
    broker.use_slot(worker.slot)
    tracing.load("faceapp-web")


def forget_gauges(_: Any, worker: Any) -> None:
    """gunicorn's child_exit, in the arbiter: what a process counted stays, what it had at the moment goes."""
    if folder := os.environ.get(METRICS_FOLDER):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid, folder)  # type: ignore[no-untyped-call]


def remove_metrics(_: Any) -> None:
    """gunicorn's on_exit, in the arbiter, when all processes have ended."""
    if folder := os.environ.get(METRICS_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
