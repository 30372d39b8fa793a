"""Dead letters that a real worker made, listed, shown, sent again and purged; in the process and as commands."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from celery_sqs.errors import BrokerUnavailable, DeadLetterNotFound
from faceapp import broker
from faceapp.config import Settings
from faceapp.operations.dead_letters import DeadLetters
from faceapp.schema import Failure, Recognition
from faceapp.stack import data_tier as deployment
from faceapp.storage import Storage
from tests.support.aws import plain_client
from tests.support.services import aws_environ, celery_worker, environ, wait_until
from tests.unit.test_messages import message as whole_message

pytestmark = pytest.mark.usefixtures("aws")

OURS = (
    "recognition_failed: An error of ours ended it, and three tries are all it has: it is put aside for somebody to "
    "look at."
)
"""What the worker's last try has stored as the result."""
Send = Callable[[dict[str, str]], None]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def failing(aws_endpoint: str) -> Settings:
    """A stack whose messages come again after two seconds."""
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        deployment.apply(settings)
        sqs = plain_client("sqs", aws_endpoint)
        url = sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "2"})
    return settings


@pytest.fixture(scope="module")
def log(failing: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a real worker logs, none of whose tasks succeeds."""
    log = tmp_path_factory.mktemp("failing") / "log"
    with celery_worker("tests.support.failing", log, environ(aws_endpoint, failing), "--concurrency", "2"):
        yield log


@pytest.fixture
def letters(failing: Settings, aws: str) -> Iterator[DeadLetters]:
    """The stack's dead letters: none at first."""
    letters = DeadLetters(failing)
    yield letters
    list(letters.drop(None))
    assert letters.count() == 0


@pytest.fixture
def send(failing: Settings, aws: str, letters: DeadLetters, log: Path) -> Iterator[Send]:
    """Sends tasks, by request id, and waits until the worker has made dead letters of them."""
    app = broker.create_app(failing)

    def send(tasks: dict[str, str]) -> None:
        for request_id, task in tasks.items():
            app.send_task(task, args=[request_id], task_id=request_id, ignore_result=True)
        wait_until(lambda: letters.count() == len(tasks), timeout_s=240, what="the dead letters")

    yield send
    app.close()


@pytest.fixture
def storage(failing: Settings) -> Storage:
    return Storage(failing)


@pytest.fixture
def put(failing: Settings, letters: DeadLetters, aws: str) -> Callable[[str], str]:
    """Puts a message with any body among the dead letters, and answers its message id."""

    def put(body: str) -> str:
        sqs = plain_client("sqs", aws)
        return str(sqs.send_message(QueueUrl=letters.queues[0].url, MessageBody=body)["MessageId"])

    return put


@pytest.fixture
def command(failing: Settings, aws_endpoint: str) -> Command:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "faceapp", "dead-letters", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
            env=environ(aws_endpoint, failing, **more),
        )

    return run


def message(task: str, request_id: str) -> str:
    """A task's message as kombu writes it by default, with base64 around and in it."""
    arguments = base64.b64encode(json.dumps([[request_id], {}, {}]).encode()).decode()
    headers = {"task": task, "id": request_id}
    envelope = {"body": arguments, "headers": headers, "properties": {"body_encoding": "base64"}}
    return base64.b64encode(json.dumps(envelope).encode()).decode()


def photo(storage: Storage) -> str:
    """The request id of a photo that is there."""
    request_id = uuid.uuid4().hex
    storage.put_photo(request_id, b"photo", file_name="a.jpg", content_type="image/jpeg")
    return request_id


def visible(settings: Settings, queue: str, endpoint: str) -> int:
    sqs = plain_client("sqs", endpoint)
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    return int(
        sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["ApproximateNumberOfMessages"]
    )


