"""Flower's broker page and its `/api/queues/length`, with what SQS knows of queues (mher/flower#65)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado import web
from tornado.ioloop import IOLoop

from celery_sqs.errors import BrokerUnavailable
from celery_sqs.flower.options import QueueRow

TEMPLATE = str(Path(__file__).with_name("templates") / "queues.html")
"""With its whole path: what it extends is Flower's."""


async def _ask(application: Any) -> Sequence[QueueRow]:
    found: Sequence[QueueRow] = await IOLoop.current().run_in_executor(None, application.queue_rows)
    return found


class QueuesView(BaseHandler):
    """The broker page."""

    @web.authenticated
    async def get(self) -> None:
        found: Sequence[QueueRow] = ()
        trouble = ""
        try:
            found = await _ask(self.application)
        except BrokerUnavailable as error:
            trouble = str(error)
        options = self.application.options
        self.render(
            TEMPLATE,
            broker_url=self.application.broker_uri,
            queues=found,
            trouble=trouble,
            note=self.application.own.note,
            autorefresh=options.auto_refresh,
        )


class QueueLengths(BaseApiHandler):
    """The same as JSON, each queue with the names that Flower uses for RabbitMQ's."""

    @web.authenticated
    async def get(self) -> None:
        try:
            found = await _ask(self.application)
        except BrokerUnavailable as error:
            raise web.HTTPError(503, "%s", str(error)) from error
        self.write(
            {
                "active_queues": [
                    {
                        "name": each.name,
                        "kind": each.kind,
                        "messages": each.messages,
                        "messages_ready": each.visible,
                        "messages_unacknowledged": each.in_flight,
                        "messages_delayed": each.delayed,
                    }
                    for each in found
                ]
            }
        )


HANDLERS: list[Any] = [(r"/broker", QueuesView), (r"/api/queues/length", QueueLengths)]
