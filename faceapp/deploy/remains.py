"""What AWS holds under a stack's tag and names: looked up service by service, so that it is found without the stack.

Nothing of another stack is found, not even of one whose prefix begins with this one's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.queues.urls import queue_urls
from faceapp.config.aws import USED_TAG
from faceapp.deploy.target import Target
from faceapp.errors import DeployError
from faceapp.stack.data_tier import STACK_TAG

ALIVE = ["pending", "running", "stopping", "stopped"]
TEMPORARY_QUEUE = re.compile(r"celery_.*|celeryev-.*|.*-reply-celery-pidbox|resp-queue-.*")
"""The end of the name of a queue that a process made for itself."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One resource on AWS."""

    kind: str
    id: str
    """By which it is deleted."""
    words: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id}{f' ({self.words})' if self.words else ''}"


def find(target: Target) -> list[Thing]:
    """Everything that is there. Raises DeployError when a service does not answer."""
    try:
        return [thing for finder in FINDERS for thing in finder(target)]
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"AWS does not say what is left: {error}") from error


def instances(target: Target) -> Iterator[Thing]:
    """Of both tiers."""
    filters = [*_tagged(target), {"Name": "instance-state-name", "Values": ALIVE}]
    for page in target.client("ec2").get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            for each in reservation["Instances"]:
                name = next((tag["Value"] for tag in each["Tags"] if tag["Key"] == "Name"), "no name")
                yield Thing(kind="instance", id=each["InstanceId"], words=f"{name}, {each['State']['Name']}")


def images(target: Target) -> Iterator[Thing]:
    """AMIs that `faceapp deploy image` made, with their snapshots."""
    for each in target.client("ec2").describe_images(Owners=["self"], Filters=_tagged(target))["Images"]:
        yield Thing(kind="image", id=each["ImageId"], words=each.get("Name", ""))


def temporary_queues(target: Target) -> Iterator[Thing]:
    """Those that web tier, workers, scaler and Flower made for themselves while they ran."""
    sqs = target.client("sqs")
    others = _longer_prefixes(target)
    for name, url in _queues(target):
        end = name.removeprefix(f"{target.prefix}-")
        if name.startswith(others) or not TEMPORARY_QUEUE.fullmatch(end):
            continue
        if USED_TAG in sqs.list_queue_tags(QueueUrl=url).get("Tags", {}) or end.startswith("resp-queue-"):
            yield Thing(kind="queue", id=url, words="made at run time")


