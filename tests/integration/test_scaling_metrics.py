"""The counts of the request queue, on the embedded SQS."""

from __future__ import annotations

import pytest
from botocore.stub import Stubber

from celery_sqs.errors import BrokerUnavailable
from celery_sqs.scaler.depths import Depths
from celery_sqs.scaler.policies.base import Counts
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from tests.support.aws import plain_client, session


def test_depth_asks_for_all_three_counts(stack: Settings, aws: str) -> None:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=stack.request_queue)["QueueUrl"]
    for delay_s in (0, 0, 0, 60):
        sqs.send_message(QueueUrl=url, MessageBody="photo", DelaySeconds=delay_s)
    sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=1)
    assert Depths(aws_of(stack), [stack.request_queue]).ask() == Counts(visible=2, in_flight=1, delayed=1)


def test_a_queue_that_does_not_exist_is_said(aws: str) -> None:
    with pytest.raises(BrokerUnavailable, match="nobody-req-queue"):
        Depths(aws_of(Settings()), ["nobody-req-queue"]).ask()


@pytest.mark.parametrize("code", ["AccessDenied", "ThrottlingException"])
def test_a_refusal_is_said(stack: Settings, code: str) -> None:
    client = session().client("sqs")
    with Stubber(client) as stub:
        stub.add_client_error("get_queue_url", code)
        with pytest.raises(BrokerUnavailable, match=code):
            Depths(aws_of(stack), [stack.request_queue], client=client).ask()


def test_a_queue_that_was_made_anew_is_found_again(stack: Settings, aws: str) -> None:
    sqs, depth = plain_client("sqs", aws), Depths(aws_of(stack), [stack.request_queue])
    depth.ask()
    url = sqs.get_queue_url(QueueName=stack.request_queue)["QueueUrl"]
    sqs.delete_queue(QueueUrl=url)
    with pytest.raises(BrokerUnavailable):
        depth.ask()
    sqs.create_queue(QueueName=stack.request_queue)
    assert depth.ask() == Counts(visible=0, in_flight=0)
