"""Finding queues by the beginning of their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def queue_urls(sqs: Any, prefix: str) -> Iterator[str]:
    """The URL of every queue whose name begins with `prefix` (a call per 1,000). Raises botocore's errors."""
    # Without a page's size SQS ends after 1,000 and does not say that there are more.
    pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
    for page in pages:
        yield from page.get("QueueUrls", ())
