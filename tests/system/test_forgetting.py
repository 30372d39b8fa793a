"""Whoever is forgotten is gone from every bucket: photos, vectors, results, uploads."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import quote

import boto3
import pytest
import urllib3

from faceapp.broker.messages import FORGET, refusal
from faceapp.config import Settings
from faceapp.errors import NotFound, PersonNotFound
from faceapp.operations.client import Client
from faceapp.schema import Box, Candidate, Face, Recognition
from faceapp.stack import data_tier as deployment
from faceapp.storage import Storage
from faceapp.storage import s3 as storage_module
from faceapp.work import forgetting as forgetting_module
from faceapp.work.forgetting import MARGIN_S, ORDERS, PAGE, Forgetting, LostOrders, Place
from tests.support.aws import BEARER
from tests.support.services import aws_environ, celery_worker, environ, wait_until
from tests.support.web import encoded, messages, side_by_side, web_server

NAME, OTHER = "Ada Lovelace-Ünal", "Charles Babbage"
LIMIT_S = 20


def result(*names: str, candidates: tuple[str, ...] = (), **more: Any) -> Recognition:
    """A result with a face for each of `names`, each with the same candidates."""
    box = Box(left=0, top=0, right=1, bottom=1)
    near = tuple(Candidate(name=each, distance=0.5) for each in candidates)
    faces = tuple(Face(box=box, landmarks=(), score=1, name=each, candidates=near) for each in names)
    return Recognition(**{"id": uuid.uuid4().hex, "status": "done", "faces": faces, **more})


def everything(settings: Settings) -> dict[str, bytes]:
    """Each object of the three buckets, by bucket and key: its metadata and its body."""
    s3, found = boto3.client("s3"), {}
    for bucket in (settings.in_bucket, settings.out_bucket, settings.gallery_bucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for each in page.get("Contents", ()):
                answer = s3.get_object(Bucket=bucket, Key=each["Key"])
                found[f"{bucket}/{each['Key']}"] = json.dumps(answer["Metadata"]).encode() + answer["Body"].read()
    return found


def where(name: str, objects: dict[str, bytes]) -> list[str]:
    """The objects that have the name in their key, their metadata or their body, however it is written."""
    ways = [name.encode(), quote(name, safe="").encode(), json.dumps(name).strip('"').encode(), quote(name).encode()]
    return [key for key, content in objects.items() if any(way in key.encode() + content for way in ways)]


# Pages, without a worker


@pytest.fixture
def quick(stack: Settings) -> Settings:
    """With no time between the sweeps but for clocks that differ, and none for a page: each task does little."""
    return replace(stack, task_time_limit_s=0, gallery_refresh_s=0.0)


def carry_out(forgetting: Forgetting, order_id: str, place: Place) -> list[Place]:
    """Do an order's work from `place` to its end: the places in which it went on."""
    places = [place]
    while following := forgetting.go_on(order_id, places[-1]).next:
        if replace(following, wait_s=0.0) != places[-1]:  # else it came too early, and asks again
            places.append(replace(following, wait_s=0.0))
    return places


