"""The end of a stack: what would go, and then all of it, in an order in which nothing comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from faceapp.deploy import apply, remains
from faceapp.deploy.apply import Event
from faceapp.deploy.changes import check_ours, check_own_plans, find_stack
from faceapp.deploy.remains import Thing
from faceapp.deploy.target import Target
from faceapp.errors import DeployError
from faceapp.stack.data_tier import STACK_TAG, TIER_TAG

MOST_COUNTED = 100_000
TERMINATED_S = 600


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket that the stack owns, or owned."""

    name: str
    objects: int
    gallery: bool = False


@dataclass(frozen=True, kw_only=True)
class Queue:
    """One of the stack's queues."""

    name: str
    messages: int


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What there is to destroy."""

    stack_id: str
    """Empty when the stack itself is gone already."""
    state: str
    resources: int
    buckets: tuple[Bucket, ...]
    queues: tuple[Queue, ...]
    instances: tuple[Thing, ...]
    others: tuple[Thing, ...]
    """Made at run time, or left by an earlier attempt."""
    images: tuple[Thing, ...]

    def nothing(self, *, with_gallery: bool, with_images: bool) -> bool:
        buckets = [each for each in self.buckets if with_gallery or not each.gallery]
        images = self.images if with_images else ()
        return not (self.stack_id or buckets or self.instances or self.others or images)


def take_stock(target: Target) -> Inventory:
    """Look at everything. Raises DeployError, also for a stack that is not ours or that another one needs."""
    stack = find_stack(target)
    check_ours(stack, target)
    try:
        if stack and stack["StackStatus"] == "REVIEW_IN_PROGRESS":
            check_own_plans(target)
        _check_alone(target)
        resources = _resources(target) if stack else []
        return Inventory(
            stack_id=stack["StackId"] if stack else "",
            state=stack["StackStatus"] if stack else "",
            resources=len(resources),
            buckets=tuple(_buckets(target, resources)),
            queues=tuple(_queue(target, each) for each in _ids(resources, "AWS::SQS::Queue")),
            instances=tuple(remains.instances(target)),
            others=tuple(_made_at_run_time(target, in_stack={each["PhysicalResourceId"] for each in resources})),
            images=tuple(remains.images(target)),
        )
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"AWS does not say what there is to destroy: {error}") from error


def destroy(
    target: Target,
    found: Inventory,
    *,
    with_gallery: bool,
    with_images: bool,
    say: Callable[[str], None],
    tell: Callable[[Event], None],
) -> list[Thing]:
    """Remove it, and answer what is left: of this nothing should be. Can be run again after it ended in the middle.

    The gallery and the images stay unless they are named, and are not in the answer then. Raises DeployError.
    """
    try:
        _terminate(target, say=say)
        for each in found.buckets:
            if each.objects and (with_gallery or not each.gallery):
                say(f"emptying {each.name}")
                _empty(target, each.name)
        if found.stack_id:
            _delete_stack(target, found, say=say, tell=tell)
        for each in found.buckets:
            if each.gallery and with_gallery:
                say(f"deleting {each.name}")
                _delete_bucket(target, each.name)
        in_the_end = [*_made_at_run_time(target), *(remains.images(target) if with_images else ())]
        for thing in in_the_end:
            say(f"deleting {thing}")
            remains.remove(target, thing)
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"Not all of it is gone: {error}\nRun the same command again to go on.") from error
    kept = [] if with_gallery else [target.settings.gallery_bucket]
    return [each for each in remains.find(target) if each.id not in kept and (with_images or each.kind != "image")]


def _check_alone(target: Target) -> None:
    """Raises DeployError while the stack of deploy/balanced.yaml is there: it would start web instances again."""
    group = f"{target.prefix}-web-tier"
    found = target.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    for each in found["AutoScalingGroups"]:
        tags = {tag["Key"]: tag["Value"] for tag in each.get("Tags", ())}
        name = tags.get("aws:cloudformation:stack-name", "that made it")
        raise DeployError(
            f"More web servers stand in front of this stack ({group}, of deploy/balanced.yaml): delete the stack "
            f"{name} first."
        )


def _terminate(target: Target, *, say: Callable[[str], None]) -> None:
    """The web-instance first: its scaler would start workers again."""
    ec2 = target.client("ec2")
    for tier in ("web", "app"):
        filters = [
            {"Name": f"tag:{STACK_TAG}", "Values": [target.prefix]},
            {"Name": f"tag:{TIER_TAG}", "Values": [tier]},
            {"Name": "instance-state-name", "Values": remains.ALIVE},
        ]
        pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
        ids = [one["InstanceId"] for page in pages for each in page["Reservations"] for one in each["Instances"]]
        if not ids:
            continue
        say(f"terminating {len(ids)} of the {tier} tier's instances")
        ec2.terminate_instances(InstanceIds=ids)
        try:
            config = {"Delay": 5, "MaxAttempts": TERMINATED_S // 5}
            ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=config)
        except WaiterError as error:
            raise DeployError(
                f"Instances are not terminated after {TERMINATED_S} s ({', '.join(ids)}): run the same command again."
            ) from error


def _delete_stack(
    target: Target, found: Inventory, *, say: Callable[[str], None], tell: Callable[[Event], None]
) -> None:
    client = target.client("cloudformation")
    if not target.embedded:
        apply.protect(target, wanted=False)
    seen = apply.seen_events(client, found.stack_id)
    say(f"deleting the stack {target.stack}")
    client.delete_stack(StackName=found.stack_id)
    apply.follow(target, found.stack_id, seen=seen, tell=tell)


def _resources(target: Target) -> list[dict[str, Any]]:
    pages = target.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=target.stack)
    return [
        each
        for page in pages
        for each in page["StackResourceSummaries"]
        if each.get("PhysicalResourceId") and each.get("ResourceStatus") != "DELETE_COMPLETE"
    ]


def _ids(resources: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    return [each["PhysicalResourceId"] for each in resources if each["ResourceType"] == kind]


def _buckets(target: Target, resources: Iterable[Mapping[str, Any]]) -> Iterable[Bucket]:
    """The stack's own; and a gallery that an earlier destroy has left."""
    gallery = target.settings.gallery_bucket
    names = _ids(resources, "AWS::S3::Bucket")
    if gallery not in names and _was_ours(target, gallery):
        names.append(gallery)
    for name in names:
        with suppress(target.client("s3").exceptions.NoSuchBucket):
            yield Bucket(name=name, objects=_count(target, name), gallery=name == gallery)


