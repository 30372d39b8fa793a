"""Whoever is forgotten is forgotten in the results, too.

The gallery forgets at once; results are many, and nothing says which of them name somebody: an index would cost each
photo a call. So whoever forgets somebody leaves an order, `forgetting/<id>` in the gallery bucket, and workers go
through the out-bucket, a page in each task. Messages, events and logs have the order's id; only the order has the name.

A result whose face has the name is deleted with its upload; one that has it among a face's candidates is written again
without. A worker's gallery may be some seconds old, and a task may be running: so there is a second sweep when every
task that did not know has ended. A result that is stored after that is about somebody else of that name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from faceapp.config import Settings
from faceapp.errors import SchemaError
from faceapp.schema import Recognition
from faceapp.storage import Storage

logger = logging.getLogger(__name__)

ORDERS = "forgetting/"
PAGE = 500
"""Results that one task looks at, at most."""
AT_ONCE = 16
MARGIN_S = 3.0
"""For clocks that differ, and a result that is on its way to S3 when its task is killed."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Somebody who is to be forgotten in what was stored until then."""

    id: str
    name: str
    given: datetime
    """By S3's clock."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an order's work goes on: in sweep 1 or 2, after the result `after` (empty: at the first), in `wait_s`."""

    sweep: int
    after: str
    wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one task has done: results that it erased and that it changed, and what is next (None: it was the last)."""

    erased: int = 0
    changed: int = 0
    next: Place | None = None


class Forgetting:
    """Orders and what becomes of them. Every method raises StorageUnavailable, and can be called again then."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._storage = storage
        self._settle_s = settings.gallery_refresh_s + settings.task_time_limit_s + MARGIN_S
        # A task is killed at its limit, and begins a page again then.
        self._page_s = settings.task_time_limit_s / 4

    def order(self, order_id: str, name: str) -> None:
        """Leave an order to forget `name`, written as the gallery writes it (gallery.names)."""
        document = json.dumps({"name": name}, ensure_ascii=False)
        self._storage.put_gallery(ORDERS + order_id, document.encode())

    def orders(self) -> list[Order]:
        """All that are not done (a call, and one for each)."""
        ids = [key.removeprefix(ORDERS) for key, _ in self._storage.list_gallery(ORDERS)]
        return [order for order in map(self._find, ids) if order]

    def _find(self, order_id: str) -> Order | None:
        found = self._storage.get_gallery(ORDERS + order_id)
        if found is None:
            return None
        try:
            return Order(id=order_id, name=str(json.loads(found.data)["name"]), given=found.last_modified)
        except (ValueError, KeyError, TypeError):
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
        until_s = order.given.timestamp() + self._settle_s
        if place.sweep == 1 and not place.after:
            self._drop_incoming(order)
        if place.sweep == 2 and not place.after and time.time() < until_s:
            return Done(next=dataclasses.replace(place, wait_s=until_s - time.time()))
        began_s, after, erased, changed = time.monotonic(), place.after, 0, 0
        page = self._storage.list_results(after=place.after, most=PAGE)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="forget") as threads:
            for start in range(0, len(page), 2 * AT_ONCE):
                some = page[start : start + 2 * AT_ONCE]
                old = [result_id for result_id, stored in some if stored.timestamp() < until_s]
                outcomes = list(threads.map(lambda result_id: self._forget_in(result_id, order.name), old))
                erased, changed = erased + outcomes.count("erased"), changed + outcomes.count("changed")
                after = some[-1][0]
                if time.monotonic() - began_s > self._page_s:
                    break
        if page and (len(page) == PAGE or after != page[-1][0]):
            following: Place | None = Place(sweep=place.sweep, after=after)
        elif place.sweep == 1:
            following = Place(sweep=2, after="", wait_s=max(0.0, until_s - time.time()))
        else:
            self._finish(order)
            following = None
        return Done(erased=erased, changed=changed, next=following)

    def _drop_incoming(self, order: Order) -> None:
        """Photos that waited to be enrolled under the name when it was forgotten."""
        for key, stored in self._storage.list_all_incoming():
            # S3 counts seconds: in the same one counts as later.
            if stored < order.given and self._storage.name_of_incoming(key) == order.name:
                self._storage.delete_gallery([key])

    def _forget_in(self, result_id: str, name: str) -> str:
        """What became of a result: `erased`, `changed` or `kept`."""
        found = self._storage.get_result_document(result_id)
        # As schema.to_json writes it: a name has no character that JSON escapes.
        if found is None or json.dumps(name, ensure_ascii=False).encode() not in found.data:
            return "kept"
        try:
            result = Recognition.from_json(found.data)
        except SchemaError:
            result = None
        if result is None or any(face.name == name for face in result.faces):
            self.erase(result_id)
            return "erased"
        faces = tuple(
            dataclasses.replace(face, candidates=tuple(each for each in face.candidates if each.name != name))
            for face in result.faces
        )
        if faces == result.faces:
            return "kept"  # as the name of a file, say
        self._storage.replace_result(dataclasses.replace(result, faces=faces), etag=found.etag)
        return "changed"

    def erase(self, request_id: str) -> None:
        """Delete a photo that somebody sent, and its result; what is not there is no error."""
        self._storage.delete_photo(request_id)
        self._storage.delete_result(request_id)

    def _finish(self, order: Order) -> None:
        """Delete the order, and older ones of that name, whose message was never sent or failed."""
        done = [each.id for each in self.orders() if each.name == order.name and each.given <= order.given]
        self._storage.delete_gallery([ORDERS + order_id for order_id in {*done, order.id}])
