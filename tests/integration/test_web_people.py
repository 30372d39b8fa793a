"""People over HTTP: names, what an enrolment's answer tells, its truth, and who learns who is enrolled."""

# ruff: noqa: RUF001 # letters that look like others are what some of this is about
from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import numpy as np
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from faceapp import cli, tasks
from faceapp.config import Settings
from faceapp.http import dispatch
from faceapp.operations.client import Client as ServiceClient
from faceapp.operations.folders import enrol_people
from faceapp.people import People
from faceapp.people.formats import Vector, pack_vector
from faceapp.people.people import PHOTOS, VECTORS, path_of, photo_id_of
from faceapp.schema import Box, Candidate, Face, Photo, Recognition
from faceapp.security.keys import ADMIN, ENROL, RECOGNISE, Keys
from faceapp.storage import Storage
from faceapp.work.worker import Worker
from tests.support.web import File, as_json, client_of, plain, problem, web_server

ZWNJ = "\u200c"


@pytest.fixture
def client(system: Settings) -> FlaskClient:
    return client_of()


@pytest.fixture
def storage(system: Settings) -> Storage:
    return Storage(system)


@pytest.fixture(autouse=True)
def nobody_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whom a test enrols is forgotten when it ends."""
    yield
    if "system" in request.fixturenames:
        people = People(Storage(request.getfixturevalue("system")))
        for person in people.list_people():
            people.forget(person.name)


# Names


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("O\u2019Brien", "O'Brien"),
        ("山田\u3000太郎", "山田 太郎"),
        ("バラク・オバマ", "バラク・オバマ"),
        ("巴拉克\u00b7奥巴马", "巴拉克\u00b7奥巴马"),
        (f"علی{ZWNJ}رضا", f"علی{ZWNJ}رضا"),
        ("Jean\u2011Luc", "Jean-Luc"),
        ("Smith, John", "Smith, John"),
        ("Anna (work)", "Anna (work)"),
        ("Tom & Anna", "Tom & Anna"),
        ("𠮷" * 64, "𠮷" * 64),
    ],
)
def test_a_name_goes_all_the_way(client: FlaskClient, samples: dict[str, Path], name: str, kept: str) -> None:
    """R8: through URL, S3's metadata and keys, the worker and the classic line, and it is forgotten by either name."""
    photo, url = samples["obama.jpg"].read_bytes(), f"/v1/people/{quote(name, safe='')}"
    answer = client.put(url, data={"photo": File(photo)})

    assert (answer.status_code, as_json(answer)["name"]) == (201, kept)
    assert client.get(answer.headers["Location"]).json == client.get(url).json
    assert [each["name"] for each in as_json(client.get("/v1/people"))["people"]] == [kept]
    assert client.get(as_json(client.get(url))["photos"][0]["links"]["self"]).data == photo
    assert client.post("/", data={"inputFile": File(photo, "me.jpg")}).text == f"me:{kept}"
    assert client.delete(url).status_code == 204
    problem(client.get(url), 404, "person_not_found")


def test_a_refusal_over_http_names_the_character(client: FlaskClient) -> None:
    """S11, R8: and nothing is stored or sent."""
    answer = client.put("/v1/people/" + quote("obama\ufe0f"), data={"photo": File(plain())})
    assert "VARIATION SELECTOR-16, U+FE0F" in problem(answer, 400, "name_invalid")["detail"]
    answer = client.put("/v1/people/" + quote("ｕｎｋｎｏｗｎ"), data={"photo": File(plain())})
    assert "an answer of the service" in problem(answer, 400, "name_invalid")["detail"]


@pytest.mark.parametrize("name", ["obama\ufe0f", "\u3164", "ｕｎｋｎｏｗｎ", "John  Smith"])
def test_whom_an_earlier_version_enrolled_is_shown_and_forgotten(
    client: FlaskClient, system: Settings, storage: Storage, name: str
) -> None:
    """S11: a name that today's rules refuse or write in another way can be read and forgotten as it is."""
    photo_id = photo_id_of(plain())
    storage.put_gallery(PHOTOS + path_of(name, photo_id), plain())
    storage.put_gallery(VECTORS + path_of(name, photo_id), b"vector")
    url = f"/v1/people/{quote(name, safe='')}"

    assert as_json(client.get(url))["name"] == name
    assert as_json(client.get(url))["photos"][0]["id"] == photo_id
    assert client.get(f"{url}/photos/{photo_id}").data == plain()
    assert client.delete(url).status_code == 204
    assert list(storage.list_gallery(PHOTOS)) == list(storage.list_gallery(VECTORS)) == []
    orders = [
        json.loads((storage.get_gallery(key) or pytest.fail(key)).data) for key, _ in storage.list_gallery("forg")
    ]
    assert {"name": name} in orders


