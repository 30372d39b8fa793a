"""`python -m celery_sqs scaler`: an application that is not faceapp, with names, queues and a fleet of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import celery_sqs
from celery_sqs import ConfigurationError, Options, ScalerOptions
from celery_sqs.scaler import loop
from celery_sqs.scaler.fleet.base import Fleet
from celery_sqs.scaler.machine import DRAINING, FAILED, READY, STARTED, Machine, Naming
from tests.support.aws import plain_client
from tests.support.services import PATIENCE_S, REPOSITORY, aws_environ, users_environ, wait_until

APP = """
import os
import celery, celery_sqs
app = celery.Celery("bakery")
scaler = celery_sqs.ScalerOptions(
    policy="depth", max_instances=3, tick_s=0.5, status_port=0, instance_name="oven-{n}.bakery", tag_namespace="bakery"
)
celery_sqs.configure(app, celery_sqs.Options(
    prefix=os.environ["BAKERY"], queues=("bread", "cake"), results_bucket=os.environ["BAKERY"], scaler=scaler, wait_s=1
))
"""


@dataclass(frozen=True, kw_only=True)
class Bakery:
    """An application on the embedded AWS: its name, which is its bucket's, and where its module lies."""

    name: str
    folder: Path
    env: dict[str, str]
    aws: str

    def client(self, service: str) -> Any:
        return plain_client(service, self.aws)

    def send(self, queue: str, count: int) -> None:
        sqs = self.client("sqs")
        url = sqs.create_queue(QueueName=f"{self.name}-{queue}")["QueueUrl"]
        for n in range(count):
            sqs.send_message(QueueUrl=url, MessageBody=f"{n}")

    def instances(self) -> dict[str, dict[str, str]]:
        """The tags of the instances that carry its tag, by their names."""
        filters = [{"Name": "tag:bakery:stack", "Values": [self.name]}]
        found = {}
        for reservation in self.client("ec2").describe_instances(Filters=filters)["Reservations"]:
            for each in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in each["Tags"]}
                found[tags.get("Name", each["InstanceId"])] = tags
        return found

    @contextmanager
    def scaler(self, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "celery_sqs", "scaler", "-A", "bakery", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: process.poll() is not None or b"the scaler" in log.read_bytes(), what="the scaler")
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def bakery(aws: str, tmp_path: Path) -> Bakery:
    name = f"bakery-{uuid.uuid4().hex[:8]}"
    (tmp_path / "bakery.py").write_text(APP)
    closed = APP.replace("wait_s=1", "create_queues=False") + "bread = 1\n"
    (tmp_path / "closed.py").write_text(closed)
    (tmp_path / "elsewhere.py").write_text("import celery\napp = celery.Celery(broker='redis://127.0.0.1:1/0')\n")
    env = {**users_environ(), **aws_environ(aws), "BAKERY": name, "PYTHONPATH": str(REPOSITORY)}
    found = Bakery(name=name, folder=tmp_path, env=env, aws=aws)
    found.client("s3").create_bucket(Bucket=name)
    found.client("ec2").create_launch_template(
        LaunchTemplateName=f"{name}-worker", LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.micro"}
    )
    return found


def test_several_queues_feed_one_fleet_of_its_own_names(bakery: Bakery, tmp_path: Path) -> None:
    bakery.send("bread", 1)
    bakery.send("cake", 1)
    log = tmp_path / "log"
    with bakery.scaler(log) as process:
        wait_until(lambda: {"oven-1.bakery", "oven-2.bakery"} <= set(bakery.instances()), what="two instances")
        bakery.send("cake", 9)
        wait_until(lambda: "oven-3.bakery" in bakery.instances(), what="the third")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    tags = bakery.instances()
    assert len(tags) == 3
    assert tags["oven-1.bakery"].keys() >= {"bakery:stack", "bakery:tier", "bakery:template"}
    [lease] = bakery.client("s3").list_objects_v2(Bucket=bakery.name)["Contents"]
    assert lease["Key"] == f"scaler/{bakery.name}/lease.json"


