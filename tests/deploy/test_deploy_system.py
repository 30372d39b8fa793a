"""The acceptance test of deploy/: an AWS from nothing to an answered photo and back to nothing, by the commands."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_sqs.testing.aws import LISTENING
from faceapp.local import compute
from faceapp.local.processes import Service, Services
from faceapp.operations.client import Client
from faceapp.stack.data_tier import STACK_TAG, TEMPLATE_TAG
from tests.support.aws import session as aws_session
from tests.support.services import aws_environ, free_ports, part_environ, wait_until

pytestmark = pytest.mark.system

PREFIX = "accept"
IMAGE = "ami-12c6146b"
PROFILE = ["--image", IMAGE, "--policy", "depth", "--max-instances", "2", "--ship-logs", "yes"]
# A worker that stops waits for the long poll in flight.
SETTINGS = ["--set", "FACEAPP_QUEUE_WAIT_S=2"]


@contextmanager
def embedded_aws(folder: Path) -> Iterator[str]:
    """One of its own, so that everything on it is this test's."""
    with Services(folder, part_environ()) as services:
        server = services.start("embedded AWS", [sys.executable, "-m", "faceapp.local.aws", "--port", "0"])
        services.wait_for(
            lambda: LISTENING in server.log_tail(), timeout_s=240, what="The embedded AWS does not listen"
        )
        yield server.log_tail().partition(LISTENING)[2].split()[0]


def deploy(endpoint: str, command: str, *options: str) -> str:
    """Type it, with no AWS in the environment."""
    line = [sys.executable, "-m", "faceapp", "deploy", command, "--endpoint-url", endpoint, "--prefix", PREFIX]
    done = subprocess.run(
        [*line, *options], capture_output=True, text=True, timeout=240, env=part_environ(), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def everything(endpoint: str) -> dict[str, list[str]]:
    """All that is on this AWS, service by service."""
    session: Any = aws_session()

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=endpoint)

    ec2, iam, sns = client("ec2"), client("iam"), client("sns")
    instances = [
        each
        for reservation in ec2.describe_instances()["Reservations"]
        for each in reservation["Instances"]
        if each["State"]["Name"] != "terminated"
    ]
    found: dict[str, list[str]] = {
        "buckets": [each["Name"] for each in client("s3").list_buckets()["Buckets"]],
        "queues": client("sqs").list_queues().get("QueueUrls", []),
        "topics": [each["TopicArn"] for each in sns.list_topics()["Topics"]],
        "subscriptions": [each["Endpoint"] for each in sns.list_subscriptions()["Subscriptions"]],
        "instances": [each["InstanceId"] for each in instances],
        "volumes": [each["VolumeId"] for each in ec2.describe_volumes()["Volumes"]],
        "addresses": [each["PublicIp"] for each in ec2.describe_addresses()["Addresses"]],
        "launch templates": [each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]],
        "security groups": [each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]],
        "images": [each["ImageId"] for each in ec2.describe_images(Owners=["self"])["Images"]],
        "roles": [each["RoleName"] for each in iam.list_roles()["Roles"]],
        "profiles": [each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]],
        "policies": [each["PolicyName"] for each in iam.list_policies(Scope="Local")["Policies"]],
        "log groups": [each["logGroupName"] for each in client("logs").describe_log_groups()["logGroups"]],
        "alarms": [each["AlarmName"] for each in client("cloudwatch").describe_alarms()["MetricAlarms"]],
        "stacks": [each["StackName"] for each in client("cloudformation").describe_stacks()["Stacks"]],
    }
    return {kind: sorted(each) for kind, each in found.items()}