def log_groups(target: Target) -> Iterator[Thing]:
    """/faceapp/<prefix>, and those below it."""
    name = f"/faceapp/{target.prefix}"
    pages = target.client("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=name)
    for page in pages:
        for each in page["logGroups"]:
            if each["logGroupName"] == name or each["logGroupName"].startswith(f"{name}/"):
                yield Thing(kind="log group", id=each["logGroupName"])


def volumes(target: Target) -> Iterator[Thing]:
    """Disks that no instance holds."""
    filters = [*_tagged(target), {"Name": "status", "Values": ["available"]}]
    for each in target.client("ec2").describe_volumes(Filters=filters)["Volumes"]:
        yield Thing(kind="volume", id=each["VolumeId"], words=f"{each['Size']} GB")


def launch_templates(target: Target) -> Iterator[Thing]:
    """What workers and web-instance boot from."""
    names = [f"{target.prefix}-worker", f"{target.prefix}-web"]
    found = target.client("ec2").describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": names}])
    for each in found["LaunchTemplates"]:
        yield Thing(kind="launch template", id=each["LaunchTemplateId"], words=each["LaunchTemplateName"])


def remove(target: Target, thing: Thing) -> None:
    """Delete it. Raises botocore's errors."""
    ec2 = target.client("ec2")
    match thing.kind:
        case "queue":
            target.client("sqs").delete_queue(QueueUrl=thing.id)
        case "log group":
            target.client("logs").delete_log_group(logGroupName=thing.id)
        case "volume":
            ec2.delete_volume(VolumeId=thing.id)
        case "launch template":
            ec2.delete_launch_template(LaunchTemplateId=thing.id)
        case "image":
            remove_image(ec2, thing.id)


def remove_image(ec2: Any, image: str) -> None:
    """Deregister an AMI and delete its snapshots, which are what is billed."""
    described = ec2.describe_images(ImageIds=[image])["Images"]
    ec2.deregister_image(ImageId=image)
    for mapping in (mapping for each in described for mapping in each.get("BlockDeviceMappings", ())):
        if snapshot := mapping.get("Ebs", {}).get("SnapshotId"):
            try:
                ec2.delete_snapshot(SnapshotId=snapshot)
            except ClientError as error:
                if "NotFound" not in error.response["Error"]["Code"]:
                    raise


def alarm_names(target: Target) -> list[str]:
    """Of the stack's alarms."""
    return [f"{target.prefix}-{end}" for end in ("dead-letters", "oldest-message", "dead-boots", "budget")]


def _the_stacks_queues(target: Target) -> Iterator[Thing]:
    settings = target.settings
    own = {settings.request_queue, settings.response_queue, settings.dead_letter_queue}
    yield from (Thing(kind="queue", id=url) for name, url in _queues(target) if name in own)


def _topics(target: Target) -> Iterator[Thing]:
    own = {f"{target.prefix}-{end}" for end in ("celeryev", "celery-pidbox", "alarms")}
    for page in target.client("sns").get_paginator("list_topics").paginate():
        for each in page["Topics"]:
            if each["TopicArn"].rpartition(":")[2] in own:
                yield Thing(kind="topic", id=each["TopicArn"])


def _subscriptions(target: Target) -> Iterator[Thing]:
    own = {f"{target.prefix}-{end}" for end in ("celeryev", "celery-pidbox", "alarms")}
    for page in target.client("sns").get_paginator("list_subscriptions").paginate():
        for each in page["Subscriptions"]:
            if each["TopicArn"].rpartition(":")[2] in own:
                yield Thing(kind="subscription", id=each["SubscriptionArn"], words=each["Endpoint"])


def _buckets(target: Target) -> Iterator[Thing]:
    settings = target.settings
    own = {settings.in_bucket, settings.out_bucket, settings.gallery_bucket}
    for each in target.client("s3").list_buckets()["Buckets"]:
        if each["Name"] in own:
            yield Thing(kind="bucket", id=each["Name"])


def _roles(target: Target) -> Iterator[Thing]:
    own = {f"{target.prefix}-{end}" for end in ("web", "web-tier", "worker", "scaler", "flower")}
    iam = target.client("iam")
    for page in iam.get_paginator("list_roles").paginate():
        yield from (Thing(kind="role", id=each["RoleName"]) for each in page["Roles"] if each["RoleName"] in own)
    for page in iam.get_paginator("list_instance_profiles").paginate():
        for each in page["InstanceProfiles"]:
            if each["InstanceProfileName"] in own:
                yield Thing(kind="instance profile", id=each["InstanceProfileName"])


def _network(target: Target) -> Iterator[Thing]:
    ec2 = target.client("ec2")
    filters = [{"Name": "tag:aws:cloudformation:stack-name", "Values": [target.stack]}]
    for each in ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        yield Thing(kind="security group", id=each["GroupId"], words=each["GroupName"])
    for each in ec2.describe_addresses(Filters=_tagged(target))["Addresses"]:
        yield Thing(kind="address", id=each["PublicIp"])


def _alarms(target: Target) -> Iterator[Thing]:
    for each in target.client("cloudwatch").describe_alarms(AlarmNames=alarm_names(target))["MetricAlarms"]:
        yield Thing(kind="alarm", id=each["AlarmName"])


FINDERS = (
    instances,
    _buckets,
    _the_stacks_queues,
    temporary_queues,
    _topics,
    _subscriptions,
    launch_templates,
    volumes,
    _network,
    _roles,
    _alarms,
    log_groups,
    images,
)


def _tagged(target: Target) -> list[dict[str, Any]]:
    return [{"Name": f"tag:{STACK_TAG}", "Values": [target.prefix]}]


def _queues(target: Target) -> Iterator[tuple[str, str]]:
    for url in queue_urls(target.client("sqs"), f"{target.prefix}-"):
        yield url.rpartition("/")[2], url


def _longer_prefixes(target: Target) -> tuple[str, ...]:
    """The beginnings of other stacks' queues' names, where they begin like this one's."""
    found = []
    for page in target.client("cloudformation").get_paginator("describe_stacks").paginate():
        for each in page["Stacks"]:
            parameters = {one["ParameterKey"]: one["ParameterValue"] for one in each.get("Parameters", ())}
            # A stack that is not one of faceapp's may name its queues after itself, too.
            prefix = parameters.get("Prefix") or each["StackName"]
            if prefix.startswith(f"{target.prefix}-"):
                found.append(f"{prefix}-")
    return tuple(found)
