"""Whoever is forgotten is forgotten in the results, too.

The gallery forgets at once; results are many, and nothing says which of them name somebody: an index would cost each
photo a call. So whoever forgets somebody leaves an order, `forgetting/<id>` in the gallery bucket, and workers go
through the out-bucket, a page in each task. Messages, events and logs have the order's id; only the order has the name.

A result whose face has the name is deleted with its upload; one that has it among a face's candidates is written again
without. What lies at a result's place and cannot be read is deleted with its upload, too: it may have the name. A
document of another version is deleted if any of its texts is the name.

A worker's gallery may be some seconds old, and a task may be running: so there is a second sweep when every
task that did not know has ended. A result that is stored after that is about somebody else of that name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from faceapp import broker
from faceapp.broker.messages import FORGET
from faceapp.config import Settings
from faceapp.errors import SchemaError
from faceapp.schema import REQUEST_ID, Recognition
from faceapp.storage import GalleryObject, Storage, StoredResult, first_id_after

logger = logging.getLogger(__name__)

ORDERS = "forgetting/"
PAGE = 500
"""Results that one task looks at, at most."""
AT_ONCE = 16
LOST_S = 3600.0
"""A pass through a million results takes as long."""
MARGIN_S = 3.0
"""For S3's clocks, which tell whole seconds, and a result that is on its way to S3 when its task is killed."""

Fate = Literal["kept", "changed", "erased", "unreadable"]
"""What became of a result; `unreadable` is erased, too."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Somebody who is to be forgotten in what was stored until then."""

    id: str
    name: str
    given: datetime
    """By S3's clock, as all times here are."""
    looked: datetime
    """When S3 told this."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an order's work goes on: in sweep 1 or 2, at the request id `start` (empty: at the first), in `wait_s`."""

    sweep: int
    start: str
    wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one task has done: how many results it erased and changed, and what is next (None: it was the last)."""

    erased: int = 0
    changed: int = 0
    unreadable: int = 0
    """Of those that it erased."""
    next: Place | None = None


class Forgetting:
    """Orders and what becomes of them. Every method raises StorageUnavailable, and can be called again then."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._storage = storage
        self.ended_s = math.ceil(settings.task_time_limit_s + MARGIN_S)
        """When a photo was deleted so long ago, every task that has fetched it has ended, and can store no result."""
        self._settle_s = settings.gallery_refresh_s + self.ended_s
        # A task is killed at its limit, and begins a page again then.
        self._page_s = settings.task_time_limit_s / 4

    def order(self, order_id: str, name: str) -> None:
        """Leave an order to forget `name`, written as the gallery writes it (gallery.names)."""
        document = json.dumps({"name": name}, ensure_ascii=False)
        self._storage.put_gallery(ORDERS + order_id, document.encode())

    def orders(self) -> list[Order]:
        """All that are not done (a call, and one for each)."""
        keys = [key.removeprefix(ORDERS) for key, _ in self._storage.list_gallery(ORDERS)]
        return [order for order in map(self._find, keys) if order]

    def _find(self, order_id: str) -> Order | None:
        found = self._storage.get_gallery(ORDERS + order_id) if REQUEST_ID.fullmatch(order_id) else None
        if found is None:
            return None
        try:
            name = str(json.loads(found.data)["name"])
            return Order(id=order_id, name=name, given=found.last_modified, looked=found.answered)
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.error("the order %s cannot be read", order_id)
            return None

    def is_forgotten(self, name: str, since: datetime) -> bool:
        """Whether an order that is not done is to forget `name` as it was at `since`."""
        return any(each.name == name and since < each.given for each in self.orders())

    def go_on(self, order_id: str, place: Place) -> Done:
        """Do some of an order's work. Doing it again does nothing more."""
        order = self._find(order_id)
        if order is None:
            return Done()
        settled = order.given + timedelta(seconds=self._settle_s)
        if place.sweep == 1 and not place.start:
            self._drop_incoming(order)
        if place.sweep == 2 and not place.start and order.looked < settled:
            return Done(next=dataclasses.replace(place, wait_s=_seconds(settled, order.looked)))
        began_s, fates = time.monotonic(), Counter[Fate]()
        page = self._storage.list_results(start=place.start, most=PAGE)
        following = page.next
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="forget") as threads:
            for start in range(0, len(page.results), 2 * AT_ONCE):
                some = page.results[start : start + 2 * AT_ONCE]
                old = [each for each in some if each.stored < settled]
                fates.update(threads.map(lambda each: self._forget_in(each, order.name), old))
                if time.monotonic() - began_s > self._page_s and some[-1] != page.results[-1]:
                    following = first_id_after(some[-1].id)
                    break
        if following:
            then: Place | None = Place(sweep=place.sweep, start=following)
        elif place.sweep == 1:
            then = Place(sweep=2, start="", wait_s=_seconds(settled, page.answered))
        else:
            self._finish(order)
            then = None
        erased = fates["erased"] + fates["unreadable"]
        return Done(erased=erased, changed=fates["changed"], unreadable=fates["unreadable"], next=then)

    def _drop_incoming(self, order: Order) -> None:
        """Photos that waited to be enrolled under the name when it was forgotten."""
        for key, stored in self._storage.list_all_incoming():
            # S3 counts seconds: in the same one counts as later.
            if stored < order.given and self._storage.name_of_incoming(key) == order.name:
                self._storage.delete_gallery([key])

    def _forget_in(self, listed: StoredResult, name: str) -> Fate:
        found = self._storage.get_result_document(listed.id) if listed.readable else None
        if found is None and listed.readable:
            return "kept"  # it is gone
        fate, without = _judge(found, listed.id, name)
        if fate == "unreadable":
            logger.warning("what is stored as the result of %s cannot be read: it is deleted with its photo", listed.id)
        if fate in ("erased", "unreadable"):
            self.erase(listed.id)
        elif found and without and not self._storage.replace_result(without, etag=found.etag):
            return self._forget_in(listed, name)  # another delivery of its message has stored it again
        return fate

    def erase(self, request_id: str) -> None:
        """Delete a photo that somebody sent, and its result; what is not there is no error."""
        self._storage.delete_photo(request_id)
        self._storage.delete_result(request_id)

    def _finish(self, order: Order) -> None:
        """Delete the order, and older ones of that name, whose message was never sent or failed."""
        done = [each.id for each in self.orders() if each.name == order.name and each.given <= order.given]
        self._storage.delete_gallery([ORDERS + order_id for order_id in {*done, order.id}])


