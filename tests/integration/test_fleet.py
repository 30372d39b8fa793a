"""The fleet on the embedded EC2; AWS's refusals, which the embedded one does not make, at botocore's edge."""

from __future__ import annotations

import dataclasses
import logging
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.stub import ANY, Stubber

from celery_sqs.errors import ConfigurationError, FleetError, LeaseLost
from celery_sqs.scaler import machine as tags
from celery_sqs.scaler.backoff import Backoff, Trouble
from celery_sqs.scaler.fleet.dry_run import DryRunFleet
from celery_sqs.scaler.fleet.ec2 import TEMPLATE_EVERY_S, EC2Fleet
from celery_sqs.scaler.machine import Machine, dead_boots, orphans
from celery_sqs.scaler.plan import plan
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.scaler import options
from faceapp.stack import data_tier as deployment
from tests.support.aws import plain_client, session

IMAGE = "ami-12c6146b"
NAMING = deployment.naming("any")
DRAINING, FAILED, READY, STACK, STARTED, TEMPLATE, TIER = (
    NAMING.tag(each)
    for each in (tags.DRAINING, tags.FAILED, tags.READY, tags.STACK, tags.STARTED, tags.TEMPLATE, tags.TIER)
)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def settings(stack: Settings) -> Settings:
    """A stack with a launch template, and room for four instances."""
    return dataclasses.replace(stack, worker_image=IMAGE, worker_type="t3.micro", scaler_max_instances=4)


@pytest.fixture
def ec2(aws: str, settings: Settings) -> Any:
    client = plain_client("ec2", aws)
    client.create_launch_template(
        LaunchTemplateName=f"{settings.prefix}-worker",
        LaunchTemplateData={"ImageId": settings.worker_image, "InstanceType": settings.worker_type},
    )
    return client


def fleet_of(settings: Settings, **arguments: Any) -> EC2Fleet:
    return EC2Fleet(options(settings), aws_of(settings), **arguments)


@pytest.fixture
def fleet(settings: Settings, ec2: Any) -> EC2Fleet:
    return fleet_of(settings, client=ec2)


def states(ec2: Any, settings: Settings) -> dict[str, str]:
    """The stack's instances, as EC2 itself lists them: states by name."""
    pages = ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": f"tag:{STACK}", "Values": [settings.prefix]}]
    )
    found = {}
    for page in pages:
        for reservation in page["Reservations"]:
            for each in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in each["Tags"]}
                found[tags.get("Name", "")] = each["State"]["Name"]
    return found


def by_name(fleet: EC2Fleet) -> dict[str, Machine]:
    return {each.name: each for each in fleet.instances()}


def create(ec2: Any, **tags: str) -> str:
    """An instance that somebody else made."""
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    answer = ec2.run_instances(
        ImageId=IMAGE, MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": pairs}]
    )
    return str(answer["Instances"][0]["InstanceId"])


