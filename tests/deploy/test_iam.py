"""The roles of deploy/stack.yaml and the AWS calls of the services: each is allowed, each permission is used.

A whole system runs once, with an access key of its own for each service: stack, web tier, scaler, Flower, compute host
and workers. The embedded AWS writes down who asked for what, and an evaluator of IAM's rules (tests/support/iam.py)
says what the roles would have answered. The policies are those that CloudFormation made, with every name filled in.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import urllib3
import yaml

from celery_sqs.testing.aws import LISTENING
from celery_sqs.transport.fanout import topic_name
from faceapp.config import Settings
from faceapp.config.aws import USED_TAG
from faceapp.local import compute
from faceapp.local.up import IMAGE
from faceapp.operations.client import Client
from faceapp.people.formats import Snapshot, Vector, pack_snapshot, pack_vector
from faceapp.recognition import Recogniser
from faceapp.scaler import LEASE_KEY
from faceapp.security.keys import OBJECT, Keys
from faceapp.stack import data_tier as deployment
from faceapp.storage import Storage
from faceapp.work.forgetting import ORDERS
from tests.support.aws import BEARER
from tests.support.iam import ACCOUNT, Account, Need, Statement, allows, arn, like, needs
from tests.support.services import PATIENCE_S, REPOSITORY, environ, free_port, users_environ, wait_until
from tests.support.web import plain, web_server

pytestmark = pytest.mark.system

ROLES = ("worker", "web", "scaler", "flower")
WHO = (*ROLES, "host", "operator")
HOST = """
import os, sys
from types import SimpleNamespace
from faceapp.config import aws
from faceapp.local import compute

# The host asks EC2 which instances there are, as itself; what it forks is the workers'.
os.environ["AWS_ACCESS_KEY_ID"] = "host"
own = aws.client("ec2")
os.environ["AWS_ACCESS_KEY_ID"] = "worker"
compute.aws = SimpleNamespace(client=lambda *_, **__: own, ONCE=aws.ONCE)
compute.main(sys.argv[1:])
"""
SELDOM = """
from faceapp import broker
from celery_sqs.queues.janitor import Suspects, sweep
from faceapp.config import settings
from faceapp.work.forgetting import LostOrders
from celery_sqs.scaler.alarms import Alarms
from faceapp import scaler

# What the scaler does every ten minutes, and when something is wrong.
print(sweep(broker.options(settings()), Suspects(apart_s=0)))
print(LostOrders(settings(), after_s=0).send_again())
Alarms(scaler.options(settings()), broker.options(settings()).aws).tell(dead_boots=1, spent_s=0)
"""
LOST = """
from faceapp import tasks
from faceapp.config import settings

# T3: of a photo that is gone before a worker comes to it, however early that boots.
tasks.recognize.apply_async(args=["f" * 32], task_id="f" * 32, ignore_result=True, reply_to=settings().response_queue)
"""
SEEDED = 210
"""Photos of a gallery of which a worker writes a snapshot."""

UNSEEN = {
    ("worker", "TidyGallery", "gallery-bucket/vectors/*"): "only when somebody forgets a person at that moment",
    ("worker", "TidyGallery", "gallery-bucket/photos/*"): "only when an enrolment is taken back",
    ("worker", "TakeRequests", "sqs:ChangeMessageVisibility"): "only when a worker drains that holds more than it does",
    ("web", "TakeAnswers", "sqs:ChangeMessageVisibility"): "only when two web servers without a name read one queue",
    ("web", "BecomeScalerOrFlower", "sts:AssumeRole"): "each service has keys of its own here, and no metadata service",
    ("web", "BecomeScalerOrFlower", "scaler"): "the same",
    ("web", "BecomeScalerOrFlower", "flower"): "the same",
    ("web", "Forget", "gallery-bucket/incoming/*"): "only when SQS refuses the task",
    ("flower", "OwnEventQueue", "sqs:CreateQueue"): "a killed predecessor's is taken over here",
    ("scaler", "RequestSpot", "ec2:RunInstances"): "on-demand instances here",
    ("scaler", "RequestSpot", "spot-instances-request/*"): "on-demand instances here",
    ("scaler", "StartAndStopAppTier", "ec2:TerminateInstances"): "for spot instances and those of an old template",
}
"""What this run cannot show: an action or a resource of a role's statement, and why."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a whole run asked for, and the roles."""

    account: Account
    calls: list[dict[str, Any]]
    roles: Mapping[str, list[Statement]]
    trust: Mapping[str, Any]

    def needs(self, role: str) -> list[Need]:
        return [need for call in self.calls if call["who"] == role for need in needs(call, self.account)]


