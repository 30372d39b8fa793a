"""The images (AMIs) that `faceapp deploy image` makes: which there are, and which may go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp.deploy import remains
from faceapp.deploy.target import Target
from faceapp.errors import DeployError
from faceapp.stack.data_tier import STACK_TAG


@dataclass(frozen=True, kw_only=True)
class Image:
    """An AMI of the stack's."""

    id: str
    name: str
    created: str
    """As ISO 8601, so that they sort."""


def own(target: Target) -> list[Image]:
    """Those that were made for this prefix, newest first. Raises DeployError."""
    filters = [{"Name": f"tag:{STACK_TAG}", "Values": [target.prefix]}]
    try:
        found = target.client("ec2").describe_images(Owners=["self"], Filters=filters)["Images"]
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"EC2 does not list the images: {error}") from error
    images = [
        Image(id=each["ImageId"], name=each.get("Name", ""), created=each.get("CreationDate", "")) for each in found
    ]
    return sorted(images, key=lambda each: (each.created, each.id), reverse=True)


def newest(target: Target) -> str:
    """The last one's id. Raises DeployError when there is none."""
    if found := own(target):
        return found[0].id
    raise DeployError(f"There is no image of {target.prefix}'s in {target.region}: 'faceapp deploy image' makes one.")


def in_use(target: Target) -> set[str]:
    """The images that the launch templates' versions in use or an instance of the stack's name. Raises DeployError."""
    ec2 = target.client("ec2")
    try:
        found = set(_of_templates(ec2, [each.id for each in remains.launch_templates(target)]))
        filters = [
            {"Name": f"tag:{STACK_TAG}", "Values": [target.prefix]},
            {"Name": "instance-state-name", "Values": remains.ALIVE},
        ]
        for page in ec2.get_paginator("describe_instances").paginate(Filters=filters):
            found.update(one["ImageId"] for each in page["Reservations"] for one in each["Instances"])
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"EC2 does not say which images are in use: {error}") from error
    return found


def prune(target: Target, *, keep: int) -> list[Image]:
    """Delete all but the `keep` newest and those in use, with their snapshots; the answer is what went."""
    used = in_use(target)
    old = [each for each in own(target)[keep:] if each.id not in used]
    for each in old:
        try:
            remains.remove_image(target.client("ec2"), each.id)
        except (ClientError, BotoCoreError) as error:
            raise DeployError(f"The image {each.id} cannot be deleted: {error}") from error
    return old


def _of_templates(ec2: Any, templates: Iterable[str]) -> Iterable[str]:
    for template in templates:
        answer = ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=["$Latest", "$Default"])
        for each in answer["LaunchTemplateVersions"]:
            if image := each["LaunchTemplateData"].get("ImageId"):
                yield image
