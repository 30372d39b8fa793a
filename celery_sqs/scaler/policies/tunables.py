"""A policy's tunables: frozen dataclasses that refuse values that cannot work, with a sentence that says what can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from celery_sqs.errors import ConfigurationError


def number(default: float, low: float, high: float) -> Any:
    """A field for a number from `low` to `high`."""
    return field(default=default, metadata={"range": (low, high), "whole": False})


def whole(default: int, low: int, high: int) -> Any:
    """A field for a whole number from `low` to `high`."""
    return field(default=default, metadata={"range": (low, high), "whole": True})


@dataclass(frozen=True, kw_only=True)
class Tunables:
    """Checks its fields at construction.

    Raises ConfigurationError, naming the tunable and what it takes.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            if "range" in each.metadata:
                _check(each.name, getattr(self, each.name), each.metadata)


def _check(name: str, value: object, rule: Mapping[str, Any]) -> None:
    low, high = rule["range"]
    kinds = (int,) if rule["whole"] else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not fits:
        kind = "whole number" if rule["whole"] else "number"
        raise ConfigurationError(f"{name}={value!r} cannot be used: it takes a {kind} from {low:g} to {high:g}")