def test_a_task_that_always_fails_is_listed_with_what_is_known(
    send: Send, letters: DeadLetters, storage: Storage
) -> None:
    kept, gone, answered, other = photo(storage), uuid.uuid4().hex, photo(storage), uuid.uuid4().hex
    failure = Failure(code="image_truncated", detail="It was cut off.")
    storage.put_result(Recognition(id=answered, status="failed", failure=failure))
    send({**dict.fromkeys((kept, gone, answered), "faceapp.recognize"), other: "tests.fail"})

    listing = letters.listing()

    assert listing.total == len(listing.letters) == 4
    assert listing.complete
    found = {each.request_id: each for each in listing.letters}
    assert {id: (each.task, each.photo, each.reason) for id, each in found.items()} == {
        kept: ("faceapp.recognize", "there", OURS),
        gone: ("faceapp.recognize", "gone", "failed 3 times"),  # nothing is stored of a photo that is gone
        answered: ("faceapp.recognize", "there", "image_truncated: It was cut off."),
        other: ("tests.fail", "none", "no worker takes it: its task 'tests.fail' is none of ours"),
    }
    sent_s = [each.sent_s for each in listing.letters]
    assert None not in sent_s
    assert sent_s == sorted(each or 0.0 for each in sent_s)
    assert all(each.receive_count >= 3 for each in listing.letters)


def test_looking_gives_every_letter_back_at_once(
    failing: Settings, letters: DeadLetters, put: Callable[[str], str], aws: str
) -> None:
    ids = {put(message("tests.fail", uuid.uuid4().hex)) for _ in range(23)}
    for _ in range(2):
        assert {each.message_id for each in letters.listing().letters} == ids
        assert visible(failing, failing.dead_letter_queue, aws) == 23
    short = letters.listing(4)
    assert (len(short.letters), short.total, short.complete) == (4, 23, False)
    assert visible(failing, failing.dead_letter_queue, aws) == 23


def test_an_enrolment_is_there_as_long_as_its_photos_wait(
    failing: Settings, put: Callable[[str], str], letters: DeadLetters
) -> None:
    storage = Storage(failing)
    waiting, done = uuid.uuid4().hex, uuid.uuid4().hex
    storage.put_incoming(waiting, 0, b"photo", name="ann", file_name="a.jpg")
    for request_id in (waiting, done):
        put(message("faceapp.enrol", request_id))
    assert {each.request_id: each.photo for each in letters.listing().letters} == {waiting: "there", done: "gone"}


def test_a_redriven_letter_has_all_its_tries_again(
    send: Send, letters: DeadLetters, storage: Storage, log: Path
) -> None:
    request_id = photo(storage)
    send({request_id: "faceapp.recognize"})
    (before,) = letters.listing().letters

    def tries() -> int:
        return log.read_text().count(f"ValueError('no luck with {request_id}')")

    wait_until(lambda: tries() == 3, what="three tries")

    (outcome,) = letters.retry([request_id[:8]])

    assert (outcome.message_id, outcome.task_id, outcome.done) == (before.message_id, request_id, True)
    wait_until(lambda: tries() == 6 and letters.count() == 1, what="three more tries")
    (after,) = letters.listing().letters
    assert (after.body, after.request_id) == (before.body, request_id)
    assert after.message_id != before.message_id


def test_what_would_only_fail_again_is_refused_unless_forced(
    failing: Settings, aws: str, letters: DeadLetters, storage: Storage, put: Callable[[str], str]
) -> None:
    # No worker listens to these: the request queue is another one's, with nobody on it.
    alone, idle = DeadLetters(failing), _queue(aws)
    _send_to(alone, idle)
    there, gone = photo(storage), uuid.uuid4().hex
    good, bad = put(message("faceapp.recognize", there)), put(message("faceapp.recognize", gone))
    rubbish = put("rubbish")

    outcomes = {each.message_id: each for each in alone.retry(None)}

    assert outcomes.keys() == {good, bad, rubbish}
    assert outcomes[good].done
    assert outcomes[bad].detail == "refused: its photo is gone, so it would fail again (--force sends it)"
    assert outcomes[rubbish].detail == "refused: it is no task, so no worker can do it (--force sends it)"
    assert {each.message_id for each in letters.listing().letters} == {bad, rubbish}
    assert _count(aws, idle) == 1

    assert all(each.done for each in alone.retry(None, force=True))
    assert letters.count() == 0
    assert _count(aws, idle) == 3


def test_sending_all_again_ends_although_each_fails_at_once(
    failing: Settings, letters: DeadLetters, put: Callable[[str], str]
) -> None:
    """C5: what is sent again is a dead letter at once."""
    alone = DeadLetters(failing)
    _send_to(alone, letters.queues[0].url)
    ids = {put(f"rubbish {n}") for n in range(125)}
    outcomes = [each.message_id for each in alone.retry(None, force=True)]
    assert len(outcomes) == len(ids)
    assert set(outcomes) == ids
    assert letters.count() == len(ids)


