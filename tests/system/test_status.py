"""The system at a glance, with a real worker; and which AWS the operator's commands ask."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from celery_sqs import status
from celery_sqs.queues.counts import Queue
from celery_sqs.scaler.machine import DRAINING, READY
from celery_sqs.scaler.status import Status as ScalerStatus
from celery_sqs.scaler.status_server import StatusServer
from celery_sqs.status import Part, Worker
from faceapp import broker, scaler, tasks
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.operations.status import Instance, Status, ask
from faceapp.stack import data_tier as deployment
from tests.integration.test_cli import faceapp
from tests.support.aws import KEY, plain_client
from tests.support.services import PATIENCE_S, aws_environ, celery_worker, environ, wait_until

IMAGE = "ami-12c6146b"
NOBODY = 1
"""A port that nobody listens on."""


@pytest.fixture(scope="module")
def deployed(aws_endpoint: str) -> Settings:
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}", scaler_port=NOBODY)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        deployment.apply(settings)
        ec2 = plain_client("ec2", aws_endpoint)
        naming = deployment.naming(settings.prefix)
        later_s = str(int(time.time()) + 3600)
        for name, mark in (("app-tier-instance-10", READY), ("app-tier-instance-9", DRAINING), ("web-instance", "")):
            tags = {
                "Name": name,
                deployment.STACK_TAG: settings.prefix,
                **({naming.tag(mark): later_s} if mark else {}),
            }
            tags_given = [{"Key": key, "Value": value} for key, value in tags.items()]
            ec2.run_instances(
                ImageId=IMAGE,
                InstanceType="c7a.medium",
                MinCount=1,
                MaxCount=1,
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags_given}],
            )
    return settings


@pytest.fixture(scope="module")
def worker(deployed: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    log = tmp_path_factory.mktemp("status") / "log"
    options = ("--concurrency", "2", "--hostname", "celery@app-tier-instance-10")
    with celery_worker("tests.support.failing", log, environ(aws_endpoint, deployed), *options):
        yield


def glance(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`faceapp status` once every part has answered: on a busy machine one may take longer than the command waits."""
    done: list[subprocess.CompletedProcess[str]] = []

    def is_whole() -> bool:
        done.append(faceapp("status", *options, **environ))
        said = " ".join(done[-1].stdout.split())
        return "not answer within" not in said and "its worker does not answer" not in said

    wait_until(is_whole, what="an answer of every part")
    return done[-1]


def _status_server(settings: Settings) -> StatusServer:
    on = scaler.options(replace(settings, scaler_port=0))
    return StatusServer(on, ScalerStatus(on, aws_of(settings)))


@pytest.mark.usefixtures("worker", "aws")
def test_everything_is_seen_at_once(deployed: Settings, aws_endpoint: str) -> None:
    server = _status_server(deployed)
    server.start()
    try:
        done = glance("--json", **environ(aws_endpoint, deployed, FACEAPP_SCALER_PORT=str(server.port)))
    finally:
        server.stop()

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["prefix"], found["healthy"], found["problems"]) == (deployed.prefix, True, [])
    queues = {each["kind"]: each for each in found["queues"]["value"]}
    assert queues["requests"]["name"] == deployed.request_queue
    assert queues.keys() == {"requests", "responses", "dead letters"}
    instances = [(each["name"], each["phase"], each["type"]) for each in found["instances"]["value"]]
    assert instances == [
        ("web-instance", "running", "c7a.medium"),
        ("app-tier-instance-9", "draining", "c7a.medium"),
        ("app-tier-instance-10", "ready", "c7a.medium"),
    ]
    (answered,) = found["workers"]["value"]
    assert (answered["name"], answered["processes"], answered["active"]) == ("celery@app-tier-instance-10", 2, 0)
    assert found["people"] == {"value": 0, "trouble": ""}
    assert (found["scaler"]["trouble"], found["scaler"]["value"]["leader"]) == ("", False)


@pytest.mark.usefixtures("worker", "aws")
def test_a_scaler_that_should_be_here_and_does_not_answer_is_a_problem(deployed: Settings, aws_endpoint: str) -> None:
    """It was a line among others, above "All is well."."""
    done = glance("--json", **environ(aws_endpoint, deployed, FACEAPP_SCALER_PORT=str(NOBODY)))
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["healthy"], found["scaler_expected"], found["scaler"]["value"]) == (False, True, None)
    [problem] = found["problems"]
    assert problem == found["scaler"]["trouble"]
    assert problem.startswith(f"The scaler does not answer at 127.0.0.1:{NOBODY}")


