"""moto's CloudFormation, mended where an update of our template would go wrong.

Seen with moto 5.2.5; tests/deploy/test_stack.py fails without these:

- a parameter that only `Fn::Sub` or a condition names does not count as used, so what it changes stays as it was;
- a resource whose condition comes true by an update is not made, and one whose condition ends is not deleted;
- an instance is never replaced, and what cannot be updated is forgotten, so that it outlives its stack;
- each policy and alarm, which it passes over, is a line in the log at each call.

And a template makes what the stack is made of and nothing else: of moto's other resources some start containers.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError

from faceapp.local.aws_guard import RESOURCES

REPLACED = "AWS::EC2::Instance"
"""What is made anew where AWS would do so, too (all our changes of an instance are of that kind)."""
PLACEHOLDER = re.compile(r"\$\{(\w+)")

_plain_diff = parsing.ResourceMap.build_resource_diff
_plain_class = parsing.resource_class_from_type
_plain_update = parsing.parse_and_update_resource


def mend() -> None:
    """Do so, for this process."""
    setattr(parsing.ResourceMap, "build_resource_diff", _diff)  # noqa: B010 - mypy forbids =
    setattr(parsing, "parse_and_update_resource", _update)  # noqa: B010
    setattr(parsing, "resource_class_from_type", _class)  # noqa: B010
    logging.getLogger("moto").addFilter(lambda record: not str(record.msg).startswith("No Moto CloudFormation support"))
    warnings.filterwarnings("ignore", message="Tried to parse .* not supported by moto")


def _class(kind: str) -> Any:
    """moto's class for `AWS::S3::Bucket`; ValidationError for what the stack has no use for."""
    owner, _, rest = kind.partition("::")
    if owner != "AWS" or rest.partition("::")[0] not in RESOURCES:
        raise ValidationError(kind, f"The embedded AWS makes no {kind}: it makes what faceapp's stack is made of.")
    return _plain_class(kind)


def _diff(
    resources: parsing.ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What an update adds, changes and removes, by name."""
    found = _plain_diff(resources, template, parameters)
    changed = {name for name, value in (parameters or {}).items() if resources.input_parameters.get(name) != value}
    settled = {*found["Add"], *found["Modify"]}
    for name, resource in template["Resources"].items():
        if name not in settled and changed.intersection(_named(resource, template.get("Conditions", {}))):
            found["Modify"].append(name)
    return found


def _named(part: Any, conditions: Mapping[str, Any]) -> Iterator[str]:
    """The parameters (and resources) that a part of a template names, also by its conditions."""
    if isinstance(part, list):
        for each in part:
            yield from _named(each, conditions)
    elif isinstance(part, str):
        yield from PLACEHOLDER.findall(part)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "Ref":
                yield value
            elif key == "Condition" and isinstance(value, str):
                yield from _named(conditions[value], conditions)
            elif key == "Fn::If":
                yield from _named(conditions[value[0]], conditions)
                yield from _named(value[1:], conditions)
            else:
                yield from _named(value, conditions)


def _update(
    name: str, definition: dict[str, Any], resources: parsing.ResourceMap, account_id: str, region_name: str
) -> Any:
    """The resource as it is after the update; None if there is none."""
    place = (name, definition, resources, account_id, region_name)
    old = resources._parsed_resources.get(name)
    if old is None:
        return parsing.parse_and_create_resource(*place)
    condition = definition.get("Condition")
    if condition and not resources.lazy_condition_map[condition]:
        resources._delete_resource(old, definition)
        return None
    if definition["Type"] != REPLACED:
        return _plain_update(*place) or old
    new = parsing.parse_and_create_resource(*place)
    resources._delete_resource(old, definition)
    return new
