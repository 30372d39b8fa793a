"""What becomes of a photo that no worker can finish: real workers, a real web tier, the embedded AWS."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from PIL import Image

from faceapp import broker
from faceapp.broker import GivenUp
from faceapp.config import Settings
from faceapp.errors import RecognitionExpired, StorageUnavailable
from faceapp.operations.dead_letters import DeadLetters
from faceapp.schema import Enrolment, Failure, Recognition
from faceapp.stack import data_tier as deployment
from faceapp.storage import Storage
from faceapp.work.given_up import CLOCKS_AGREE_S, Undertaker
from tests.faults.faulty import HOLDS
from tests.support.aws import BEARER, plain_client
from tests.support.failing import HANGS, KILLS, LATE
from tests.support.services import PATIENCE_S, aws_environ, celery_worker, environ, wait_until
from tests.support.web import encoded, plain, web_server

WAIT_S = PATIENCE_S
"""Of the web tier for its worker. Its client waits longer, for what it says then."""


@pytest.fixture(scope="module")
def failing(aws_endpoint: str) -> Settings:
    """A stack with the template's own visibility timeout, whose tasks may take ten seconds.

    They have to run out for some photos. The others' failures have to be told within five, at which the warning comes.
    """
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}", task_time_limit_s=10)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        deployment.apply(settings)
    return settings


@pytest.fixture(scope="module")
def url(failing: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web tier, and a worker none of whose tasks succeeds."""
    folder = tmp_path_factory.mktemp("given-up")
    env = environ(aws_endpoint, failing, FACEAPP_TASK_TIME_LIMIT_S="10")
    with (
        celery_worker("tests.support.failing", folder / "worker", env, "--concurrency", "3"),
        web_server(
            aws_endpoint,
            failing,
            folder / "web",
            FACEAPP_WEB_WAIT_S=str(WAIT_S),
            FACEAPP_TASK_TIME_LIMIT_S="10",
        ) as (url, _),
    ):
        yield url


@pytest.fixture
def storage(failing: Settings, aws: str) -> Storage:
    return Storage(failing)


def dead_letter(settings: Settings, request_id: str) -> Any:
    """The photo's dead letter, as soon as it is one."""
    letters = DeadLetters(settings)

    def found() -> list[Any]:
        return [each for each in letters.listing().letters if each.request_id == request_id]

    wait_until(found, timeout_s=240, what="the dead letter")
    (letter,) = found()
    return letter


@pytest.mark.parametrize(
    ("file_name", "sentence"),
    [
        (KILLS, "The process that worked on it was killed"),
        (HANGS, "It took longer than 10 s"),
        (LATE, "It took longer than 5 s"),
        ("raises.jpg", "An error of ours ended it"),
    ],
)
def test_who_waits_is_told_and_the_photo_is_kept(
    url: str, failing: Settings, storage: Storage, file_name: str, sentence: str
) -> None:
    fields = {"inputFile": (file_name, plain(), "image/jpeg")}
    answer = urllib3.request("POST", url, fields=fields, retries=False, timeout=2 * WAIT_S)

    problem = json.loads(answer.data)
    assert (answer.status, problem["code"]) == (500, "recognition_failed")
    assert problem["detail"].startswith(sentence)
    assert "Traceback" not in problem["detail"]
    result = storage.get_result(problem["id"])
    assert result is not None
    assert (result.status, result.file_name) == ("failed", file_name)
    assert result.failure == Failure(code="recognition_failed", detail=problem["detail"])
    assert storage.photo_exists(problem["id"])
    fetched = json.loads(urllib3.request("GET", f"{url}{problem['links']['self']}", headers=BEARER).data)
    assert (fetched["status"], fetched["failure"]["detail"]) == ("failed", problem["detail"])
    letter = dead_letter(failing, problem["id"])
    assert (letter.photo, letter.reason) == ("there", f"recognition_failed: {problem['detail']}")