@pytest.mark.usefixtures("aws")
def test_waiting_dead_letters_are_said_and_fail_the_command(deployed: Settings, aws_endpoint: str) -> None:
    sqs = plain_client("sqs", aws_endpoint)
    url = sqs.get_queue_url(QueueName=deployed.dead_letter_queue)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="rubbish")
    try:
        done = glance(**environ(aws_endpoint, deployed, FACEAPP_SCALER_PORT=str(NOBODY)))
    finally:
        sqs.purge_queue(QueueUrl=url)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == f"{deployed.prefix} on the AWS at {aws_endpoint} (AWS_ENDPOINT_URL), {lines[0][-8:]}"
    assert "! 1 dead letters wait: 'faceapp dead-letters list' says why." in lines
    (line,) = [each for each in lines if deployed.dead_letter_queue in each]
    assert line.split()[-3:] == ["1", "0", "0"]
    assert [each for each in lines if "app-tier-instance-9 " in each]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout


@pytest.mark.usefixtures("aws")
def test_a_part_that_does_not_answer_leaves_the_others(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{NOBODY}")
    monkeypatch.setattr(status, "ANSWERS_WITHIN_S", PATIENCE_S)
    plain_client("s3", os.environ["AWS_ENDPOINT_URL"]).delete_bucket(Bucket=stack.gallery_bucket)
    nobody = replace(stack, scaler_port=NOBODY)
    app = broker.create_app(nobody)
    found = ask(nobody, app, aws="here")
    app.close()
    assert found.instances.trouble.startswith("EC2 does not answer: Could not connect")
    assert found.people.trouble.startswith(f"The bucket {stack.gallery_bucket} refused")
    assert [each.name for each in found.queues.value or ()] == [
        stack.request_queue,
        stack.dead_letter_queue,
        stack.response_queue,
    ]
    assert found.problems == (found.instances.trouble, found.people.trouble, found.scaler.trouble)
    assert not found.healthy


def test_requests_that_nobody_works_on_and_silent_workers_are_problems() -> None:
    def status(*workers: Worker, age_s: float = 0) -> Status:
        queue = Queue(name="q", kind="requests", visible=2, in_flight=0, delayed=1)
        name = "app-tier-instance-1"
        ready = Instance(id="i", name=name, state="running", phase="ready", type="t", age_s=age_s)
        return Status(
            time_s=0,
            prefix="p",
            aws="here",
            queues=Part(value=(queue,)),
            instances=Part(value=(ready,)),
            workers=Part(value=workers),
            scaler=Part(trouble="not there"),
            people=Part(value=0),
        )

    worker = Worker(name="celery@app-tier-instance-1", processes=1, active=0, uptime_s=1)
    stranger = Worker(name="celery@elsewhere", processes=1, active=0, uptime_s=1)
    assert status().problems == ("3 requests wait, and there is neither a worker nor a scaler.",)
    assert status(worker, age_s=900).healthy
    assert status(stranger).healthy
    assert status(stranger, age_s=900).problems == ("app-tier-instance-1 is ready, but its worker does not answer.",)


@pytest.mark.usefixtures("aws")
def test_a_stack_that_is_not_there_is_a_line_each_and_fails(aws_endpoint: str) -> None:
    done = glance(**environ(aws_endpoint, Settings(prefix="nobodys")))
    assert done.returncode == 1
    assert "The queue nobodys-req-queue does not exist: deploy the stack first" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("aws")
def test_watching_goes_on_until_it_is_stopped(deployed: Settings, aws_endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "faceapp", "status", "--json", "--watch"],
            stdout=file,
            env=environ(aws_endpoint, deployed),
        )
        try:
            wait_until(lambda: output.read_bytes().count(b"\n") >= 2, timeout_s=240, what="a second look")
        finally:
            process.terminate()
            process.wait(240)
    assert all(json.loads(line)["prefix"] == deployed.prefix for line in output.read_text().splitlines())