def settings_of_the_web_instance(endpoint: str) -> dict[str, str]:
    """What cloud-init would write to /etc/faceapp/faceapp.env."""
    session: Any = aws_session()
    answer = session.client("ec2", endpoint_url=endpoint).describe_launch_template_versions(
        LaunchTemplateName=f"{PREFIX}-web", Versions=["$Latest"]
    )
    user_data = base64.b64decode(answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"])
    files = {each["path"]: each["content"] for each in yaml.safe_load(user_data)["write_files"]}
    lines = [line.partition("=") for line in files["/etc/faceapp/faceapp.env"].split()]
    return {name: value for name, _, value in lines}


def workers(endpoint: str) -> list[dict[str, Any]]:
    """The app tier's instances that run."""
    session: Any = aws_session()
    filters = [
        {"Name": f"tag:{STACK_TAG}", "Values": [PREFIX]},
        {"Name": "tag:Name", "Values": ["app-tier-instance-*"]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    found = session.client("ec2", endpoint_url=endpoint).describe_instances(Filters=filters)["Reservations"]
    return [each for reservation in found for each in reservation["Instances"]]


def test_from_nothing_to_an_answer_and_back_to_nothing(samples: dict[str, Path], tmp_path: Path) -> None:
    with embedded_aws(tmp_path / "aws") as endpoint:
        before = everything(endpoint)
        said = deploy(endpoint, "apply", "--yes", *PROFILE, *SETTINGS)
        assert f"The stack {PREFIX} is as planned." in said
        assert "Nothing to change." in deploy(endpoint, "plan", *PROFILE, *SETTINGS)

        own = settings_of_the_web_instance(endpoint)
        assert own["FACEAPP_PREFIX"] == PREFIX
        assert own["FACEAPP_SCALER_POLICY"] == "depth"
        # Who asks from elsewhere needs a key.
        assert own["FACEAPP_WEB_AUTH"] == "always"
        ports = dict(zip(("WEB", "SCALER", "FLOWER"), free_ports(3), strict=True))
        here = {f"FACEAPP_{name}_PORT": str(port) for name, port in ports.items()}
        boots = {"FACEAPP_LOCAL_BOOT_MIN_S": "0", "FACEAPP_LOCAL_BOOT_MAX_S": "0.5"}
        environ = part_environ(**{**own, **aws_environ(endpoint), **here, **boots})
        with Services(tmp_path / "logs", environ) as services:
            host = start(services, "compute host", "faceapp.local.compute", "--logs", str(tmp_path / "logs"))
            instance = [start(services, name, "faceapp", name) for name in ("web", "scaler", "flower")]
            scaler = instance[1]
            client = Client(f"http://127.0.0.1:{ports['WEB']}")
            services.wait_for(client.ready, timeout_s=240, what="The web tier is not ready")
            services.wait_for(lambda: compute.READY in host.log_tail(), timeout_s=240, what="The host is not ready")
            assert workers(endpoint) == []
            client.enrol("obama", [samples["obama.jpg"]])

            def is_caught_running() -> bool:
                """T4: the scaler stops an instance seconds after its last photo; one that is halted stops none."""
                assert client.recognise(samples["obama3.jpg"]) == "obama3:obama"
                scaler.process.send_signal(signal.SIGSTOP)
                if workers(endpoint):
                    return True
                scaler.process.send_signal(signal.SIGCONT)
                return False

            wait_until(is_caught_running, what="an instance that stays")
            [worker, *_] = workers(endpoint)
            assert worker["ImageId"] == IMAGE
            assert {TEMPLATE_TAG: "1"}.items() <= {each["Key"]: each["Value"] for each in worker["Tags"]}.items()

            name = next(each["Value"] for each in worker["Tags"] if each["Key"] == "Name")
            assert f"{name}, running" in deploy(endpoint, "status")
            # As when destroy terminates the web-instance, before anything else: with no time to tidy up.
            for service in instance:
                os.killpg(service.process.pid, signal.SIGKILL)
            wait_until(lambda: not any(each.running for each in instance))
            # EC2 calls an instance terminated when nothing of it runs any more, the embedded one at once.
            services.stop()
        assert f"Nothing of {PREFIX} is left" in deploy(endpoint, "destroy", "--yes", "--with-gallery")
        assert everything(endpoint) == before
        assert "There is nothing of" in deploy(endpoint, "destroy", "--yes")


def start(services: Services, name: str, *command: str) -> Service:
    return services.start(name, [sys.executable, "-m", *command])
