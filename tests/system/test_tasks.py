"""The tasks, run by a real worker with the real model, over the embedded S3 and SQS."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from celery_sqs.scaler.listener import Listener
from celery_sqs.scaler.workers import Workers
from faceapp import broker, tasks
from faceapp.broker.messages import ERASE, LONGEST_ERASE_S
from faceapp.config import Settings
from faceapp.errors import RecognitionNotFound, StorageUnavailable
from faceapp.http import dispatch
from faceapp.people import People
from faceapp.schema import Enrolment, Failure, Recognition
from faceapp.storage import Storage
from faceapp.work.forgetting import Forgetting
from faceapp.work.pace import worked_s
from tests.support.services import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("worker", "aws")


@pytest.fixture
def storage(system: Settings) -> Storage:
    return Storage(system)


@pytest.fixture
def person(storage: Storage) -> Any:
    """A name that is nobody's, forgotten afterwards."""
    name = f"p{uuid.uuid4().hex[:8]}"
    yield name
    if name in {each.name for each in People(storage).list_people()}:
        People(storage).forget(name)


def test_the_tasks_module_leaves_numpy_to_the_worker() -> None:
    """C7: numpy reads how many threads it may start when it is imported, and a host with more than one cannot fork."""
    code = "import sys, faceapp.tasks; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def recognise(storage: Storage, photo: bytes, file_name: str = "photo.jpg") -> Recognition:
    request_id = uuid.uuid4().hex
    storage.put_photo(request_id, photo, file_name=file_name, content_type="image/jpeg")
    answer = tasks.recognize.apply_async(args=[request_id], task_id=request_id).get(timeout=PATIENCE_S)
    result = Recognition.from_dict(answer)
    assert storage.get_result(request_id) == result
    return result


def enrol(storage: Storage, name: str, *photos: bytes) -> Enrolment:
    request_id = uuid.uuid4().hex
    for n, photo in enumerate(photos):
        storage.put_incoming(request_id, n, photo, name=name, file_name=f"{n}.jpg")
    answer = tasks.enrol.apply_async(args=[request_id], task_id=request_id).get(timeout=PATIENCE_S)
    assert storage.list_incoming(request_id) == []
    return Enrolment.from_dict(answer)


def test_an_enrolled_person_is_recognised(storage: Storage, person: str, samples: dict[str, Path]) -> None:
    enrolment = enrol(storage, person, samples["obama.jpg"].read_bytes())
    assert enrolment.failures == ()
    assert People(storage).find(person)[1] == list(enrolment.photos)

    result = recognise(storage, samples["obama3.jpg"].read_bytes(), "obama 3.jpg")

    assert (result.status, result.answer, result.file_name) == ("done", person, "obama 3.jpg")
    assert result.faces[0].distance is not None
    assert 0 < result.faces[0].distance < 0.6
    assert result.faces[0].candidates[0].name == person
    assert result.gallery_version
    assert result.timings.embed_s > 0
    assert result.timings.queued_s > 0
    assert recognise(storage, samples["biden.jpg"].read_bytes()).answer == "unknown"


def test_a_forgotten_person_is_unknown_within_seconds(storage: Storage, person: str, samples: dict[str, Path]) -> None:
    photo = samples["biden.jpg"].read_bytes()
    enrol(storage, person, photo)
    assert recognise(storage, photo).answer == person

    People(storage).forget(person)

    for _ in range(50):
        if recognise(storage, photo).answer == "unknown":
            return
    pytest.fail("the worker still knows who was forgotten")