class TestWhichAws:
    """`faceapp dead-letters list` from another shell: no AWS variables unless a test sets some."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> dict[str, str]:
        """A user who has nothing set up, on a machine that is not EC2's."""
        return {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}

    @pytest.fixture
    def account(self, home: dict[str, str]) -> dict[str, str]:
        """A user with credentials of a real account in ~/.aws."""
        folder = Path(home["HOME"]) / ".aws"
        folder.mkdir()
        (folder / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        return home

    @pytest.fixture
    def here(self, deployed: Settings, aws_endpoint: str) -> dict[str, str]:
        """Where `faceapp up` is running."""
        port = str(urlsplit(aws_endpoint).port)
        return {"FACEAPP_AWS_PORT": port, "FACEAPP_PREFIX": deployed.prefix, "FACEAPP_LOCAL_KEY": KEY}

    def test_without_variables_it_is_the_embedded_one(self, home: dict[str, str], here: dict[str, str]) -> None:
        for options in ((), ("--local",)):
            done = faceapp("dead-letters", "list", *options, **home, **here)
            assert done.returncode == 0, done.stderr
            assert "No dead letters (the embedded AWS of 'faceapp up'" in done.stdout

    def test_a_dry_run_of_the_scaler_asks_it_too(self, account: dict[str, str], here: dict[str, str]) -> None:
        done = faceapp("scaler", "--dry-run", "--local", **{**account, **here, "FACEAPP_PREFIX": "nobody"})
        assert done.returncode == 1
        assert "A dry run on the embedded AWS of 'faceapp up'" in done.stderr
        assert "The queue nobody-req-queue cannot be asked" in done.stderr
        assert "say which is meant" in faceapp("scaler", "--dry-run", **account, **here).stderr
        assert "go with --dry-run" in faceapp("scaler", "--local", **account, **here).stderr

    def test_with_an_account_as_well_it_must_be_said(self, account: dict[str, str], here: dict[str, str]) -> None:
        done = faceapp("dead-letters", "purge", "--all", "--yes", **account, **here)
        assert (done.returncode, done.stdout) == (2, "")
        assert "say which is meant with --local or --aws" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        done = faceapp("dead-letters", "list", "--local", **account, **here)
        assert "No dead letters (the embedded AWS of 'faceapp up'" in done.stdout

    def test_with_neither_it_says_what_to_set(self, home: dict[str, str]) -> None:
        done = faceapp("dead-letters", "list", **home, FACEAPP_AWS_PORT=str(NOBODY))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(
            "Error: There is no AWS to ask: no 'faceapp up' answers at http://127.0.0.1:1, and"
        )
        assert len(done.stderr.splitlines()) == 1

    def test_local_never_asks_an_account(self, account: dict[str, str]) -> None:
        done = faceapp("dead-letters", "list", "--local", **account, FACEAPP_AWS_PORT=str(NOBODY))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            "Error: No embedded AWS of yours answers at http://127.0.0.1:1: is 'faceapp up' running"
        )

    def test_what_only_listens_on_the_port_is_not_taken_for_it(self, home: dict[str, str]) -> None:
        class Other(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"[]")

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
            threading.Thread(target=server.serve_forever).start()
            done = faceapp("dead-letters", "list", **home, FACEAPP_AWS_PORT=str(server.server_port))
            server.shutdown()
        assert done.returncode == 2
        assert "There is no AWS to ask" in done.stderr


def test_a_part_that_takes_minutes_is_not_waited_for(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an AWS that takes connections and says nothing."""
    late = threading.Event()
    monkeypatch.setattr(status, "ANSWERS_WITHIN_S", 0.1)
    monkeypatch.setattr(status, "workers", lambda *_: late.wait(PATIENCE_S) and ())
    try:
        found = ask(stack, tasks.app, aws="nowhere")
        assert found.workers.trouble == "The workers do not answer within 0.1 s."
        assert not found.healthy
    finally:
        late.set()


def test_a_scaler_that_says_nothing_is_waited_for_beside_the_others(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked before the time of the others began to run, so that its own came on top."""
    monkeypatch.setattr(status, "ANSWERS_WITHIN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = ask(replace(stack, scaler_port=silent.getsockname()[1]), tasks.app, aws="nowhere")
    assert found.scaler.trouble == "The scaler does not answer within 0.1 s."


@pytest.mark.parametrize("odd", [{"AWS_PROFILE": "nope"}, {"AWS_ENDPOINT_URL": "nonsense"}])
@pytest.mark.parametrize("command", [["status"], ["dead-letters", "list"]])
def test_an_aws_setup_that_cannot_be_used_is_said(
    stack: Settings, aws_endpoint: str, odd: dict[str, str], command: list[str]
) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "faceapp", *command],
        env=environ(aws_endpoint, stack, **odd),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 1
    assert "AWS cannot be asked" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
