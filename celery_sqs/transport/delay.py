"""ETA and countdown of any length.

Celery's own way is to take a message at once and keep it in the worker until its time, where SQS shows it again and
again (celery/celery#4766, #3270, #2541). Here SQS keeps it: for 900 s at most, then a worker sends it on.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

LONGEST_S = 900
"""SQS holds no message back for longer."""
SOON_S = 10.0
"""A worker keeps what is due so soon itself, as Celery does: `inspect scheduled` shows it, and it begins on time."""
LEAD_S = 2
"""SQS hands a message over so long before its time, since it counts whole seconds and a poll takes a moment."""


def left_s(headers: Any, now_s: float) -> float:
    """Seconds from `now_s` (Unix time) to the ETA in a message's headers; 0 where there is none that can be read."""
    eta = headers.get("eta") if isinstance(headers, dict) else None
    if not isinstance(eta, str):
        return 0.0
    try:
        when = datetime.fromisoformat(eta)
    except ValueError:
        return 0.0
    # Celery writes naive times where it was told not to use UTC's offset; they are UTC all the same.
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now_s


def delay_s(seconds: float) -> int:
    """What SQS is asked to hold a message back for that is due in `seconds`: never beyond its time."""
    if seconds <= SOON_S:
        return 0
    return min(LONGEST_S, math.floor(seconds) - LEAD_S)
