"""`python -m celery_sqs dead-letters` and `status`: of an application that is not faceapp, with queues of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import celery_sqs
from celery_sqs import Options
from celery_sqs.aws import Aws
from celery_sqs.errors import BrokerUnavailable
from celery_sqs.queues import dead_letters
from celery_sqs.queues.dead_letters import DeadLetters
from celery_sqs.queues.letters import DeadLetter
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.status import Status as ScalerStatus
from celery_sqs.scaler.status_server import StatusServer
from tests.support.aws import plain_client
from tests.support.services import (
    PATIENCE_S,
    REPOSITORY,
    aws_environ,
    celery_worker,
    free_port,
    users_environ,
    wait_until,
)

APP = """
import os
from pathlib import Path
import celery, celery_sqs
name = os.environ["FORGE"]
app = celery.Celery("forge")
scaler = celery_sqs.ScalerOptions(status_port=int(os.environ["FORGE_PORT"]))
celery_sqs.configure(app, celery_sqs.Options(
    prefix=name, queues=("iron", "gold"), results_bucket=name, wait_s=1, largest_message_bytes=2048, scaler=scaler
))
app.conf.update(task_acks_late=True, task_acks_on_failure_or_timeout=False)

@app.task(name="forge.cast")
def cast(metal):
    if not Path(os.environ["FORGE_MENDED"]).exists():
        raise ValueError("the oven is cold")
    return metal.upper()
