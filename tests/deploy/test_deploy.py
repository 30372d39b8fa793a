"""faceapp deploy: plan, apply and destroy as a user types them, against the embedded AWS over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
import yaml
from botocore.stub import Stubber

from celery_sqs.door import is_loopback_url
from faceapp.config import Settings
from faceapp.deploy import changes, choices, show, template
from faceapp.deploy.apply import Event, execute, follow
from faceapp.deploy.target import Target
from faceapp.errors import ConfigError, DeployError
from faceapp.stack import data_tier as stack
from faceapp.stack.data_tier import STACK_TAG, TIER_TAG
from tests.support.aws import plain_client
from tests.support.services import part_environ, users_environ

IMAGE, OTHER_IMAGE = "ami-12c6146b", "ami-1e749f67"

Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def deploy(aws_endpoint: str, prefix: str) -> Deploy:
    """Runs `faceapp deploy COMMAND`, with nothing of the user's AWS in the environment."""

    def run(command: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "faceapp", "deploy", command, "--endpoint-url", aws_endpoint, "--prefix", prefix]
        return subprocess.run(
            [*line, *options],
            capture_output=True,
            text=True,
            timeout=240,
            env=part_environ(**environ),
            stdin=subprocess.DEVNULL,
        )

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    """All that it said, on one line: a pipe gets 80 columns."""
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.fixture
def clients(aws: str) -> Callable[[str], Any]:
    return lambda service: plain_client(service, aws)


@pytest.fixture
def settings(prefix: str) -> Settings:
    return Settings(prefix=prefix)


def stacks(clients: Callable[[str], Any], prefix: str) -> list[str]:
    found = clients("cloudformation").describe_stacks()["Stacks"]
    return [each["StackStatus"] for each in found if each["StackName"] == prefix]


def test_a_plan_changes_nothing(deploy: Deploy, clients: Callable[[str], Any], prefix: str) -> None:
    done = deploy("plan", "--image", IMAGE)
    assert done.returncode == 0, done.stderr
    assert "AWS account 123456789012, region us-east-1" in done.stdout
    assert re.search(r"A new stack: \d+ to add\.", done.stdout)
    assert re.search(r"add +WebInstance +EC2::Instance", done.stdout)
    assert re.search(r"idle, a month +\d+\.\d\d USD", done.stdout)
    assert said(done).count("AWS's Price List is not asked for an AWS on this machine") == 1
    assert "AccessCidr lets nobody in" in said(done)
    assert stacks(clients, prefix) == []
    assert clients("cloudformation").list_change_sets(StackName=prefix)["Summaries"] == []


def test_without_an_image_nothing_boots_and_it_says_so(deploy: Deploy) -> None:
    done = deploy("plan")
    assert "WebInstance" not in done.stdout
    assert "Without an image there is no web-instance" in said(done)


def test_plain_http_is_warned_of(deploy: Deploy) -> None:
    """S12"""
    open_to_some = ("plan", "--image", IMAGE, "--cidr", "203.0.113.7/32")
    assert "Port 8000 is plain HTTP: API keys and photos can be read" in said(deploy(*open_to_some, "--port", "8000"))
    assert "plain HTTP" not in said(deploy(*open_to_some))


def test_what_comes_with_a_parameter_is_in_the_plan(deploy: Deploy) -> None:
    assert deploy("apply", "--yes").returncode == 0
    planned = deploy("plan", "--image", IMAGE)
    for resource in ("WebInstance", "WebTemplate", "WorkerTemplate", "WebAddress"):
        assert re.search(rf"add +{resource} ", planned.stdout), planned.stdout
    assert not re.search(r"add +\w+Bucket ", planned.stdout)
    assert "Nothing to change." in deploy("plan").stdout


