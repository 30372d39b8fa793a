"""moto made fast enough to stand in for the real one under load, without changing what it answers.

Seen with moto 5.2.5; tests/integration/test_local_aws.py fails when upstream makes one of these needless:

- the clock is asked through `datetime`, for each message of the queue, several times a call;
- a send reads one attribute and computes them all, with three passes over the messages;
- a delete asks every message, twice, about every receipt handle that it ever had;
- a long poll goes on, and is handed messages, when its client has gone (see hangups.py);
- a large object of S3's holds up everybody else (see large_bodies.py);
- each request of any service lists moto's own folder to see which services there are.

At 1,000 messages, with server.py: from 27 sends, 8 receives and 161 deletes a second to about 500, 350 and 700.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from moto.core.utils import unix_time
from moto.moto_server import werkzeug_app
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs import models
from moto.sqs.exceptions import ReceiptHandleIsInvalid

from celery_sqs.testing import large_bodies
from celery_sqs.testing.hangups import has_hung_up
from celery_sqs.testing.large_bodies import TakeLargeBodies


def make_app(create: Callable[[Any], Any] = create_backend_app) -> TakeLargeBodies:
    """moto's WSGI application, with the slow parts replaced in this process; it lets no page of a browser's read it.

    `create` makes the application of each service, by moto's name for it.
    """
    _replace_slow_sqs()
    large_bodies.mend()
    setattr(werkzeug_app, "DISABLE_GLOBAL_CORS", True)  # noqa: B010 - mypy forbids =
    app = DomainDispatcherApplication(create)
    setattr(app, "get_backend_for_host", lru_cache(maxsize=256)(app.get_backend_for_host))  # noqa: B010
    return TakeLargeBodies(app)


def _replace_slow_sqs() -> None:
    for name, function in (("unix_time", _now_s), ("unix_time_millis", _now_ms)):
        setattr(models, name, function)
    for name, method in (
        ("messages", property(_ready)),
        ("approximate_number_of_messages_delayed", property(_delayed_count)),
        ("approximate_number_of_messages_not_visible", property(_in_flight_count)),
        ("delete_message", _delete_message),
    ):
        setattr(models.Queue, name, method)


def _now_s(moment: datetime | None = None) -> float:
    return time.time() if moment is None else unix_time(moment)


def _now_ms(moment: datetime | None = None) -> float:
    return _now_s(moment) * 1000


def _ready(queue: models.Queue) -> list[models.Message]:
    if has_hung_up():
        return []
    now_ms = _now_ms()
    return [each for each in queue._messages if each.visible_at < now_ms >= each.delayed_until]


def _delayed_count(queue: models.Queue) -> int:
    now_ms = _now_ms()
    return sum(now_ms < each.delayed_until for each in queue._messages)


def _in_flight_count(queue: models.Queue) -> int:
    now_ms = _now_ms()
    return sum(each.visible_at >= now_ms for each in queue._messages)


def _delete_message(queue: models.Queue, receipt_handle: str) -> None:
    if receipt_handle in queue.deleted_messages:
        return
    for index, message in enumerate(queue._messages):
        if message.receipt_handle == receipt_handle or receipt_handle in message._old_receipt_handles:
            del queue._messages[index]
            queue.pending_messages.discard(message)
            queue.deleted_messages.update(handle for handle in message.all_receipt_handles if handle)
            return
    raise ReceiptHandleIsInvalid
