"""moto's change sets, mended so that one that is executed does what it says.

Seen with moto 5.2.5; tests/deploy/test_deploy.py fails without these:

- an executed change set leaves the stack with its former parameters, outputs and tags;
- a change set tells neither what follows from a parameter, nor that a condition is false, nor of replacements;
- a bucket that an earlier stack has left is not taken over (ImportExistingResources);
- a stack that cannot be created stays half made, and is not described any more;
- an address outlives its stack.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from moto.cloudformation import models, parsing
from moto.core.exceptions import ServiceException
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_ip_addresses import ElasticAddress
from moto.s3.models import s3_backends
from werkzeug.exceptions import HTTPException

REPLACED = "AWS::EC2::Instance"
REFUSALS = (HTTPException, ServiceException)
"""What moto raises for what AWS would answer with an error."""


def mend() -> None:
    """Do so, for this process."""
    setattr(models.ChangeSet, "diff", _diff)  # noqa: B010 - mypy forbids =
    setattr(models.Stack, "has_parameters", _has_parameters)  # noqa: B010
    setattr(ElasticAddress, "delete_from_cloudformation_json", staticmethod(_release))  # noqa: B010
    setattr(models.CloudFormationBackend, "execute_change_set", _execute)  # noqa: B010


def _has_parameters(stack: models.Stack, others: dict[str, Any]) -> bool:
    return _as_text(stack.parameters) == _as_text(others)


def _as_text(parameters: dict[str, Any]) -> dict[str, str]:
    # Those that were not named come back as numbers, and would differ.
    return {name: str(value) for name, value in parameters.items()}


def _diff(change_set: models.ChangeSet) -> list[models.Change]:
    template, stack = change_set.template_dict, change_set.stack
    change_set.parameters = _as_text(change_set.parameters)
    new = parsing.ResourceMap(
        stack.stack_id,
        stack.name,
        change_set.parameters,
        {},
        account_id=stack.account_id,
        region_name=stack.region_name,
        template=template,
        cross_stack_resources={},
    )
    new.load()
    here = {name for name, each in stack.resource_map._parsed_resources.items() if each is not None}
    wanted, before = (
        _wanted(new, template["Resources"]),
        _wanted(stack.resource_map, stack.resource_map._resource_json_map),
    )
    found = stack.resource_map.build_resource_diff(template, change_set.parameters)
    # What moto passes over is in no stack of its own, and would be new each time.
    passed_over = (wanted & before) - here
    types = {**stack.resource_map._resource_json_map, **template["Resources"]}
    changes = [("Add", name) for name in template["Resources"] if name in wanted - here - passed_over]
    changes += [("Modify", name) for name in found["Modify"] if name in wanted & here]
    changes += [("Remove", name) for name in types if name in here - wanted]
    return [_change(action, name, types[name]["Type"]) for action, name in changes]


def _wanted(known: parsing.ResourceMap, resources: dict[str, Any]) -> set[str]:
    """The names of those whose condition is true."""
    return {
        name
        for name, each in resources.items()
        if not each.get("Condition") or known.lazy_condition_map[each["Condition"]]
    }


def _change(action: str, name: str, kind: str) -> models.Change:
    change: Any = models.Change(action=action, logical_resource_id=name, resource_type=kind)
    if action == "Modify":
        change.replacement = "True" if kind == REPLACED else "False"
    return change  # type: ignore[no-any-return]


def _execute(backend: models.CloudFormationBackend, change_set_name: str, stack_name: str | None = None) -> None:
    change_set: Any = backend.describe_change_set(change_set_name)
    stack: Any = backend.stacks[change_set.stack_id]
    if change_set.change_set_type == "CREATE":
        stack.template, stack.parameters, stack.tags = change_set.template, change_set.parameters, change_set.tags or {}
        stack._parse_template()
        stack.resource_map = stack._create_resource_map()
        stack.output_map = stack._create_output_map()
        stack._add_stack_event("CREATE_IN_PROGRESS", resource_status_reason="User Initiated")
        _take_over_buckets(stack)
        try:
            stack.create_resources()
        except REFUSALS as error:
            _roll_back(stack, str(error))
    else:
        stack.update(change_set.template, change_set.role_arn, parameters=change_set.parameters, tags=change_set.tags)
    change_set.execution_status = "EXECUTE_COMPLETE"


def _take_over_buckets(stack: Any) -> None:
    """Those that would have been retained, as they were."""
    buckets = s3_backends[stack.account_id]["aws"].buckets
    for name, definition in stack.template_dict["Resources"].items():
        if definition["Type"] == "AWS::S3::Bucket" and definition.get("DeletionPolicy") == "Retain":
            bucket = parsing.clean_json(definition["Properties"]["BucketName"], stack.resource_map)
            if bucket in buckets:
                resource: Any = buckets[bucket]
                resource.type, resource.logical_resource_id = definition["Type"], name
                stack.resource_map._parsed_resources[name] = resource


def _roll_back(stack: Any, reason: str) -> None:
    stack._add_stack_event("CREATE_FAILED", resource_status_reason=reason)
    stack._add_stack_event("ROLLBACK_IN_PROGRESS")
    with suppress(*REFUSALS):
        stack.resource_map.delete()
    stack.template_dict = {"Resources": {}}
    stack.resource_map, stack.output_map = stack._create_resource_map(), stack._create_output_map()
    stack._add_stack_event("ROLLBACK_COMPLETE")
    stack.status = "ROLLBACK_COMPLETE"


def _release(address: str, _definition: Any, account_id: str, region_name: str) -> None:
    ec2_backends[account_id][region_name].release_address(address=address)