def test_from_nothing_to_a_stack_and_back(deploy: Deploy, clients: Callable[[str], Any], settings: Settings) -> None:
    prefix = settings.prefix
    done = deploy("apply", "--yes", "--image", IMAGE, "--max-instances", "3", "--set", "FACEAPP_LOG_LEVEL=DEBUG")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"create complete +{prefix}", done.stdout)
    described = changes.parameters_of(clients("cloudformation").describe_stacks(StackName=prefix)["Stacks"][0])
    assert described["MaxInstances"] == "3"
    assert described["PlainSettings"] == "FACEAPP_LOG_LEVEL=DEBUG"

    again = deploy("apply", "--yes")
    assert (again.returncode, "Nothing to change." in again.stdout) == (0, True)

    planned = deploy("plan", "--image", OTHER_IMAGE, "--set", "FACEAPP_LOG_FORMAT=human")
    assert re.search(r"REPLACE +WebInstance", planned.stdout)
    assert re.search(rf"WorkerImage +{IMAGE} +-> +{OTHER_IMAGE}", planned.stdout)
    assert "FACEAPP_LOG_FORMAT=human FACEAPP_LOG_LEVEL=DEBUG" in said(planned)
    assert "MaxInstances" not in planned.stdout
    assert "WebInstance WOULD BE REPLACED" in said(planned)
    assert not re.search(r"InBucket +S3::Bucket", planned.stdout)

    changed = deploy("apply", "--yes", "--image", OTHER_IMAGE)
    assert changed.returncode == 0, changed.stderr
    after = changes.parameters_of(clients("cloudformation").describe_stacks(StackName=prefix)["Stacks"][0])
    assert (after["WebImage"], after["MaxInstances"]) == (OTHER_IMAGE, "3")

    clients("s3").put_object(Bucket=settings.in_bucket, Key="photo", Body=b"x")
    clients("s3").put_object(Bucket=settings.gallery_bucket, Key="photos/ann/1", Body=b"x")
    gone = deploy("destroy", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert f"the bucket {settings.in_bucket} with 1 object" in said(gone)
    assert f"Nothing of {prefix} is left" in said(gone)
    assert f"but the bucket {settings.gallery_bucket}." in said(gone)
    assert stacks(clients, prefix) == []

    back = deploy("apply", "--yes")
    assert back.returncode == 0, back.stderr
    assert "the people in it are kept" in said(back)
    assert clients("s3").head_object(Bucket=settings.gallery_bucket, Key="photos/ann/1")

    end = deploy("destroy", "--yes", "--with-gallery")
    assert end.returncode == 0, end.stderr
    assert "EVERYBODY WHO IS ENROLLED WOULD BE FORGOTTEN" in said(end)
    assert not [each for each in clients("s3").list_buckets()["Buckets"] if each["Name"].startswith(prefix)]
    assert "There is nothing of" in deploy("destroy", "--yes").stdout


def test_a_prefix_of_digits_has_a_stack_whose_name_begins_with_a_letter(
    aws_endpoint: str, clients: Callable[[str], Any]
) -> None:
    """G2: students' IDs are ten digits, and CloudFormation takes no name that begins with one."""
    prefix = str(uuid.uuid4().int)[:10]

    def deploy(*options: str, **environ: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "faceapp", "deploy", *options, "--endpoint-url", aws_endpoint],
            capture_output=True,
            text=True,
            env=part_environ(FACEAPP_PREFIX=prefix, **environ),
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, said(done)
        return said(done)

    assert f"The stack faceapp-{prefix} is as planned" in deploy("apply", "--yes", "--image", IMAGE)
    assert stacks(clients, f"faceapp-{prefix}") == ["CREATE_COMPLETE"]
    assert "CREATE_COMPLETE" in deploy("status")
    assert {f"{prefix}-in-bucket", f"{prefix}-out-bucket"} <= {
        each["Name"] for each in clients("s3").list_buckets()["Buckets"]
    }
    assert f"Nothing of {prefix} is left" in deploy("destroy", "--yes", "--with-gallery")
    assert stacks(clients, f"faceapp-{prefix}") == []
    # And any other name that CloudFormation takes.
    assert "The stack MyCourse is as planned" in deploy("apply", "--yes", FACEAPP_STACK="MyCourse")
    assert "There is no stack" not in deploy("status", "--stack", "MyCourse")
    assert f"Nothing of {prefix} is left" in deploy("destroy", "--yes", "--with-gallery", "--stack", "MyCourse")


def test_destroy_ends_what_was_made_at_run_time_and_nothing_else(
    deploy: Deploy, clients: Callable[[str], Any], settings: Settings
) -> None:
    prefix = settings.prefix
    assert deploy("apply", "--yes").returncode == 0
    ec2, sqs, logs = clients("ec2"), clients("sqs"), clients("logs")

    def run(stack_name: str, name: str, tier: str) -> str:
        tags = {"Name": name, STACK_TAG: stack_name, TIER_TAG: tier}
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        given = [{"ResourceType": "instance", "Tags": pairs}]
        answer = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, TagSpecifications=given)
        return str(answer["Instances"][0]["InstanceId"])

    own, others = run(prefix, "app-tier-instance-1", "app"), run(f"{prefix}-b", "app-tier-instance-1", "app")
    for name, tags in (
        (f"{prefix}-celeryev-scaler-x", {"faceapp:used": "1"}),
        (f"{prefix}-celeryev-mine", {}),
    ):
        sqs.create_queue(QueueName=name, tags=tags)
    logs.create_log_group(logGroupName=f"/faceapp/{prefix}/web")
    logs.create_log_group(logGroupName=f"/faceapp/{prefix}2")
    done = deploy("destroy", "--yes", "--with-gallery")
    assert done.returncode == 0, done.stderr
    states = {
        each["Instances"][0]["InstanceId"]: each["Instances"][0]["State"]["Name"]
        for each in ec2.describe_instances(InstanceIds=[own, others])["Reservations"]
    }
    assert states == {own: "terminated", others: "running"}
    queues = [each.rpartition("/")[2] for each in sqs.list_queues(QueueNamePrefix=prefix).get("QueueUrls", ())]
    assert queues == [f"{prefix}-celeryev-mine"]
    groups = logs.describe_log_groups(logGroupNamePrefix=f"/faceapp/{prefix}")["logGroups"]
    assert [each["logGroupName"] for each in groups] == [f"/faceapp/{prefix}2"]


