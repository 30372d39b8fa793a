"""Numbers on which workers, whoever listens to them, and simulators agree."""

from __future__ import annotations

HEARTBEAT_S = 60.0
"""Between two heartbeats of a worker; Celery's own 2 s would be 43,000 messages a day and worker."""
PREFETCH = 2
"""Messages that a worker had better hold for each of its processes: one at work, one that waits. A worker that stops
hands the others back, and each time counts as a try towards the dead letters."""
EVENTS_WITHIN_S = 1.0
"""A worker's task events go out together, after this long."""