def test_a_photo_that_nobody_waits_for_has_a_failed_result_as_well(url: str, failing: Settings, aws: str) -> None:
    fields = [("file", (KILLS, plain(), "image/jpeg"))]
    answer = urllib3.request("POST", f"{url}/v1/recognitions", fields=fields, headers=BEARER)
    item = json.loads(answer.data)["recognitions"][0]
    assert (answer.status, item["status"]) == (202, "pending")

    def result() -> Any:
        return json.loads(urllib3.request("GET", f"{url}{item['links']['self']}", headers=BEARER).data)

    wait_until(lambda: result()["status"] == "failed", timeout_s=240, what="the failed result")
    assert result()["failure"]["code"] == "recognition_failed"


def test_an_enrolment_that_fails_for_good_is_told_and_its_photos_wait(
    url: str, failing: Settings, storage: Storage
) -> None:
    fields = [("photo", ("a.jpg", plain(), "image/jpeg"))]
    answer = urllib3.request(
        "PUT", f"{url}/v1/people/ann", headers=BEARER, fields=fields, retries=False, timeout=2 * WAIT_S
    )
    problem = json.loads(answer.data)
    assert (answer.status, problem["code"]) == (500, "recognition_failed")
    assert problem["errors"][0]["file_name"] == "a.jpg"
    letter = dead_letter(failing, problem["request_id"])
    assert (letter.task, letter.photo) == ("faceapp.enrol", "there")


@pytest.mark.usefixtures("aws")
def test_a_good_result_is_never_overwritten_by_a_failed_one(stack: Settings) -> None:
    storage, request_id = Storage(stack), uuid.uuid4().hex
    done = Recognition(id=request_id, status="done")
    storage.put_result(done)
    lost = GivenUp(task="faceapp.recognize", task_id=request_id, arguments=(request_id,), error="WorkerLostError")

    assert Undertaker(stack).give_up(lost) is None
    assert storage.get_result(request_id) == done


@pytest.mark.usefixtures("aws")
def test_nothing_is_stored_of_a_photo_that_was_deleted(stack: Settings) -> None:
    """C8: its message waited for too long, or was tried too often."""
    storage, undertaker, request_id = Storage(stack), Undertaker(stack), uuid.uuid4().hex
    lost = GivenUp(task="faceapp.recognize", task_id=request_id, arguments=(request_id,), error="WorkerLostError")
    for told in (undertaker.fail(request_id, undertaker.expired()), undertaker.give_up(lost)):
        assert isinstance(told, Recognition)
        assert told.failure
    assert not storage.result_exists(request_id)


@pytest.mark.usefixtures("aws")
def test_what_succeeds_later_overwrites_a_failed_result(stack: Settings) -> None:
    storage, request_id = Storage(stack), uuid.uuid4().hex
    storage.put_photo(request_id, b"photo", file_name="a.jpg", content_type="image/jpeg")
    assert Undertaker(stack).fail(request_id, RecognitionExpired())
    done = Recognition(id=request_id, status="done")
    storage.put_result(done)
    assert storage.get_result(request_id) == done