def test_new_instances_get_the_lowest_free_numbers(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    create(ec2, Name="app-tier-instance-2", **{STACK: settings.prefix})
    fleet.instances()
    fleet.start(2)
    assert states(ec2, settings) == {f"app-tier-instance-{n}": "running" for n in (1, 2, 3)}
    assert all(each.tags[tags.TIER] == "app" for each in fleet.instances() if each.number != 2)


def test_stopped_instances_start_first(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    fleet.instances()
    first = fleet.start(2)
    fleet.drain(first)
    assert set(states(ec2, settings).values()) == {"stopped"}
    fleet.instances()
    again = fleet.start(3)
    assert set(first) < set(again)
    assert states(ec2, settings) == {f"app-tier-instance-{n}": "running" for n in (1, 2, 3)}


def test_there_are_never_more_than_the_limit(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    fleet.instances()
    fleet.start(3)
    # Not listed in between, as when EC2 shows them late.
    fleet.start(3)
    fleet.instances()
    fleet.start(3)
    assert len(states(ec2, settings)) == settings.scaler_max_instances


def test_what_ec2_does_not_show_yet_is_believed(settings: Settings) -> None:
    clock = Clock()
    client = stubbed_client()
    fleet = fleet_of(settings, client=client, clock=clock)
    with Stubber(client) as stub:
        stub.add_response("describe_instances", {"Reservations": []})
        stub.add_response("run_instances", {"Instances": [described("i-1"), described("i-2")]})
        for _ in range(2):
            stub.add_response("create_tags", {})
        for _ in range(2):
            stub.add_response("describe_instances", {"Reservations": []})
        fleet.instances()
        fleet.start(2)
        assert [each.name for each in fleet.instances()] == ["app-tier-instance-1", "app-tier-instance-2"]
        clock.now_s += 60
        assert fleet.instances() == []


@pytest.mark.parametrize(
    ("tags", "stopped"),
    [
        ({"Name": "app-tier-instance-1", STACK: "ours"}, True),
        ({"Name": "web-instance", STACK: "ours"}, False),
        ({"Name": "app-tier-instance-1", STACK: "another"}, False),
        ({"Name": "app-tier-instance-1"}, False),
        ({"Name": "app-tier-instance-01", STACK: "ours"}, False),
        ({"Name": "build-machine", STACK: "ours"}, False),
    ],
)
def test_only_our_own_app_tier_is_ever_stopped(
    fleet: EC2Fleet, ec2: Any, settings: Settings, tags: dict[str, str], stopped: bool
) -> None:
    own = {key: settings.prefix if value == "ours" else value for key, value in tags.items()}
    instance = create(ec2, **own)
    fleet.drain([instance])
    [[found]] = [each["Instances"] for each in ec2.describe_instances(InstanceIds=[instance])["Reservations"]]
    assert found["State"]["Name"] == ("stopped" if stopped else "running")


def test_a_drained_instance_says_so_until_its_next_run(fleet: EC2Fleet, ec2: Any) -> None:
    fleet.instances()
    [instance] = fleet.start(1)
    fleet.mark_ready([instance], measured=True)
    assert by_name(fleet)["app-tier-instance-1"].ready
    fleet.drain([instance])
    assert by_name(fleet)["app-tier-instance-1"].draining
    fleet.start(1)
    machine = by_name(fleet)["app-tier-instance-1"]
    assert not machine.draining
    assert not machine.ready
    assert machine.state == "running"


def test_a_stop_that_was_only_announced_is_done(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    """The scaler was killed between the tag and the call."""
    fleet.instances()
    now_s = int(fleet.now_s)
    marks = {STARTED: str(now_s - 100), DRAINING: str(now_s - 50)}
    create(ec2, Name="app-tier-instance-1", **{STACK: settings.prefix}, **marks)
    fleet.instances()
    fleet.tidy()
    assert states(ec2, settings) == {"app-tier-instance-1": "stopped"}


def test_a_pending_instance_is_stopped_when_it_runs(
    refusals: tuple[EC2Fleet, Stubber, Clock], settings: Settings
) -> None:
    fleet, stub, clock = refusals
    ours = {STACK: settings.prefix}
    one, two = (described(f"i-{n}", "running", Name=f"app-tier-instance-{n}", **ours) for n in (1, 2))
    pending = {**two, "State": {"Name": "pending"}}
    stub.add_response("describe_instances", {"Reservations": [{"Instances": [one, pending]}]})
    stub.add_response("create_tags", {}, {"Resources": ["i-1", "i-2"], "Tags": ANY})
    stub.add_response("stop_instances", {}, {"InstanceIds": ["i-1"]})
    assert list(fleet.drain(["i-1", "i-2"])) == ["i-1"]
    marked = described("i-2", "running", Name="app-tier-instance-2", **ours, **{DRAINING: str(int(fleet.now_s))})
    stub.add_response("describe_instances", {"Reservations": [{"Instances": [marked]}]})
    stub.add_response("stop_instances", {}, {"InstanceIds": ["i-2"]})
    fleet.instances()
    fleet.tidy()
    clock.now_s += 10
    fleet.tidy()


def upgrade(ec2: Any, settings: Settings) -> None:
    """A new version of the launch template, as CloudFormation makes one."""
    ec2.create_launch_template_version(
        LaunchTemplateName=f"{settings.prefix}-worker",
        LaunchTemplateData={"ImageId": "ami-1e749f67", "InstanceType": settings.worker_type},
    )


def test_stopped_instances_of_an_older_template_are_terminated(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    fleet.check()
    assert fleet.latest == 1
    fleet.instances()
    fleet.drain(fleet.start(2))
    by_hand = create(ec2, Name="app-tier-instance-9", **{STACK: settings.prefix})
    ec2.stop_instances(InstanceIds=[by_hand])
    upgrade(ec2, settings)
    after = fleet_of(settings, client=ec2)
    after.check()
    assert after.latest == 2
    after.instances()
    after.tidy()
    assert states(ec2, settings) == {
        "app-tier-instance-1": "terminated",
        "app-tier-instance-2": "terminated",
        "app-tier-instance-9": "stopped",
    }
    [started, new] = after.start(2)
    assert started == by_hand
    [[found]] = [each["Instances"] for each in ec2.describe_instances(InstanceIds=[new])["Reservations"]]
    assert found["ImageId"] == "ami-1e749f67"
    assert by_name(after)["app-tier-instance-1"].template == 2


def test_a_new_template_is_noticed_while_it_runs(ec2: Any, settings: Settings) -> None:
    clock = Clock()
    fleet = fleet_of(settings, client=ec2, clock=clock)
    fleet.check()
    upgrade(ec2, settings)
    fleet.tidy()
    assert fleet.latest == 1
    clock.now_s += TEMPLATE_EVERY_S
    fleet.tidy()
    assert fleet.latest == 2


def test_what_ec2_does_not_say_of_the_template_stops_nothing(refusals: tuple[EC2Fleet, Stubber, Clock]) -> None:
    fleet, stub, clock = refusals
    fleet._latest, fleet._template_seen_s = 3, clock()
    clock.now_s += TEMPLATE_EVERY_S
    stub.add_client_error("describe_launch_template_versions", "RequestLimitExceeded")
    fleet.tidy()
    assert fleet.latest == 3


def test_an_instance_without_its_name_gets_it(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    """The scaler was killed between creating it and naming it."""
    fleet.instances()
    fleet.start(1)
    create(ec2, **{STACK: settings.prefix, TIER: "app"})
    assert len(fleet.instances()) == 2
    fleet.tidy()
    assert set(states(ec2, settings)) == {"app-tier-instance-1", "app-tier-instance-2"}


def test_a_failed_boot_is_the_last_to_be_started_again(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    fleet.instances()
    failed, good = fleet.start(2)
    fleet.drain([failed], dead_boots=1)
    fleet.drain([good])
    assert dead_boots(fleet.instances()) == 1
    assert list(fleet.start(1)) == [good]
    fleet.instances()
    assert failed not in fleet.start(2)
    fleet.instances()
    assert list(fleet.start(1)) == [failed]


def test_a_new_fleet_finds_everything_in_the_tags(fleet: EC2Fleet, ec2: Any, settings: Settings) -> None:
    fleet.instances()
    first, second, third = fleet.start(3)
    fleet.mark_ready([first], measured=True)
    fleet.drain([second])
    fleet.drain([third], dead_boots=2)
    before = fleet.instances()
    after = fleet_of(settings, client=ec2).instances()
    assert [dataclasses.replace(each, age_s=0) for each in after] == [
        dataclasses.replace(each, age_s=0) for each in before
    ]
    assert dead_boots(after) == 2


def test_nothing_is_done_without_the_lease(settings: Settings, ec2: Any) -> None:
    def lost() -> int:
        raise LeaseLost

    fleet = fleet_of(settings, client=ec2, fence=lost)
    fleet.instances()
    with pytest.raises(LeaseLost):
        fleet.start(1)
    instance = create(ec2, Name="app-tier-instance-1", **{STACK: settings.prefix})
    with pytest.raises(LeaseLost):
        fleet.drain([instance])
    assert states(ec2, settings) == {"app-tier-instance-1": "running"}


def test_a_dry_run_says_what_it_would_do_and_does_not(
    settings: Settings, ec2: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    instance = create(ec2, Name="app-tier-instance-1", **{STACK: settings.prefix})
    ec2.stop_instances(InstanceIds=[instance])
    running = create(ec2, Name="app-tier-instance-3", **{STACK: settings.prefix})
    fleet = DryRunFleet(options(settings), fleet_of(settings, client=ec2, fence=lambda: pytest.fail("acted")))
    fleet.instances()
    assert list(fleet.start(2)) == []
    assert list(fleet.drain([running])) == []
    fleet.mark_ready([running], measured=True)
    fleet.tidy()
    assert "would start app-tier-instance-1" in caplog.text
    assert "would create app-tier-instance-2" in caplog.text
    assert "would stop app-tier-instance-3" in caplog.text
    assert states(ec2, settings) == {"app-tier-instance-1": "stopped", "app-tier-instance-3": "running"}


def test_without_a_launch_template_the_scaler_refuses_to_start(stack: Settings) -> None:
    with pytest.raises(ConfigurationError, match="There is no launch template"):
        EC2Fleet(options(stack), aws_of(stack)).check()


def test_the_stack_has_a_launch_template_for_an_image(aws: str, stack: Settings) -> None:
    deployed = dataclasses.replace(stack, prefix=f"{stack.prefix}-lt", worker_image=IMAGE, worker_type="t3.nano")
    deployment.apply(deployed, client=plain_client("cloudformation", aws))
    fleet = EC2Fleet(options(deployed), aws_of(deployed))
    fleet.check()
    fleet.instances()
    fleet.start(1)
    [reservation] = plain_client("ec2", aws).describe_instances(InstanceIds=[fleet.instances()[0].id])["Reservations"]
    assert reservation["Instances"][0]["InstanceType"] == "t3.nano"


# What the embedded EC2 never says.


def stubbed_client() -> Any:
    return session().client("ec2")


def described(id: str, state: str = "pending", **tags: str) -> dict[str, Any]:
    return {
        "InstanceId": id,
        "State": {"Name": state},
        "LaunchTime": datetime.now(UTC),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


@pytest.fixture
def refusals(settings: Settings) -> Iterator[tuple[EC2Fleet, Stubber, Clock]]:
    """A fleet of two subnets whose EC2 answers what the test says."""
    client, clock = stubbed_client(), Clock()
    wide = dataclasses.replace(settings, scaler_subnets="subnet-a1,subnet-b2")
    with Stubber(client) as stub:
        yield fleet_of(wide, client=client, clock=clock, rng=random.Random(1)), stub, clock
        stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RequestLimitExceeded", Trouble.BUSY),
        ("InsufficientInstanceCapacity", Trouble.CAPACITY),
        ("UnauthorizedOperation", Trouble.REFUSED),
        ("InvalidAMIID.NotFound", Trouble.REFUSED),
    ],
)
def test_a_refused_start_is_tried_again_later_and_later(
    refusals: tuple[EC2Fleet, Stubber, Clock], caplog: pytest.LogCaptureFixture, code: str, kind: Trouble
) -> None:
    fleet, stub, clock = refusals
    placements = 4 if kind is Trouble.CAPACITY else 1
    first_s, _ = kind.value
    for attempt in (1, 2):
        for _ in range(placements):
            stub.add_client_error("run_instances", code, "as it is")
            assert list(fleet.start(1)) == []
        assert list(fleet.start(1)) == [], "called in the pause"
        assert code in fleet.trouble
        assert "next attempt in" in fleet.trouble
        clock.now_s += first_s * 2 ** (attempt - 1)
    assert fleet.trouble == ""
    assert code in caplog.text


def test_no_capacity_here_is_asked_for_elsewhere(refusals: tuple[EC2Fleet, Stubber, Clock]) -> None:
    fleet, stub, _ = refusals
    seen: list[dict[str, Any]] = []
    for subnet in ("subnet-a1", "subnet-b2"):
        wanted: dict[str, Any] = {
            "LaunchTemplate": ANY,
            "MinCount": 2,
            "MaxCount": 2,
            "SubnetId": subnet,
            "TagSpecifications": ANY,
            "ClientToken": ANY,
        }
        seen.append(wanted)
        if subnet != "subnet-b2":
            stub.add_client_error("run_instances", "InsufficientInstanceCapacity", expected_params=wanted)
        else:
            stub.add_response("run_instances", {"Instances": [described("i-1"), described("i-2")]}, wanted)
    for _ in range(2):
        stub.add_response("create_tags", {})
    assert [list(fleet.start(2)) for _ in range(2)] == [[], ["i-1", "i-2"]]


def test_where_stopped_instances_have_no_capacity_new_ones_start(
    refusals: tuple[EC2Fleet, Stubber, Clock], settings: Settings
) -> None:
    fleet, stub, _ = refusals
    stopped = [
        described(f"i-{n}", "stopped", Name=f"app-tier-instance-{n}", **{STACK: settings.prefix}) for n in (1, 2, 3, 4)
    ]
    stub.add_response("describe_instances", {"Reservations": [{"Instances": stopped}]})
    stub.add_response("create_tags", {})
    stub.add_client_error("start_instances", "InsufficientInstanceCapacity")
    stub.add_response("run_instances", {"Instances": [described("i-5")]})
    stub.add_response(
        "create_tags", {}, {"Resources": ["i-5"], "Tags": [{"Key": "Name", "Value": "app-tier-instance-5"}]}
    )
    fleet.instances()
    assert list(fleet.start(1)) == []
    assert list(fleet.start(1)) == ["i-5"]


def test_idempotency_tokens_are_new_for_each_start_and_carry_the_fencing_token(settings: Settings) -> None:
    client, clock = stubbed_client(), Clock()
    fleet = fleet_of(settings, client=client, fence=lambda: 7, clock=clock)
    tokens: list[str] = []
    client.meta.events.register(
        "before-parameter-build.ec2.RunInstances", lambda params, **_: tokens.append(params["ClientToken"])
    )
    with Stubber(client) as stub:
        for n in (1, 2):
            stub.add_response("run_instances", {"Instances": [described(f"i-{n}")]})
            stub.add_response("create_tags", {})
            fleet.start(1)
    assert len(set(tokens)) == 2
    assert all(re.fullmatch(rf"{settings.prefix}-7-\d+", token) and len(token) <= 64 for token in tokens)


def test_a_spot_instance_is_ended(refusals: tuple[EC2Fleet, Stubber, Clock], settings: Settings) -> None:
    fleet, stub, _ = refusals
    spot = described("i-1", "running", Name="app-tier-instance-1", **{STACK: settings.prefix})
    stub.add_response("describe_instances", {"Reservations": [{"Instances": [{**spot, "InstanceLifecycle": "spot"}]}]})
    stub.add_response("create_tags", {})
    stub.add_response("terminate_instances", {}, {"InstanceIds": ["i-1"]})
    assert list(fleet.drain(["i-1"])) == ["i-1"]


def test_a_throttled_list_is_not_asked_for_again_at_once(refusals: tuple[EC2Fleet, Stubber, Clock]) -> None:
    fleet, stub, clock = refusals
    stub.add_client_error("describe_instances", "RequestLimitExceeded")
    for _ in range(2):
        with pytest.raises(FleetError):
            fleet.instances()
    clock.now_s += 1
    stub.add_response("describe_instances", {"Reservations": []})
    assert fleet.instances() == []


def test_no_permission_is_a_refusal_at_the_start(refusals: tuple[EC2Fleet, Stubber, Clock]) -> None:
    fleet, stub, _ = refusals
    stub.add_client_error("describe_launch_template_versions", "UnauthorizedOperation", "You are not authorized")
    with pytest.raises(ConfigurationError, match="not authorized"):
        fleet.check()


def test_pauses_double_with_jitter_up_to_a_limit_and_begin_anew() -> None:
    clock = Clock()
    backoff = Backoff(clock=clock, rng=random.Random(1))
    pauses = [backoff.failed(Trouble.BUSY) for _ in range(12)]
    assert all(0.5 * min(60, 2**n) <= pause <= min(60, 2**n) for n, pause in enumerate(pauses))
    backoff.succeeded()
    assert backoff.left_s == 0
    assert backoff.failed(Trouble.BUSY) <= 1


# Pure parts.


def machine(number: int, state: str = "stopped", **more: Any) -> Machine:
    values: dict[str, Any] = {"id": f"i-{number}", "name": f"app-tier-instance-{number}", "run_s": 1000, "age_s": 500.0}
    values |= more
    name = values["name"]
    foreseen = name in NAMING.others
    return Machine(state=state, number=NAMING.number_of(name), foreseen=foreseen, **values)


@pytest.mark.parametrize(
    ("machines", "count", "stopped", "new"),
    [
        ([], 2, [], [1, 2]),
        ([], 9, [], [1, 2, 3, 4]),
        ([machine(2)], 2, [2], [1]),
        ([machine(3), machine(1)], 1, [1], []),
        ([machine(1, "running"), machine(2, "stopping")], 4, [], [3, 4]),
        ([machine(n, "running") for n in (1, 2, 3, 4)], 1, [], []),
        ([machine(n, "running") for n in (1, 2, 3, 4, 5)], 1, [], []),
        ([machine(n, "stopping") for n in (1, 2, 3, 4)], 1, [], []),
        ([machine(1, name="web-instance", id="i-w", state="running")], 4, [], [1, 2, 3, 4]),
        ([machine(n, age_s=5.0) for n in (1, 2, 3)], 4, [1, 2, 3], []),
        ([], 0, [], []),
        ([], -3, [], []),
    ],
)
def test_plan(machines: list[Machine], count: int, stopped: list[int], new: list[int]) -> None:
    planned = plan(machines, count, max_instances=4, per_minute=6)
    assert [each.number for each in planned.stopped] == stopped
    assert list(planned.new) == new


def test_a_stopped_instance_of_an_older_template_is_not_planned_with() -> None:
    old = [machine(n, tags={tags.TEMPLATE: "2"}) for n in (1, 2, 3)]
    planned = plan([*old, machine(4, tags={tags.TEMPLATE: "3"})], 4, max_instances=4, per_minute=60, latest=3)
    assert [each.number for each in planned.stopped] == [4]
    assert planned.new == (5, 6, 7)


def test_what_made_an_instance_is_known_from_our_tag_or_ec2s() -> None:
    assert machine(1, tags={tags.TEMPLATE: "2"}).outdated(3)
    assert machine(1, tags={"aws:ec2launchtemplate:version": "2"}).outdated(3)
    assert not machine(1, tags={tags.TEMPLATE: "3"}).outdated(3)
    assert not machine(1, tags={tags.TEMPLATE: "2"}).outdated(0)
    assert not machine(1).outdated(3)


def test_no_instance_starts_when_none_may() -> None:
    planned = plan([machine(1)], 5, max_instances=0, per_minute=60)
    assert not planned.stopped
    assert not planned.new


def test_orphans_are_found() -> None:
    found = orphans(
        [
            machine(1, "running"),
            machine(2, "running"),
            machine(2, "running", id="i-twin"),
            machine(1, name="web-instance", id="i-web"),
            machine(1, name="somebody's", id="i-x"),
            machine(1, name="", id="i-new", tags={tags.TIER: "app"}, nameless=True),
        ]
    )
    assert set(found) == {"i-2", "i-twin", "i-x"}


@pytest.mark.parametrize(
    ("failed", "ready", "dead"),
    [
        ({}, {}, 0),
        ({1: "1500 1", 2: "1600 2"}, {}, 2),
        ({1: "1500 1", 2: "1600 2"}, {3: "1550"}, 2),
        ({1: "1500 3"}, {3: "1550"}, 0),
    ],
)
def test_dead_boots_count_from_the_last_good_one(failed: dict[int, str], ready: dict[int, str], dead: int) -> None:
    machines = [
        machine(
            n,
            tags={
                **({tags.FAILED: failed[n]} if n in failed else {}),
                **({tags.READY: ready[n]} if n in ready else {}),
            },
        )
        for n in (1, 2, 3)
    ]
    assert dead_boots(machines) == dead


@pytest.mark.parametrize(
    ("started_s", "run_s"),
    [(None, 5000), (5003, 5003), (4900, 4900), (4000, 5000)],
    ids=["new", "started by the scaler", "LaunchTime a little later", "started by hand"],
)
def test_a_run_begins_where_the_scaler_or_ec2_says(started_s: int | None, run_s: int) -> None:
    marks = {STARTED: str(started_s)} if started_s else {}
    launched = datetime.fromtimestamp(5000, UTC)
    found = NAMING.machine({**described("i-1", **marks), "LaunchTime": launched}, now_s=6000.0)
    assert found.run_s == run_s
    assert found.age_s == 6000.0 - run_s


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e3", "١٢"])
def test_marks_that_somebody_else_wrote_are_none(text: str) -> None:
    found = machine(1, tags=dict.fromkeys((tags.READY, tags.DRAINING, tags.FAILED), text))
    assert not found.ready
    assert not found.draining
    assert found.dead_boots == 0
