"""Results: answers over SQS for whoever waits, and objects in S3 for what must be found later.

A worker sends a finished task's result to the queue that the request names in `reply_to`; the process that asked reads
its own queue with one thread and hands each answer to whoever waits for it. With a bucket, states, results by id,
groups and the parts of chords are objects in it, which any process finds; a lifecycle rule of the bucket removes them.
"""

from celery_sqs.results.backend import MAX_REPLY_BYTES, Backend
from celery_sqs.results.collector import Collector

__all__ = ["MAX_REPLY_BYTES", "Backend", "Collector"]
