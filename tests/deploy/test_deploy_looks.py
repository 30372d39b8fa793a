"""What can be looked at: cost, status, logs, the address."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from faceapp.cli.deploy import deploy as commands
from faceapp.deploy import apply, cost, logs, status, template
from faceapp.deploy.changes import discard, make
from faceapp.deploy.prices import Prices
from faceapp.deploy.target import Target, connect
from faceapp.errors import ConfigError, DeployError
from faceapp.stack import data_tier as deployment
from tests.support.aws import plain_client

IMAGE = "ami-12c6146b"
WITH_IMAGE = {**template.parameters(), "WebImage": IMAGE, "WorkerImage": IMAGE}


@pytest.fixture
def target(aws: str) -> Iterator[Target]:
    with patch.dict(os.environ):  # which it changes
        yield connect(prefix=f"t{uuid.uuid4().hex[:8]}", endpoint=aws)


@pytest.fixture
def deployed(target: Target) -> Target:
    plan = make(target, {"ShipLogs": "yes", "WebImage": IMAGE, "WorkerImage": IMAGE, "MaxInstances": "4"})
    apply.execute(target, plan, tell=lambda _: None)
    return target


def test_an_idle_stack_costs_its_web_instance_and_little_more() -> None:
    found = cost.estimate(WITH_IMAGE, Prices())
    assert cost.total(found.idle_month) == pytest.approx(36, abs=1)
    small = cost.estimate({**WITH_IMAGE, "WorkerMarket": "spot"}, Prices()).idle_month
    assert small["EC2 web-instance"] > cost.total(small) * 0.7
    assert cost.total(found.busy_hour) == pytest.approx(15 * (0.05132 + 0.005))
    assert 0.01 < cost.total(found.thousand_photos) < 0.05


def test_what_is_chosen_shows_in_the_estimate() -> None:
    usual = cost.estimate(WITH_IMAGE, Prices())
    spot = cost.estimate({**WITH_IMAGE, "WorkerMarket": "spot"}, Prices())
    assert cost.total(spot.busy_hour) < cost.total(usual.busy_hour) / 2
    assert spot.idle_month["EBS"] < usual.idle_month["EBS"]
    few = cost.estimate({**WITH_IMAGE, "MaxInstances": "3"}, Prices())
    assert cost.total(few.busy_hour) == pytest.approx(cost.total(usual.busy_hour) / 5)
    kept = cost.estimate({**WITH_IMAGE, "KeepDays": "140"}, Prices())
    assert kept.thousand_photos["S3"] > usual.thousand_photos["S3"]


def test_no_image_costs_next_to_nothing() -> None:
    found = cost.estimate(template.parameters(), Prices())
    assert cost.total(found.idle_month) < 1
    assert found.workers == 0


def test_a_type_without_a_price_is_said() -> None:
    sentence = "No price is known here for x9.huge: not counted."
    assert sentence in cost.estimate({**WITH_IMAGE, "WorkerType": "x9.huge"}, Prices()).notes
    assert sentence not in cost.estimate(WITH_IMAGE, Prices()).notes


def test_the_templates_own_types_have_prices() -> None:
    defaults = template.parameters()
    assert {defaults["WebType"], defaults["WorkerType"]} <= Prices().instance_hour.keys()


def test_status_tells_what_is_chosen_and_which_alarms_ring(deployed: Target) -> None:
    client = deployed.client("cloudwatch")
    for prefix in (deployed.prefix, f"{deployed.prefix}-b"):
        alarm = {"Namespace": "AWS/SQS", "MetricName": "x", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1}
        threshold = {"Threshold": 1.0, "ComparisonOperator": "GreaterThanThreshold"}
        client.put_metric_alarm(AlarmName=f"{prefix}-dead-letters", AlarmDescription="Look.", **alarm, **threshold)
    found = status.ask(deployed)
    assert found.healthy
    assert found.chosen == {
        "MaxInstances": "4",
        "Prefix": deployed.prefix,
        "ShipLogs": "yes",
        "WebImage": IMAGE,
        "WorkerImage": IMAGE,
    }
    assert found.outputs["Url"].startswith("https://")
    assert [each.words for each in found.instances] == ["web-instance, running"]
    assert found.events[-1][1].status == "CREATE_COMPLETE"
    for prefix in (deployed.prefix, f"{deployed.prefix}-b"):
        client.set_alarm_state(AlarmName=f"{prefix}-dead-letters", StateValue="ALARM", StateReason="test")
    ringing = status.ask(deployed)
    assert ringing.alarms == (f"{deployed.prefix}-dead-letters: Look.",)
    assert not ringing.healthy


def test_without_a_stack_there_is_no_status(target: Target) -> None:
    with pytest.raises(DeployError, match="'faceapp deploy apply' makes it"):
        status.ask(target)


def put(client: Any, target: Target, stream: str, *events: tuple[int, str]) -> None:
    group = f"/faceapp/{target.prefix}"
    with suppress(client.exceptions.ResourceAlreadyExistsException):
        client.create_log_stream(logGroupName=group, logStreamName=stream)
    written = [{"timestamp": at_ms, "message": text} for at_ms, text in events]
    client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=written)


def test_logs_come_in_order_by_unit_and_since(deployed: Target, aws: str) -> None:
    client, now_ms = plain_client("logs", aws), int(time.time() * 1000)
    worker = '{"level": "INFO", "message": "a photo"}'
    put(client, deployed, "app-tier-instance-1/faceapp-worker.service", (now_ms - 3000, worker), (now_ms - 1000, "raw"))
    put(client, deployed, "web-instance/faceapp-web.service", (now_ms - 7_200_000, "old"), (now_ms - 2000, "two"))
    found = logs.read(deployed, None, since_s=900, last=100)
    assert [(each.instance, each.unit) for each in found] == [
        ("app-tier-instance-1", "worker"),
        ("web-instance", "web"),
        ("app-tier-instance-1", "worker"),
    ]
    assert str(found[0]).endswith(" app-tier-instance-1 worker: INFO a photo")
    assert [each.text for each in logs.read(deployed, "web", since_s=900, last=100)] == ["two"]
    assert [each.text for each in logs.read(deployed, None, since_s=900, last=1)] == ["raw"]
    assert logs.read(deployed, "flower", since_s=900, last=9) == []
    put(client, deployed, "web-instance/faceapp-web.service", (now_ms, "three"))
    assert [each.text for each in islice(logs.follow(deployed, None, found), 1)] == ["three"]


def test_no_lines_are_said_to_be_none(deployed: Target) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    where = ["--endpoint-url", deployed.endpoint, "--prefix", deployed.prefix]
    for unit in logs.UNITS:
        done = runner.invoke(commands, ["logs", unit, *where, "--since", "2h"], catch_exceptions=False)
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == "Nothing was logged in the last 2h: --since looks further back.\n"


def test_where_no_logs_are_shipped_it_says_how(target: Target) -> None:
    deployment.apply(target.settings, client=target.client("cloudformation"))
    with pytest.raises(DeployError, match="--ship-logs yes"):
        logs.read(target, None, since_s=60, last=1)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800)])
def test_a_length_of_time(text: str, seconds: int) -> None:
    assert logs.ago_s(text) == seconds


def test_no_length_of_time() -> None:
    with pytest.raises(ConfigError, match="90s, 15m, 2h or 7d"):
        logs.ago_s("yesterday")


def test_a_plan_that_was_interrupted_is_no_obstacle(target: Target) -> None:
    first = make(target, {})
    second = make(target, {})
    assert (first.kind, second.kind) == ("CREATE", "CREATE")
    discard(target, second)
    with pytest.raises(DeployError, match="There is no stack"):
        status.ask(target)