def test_destroy_waits_for_the_second_stack(deploy: Deploy, clients: Callable[[str], Any], prefix: str) -> None:
    clients("ec2").create_launch_template(
        LaunchTemplateName=f"{prefix}-lt", LaunchTemplateData={"ImageId": IMAGE, "InstanceType": "t3.micro"}
    )
    clients("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=f"{prefix}-web-tier",
        MinSize=0,
        MaxSize=0,
        AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateName": f"{prefix}-lt"},
        Tags=[{"Key": "aws:cloudformation:stack-name", "Value": "second", "PropagateAtLaunch": True}],
    )
    done = deploy("destroy", "--yes")
    assert done.returncode == 1
    assert "delete the stack second first" in done.stderr


def test_destroy_goes_on_where_it_was_interrupted(
    deploy: Deploy, clients: Callable[[str], Any], settings: Settings
) -> None:
    assert deploy("apply", "--yes").returncode == 0
    clients("cloudformation").delete_stack(StackName=settings.prefix)
    clients("sqs").create_queue(QueueName=f"{settings.prefix}-celeryev-flower-x", tags={"faceapp:used": "1"})
    done = deploy("destroy", "--yes", "--with-gallery")
    assert done.returncode == 0, done.stderr
    assert f"Nothing of {settings.prefix} is left" in said(done)
    assert clients("sqs").list_queues(QueueNamePrefix=settings.prefix).get("QueueUrls", []) == []


def test_another_stack_of_that_name_is_left_alone(deploy: Deploy, clients: Callable[[str], Any], prefix: str) -> None:
    body = yaml.safe_dump({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})
    clients("cloudformation").create_stack(StackName=prefix, TemplateBody=body)
    for command in (["plan"], ["apply", "--yes"], ["destroy", "--yes"]):
        done = deploy(*command)
        assert done.returncode == 1
        assert f"There is a stack {prefix}, and it is not one of faceapp's" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert stacks(clients, prefix) == ["CREATE_COMPLETE"]


def test_a_failure_says_why_and_what_to_do(deploy: Deploy, clients: Callable[[str], Any], settings: Settings) -> None:
    clients("s3").create_bucket(Bucket=settings.out_bucket)
    done = deploy("apply", "--yes")
    assert done.returncode == 1
    assert f"Error: The stack {settings.prefix} is ROLLBACK_COMPLETE. First reason: " in done.stderr
    assert "BucketAlreadyExists" in done.stderr
    again = deploy("apply", "--yes")
    assert again.returncode == 1
    assert "'faceapp deploy destroy' removes what is left of it" in again.stderr
    left = deploy("destroy", "--yes")
    assert stacks(clients, settings.prefix) == []
    assert f"Left: bucket {settings.out_bucket}" in left.stderr
    clients("s3").delete_bucket(Bucket=settings.out_bucket)
    assert deploy("apply", "--yes").returncode == 0
    assert deploy("destroy", "--yes", "--with-gallery").returncode == 0