def test_purging_all_leaves_what_comes_later(letters: DeadLetters, put: Callable[[str], str]) -> None:
    """C5: the question was about what there was."""
    first = {put("rubbish") for _ in range(15)}
    purging, purged = letters.drop(None), set()
    purged.add(next(purging).message_id)
    began_s = time.monotonic()
    wait_until(lambda: time.monotonic() - began_s > 2, what="another second of SQS's clock")
    later = {put("more rubbish") for _ in range(15)}
    purged |= {each.message_id for each in purging}
    assert first <= purged
    assert {each.message_id for each in letters.listing().letters} == later


def test_a_message_that_cannot_be_sent_stays(
    failing: Settings, letters: DeadLetters, put: Callable[[str], str]
) -> None:
    id = put(message("tests.fail", "x" * 2000))
    (outcome,) = letters.retry([id])
    assert not outcome.done
    assert outcome.detail.startswith("stays: SQS does not do send_message")
    assert [each.message_id for each in letters.listing().letters] == [id]


def test_only_the_named_letters_are_purged(put: Callable[[str], str], letters: DeadLetters) -> None:
    ids = [put(message("tests.fail", uuid.uuid4().hex)) for _ in range(15)]
    outcomes = list(letters.drop([*ids[:12], ids[0][:18]]))
    assert [each.message_id for each in outcomes] == ids[:12]
    assert all(each.done for each in outcomes)
    assert {each.message_id for each in letters.listing().letters} == set(ids[12:])


def test_an_id_that_is_not_there_changes_nothing(put: Callable[[str], str], letters: DeadLetters) -> None:
    there = put("rubbish")
    for act in (letters.retry, letters.drop):
        with pytest.raises(DeadLetterNotFound, match="There is no dead letter 'gggggg'"):
            list(act([there, "gggggg"]))
    for id in ("", "abcde"):
        with pytest.raises(DeadLetterNotFound, match="too short"):
            letters.show([id])
    assert letters.count() == 1


def test_an_id_that_begins_several_is_refused(put: Callable[[str], str], letters: DeadLetters) -> None:
    for digit in "12":
        put(message("tests.fail", f"same-beginning-{digit}"))
    with pytest.raises(DeadLetterNotFound, match="2 dead letters begin with 'same-beginning': give more of the"):
        letters.show(["same-beginning"])
    assert [each.request_id for each in letters.show(["same-beginning-1"])] == ["same-beginning-1"]


def test_a_sender_may_allow_more_time_than_the_operator(put: Callable[[str], str], letters: DeadLetters) -> None:
    """The workers took it, and the operator read that none does."""
    put(json.dumps(whole_message(headers__timelimit=[600, 590])))
    assert [each.reason for each in letters.listing().letters] == ["failed 3 times"]


def test_a_body_that_is_no_task_is_shown_as_what_it_is(put: Callable[[str], str], letters: DeadLetters) -> None:
    shapes = ["rubbish", "{}", "[]", "null", '{"headers": []}', '{"headers": {"task": 5}}', "[" * 100_000]
    bodies = {put(body): body for body in (*shapes, base64.b64encode(b"\xff\xfe").decode())}
    found = letters.listing().letters
    assert {each.message_id: each.body for each in found} == bodies
    assert {(each.document, each.task, each.request_id) for each in found} == {(None, None, None)}
    assert {each.reason for each in found} == {
        f"no worker takes it: it is {what}" for what in ("no Celery task", "not JSON", "nested too deeply")
    }


def test_arguments_that_do_not_fit_are_shown_all_the_same(put: Callable[[str], str], letters: DeadLetters) -> None:
    shapes = ["[]", "5", '[["../../etc/passwd"], {}, {}]', '[{"a": 1}]', "not json"]
    ids = {put(json.dumps({"body": each, "headers": {"task": "faceapp.recognize"}})) for each in shapes}
    found = letters.listing().letters
    assert {each.message_id for each in found} == ids
    assert {(each.task, each.request_id, each.photo) for each in found} == {("faceapp.recognize", None, "none")}


