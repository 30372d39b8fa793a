"""What a worker takes in of the messages that the web tier sends."""

from __future__ import annotations

import json

from faceapp import broker
from faceapp.broker.messages import ENROL, ERASE, RECOGNIZE
from faceapp.config import Settings
from tests.support.aws import plain_client
from tests.unit.test_messages import ID, message, reason


def test_the_web_tiers_own_message_is_taken(stack: Settings) -> None:
    app = broker.create_app(stack)
    for task in (RECOGNIZE, ENROL):
        app.send_task(task, args=[ID], task_id=ID, headers={"request_id": "mine", "traceparent": "00-1-2-03"})
    app.send_task("tests.echo", args=[{"any": 1}], kwargs={"named": None}, time_limit=30, soft_time_limit=2.5)
    sqs = plain_client("sqs", broker.sqs_client().meta.endpoint_url)
    queue = sqs.get_queue_url(QueueName=stack.request_queue)["QueueUrl"]
    bodies = [each["Body"] for each in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]]
    app.backend.collector.close(delete_queue=True)

    assert len(bodies) == 3
    assert [reason(body) for body in bodies] == ["", "", ""]
    assert reason(message()) == ""
    assert reason(message(headers__task=ERASE, body=json.dumps([[ID, 2703], {}, {}]))) == ""
