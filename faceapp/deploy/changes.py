"""What would change: a change set, read and made into a plan. CloudFormation does nothing before it is executed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError

from faceapp.deploy import template
from faceapp.deploy.target import Target
from faceapp.errors import DeployError
from faceapp.stack.data_tier import STACK_TAG, body

NO_CHANGES = ("didn't contain changes", "No updates are to be performed")
TIMEOUT_S = 300
WAIT_S = 2.0
CHANGE_SET = "faceapp-"
HOLD_DATA = ("AWS::S3::Bucket", "AWS::SQS::Queue")
NEVER_UPDATED = {
    "ROLLBACK_COMPLETE": "its creation failed and was rolled back: 'faceapp deploy destroy' removes what is left of "
    "it, and then it can be applied again",
    "ROLLBACK_FAILED": "its creation failed, and so did the roll back: 'faceapp deploy destroy' removes what is left",
    "CREATE_FAILED": "its creation failed: 'faceapp deploy destroy' removes what is left of it",
    "DELETE_FAILED": "it could not be deleted: 'faceapp deploy destroy' goes on with that",
    "UPDATE_ROLLBACK_FAILED": "an update could not be rolled back: 'aws cloudformation continue-update-rollback' goes "
    "on with that, after what its last events name is mended ('faceapp deploy status' shows them)",
}

Action = Literal["add", "change", "replace", "may replace", "remove"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happens to one resource."""

    action: Action
    name: str
    kind: str
    """CloudFormation's type."""
    id: str = ""
    """The resource's name on AWS, when it is there already."""
    why: str = ""
    """The properties or parameters that make it change."""
    kept: bool = False
    """Whether it stays on AWS when the stack lets go of it."""

    @property
    def loses_data(self) -> bool:
        return self.kind in HOLD_DATA and self.action in ("replace", "may replace", "remove") and not self.kept


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter that changes."""

    name: str
    before: str
    """Empty where there is no stack yet: then it is the template's default that is not used."""
    after: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A change set that waits to be executed."""

    kind: Literal["CREATE", "UPDATE"]
    change_set: str
    """Its ARN; empty when there is nothing to change."""
    stack_id: str
    changes: tuple[Change, ...]
    parameters: tuple[Parameter, ...]
    after: Mapping[str, str]
    """All parameters as they will be."""
    notes: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        return not self.change_set


def find_stack(target: Target) -> dict[str, Any] | None:
    """The stack of that name, as CloudFormation describes it; None when there is none. Raises DeployError."""
    try:
        stacks: list[dict[str, Any]] = target.client("cloudformation").describe_stacks(StackName=target.stack)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise DeployError(f"CloudFormation does not say what the stack {target.stack} is: {error}") from error
    return stacks[0]


def parameters_of(stack: Mapping[str, Any] | None) -> dict[str, str]:
    """The stack's parameters."""
    given = (stack or {}).get("Parameters", ())
    return {each["ParameterKey"]: each.get("ParameterValue", "") for each in given}


def check_ours(stack: Mapping[str, Any] | None, target: Target) -> None:
    """Raises DeployError when the stack was not made by these commands or `faceapp up`."""
    # A plan of ours that was interrupted has left it, and such a stack has neither tags nor resources.
    if not stack or stack["StackStatus"] == "REVIEW_IN_PROGRESS":
        return
    tags = {each["Key"]: each["Value"] for each in stack.get("Tags", ())}
    if tags.get(STACK_TAG) != target.prefix:
        raise DeployError(
            f"There is a stack {target.stack}, and it is not one of faceapp's (it has no tag "
            f"{STACK_TAG}={target.prefix}): choose another name with --prefix or --stack."
        )


