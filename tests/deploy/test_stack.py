"""deploy/stack.yaml on the embedded AWS, and what becomes of failures."""

from __future__ import annotations

import base64
import configparser
import dataclasses
import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from celery_sqs.scaler.alarms import WORTH_TELLING
from celery_sqs.scaler.core import DEAD_BOOTS
from celery_sqs.transport.fanout import topic_name
from faceapp.config import Settings
from faceapp.deploy.template import check, resources
from faceapp.errors import DeployError
from faceapp.stack import data_tier as deployment
from faceapp.stack.data_tier import APP_TIER, STACK_TAG, TIER_TAG, WEB_INSTANCE
from tests.support.aws import plain_client, session
from tests.support.programs import needs
from tests.support.services import PATIENCE_S

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def deployed(aws: str) -> Settings:
    """Settings of a stack that only this test uses."""
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}", task_time_limit_s=40, queue_wait_s=3)
    deployment.apply(settings, client=plain_client("cloudformation", aws))
    return settings


def queue_attributes(aws: str, name: str) -> dict[str, str]:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    attributes: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return attributes


def test_the_package_carries_the_template_of_the_repository() -> None:
    assert deployment.template() == (DEPLOY / "stack.yaml").read_text("utf-8")


def test_everything_has_the_names_that_the_settings_use(aws: str) -> None:
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}")
    outputs = deployment.apply(settings, client=plain_client("cloudformation", aws))
    roles = {f"{each.title()}RoleArn": f"{settings.prefix}-{each}" for each in ("worker", "web", "scaler", "flower")}
    assert {name: re.split("[/:]", value)[-1] for name, value in outputs.items()} == roles | {
        "InBucket": settings.in_bucket,
        "OutBucket": settings.out_bucket,
        "GalleryBucket": settings.gallery_bucket,
        "RequestQueueUrl": settings.request_queue,
        "ResponseQueueUrl": settings.response_queue,
        "DeadLetterQueueUrl": settings.dead_letter_queue,
        "EventsTopicArn": topic_name(settings.prefix, "celeryev"),
        "ControlTopicArn": topic_name(settings.prefix, "celery.pidbox"),
        "AlarmTopicArn": f"{settings.prefix}-alarms",
    }