def test_a_stack_that_is_not_there_is_one_sentence(aws: str) -> None:
    with pytest.raises(BrokerUnavailable, match="The queue nobodys-req-queue does not exist: deploy the stack first"):
        DeadLetters(Settings(prefix="nobodys")).listing()


def test_the_commands_list_show_and_purge(
    command: Command, put: Callable[[str], str], letters: DeadLetters, storage: Storage, aws: str
) -> None:
    request_id = photo(storage)
    id = put(message("faceapp.recognize", request_id))
    strange = put('{"headers": {"task": "[red]\\u001b[31m"}}')

    listed = command("list")
    assert listed.returncode == 0, listed.stderr
    assert f"2 dead letters (the AWS at {aws} (AWS_ENDPOINT_URL))" in listed.stdout
    (line,) = [each for each in listed.stdout.splitlines() if id[:8] in each]
    assert line.split()[:3] == [id[:8], "recognize", request_id[:8]]
    assert "there" in line
    assert "[red]" in listed.stdout
    assert "\x1b" not in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= 80

    document = json.loads(command("list", "--json").stdout)
    assert {each["message_id"] for each in document["letters"]} == {id, strange}
    assert (document["total"], document["complete"]) == (2, True)

    shown = command("show", id[:8])
    assert (shown.returncode, "\x1b" in shown.stdout) == (0, False)
    assert f"message  {id}" in shown.stdout
    assert f'"{request_id}"' in shown.stdout
    assert json.loads(command("show", request_id, "--json").stdout)["document"]["body"][0] == [request_id]

    purged = command("purge", "--all", "--yes", "--json")
    assert purged.returncode == 0
    assert {json.loads(each)["message_id"] for each in purged.stdout.splitlines()} == {id, strange}
    assert f"No dead letters (the AWS at {aws}" in command("list").stdout


def test_the_command_says_what_stays_and_fails(command: Command, put: Callable[[str], str]) -> None:
    id = put("rubbish")
    done = command("redrive", "--all")
    assert done.returncode == 1
    assert done.stdout.startswith("0 dead letters sent again")
    assert done.stderr.splitlines() == [
        f"{id}: refused: it is no task, so no worker can do it (--force sends it)",
        "Error: 1 dead letter not sent again.",
    ]


@pytest.mark.parametrize("odd", ["\ud800", "\x1b[2J", "x\n0 dead letters purged"])
def test_what_no_terminal_takes_is_told_as_escapes(command: Command, put: Callable[[str], str], odd: str) -> None:
    put(json.dumps({"headers": {"task": f"t{odd}", "id": odd}, "body": "x"}))

    listed = command("list", "--json")
    assert json.loads(listed.stdout)["letters"][0]["request_id"] == odd
    assert command("list").returncode == 0
    purged = command("purge", "--all", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert "\x1b" not in purged.stdout
    assert len(purged.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["redrive"], 2, "Say which: give IDs"),
        (["purge", "--yes"], 2, "Say which: give IDs"),
        (["redrive", "--all", "abcdef"], 2, "Say which: give IDs"),
        (["purge", "--all"], 2, "purge asks first, and nobody can answer here: give --yes."),
        (["show", "abcdef"], 1, "There is no dead letter 'abcdef'"),
        (["purge", "abc", "--yes"], 1, "'abc' is too short for an id"),
        (["list", "--limit", "0"], 2, "0 is not in the range"),
    ],
)
def test_every_misuse_is_one_sentence(
    command: Command, letters: DeadLetters, arguments: list[str], status: int, sentence: str
) -> None:
    done = command(*arguments)
    assert done.returncode == status
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def _send_to(letters: DeadLetters, url: str) -> None:
    """Let what is sent again go to the queue at `url`."""
    [queue] = letters.queues
    letters.queues = (replace(queue, sources=(replace(queue.sources[0], url=url),)),)


def _queue(endpoint: str) -> str:
    return str(plain_client("sqs", endpoint).create_queue(QueueName=f"idle-{uuid.uuid4().hex[:8]}")["QueueUrl"])


def _count(endpoint: str, url: str) -> int:
    attributes: dict[str, Any] = plain_client("sqs", endpoint).get_queue_attributes(
        QueueUrl=url, AttributeNames=["All"]
    )
    return int(attributes["Attributes"]["ApproximateNumberOfMessages"])