def _was_ours(target: Target, bucket: str) -> bool:
    """Whether a bucket of no stack has the tag that ours had in theirs (the embedded AWS gives none)."""
    s3 = target.client("s3")
    try:
        tags = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("NoSuchBucket", "NoSuchTagSet", "AccessDenied"):
            return target.embedded and code == "NoSuchTagSet"
        raise
    return {"Key": STACK_TAG, "Value": target.prefix} in tags


def _count(target: Target, bucket: str) -> int:
    count = 0
    for page in target.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket):
        count += page["KeyCount"]
        if count >= MOST_COUNTED:
            break
    return count


def _queue(target: Target, url: str) -> Queue:
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    name = url.rpartition("/")[2]
    sqs = target.client("sqs")
    try:
        counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(names))["Attributes"]
    except sqs.exceptions.QueueDoesNotExist:
        return Queue(name=name, messages=0)
    return Queue(name=name, messages=sum(int(counts[each]) for each in names))


def _made_at_run_time(target: Target, *, in_stack: Iterable[str] = ()) -> list[Thing]:
    finders = (remains.temporary_queues, remains.log_groups, remains.volumes, remains.launch_templates)
    within = set(in_stack)
    return [each for finder in finders for each in finder(target) if each.id not in within]


def _empty(target: Target, bucket: str) -> None:
    """All objects, with their versions, should somebody have switched these on."""
    s3 = target.client("s3")
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        keys = [
            {"Key": each["Key"], "VersionId": each["VersionId"]}
            for each in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
        ]
        if keys:
            failed = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors")
            if failed:
                raise DeployError(f"{bucket} cannot be emptied: {failed[0]['Key']}: {failed[0]['Message']}")


def _delete_bucket(target: Target, bucket: str) -> None:
    s3 = target.client("s3")
    with suppress(s3.exceptions.NoSuchBucket):
        _empty(target, bucket)
        s3.delete_bucket(Bucket=bucket)
