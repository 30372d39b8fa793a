"""A small evaluator of IAM's identity policies, and what each AWS call needs of them.

It knows what our policies use: Allow and an explicit Deny that wins, wildcards in actions and resources, and the
operators in `OPERATORS`. Anything else in a policy is an error here, never a silent yes. The needs are those of AWS's
Service Authorization Reference: a batch is authorised like its single call, HeadObject like GetObject, and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

REGION, ACCOUNT = "us-east-1", "123456789012"

Context = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Need:
    """One question to IAM."""

    action: str
    resource: str
    context: Context = field(default_factory=dict, hash=False)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in text), re.DOTALL)


def like(value: str, pattern: str) -> bool:
    """IAM's wildcards: * and ?."""
    return _pattern(pattern).fullmatch(value) is not None


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringLike": like,
    "ArnEquals": like,
}
ALL = "ForAllValues:"


@dataclass(frozen=True)
class Statement:
    """A statement of a policy."""

    sid: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Statement:
        unknown = set(document) - {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert not unknown, f"the evaluator does not know {unknown}"
        conditions = tuple(
            (operator, key, _tuple(values))
            for operator, keys in document.get("Condition", {}).items()
            for key, values in keys.items()
        )
        assert all(operator.removeprefix(ALL) in OPERATORS for operator, _, _ in conditions), conditions
        return cls(
            document["Sid"], document["Effect"], _tuple(document["Action"]), _tuple(document["Resource"]), conditions
        )

    def matches(self, need: Need) -> bool:
        return (
            any(like(need.action.lower(), each.lower()) for each in self.actions)
            and any(like(need.resource, each) for each in self.resources)
            and all(_holds(need.context, *each) for each in self.conditions)
        )


def _tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _holds(context: Context, operator: str, key: str, wanted: Sequence[str]) -> bool:
    values = next((values for name, values in context.items() if name.lower() == key.lower()), ())
    matches = OPERATORS[operator.removeprefix(ALL)]
    found = [any(matches(value, each) for each in wanted) for value in values]
    # A key that is not there: true for ForAllValues, else false.
    return all(found) if operator.startswith(ALL) else any(found)


def allows(statements: Sequence[Statement], need: Need) -> bool:
    """IAM's answer for one identity: a Deny wins, and without an Allow it is no."""
    matching = {each.effect for each in statements if each.matches(need)}
    return matching == {"Allow"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the needs of EC2's calls depend on."""

    prefix: str
    launch_template: Mapping[str, Any]
    """A description of the version that is run, with its LaunchTemplateId."""
    worker_role: str
    tags: Mapping[str, Mapping[str, str]]
    """Of instances, by id."""


def needs(call: Mapping[str, Any], account: Account) -> Iterator[Need]:
    """What a recorded call (see tests/support/recorded_aws.py) asks of IAM."""
    of_service = {"s3": _s3, "sqs": _sqs, "sns": _sns, "ec2": _ec2, "monitoring": _cloudwatch}
    yield from of_service[call["service"]](call, account)


def arn(service: str, name: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{name}"


def _s3(call: Mapping[str, Any], _: Account) -> Iterator[Need]:
    bucket, _, key = call["path"].strip("/").partition("/")
    in_bucket, whole = f"arn:aws:s3:::{bucket}/{key}", f"arn:aws:s3:::{bucket}"
    operation = call["operation"]
    if operation in ("HeadBucket", "ListObjectsV2"):
        yield Need(action="s3:ListBucket", resource=whole)
    elif operation == "DeleteObjects":
        for each in re.findall("<Key>(.*?)</Key>", call["body"]):
            yield Need(action="s3:DeleteObject", resource=f"{whole}/{each}")
    else:
        yield Need(action=f"s3:{operation.replace('Head', 'Get')}", resource=in_bucket)
        if call["if_match"]:
            yield Need(action="s3:GetObject", resource=in_bucket)
        # S3 says that there is no such object only to whoever may list the bucket; to others it says 403.
        if call["status"] == 404:
            yield Need(action="s3:ListBucket", resource=whole)


def _sqs(call: Mapping[str, Any], _: Account) -> Iterator[Need]:
    asked = json.loads(call["body"])
    action = f"sqs:{call['operation'].removesuffix('Batch')}"
    if action == "sqs:ListQueues":
        yield Need(action=action, resource="*")
        return
    queue = arn("sqs", asked.get("QueueName") or asked["QueueUrl"].rpartition("/")[2])
    yield Need(action=action, resource=queue)
    if asked.get("tags"):
        yield Need(action="sqs:TagQueue", resource=queue)


def _sns(call: Mapping[str, Any], _: Account) -> Iterator[Need]:
    asked = dict(parse_qsl(call["body"]))
    context = {f"sns:{key}": [asked[key]] for key in ("Protocol", "Endpoint") if key in asked}
    yield Need(action=f"sns:{call['operation']}", resource=asked.get("TopicArn", "*"), context=context)


def _cloudwatch(call: Mapping[str, Any], _: Account) -> Iterator[Need]:
    context = {"cloudwatch:namespace": [json.loads(call["body"])["Namespace"]]}
    yield Need(action=f"cloudwatch:{call['operation']}", resource="*", context=context)


def _ec2(call: Mapping[str, Any], account: Account) -> Iterator[Need]:
    asked, operation = dict(parse_qsl(call["body"])), call["operation"]
    if operation.startswith("Describe"):
        yield Need(action=f"ec2:{operation}", resource="*")
    elif operation == "RunInstances":
        yield from _run_instances(asked, account)
    else:
        pattern = r"(InstanceId|ResourceId)\.\d+"
        for instance in [value for key, value in asked.items() if re.fullmatch(pattern, key)]:
            tags = {f"aws:ResourceTag/{key}": [value] for key, value in account.tags[instance].items()}
            keys = [value for key, value in asked.items() if re.fullmatch(r"Tag\.\d+\.Key", key)]
            context = {**tags, "aws:TagKeys": keys} if keys else tags
            yield Need(action=f"ec2:{operation}", resource=arn("ec2", f"instance/{instance}"), context=context)


def _run_instances(asked: Mapping[str, str], account: Account) -> Iterator[Need]:
    assert asked["LaunchTemplate.LaunchTemplateName"] == f"{account.prefix}-worker"
    assert not any(key.startswith(("ImageId", "SecurityGroup", "IamInstanceProfile", "UserData")) for key in asked)
    data = account.launch_template["LaunchTemplateData"]
    template = arn("ec2", f"launch-template/{account.launch_template['LaunchTemplateId']}")
    tags = {}
    for key, name in asked.items():
        if found := re.fullmatch(r"TagSpecification\.(\d+)\.Tag\.(\d+)\.Key", key):
            tags[name] = asked[f"TagSpecification.{found[1]}.Tag.{found[2]}.Value"]
    used: Context = {"ec2:LaunchTemplate": [template]}
    requested = {f"aws:RequestTag/{key}": [value] for key, value in tags.items()}
    run, kind_of = "ec2:RunInstances", {"ec2:InstanceType": [asked.get("InstanceType", data["InstanceType"])]}
    yield Need(action=run, resource=arn("ec2", "instance/i-new"), context={**used, **requested, **kind_of})
    yield Need(action=run, resource=f"arn:aws:ec2:{REGION}::image/{data['ImageId']}", context=used)
    yield Need(action=run, resource=template, context=used)
    for group in data["SecurityGroupIds"]:
        yield Need(action=run, resource=arn("ec2", f"security-group/{group}"), context=used)
    for kind in ("network-interface/eni-new", "subnet/subnet-any", "volume/vol-new"):
        yield Need(action=run, resource=arn("ec2", kind), context=used)
    for kind in ("instance/i-new", "volume/vol-new"):
        yield Need(action="ec2:CreateTags", resource=arn("ec2", kind), context={"ec2:CreateAction": ["RunInstances"]})
    passed = {"iam:PassedToService": ["ec2.amazonaws.com"]}
    yield Need(action="iam:PassRole", resource=account.worker_role, context=passed)