class LostOrders:
    """Finds orders that are old and not done, and sends their message again: the scaler's janitor asks it to.

    The web tier stores an order before it sends the message, and may end between the two. Nothing tells a lost message
    from a long pass through many results, so a message is sent again after an hour and then when the order's age has
    doubled. Passes do no harm to each other, and all end when the first is done.
    """

    def __init__(self, settings: Settings, *, after_s: float = LOST_S) -> None:
        self._settings, self._storage, self._after_s = settings, Storage(settings), after_s
        self._ages_s: dict[str, float] = {}
        self._app: broker.FaceappCelery | None = None

    def send_again(self) -> list[str]:
        """Returns the orders' ids. Raises StorageUnavailable, and what Celery raises when SQS does not answer."""
        ages = ((key.removeprefix(ORDERS), age_s) for key, age_s in self._storage.gallery_ages(ORDERS))
        orders = {order_id: age_s for order_id, age_s in ages if REQUEST_ID.fullmatch(order_id)}
        self._ages_s = {order_id: age_s for order_id, age_s in self._ages_s.items() if order_id in orders}
        due = [order_id for order_id, age_s in orders.items() if age_s >= self._ages_s.get(order_id, self._after_s)]
        for order_id in due:
            self._app = self._app or broker.create_app(self._settings)
            # Nobody waits for the answer; a queue that is there, so that Celery makes none for it.
            queue = self._settings.response_queue
            self._app.send_task(FORGET, args=[order_id], ignore_result=True, reply_to=queue)
            self._ages_s[order_id] = 2 * max(orders[order_id], self._after_s)
            logger.warning("the order %s is not done after %.0f s: it is sent again", order_id, orders[order_id])
        return due


def _judge(found: GalleryObject | None, request_id: str, name: str) -> tuple[Fate, Recognition | None]:
    """What is to become of a stored document, and the result that takes its place if it is to be changed."""
    try:
        document = json.loads(found.data) if found else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return "unreadable", None
    if name not in map(_normal, _texts(document)):
        return "kept", None
    try:
        result = Recognition.from_dict(document)
    except SchemaError:
        return "erased", None  # another version's
    if result.id != request_id or any(_normal(face.name) == name for face in result.faces):
        return "erased", None
    faces = tuple(
        dataclasses.replace(face, candidates=tuple(each for each in face.candidates if _normal(each.name) != name))
        for face in result.faces
    )
    # A file may be named so, too.
    return ("kept", None) if faces == result.faces else ("changed", dataclasses.replace(result, faces=faces))


def _texts(document: Any) -> Iterator[str]:
    """Every text in a JSON document, keys included."""
    todo = [document]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]


def _normal(name: str) -> str:
    """In NFC, as every version has enrolled names; others may have written this one."""
    return unicodedata.normalize("NFC", name)


def _seconds(until: datetime, now: datetime) -> float:
    return max(0.0, (until - now).total_seconds())