@contextmanager
def process(log: Path, env: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Python's that is gone when the block ends."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(240)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


class Run:
    """The whole system, once through everything that it does."""

    def __init__(self, folder: Path, photo: Path) -> None:
        self.folder, self.photo = folder, photo
        self.settings = Settings(
            prefix=f"i{uuid.uuid4().hex[:8]}", queue_wait_s=2, worker_image=IMAGE, scaler_max_instances=1
        )
        self.endpoint = ""
        self.flower_port, self.status_port = free_port(), free_port()

    def aws(self, service: str) -> Any:
        """A client of the operator's."""
        session = boto3.session.Session("operator", "x", region_name="us-east-1")
        return session.client(service, endpoint_url=self.endpoint)  # type: ignore[call-overload]

    def env(self, who: str, **more: str) -> dict[str, str]:
        scaler = {"POLICY": "depth", "MAX_INSTANCES": "1", "TICK_S": "0.5"}
        faceapp = {f"FACEAPP_SCALER_{name}": value for name, value in scaler.items()}
        # Forgetting ends that much later.
        faceapp["FACEAPP_TASK_TIME_LIMIT_S"] = "20"
        boot = {"FACEAPP_LOCAL_BOOT_MIN_S": "0", "FACEAPP_LOCAL_BOOT_MAX_S": "0"}
        return environ(self.endpoint, self.settings, **(faceapp | boot | {"AWS_ACCESS_KEY_ID": who} | more))

    def go(self) -> Recorded:
        record = self.folder / "record"
        with ExitStack() as running:
            log = self.folder / "aws"
            aws = running.enter_context(
                process(log, users_environ(), "-m", "tests.support.recorded_aws", str(record), *WHO)
            )
            wait_until(lambda: aws.poll() is not None or LISTENING in log.read_text(), timeout_s=240, what="AWS")
            self.endpoint = log.read_text().partition(LISTENING)[2].split()[0]
            deployment.apply(self.settings, client=self.aws("cloudformation"))
            self.seed()
            self.use()
            roles, trust = self.roles()
            account = self.account()
        calls = [json.loads(line) for line in record.read_text().splitlines()]
        return Recorded(account=account, calls=calls, roles=roles, trust=trust)

    def seed(self) -> None:
        """A gallery that is worth a snapshot, with one that names somebody who was forgotten since; and leftovers."""
        s3, sqs = self.aws("s3"), self.aws("sqs")
        recogniser = Recogniser(precision="fp32", device="cpu", max_pixels=50_000_000, max_side_px=16_000)
        rows = np.zeros((2, recogniser.dimension), np.float32)
        vector = pack_vector(Vector(model=recogniser.model, rows=rows + 9))
        for number in range(SEEDED):
            s3.put_object(Bucket=self.settings.gallery_bucket, Key=f"vectors/old/{number:024x}", Body=vector)
        stale = Snapshot(model=recogniser.model, keys=["vectors/gone/0"], etags=["x"], rows=rows[:, None, :])
        s3.put_object(Bucket=self.settings.gallery_bucket, Key="snapshot", Body=pack_snapshot(stale))
        former = json.dumps({"holder": "", "token": 7, "memory": {}})
        s3.put_object(Bucket=self.settings.out_bucket, Key=LEASE_KEY, Body=former.encode())
        for name in (
            "celery_app-tier-instance-9-celery-pidbox",
            "reply_0123-reply-celery-pidbox",
            "resp-queue-gone-0",
            # Of a predecessor that was killed: taken over.
            "celery_app-tier-instance-1-celery-pidbox",
            f"celeryev-flower-{socket.gethostname().partition('.')[0][:20]}-{self.flower_port}",
        ):
            sqs.create_queue(QueueName=f"{self.settings.prefix}-{name}", tags={USED_TAG: "1"})

    def seldom(self) -> None:
        """The scaler's janitor, after somebody was killed in the middle, and its alarms."""
        # Only now: the embedded SNS publishes nothing to a topic one of whose listeners is gone.
        sns = self.aws("sns")
        gone = {"celeryev": "celeryev-flower-gone-1", "celery.pidbox": "celery_app-tier-instance-8-celery-pidbox"}
        for exchange, queue in gone.items():
            sns.subscribe(
                TopicArn=arn("sns", topic_name(self.settings.prefix, exchange)),
                Protocol="sqs",
                Endpoint=arn("sqs", f"{self.settings.prefix}-{queue}"),
            )
        # The web tier ended before it sent the message.
        self.aws("s3").put_object(
            Bucket=self.settings.gallery_bucket, Key=f"{ORDERS}{'e' * 32}", Body=b'{"name": "nobody"}'
        )
        env = self.env("scaler", FACEAPP_SCALER_CLOUDWATCH="yes")
        with process(self.folder / "seldom", env, "-c", SELDOM) as seldom:
            assert seldom.wait(240) == 0, (self.folder / "seldom").read_text()

    def use(self) -> None:
        with ExitStack() as running:
            start = running.enter_context
            host = start(process(self.folder / "host", self.env("worker"), "-c", HOST, "--logs", str(self.folder)))
            env = self.env("scaler", FACEAPP_SCALER_PORT=str(self.status_port))
            scaler = start(process(self.folder / "scaler", env, "-m", "faceapp", "scaler"))
            env = self.env("flower", FACEAPP_FLOWER_PORT=str(self.flower_port))
            start(process(self.folder / "flower", env, "-m", "faceapp", "flower"))
            first, _ = start(self.web("web"))
            self.wait_for_log("host", compute.READY)
            self.visit(Client(first))
            self.show_keys(first)
            for _ in range(2):  # the second takes over the first's queue
                with self.web("b", FACEAPP_WEB_NAME="i-0b") as (second, _):
                    assert Client(second).recognise(self.photo) == f"{self.photo.stem}:obama"
            self.scale_down_and_up(Client(first))
            self.seldom()
            self.refuse(first)
            scaler.send_signal(signal.SIGTERM)
            scaler.wait(240)
            host.send_signal(signal.SIGTERM)
            host.wait(240)

    def web(self, log: str, **more: str) -> AbstractContextManager[tuple[str, Any]]:
        return web_server(self.endpoint, self.settings, self.folder / log, AWS_ACCESS_KEY_ID="web", **more)

    def wait_for_log(self, name: str, line: str) -> None:
        log = self.folder / name
        wait_until(lambda: log.exists() and re.search(line, log.read_text()), timeout_s=600, what=f"{name}: {line}")

    def visit(self, web: Client) -> None:
        """What people do."""
        assert web.ready()
        web.enrol("obama", [self.photo])
        assert web.recognise(self.photo) == f"{self.photo.stem}:obama"
        assert set(web.people()) == {"obama", "old"}
        http = urllib3.PoolManager(retries=False, timeout=240, headers=BEARER)
        [photo] = http.request("GET", f"{web.url}/v1/people/obama").json()["photos"]
        shown = http.request("GET", f"{web.url}/v1/people/obama/photos/{photo['id']}")
        assert shown.status == 200
        assert http.request("GET", f"{web.url}/v1/recognitions/{'0' * 32}").status == 404
        for page in ("workers?refresh=1", "broker"):
            assert http.request("GET", f"http://127.0.0.1:{self.flower_port}/{page}").status == 200
        assert http.request("GET", f"http://127.0.0.1:{self.status_port}/metrics").status == 200

    def show_keys(self, web: str) -> None:
        """An operator makes a key, the web tier learns of it; while there is none, too."""
        http = urllib3.PoolManager(retries=False, timeout=240, headers=BEARER)

        def status(text: str) -> int:
            return int(http.request("GET", f"{web}/v1/scaler", headers={"Authorization": f"Bearer {text}"}).status)

        assert status(f"fa_00000000_{'A' * 43}") == 401
        minted = Keys(Storage(self.settings, client=self.aws("s3"))).create(name="x", role="recognise")
        wait_until(lambda: status(minted.text) == 200, what="the key in the web tier")

    def erase(self, web: str) -> None:
        """Somebody takes back a photo, which is recognised, or is not any more."""
        fields = {"photo": ("a.jpg", plain(), "image/jpeg")}
        http = urllib3.PoolManager(retries=False, timeout=240, headers=BEARER)
        accepted = http.request("POST", f"{web}/v1/recognitions", fields=fields).json()["recognitions"][0]
        assert http.request("DELETE", f"{web}{accepted['links']['self']}").status == 204

    def wait_until_forgotten(self) -> None:
        """The order's second sweep is done."""
        s3, bucket = self.aws("s3"), self.settings.gallery_bucket
        wait_until(
            lambda: not s3.list_objects_v2(Bucket=bucket, Prefix=ORDERS).get("Contents"),
            timeout_s=240,
            what="the end of the order",
        )

    def queue(self, name: str) -> str:
        return f"{self.endpoint}/{ACCOUNT}/{self.settings.prefix}-{name}"

    def scale_down_and_up(self, web: Client) -> None:
        """The scaler has started an instance: it stops it when there is nothing to do, and starts it again."""
        self.erase(web.url)
        web.forget("obama")
        self.wait_until_forgotten()
        self.wait_for_no_worker()
        with process(self.folder / "lost", self.env("operator"), "-c", LOST) as lost:
            assert lost.wait(PATIENCE_S) == 0, (self.folder / "lost").read_text()
        assert web.recognise(self.photo) == f"{self.photo.stem}:unknown"
        self.wait_for_no_worker()

    def wait_for_no_worker(self) -> None:
        def all_stopped() -> bool:
            log = (self.folder / "host").read_text()
            return 0 < log.count("its worker is process") == log.count("): stopped")

        wait_until(all_stopped, timeout_s=600, what="the end of every worker")

    def described(self) -> list[dict[str, Any]]:
        pages = self.aws("ec2").get_paginator("describe_instances").paginate()
        return [each for page in pages for reservation in page["Reservations"] for each in reservation["Instances"]]

    def refuse(self, web: str) -> None:
        """With no queue to send to, the web tier takes the photo back."""
        self.aws("sqs").delete_queue(QueueUrl=self.queue("req-queue"))
        fields = {"inputFile": ("a.jpg", plain(), "image/jpeg")}
        answer = urllib3.PoolManager(retries=False, timeout=240).request("POST", f"{web}/", fields=fields)
        assert answer.status == 503

    def roles(self) -> tuple[dict[str, list[Statement]], dict[str, Any]]:
        iam, found, trust = self.aws("iam"), {}, {}
        for role in (*ROLES, "web-tier"):
            name = f"{self.settings.prefix}-{role}"
            names = iam.list_role_policies(RoleName=name)["PolicyNames"]
            policies = [iam.get_role_policy(RoleName=name, PolicyName=each)["PolicyDocument"] for each in names]
            # moto shows those of AWS::IAM::Policy as Python writes them, which is YAML, too.
            policies = [yaml.safe_load(each) if isinstance(each, str) else each for each in policies]
            assert not iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
            found[role] = [Statement.parse(each) for policy in policies for each in policy["Statement"]]
            trust[role] = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
        return found, trust

    def account(self) -> Account:
        versions = self.aws("ec2").describe_launch_template_versions(
            LaunchTemplateName=f"{self.settings.prefix}-worker", Versions=["$Latest"]
        )
        return Account(
            prefix=self.settings.prefix,
            launch_template=versions["LaunchTemplateVersions"][0],
            worker_role=f"arn:aws:iam::{ACCOUNT}:role/{self.settings.prefix}-worker",
            tags={each["InstanceId"]: {tag["Key"]: tag["Value"] for tag in each["Tags"]} for each in self.described()},
        )


@pytest.fixture(scope="module")
def recorded(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Run(tmp_path_factory.mktemp("iam"), samples["obama.jpg"]).go()


@pytest.mark.parametrize("role", ROLES)
def test_each_call_of_a_whole_run_is_allowed(recorded: Recorded, role: str) -> None:
    asked = recorded.needs(role)
    assert len(asked) > 20
    refused = {(each.action, each.resource) for each in asked if not allows(recorded.roles[role], each)}
    assert not refused


@pytest.mark.parametrize("role", ROLES)
def test_each_permission_is_used(recorded: Recorded, role: str) -> None:
    asked = {(each.action, each.resource, json.dumps(each.context)): each for each in recorded.needs(role)}
    prefix = f"{recorded.account.prefix}-"
    known, unused = set(), set()
    for statement in recorded.roles[role]:
        used = [each for each in asked.values() if statement.matches(each)]
        for action in statement.actions:
            known.add(name := (role, statement.sid, action))
            if action not in {each.action for each in used}:
                unused.add(name)
        for resource in statement.resources:
            known.add(name := (role, statement.sid, resource.partition(prefix)[2] or resource.rpartition(":")[2]))
            if not any(like(each.resource, resource) for each in used):
                unused.add(name)
    assert unused - UNSEEN.keys() == set()
    assert {each for each in UNSEEN if each[0] == role} - known == set()


@pytest.mark.parametrize("role", ROLES)
def test_no_service_makes_or_takes_away_keys(recorded: Recorded, role: str) -> None:
    bucket = f"arn:aws:s3:::{recorded.account.prefix}-gallery-bucket"
    may = {
        action
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
        if allows(recorded.roles[role], Need(action=action, resource=f"{bucket}/{OBJECT}", context={}))
    }
    assert may == ({"s3:GetObject"} if role == "web" else set())


def test_the_web_tier_beside_a_load_balancer_may_no_more_than_the_web_instance(recorded: Recorded) -> None:
    more = [each for each in recorded.roles["web"] if each not in recorded.roles["web-tier"]]
    assert [each.sid for each in more] == ["BecomeScalerOrFlower"]
    assert set(recorded.roles["web-tier"]) < set(recorded.roles["web"])


@pytest.mark.parametrize("role", [*ROLES, "web-tier"])
def test_nobody_may_do_everything(recorded: Recorded, role: str) -> None:
    for each in recorded.roles[role]:
        assert not any("*" in action for action in each.actions), each
        assert not any(action.startswith("iam:") for action in each.actions if action != "iam:PassRole"), each
        if each.effect == "Allow" and "*" in each.resources:
            assert set(each.actions) <= {
                "ec2:DescribeInstances",
                "ec2:DescribeLaunchTemplateVersions",
                "sqs:ListQueues",
                "sns:Unsubscribe",
                "cloudwatch:PutMetricData",
            }
    assert "*" not in json.dumps(recorded.trust[role])


def test_roles_are_given_to_those_whom_they_are_for(recorded: Recorded) -> None:
    for role in ("worker", "web", "web-tier"):
        [statement] = recorded.trust[role]
        assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}
    for role in ("scaler", "flower"):
        [statement] = recorded.trust[role]
        assert statement["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:role/{recorded.account.prefix}-web"}


def test_what_each_must_not_do(recorded: Recorded) -> None:
    prefix, template = recorded.account.prefix, recorded.account.launch_template["LaunchTemplateId"]
    bucket = f"arn:aws:s3:::{prefix}-"
    ours = {"aws:ResourceTag/faceapp:stack": [prefix], "aws:ResourceTag/faceapp:tier": ["app"]}
    instance, used = arn("ec2", "instance/i-1"), {"ec2:LaunchTemplate": [arn("ec2", f"launch-template/{template}")]}
    tags = {
        "aws:RequestTag/faceapp:stack": [prefix],
        "aws:RequestTag/faceapp:tier": ["app"],
        "ec2:InstanceType": [recorded.account.launch_template["LaunchTemplateData"]["InstanceType"]],
    }
    neighbour = f"{prefix}-two"
    passing = {"iam:PassedToService": ["ec2.amazonaws.com"]}
    allowed = [
        ("scaler", "ec2:StartInstances", instance, ours),
        ("scaler", "ec2:TerminateInstances", instance, ours),
        ("scaler", "ec2:RunInstances", instance, used | tags),
        ("scaler", "ec2:RunInstances", arn("ec2", "spot-instances-request/sir-1"), {}),
        ("scaler", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{prefix}-worker", passing),
        ("worker", "s3:GetObject", f"{bucket}gallery-bucket/vectors/a/1", {}),
        ("worker", "s3:DeleteObject", f"{bucket}gallery-bucket/vectors/a/1", {}),
        # An enrolment that fails takes back what it has put there (C7).
        ("worker", "s3:DeleteObject", f"{bucket}gallery-bucket/photos/a/1", {}),
        ("worker", "s3:DeleteObject", f"{bucket}out-bucket/1", {}),
        ("worker", "sqs:SendMessage", arn("sqs", f"{prefix}-req-queue"), {}),
        ("web", "s3:DeleteObject", f"{bucket}out-bucket/1", {}),
        ("web", "s3:DeleteObject", f"{bucket}gallery-bucket/incoming/1/1", {}),
        ("web", "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/{prefix}-scaler", {}),
    ]
    refused = [
        ("worker", "ec2:StartInstances", instance, ours),
        ("worker", "ec2:RunInstances", instance, used | tags),
        ("worker", "s3:PutObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("worker", "s3:GetObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("worker", "s3:DeleteObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("worker", "s3:PutObject", f"{bucket}gallery-bucket/forgetting/1", {}),
        ("worker", "sqs:DeleteQueue", arn("sqs", f"{prefix}-req-queue"), {}),
        ("worker", "sns:Publish", arn("sns", f"{prefix}-celery-pidbox"), {}),
        ("worker", "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/{prefix}-scaler", {}),
        ("web", "s3:GetObject", f"{bucket}gallery-bucket/vectors/a/1", {}),
        ("web", "s3:GetObject", f"{bucket}gallery-bucket/snapshot", {}),
        ("web", "s3:PutObject", f"{bucket}gallery-bucket/vectors/a/1", {}),
        ("web", "s3:PutObject", f"{bucket}out-bucket/1", {}),
        ("web", "s3:GetObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("web", "s3:PutObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("web", "s3:DeleteObject", f"{bucket}gallery-bucket/scaler/lease.json", {}),
        ("web", "s3:GetObject", f"{bucket}gallery-bucket/forgetting/1", {}),
        ("web", "sqs:ReceiveMessage", arn("sqs", f"{prefix}-req-queue"), {}),
        ("web", "sns:Publish", arn("sns", f"{prefix}-celery-pidbox"), {}),
        ("web", "ec2:StartInstances", instance, ours),
        ("scaler", "ec2:StopInstances", instance, ours | {"aws:ResourceTag/faceapp:tier": ["web"]}),
        ("scaler", "ec2:StopInstances", instance, ours | {"aws:ResourceTag/faceapp:stack": ["another"]}),
        ("scaler", "ec2:StopInstances", instance, {}),
        ("scaler", "ec2:RunInstances", instance, tags),
        # S12: another type than the stack's.
        ("scaler", "ec2:RunInstances", instance, used | tags | {"ec2:InstanceType": ["p5.48xlarge"]}),
        ("scaler", "ec2:RunInstances", instance, used),
        ("scaler", "ec2:RunInstances", f"arn:aws:ec2:us-east-1::image/{IMAGE}", {}),
        ("scaler", "ec2:CreateTags", instance, ours | {"aws:TagKeys": ["faceapp:tier"]}),
        ("scaler", "ec2:CreateTags", instance, {"aws:TagKeys": ["Name"]}),
        ("scaler", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{prefix}-web", passing),
        ("scaler", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{prefix}-worker", {}),
        ("scaler", "s3:GetObject", f"{bucket}in-bucket/1", {}),
        ("scaler", "s3:PutObject", f"{bucket}out-bucket/1", {}),
        ("scaler", "s3:PutObject", f"{bucket}out-bucket/scaler/lease.json", {}),
        ("scaler", "s3:GetObject", f"{bucket}gallery-bucket/photos/a/1", {}),
        ("scaler", "sqs:DeleteQueue", arn("sqs", f"{prefix}-req-queue"), {}),
        ("scaler", "sqs:DeleteQueue", arn("sqs", f"{prefix}-resp-queue"), {}),
        ("scaler", "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": ["AWS/SQS"]}),
        ("flower", "s3:GetObject", f"{bucket}in-bucket/1", {}),
        ("flower", "sqs:ReceiveMessage", arn("sqs", f"{prefix}-req-queue"), {}),
        ("flower", "sqs:SendMessage", arn("sqs", f"{prefix}-req-queue"), {}),
        ("flower", "ec2:DescribeInstances", "*", {}),
    ]
    # S12: nothing of a stack whose prefix begins like this one's.
    refused += [
        (role, action, arn("sqs", f"{neighbour}-{end}"), {})
        for role in ROLES
        for action in ("sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:DeleteQueue")
        for end in (
            "req-queue",
            "resp-queue",
            "resp-queue-web-1",
            "dead-letter-queue",
            "celery_app-tier-instance-1-celery-pidbox",
            "celeryev-scaler-host",
            "celeryev-flower-host-5555",
            "reply_0123456789ab-reply-celery-pidbox",
        )
    ]
    for wanted, cases in ((True, allowed), (False, refused)):
        for role, action, resource, context in cases:
            need = Need(action=action, resource=resource, context=context)
            assert allows(recorded.roles[role], need) == wanted, (role, action, resource)
