"""The data tier's CloudFormation stack: deploy/stack.yaml applied to whatever AWS boto3 is pointed at."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from celery_sqs.scaler.machine import Naming
from faceapp.config import Settings, aws
from faceapp.errors import DeployError

TAGS = "faceapp"
"""What the keys of the stack's tags begin with."""
STACK_TAG, TIER_TAG, TEMPLATE_TAG = f"{TAGS}:stack", f"{TAGS}:tier", f"{TAGS}:template"
APP_TIER = "app"
WEB_INSTANCE = "web-instance"
WORKER_NAME = "app-tier-instance-{n}"
VISIBILITY_MARGIN_S = 30
"""Between the moment a task is killed and the moment its message is given to another worker."""
POLL_S = 5
TIMEOUT_S = 900
MOST_BYTES = 51_200
"""CloudFormation's limit for a template that is sent along (a longer one would have to lie in S3)."""


def template() -> str:
    """The template's text. stack.yaml is a link to deploy/stack.yaml, and a copy of it once installed."""
    return files("faceapp.stack").joinpath("stack.yaml").read_text("utf-8")


def body() -> str:
    """The template as CloudFormation takes it. Raises DeployError."""
    return fitting(template())


def fitting(text: str) -> str:
    """A template's text; without its comments when it is too long with them. Raises DeployError."""
    if len(text.encode()) > MOST_BYTES:
        text = without_comments(text)
    if len(text.encode()) > MOST_BYTES:
        raise DeployError(f"The template has more than {MOST_BYTES} bytes, which is all that CloudFormation takes.")
    return text


def without_comments(text: str) -> str:
    """The YAML without the lines that are comments; those in a block of text (user data) stay."""
    within: set[int] = set()
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken) and token.style in ("|", ">"):
            within.update(range(token.start_mark.line + 1, token.end_mark.line))
    lines = text.splitlines(keepends=True)
    return "".join(line for number, line in enumerate(lines) if number in within or not line.lstrip().startswith("#"))


def naming(prefix: str) -> Naming:
    """How the instances of the stack with that prefix are named and tagged."""
    return Naming(stack=prefix, namespace=TAGS, name=WORKER_NAME, tier=APP_TIER, others=(WEB_INSTANCE,))


def parameters(settings: Settings) -> dict[str, str]:
    """The template's parameters that follow from the settings; its own defaults hold for the others."""
    return {
        "Prefix": settings.prefix,
        "TaskTimeLimit": str(settings.task_time_limit_s),
        "VisibilityTimeout": str(settings.task_time_limit_s + VISIBILITY_MARGIN_S),
        "LongPoll": str(settings.queue_wait_s),
        "WorkerImage": settings.worker_image,
        "WorkerType": settings.worker_type,
        "WorkerTypes": settings.scaler_types,
        "MaxInstances": str(settings.scaler_max_instances),
        "Policy": settings.scaler_policy,
        "Mode": settings.scaler_mode,
        "DailyInstanceSeconds": str(settings.scaler_daily_instance_s),
    }


def apply(settings: Settings, *, client: Any = None) -> dict[str, str]:
    """Create the stack, or bring it up to date, and wait until it is; the answer is its outputs.

    Raises DeployError with CloudFormation's first reason when it fails (what was begun is rolled back).
    """
    try:
        client = client or aws.client("cloudformation")
        _create_or_update(client, settings)
        described = client.describe_stacks(StackName=settings.stack_name)["Stacks"][0]
    except (BotoCoreError, ClientError) as error:
        raise DeployError(f"The stack {settings.stack_name} could not be applied: {error}") from error
    return {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs", ())}


def _create_or_update(client: Any, settings: Settings) -> None:
    arguments = {
        "StackName": settings.stack_name,
        "TemplateBody": body(),
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters(settings).items()],
        # The services' roles have names that are the same in every stack but for the prefix.
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
    }
    done = "stack_create_complete"
    try:
        client.create_stack(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != "AlreadyExistsException":
            raise
        done = "stack_update_complete"
        try:
            client.update_stack(**arguments)
        except ClientError as unchanged:
            if "No updates" in str(unchanged):
                return
            raise
    try:
        config = {"Delay": POLL_S, "MaxAttempts": TIMEOUT_S // POLL_S}
        client.get_waiter(done).wait(StackName=settings.stack_name, WaiterConfig=config)
    except WaiterError as error:
        raise DeployError(
            f"The stack {settings.stack_name} failed: {_first_failure(client, settings) or error}"
        ) from error


def _first_failure(client: Any, settings: Settings) -> str | None:
    """What failed first in the last run; everything after it was cancelled and says no more than that."""
    first = None
    for event in client.describe_stack_events(StackName=settings.stack_name)["StackEvents"]:  # newest first
        status = event["ResourceStatus"]
        if status.endswith("_FAILED") and event.get("ResourceStatusReason"):
            first = f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
        if event["LogicalResourceId"] == settings.stack_name and status in ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"):
            break
    return first