# What an enrolment tells


@pytest.mark.usefixtures("worker")
def test_an_enrolment_says_what_is_like_it(client: FlaskClient, samples: dict[str, Path]) -> None:
    """R9, S11: the same photo and a like name, and another photo of that face under another name."""
    obama, obama2 = (samples[name].read_bytes() for name in ("obama.jpg", "obama2.jpg"))
    first = as_json(client.put("/v1/people/John Smith", data={"photo": File(obama)}))
    assert first["notices"] == []

    second = client.put("/v1/people/JOHN SMITH", data={"photo": File(obama)})
    assert second.status_code == 201
    told = as_json(second)["notices"]
    assert [(each["code"], each["name"]) for each in told] == [
        ("similar_name", "John Smith"),
        ("same_photo", "John Smith"),
    ]
    assert all("'John Smith'" in each["detail"] for each in told)

    third = as_json(client.put("/v1/people/Barack", data={"photo": File(obama2)}))["notices"]
    assert {(each["code"], each["name"]) for each in third} == {
        ("looks_like", "John Smith"),
        ("looks_like", "JOHN SMITH"),
    }
    assert all(0 < each["distance"] < 0.6 and each["photo"] == photo_id_of(obama2) for each in third)

    biden = client.put("/v1/people/Barack", data={"photo": File(samples["biden.jpg"].read_bytes())})
    assert ("unlike", "Barack") in {(each["code"], each["name"]) for each in as_json(biden)["notices"]}


@pytest.mark.usefixtures("worker")
@pytest.mark.slow
def test_the_command_prints_what_is_like_it(
    system: Settings, aws_endpoint: str, samples: dict[str, Path], tmp_path: Path
) -> None:
    """R9: `people enrol` and `people import` print the sentences beside what they did."""
    with web_server(aws_endpoint, system, tmp_path / "web") as (url, _):
        service = ServiceClient(url)
        assert service.enrol("Ann", [samples["biden.jpg"]]) == []
        [each] = enrol_people(service, {"ANN": [samples["biden.jpg"]]})
        assert each.refusal is None
        assert ["another person's name" in notice for notice in each.notices] == [True, False]

        done = CliRunner().invoke(cli.main, ["people", "--url", url, "enrol", "Bea", str(samples["biden.jpg"])])
        assert done.exit_code == 0, done.output
        assert done.stdout == "Bea is enrolled.\n"
        assert "'Ann' has this photo, too." in done.stderr


# All or none, and a true answer


@pytest.mark.usefixtures("worker")
def test_vectors_of_another_model_are_a_conflict(
    client: FlaskClient, storage: Storage, samples: dict[str, Path]
) -> None:
    """C7: 409 with what to do, and no "error of ours"; the photos wait no longer."""
    other = pack_vector(Vector(model="facenet", rows=np.ones((2, 512), np.float32)))
    storage.put_gallery(VECTORS + path_of("old", "0" * 24), other)
    answer = client.put("/v1/people/ann", data={"photo": File(samples["biden.jpg"].read_bytes())})

    document = problem(answer, 409, "gallery_mismatch")
    assert "enrol those again first, or set FACEAPP_EMBEDDER" in document["detail"]
    assert storage.list_incoming(document["request_id"]) == []
    assert [each.name for each in People(storage).list_people()] == ["old"]


def test_a_full_gallery_is_told_of(stack: Settings, aws: str, samples: dict[str, Path]) -> None:
    """S14: FACEAPP_GALLERY_MAX_PHOTOS reaches the worker, which refuses the whole enrolment."""
    worker, storage, request_id = Worker(replace(stack, gallery_max_photos=1)), Storage(stack), uuid.uuid4().hex
    for n, name in enumerate(["obama.jpg", "obama2.jpg"]):
        storage.put_incoming(request_id, n, samples[name].read_bytes(), name="ann", file_name=name)

    [failure] = worker.enrol(request_id).failures

    assert failure.code == "gallery_full"
    assert storage.list_incoming(request_id) == []
    assert list(storage.list_gallery(PHOTOS)) == []