def test_nothing_is_done_when_nobody_can_be_asked(deploy: Deploy) -> None:
    for command in ("apply", "destroy"):
        done = deploy(command)
        assert done.returncode == 2
        assert "give --yes" in done.stderr


@pytest.fixture
def cloudformation(monkeypatch: pytest.MonkeyPatch, aws: str) -> Iterator[tuple[Target, Stubber]]:
    """A CloudFormation that says what AWS's would: the embedded one's updates never fail."""
    monkeypatch.setattr("faceapp.deploy.apply.POLL_S", 0)
    target = Target(settings=Settings(prefix="x"), region="us-east-1", account="1", endpoint=aws)
    client: Any = boto3.Session().client("cloudformation")
    target._clients["cloudformation"] = client
    with Stubber(client) as stub:
        yield target, stub


def says(stub: Stubber, state: str, *events: tuple[str, str, str]) -> None:
    """The stack's state, and its events since the last time: name, status and reason, oldest first."""
    now = datetime.now(UTC)
    stub.add_response("describe_stacks", {"Stacks": [{"StackName": "x", "StackStatus": state, "CreationTime": now}]})
    described = [
        {
            "EventId": uuid.uuid4().hex,
            "StackId": "x",
            "StackName": "x",
            "Timestamp": now,
            "LogicalResourceId": name,
            "ResourceStatus": status,
            "ResourceStatusReason": reason,
        }
        for name, status, reason in events
    ]
    stub.add_response("describe_stack_events", {"StackEvents": described[::-1]})


def test_of_a_failed_update_the_first_real_reason_is_named(cloudformation: tuple[Target, Stubber]) -> None:
    target, stub = cloudformation
    says(stub, "UPDATE_IN_PROGRESS", ("x", "UPDATE_IN_PROGRESS", "User Initiated"))
    says(
        stub,
        "UPDATE_ROLLBACK_IN_PROGRESS",
        ("InBucket", "UPDATE_FAILED", "Resource update cancelled"),
        ("WebInstance", "CREATE_FAILED", "no such image"),
        ("x", "UPDATE_ROLLBACK_IN_PROGRESS", "The following resource(s) failed"),
    )
    says(stub, "UPDATE_ROLLBACK_COMPLETE", ("x", "UPDATE_ROLLBACK_COMPLETE", ""))
    told: list[Event] = []
    with pytest.raises(DeployError) as failure:
        follow(target, "x", seen=set(), tell=told.append)
    assert "First reason: WebInstance: no such image" in str(failure.value)
    assert "Everything is as it was before" in str(failure.value)
    assert [each.name for each in told] == ["x", "InBucket", "WebInstance", "x", "x"]


def test_a_state_of_before_is_not_taken_for_the_end(cloudformation: tuple[Target, Stubber]) -> None:
    target, stub = cloudformation
    says(stub, "CREATE_COMPLETE")
    says(stub, "UPDATE_IN_PROGRESS", ("x", "UPDATE_IN_PROGRESS", ""))
    says(stub, "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", ("x", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", ""))
    says(stub, "UPDATE_COMPLETE", ("x", "UPDATE_COMPLETE", ""))
    follow(target, "x", seen=set(), tell=lambda _: None)
    stub.assert_no_pending_responses()


def test_an_accounts_stack_is_protected_from_then_on(cloudformation: tuple[Target, Stubber]) -> None:
    embedded, stub = cloudformation
    target = Target(settings=embedded.settings, region="us-east-1", account="1")
    target._clients["cloudformation"] = embedded.client("cloudformation")
    stub.add_response("describe_stack_events", {"StackEvents": []})
    stub.add_response("execute_change_set", {}, {"ChangeSetName": "set"})
    says(stub, "CREATE_COMPLETE", ("x", "CREATE_COMPLETE", ""))
    protected = {"EnableTerminationProtection": True, "StackName": "x"}
    stub.add_response("update_termination_protection", {"StackId": "x"}, protected)
    plan = changes.Plan(kind="CREATE", change_set="set", stack_id="x", changes=(), parameters=(), after={})
    execute(target, plan, tell=lambda _: None)
    stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "No AWS region is set: set AWS_REGION"),
        ({"AWS_REGION": "eu-west-1"}, "AWS does not let us in (region eu-west-1): Unable to locate credentials"),
        ({"AWS_PROFILE": "none"}, "The AWS profile cannot be used"),
        ({"AWS_ENDPOINT_URL": "aws"}, "--endpoint-url aws is no URL"),
    ],
)
def test_an_account_that_cannot_be_reached_is_one_sentence(more: dict[str, str], sentence: str) -> None:
    nothing = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    environ = users_environ(**nothing, AWS_EC2_METADATA_DISABLED="true", **more)
    line = [sys.executable, "-m", "faceapp", "deploy", "plan"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=environ)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("UPDATE_IN_PROGRESS", "somebody changes it just now"),
        ("DELETE_FAILED", "'faceapp deploy destroy' goes on with that"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
    ],
)
def test_a_stack_that_cannot_be_changed_says_what_to_do(state: str, sentence: str) -> None:
    with pytest.raises(DeployError, match=sentence):
        changes.check_state({"StackName": "x", "StackStatus": state})
    changes.check_state({"StackName": "x", "StackStatus": "UPDATE_ROLLBACK_COMPLETE"})