"""
VISIBILITY_S = 1


@dataclass(frozen=True, kw_only=True)
class Forge:
    """An application with two work queues, whose dead letters come to one."""

    name: str
    folder: Path
    env: dict[str, str]
    aws: str

    @property
    def app(self) -> Celery:
        app = Celery("forge", set_as_current=False)
        celery_sqs.configure(app, self.options)
        return app

    @property
    def options(self) -> Options:
        return Options(
            prefix=self.name,
            queues=("iron", "gold"),
            results_bucket=self.name,
            wait_s=1,
            largest_message_bytes=2048,
            endpoint_url=self.aws,
        )

    @property
    def sqs(self) -> Any:
        return plain_client("sqs", self.aws)

    def url(self, queue: str) -> str:
        return str(self.sqs.get_queue_url(QueueName=f"{self.name}-{queue}")["QueueUrl"])

    def count(self, queue: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url(queue), AttributeNames=names)["Attributes"]
        return sum(map(int, found.values()))

    def bury(self, queue: str = "iron") -> str:
        """Make a dead letter of the message of a queue, as SQS does; its id."""
        [message] = self.sqs.receive_message(QueueUrl=self.url(queue), WaitTimeSeconds=5)["Messages"]
        self.sqs.delete_message(QueueUrl=self.url(queue), ReceiptHandle=message["ReceiptHandle"])
        return str(self.sqs.send_message(QueueUrl=self.url("dead"), MessageBody=message["Body"])["MessageId"])

    def objects(self) -> list[str]:
        """What the bucket keeps of large messages."""
        found = plain_client("s3", self.aws).list_objects_v2(Bucket=self.name, Prefix="celery-messages/")
        return [each["Key"] for each in found.get("Contents", ())]

    def command(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "celery_sqs", *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )

    def letters(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, *rest = arguments
        return self.command("dead-letters", command, "-A", "forge", *rest)

    @contextmanager
    def worker(self) -> Iterator[None]:
        log = self.folder / "log"
        with celery_worker("forge", log, self.env, "--concurrency", "2", cwd=self.folder):
            yield


def redrive(sqs: Any, name: str, queues: list[str], **attributes: str) -> None:
    """Make the work queues, and one for the dead letters of all of them after two tries."""
    end = ".fifo" if queues[0].endswith(".fifo") else ""
    fifo = {"FifoQueue": "true"} if end else {}
    dead = sqs.create_queue(QueueName=f"{name}-dead{end}", Attributes=fifo)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2})
    for each in queues:
        sqs.create_queue(QueueName=f"{name}-{each}", Attributes={"RedrivePolicy": policy, **fifo, **attributes})


@pytest.fixture
def forge(aws: str, tmp_path: Path) -> Forge:
    name = f"forge{uuid.uuid4().hex[:8]}"
    (tmp_path / "forge.py").write_text(APP)
    own = {"FORGE": name, "FORGE_MENDED": str(tmp_path / "mended"), "FORGE_PORT": str(free_port())}
    env = {**users_environ(), **aws_environ(aws), **own, "PYTHONPATH": str(REPOSITORY)}
    plain_client("s3", aws).create_bucket(Bucket=name)
    redrive(plain_client("sqs", aws), name, ["iron", "gold"], VisibilityTimeout=str(VISIBILITY_S))
    return Forge(name=name, folder=tmp_path, env=env, aws=aws)


def test_what_failed_is_listed_with_its_reason_and_done_when_it_is_sent_again(forge: Forge) -> None:
    app = forge.app
    results = {queue: app.send_task("forge.cast", [queue], queue=queue) for queue in ("iron", "gold")}
    with forge.worker():
        wait_until(lambda: forge.count("dead") == 2, what="the dead letters")
        listed = json.loads(forge.letters("list", "--json").stdout)
        assert {(each["queue"], each["task"], each["task_id"], each["reason"]) for each in listed["letters"]} == {
            (f"{forge.name}-{queue}", "forge.cast", result.id, "ValueError: the oven is cold")
            for queue, result in results.items()
        }
        assert (listed["total"], listed["complete"]) == (2, True)
        (forge.folder / "mended").touch()
        done = forge.letters("retry", "--all")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "2 dead letters sent again (forge)."
        # The process that sent them keeps the answer that it had.
        other = forge.app
        wait_until(lambda: all(other.AsyncResult(each.id).state == "SUCCESS" for each in results.values()), what="both")
        wait_until(lambda: forge.count("iron") + forge.count("gold") + forge.count("dead") == 0, what="the deletions")
    assert forge.letters("list").stdout == "No dead letters (forge).\n"


def test_one_is_shown_and_dropped_and_the_other_stays(forge: Forge) -> None:
    ids = []
    for metal in ("tin", "zinc"):
        task_id = forge.app.send_task("forge.cast", [metal], queue="iron", ignore_result=True).id
        ids.append((forge.bury(), task_id))
    (dropped, _), (kept, task_id) = ids
    shown = forge.letters("show", task_id[:12])
    assert shown.returncode == 0, shown.stderr
    assert f"message  {kept}" in shown.stdout
    assert f"queue    {forge.name}-iron" in shown.stdout
    assert "why      failed 2 times" in shown.stdout
    assert '"zinc"' in shown.stdout
    done = forge.letters("drop", dropped, "--yes")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 dead letter dropped (forge).")
    listed = forge.letters("list").stdout.splitlines()
    assert listed[0] == "1 dead letter (forge)"
    assert listed[1].split() == ["id", "task", "task", "id", "queue", "age", "seen", "why"]
    assert listed[2].startswith(f"{kept[:8]}  forge.cast  {task_id[:8]}  {forge.name}-iron")


def test_a_large_one_is_shown_whole_and_its_object_goes_with_it(forge: Forge) -> None:
    for metal in ("m" * 3000, "n" * 3000):
        forge.app.send_task("forge.cast", [metal], queue="gold", ignore_result=True)
        forge.bury("gold")
    assert len(forge.objects()) == 2
    letters = {each["document"]["body"][0][0][0]: each for each in listing(forge)}
    assert letters.keys() == {"m", "n"}
    assert forge.letters("retry", letters["m"]["message_id"]).returncode == 0
    assert len(forge.objects()) == 2, "the one that was sent again needs it"
    assert forge.count("gold") == 1
    assert forge.letters("drop", letters["n"]["message_id"], "--yes").returncode == 0
    assert len(forge.objects()) == 1


def test_one_whose_text_is_gone_is_refused_unless_forced(forge: Forge) -> None:
    forge.app.send_task("forge.cast", ["m" * 3000], queue="gold", ignore_result=True)
    forge.bury("gold")
    [key] = forge.objects()
    plain_client("s3", forge.aws).delete_object(Bucket=forge.name, Key=key)
    [letter] = listing(forge)
    assert letter["task"] == "forge.cast"
    assert "is gone" in letter["reason"]
    refused = forge.letters("retry", "--all")
    assert refused.returncode == 1
    assert "is gone" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "Error: 1 dead letter not sent again."


def listing(forge: Forge) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(forge.letters("list", "--json").stdout)["letters"]
    return found


def test_what_is_no_task_is_refused_and_what_comes_from_anywhere_stays(forge: Forge) -> None:
    for body in ("rubbish", json.dumps({"headers": {"task": "forge.cast", "id": "x" * 8}, "body": "[]"})):
        forge.sqs.send_message(QueueUrl=forge.url("dead"), MessageBody=body)
    reasons = {each["body"][:7]: each["reason"] for each in listing(forge)}
    assert reasons["rubbish"] == "no worker takes it: it is no task"
    refused = forge.letters("retry", "--all")
    assert refused.returncode == 1
    assert "refused: it is no task, so no worker can do it (--force sends it)" in refused.stderr
    where = f"{forge.name}-iron, {forge.name}-gold"
    assert f"(task xxxxxxxx): stays: nothing says from which of the queues it came: {where}" in refused.stderr
    assert forge.count("dead") == 2


def test_where_sqs_says_which_queue_a_letter_came_from_that_is_it(forge: Forge) -> None:
    """moto does not say it."""
    letters = dead_letters.of(forge.app)
    [queue] = letters.queues
    iron, gold = queue.sources
    body = json.dumps({"headers": {"task": "t"}, "properties": {"delivery_info": {"routing_key": "iron"}}})

    def letter(**attributes: str) -> DeadLetter:
        raw = {"MessageId": "m", "ReceiptHandle": "r", "Body": body, "Attributes": attributes}
        return letters._letter(dead_letters._Held(raw, queue), None)

    assert letter().queue == iron.name
    assert letter(DeadLetterQueueSourceArn=gold.arn).queue == gold.name
    assert letter(DeadLetterQueueSourceArn=f"{gold.arn}-of-another").queue == ""


def test_a_letter_goes_back_to_the_queue_of_its_priority(aws: str) -> None:
    name = f"forge{uuid.uuid4().hex[:8]}"
    sqs = plain_client("sqs", aws)
    redrive(sqs, name, ["celery", "celery-5"])
    app = Celery("forge", set_as_current=False)
    celery_sqs.configure(app, Options(prefix=name, priority_steps=(0, 5), wait_s=1))
    app.send_task("any", priority=7, ignore_result=True)
    dead, low = (sqs.get_queue_url(QueueName=f"{name}-{each}")["QueueUrl"] for each in ("dead", "celery-5"))
    [message] = sqs.receive_message(QueueUrl=low)["Messages"]
    sqs.send_message(QueueUrl=dead, MessageBody=message["Body"])
    [outcome] = dead_letters.of(app).retry(None)
    assert outcome.done
    assert [each["Body"] for each in sqs.receive_message(QueueUrl=low)["Messages"]] == [message["Body"]]


def test_a_group_of_a_fifo_queue_is_kept(aws: str) -> None:
    """Within five minutes of its first sending: with the same deduplication id SQS would drop it."""
    name = f"forge{uuid.uuid4().hex[:8]}"
    sqs = plain_client("sqs", aws)
    redrive(sqs, name, ["celery.fifo"], VisibilityTimeout="0")
    app = Celery("forge", set_as_current=False)
    celery_sqs.configure(app, Options(prefix=name, queues=("celery.fifo",), wait_s=1))
    app.send_task("any", ["a"], ignore_result=True, MessageGroupId="g")
    work = sqs.get_queue_url(QueueName=f"{name}-celery.fifo")["QueueUrl"]
    letters = dead_letters.of(app)
    wait_until(lambda: not sqs.receive_message(QueueUrl=work).get("Messages") and letters.count() == 1, what="a letter")
    [outcome] = letters.retry(None)
    assert outcome.done, outcome.detail
    [again] = sqs.receive_message(QueueUrl=work, MessageSystemAttributeNames=["All"])["Messages"]
    assert again["Attributes"]["MessageGroupId"] == "g"
    assert letters.count() == 0


def test_an_application_without_dead_letters_says_so(aws: str) -> None:
    name = f"forge{uuid.uuid4().hex[:8]}"
    letters: DeadLetters[DeadLetter] = DeadLetters(Options(prefix=name), describe=lambda each: each)
    with pytest.raises(BrokerUnavailable, match=f"The queue {name}-celery does not exist: nothing was sent to it yet"):
        letters.listing()
    plain_client("sqs", aws).create_queue(QueueName=f"{name}-celery")
    with pytest.raises(BrokerUnavailable, match=f"No queue has dead letters: {name}-celery have no redrive policy"):
        letters.listing()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["dead-letters", "list"], 2, "Missing option '-A'"),
        (["dead-letters", "list", "-A", "butcher"], 2, "there is no module 'butcher' here"),
        (["dead-letters", "retry", "-A", "forge"], 2, "('python -m celery_sqs dead-letters list' shows them)"),
        (
            ["dead-letters", "drop", "-A", "forge", "--all"],
            2,
            "drop asks first, and nobody can answer here: give --yes",
        ),
        (["dead-letters", "show", "-A", "forge", "abcdefg"], 1, "There is no dead letter 'abcdefg'"),
        (["status"], 2, "Missing option '-A'"),
    ],
)
def test_every_misuse_is_one_sentence(forge: Forge, arguments: list[str], code: int, sentence: str) -> None:
    done = forge.command(*arguments)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_an_aws_that_does_not_answer_is_a_sentence(forge: Forge) -> None:
    for command in (["dead-letters", "list"], ["status"]):
        done = forge.command(*command, "-A", "forge", AWS_ENDPOINT_URL="http://127.0.0.1:1")
        assert done.returncode == 1
        assert "Could not connect to the endpoint URL" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def status_of(forge: Forge, *, workers: int = 0) -> tuple[int, dict[str, Any]]:
    """The command's exit status, and what it says; once each part has answered, on a machine that is busy."""
    done: list[subprocess.CompletedProcess[str]] = []

    def is_whole() -> bool:
        done.append(forge.command("status", "-A", "forge", "--json"))
        answered = json.loads(done[-1].stdout)["workers"]["value"] or ()
        return "not answer within" not in done[-1].stdout and sum(each["active"] == 0 for each in answered) == workers

    wait_until(is_whole, what="an answer of every part")
    return done[-1].returncode, json.loads(done[-1].stdout)