def test_whoever_waits_is_told_though_s3_does_not_answer(monkeypatch: pytest.MonkeyPatch, aws: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    undertaker, request_id = Undertaker(Settings()), uuid.uuid4().hex
    for task, kind in (("faceapp.recognize", Recognition), ("faceapp.enrol", Enrolment)):
        lost = GivenUp(task=task, task_id=request_id, arguments=(request_id,), error="WorkerLostError")
        told = undertaker.give_up(lost)
        assert isinstance(told, kind)
        assert told.id == request_id


@pytest.mark.usefixtures("aws")
def test_an_enrolment_that_waited_too_long_leaves_no_photos(stack: Settings) -> None:
    storage, undertaker, request_id = Storage(stack), Undertaker(stack), uuid.uuid4().hex
    storage.put_incoming(request_id, 0, b"photo", name="ann", file_name="a.jpg")

    told = undertaker.fail_enrolment(request_id, undertaker.expired(), drop=True)

    assert told is not None
    assert (told.name, told.failures[0].code, told.failures[0].file_name) == ("ann", "recognition_expired", "a.jpg")
    assert storage.list_incoming(request_id) == []
    assert undertaker.fail_enrolment(request_id, undertaker.expired(), drop=True) is None


def test_the_clocks_may_disagree_a_little() -> None:
    undertaker = Undertaker(Settings(queue_age_s=10))
    assert not undertaker.is_expired(10 + CLOCKS_AGREE_S)
    assert undertaker.is_expired(10 + CLOCKS_AGREE_S + 0.1)


@pytest.mark.usefixtures("aws")
def test_a_photo_that_waited_too_long_is_not_looked_at(aws_endpoint: str, tmp_path: Path) -> None:
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}", queue_age_s=1)
    deployment.apply(settings)
    app, storage, request_id = broker.create_app(settings), Storage(settings), uuid.uuid4().hex
    storage.put_photo(request_id, plain(), file_name="old.jpg", content_type="image/jpeg")
    sent_s = time.monotonic()
    answer = app.send_task("faceapp.recognize", args=[request_id], task_id=request_id)
    wait_until(lambda: time.monotonic() - sent_s > settings.queue_age_s + CLOCKS_AGREE_S, what="the age limit")

    with celery_worker(
        "faceapp.tasks",
        tmp_path / "log",
        environ(aws_endpoint, settings, FACEAPP_QUEUE_AGE_S="1"),
        "--concurrency",
        "1",
    ):
        told = Recognition.from_dict(answer.get(timeout=240))
        assert told.failure is not None
        assert (told.failure.code, told.file_name) == ("recognition_expired", "old.jpg")
        assert storage.get_result(request_id) == told
        wait_until(lambda: messages(aws_endpoint, settings.request_queue) == 0, what="an empty queue")
    app.backend.collector.close(delete_queue=True)


@pytest.mark.usefixtures("aws")
def test_a_photo_that_takes_too_long_is_not_tried_again(aws_endpoint: str, tmp_path: Path) -> None:
    """S7: it was three tries of a minute each. A failed result at once, for an enrolment too, and no dead letter.

    An enrolment ends at the first such photo: nothing but the end of the process would stop the second one.
    """
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:8]}", task_time_limit_s=6)
    deployment.apply(settings)
    app, storage = broker.create_app(settings), Storage(settings)
    slow = encoded(Image.new("RGB", (64, 64)), comment=HOLDS.encode())
    recognition, enrolment = uuid.uuid4().hex, uuid.uuid4().hex
    storage.put_photo(recognition, slow, file_name="slow.jpg", content_type="image/jpeg")
    for n in range(2):
        storage.put_incoming(enrolment, n, slow, name="ann", file_name="slow.jpg")
    env = environ(aws_endpoint, settings, FACEAPP_TASK_TIME_LIMIT_S="6", FAULTS_FOLDER=str(tmp_path))

    with celery_worker("tests.faults.faulty", tmp_path / "log", env, "--concurrency", "1"):
        answer = app.send_task("faceapp.recognize", args=[recognition], task_id=recognition)
        told = Recognition.from_dict(answer.get(timeout=WAIT_S))
        answer = app.send_task("faceapp.enrol", args=[enrolment], task_id=enrolment)
        refused = Enrolment.from_dict(answer.get(timeout=WAIT_S))
        wait_until(lambda: messages(aws_endpoint, settings.request_queue) == 0, what="an empty queue")

    app.backend.collector.close(delete_queue=True)
    sentence = "Looking at the photo took longer than 1 s, so it is not tried again: send a smaller one."
    assert told.failure == Failure(code="recognition_too_slow", detail=sentence)
    assert storage.get_result(recognition) == told
    assert [each.code for each in refused.failures] == ["recognition_too_slow"]
    assert messages(aws_endpoint, settings.dead_letter_queue) == 0


def messages(aws_endpoint: str, name: str) -> int:
    """In a queue, those included that a worker has."""
    sqs = plain_client("sqs", aws_endpoint)
    queue = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(each) for each in counts.values())


def test_a_result_that_s3_does_not_take_is_no_result(stack: Settings) -> None:
    storage = Storage(dataclasses.replace(stack, prefix="nobodys"))
    with pytest.raises(StorageUnavailable):
        storage.put_failed(Recognition(id=uuid.uuid4().hex, status="failed", failure=Failure(code="x", detail="y")))
