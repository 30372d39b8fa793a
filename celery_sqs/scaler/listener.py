"""Brings Celery's events to `Workers`, over the app's own transport."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

from celery import Celery

from celery_sqs.scaler.workers import PING, PING_S, Workers

logger = logging.getLogger(__name__)

RETRY_S = 5.0


class Listener:
    """Feeds `workers` with the app's events, in a thread of its own, until `stop`.

    Errors are logged and the connection is made anew; the scaler goes on without events meanwhile.
    """

    def __init__(self, app: Celery, workers: Workers, *, place: str = "") -> None:
        """`place` tells the scalers of one machine apart."""
        self._app = app
        # One place, one scaler: another that waits to lead elsewhere has a queue of its own.
        self._node = f"scaler-{socket.gethostname()}-{place}"
        self._workers = workers
        self._stop = threading.Event()
        # A daemon: it may be in the middle of a long poll, and nothing waits for it.
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does so after its long poll."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except Exception as error:
                # Whatever it was (kombu, botocore, the network): without events the scaler is only more careful.
                logger.warning("no events from the workers: %s (next attempt in %.0f s)", error, RETRY_S)
                self._stop.wait(RETRY_S)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._workers.on_event}, node_id=self._node)
            with receiver.consumer_context(wakeup=False) as (listening, channel, _):
                # Each worker answers with a heartbeat, which says whether it has work.
                receiver.wakeup_workers(channel=channel)
                self._pump(listening)

    def _pump(self, connection: Any) -> None:
        ping_s = float("-inf")
        with self._app.connection_for_write() as writing:
            dispatcher = self._app.events.Dispatcher(writing, hostname=self._node, buffer_while_offline=False)
            while not self._stop.is_set():
                if time.monotonic() - ping_s >= PING_S:
                    dispatcher.send(PING)
                    ping_s = time.monotonic()
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    continue
