"""Task messages that fit into the request queue's 1,024 bytes."""

from __future__ import annotations

from typing import Any

import celery.app.amqp

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

    They are a third of the message, and ours must fit into the request queue's 1,024 bytes. `origin` goes too: it is a
    host name of any length that nothing reads.
    """

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **{**kwargs, "origin": "-"})
        headers = {
            name: value
            for name, value in message.headers.items()
            if name != "origin" and (name not in TASK_DEFAULTS or value != TASK_DEFAULTS[name])
        }
        if headers.get("root_id") == headers["id"]:
            del headers["root_id"]
        return message._replace(headers=headers)