def test_results_that_name_somebody_go_and_others_lose_a_candidate(quick: Settings) -> None:
    storage, forgetting = Storage(quick), Forgetting(quick, Storage(quick))
    named = [result(OTHER, NAME) for _ in range(40)]
    mentioning = [result(OTHER, candidates=(OTHER, NAME)) for _ in range(40)]
    others = [result(OTHER, f"{NAME}x", candidates=(f"x{NAME}",)), result(), result("unknown", file_name=NAME)]
    for each in (*named, *mentioning, *others):
        storage.put_result(each)
        storage.put_photo(each.id, b"x", file_name="x", content_type="image/jpeg")
    s3 = boto3.client("s3")
    unreadable = uuid.uuid4().hex
    s3.put_object(Bucket=quick.out_bucket, Key=unreadable, Body=json.dumps({"x": NAME}, ensure_ascii=False).encode())
    lease = json.dumps({"by": NAME}, ensure_ascii=False).encode()
    s3.put_object(Bucket=quick.out_bucket, Key="scaler/lease.json", Body=lease)
    forgetting.order("a" * 32, NAME)
    places = carry_out(forgetting, "a" * 32, Place(sweep=1, start=""))
    assert {each.sweep for each in places} == {1, 2}
    assert len(places) == 5  # of 84 results 32 each, then of the 44 that are left
    assert not forgetting.orders()
    for each in named:
        assert storage.get_result(each.id) is None
        assert storage.photo_exists(each.id) is None
    assert not storage.result_exists(unreadable)
    for each in mentioning:
        assert storage.get_result(each.id) == result(OTHER, candidates=(OTHER,), id=each.id)
        assert storage.photo_exists(each.id)
    for each in others:
        assert storage.get_result(each.id) == each
        assert storage.photo_exists(each.id)
    assert s3.get_object(Bucket=quick.out_bucket, Key="scaler/lease.json")["Body"].read() == lease


def test_somebody_who_gets_the_name_later_is_somebody_else(quick: Settings) -> None:
    storage, forgetting = Storage(quick), Forgetting(quick, Storage(quick))
    forgetting.order("a" * 32, NAME)
    meanwhile = result(NAME)  # of a task that was running
    storage.put_result(meanwhile)
    wait_until(lambda: not (forgetting.go_on("a" * 32, Place(sweep=2, start="f" * 32)).next), what="the second sweep")
    assert not forgetting.orders()
    forgetting.order("a" * 32, NAME)
    second = Place(sweep=2, start="")
    waits = forgetting.go_on("a" * 32, second).next
    assert waits is not None
    assert 0 < waits.wait_s <= 3
    assert storage.result_exists(meanwhile.id)
    storage_time = forgetting.orders()[0].given.timestamp()

    def stored_late() -> bool:
        late = result(NAME)
        storage.put_result(late)
        [listed] = [each for each in storage.list_results().results if each.id == late.id]
        if listed.stored.timestamp() < storage_time + 3:
            storage.delete_result(late.id)
            return False
        return True

    wait_until(stored_late, what="the time after which a name is somebody else's")
    carry_out(forgetting, "a" * 32, second)
    assert not storage.result_exists(meanwhile.id)
    assert storage.list_results().results


def test_photos_that_wait_for_enrolment_are_dropped(quick: Settings) -> None:
    storage, forgetting = Storage(quick), Forgetting(quick, Storage(quick))
    theirs, others, later = (uuid.uuid4().hex for _ in range(3))
    storage.put_incoming(theirs, 0, b"x", name=NAME, file_name="x")
    storage.put_incoming(others, 0, b"x", name=OTHER, file_name="x")
    came = storage.get_incoming(theirs, 0).last_modified

    def is_after() -> bool:
        forgetting.order("a" * 32, NAME)
        return forgetting.orders()[0].given > came  # S3 counts seconds

    wait_until(is_after, what="an order of a later second")
    storage.put_incoming(later, 0, b"x", name=NAME, file_name="x")
    assert forgetting.is_forgotten(NAME, came)
    assert not forgetting.is_forgotten(OTHER, came)
    assert not forgetting.is_forgotten(NAME, storage.get_incoming(later, 0).last_modified)
    forgetting.go_on("a" * 32, Place(sweep=1, start=""))
    with pytest.raises(NotFound):
        storage.get_incoming(theirs, 0)
    assert storage.get_incoming(others, 0).name == OTHER
    assert storage.get_incoming(later, 0).name == NAME


def test_an_order_that_was_never_sent_is_done_with_the_next(quick: Settings) -> None:
    forgetting = Forgetting(quick, Storage(quick))
    forgetting.order("a" * 32, NAME)
    forgetting.order("b" * 32, OTHER)
    forgetting.order("c" * 32, NAME)
    carry_out(forgetting, "c" * 32, Place(sweep=1, start=""))
    assert [each.id for each in forgetting.orders()] == ["b" * 32]
    assert forgetting.go_on("c" * 32, Place(sweep=1, start="")).next is None  # a second delivery


