"""How a stack is: its state, addresses, instances, alarms, and what is set otherwise than the template has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from faceapp.deploy import apply, remains, template
from faceapp.deploy.apply import Event
from faceapp.deploy.changes import check_ours, find_stack, parameters_of
from faceapp.deploy.remains import Thing
from faceapp.deploy.target import Target
from faceapp.errors import DeployError

EVENTS = 5


@dataclass(frozen=True, kw_only=True)
class Status:
    """All of it."""

    state: str
    outputs: dict[str, str]
    chosen: dict[str, str]
    """Parameters that are not the template's defaults."""
    instances: tuple[Thing, ...]
    alarms: tuple[str, ...]
    """Those that ring."""
    events: tuple[tuple[Any, Event], ...]
    images: tuple[Thing, ...]

    @property
    def healthy(self) -> bool:
        return self.state in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE") and not self.alarms


def ask(target: Target) -> Status:
    """Raises DeployError when there is no such stack, or it is not ours."""
    stack = find_stack(target)
    check_ours(stack, target)
    if stack is None:
        raise DeployError(f"There is no stack {target.stack} on {target}: 'faceapp deploy apply' makes it.")
    defaults = template.parameters()
    chosen = {name: value for name, value in parameters_of(stack).items() if defaults.get(name) != value}
    return Status(
        state=stack["StackStatus"],
        outputs={each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())},
        chosen=chosen,
        instances=tuple(remains.instances(target)),
        alarms=tuple(_ringing(target)),
        events=tuple(apply.last_events(target, EVENTS)),
        images=tuple(remains.images(target)),
    )


def _ringing(target: Target) -> list[str]:
    pages = target.client("cloudwatch").get_paginator("describe_alarms").paginate(StateValue="ALARM")
    own = set(remains.alarm_names(target))
    return [
        f"{each['AlarmName']}: {each.get('AlarmDescription', '')}"
        for page in pages
        for each in page["MetricAlarms"]
        if each["AlarmName"] in own
    ]
