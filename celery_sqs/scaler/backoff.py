"""What an AWS error means for the next attempt, and when that is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum

from botocore.exceptions import ClientError


class Trouble(Enum):
    """Kinds of failure. The value is (first pause, longest pause) in seconds."""

    BUSY = (1.0, 60.0)
    """Throttled, or AWS itself is ill."""
    CAPACITY = (15.0, 300.0)
    """AWS has no such instance to give there, or the account may have no more."""
    CHANGED = (1.0, 10.0)
    """The instances are not what they were: look again."""
    REFUSED = (60.0, 900.0)
    """No permission, an image that is gone, a bad parameter: only a person can mend it."""


CAPACITY_CODES = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InstanceLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "Unsupported",
    "VcpuLimitExceeded",
}
BUSY_CODES = {
    "EC2ThrottledException",
    "InternalError",
    "InternalFailure",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "Unavailable",
}
CHANGED_CODES = {"IncorrectInstanceState", "IncorrectState", "InvalidInstanceID.NotFound"}


def trouble(error: Exception) -> Trouble:
    """The kind of a botocore error; what is not an answer of AWS at all (no connection) counts as busy."""
    if not isinstance(error, ClientError):
        return Trouble.BUSY
    code = error.response["Error"]["Code"]
    if code in CAPACITY_CODES:
        return Trouble.CAPACITY
    if code in CHANGED_CODES:
        return Trouble.CHANGED
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    return Trouble.BUSY if code in BUSY_CODES or status >= 500 else Trouble.REFUSED


class Backoff:
    """When an operation may be tried again: pauses that double, with jitter, and begin anew after a success."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None) -> None:
        self._clock, self._rng = clock, rng or random.Random()  # nosec B311 # jitter
        self._failures: dict[Trouble, int] = {}
        self._until_s = float("-inf")

    @property
    def left_s(self) -> float:
        """Seconds until the next attempt; 0 when it may be made."""
        return max(0.0, self._until_s - self._clock())

    def failed(self, kind: Trouble) -> float:
        """Note a failure; the answer is the pause in seconds."""
        first_s, longest_s = kind.value
        n = self._failures[kind] = self._failures.get(kind, 0) + 1
        pause_s = min(longest_s, first_s * 2.0 ** min(n - 1, 20)) * self._rng.uniform(0.5, 1.0)
        self._until_s = self._clock() + pause_s
        return pause_s

    def succeeded(self) -> None:
        self._failures.clear()
        self._until_s = float("-inf")