def test_somebody_elses_plan_of_that_name_is_left_alone(
    deploy: Deploy, clients: Callable[[str], Any], prefix: str
) -> None:
    body = yaml.safe_dump({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})
    clients("cloudformation").create_change_set(
        StackName=prefix, ChangeSetName="theirs", ChangeSetType="CREATE", TemplateBody=body
    )
    for command in (["plan"], ["destroy", "--yes"]):
        done = deploy(*command)
        assert done.returncode == 1
        assert "Somebody plans a stack" in done.stderr
    assert stacks(clients, prefix) == ["REVIEW_IN_PROGRESS"]


def test_whoever_answers_wrongly_changes_nothing(
    aws_endpoint: str, deploy: Deploy, clients: Callable[[str], Any], prefix: str
) -> None:
    """At a terminal, where it asks."""

    def type_in(answer: str, *command: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "faceapp", "deploy", *command, "--endpoint-url", aws_endpoint, "--prefix", prefix]
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            line, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=part_environ()
        )
        os.write(ours, f"{answer}\n".encode())
        output, _ = process.communicate(timeout=240)
        os.close(ours)
        os.close(theirs)
        return process.returncode, output

    status, output = type_in("n", "apply")
    assert (status, "Apply this to AWS account 123456789012" in output) == (1, True)
    assert stacks(clients, prefix) == []
    status, output = type_in("y", "apply")
    assert (status, stacks(clients, prefix)) == (0, ["CREATE_COMPLETE"]), output
    status, output = type_in("yes", "destroy")
    assert (status, "nothing was changed" in output) == (1, True)
    assert stacks(clients, prefix) == ["CREATE_COMPLETE"]
    assert type_in(prefix, "destroy", "--with-gallery")[0] == 0
    assert stacks(clients, prefix) == []


def test_images_stay_unless_they_are_named(deploy: Deploy, clients: Callable[[str], Any], prefix: str) -> None:
    ec2 = clients("ec2")
    [instance] = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"]
    tags = [{"ResourceType": "image", "Tags": [{"Key": STACK_TAG, "Value": prefix}]}]
    made = ec2.create_image(InstanceId=instance["InstanceId"], Name=prefix, TagSpecifications=tags)["ImageId"]
    assert deploy("apply", "--yes", "--image", "latest").returncode == 0
    assert (
        changes.parameters_of(clients("cloudformation").describe_stacks(StackName=prefix)["Stacks"][0])["WorkerImage"]
        == made
    )
    assert "but 1 image." in said(deploy("destroy", "--yes", "--with-gallery"))
    assert ec2.describe_images(ImageIds=[made])["Images"]
    assert deploy("destroy", "--yes", "--with-images").returncode == 0
    assert ec2.describe_images(Filters=[{"Name": "image-id", "Values": [made]}])["Images"] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "FACEAPP_LOG_LEVEL=LOUD"], "FACEAPP_LOG_LEVEL='LOUD' cannot be used"),
        (["--set", "FACEAPP_COLOUR=red"], "FACEAPP_COLOUR is not a setting of faceapp"),
        (["--set", "FACEAPP_PREFIX=x"], "FACEAPP_PREFIX is not set here: the prefix is given by --prefix"),
        (["--set", "FACEAPP_WEIGHTS=a b"], "FACEAPP_WEIGHTS='a b' cannot be sent"),
        (["--parameter", "Colour=red"], "The template has no parameter Colour"),
        (["--parameter", "Prefix=red"], "The parameter Prefix is not set here"),
        (["--parameter", "KeepLogDays=2"], "KeepLogDays='2' cannot be used: it takes 1 or 3 or 5"),
        (["--parameter", "VolumeGiB=4"], "VolumeGiB='4' cannot be used: it takes a whole number, 8 to 1024"),
        (["--worker-types", "large"], "FACEAPP_SCALER_TYPES='large' cannot be used"),
        (["--cidr", "everybody"], "AccessCidr='everybody' cannot be used: it takes an IPv4 range, 203.0.113.7/32"),
        (["--image", "mine"], "cannot be used"),
    ],
)
def test_what_faceapp_would_not_start_with_is_refused_before_anything_is_sent(
    deploy: Deploy, clients: Callable[[str], Any], prefix: str, options: list[str], sentence: str
) -> None:
    done = deploy("plan", *options)
    assert sentence in done.stderr
    assert done.returncode == 2
    assert stacks(clients, prefix) == []