def test_the_status_has_queues_workers_and_the_scaler(forge: Forge) -> None:
    """Also where work queues take little: a worker's answer goes to another queue, and was too large for theirs."""
    scaler = ScalerOptions(status_port=int(forge.env["FORGE_PORT"]))
    server = StatusServer(scaler, ScalerStatus(scaler, Aws()))
    server.start()
    try:
        with forge.worker():
            code, found = status_of(forge, workers=1)
            text = forge.command("status", "-A", "forge").stdout
    finally:
        server.stop()
    assert (code, found["problems"]) == (0, [])
    assert [(each["name"], each["kind"]) for each in found["queues"]["value"]] == [
        (f"{forge.name}-iron", "tasks"),
        (f"{forge.name}-gold", "tasks"),
        (f"{forge.name}-dead", "dead letters"),
    ]
    [worker] = found["workers"]["value"]
    assert (worker["processes"], worker["active"]) == (2, 0)
    assert found["scaler"]["value"]["reason"] == "has just started"
    assert "All is well." in text
    assert "waits: another one leads; wants 0 instances: has just started" in text


def test_what_needs_a_look_fails_the_status(forge: Forge) -> None:
    forge.app.send_task("forge.cast", ["tin"], queue="iron", ignore_result=True)
    forge.sqs.send_message(QueueUrl=forge.url("dead"), MessageBody="rubbish")
    code, found = status_of(forge)
    assert code == 1
    assert found["problems"] == [
        "1 tasks wait, and there is neither a worker nor a scaler.",
        "1 dead letters wait: 'python -m celery_sqs dead-letters list' says why.",
    ]
    assert found["scaler"]["trouble"].startswith("The scaler does not answer at 127.0.0.1:")


def test_the_commands_need_none_of_the_extras(forge: Forge) -> None:
    for command in (["dead-letters", "list"], ["status"]):
        code = (
            "import sys\n"
            "for each in ('rich', 'numpy', 'PIL', 'prometheus_client', 'moto', 'flask'): sys.modules[each] = None\n"
            f"from celery_sqs.commands import main\nmain([*{command!r}, '-A', 'forge'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=forge.folder, env=forge.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
