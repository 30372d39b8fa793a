"""Flower's web application, at home on SQS."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

import click
import flower.app
import flower.events
from celery.events import EventReceiver
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import RequestHandler

from celery_sqs import options as application
from celery_sqs.errors import ConfigurationError
from celery_sqs.flower import guard, pages, results
from celery_sqs.flower.options import FlowerOptions, QueueRow
from celery_sqs.pace import HEARTBEAT_S
from celery_sqs.queues import counts

logger = logging.getLogger(__name__)

UNANSWERED = "Inspect method %s failed"
"""What Flower logs when no worker answers."""
LONGEST_PAUSE_S = 30.0
"""Between two tries to listen to a broker that does not answer."""
FORGET_S = 60.0
"""A worker whose events are missing counts as gone when it has not answered for so long, either."""
BODY_BYTES = 1024 * 1024
"""A request's body, which Tornado reads before the guard answers. Tasks' arguments are the largest that is sent."""
HEAD_BYTES = 64 * 1024
HEAD_S = 15.0
"""How long a connection has for its next request's head, and so may be idle, too."""
BODY_S = 15.0


class Events(flower.events.Events):
    """Flower's, over a queue named after its place, and with the tasks at work counted from their own events."""

    place = ""
    """A restarted Flower takes the same queue again."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._at_work: defaultdict[str, set[str]] = defaultdict(set)
        self._left: dict[str, float] = {}

    def run(self) -> None:
        pause_s = 1.0
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(
                        connection, handlers={"*": self.on_event}, app=self.capp, node_id=f"flower-{self.place}"
                    )
                    pause_s = 1.0
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:  # this thread must not end: the pages would stand still
                logger.warning("no events, again in %g s: %s", pause_s, error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "worker-heartbeat" and "active" not in event:
            # A worker that is asked for a heartbeat promises the next in five seconds, and keeps to its own pace.
            worker = self.state.workers.get(event["hostname"])
            event = {**event, "freq": getattr(worker, "freq", None) or HEARTBEAT_S}
        super().on_event(event)
        self.io_loop.add_callback(self._correct, event["type"], event["hostname"], event)

    def _correct(self, kind: str, name: str, event: dict[str, Any]) -> None:
        """Mend what Celery makes of events that are seldom (heartbeats) or in another order (all of them on SQS)."""
        worker = self.state.workers.get(name)
        if worker is None:
            return
        if kind.startswith("task-"):
            at_work = self._at_work[name]
            (at_work.add if kind == "task-started" else at_work.discard)(event["uuid"])
            worker.active = len(at_work)
        elif event.get("active") == 0:  # whatever was lost: nothing is at work
            self._at_work.pop(name, None)
        # A worker that leaves says goodbye before it tells of its last tasks, which to Celery are signs of life.
        if kind == "worker-offline":
            self._left[name] = event["timestamp"]
        elif kind.startswith("worker-") and event["timestamp"] > self._left.get(name, 0.0):
            self._left.pop(name, None)
        if name in self._left:
            worker.heartbeats.clear()


class Flower(flower.app.Flower):
    """Flower with our guard, our queues' page, and no memory of workers that left.

    Raises ConfigurationError when it would stand open beyond this machine.
    """

    def __init__(self, own: FlowerOptions, *, options: Any, capp: Any, **settings: Any) -> None:
        guard.check_address(options, own)
        self.own = own
        events = Events(
            capp,
            io_loop=IOLoop.current(),
            db=options.db,
            persistent=options.persistent,
            enable_events=options.enable_events,
            state_save_interval=options.state_save_interval,
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        super().__init__(options=options, capp=capp, events=events, **settings)
        handlers = pages.HANDLERS + results.HANDLERS
        if options.url_prefix:
            handlers = [flower.app.rewrite_handler(each, options.url_prefix) for each in handlers]
        self.add_handlers(".*", handlers)
        self.results = results.Held()
        self.guard: guard.Guard | None = None
        self._own_key = ""
        if not guard.is_protected(options):
            self._own_key = "" if own.key else secrets.token_urlsafe(32)
            self.guard = guard.Guard(own.key or self._own_key, options, own)
            os.environ.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
            self.add_transform(guard.OwnPagesOnly)

    @cached_property
    def sqs(self) -> Any:
        """The client that the queues' page asks with."""
        return application.of(self.capp).aws.quick("sqs")

    def queue_rows(self) -> Sequence[QueueRow]:
        """The queues of the broker page. Raises BrokerUnavailable."""
        if self.own.queues:
            return self.own.queues(self.sqs)
        return counts.work_queues(application.of(self.capp), self.sqs)

    @cached_property
    def broker_uri(self) -> str:
        """Where SQS answers; kombu's own words for it name no place."""
        return str(self.sqs.meta.endpoint_url)

    def start_http_server(self) -> int | None:
        """Listen; returns the port, None for a socket file. Ends the process with a sentence where it cannot."""
        try:
            port = self._listen()
        except OSError as error:
            where = self.options.unix_socket or f"port {self.options.port} of {self.options.address}"
            leave(f"Flower cannot listen on {where}: {error.strerror or error}.", status=1)
        # Two Flowers on one machine each get every event.
        place = port or zlib.crc32(os.path.abspath(self.options.unix_socket).encode())
        self.events.place = f"{socket.gethostname().partition('.')[0]}-{place}"
        if self._own_key:
            self._say_key(port)
        return port

    def _say_key(self, port: int | None) -> None:
        """Where the key is, for whoever started this by hand. It goes to a terminal only, never into a log."""
        if port and sys.stderr.isatty():
            click.echo(f"Flower: http://{self.options.address}:{port}/?key={self._own_key}", err=True)
        else:
            logger.warning("Flower's pages need a key: set %s, or %s", self.own.key_setting, self.own.password_setting)

    def _listen(self) -> int | None:
        # Flower's own server has no bounds: bodies of up to 100 MiB each, and heads that never end.
        server = HTTPServer(
            self,
            ssl_options=self.ssl_options,
            xheaders=self.options.xheaders,
            max_header_size=HEAD_BYTES,
            max_body_size=BODY_BYTES,
            idle_connection_timeout=HEAD_S,
            body_timeout=BODY_S,
        )
        if self.options.unix_socket:
            # Flower opens its socket file to every user of the machine (since mher/flower#725).
            mode = 0o777 if guard.is_protected(self.options) else 0o600
            server.add_socket(bind_unix_socket(self.options.unix_socket, mode=mode))
            return None
        sockets = bind_sockets(self.options.port, address=self.options.address)
        server.add_sockets(sockets)
        port: int = sockets[0].getsockname()[1]
        return port

    def find_handler(self, request: HTTPServerRequest, **named: Any) -> Any:
        """The handler for `request`; the guard's where that does not let it pass."""
        if self.guard and (found := self.guard.instead(request)):
            return self.get_handler_delegate(request, *found)
        return super().find_handler(request, **named)

    def log_request(self, handler: RequestHandler) -> None:
        """As ever, but for an address with the key in it."""
        if "key" not in handler.request.query_arguments:
            super().log_request(handler)

    @property
    def workers(self) -> Any:
        """What the workers answered, by name: all that are there, also those that have not been asked yet."""
        # Flower knows a worker when it has answered, and for ever (mher/flower#1139): one that came later could not be
        # told anything before its page was opened.
        known = self.inspector.workers
        for name, worker in self.events.state.workers.items():
            if worker.alive:
                _ = known[name]  # a defaultdict
            elif time.time() - known.get(name, {}).get("timestamp", 0.0) > FORGET_S:
                known.pop(name, None)
        return known


def make(*, options: Any, capp: Any, **settings: Any) -> Flower:
    """What Flower's command makes instead of its own; ends the process with a sentence when it may not."""
    own = application.of(capp).flower
    if own.set_up_logging:
        own.set_up_logging(options.debug)
    else:
        logging.basicConfig(level=logging.DEBUG if options.debug else logging.INFO)
    # With no worker there is nobody to answer, which is no trouble here.
    logging.getLogger("flower.inspector").addFilter(lambda record: record.msg != UNANSWERED)
    if any(each.startswith(("--basic-auth", "--basic_auth")) for each in sys.argv):
        logger.warning("every user of this machine can read a password in 'ps': set %s instead", own.password_setting)
    try:
        return Flower(own, options=options, capp=capp, **settings)
    except ConfigurationError as error:
        leave(str(error), status=2)


def leave(sentence: str, *, status: int) -> NoReturn:
    """End the process with a sentence."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(status)
