"""What a message looks like: Celery's protocol 2, as short as it can be."""

from __future__ import annotations

import base64
import json
from typing import Any

import celery.app.amqp
from kombu.common import Broadcast

TRIES = "celery-sqs:tries"
"""In a received message: how often it is delivered before it is a dead letter; 0 where the queue has none."""
TASK_DEFAULTS: dict[str, Any] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "kwargsrepr": "{}",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""Headers of Celery's message protocol 2 with the value that a worker assumes where a message does not carry them."""


class AMQP(celery.app.amqp.AMQP):
    """Celery's message protocol 2 without the headers that only repeat a default.

    They are a third of a small message. `origin` goes too: it is a host name of any length that nothing reads. A retry
    keeps its message's group.
    """

    def as_task_v2(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(task_id, *args, **{**kwargs, "origin": "-"})
        headers = {
            name: value
            for name, value in message.headers.items()
            if name != "origin" and (name not in TASK_DEFAULTS or value != TASK_DEFAULTS[name])
        }
        if headers.get("root_id") == headers["id"]:
            del headers["root_id"]
        return message._replace(headers=headers, properties=message.properties | self._group_of(task_id))

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def send_task_message(
            producer: Any, name: str, message: Any, *args: Any, queue: Any = None, declare: Any = None, **options: Any
        ) -> Any:
            # Celery declares nothing of a Broadcast, so that the sender gets no queue of its own. No server keeps the
            # exchange here: it would be a direct one without a queue, and the message would be lost.
            entity = self.queues[queue] if isinstance(queue, str) else queue
            if declare is None and isinstance(entity, Broadcast):
                declare = [entity.exchange]
            return send(producer, name, message, *args, queue=queue, declare=declare, **options)

        return send_task_message

    def _group_of(self, task_id: str) -> dict[str, str]:
        """The MessageGroupId of a task that is retried or replaced: Celery keeps its id, and forgets that."""
        request = getattr(self.app.current_worker_task, "request", None)
        if request is None or request.id != task_id:
            return {}
        group = (request.properties or {}).get("MessageGroupId")
        return {"MessageGroupId": group} if group else {}


def decoded(body: str) -> dict[str, Any]:
    """The message that SQS carries as `body`, which kombu may have put into base64.

    Raises ValueError for anything but a JSON object.
    """
    try:
        found = json.loads(body)
    except ValueError:
        found = json.loads(base64.b64decode(body, validate=True))
    if not isinstance(found, dict):
        raise ValueError("a message is a JSON object")
    return found


def content(message: dict[str, Any]) -> Any:
    """The JSON content of a message. Raises ValueError, TypeError or KeyError for one that has none."""
    body, properties = message["body"], message.get("properties")
    if isinstance(properties, dict) and properties.get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    return json.loads(body)
