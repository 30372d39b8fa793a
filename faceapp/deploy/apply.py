"""A plan, executed: with progress, and with the first real reason when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from faceapp.deploy.changes import Plan, find_stack
from faceapp.deploy.target import Target
from faceapp.errors import DeployError

TIMEOUT_S = 3600
POLL_S = 3.0
CANCELLED = ("Resource creation cancelled", "Resource update cancelled")
"""What CloudFormation says of resources that failed only because another one had."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that CloudFormation did to a resource, or to the stack itself."""

    name: str
    kind: str
    status: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.status.endswith("_FAILED")

    @property
    def cause(self) -> bool:
        """Whether it failed by itself, not because something else had."""
        return self.failed and not any(each in self.reason for each in CANCELLED)


def execute(target: Target, plan: Plan, *, tell: Callable[[Event], None]) -> None:
    """Execute it and wait until the stack is as planned. Raises DeployError with the first reason when it fails.

    `tell` is called with each event as it comes. An account's stack is protected from being deleted by mistake
    afterwards (destroy takes that away itself).
    """
    client = target.client("cloudformation")
    seen = seen_events(client, plan.stack_id)
    try:
        client.execute_change_set(ChangeSetName=plan.change_set)
    except ClientError as error:
        raise DeployError(f"The stack {target.stack} could not be applied: {error}") from error
    follow(target, plan.stack_id, seen=seen, tell=tell)
    if not target.embedded:
        protect(target, wanted=True)


def follow(target: Target, stack_id: str, *, seen: set[str], tell: Callable[[Event], None]) -> None:
    """Tell of each new event until the stack's state is final. Raises DeployError when that is not a good one."""
    client = target.client("cloudformation")
    causes: list[Event] = []
    told: set[str] = set()
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        stack = _describe(client, stack_id)
        state = stack["StackStatus"]
        # After the state: so that the last events are there, too.
        for event in _new(client, stack_id, seen):
            tell(event)
            causes += [event] if event.cause else []
            told |= {event.status} if event.name == target.stack else set()
        # A final state of which no event tells is that of before: CloudFormation takes a moment to begin.
        if state in told and state.endswith(("_COMPLETE", "_FAILED")):
            break
        if time.monotonic() > deadline_s:
            raise DeployError(
                f"The stack {target.stack} is still {state} after {TIMEOUT_S // 60} minutes: CloudFormation goes on, "
                "'faceapp deploy status' shows it."
            )
        time.sleep(POLL_S)
    if state not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE", "DELETE_COMPLETE"):
        reason = (
            f"{causes[0].name}: {causes[0].reason}" if causes else stack.get("StackStatusReason", "no reason given")
        )
        raise DeployError(f"The stack {target.stack} is {state}. First reason: {reason}{_aftermath(state)}")


def protect(target: Target, *, wanted: bool) -> None:
    """Switch the stack's protection from being deleted. Raises DeployError."""
    try:
        target.client("cloudformation").update_termination_protection(
            EnableTerminationProtection=wanted, StackName=target.stack
        )
    except ClientError as error:
        raise DeployError(f"The stack's protection cannot be switched: {error}") from error


def outputs(target: Target) -> dict[str, str]:
    """The stack's outputs; empty when there is none."""
    stack = find_stack(target) or {}
    return {each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())}


def last_events(target: Target, count: int) -> list[tuple[Any, Event]]:
    """The last ones, newest last, with their times."""
    with suppress(ClientError):
        page = target.client("cloudformation").describe_stack_events(StackName=target.stack)["StackEvents"]
        return [(each["Timestamp"], _event(each)) for each in reversed(page[:count])]
    return []


def seen_events(client: Any, stack_id: str) -> set[str]:
    """The ids of what has happened until now."""
    return {each["EventId"] for each in _events(client, stack_id)}


def _aftermath(state: str) -> str:
    match state:
        case "UPDATE_ROLLBACK_COMPLETE":
            return "\nEverything is as it was before: the update was rolled back."
        case "ROLLBACK_COMPLETE":
            return (
                "\nWhat had been created was removed again. 'faceapp deploy destroy' removes the empty stack, and then "
                "it can be applied again."
            )
    return "\n'faceapp deploy status' shows its last events."


def _describe(client: Any, stack_id: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = client.describe_stacks(StackName=stack_id)["Stacks"][0]
    except ClientError as error:
        raise DeployError(f"CloudFormation does not say how the stack is: {error}") from error
    return found


def _events(client: Any, stack_id: str) -> Iterator[Mapping[str, Any]]:
    """Newest first."""
    with suppress(ClientError):  # a stack that is gone has none
        for page in client.get_paginator("describe_stack_events").paginate(StackName=stack_id):
            yield from page["StackEvents"]


def _new(client: Any, stack_id: str, seen: set[str]) -> list[Event]:
    found = []
    for each in _events(client, stack_id):
        if each["EventId"] in seen:
            break
        seen.add(each["EventId"])
        found.append(_event(each))
    return found[::-1]


def _event(described: Mapping[str, Any]) -> Event:
    return Event(
        name=described["LogicalResourceId"],
        kind=described.get("ResourceType", ""),
        status=described.get("ResourceStatus", ""),
        reason=described.get("ResourceStatusReason", ""),
    )