def test_a_photo_cut_off_on_the_way_gives_a_failed_result(storage: Storage, samples: dict[str, Path]) -> None:
    photo = samples["obama.jpg"].read_bytes()
    result = recognise(storage, photo[: len(photo) // 2])
    assert result.status == "failed"
    assert result.failure is not None
    assert result.failure.code == "image_truncated"


def test_a_photo_that_is_not_there_gives_a_failed_result(storage: Storage) -> None:
    request_id = uuid.uuid4().hex
    answer = tasks.recognize.apply_async(args=[request_id], task_id=request_id).get(timeout=PATIENCE_S)
    result = Recognition.from_dict(answer)
    assert result.failure is not None
    assert result.failure.code == "recognition_not_found"


def test_one_bad_photo_enrols_none(storage: Storage, person: str, samples: dict[str, Path]) -> None:
    enrolment = enrol(storage, person, samples["obama.jpg"].read_bytes(), b"no photo")
    assert enrolment.photos == ()
    assert [failure.file_name for failure in enrolment.failures] == ["1.jpg"]
    assert enrolment.failures[0].code == "image_unsupported"
    assert person not in {each.name for each in People(storage).list_people()}


def test_a_second_delivery_changes_nothing(storage: Storage, person: str, samples: dict[str, Path]) -> None:
    enrolment = enrol(storage, person, samples["obama.jpg"].read_bytes())
    assert tasks.enrol.apply_async(args=[enrolment.id], task_id=enrolment.id).get(timeout=PATIENCE_S) is None
    assert People(storage).find(person)[1] == list(enrolment.photos)


def test_a_dispatched_photo_is_recognised_though_nobody_waits(storage: Storage, samples: dict[str, Path]) -> None:
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    for request_id in (first, second):
        storage.put_photo(request_id, samples["obama.jpg"].read_bytes(), file_name="a.jpg", content_type="image/jpeg")
    tasks.recognize.apply_async(args=[first], task_id=first, ignore_result=True)
    # One worker process takes the messages one by one: the second answer comes after the first photo's result.
    for _ in range(3):
        tasks.recognize.apply_async(args=[second], task_id=second).get(timeout=PATIENCE_S)
    result = storage.get_result(first)
    assert result is not None
    assert result.status == "done"


def test_an_erasure_is_sent_on_until_every_task_has_ended(storage: Storage) -> None:
    """C8: a task may run for an hour, and SQS delays a message by a quarter of one."""
    request_id = uuid.uuid4().hex
    storage.put_photo(request_id, b"photo", file_name="a.jpg", content_type="image/jpeg")
    tasks.erase.apply_async(args=[request_id, 3], ignore_result=True)
    wait_until(lambda: storage.photo_exists(request_id) is None, what="the first erasure")
    storage.put_result(Recognition(id=request_id, status="done"))
    wait_until(lambda: not storage.result_exists(request_id), what="the last erasure")


@pytest.mark.parametrize(("wait_s", "hops"), [(1, [1]), (900, [900]), (901, [900, 1]), (3603, [900, 900, 900, 900, 3])])
def test_a_long_wait_is_made_of_short_delays(wait_s: int, hops: list[int]) -> None:
    found, left = [], [wait_s]
    while left:
        delay_s, left = tasks.in_hops(left[0])
        found.append(delay_s)
    assert found == hops


def test_the_web_tier_says_how_long_an_erasure_is_to_go_on() -> None:
    """C8: longer than a task may run, and in a message that workers take."""
    sent: dict[str, Any] = {}

    class Task:
        name = ERASE

        def apply_async(self, **options: Any) -> None:
            sent.update(options)

    ended_s = Forgetting(Settings(task_time_limit_s=3600), Storage(Settings())).ended_s
    dispatch._send(Task(), "a" * 32, waits=False, delay_s=ended_s)
    assert sent["delay_seconds"] == 900
    request_id, left_s = sent["args"]
    assert (request_id, left_s) == ("a" * 32, ended_s - 900)
    assert 3600 < ended_s <= LONGEST_ERASE_S


def test_the_scaler_hears_what_a_photo_takes(storage: Storage, system: Settings, samples: dict[str, Path]) -> None:
    """E5 and C3: from the model's own timing before there was a photo, and from each recognition after that."""
    workers = Workers(service_s=9000.0, worked_s=worked_s)
    listener = Listener(broker.create_app(system), workers)
    listener.start()
    wait_until(lambda: workers.service_s < 9000, what="a heartbeat with the model's timing")
    assert not workers.service.measured
    recognise(storage, samples["biden.jpg"].read_bytes())
    wait_until(lambda: workers.service.measured, what="the end of the recognition, as an event")
    listener.stop()


class FakeTime:
    """A clock that goes on while somebody sleeps, and a second with each look at `perf_counter`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def perf_counter(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += 10.0


def test_a_wait_for_s3_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """C3: the scaler took the pauses between two tries for work. A photo that is gone is none either."""
    answers: list[Recognition | None] = [None, Recognition(id="x", status="done"), gone()]

    class OnceWithoutS3:
        def recognise(self, request_id: str, *, queued_s: float) -> Recognition:
            answer = answers.pop(0)
            if answer is None:
                raise StorageUnavailable
            return answer

    monkeypatch.setattr(tasks, "_worker", OnceWithoutS3)
    monkeypatch.setattr(tasks, "time", FakeTime())
    assert repr(tasks.recognize.run("x")) == "done: no_face in 1.0000 s"
    assert repr(tasks.recognize.run("x")) == "failed: recognition_not_found"


def gone() -> Recognition:
    return Recognition(id="x", status="failed", failure=Failure.of(RecognitionNotFound()))
