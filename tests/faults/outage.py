"""Photos that keep coming while something is out of order, and what is said about all of them afterwards."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3

from faceapp.local.processes import Service
from tests.faults.system import Books, Burst, Kind, Photo, Reply, System, books, photo

KINDS: tuple[Kind, ...] = ("classic", "wait", "later")
REFUSALS = {"storage_unavailable", "broker_unavailable"}


class Stream(Burst):
    """Photos of which the first `at_once` are posted at once and the others one by one, `pace_s` apart."""

    def __init__(self, system: System, count: int, *, at_once: int, pace_s: float, wait_s: int = 120) -> None:
        self._turn, self._at_once, self._pace_s = itertools.count(), at_once, pace_s
        super().__init__(system.url, [photo() for _ in range(count)], KINDS, wait_s=wait_s)

    def _post(self, photo: Photo, kind: Kind) -> None:
        time.sleep(max(0, next(self._turn) - self._at_once) * self._pace_s)
        super()._post(photo, kind)


@contextmanager
def alive(*services: Service) -> Iterator[None]:
    """None of the processes may have ended when the block ends."""
    yield
    for each in services:
        assert each.process.poll() is None, f"{each.name} has ended:\n{each.log_tail()}"


def account(system: System, stream: Burst, *, timeout_s: float = 120) -> tuple[Books, list[Reply]]:
    """The books, and the replies that are refusals.

    Every client must have had an answer: what it asked for, or that its photo was not taken, and when to come again.
    """
    found = books(system, stream, timeout_s=timeout_s)
    refused = [each for each in stream.replies if each.status == 503]
    assert {each.status for each in stream.replies} <= {200, 202, 503}, [
        (each.status, each.body) for each in stream.replies if each.status not in (200, 202, 503)
    ]
    assert {json.loads(each.body)["code"] for each in refused} <= REFUSALS
    assert found.failed == found.dead == 0
    assert found.done == found.accepted
    return found, refused


def post(system: System) -> Any:
    """One photo to `POST /`: the answer."""
    one = photo()
    fields = {"inputFile": (one.name, one.data, "image/jpeg")}
    return urllib3.request("POST", f"{system.url}/", fields=fields, retries=False, timeout=240)
