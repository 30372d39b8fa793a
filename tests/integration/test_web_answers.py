"""Answers that are none: what the web tier makes of what comes over its response queue, over the embedded AWS."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from faceapp import broker, tasks
from faceapp.config import Settings
from faceapp.errors import StorageUnavailable
from faceapp.http import dispatch
from faceapp.schema import Enrolment, Recognition
from faceapp.storage import Storage, StoredPhotoHead
from faceapp.storage import s3 as storage_module
from tests.support.web import File, as_json, client_of, plain, problem

Says = Callable[..., None]
FAILURE = {"exc_type": "WorkerLostError", "exc_message": ["Worker exited prematurely"], "exc_module": "billiard"}


@pytest.fixture
def says(system: Settings, aws: str, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Has the next photo answered with these replies instead of by a worker; `stored` is its result in S3."""
    sqs = broker.sqs_client()

    def says(*replies: Any, stored: bool = False) -> None:
        def send(_task: Any, request_id: str, *, waits: bool) -> Any:
            tasks.app.backend.on_task_call(None, request_id)
            if stored:
                Storage(system).put_result(Recognition(id=request_id, status="done"))
            queue = sqs.get_queue_url(QueueName=tasks.app.backend.reply_queue)["QueueUrl"]
            for reply in replies:
                body = json.dumps({"task_id": request_id, **reply}).replace("REQUEST", request_id)
                sqs.send_message(QueueUrl=queue, MessageBody=body)
            return tasks.app.AsyncResult(request_id)

        monkeypatch.setattr(dispatch, "_send", send)

    return says


def post(settings: Settings) -> Any:
    return client_of(settings).post("/", data={"inputFile": File(plain(), "me.jpg")})


@pytest.mark.parametrize(
    "reply",
    [
        {"status": "SUCCESS", "result": None},
        {"status": "SUCCESS", "result": "rubbish"},
        {"status": "SUCCESS", "result": {"version": 99}},
        {"status": "SUCCESS", "result": Recognition(id="REQUEST", status="done").to_dict() | {"faces": 5}},
        {"status": "SUCCESS", "result": Recognition(id=uuid.uuid4().hex, status="done").to_dict()},
        {"status": "FAILURE", "result": FAILURE},
    ],
)
def test_a_reply_of_no_use_gives_way_to_the_result_in_s3(system: Settings, says: Says, reply: dict[str, Any]) -> None:
    says(reply, stored=True)
    assert post(system).text == "me:no_face"


def test_after_a_corrupt_reply_the_next_one_counts(system: Settings, says: Says) -> None:
    before = tasks.app.backend.collector.counts["corrupt"]
    good = Recognition(id="REQUEST", status="done").to_dict()
    says({"status": "SUCCESS", "result": {"version": 1}}, {"status": "SUCCESS", "result": good})

    # The next one may come in the same poll, before anybody has read the first: then S3's look has to find it.
    answer = post(replace(system, web_wait_s=1))

    assert answer.status_code in (200, 504)
    assert tasks.app.backend.collector.counts["corrupt"] == before + 1


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_failure_without_a_result_is_a_problem(system: Settings, says: Says, state: str) -> None:
    says({"status": state, "result": FAILURE})
    document = problem(post(system), 500, "recognition_failed")
    assert document["links"]["self"].endswith(document["id"])


def test_a_wait_that_ends_while_s3_is_away_is_a_timeout(
    system: Settings, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StorageUnavailable

    says()
    monkeypatch.setattr(Storage, "get_result", away)
    # The photo was accepted, so this is no refusal: its id is told, and the result can be asked for later.
    document = problem(post(replace(system, web_wait_s=1)), 504, "recognition_timeout")
    assert Storage(system).photo_exists(document["id"])


def test_a_wait_ends_with_the_age_limit(system: Settings, says: Says) -> None:
    says()
    answer = post(replace(system, queue_age_s=1, web_wait_s=120))
    document = problem(answer, 503, "recognition_expired")
    assert Storage(system).photo_exists(document["id"])
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("off", [timedelta(days=-400), timedelta(days=400)])
@pytest.mark.parametrize(("waited_s", "lost"), [(60 + 3 * 10 - 1, False), (60 + 3 * 10 + 1, True)])
def test_a_photo_is_lost_by_the_clock_that_stamped_it(
    system: Settings, off: timedelta, waited_s: int, lost: bool
) -> None:
    """C9: whatever this machine's clock says."""
    stored = datetime.now(UTC) + off
    photo = StoredPhotoHead(
        file_name="",
        content_type="",
        sha256="",
        size_bytes=1,
        last_modified=stored,
        answered=stored + timedelta(seconds=waited_s),
    )
    client = client_of(replace(system, queue_age_s=60, task_time_limit_s=10))
    assert client.application.extensions["faceapp"].is_lost(photo) == lost


def test_in_the_api_it_is_an_item(system: Settings, says: Says) -> None:
    says()
    client = client_of(replace(system, queue_age_s=1))
    answer = client.post("/v1/recognitions", data={"file": File(plain())}, headers={"Prefer": "wait=120"})
    (item,) = as_json(answer)["recognitions"]
    assert (item["status"], item["failure"]["code"]) == ("failed", "recognition_expired")
    assert item["links"]["self"].endswith(item["id"])


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        ({"status": "FAILURE", "result": FAILURE}, 500, "recognition_failed"),
        ({"status": "SUCCESS", "result": "rubbish"}, 504, "recognition_timeout"),
        ({"status": "SUCCESS", "result": {"version": 1}}, 504, "recognition_timeout"),
        ({"status": "SUCCESS", "result": Enrolment(id="another", name="a").to_dict()}, 504, "recognition_timeout"),
        ({"status": "SUCCESS", "result": None}, 504, "recognition_timeout"),
        ({}, 504, "recognition_timeout"),
    ],
)
def test_an_enrolment_without_a_good_answer_is_a_problem(
    system: Settings, says: Says, reply: dict[str, Any], status: int, code: str
) -> None:
    says(reply)
    client = client_of(replace(system, web_wait_s=2))
    problem(client.put("/v1/people/ann", data={"photo": File(plain())}), status, code)


def test_an_enrolment_waits_no_longer_than_it_may_be_old(system: Settings, says: Says) -> None:
    says()
    client = client_of(replace(system, queue_age_s=1))
    problem(client.put("/v1/people/ann", data={"photo": File(plain())}), 503, "recognition_expired")


def test_a_photo_that_nobody_will_look_at_is_not_pending_for_ever(
    system: Settings, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id, storage, client = uuid.uuid4().hex, Storage(system), client_of()
    storage.put_photo(request_id, plain(), file_name="old.jpg", content_type="image/jpeg")

    def fetch() -> Any:
        return as_json(client.get(f"/v1/recognitions/{request_id}"))

    at_most_s = system.queue_age_s + 3 * system.task_time_limit_s
    monkeypatch.setattr(storage_module, "answered", lambda _: datetime.now(UTC) + timedelta(seconds=at_most_s - 60))
    assert fetch()["status"] == "pending"
    monkeypatch.setattr(storage_module, "answered", lambda _: datetime.now(UTC) + timedelta(seconds=at_most_s + 60))
    item = fetch()
    assert (item["status"], item["failure"]["code"]) == ("failed", "recognition_expired")
    assert item["file_name"] == "old.jpg"
    storage.put_result(Recognition(id=request_id, status="done"))
    assert fetch()["status"] == "done"
