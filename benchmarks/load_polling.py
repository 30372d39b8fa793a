"""A peer of `benchmarks.load`, the simple design: each request's thread polls one response queue that all share.

`python -m benchmarks.load_polling` is a worker process: one message at a time, the product's work, an answer, and the
message is deleted. A web thread that receives somebody else's answer gives it back at once. Both poll long, which asks
less often than polling short does.
"""

from __future__ import annotations

import json
import time
from typing import Any

import boto3
import flask
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.load_web import peer_app
from faceapp.config import settings

READY = "takes messages"
POLL_S = 20


class Queues:
    """The two queues, made at the first use. `threads` is how many connections are kept open."""

    def __init__(self, *, threads: int) -> None:
        config = Config(max_pool_connections=threads, read_timeout=3 * POLL_S, retries={"mode": "standard"})
        self._sqs = boto3.client("sqs", config=config)
        visible = {"VisibilityTimeout": str(2 * settings().task_time_limit_s)}
        self.requests, self.responses = (
            str(self._sqs.create_queue(QueueName=f"{settings().prefix}-polling-{name}", Attributes=visible)["QueueUrl"])
            for name in ("requests", "responses")
        )

    def send(self, queue: str, document: dict[str, Any]) -> None:
        self._sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(document))

    def receive(self, queue: str) -> tuple[dict[str, Any], str] | None:
        """A message and its receipt; None when none came."""
        found = self._sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=1, WaitTimeSeconds=POLL_S)
        for message in found.get("Messages", ()):
            return json.loads(message["Body"]), str(message["ReceiptHandle"])
        return None

    def delete(self, queue: str, receipt: str) -> None:
        self._sqs.delete_message(QueueUrl=queue, ReceiptHandle=receipt)

    def give_back(self, queue: str, receipt: str) -> None:
        self._sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=receipt, VisibilityTimeout=0)


def web() -> flask.Flask:
    """For gunicorn: `benchmarks.load_polling:web()`."""
    queues = Queues(threads=settings().web_connections)

    def ask(request_id: str) -> dict[str, Any]:
        queues.send(queues.requests, {"id": request_id})
        until_s = time.monotonic() + settings().web_wait_s
        while time.monotonic() < until_s:
            try:
                received = queues.receive(queues.responses)
                if received is None:
                    continue
                document, receipt = received
                if document["id"] == request_id:
                    queues.delete(queues.responses, receipt)
                    return document
                queues.give_back(queues.responses, receipt)
            except (BotoCoreError, ClientError):
                # An SQS with so much to do answers late; the next poll asks again.
                continue
        raise TimeoutError(f"no answer to {request_id} within {settings().web_wait_s:g} s")

    return peer_app(ask)


def work() -> None:
    """Take messages until the process is ended."""
    from faceapp.work.worker import this_worker

    this_worker().warm()
    queues = Queues(threads=1)
    print(READY, flush=True)
    while True:
        try:
            received = queues.receive(queues.requests)
            if received is None:
                continue
            document, receipt = received
            result = this_worker().recognise(document["id"])
            if result:
                queues.send(queues.responses, result.to_dict())
            queues.delete(queues.requests, receipt)
        except (BotoCoreError, ClientError) as error:
            print(f"trying again: {error}", flush=True)


if __name__ == "__main__":
    work()