def loaded(file: str) -> dict[str, Any]:
    """A template of deploy/, with CloudFormation's functions as plain values."""

    class Loader(yaml.SafeLoader):
        pass

    def plain(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> object:
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_scalar(node)
        assert isinstance(node, yaml.SequenceNode)
        return {name: loader.construct_sequence(node, deep=True)}

    Loader.add_multi_constructor("!", plain)
    found: dict[str, Any] = yaml.load((DEPLOY / file).read_text("utf-8"), Loader)
    return found


def template() -> dict[str, Any]:
    return loaded("stack.yaml")


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    """The properties of all resources of a type, by name."""
    return {name: each["Properties"] for name, each in template()["Resources"].items() if each["Type"] == kind}


def buckets() -> dict[str, dict[str, Any]]:
    """The buckets' definitions, since moto creates buckets and passes over most of their properties."""
    return {name: each for name, each in template()["Resources"].items() if each["Type"] == "AWS::S3::Bucket"}


def test_every_bucket_is_private_and_encrypted() -> None:
    assert len(buckets()) == 3
    for bucket in buckets().values():
        assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
        [rule] = bucket["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        assert "VersioningConfiguration" not in bucket["Properties"]


def test_photos_and_results_expire_and_the_gallery_outlives_its_stack() -> None:
    rules = {
        name: [
            (rule.get("Prefix"), rule["ExpirationInDays"])
            for rule in each["Properties"]["LifecycleConfiguration"]["Rules"]
        ]
        for name, each in buckets().items()
    }
    kept = [(None, "KeepDays")]
    # Photos on their way to enrolment, and orders to forget somebody that failed.
    gallery = [("incoming/", 1), ("forgetting/", "KeepDays")]
    assert rules == {"InBucket": kept, "OutBucket": kept, "GalleryBucket": gallery}
    assert buckets()["GalleryBucket"]["DeletionPolicy"] == "Retain"


def test_the_request_queue_fits_the_task(aws: str, deployed: Settings) -> None:
    attributes = queue_attributes(aws, deployed.request_queue)
    assert attributes["VisibilityTimeout"] == str(40 + deployment.VISIBILITY_MARGIN_S)
    assert attributes["ReceiveMessageWaitTimeSeconds"] == "3"
    assert attributes["SqsManagedSseEnabled"] == "true"
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["maxReceiveCount"] == 3
    assert redrive["deadLetterTargetArn"].endswith(f":{deployed.dead_letter_queue}")
    assert queue_attributes(aws, deployed.dead_letter_queue)["MessageRetentionPeriod"] == str(14 * 24 * 3600)


def test_the_request_queue_refuses_more_than_1024_bytes(aws: str, deployed: Settings) -> None:
    sqs = plain_client("sqs", aws)
    url = sqs.get_queue_url(QueueName=deployed.request_queue)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x" * 1024)
    with pytest.raises(ClientError, match="1024 bytes"):
        sqs.send_message(QueueUrl=url, MessageBody="x" * 1025)


def test_applying_again_changes_what_changed_and_nothing_else(aws: str, deployed: Settings) -> None:
    client = plain_client("cloudformation", aws)
    plain_client("s3", aws).put_object(Bucket=deployed.gallery_bucket, Key="photos/a", Body=b"kept")
    deployment.apply(deployed, client=client)
    deployment.apply(dataclasses.replace(deployed, task_time_limit_s=100), client=client)
    assert queue_attributes(aws, deployed.request_queue)["VisibilityTimeout"] == "130"
    assert plain_client("s3", aws).get_object(Bucket=deployed.gallery_bucket, Key="photos/a")["Body"].read() == b"kept"


IMAGES = ("ami-12c6146b", "ami-03cf127a")
"""Two that moto knows."""


class Deployed:
    """A stack with instances, as `faceapp deploy` makes it."""

    def __init__(self, aws: str) -> None:
        self.prefix = f"d{uuid.uuid4().hex[:8]}"
        self.cloudformation, self.ec2, self.iam = (plain_client(each, aws) for each in ("cloudformation", "ec2", "iam"))
        self.sqs, self.sns, self.logs = (plain_client(each, aws) for each in ("sqs", "sns", "logs"))

    def apply(self, operation: str = "create_stack", **parameters: str) -> dict[str, str]:
        """Create or update it; its outputs."""
        given = deployment.parameters(Settings(prefix=self.prefix)) | parameters
        getattr(self.cloudformation, operation)(
            StackName=self.prefix,
            TemplateBody=deployment.body(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        [stack] = self.cloudformation.describe_stacks(StackName=self.prefix)["Stacks"]
        return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}

    def template(self, tier: str) -> dict[str, Any]:
        """A launch template's latest version."""
        versions = self.ec2.describe_launch_template_versions(
            LaunchTemplateName=f"{self.prefix}-{tier}", Versions=["$Latest"]
        )
        [version] = versions["LaunchTemplateVersions"]
        return dict(version["LaunchTemplateData"])

    def files(self, tier: str) -> dict[str, str]:
        """What cloud-init writes at an instance's first boot."""
        return written(base64.b64decode(self.template(tier)["UserData"]).decode())

    def instances(self) -> list[dict[str, Any]]:
        found = self.ec2.describe_instances(
            Filters=[
                {"Name": "tag:faceapp:stack", "Values": [self.prefix]},
                {"Name": "instance-state-name", "Values": ["running"]},
            ]
        )
        return [each for reservation in found["Reservations"] for each in reservation["Instances"]]


def written(user_data: str) -> dict[str, str]:
    """The files that a cloud-config writes, which is all that ours do."""
    assert user_data.startswith("#cloud-config\n")
    config = yaml.safe_load(user_data)
    assert list(config) == ["write_files"]
    return {each["path"]: each["content"] for each in config["write_files"]}


def settings_in(env: str) -> Settings:
    """The settings of an instance's file of variables, which systemd reads and faceapp.config must accept."""
    variables = dict(line.split("=", 1) for line in env.splitlines() if line)
    return Settings.from_environ(variables)


@pytest.fixture
def full(aws: str) -> Deployed:
    return Deployed(aws)


def test_without_images_nothing_of_it_costs_anything(full: Deployed) -> None:
    outputs = full.apply()
    assert not {"Url", "WebInstanceId", "WorkerTemplateName"} & outputs.keys()
    assert full.instances() == []
    with pytest.raises(ClientError, match="InvalidLaunchTemplateName"):
        full.template("worker")
    with pytest.raises(ClientError, match="InvalidLaunchTemplateName"):
        full.template("web")


def test_workers_boot_what_they_were_promised(full: Deployed) -> None:
    full.apply(WorkerImage=IMAGES[0], WorkerMarket="on-demand")
    data = full.template("worker")
    assert data["ImageId"] == IMAGES[0]
    assert data["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }
    [volume] = data["BlockDeviceMappings"]
    assert (volume["Ebs"]["Encrypted"], volume["Ebs"]["VolumeType"]) == (True, "gp3")
    assert data["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{full.prefix}-worker")
    profile = full.iam.get_instance_profile(InstanceProfileName=f"{full.prefix}-worker")["InstanceProfile"]
    assert [each["RoleName"] for each in profile["Roles"]] == [f"{full.prefix}-worker"]
    tags = {
        each["ResourceType"]: {tag["Key"]: tag["Value"] for tag in each["Tags"]} for each in data["TagSpecifications"]
    }
    assert tags == {"instance": {STACK_TAG: full.prefix, TIER_TAG: APP_TIER}, "volume": {STACK_TAG: full.prefix}}
    assert data["InstanceInitiatedShutdownBehavior"] == "stop"
    assert "InstanceMarketOptions" not in data


def test_spot_instances_are_of_one_time_requests_and_end_when_they_shut_down(full: Deployed) -> None:
    full.apply(WorkerImage=IMAGES[0], WorkerMarket="spot")
    data = full.template("worker")
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["InstanceMarketOptions"] == {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }


def test_an_instances_settings_are_those_of_the_stack(full: Deployed) -> None:
    more = "FACEAPP_WEB_WAIT_S=120 FACEAPP_THRESHOLD=0.5"
    full.apply(
        WorkerImage=IMAGES[0],
        WebImage=IMAGES[0],
        Policy="depth",
        MaxInstances="7",
        DailyInstanceSeconds="3600",
        WorkerTypes="c7i.large,m7a.medium",
        TaskTimeLimit="40",
        PlainSettings=more,
    )
    worker = settings_in(full.files("worker")["/etc/faceapp/faceapp.env"])
    assert (worker.prefix, worker.task_time_limit_s, worker.queue_wait_s) == (full.prefix, 40, 20)
    assert (worker.log_format, worker.threshold) == ("json", 0.5)
    files = full.files("web")
    web = settings_in(files["/etc/faceapp/faceapp.env"])
    assert (web.scaler_policy, web.scaler_max_instances, web.scaler_daily_instance_s) == ("depth", 7, 3600)
    assert web.scaler_cloudwatch == "yes", "the alarms listen for it"
    assert (web.scaler_types, web.scaler_subnets, web.web_wait_s) == ("c7i.large,m7a.medium", "", 120)
    for service in ("scaler", "flower"):
        profile = configparser.ConfigParser()
        profile.read_string(files[f"/etc/faceapp/aws-{service}.config"])
        role = full.iam.get_role(RoleName=f"{full.prefix}-{service}")["Role"]["Arn"]
        # [default] is configparser's own name for what holds everywhere.
        found = {**profile.defaults(), **{key: value for part in profile.values() for key, value in part.items()}}
        assert found == {"role_arn": role, "credential_source": "Ec2InstanceMetadata"}


@pytest.mark.parametrize(("port", "host", "scheme"), [("443", "127.0.0.1", "https"), ("8000", "0.0.0.0", "http")])
def test_only_tls_or_the_courses_port_is_open_and_only_to_who_may_come(
    full: Deployed, port: str, host: str, scheme: str
) -> None:
    outputs = full.apply(WorkerImage=IMAGES[0], WebImage=IMAGES[0], AccessPort=port, AccessCidr="203.0.113.0/24")
    web, worker = (
        full.ec2.describe_security_groups(GroupIds=full.template(tier)["SecurityGroupIds"])["SecurityGroups"][0]
        for tier in ("web", "worker")
    )
    [rule] = web["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (int(port), int(port), "tcp")
    assert [each["CidrIp"] for each in rule["IpRanges"]] == ["203.0.113.0/24"]
    assert worker["IpPermissions"] == []
    # Behind nginx, or open by itself.
    assert settings_in(full.files("web")["/etc/faceapp/faceapp.env"]).web_host == host
    # The embedded EC2 gives an address no tags.
    addresses = [each["PublicIp"] for each in full.ec2.describe_addresses()["Addresses"]]
    assert outputs["Url"] in [f"{scheme}://{each}:{port}" for each in addresses]
    told = full.files("web")["/etc/faceapp/faceapp.env"].splitlines()
    assert f"FIXED_ADDRESS={urlsplit(outputs['Url']).hostname}" in told, "the certificate is for it"


def test_a_stack_is_made_in_steps_updated_with_a_new_image_and_deleted(full: Deployed) -> None:
    full.apply()
    both = {"WorkerImage": IMAGES[0], "WebImage": IMAGES[0], "ShipLogs": "yes"}
    outputs = full.apply("update_stack", **both)
    [web] = full.instances()
    assert outputs["WebInstanceId"] == web["InstanceId"]
    assert {each["Key"]: each["Value"] for each in web["Tags"]}.items() >= {
        "Name": WEB_INSTANCE,
        STACK_TAG: full.prefix,
        TIER_TAG: "web",
    }.items()
    groups = full.logs.describe_log_groups(logGroupNamePrefix=f"/faceapp/{full.prefix}")["logGroups"]
    assert [each["retentionInDays"] for each in groups] == [30]
    assert "SHIP_LOGS=yes" in full.files("worker")["/etc/faceapp/faceapp.env"].splitlines()

    outputs = full.apply("update_stack", **both | {"Mode": "eco", "ShipLogs": "no"})
    assert settings_in(full.files("web")["/etc/faceapp/faceapp.env"]).scaler_mode == "eco"
    assert full.logs.describe_log_groups(logGroupNamePrefix=f"/faceapp/{full.prefix}")["logGroups"] == []

    outputs = full.apply("update_stack", WorkerImage=IMAGES[1], WebImage=IMAGES[1])
    assert {full.template(tier)["ImageId"] for tier in ("web", "worker")} == {IMAGES[1]}
    [new] = full.instances()
    assert new["ImageId"] == IMAGES[1]
    assert outputs["WebInstanceId"] == new["InstanceId"] != web["InstanceId"]

    full.cloudformation.delete_stack(StackName=full.prefix)
    assert full.instances() == []
    assert not full.sqs.list_queues(QueueNamePrefix=full.prefix).get("QueueUrls")
    topics = [each["TopicArn"] for page in full.sns.get_paginator("list_topics").paginate() for each in page["Topics"]]
    roles = [each["RoleName"] for page in full.iam.get_paginator("list_roles").paginate() for each in page["Roles"]]
    templates = [each["LaunchTemplateName"] for each in full.ec2.describe_launch_templates()["LaunchTemplates"]]
    assert not [each for each in (*topics, *roles, *templates) if full.prefix in each]


# From here on: what the embedded AWS passes over.


@pytest.mark.parametrize(
    ("kind", "name", "things", "action"),
    [
        ("AWS::S3::BucketPolicy", "Bucket", {"InBucket", "OutBucket", "GalleryBucket"}, "s3:*"),
        ("AWS::SQS::QueuePolicy", "Queues", {"RequestQueue", "ResponseQueue", "DeadLetterQueue"}, "sqs:*"),
        ("AWS::SNS::TopicPolicy", "Topics", {"EventsTopic", "ControlTopic", "AlarmTopic"}, "sns:Publish"),
    ],
)
def test_nobody_comes_without_tls(kind: str, name: str, things: set[str], action: str) -> None:
    covered = set()
    for policy in of_type(kind).values():
        [thing] = [policy[name]] if isinstance(policy[name], str) else policy[name]
        covered.add(thing)
        statement = policy["PolicyDocument"]["Statement"][-1]
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", action)
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert {each.removesuffix(".Arn").strip("${}").partition(".")[0] for each in resources} == {thing}
    assert covered == things


def test_the_dead_letters_are_only_the_request_queues() -> None:
    allowed = of_type("AWS::SQS::Queue")["DeadLetterQueue"]["RedriveAllowPolicy"]
    assert allowed["redrivePermission"] == "byQueue"
    [source] = allowed["sourceQueueArns"]
    # By name, since each of the two would have to be there before the other.
    assert source.rpartition(":")[2] == of_type("AWS::SQS::Queue")["RequestQueue"]["QueueName"]


def test_alarms_ask_for_what_is_told() -> None:
    alarms = of_type("AWS::CloudWatch::Alarm")
    asked = {(each["Namespace"], each["MetricName"]) for each in alarms.values()}
    assert asked == {
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
        ("faceapp", "DeadBoots"),
        ("faceapp", "BudgetShare"),
    }
    assert alarms["DeadBootsAlarm"]["Threshold"] == DEAD_BOOTS
    assert alarms["BudgetAlarm"]["Threshold"] > WORTH_TELLING
    for each in alarms.values():
        assert each["TreatMissingData"] == "notBreaching"
        assert each["AlarmActions"] == ["AlarmTopic"]
        [dimension] = each["Dimensions"]
        assert dimension["Name"] == ("Stack" if each["Namespace"] == "faceapp" else "QueueName")


def test_parameters_say_what_they_are_and_stand_in_a_group() -> None:
    for file in ("stack.yaml", "balanced.yaml"):
        found = loaded(file)
        groups = found["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        grouped = [name for group in groups for name in group["Parameters"]]
        assert sorted(grouped) == sorted(found["Parameters"])
        for name, each in found["Parameters"].items():
            assert each["Description"].endswith("."), name
            if each["Type"] == "String" and "AllowedValues" not in each:
                assert re.fullmatch(each["AllowedPattern"], each["Default"]), name
            if each["Type"] == "Number" and "AllowedValues" not in each:
                assert each["MinValue"] <= each["Default"] <= each["MaxValue"], name


@pytest.mark.parametrize("file", ["stack.yaml", "balanced.yaml"])
def test_cloudformation_takes_a_template_of_this_size(file: str) -> None:
    """A longer one would have to lie in S3 first, and neither moto nor cfn-lint says so."""
    text = (DEPLOY / file).read_text("utf-8")
    assert len(deployment.fitting(text).encode()) <= 51_200


def test_defaults_are_those_of_the_settings() -> None:
    ours = deployment.parameters(Settings())
    parameters = template()["Parameters"]
    assert {name: str(parameters[name]["Default"]) for name in ours} == ours


# The second template.


@pytest.fixture
def balanced(full: Deployed) -> Iterator[Deployed]:
    """The same with two web servers behind a load balancer; at the end they are gone."""
    full.apply()
    vpc = full.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    found = full.ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    subnets = ",".join(each["SubnetId"] for each in found[:2])
    given = {"Prefix": full.prefix, "WebImage": IMAGES[0], "Vpc": vpc, "BalancerSubnets": subnets, "Subnets": subnets}
    name = f"{full.prefix}-balanced"
    full.cloudformation.create_stack(
        StackName=name,
        TemplateBody=(DEPLOY / "balanced.yaml").read_text("utf-8"),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    )
    yield full
    full.cloudformation.delete_stack(StackName=name)
    assert full.instances() == []


def test_two_web_servers_stand_behind_a_load_balancer(aws: str, balanced: Deployed) -> None:
    web = balanced.instances()
    assert len(web) == 2
    for each in web:
        assert {tag["Key"]: tag["Value"] for tag in each["Tags"]}.items() >= {
            "Name": WEB_INSTANCE,
            TIER_TAG: "web",
        }.items()
    data = balanced.template("web-tier")
    assert balanced.iam.get_instance_profile(InstanceProfileName=data["IamInstanceProfile"]["Name"])
    balancing = plain_client("elbv2", aws)
    [group] = balancing.describe_target_groups(Names=[f"{balanced.prefix}-web"])["TargetGroups"]
    assert (group["HealthCheckPath"], group["Port"]) == ("/readyz", 8000)
    [balancer] = balancing.describe_load_balancers(Names=[f"{balanced.prefix}-web"])["LoadBalancers"]
    [listener] = balancing.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("HTTP", 8000)


FACTS = {"v1": {"instance_id": "i-0123456789abcdef0"}}


def test_each_of_them_is_named_after_its_instance(balanced: Deployed) -> None:
    user_data = base64.b64decode(balanced.template("web-tier")["UserData"]).decode()
    assert user_data.startswith("## template: jinja\n"), "else cloud-init fills in nothing"
    filled = jinja2.Template(user_data.partition("\n")[2], undefined=jinja2.StrictUndefined).render(FACTS)
    settings = settings_in(written(filled)["/etc/faceapp/faceapp.env"])
    assert (settings.prefix, settings.web_host, settings.web_wait_s) == (balanced.prefix, "0.0.0.0", 300)
    assert settings.web_name == "i-0123456789abcdef0"


def test_cloud_init_names_each_of_them_after_its_instance(balanced: Deployed, tmp_path: Path) -> None:
    program = needs("cloud-init")
    (tmp_path / "facts").write_text(json.dumps(FACTS))
    (tmp_path / "user-data").write_bytes(base64.b64decode(balanced.template("web-tier")["UserData"]))
    command = [program, "devel", "render", "-i", "facts", "user-data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert settings_in(written(done.stdout)["/etc/faceapp/faceapp.env"]).web_name == "i-0123456789abcdef0"


def test_the_load_balancer_waits_longer_than_the_web_tier() -> None:
    found = loaded("balanced.yaml")
    attributes = found["Resources"]["Balancer"]["Properties"]["LoadBalancerAttributes"]
    assert {"Key": "idle_timeout.timeout_seconds", "Value": "IdleSeconds"} in attributes
    defaults = {name: each.get("Default") for name, each in found["Parameters"].items()}
    assert defaults["IdleSeconds"] > defaults["WaitSeconds"] == Settings().web_wait_s


def event(resource: str, status: str, reason: str = "") -> dict[str, Any]:
    ids = {"StackId": "1", "EventId": uuid.uuid4().hex, "StackName": "faceapp"}
    moment = {"Timestamp": datetime(2026, 1, 1)}
    return {**ids, **moment, "LogicalResourceId": resource, "ResourceStatus": status, "ResourceStatusReason": reason}


def test_a_failure_says_what_failed_first_in_this_run() -> None:
    client = session().client("cloudformation")
    newest_first = [
        event("faceapp", "ROLLBACK_COMPLETE"),
        event("OutBucket", "CREATE_FAILED", "Resource creation cancelled"),
        event("InBucket", "CREATE_FAILED", "faceapp-in-bucket already exists"),
        event("faceapp", "CREATE_IN_PROGRESS", "User Initiated"),
        event("InBucket", "UPDATE_FAILED", "of an earlier run"),
    ]
    stacks = [{"StackName": "faceapp", "StackStatus": "ROLLBACK_COMPLETE", "CreationTime": datetime(2026, 1, 1)}]
    with Stubber(client) as stub:
        stub.add_response("create_stack", {"StackId": "1"})
        stub.add_response("describe_stacks", {"Stacks": stacks})
        stub.add_response("describe_stack_events", {"StackEvents": newest_first})
        with pytest.raises(DeployError, match="InBucket: faceapp-in-bucket already exists"):
            deployment.apply(Settings(), client=client)


def test_an_aws_that_does_not_answer_is_a_deploy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = session().client("cloudformation", endpoint_url="http://127.0.0.1:1")
    with pytest.raises(DeployError, match="could not be applied"):
        deployment.apply(Settings(), client=client)


NAMES = {
    "AWS::S3::Bucket": ("BucketName", r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "AWS::SQS::Queue": ("QueueName", r"[A-Za-z0-9_-]{1,80}"),
    "AWS::SNS::Topic": ("TopicName", r"[A-Za-z0-9_-]{1,256}"),
    "AWS::IAM::Role": ("RoleName", r"[\w+=,.@-]{1,64}"),
    "AWS::IAM::InstanceProfile": ("InstanceProfileName", r"[\w+=,.@-]{1,128}"),
    "AWS::IAM::Policy": ("PolicyName", r"[\w+=,.@-]{1,128}"),
    "AWS::Logs::LogGroup": ("LogGroupName", r"[.\-_/#A-Za-z0-9]{1,512}"),
    "AWS::EC2::LaunchTemplate": ("LaunchTemplateName", r"[A-Za-z0-9().\-/_]{3,128}"),
    "AWS::EC2::SecurityGroup": ("GroupDescription", r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}"),
    "AWS::CloudWatch::Alarm": ("AlarmName", r"(?!\s)[ -~]{1,255}"),
}
"""What AWS takes for a name, from the services' API references."""


@pytest.mark.parametrize("prefix", ["1225754101", "9" * 32, "1-2"])
def test_every_name_may_begin_with_a_digit(prefix: str) -> None:
    """G2: the embedded AWS is less strict than the services' own rules."""
    named = 0
    for resource in resources().values():
        if rule := NAMES.get(resource["Type"]):
            name = str(resource["Properties"].get(rule[0], "unnamed")).replace("${Prefix}", prefix)
            assert re.fullmatch(rule[1], name), (resource["Type"], name)
            named += prefix in name
    assert named > 20
    check("Prefix", prefix)
