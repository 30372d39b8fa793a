"""deploy/stack.yaml on the embedded AWS, and what becomes of failures."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from faceapp import stack as deployment
from faceapp.broker.fanout import topic_name
from faceapp.config import Settings
from faceapp.errors import DeployError
from tests.aws import plain_client


@pytest.fixture
def deployed(aws: str) -> Settings:
    """Settings of a stack that only this test uses."""
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}", task_time_limit_s=40, queue_wait_s=3)
    deployment.apply(settings, client=plain_client("cloudformation", aws))
    return settings


def queue_attributes(aws: str, name: str) -> dict[str, str]:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    attributes: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return attributes


def test_the_package_carries_the_template_of_the_repository() -> None:
    template = Path(__file__).parent.parent / "deploy" / "stack.yaml"
    assert deployment.template() == template.read_text("utf-8")


def test_everything_has_the_names_that_the_settings_use(aws: str) -> None:
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}")
    outputs = deployment.apply(settings, client=plain_client("cloudformation", aws))
    roles = {f"{each.title()}RoleArn": f"{settings.prefix}-{each}" for each in ("worker", "web", "scaler", "flower")}
    assert {name: re.split("[/:]", value)[-1] for name, value in outputs.items()} == roles | {
        "InBucket": settings.in_bucket,
        "OutBucket": settings.out_bucket,
        "GalleryBucket": settings.gallery_bucket,
        "RequestQueueUrl": settings.request_queue,
        "ResponseQueueUrl": settings.response_queue,
        "DeadLetterQueueUrl": settings.dead_letter_queue,
        "EventsTopicArn": topic_name(settings.prefix, "celeryev"),
        "ControlTopicArn": topic_name(settings.prefix, "celery.pidbox"),
        "AlarmTopicArn": f"{settings.prefix}-alarms",
    }


def template() -> dict[str, Any]:
    """The template, with CloudFormation's functions as plain values."""

    class Loader(yaml.SafeLoader):
        pass

    def plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
        return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None

    Loader.add_multi_constructor("!", plain)
    found: dict[str, Any] = yaml.load(deployment.template(), Loader)
    return found


def buckets() -> dict[str, dict[str, Any]]:
    """The buckets' definitions, since moto creates buckets and passes over most of their properties."""
    return {name: each for name, each in template()["Resources"].items() if each["Type"] == "AWS::S3::Bucket"}


def test_every_bucket_is_private_and_encrypted() -> None:
    assert len(buckets()) == 3
    for bucket in buckets().values():
        assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
        [rule] = bucket["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        assert "VersioningConfiguration" not in bucket["Properties"]


def test_photos_and_results_expire_and_the_gallery_outlives_its_stack() -> None:
    rules = {
        name: [
            (rule.get("Prefix"), rule["ExpirationInDays"])
            for rule in each["Properties"]["LifecycleConfiguration"]["Rules"]
        ]
        for name, each in buckets().items()
    }
    kept = [(None, "KeepDays")]
    assert rules == {"InBucket": kept, "OutBucket": kept, "GalleryBucket": [("incoming/", 1)]}
    assert buckets()["GalleryBucket"]["DeletionPolicy"] == "Retain"


def test_the_request_queue_fits_the_task(aws: str, deployed: Settings) -> None:
    attributes = queue_attributes(aws, deployed.request_queue)
    assert attributes["VisibilityTimeout"] == str(40 + deployment.VISIBILITY_MARGIN_S)
    assert attributes["ReceiveMessageWaitTimeSeconds"] == "3"
    assert attributes["SqsManagedSseEnabled"] == "true"
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["maxReceiveCount"] == 3
    assert redrive["deadLetterTargetArn"].endswith(f":{deployed.dead_letter_queue}")
    assert queue_attributes(aws, deployed.dead_letter_queue)["MessageRetentionPeriod"] == str(14 * 24 * 3600)


def test_the_request_queue_refuses_more_than_1024_bytes(aws: str, deployed: Settings) -> None:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=deployed.request_queue)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x" * 1024)
    with pytest.raises(ClientError, match="1024 bytes"):
        sqs.send_message(QueueUrl=url, MessageBody="x" * 1025)


def test_applying_again_changes_what_changed_and_nothing_else(aws: str, deployed: Settings) -> None:
    client = plain_client("cloudformation", aws)
    plain_client("s3", aws).put_object(Bucket=deployed.gallery_bucket, Key="photos/a", Body=b"kept")
    deployment.apply(deployed, client=client)
    deployment.apply(dataclasses.replace(deployed, task_time_limit_s=100), client=client)
    assert queue_attributes(aws, deployed.request_queue)["VisibilityTimeout"] == "130"
    assert plain_client("s3", aws).get_object(Bucket=deployed.gallery_bucket, Key="photos/a")["Body"].read() == b"kept"


def event(resource: str, status: str, reason: str = "") -> dict[str, Any]:
    ids = {"StackId": "1", "EventId": uuid.uuid4().hex, "StackName": "faceapp"}
    moment = {"Timestamp": datetime(2026, 1, 1)}
    return {**ids, **moment, "LogicalResourceId": resource, "ResourceStatus": status, "ResourceStatusReason": reason}


def test_a_failure_says_what_failed_first_in_this_run() -> None:
    client = boto3.session.Session("a", "b", region_name="us-east-1").client("cloudformation")
    newest_first = [
        event("faceapp", "ROLLBACK_COMPLETE"),
        event("OutBucket", "CREATE_FAILED", "Resource creation cancelled"),
        event("InBucket", "CREATE_FAILED", "faceapp-in-bucket already exists"),
        event("faceapp", "CREATE_IN_PROGRESS", "User Initiated"),
        event("InBucket", "UPDATE_FAILED", "of an earlier run"),
    ]
    stacks = [{"StackName": "faceapp", "StackStatus": "ROLLBACK_COMPLETE", "CreationTime": datetime(2026, 1, 1)}]
    with Stubber(client) as stub:
        stub.add_response("create_stack", {"StackId": "1"})
        stub.add_response("describe_stacks", {"Stacks": stacks})
        stub.add_response("describe_stack_events", {"StackEvents": newest_first})
        with pytest.raises(DeployError, match="InBucket: faceapp-in-bucket already exists"):
            deployment.apply(Settings(), client=client)


def test_an_aws_that_does_not_answer_is_a_deploy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = boto3.session.Session("a", "b", region_name="us-east-1").client(
        "cloudformation", endpoint_url="http://127.0.0.1:1"
    )
    with pytest.raises(DeployError, match="could not be applied"):
        deployment.apply(Settings(), client=client)
