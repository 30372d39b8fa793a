"""The services' logs out of CloudWatch, where ShipLogs=yes sends them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from faceapp.deploy.target import Target
from faceapp.errors import ConfigError, DeployError

UNITS = ("web", "worker", "scaler", "flower", "nginx", "instance", "spot")
FOLLOW_S = 3.0
LATE_MS = 60_000
"""CloudWatch may show an event this much later than others."""
STREAMS = 100
"""So many can be asked for at once; the last written ones are."""
AGO = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One event."""

    id: str
    time_ms: int
    instance: str
    unit: str
    text: str

    def __str__(self) -> str:
        at = datetime.fromtimestamp(self.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{at} {self.instance} {self.unit}: {_plain(self.text)}"


def ago_s(text: str) -> int:
    """Seconds of 30s, 15m, 2h or 7d. Raises ConfigError."""
    found = AGO.fullmatch(text)
    if not found:
        raise ConfigError(f"--since {text!r} is no length of time: it takes one like 90s, 15m, 2h or 7d")
    return int(found[1]) * SECONDS[found[2]]


def read(target: Target, unit: str | None, *, since_s: int, last: int) -> list[Line]:
    """The `last` lines of that unit (None: of all) since so long ago, oldest first. Raises DeployError."""
    return _read(target, unit, from_ms=int((time.time() - since_s) * 1000))[-last:]


def follow(target: Target, unit: str | None, seen: list[Line]) -> Iterator[Line]:
    """What comes after `seen`, for ever. Raises DeployError."""
    known = {each.id: each.time_ms for each in seen}
    while True:
        newest_ms = max(known.values(), default=int(time.time() * 1000))
        for line in _read(target, unit, from_ms=newest_ms - LATE_MS):
            if line.id not in known:
                known[line.id] = line.time_ms
                yield line
        known = {id: at_ms for id, at_ms in known.items() if at_ms >= newest_ms - 2 * LATE_MS}
        time.sleep(FOLLOW_S)


def _read(target: Target, unit: str | None, *, from_ms: int) -> list[Line]:
    logs, group = target.client("logs"), f"/faceapp/{target.prefix}"
    try:
        streams = [
            each["logStreamName"]
            for page in logs.get_paginator("describe_log_streams").paginate(
                logGroupName=group, orderBy="LastEventTime", descending=True
            )
            for each in page["logStreams"]
            if unit is None or _unit(each["logStreamName"]) == unit
        ][:STREAMS]
        if not streams:
            return []
        pages = logs.get_paginator("filter_log_events").paginate(
            logGroupName=group, logStreamNames=streams, startTime=from_ms
        )
        lines = [_line(each) for page in pages for each in page["events"]]
    except logs.exceptions.ResourceNotFoundException:
        raise DeployError(
            "No logs are shipped: 'faceapp deploy apply --ship-logs yes' switches that on (CloudWatch bills each "
            "gigabyte). Without it they are in each instance's journal."
        ) from None
    return sorted(lines, key=lambda each: (each.time_ms, each.id))


def _line(event: dict[str, Any]) -> Line:
    stream = event["logStreamName"]
    return Line(
        id=event["eventId"],
        time_ms=event["timestamp"],
        instance=stream.partition("/")[0],
        unit=_unit(stream),
        text=event["message"],
    )


def _unit(stream: str) -> str:
    """worker of app-tier-instance-1/faceapp-worker.service."""
    return stream.rpartition("/")[2].removeprefix("faceapp-").removesuffix(".service")


def _plain(text: str) -> str:
    """A JSON line's level and message; anything else as it is."""
    try:
        document = json.loads(text)
        return f"{document['level']} {document['message']}"
    except (ValueError, KeyError, TypeError):
        return text.rstrip("\n")
