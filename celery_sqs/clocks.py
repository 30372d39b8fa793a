"""What time it is by the service that just answered.

S3 and SQS stamp objects and messages with their own clocks, and this machine's may be hours away, so an age is measured
by the clock that the stamp came from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any


def sent_s(date: str | None) -> float:
    """The time of a `Date` header (Unix time, in whole seconds); this machine's where it is missing or unreadable."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else time.time()
    except (ValueError, OverflowError):
        return time.time()


def answered_s(answer: Mapping[str, Any]) -> float:
    """When AWS sent this boto3 answer, by its own clock (Unix time, in whole seconds).

    This machine's clock where the answer has no readable `Date`, as behind a proxy that strips it.
    """
    return sent_s(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))


def answered(answer: Mapping[str, Any]) -> datetime:
    """The same as a time in UTC."""
    return datetime.fromtimestamp(answered_s(answer), UTC)
