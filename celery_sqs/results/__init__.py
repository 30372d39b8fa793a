"""Answers over the response queue: a Celery result backend.

A worker sends a finished task's result to the queue that the request names in `reply_to`; the process that asked reads
its own queue with one thread and hands each answer to whoever waits for it. The result in S3 is the truth and this is
the fast path to it, so an answer that nobody waits for any more is dropped, and counted.

Each process that waits has a queue of its own: a web process the one of its slot (slot 0 is the stack's response queue;
a restarted process takes its predecessor's slot, so no queue is left behind), any other process one that it makes at
its first call and deletes at exit.
"""

from celery_sqs.results.backend import MAX_REPLY_BYTES, TRIES, ResponseBackend, use_slot
from celery_sqs.results.collector import Collector

__all__ = ["MAX_REPLY_BYTES", "TRIES", "Collector", "ResponseBackend", "use_slot"]