@pytest.fixture
def silent(system: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Has the next enrolment done by `work`, given its id, and answered with `reply`, or not at all."""
    said: dict[str, Any] = {"work": lambda request_id: None, "reply": {}}

    def send(_task: Any, request_id: str, *, waits: bool) -> Any:
        tasks.app.backend.on_task_call(None, request_id)
        said["work"](request_id)
        if said["reply"]:
            sqs = boto3.client("sqs")
            queue = sqs.get_queue_url(QueueName=tasks.app.backend.reply_queue)["QueueUrl"]
            sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"task_id": request_id, **said["reply"]}))
        return tasks.app.AsyncResult(request_id)

    monkeypatch.setattr(dispatch, "_send", send)
    return said


GIVEN_UP = {"exc_type": "WorkerLostError", "exc_message": ["exited"], "exc_module": "billiard"}
LOST = [{}, {"status": "SUCCESS", "result": None}, {"status": "FAILURE", "result": GIVEN_UP}]


@pytest.mark.parametrize("reply", LOST, ids=["none", "second delivery", "given up"])
def test_a_finished_enrolment_is_answered_as_one(
    system: Settings, storage: Storage, silent: dict[str, Any], reply: dict[str, Any]
) -> None:
    """C6: the worker has enrolled the photos and its answer is lost: the answer says what the gallery has."""

    def enrol(request_id: str) -> None:
        for n in storage.list_incoming(request_id):
            found = storage.get_incoming(request_id, n)
            path = path_of(found.name, photo_id_of(found.data))
            storage.put_gallery(PHOTOS + path, found.data)
            storage.put_gallery(VECTORS + path, b"vector")
        storage.delete_incoming(request_id)

    silent.update(work=enrol, reply=reply)
    photos = [plain(), plain(400)]
    answer = client_of(replace(system, web_wait_s=2)).put(
        "/v1/people/ann", data={"photo": [File(photo) for photo in photos]}
    )
    assert answer.status_code == 201, answer.text
    assert [each["id"] for each in as_json(answer)["photos"]] == [photo_id_of(photo) for photo in photos]


@pytest.mark.parametrize("reply", LOST[:2], ids=["none", "second delivery"])
def test_an_enrolment_of_which_nothing_is_left_is_not_said_to_come(
    system: Settings, storage: Storage, silent: dict[str, Any], reply: dict[str, Any]
) -> None:
    """C6: refused or forgotten, and the answer is lost: 504 would promise what does not happen."""
    silent.update(work=storage.delete_incoming, reply=reply)
    answer = client_of(replace(system, web_wait_s=2)).put("/v1/people/ann", data={"photo": File(plain())})
    problem(answer, 503, "enrolment_lost")


def test_an_enrolment_that_waits_is_said_to_come(system: Settings, storage: Storage, silent: dict[str, Any]) -> None:
    """C6: a part of the photos is no enrolment."""

    def enrol_one(request_id: str) -> None:
        storage.put_gallery(VECTORS + path_of("ann", photo_id_of(plain())), b"vector")

    silent.update(work=enrol_one)
    answer = client_of(replace(system, web_wait_s=2)).put(
        "/v1/people/ann", data={"photo": [File(plain()), File(plain(400))]}
    )
    problem(answer, 504, "recognition_timeout")


def test_a_person_forgotten_before_the_worker_came_is_told_of(
    stack: Settings, aws: str, samples: dict[str, Path]
) -> None:
    """C6: the answer says so, and not that it comes later."""
    worker, storage, request_id = Worker(stack), Storage(stack), uuid.uuid4().hex
    storage.put_incoming(request_id, 0, samples["obama.jpg"].read_bytes(), name="ann", file_name="a.jpg")
    handed_in = storage.get_incoming(request_id, 0).last_modified
    worker.forgetting.is_forgotten = lambda name, since: (name, since) == ("ann", handed_in)  # type: ignore[method-assign]

    enrolment = worker.enrol(request_id)

    assert [each.code for each in enrolment.failures] == ["person_forgotten"]
    assert list(storage.list_gallery(PHOTOS)) == []


def test_an_enrolment_tells_of_nobody_unlike_though_the_nearest_is_always_named(
    stack: Settings, aws: str, samples: dict[str, Path]
) -> None:
    """R9: FACEAPP_NEAREST=always is about answers; a notice is about who is like the photo."""
    worker, storage = Worker(replace(stack, nearest="always")), Storage(stack)

    def enrol(name: str, photo: str) -> list[tuple[str, str]]:
        request_id = uuid.uuid4().hex
        storage.put_incoming(request_id, 0, samples[photo].read_bytes(), name=name, file_name=photo)
        return [(each.code, each.name) for each in worker.enrol(request_id).notices]

    assert enrol("joe", "biden.jpg") == []
    assert enrol("barack", "obama.jpg") == []
    assert enrol("obama", "obama.jpg") == [("same_photo", "barack")]


# Calls


def test_an_enrolment_lists_no_one_else(
    system: Settings, storage: Storage, silent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C11: PUT looks at that person's photos alone, however many others there are."""
    listed: list[str] = []
    inner = Storage._list_gallery

    def list_gallery(self: Storage, prefix: str) -> Any:
        listed.append(prefix)
        return inner(self, prefix)

    monkeypatch.setattr(Storage, "_list_gallery", list_gallery)
    silent.update(reply={"status": "SUCCESS", "result": None}, work=storage.delete_incoming)
    client_of(system).put("/v1/people/ann", data={"photo": File(plain())})

    assert {prefix for prefix in listed if not prefix.startswith("incoming/")} == {"vectors/ann/"}


# Who learns who is enrolled


def _stored(storage: Storage, name: str) -> str:
    """The id of a result with one face, which is `name`, or unknown."""
    near = (
        Candidate(name="ann", distance=0.41),
        Candidate(name="bob", distance=0.52),
        Candidate(name="eve", distance=0.9),
    )
    face = Face(
        box=Box(left=0, top=0, right=9, bottom=9),
        landmarks=(),
        score=1,
        name=name,
        distance=0.41,
        candidates=near,
    )
    result = Recognition(
        id=uuid.uuid4().hex, status="done", photo=Photo(width=9, height=9, format="JPEG"), faces=(face,)
    )
    storage.put_result(result)
    return result.id


@pytest.mark.parametrize("role", [None, RECOGNISE, ENROL, ADMIN])
def test_only_who_may_list_people_learns_who_is_merely_near(stack: Settings, role: str | None) -> None:
    """S5: neither who else is enrolled nor how near a stranger is, for keys that may recognise only.

    Without a role it is the start's own credential, which is an admin's.
    """
    storage, client = Storage(stack), client_of(stack)
    headers = {"Authorization": f"Bearer {Keys(storage).create(name='x', role=role).text}"} if role else {}

    def face(name: str) -> Any:
        answer = as_json(client.get(f"/v1/recognitions/{_stored(storage, name)}", headers=headers))
        return answer["faces"][0]

    known, stranger = face("ann"), face("unknown")
    assert (known["name"], known["distance"]) == ("ann", 0.41)
    if role != RECOGNISE:
        assert [each["name"] for each in known["candidates"]] == ["ann", "bob", "eve"]
        assert [each["name"] for each in stranger["candidates"]] == ["ann", "bob", "eve"]
        assert stranger["distance"] == 0.41
    else:
        assert known["candidates"] == [{"name": "ann", "distance": 0.41}]
        assert (stranger["distance"], stranger["candidates"]) == (None, [])


@pytest.mark.usefixtures("worker")
def test_an_answer_that_is_waited_for_says_no_more(
    client: FlaskClient, system: Settings, samples: dict[str, Path]
) -> None:
    """S5: `Prefer: wait` answers as GET does; the stored document keeps who was near."""
    client.put("/v1/people/biden", data={"photo": File(samples["biden.jpg"].read_bytes())})
    key = Keys(Storage(system)).create(name="x", role=RECOGNISE).text
    answer = client.post(
        "/v1/recognitions",
        data={"photo": File(samples["obama.jpg"].read_bytes())},
        headers={"Prefer": "wait=60", "Authorization": f"Bearer {key}"},
    )
    [item] = as_json(answer)["recognitions"]
    assert (item["answer"], item["faces"][0]["distance"], item["faces"][0]["candidates"]) == ("unknown", None, [])
    stored = Storage(system).get_result(item["id"])
    assert stored is not None
    assert [each.name for each in stored.faces[0].candidates] == ["biden"]
