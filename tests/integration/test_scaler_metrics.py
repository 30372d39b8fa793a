"""What the scaler tells Prometheus while things go wrong."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_sqs import scaler
from celery_sqs.errors import FleetError
from celery_sqs.scaler.core import DEAD_BOOTS
from celery_sqs.scaler.policies import create
from celery_sqs.scaler.policies.base import Counts, Decision
from celery_sqs.scaler.status import Status
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.scaler import options
from tests.integration.test_scaler import Rig, Scripted, clock, ec2, refuse, relent, rig, send, settings
from tests.support.aws import plain_client

__all__ = ["clock", "ec2", "rig", "settings"]


def told(status: Status) -> dict[str, float]:
    """Every sample by its name and its labels' values: `errors_total run_instances busy`."""
    return {
        " ".join(
            [sample.name.removeprefix("faceapp_scaler_"), *(sample.labels[key] for key in sorted(sample.labels))]
        ): (sample.value)
        for family in text_string_to_metric_families(status.metrics().decode())
        for sample in family.samples
    }


def test_what_it_does_and_why_not(rig: Callable[..., Rig], settings: Settings) -> None:
    r = rig()
    r.policy.next = Decision(wanted=2, start=2)
    r.tick(2)
    r.say("worker-online", 1, 2)
    r.say("task-succeeded", 1, 2, uuid="t", runtime=0.5)
    r.tick()
    found = told(r.status)
    assert found["actions_total started"] == 2
    assert found["decisions_total acted"] == 1
    assert found["decisions_total quiet"] == 2
    assert found["instances ready"] == 2
    assert found["tasks_done_total"] == 2
    assert found["lease_token"] == 1
    assert found["leader"] == found["events_alive"] == 1
    assert found["instances_max"] == settings.scaler_max_instances
    assert found["held_back budget"] == found["held_back aws"] == found["held_back dead_boots"] == 0
    other = rig()
    other.tick()
    assert told(other.status)["decisions_total stood_by"] == 1
    assert told(other.status)["leader"] == 0


def test_aws_refusals_are_counted_by_call_and_kind(
    rig: Callable[..., Rig], aws: str, settings: Settings, ec2: Any
) -> None:
    r = rig(create(options(settings)))
    send(aws, settings, 4)
    refuse(ec2, "RunInstances", "InvalidAMIID.NotFound")
    r.tick(2, every_s=0.1)
    found = told(r.status)
    assert found["errors_total refused run_instances"] == 1
    assert found["held_back aws"] == 1
    relent(ec2, "RunInstances")
    r.clock.now_s += 120
    r.tick(2)
    assert told(r.status)["held_back aws"] == 0
    refuse(ec2, "DescribeInstances", "RequestLimitExceeded")
    with pytest.raises(FleetError):
        r.tick()
    assert told(r.status)["errors_total busy describe_instances"] == 1


def test_counts_that_do_not_come_are_an_error_and_no_number(rig: Callable[..., Rig]) -> None:
    r = rig(depths=Scripted(Counts(visible=3, in_flight=0, delayed=0), None))
    r.tick()
    assert told(r.status)["messages visible"] == 3
    r.tick()
    found = told(r.status)
    assert found["errors_total BrokerUnavailable get_queue_attributes"] == 1
    assert found["messages visible"] != found["messages visible"], "NaN: nobody knows"


def test_the_budget_holds_back(rig: Callable[..., Rig], settings: Settings) -> None:
    r = rig(settings=dataclasses.replace(settings, scaler_daily_instance_s=10))
    r.policy.next = Decision(wanted=2, start=2)
    r.tick(3, every_s=4.0)
    found = told(r.status)
    assert found["held_back budget"] == 1
    assert found["instance_seconds_today"] >= found["budget_instance_seconds"] == 10


def test_dead_boots_hold_back(rig: Callable[..., Rig]) -> None:
    r = rig()
    for _ in range(DEAD_BOOTS):
        r.policy.next = Decision(wanted=1, start=1)
        r.tick()
        [booting] = [each.id for each in r.policy.seen[-1].instances] or [r.fleet.instances()[-1].id]
        r.policy.next = Decision(wanted=1, replace=(booting,))
        r.tick()
    r.policy.next = Decision(wanted=1, start=1)
    r.tick()
    found = told(r.status)
    assert found["dead_boots"] == found["actions_total replaced"] == DEAD_BOOTS
    assert found["held_back dead_boots"] == 1


def test_dead_letters_are_counted_now_and_then(
    aws: str, stack: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=stack.dead_letter_queue)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="given up")
    status = Status(options(stack), aws_of(stack))
    assert told(status)["dead_letters visible"] == 1
    sqs.delete_queue(QueueUrl=url)
    assert told(status)["dead_letters visible"] == 1, "each look is billed"
    monkeypatch.setattr(scaler.status, "DEAD_LETTERS_S", 0.0)
    with caplog.at_level(logging.WARNING):
        found = told(status)
    assert not [name for name in found if name.startswith("dead_letters")]
    assert "the dead letters were not counted" in caplog.text
    assert "messages visible" not in found, "no tick yet"
