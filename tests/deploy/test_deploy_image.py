"""Images: made by a packer that stands in for HashiCorp's, found and pruned on the embedded EC2."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from faceapp import __version__
from faceapp.deploy import image, images
from faceapp.deploy.target import Target, connect
from faceapp.errors import ConfigError, DeployError
from faceapp.stack.data_tier import STACK_TAG
from tests.support.aws import plain_client

PACKER = f"""#!{sys.executable}
import os, sys
command, *options = sys.argv[1:]
if command == "version":
    print("Packer v1.11.2")
    sys.exit()
with open(os.environ["PACKER_SAID"], "a") as said:
    print(command, *options, file=said)
given = dict(each.split("=", 1) for each in options if "=" in each)
if command == "validate":
    sys.exit(not os.path.isfile(given["sources"]))
if command == "build":
    import boto3
    ec2 = boto3.client("ec2")
    instance = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    tags = [{{"Key": "{STACK_TAG}", "Value": given["stack"]}}]
    tagged = [{{"ResourceType": "image", "Tags": tags}}]
    ec2.create_image(InstanceId=instance, Name=given["version"] + instance, TagSpecifications=tagged)
"""


@pytest.fixture
def target(aws: str) -> Iterator[Target]:
    with patch.dict(os.environ):  # which it changes
        yield connect(prefix=f"t{uuid.uuid4().hex[:8]}", endpoint=aws)


@pytest.fixture
def ec2(aws: str) -> Any:
    return plain_client("ec2", aws)


def a_packer(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str = PACKER) -> Path:
    """Puts it first on the PATH; the answer is the file in which it writes what it was told."""
    command = folder / "packer"
    command.write_text(script)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PACKER_SAID", str(folder / "said"))
    return folder / "said"


def an_image(ec2: Any, target: Target, name: str) -> str:
    [instance] = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"]
    tags = [{"ResourceType": "image", "Tags": [{"Key": STACK_TAG, "Value": target.prefix}]}]
    answer = ec2.create_image(InstanceId=instance["InstanceId"], Name=name, TagSpecifications=tags)
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    return str(answer["ImageId"])


def snapshots(ec2: Any, image_id: str) -> list[str]:
    [found] = ec2.describe_images(ImageIds=[image_id])["Images"]
    return [each["Ebs"]["SnapshotId"] for each in found["BlockDeviceMappings"]]


def test_an_image_is_made_of_the_sources_of_this_checkout(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = a_packer(tmp_path, monkeypatch)
    made = image.make(target, ["torch_index=there"], only_check=False, say=lambda _: None)
    assert [each.id for each in images.own(target)] == [made]
    assert images.newest(target) == made
    commands = said.read_text().splitlines()
    assert [each.split()[0] for each in commands] == ["init", "validate", "build"]
    for each in ("torch_index=there", f"version={__version__}", f"stack={target.prefix}", "region=us-east-1"):
        assert f"-var {each} " in commands[-1]


def test_checking_makes_no_image(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = a_packer(tmp_path, monkeypatch)
    assert image.make(target, [], only_check=True, say=lambda _: None) == ""
    assert [each.split()[0] for each in said.read_text().splitlines()] == ["init", "validate"]


def test_a_packer_that_fails_is_a_failure(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_packer(tmp_path, monkeypatch, PACKER.replace('if command == "build":', 'if command == "build":\n    sys.exit(3)'))
    with pytest.raises(DeployError, match="packer build ended with status 3"):
        image.make(target, [], only_check=False, say=lambda _: None)


def test_the_archive_has_the_checkouts_sources_and_nothing_that_was_made_of_them(tmp_path: Path) -> None:
    with tarfile.open(image.pack(tmp_path)) as archive:
        files = {each.name.partition("/")[2] for each in archive if each.isfile()}
        [template] = [each for each in archive if each.name.endswith("faceapp/stack/stack.yaml")]
        # A link in the checkout, whose target would not be there.
        assert template.isreg()
    tracked = subprocess.run(
        ["git", "ls-files", *image.SOURCES], cwd=image.CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert files >= set(tracked)
    assert not [each for each in files if "__pycache__" in each or each.startswith(("build/", "faceapp.egg-info/"))]


def test_sources_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"The sources cannot be packed: .*celery_sqs"):
        image.pack(tmp_path, root=tmp_path)


def test_without_packer_or_a_checkout_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="There is no packer here"):
        image.find_packer()
    a_packer(tmp_path, monkeypatch, "#!/bin/sh\necho Packer v1.6.6\n")
    with pytest.raises(ConfigError, match=r"v1\.6\.6, and the image's template needs 1\.7"):
        image.find_packer()
    a_packer(tmp_path, monkeypatch, "#!/bin/sh\necho cracklib\n")
    with pytest.raises(ConfigError, match="is not HashiCorp's packer"):
        image.find_packer()
    with pytest.raises(ConfigError, match="from a checkout"):
        image.check_checkout(tmp_path)


def test_old_images_go_with_their_snapshots_but_none_in_use(target: Target, ec2: Any) -> None:
    made = [an_image(ec2, target, f"image {n}") for n in range(6)]
    by_age = [each.id for each in images.own(target)][::-1]
    assert set(made) == set(by_age)
    another = an_image(ec2, connect(prefix=f"{target.prefix}-b"), "another stack's")
    ec2.create_launch_template(
        LaunchTemplateName=f"{target.prefix}-worker",
        LaunchTemplateData={"ImageId": by_age[0], "InstanceType": "t3.micro"},
    )
    tags = [{"ResourceType": "instance", "Tags": [{"Key": STACK_TAG, "Value": target.prefix}]}]
    ec2.run_instances(ImageId=by_age[1], MinCount=1, MaxCount=1, TagSpecifications=tags)
    disks = {each: snapshots(ec2, each) for each in by_age}
    gone = images.prune(target, keep=2)
    assert [each.id for each in gone] == by_age[2:4][::-1]
    assert {each.id for each in images.own(target)} == {*by_age[:2], *by_age[4:]}
    assert ec2.describe_images(ImageIds=[another])["Images"]
    left = {each["SnapshotId"] for each in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert not left & {disk for each in by_age[2:4] for disk in disks[each]}
    assert left >= {disk for each in by_age[4:] for disk in disks[each]}
    assert images.prune(target, keep=2) == []


def test_there_may_be_no_image_yet(target: Target) -> None:
    with pytest.raises(DeployError, match="'faceapp deploy image' makes one"):
        images.newest(target)