def test_a_loopback_never_gets_the_users_credentials(deploy: Deploy) -> None:
    """A profile that does not exist would be an error as soon as boto3 looked for it."""
    done = deploy("plan", AWS_PROFILE="there-is-none", AWS_REGION="eu-west-1")
    assert done.returncode == 0, done.stderr
    assert "region eu-west-1" in done.stdout


def test_what_a_loopback_is() -> None:
    assert all(map(is_loopback_url, ["http://127.0.0.1:4566", "http://localhost:1", "http://[::1]:4566"]))
    assert not any(map(is_loopback_url, ["", "https://ec2.us-east-1.amazonaws.com", "http://127.0.0.1.example.org"]))


def test_settings_that_have_a_parameter_become_it() -> None:
    found = choices.wanted({}, ["FACEAPP_TASK_TIME_LIMIT_S=120", "FACEAPP_SCALER_POLICY=depth"], {})
    assert found == {"TaskTimeLimit": "120", "VisibilityTimeout": "150", "Policy": "depth", "PlainSettings": ""}


def test_a_setting_without_a_value_goes_back_to_its_default() -> None:
    current = {"PlainSettings": "FACEAPP_LOG_LEVEL=DEBUG FACEAPP_THRESHOLD=0.5"}
    assert choices.wanted({}, ["FACEAPP_LOG_LEVEL="], current) == {"PlainSettings": "FACEAPP_THRESHOLD=0.5"}
    assert choices.wanted({}, [], current) == {}


def test_parameters_that_together_do_not_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="FACEAPP_SCALER_POLICY='guess'"):
        choices.wanted({"Policy": "guess"}, [], {})


def test_each_setting_that_becomes_a_parameter_has_one() -> None:
    assert set(choices.PARAMETERS_OF_SETTINGS.values()) <= template.parameters().keys()


def test_the_template_fits_and_keeps_its_user_data_without_comments() -> None:
    text = stack.template()
    short = stack.without_comments(text)
    assert yaml.load(short, Loader=template._Loader) == yaml.load(text, Loader=template._Loader)
    assert "#cloud-config" in short
    assert "# " not in re.sub(r"\|\n(?: +.*\n)+", "", short)
    assert len(stack.body().encode()) <= stack.MOST_BYTES


def described(**more: str) -> changes.Change:
    """A change as AWS describes one of the gallery's bucket, of which it says more than the embedded one does."""
    change = {"LogicalResourceId": "InBucket", "ResourceType": "AWS::S3::Bucket", "PhysicalResourceId": "x-in", **more}
    details = [{"Target": {"Name": "BucketName"}, "CausingEntity": "Prefix"}, {"Target": {"Name": "Tags"}}]
    return changes._change({**change, "Details": details}, template.resources())


def test_the_templates_own_defaults_pass_its_rules() -> None:
    for name, value in template.parameters().items():
        template.check(name, value)


def test_what_would_lose_data_is_said_in_words() -> None:
    for action, replacement in (("Modify", "True"), ("Modify", "Conditional"), ("Remove", "")):
        [sentence] = show.warnings([described(Action=action, Replacement=replacement)])
        assert sentence.startswith("InBucket (x-in) ")
        assert sentence.endswith("its objects would be LOST.")
    assert described(Action="Modify", Replacement="True").why == "Prefix, Tags"
    assert not show.warnings([described(Action="Modify", Replacement="False")])
    assert not show.warnings([described(Action="Remove", LogicalResourceId="GalleryBucket")])
