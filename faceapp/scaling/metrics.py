"""What the queue's counts say, and how far they are believed.

SQS counts approximately: seen were 100, 0, 100, 29, 100 with nothing processed. So a count that fell is believed when
finished tasks explain it, or when the ones after it agree.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp import broker
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable
from faceapp.quantiles import nearest_rank
from faceapp.scaling.policies.base import BIN_S, BINS, Counts

AGREE = 3
"""So many counts in a row must agree that there is less than before."""
BOOTS = 40
ATTRIBUTES = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


class Depth:
    """A queue's counts (default: the request queue's), by GetQueueAttributes: kombu's size is of visible ones only."""

    def __init__(self, settings: Settings, *, queue_name: str = "", client: Any = None) -> None:
        self._name = queue_name or settings.request_queue
        self._client = client or broker.sqs_client(read_timeout=5, retries={"total_max_attempts": 1})
        self._url = ""

    def ask(self) -> Counts:
        """Raises BrokerUnavailable, with the reason: no such queue, no permission, no answer."""
        try:
            if not self._url:
                self._url = self._client.get_queue_url(QueueName=self._name)["QueueUrl"]
            answer = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=list(ATTRIBUTES.values()))
        except (BotoCoreError, ClientError) as error:
            self._url = ""
            raise BrokerUnavailable(f"The queue {self._name} cannot be asked: {error}") from error
        return Counts(**{field: int(answer["Attributes"][name]) for field, name in ATTRIBUTES.items()})


class Believed:
    """Counts from which sudden falls have been taken out."""

    def __init__(self) -> None:
        self._recent: deque[tuple[Counts, int]] = deque(maxlen=AGREE)

    def update(self, counts: Counts, *, done: int) -> Counts:
        """The counts to act on: as asked, or more when the last ones and the `done` tasks since do not explain less."""
        self._recent.append((counts, done))
        most = max(each.outstanding - (done - done_then) for each, done_then in self._recent)
        missing = most - counts.outstanding
        if missing <= 0:
            return counts
        return Counts(visible=counts.visible + missing, in_flight=counts.in_flight, delayed=counts.delayed)

    def clear(self) -> None:
        """After a gap there is nothing to compare with."""
        self._recent.clear()


class Arrivals:
    """Messages that arrived, in bins: what was done and what the queue grew by.

    A count that was wrong one way is wrong the other way later, so a negative sum is set against the bins to come, and
    forgotten by halves.
    """

    def __init__(self, now_s: float) -> None:
        self._bins: deque[float] = deque(maxlen=BINS)
        self._open, self._debt = 0.0, 0.0
        self._bin_ends_s = now_s + BIN_S
        self._last: int | None = None

    def update(self, counts: Counts, *, done: int, now_s: float) -> None:
        self._roll(now_s)
        total = counts.outstanding + done
        if self._last is not None:
            self._open += total - self._last
        self._last = total

    def bins(self, now_s: float) -> tuple[float, ...]:
        """Of the last minute, the oldest first; only those that are over."""
        self._roll(now_s)
        return tuple(self._bins)

    def _roll(self, now_s: float) -> None:
        # After a long gap only the last minute matters.
        self._bin_ends_s = max(self._bin_ends_s, now_s - BINS * BIN_S)
        while self._bin_ends_s <= now_s:
            balance = self._open + self._debt
            self._bins.append(max(0.0, balance))
            self._debt = min(0.0, balance) / 2
            self._open = 0.0
            self._bin_ends_s += BIN_S


SEEN = 2000
"""Boots that are known to be counted: more than there can be instances (FACEAPP_SCALER_MAX_INSTANCES)."""


class Boots:
    """How long instances took from their start to their worker's first sign of life."""

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._seconds: deque[float] = deque(maxlen=BOOTS)
        self._seen: dict[tuple[str, int], None] = {}

    def add(self, instance_id: str, run_s: int, boot_s: float) -> None:
        """Note a boot, once."""
        boot = instance_id, run_s
        if boot not in self._seen:
            self._seconds.append(boot_s)
        # Those of instances that are there are noted at each tick, so the first is a gone one's.
        self._seen.pop(boot, None)
        self._seen[boot] = None
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]

    def quantile(self, part: float) -> float:
        """By nearest rank; the setting's value until a boot was seen."""
        return nearest_rank(sorted(self._seconds), part) if self._seconds else self._default_s