def check_state(stack: Mapping[str, Any] | None) -> None:
    """Raises DeployError when the stack's state lets it not be changed, with what to do."""
    if not stack:
        return
    name, state = stack["StackName"], stack["StackStatus"]
    if state in NEVER_UPDATED:
        raise DeployError(f"The stack {name} is {state}: {NEVER_UPDATED[state]}.")
    if state.endswith("_IN_PROGRESS") and state != "REVIEW_IN_PROGRESS":
        raise DeployError(
            f"The stack {name} is {state}: somebody changes it just now. Wait until that is over ('faceapp deploy "
            "status' shows it), and try again."
        )


def make(target: Target, wanted: Mapping[str, str]) -> Plan:
    """Create the change set for these parameters, wait until it is there, and read it.

    Parameters that are not named stay as they are, or are the template's defaults. Nothing is changed before
    `Plan.change_set` is executed; `discard` takes it back. Raises DeployError.
    """
    client = target.client("cloudformation")
    stack = find_stack(target)
    check_ours(stack, target)
    check_state(stack)
    if stack and stack["StackStatus"] == "REVIEW_IN_PROGRESS":
        check_own_plans(target)
        _delete_and_wait(client, stack["StackId"])
        stack = None
    current, defaults = parameters_of(stack), template.parameters()
    wanted = {"Prefix": target.prefix, **wanted}
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    kind: Literal["CREATE", "UPDATE"] = "UPDATE" if stack else "CREATE"
    if not stack and _exists(target, target.settings.gallery_bucket):
        notes.append(
            f"The bucket {target.settings.gallery_bucket} is here already, from an earlier stack: the people in it are "
            "kept, and it belongs to this stack from now on."
        )
        arguments["ImportExistingResources"] = True
    try:
        answer = client.create_change_set(
            StackName=target.stack,
            ChangeSetName=f"{CHANGE_SET}{time.time_ns()}",
            ChangeSetType=kind,
            TemplateBody=body(),
            Parameters=[_parameter(name, wanted, current, default) for name, default in defaults.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Tags=[{"Key": STACK_TAG, "Value": target.prefix}],
            **arguments,
        )
    except ClientError as error:
        if any(each in str(error) for each in NO_CHANGES):
            return _nothing(stack, current)
        raise DeployError(f"CloudFormation does not take the template: {error}") from error
    made = Plan(kind=kind, change_set=answer["Id"], stack_id=answer["StackId"], changes=(), parameters=(), after={})
    try:
        described = _wait(client, answer["Id"])
    except BaseException:
        discard(target, made)
        raise
    if described["Status"] == "FAILED":
        discard(target, made)
        reason = described.get("StatusReason", "")
        if any(each in reason for each in NO_CHANGES):
            return _nothing(stack, current)
        raise DeployError(f"CloudFormation cannot do this: {reason}")
    after = {**defaults, **current, **wanted}
    return Plan(
        kind=kind,
        change_set=answer["Id"],
        stack_id=answer["StackId"],
        changes=tuple(_changes(client, answer["Id"])),
        parameters=tuple(_changed(defaults, current if stack else None, after)),
        after=after,
        notes=tuple(notes),
    )


def discard(target: Target, plan: Plan) -> None:
    """Take the change set back, and the empty stack that it stands for where there was none."""
    client = target.client("cloudformation")
    if plan.change_set:
        with suppress(ClientError):
            client.delete_change_set(ChangeSetName=plan.change_set)
    if plan.kind == "CREATE" and plan.stack_id:
        _delete_and_wait(client, plan.stack_id)


def check_own_plans(target: Target) -> None:
    """Raises DeployError when somebody else reviews a change set for a stack of this name."""
    client, stack = target.client("cloudformation"), target.stack
    for page in client.get_paginator("list_change_sets").paginate(StackName=stack):
        for each in page["Summaries"]:
            if each["StackName"] == stack and not each["ChangeSetName"].startswith(CHANGE_SET):
                raise DeployError(
                    f"Somebody plans a stack {stack} that is not faceapp's (change set {each['ChangeSetName']}): "
                    "choose another name with --prefix or --stack."
                )


def _nothing(stack: Mapping[str, Any] | None, current: Mapping[str, str]) -> Plan:
    stack_id = stack["StackId"] if stack else ""
    return Plan(kind="UPDATE", change_set="", stack_id=stack_id, changes=(), parameters=(), after=current)


def _parameter(name: str, wanted: Mapping[str, str], current: Mapping[str, str], default: str) -> dict[str, Any]:
    if name in wanted:
        return {"ParameterKey": name, "ParameterValue": wanted[name]}
    if name in current:
        return {"ParameterKey": name, "UsePreviousValue": True}
    return {"ParameterKey": name, "ParameterValue": default}


def _wait(client: Any, change_set: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def made() -> bool:
        found.update(client.describe_change_set(ChangeSetName=change_set))
        return found["Status"] in ("CREATE_COMPLETE", "FAILED")

    wait_for(made, what="CloudFormation has not made the change set")
    return found


def wait_for(condition: Callable[[], bool], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Ask until it is so. Raises DeployError, which says `what` after so long."""
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.05
    while not condition():
        if time.monotonic() > deadline_s:
            raise DeployError(f"{what} after {timeout_s:g} s.")
        time.sleep(pause_s)
        pause_s = min(WAIT_S, 2 * pause_s)


def _changes(client: Any, change_set: str) -> list[Change]:
    resources = template.resources()
    found = []
    token: dict[str, str] = {}
    while True:
        page = client.describe_change_set(ChangeSetName=change_set, **token)
        found += [_change(each["ResourceChange"], resources) for each in page.get("Changes", ())]
        if not page.get("NextToken"):
            return found
        token = {"NextToken": page["NextToken"]}


def _change(described: Mapping[str, Any], resources: Mapping[str, Mapping[str, Any]]) -> Change:
    replacement = described.get("Replacement", "False")
    name = described["LogicalResourceId"]
    actions: dict[str, Action] = {"Add": "add", "Import": "add", "Remove": "remove"}
    modified: Action = {"True": "replace", "Conditional": "may replace"}.get(replacement, "change")  # type: ignore[assignment]
    policy = described.get("PolicyAction", "")
    kept = policy.startswith("Retain") or _retained(resources.get(name, {}))
    causes = {
        each.get("CausingEntity") or each.get("Target", {}).get("Name") or "" for each in described.get("Details", ())
    }
    return Change(
        action=actions.get(described["Action"], modified),
        name=name,
        kind=described["ResourceType"],
        id=described.get("PhysicalResourceId", ""),
        why=", ".join(sorted(filter(None, causes))),
        kept=kept,
    )


def _retained(resource: Mapping[str, Any]) -> bool:
    return resource.get("DeletionPolicy") == "Retain" and resource.get("UpdateReplacePolicy") == "Retain"


def _changed(
    defaults: Mapping[str, str], current: Mapping[str, str] | None, after: Mapping[str, str]
) -> list[Parameter]:
    before = defaults if current is None else current
    return [
        Parameter(name=name, before=before.get(name, ""), after=value)
        for name, value in sorted(after.items())
        if before.get(name, "") != value and name != "Prefix"
    ]


def _exists(target: Target, bucket: str) -> bool:
    try:
        target.client("s3").head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            return False
        if error.response["Error"]["Code"] in ("403", "301"):
            raise DeployError(
                f"There is a bucket {bucket} already, and it is not in this account and region. Buckets' names are "
                "unique in all of AWS: choose another --prefix."
            ) from error
        raise DeployError(f"S3 does not say whether there is a bucket {bucket}: {error}") from error
    return True


def _delete_and_wait(client: Any, stack_id: str) -> None:
    client.delete_stack(StackName=stack_id)

    def gone() -> bool:
        try:
            stacks = client.describe_stacks(StackName=stack_id)["Stacks"]
        except ClientError as error:
            return "does not exist" in str(error)
        return all(each["StackStatus"] == "DELETE_COMPLETE" for each in stacks)

    wait_for(gone, what="The empty stack of a plan is still there")
