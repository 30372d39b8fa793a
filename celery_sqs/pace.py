"""Numbers on which workers, whoever listens to them, and simulators agree."""

from __future__ import annotations

HEARTBEAT_S = 60.0
"""Between two heartbeats of a worker; Celery's own 2 s would be 43,000 messages a day and worker."""
EVENTS_WITHIN_S = 1.0
"""A worker's task events go out together, after this long."""