def test_a_dry_run_needs_no_launch_template_and_changes_nothing(bakery: Bakery, tmp_path: Path) -> None:
    bakery.client("ec2").delete_launch_template(LaunchTemplateName=f"{bakery.name}-worker")
    log = tmp_path / "log"
    with bakery.scaler(log, "--dry-run") as process:
        wait_until(lambda: "wanted 0" in log.read_text(), what="a tick, though nobody has sent anything yet")
        bakery.send("bread", 1)
        bakery.send("cake", 1)
        wait_until(lambda: "would create oven-1.bakery, oven-2.bakery" in log.read_text(), what="a line")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert f"There is no launch template {bakery.name}-worker." in log.read_text()
    assert bakery.instances() == {}
    assert "Contents" not in bakery.client("s3").list_objects_v2(Bucket=bakery.name)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-A", "butcher"], 2, "there is no module 'butcher' here"),
        (["-A", "bakery:ap"], 2, "there is no 'bakery:ap' here"),
        (["-A", "elsewhere"], 2, "'elsewhere' has another transport than celery_sqs"),
        (["-A", "os"], 2, "'os' has no Celery application in it"),
        ([], 2, "Missing option '-A'"),
        (["-A", "closed"], 1, "-bread cannot be asked"),
        (["-A", "closed:bread"], 2, "'closed:bread' is no Celery application"),
    ],
)
def test_the_command_refuses_with_a_sentence(bakery: Bakery, arguments: list[str], code: int, sentence: str) -> None:
    command = [sys.executable, "-m", "celery_sqs", "scaler", *arguments]
    done = subprocess.run(
        command, cwd=bakery.folder, env=bakery.env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


class Shelf:
    """A fleet that a test can see: its machines are records in this object."""

    def __init__(
        self, options: ScalerOptions, *, fence: Callable[[], int], on_error: Callable[[str, str], None]
    ) -> None:
        self.naming, self.fence = options.naming, fence
        self.machines: dict[str, Machine] = {}
        self.now_s, self.trouble, self.latest = 1_000_000.0, "", 0

    def check(self) -> None:
        pass

    def instances(self) -> Sequence[Machine]:
        return list(self.machines.values())

    def start(self, count: int) -> Sequence[str]:
        self.fence()
        numbers = range(len(self.machines) + 1, len(self.machines) + count + 1)
        for n in numbers:
            name, run_s = self.naming.name_of(n), int(self.now_s)
            tags = {STARTED: str(run_s)}
            self.machines[name] = Machine(
                id=name, name=name, number=n, state="running", run_s=run_s, age_s=0.0, tags=tags
            )
        return [self.naming.name_of(n) for n in numbers]

    def drain(self, ids: Iterable[str], *, dead_boots: int = 0) -> Sequence[str]:
        self.fence()
        mark = {FAILED: f"{int(self.now_s)} {dead_boots}"} if dead_boots else {DRAINING: str(int(self.now_s))}
        return [self._mark(each, mark) for each in ids]

    def mark_ready(self, ids: Iterable[str], *, measured: bool) -> None:
        for each in ids:
            self._mark(each, {READY: f"{int(self.now_s)}{'' if measured else ' late'}"})

    def tidy(self) -> None:
        pass

    def _mark(self, id: str, mark: dict[str, str]) -> str:
        self.machines[id] = replace(self.machines[id], tags={**self.machines[id].tags, **mark})
        return id


def test_an_application_may_have_a_fleet_of_its_own(bakery: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws_environ(bakery.aws).items():
        monkeypatch.setenv(name, value)
    fleets: list[Shelf] = []

    def make(options: ScalerOptions, *, fence: Callable[[], int], on_error: Callable[[str, str], None]) -> Fleet:
        fleets.append(Shelf(options, fence=fence, on_error=on_error))
        return fleets[0]

    app = Celery("bakery", set_as_current=False)
    scaler = ScalerOptions(policy="depth", max_instances=2, tick_s=0.2, status_port=0, fleet=make)
    celery_sqs.configure(app, Options(prefix=bakery.name, queues=("bread",), results_bucket=bakery.name, scaler=scaler))
    bakery.send("bread", 5)
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=[app], kwargs={"stop": stop})
    thread.start()
    try:
        wait_until(lambda: bool(fleets) and sorted(fleets[0].machines) == ["worker-1", "worker-2"], what="two machines")
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_instances": -1}, "max_instances is -1, and 0 is the least"),
        ({"tick_s": 0}, "tick_s is 0, and has to be more than 0"),
        ({"service_s": float("nan")}, "service_s is nan"),
        ({"slo_s": float("inf")}, "slo_s is inf"),
        ({"policy": "target"}, "no policy 'target'"),
        ({"mode": "quick"}, "no mode 'quick'"),
        ({"status_port": 99_999}, "status_port is 99999"),
        ({"metrics_prefix": "a-b"}, "it takes letters, digits and _"),
        ({"queues": "orders"}, "write ('orders',)"),
        ({"instance_name": "worker"}, "has no {n} in it, or several"),
        ({"instance_name": "{n}-{n}"}, "has no {n} in it, or several"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ScalerOptions(**options)
    assert sentence in str(raised.value)


def test_a_fleet_may_work_on_some_of_the_queues_with_all_their_steps() -> None:
    application = Options(prefix="bakery", queues=("bread", "cake"), priority_steps=(0, 5), results_bucket="any")
    found = ScalerOptions(queues=("cake",)).of(application)
    assert application.names_of(found.queues) == ("bakery-cake", "bakery-cake-5")
    with pytest.raises(ConfigurationError, match="'bakery-cake' is none of the application's: bread, cake"):
        ScalerOptions(queues=("bakery-cake",)).of(application)


def test_fleets_that_share_a_bucket_have_a_lease_each() -> None:
    application = Options(prefix="bakery", results_bucket="any")
    keys = {ScalerOptions(stack=stack).of(application).lease_key for stack in ("", "ovens", "vans")}
    assert keys == {f"scaler/{name}/lease.json" for name in ("bakery", "ovens", "vans")}


def test_without_a_bucket_or_a_name_the_scaler_says_so() -> None:
    with pytest.raises(ConfigurationError, match="set results_bucket, or the option lease_bucket"):
        ScalerOptions().of(Options(prefix="bakery"))
    with pytest.raises(ConfigurationError, match="set the option prefix"):
        ScalerOptions(lease_bucket="any").of(Options(prefix=""))


def test_a_tag_of_somebody_else_is_no_mark() -> None:
    described = {
        "InstanceId": "i-1",
        "LaunchTime": datetime.fromtimestamp(5000, UTC),
        "State": {"Name": "running"},
        "Tags": [{"Key": key, "Value": "9999"} for key in ("ready", "other:ready", "bakery:started")],
    }
    found = Naming(stack="any", namespace="bakery").machine(described, now_s=6000.0)
    assert found.tags == {"started": "9999"}
    assert not found.ready
