"""A Celery app with the product's broker and a task that keeps a worker busy but not the CPU, for `benchmarks.broker`.

Fifteen workers share two cores there; on EC2 each has a machine of its own.
"""

from __future__ import annotations

import time

from faceapp.broker import create_app
from faceapp.config import settings

app = create_app(settings())


@app.task(name="benchmarks.work")
def work(work_s: float) -> float:
    """Take `work_s` seconds; returns the Unix time of its end."""
    time.sleep(work_s)
    return time.time()
