"""An application on celery_sqs by settings alone: `celery -A tests.support.alone worker`.

Where AWS is, and as whom it is asked, stand in its settings: nothing of it in the environment.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from celery import Celery

PREFIX = os.environ.get("ALONE_PREFIX", "alone")


def make(prefix: str, endpoint: str, key_id: str, secret: str) -> Celery:
    app = Celery(prefix, set_as_current=False)
    app.conf.update(
        broker_url=f"sqs://{quote(key_id, safe='')}:{quote(secret, safe='')}@",
        broker_transport="celery_sqs.transport:Transport",
        broker_transport_options={
            "queue_name_prefix": prefix,
            "region": "eu-west-1",
            "endpoint_url": endpoint,
            "wait_time_seconds": 1,
        },
        result_backend="celery_sqs.results:Backend",
        broker_connection_retry_on_startup=True,
    )
    return app


app = make(PREFIX, *(os.environ.get(f"ALONE_{name}", "") for name in ("ENDPOINT", "KEY_ID", "SECRET")))


@app.task(name="alone.double")  # type: ignore[untyped-decorator] # Celery has no types
def double(n: int) -> int:
    return 2 * n
