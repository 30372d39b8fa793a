"""What the scaler tells CloudWatch, on the embedded one; and what it does not."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.stub import Stubber

from celery_sqs.scaler.alarms import EVERY_S, Alarms
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.deploy import template
from faceapp.scaler import options
from faceapp.stack import data_tier as stack
from tests.support.aws import plain_client


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def settings() -> Settings:
    return Settings(prefix=f"t{uuid.uuid4().hex[:8]}", scaler_cloudwatch="yes", scaler_daily_instance_s=1000)


@pytest.fixture
def cloudwatch(aws: str) -> Any:
    return plain_client("cloudwatch", aws)


def values(cloudwatch: Any, settings: Settings, metric: str, statistic: str) -> list[float]:
    now = datetime.now(UTC)
    answer = cloudwatch.get_metric_statistics(
        Namespace="faceapp",
        MetricName=metric,
        Dimensions=[{"Name": "Stack", "Value": settings.prefix}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(hours=1),
        Period=7200,
        Statistics=[statistic],
    )
    return [each[statistic] for each in answer["Datapoints"]]


def test_trouble_is_told_and_that_it_is_over(cloudwatch: Any, settings: Settings) -> None:
    clock = Clock()
    alarms = Alarms(options(settings), aws_of(settings), client=cloudwatch, clock=clock)
    for dead_boots in (0, 3, 3, 0, 0):
        alarms.tell(dead_boots=dead_boots, spent_s=0)
        clock.now_s += EVERY_S
    assert values(cloudwatch, settings, "DeadBoots", "Maximum") == [3]
    assert values(cloudwatch, settings, "DeadBoots", "Minimum") == [0]
    assert values(cloudwatch, settings, "DeadBoots", "SampleCount") == [3]
    assert values(cloudwatch, settings, "BudgetShare", "Maximum") == []


def test_the_budget_is_told_before_its_alarm(cloudwatch: Any, settings: Settings) -> None:
    clock = Clock()
    alarms = Alarms(options(settings), aws_of(settings), client=cloudwatch, clock=clock)
    for spent_s in (100, 499, 850):
        alarms.tell(dead_boots=0, spent_s=spent_s)
        clock.now_s += EVERY_S
    assert values(cloudwatch, settings, "BudgetShare", "SampleCount") == [1]
    assert values(cloudwatch, settings, "BudgetShare", "Maximum") == [0.85]


def test_no_more_than_once_a_minute(cloudwatch: Any, settings: Settings) -> None:
    alarms = Alarms(options(settings), aws_of(settings), client=cloudwatch, clock=Clock())
    for _ in range(20):
        alarms.tell(dead_boots=5, spent_s=0)
    assert values(cloudwatch, settings, "DeadBoots", "SampleCount") == [1]


def test_without_the_switch_nothing_is_sent(cloudwatch: Any, settings: Settings) -> None:
    quiet = dataclasses.replace(settings, scaler_cloudwatch="no")
    Alarms(options(quiet), aws_of(quiet), client=cloudwatch).tell(dead_boots=5, spent_s=5000)
    assert values(cloudwatch, settings, "DeadBoots", "SampleCount") == []


def test_a_cloudwatch_that_does_not_answer_stops_nobody(cloudwatch: Any, settings: Settings) -> None:
    clock = Clock()
    alarms = Alarms(options(settings), aws_of(settings), client=cloudwatch, clock=clock)
    with Stubber(cloudwatch) as stub:
        stub.add_client_error("put_metric_data", "InternalFailure")
        alarms.tell(dead_boots=5, spent_s=0)
    clock.now_s += EVERY_S
    alarms.tell(dead_boots=5, spent_s=0)
    assert values(cloudwatch, settings, "DeadBoots", "SampleCount") == [1]


def test_the_stacks_alarms_listen_to_these() -> None:
    """The embedded CloudFormation passes alarms over: only the template can be asked."""
    for name, metric in (("DeadBootsAlarm", "DeadBoots"), ("BudgetAlarm", "BudgetShare")):
        alarm = template.resources()[name]["Properties"]
        assert (alarm["Namespace"], alarm["MetricName"]) == ("faceapp", metric)
        assert [each["Name"] for each in alarm["Dimensions"]] == ["Stack"]
        assert alarm["TreatMissingData"] == "notBreaching"
        assert int(alarm["Period"]) == EVERY_S
    assert "FACEAPP_SCALER_CLOUDWATCH=yes" in stack.template()