def everything_else() -> dict[str, bytes]:
    """What others may have left in the out-bucket: a key, and what is stored under it."""
    return {
        "0": b"a key that sorts before all results",
        "scaler/lease.json": b"{}",
        "7" * 31: b"one digit short",
        "7" * 33: b"one digit too many",
        "7" * 32 + "/x": b"below a result",
        "é": b"",
        **{f"3/{n}": b"many in a row" for n in range(40)},
    }


def test_what_lies_between_the_results_hides_none_of_them(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """C2: a page of a listing ends where S3 says so, however many of its keys are results'."""
    monkeypatch.setattr(forgetting_module, "PAGE", 10)
    storage, forgetting, s3 = Storage(quick), Forgetting(quick, Storage(quick)), boto3.client("s3")
    named = [result(NAME, id=f"{digit}{n:031x}") for digit in "0379f" for n in range(12)]
    others = [result(OTHER, id=f"{digit}{n:031x}") for digit in "24f" for n in range(20, 24)]
    for each in (*named, *others):
        storage.put_result(each)
    foreign = everything_else()
    for key, body in foreign.items():
        s3.put_object(Bucket=quick.out_bucket, Key=key, Body=body)
    forgetting.order("a" * 32, NAME)
    places = carry_out(forgetting, "a" * 32, Place(sweep=1, start=""))
    assert not forgetting.orders()
    left = {each["Key"] for each in s3.list_objects_v2(Bucket=quick.out_bucket)["Contents"]}
    assert left == {each.id for each in others} | foreign.keys()
    assert all(refusal(message_of(place), tasks={FORGET}) == "" for place in places)


def message_of(place: Place) -> str:
    """The text of the message that goes on there."""
    headers = {"task": FORGET, "id": "x", "lang": "py"}
    call = [["a" * 32, place.sweep, place.start], {}, {}]
    envelope = {"content-type": "application/json", "content-encoding": "utf-8", "body": json.dumps(call)}
    return json.dumps({**envelope, "headers": headers, "properties": {"delivery_info": {}, "body_encoding": "utf-8"}})


DAMAGED = {
    "nothing": b"",
    "no JSON": b"\xff\xd8\xff\xe0",
    "cut off": result(NAME).to_json().encode()[:-40],
    "a list": json.dumps([NAME]).encode(),
    "nested too deeply": b"[" * 100_000,
}
OTHERS = {
    "another version": {"version": 2, "people": [{"who": NAME}]},
    "the name as a key": {"version": 2, "by_name": {NAME: 1}},
    "another's id": {**result(OTHER, candidates=(NAME,)).to_dict(), "id": "b" * 32},
    "no id": {**result(OTHER, candidates=(NAME,)).to_dict(), "id": "../x"},
}


def test_damaged_and_foreign_documents_end_no_pass(
    quick: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: what cannot be read is erased, reported by its id and counted; another version's is read for the name."""
    monkeypatch.setattr(storage_module, "MAX_RESULT_BYTES", 150_000)
    storage, forgetting, s3 = Storage(quick), Forgetting(quick, Storage(quick)), boto3.client("s3")
    unreadable: dict[str, dict[str, Any]] = {}
    erased: dict[str, dict[str, Any]] = {}
    kept: dict[str, dict[str, Any]] = {}
    for body in DAMAGED.values():
        unreadable[uuid.uuid4().hex] = {"Body": body}
    unreadable[uuid.uuid4().hex] = {"Body": b"{}", "StorageClass": "GLACIER"}
    unreadable[uuid.uuid4().hex] = {"Body": b"{}".ljust(150_001)}
    for document in OTHERS.values():
        erased[uuid.uuid4().hex] = {"Body": json.dumps(document).encode()}  # with \u escapes
    kept[uuid.uuid4().hex] = {"Body": json.dumps({"version": 2, "who": f"{NAME}x", "n": [None, 1.5]}).encode()}
    for request_id, stored in (unreadable | erased | kept).items():
        s3.put_object(Bucket=quick.out_bucket, Key=request_id, **stored)
        storage.put_photo(request_id, b"x", file_name="x", content_type="image/jpeg")
    s3.put_object(Bucket=quick.gallery_bucket, Key="incoming/nobody-says-whose", Body=b"x")
    s3.put_object(Bucket=quick.gallery_bucket, Key=ORDERS + "no-order", Body=b"x")
    s3.put_object(Bucket=quick.gallery_bucket, Key=ORDERS + "c" * 32, Body=b"[" * 100_000)
    wait_until(lambda: is_given_later(forgetting), what="an order of a later second")
    place, counts = Place(sweep=1, start=""), []
    with caplog.at_level("WARNING"):
        while True:
            done = forgetting.go_on("a" * 32, place)
            counts.append((done.unreadable, done.erased))
            if done.next is None or done.next.sweep == 2:
                break
            place = done.next
    assert sum(each for each, _ in counts) == len(unreadable)
    assert sum(each for _, each in counts) == len(unreadable | erased)
    carry_out(forgetting, "a" * 32, Place(sweep=2, start=""))
    assert {each.id for each in storage.list_results().results} == kept.keys()
    assert [each for each in unreadable | erased if storage.photo_exists(each)] == []
    said = [each.getMessage() for each in caplog.records if "cannot be read: it is deleted" in each.getMessage()]
    assert len(said) == len(unreadable)
    assert all(any(request_id in line for line in said) for request_id in unreadable)
    assert not any(NAME in line or OTHER in line for line in said)


def is_given_later(forgetting: Forgetting) -> bool:
    """Leave the order; whether it is of a later second than what was stored before, which S3 tells in seconds."""
    first = next(iter(forgetting.orders()), None)
    forgetting.order("a" * 32, NAME)
    return first is not None and forgetting.orders()[0].given > first.given


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
def test_a_worker_with_a_wrong_clock_forgets_at_the_right_time(
    quick: Settings, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """C9: the second sweep waits by S3's clock, on which the order was given."""
    forgetting, right = Forgetting(quick, Storage(quick)), time.time
    forgetting.order("a" * 32, NAME)
    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    first = forgetting.go_on("a" * 32, Place(sweep=1, start="")).next
    assert first is not None
    assert 0 < first.wait_s <= MARGIN_S
    early = forgetting.go_on("a" * 32, Place(sweep=2, start="")).next
    assert early is None or 0 < early.wait_s <= MARGIN_S
    wait_until(lambda: not forgetting.go_on("a" * 32, Place(sweep=2, start="")).next, what="the second sweep")
    assert not forgetting.orders()


def test_an_order_whose_message_was_lost_is_sent_again(quick: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """C11: by the scaler's janitor, by S3's clock, and not each time that it looks."""
    storage, sqs, order_id = Storage(quick), boto3.client("sqs"), "a" * 32
    storage.put_gallery(ORDERS + "no-order", b"x")
    lost, sent = LostOrders(quick, after_s=1), list[str]()
    assert lost.send_again() == []
    Forgetting(quick, storage).order(order_id, NAME)
    assert LostOrders(quick).send_again() == []  # too young

    def send() -> int:
        sent.extend(lost.send_again())
        return len(sent)

    wait_until(lambda: send() == 3, what="an old order")
    assert sent == [order_id] * 3
    ages_s = [
        float(str(each.args[1]))
        for each in caplog.records
        if "is sent again" in each.msg and isinstance(each.args, tuple)
    ]
    assert [later >= 2 * age for age, later in itertools.pairwise(ages_s)] == [True, True]
    queue = sqs.get_queue_url(QueueName=quick.request_queue)["QueueUrl"]
    bodies = [each["Body"] for each in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]]
    assert [refusal(each, tasks={FORGET}) for each in bodies] == [""] * 3
    assert [json.loads(json.loads(each)["body"])[0] for each in bodies] == [[order_id]] * 3
    storage.delete_gallery([ORDERS + order_id])
    assert lost.send_again() == []
    assert not lost._ages_s


# The whole service


@dataclass(frozen=True, kw_only=True)
class Service:
    settings: Settings
    endpoint: str
    client: Client
    folder: Path

    def worker(self) -> Any:
        """A context with a real worker."""
        log = self.folder / f"worker-{uuid.uuid4().hex}"
        return celery_worker("faceapp.tasks", log, self.env(), "--concurrency", "1")

    def env(self) -> dict[str, str]:
        return environ(self.endpoint, self.settings, **quick_environ())

    def send(self, photo: bytes) -> str:
        """Post a photo under a name that says nothing, and return its id at once."""
        fields = {"photo": ("x.jpg", photo, "image/jpeg")}
        answer = urllib3.PoolManager(retries=False, headers=BEARER).request(
            "POST", f"{self.client.url}/v1/recognitions", fields=fields
        )
        assert answer.status == 202, answer.data
        return str(answer.json()["recognitions"][0]["id"])

    def ask(self, method: str, request_id: str) -> int:
        http = urllib3.PoolManager(retries=False, headers=BEARER)
        return http.request(method, f"{self.client.url}/v1/recognitions/{request_id}").status

    def wait_done(self) -> None:
        storage = Storage(self.settings)
        wait_until(lambda: not list(storage.list_gallery(ORDERS)), timeout_s=240, what="the end of all orders")

    def wait_for_results(self, ids: list[str]) -> dict[str, Recognition]:
        storage = Storage(self.settings)
        wait_until(lambda: all(storage.result_exists(each) for each in ids), timeout_s=240, what="all results")
        return {each: found for each in ids if (found := storage.get_result(each))}


def quick_environ() -> dict[str, str]:
    return {"FACEAPP_TASK_TIME_LIMIT_S": str(LIMIT_S), "FACEAPP_GALLERY_REFRESH_S": "0.1"}


@pytest.fixture
def service(aws: str, tmp_path: Path) -> Iterator[Service]:
    """A stack of its own and a web tier, without a worker."""
    settings = Settings(prefix=f"f{uuid.uuid4().hex[:8]}", task_time_limit_s=LIMIT_S, gallery_refresh_s=0.1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws).items():
            patch.setenv(name, value)
        deployment.apply(settings)
        with web_server(aws, settings, tmp_path / "web", **quick_environ()) as (url, _):
            yield Service(settings=settings, endpoint=aws, client=Client(url), folder=tmp_path)


def test_a_person_is_forgotten_everywhere(service: Service, samples: dict[str, Path]) -> None:
    settings, storage = service.settings, Storage(service.settings)
    with service.worker():
        service.client.enrol(NAME, [samples["obama.jpg"]])
        service.client.enrol(OTHER, [samples["biden.jpg"]])
        vectors = {key: storage.get_gallery(key) for key, _ in storage.list_gallery("vectors/")}
        theirs = [found.data for key, found in vectors.items() if found and quote(NAME, safe="") in key]
        assert len(theirs) == 1
        photos = [samples[name].read_bytes() for name in ("obama.jpg", "obama3.jpg")]
        photos.append(encoded(side_by_side(samples["obama.jpg"], samples["biden.jpg"])))
        of_them = [service.send(photo) for photo in photos]
        of_other = service.send(samples["biden.jpg"].read_bytes())
        results = service.wait_for_results([*of_them, of_other])
        for each in of_them:
            assert NAME in {face.name for face in results[each].faces}
        other = results[of_other]
        assert NAME in {candidate.name for candidate in other.faces[0].candidates}
        in_flight = [service.send(photos[1]) for _ in range(6)]

        service.client.forget(NAME)
        assert set(service.client.people()) == {OTHER}
        service.wait_done()
        wait_until(lambda: messages(settings) == 0, what="an empty queue")

    objects = everything(settings)
    assert where(NAME, objects) == []
    assert where(OTHER, objects)
    bodies = b"".join(objects.values())
    assert not [each for each in (*theirs, samples["obama.jpg"].read_bytes()) if each in bodies]
    for each in of_them:
        assert not {f"{settings.in_bucket}/{each}", f"{settings.out_bucket}/{each}"} & set(objects)
        assert service.ask("GET", each) == 404
    for each in in_flight:  # named and erased, or recognised when nobody knew them any more
        found = storage.get_result(each)
        assert found is None or found.answer == "unknown"
        assert (found is None) == (storage.photo_exists(each) is None)
    left = storage.get_result(of_other)
    assert left is not None
    assert [face.name for face in left.faces] == [OTHER]
    assert replace(left, faces=()) == replace(other, faces=())
    stored = storage.photo_exists(of_other)
    assert stored is not None
    assert stored.sha256 == hashlib.sha256(samples["biden.jpg"].read_bytes()).hexdigest()
    log = b"".join(each.read_bytes() for each in service.folder.iterdir() if each.is_file())
    assert b"ready." in log
    assert NAME.encode() not in log


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(service: Service) -> None:
    settings, storage = service.settings, Storage(service.settings)
    queue = boto3.client("sqs").get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
    # As the rest of an order whose worker died is begun anew after that.
    boto3.client("sqs").set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": str(LIMIT_S)})
    results = [result(NAME) if n % 3 else result(OTHER) for n in range(1200)]
    for each in results:
        storage.put_result(each)
    named = [each for each in results if each.answer == NAME]
    # The web tier died before it sent a message, and is asked again for somebody who is not in the gallery.
    Forgetting(settings, storage).order("0" * 32, NAME)
    with pytest.raises(PersonNotFound):
        service.client.forget(NAME)
    message = boto3.client("sqs").receive_message(QueueUrl=queue, VisibilityTimeout=0)["Messages"][0]["Body"]
    assert json.loads(message)["headers"]["task"] == FORGET
    assert len(message.encode()) < 1024 - 50  # a worker's has a place, too
    assert NAME not in message

    first: Popen[bytes]
    with service.worker() as first:
        wait_until(lambda: len(storage.list_results().results) < 1000, timeout_s=240, what="some progress")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert {each.id for each in Forgetting(settings, storage).orders()} > {"0" * 32}
    with service.worker():
        service.wait_done()
    kept = {each.id for start in ("", "8" + "0" * 31) for each in storage.list_results(start=start).results}
    assert len(results) > 2 * PAGE
    assert not {each.id for each in named} & kept
    assert {each.id for each in results} - {each.id for each in named} == kept


def test_one_photo_and_its_result_are_deleted(service: Service, samples: dict[str, Path]) -> None:
    """C8: for good, whatever a task stores that had the photo already."""
    storage, photo = Storage(service.settings), samples["obama.jpg"].read_bytes()
    pending, running = service.send(photo), service.send(photo)
    assert service.ask("DELETE", pending) == 204
    assert service.ask("GET", pending) == 404
    assert service.ask("DELETE", running) == 204
    # Its task was running, and is done now.
    storage.put_result(result("unknown", id=running))
    with service.worker():
        done = service.send(photo)
        service.wait_for_results([done])
        assert service.ask("DELETE", done) == 204
        assert service.ask("GET", done) == 404
        assert service.ask("DELETE", done) == 404
        # SQS had delivered its message twice, and the other worker is done now.
        storage.put_result(result("unknown", id=done))
        wait_until(lambda: not storage.result_exists(done), timeout_s=240, what="the end of a second result")
        wait_until(lambda: not storage.result_exists(running), timeout_s=240, what="the end of a late result")
        wait_until(lambda: messages(service.settings) == 0, timeout_s=240, what="an empty queue")
    assert everything(service.settings) == {}
    assert service.ask("DELETE", uuid.uuid4().hex) == 404
    assert service.ask("DELETE", "x") == 404
