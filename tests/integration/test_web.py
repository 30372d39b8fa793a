"""The web tier's contracts, in process, over the embedded AWS and with a real worker."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from botocore.exceptions import ClientError
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from werkzeug.routing import Rule

from faceapp import broker, images, tasks
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable
from faceapp.http import dispatch, openapi
from faceapp.http.api import preferred_wait_s
from faceapp.http.uploads import clean_name, stem
from faceapp.people import People
from faceapp.schema import Recognition
from faceapp.storage import Storage
from tests.support.services import wait_until
from tests.support.web import File, as_json, client_of, encoded, nothing_new, plain, problem, side_by_side, stored


@pytest.fixture
def client(system: Settings) -> FlaskClient:
    return client_of()


@pytest.fixture
def person(system: Settings) -> Iterator[str]:
    """A name that is nobody's, forgotten afterwards."""
    name = f"Zoë O'Neil {uuid.uuid4().hex[:6]}"
    yield name
    people = People(Storage(system))
    if name in {each.name for each in people.list_people()}:
        people.forget(name)


def conforms(document: Any, schema: str) -> None:
    """`document` is what the API's description says it is."""
    whole = {"$ref": f"#/components/schemas/{schema}", **openapi.document()}
    OAS31Validator(whole).validate(json.loads(json.dumps(document)))


# The classic contract


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("field", ["inputFile", "myfile", "file"])
def test_one_photo_gets_one_line(client: FlaskClient, field: str) -> None:
    answer = client.post("/", data={field: File(plain(), "test.00.jpg")})
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == "test.00:no_face"


@pytest.mark.usefixtures("worker")
def test_the_largest_face_is_the_answer(client: FlaskClient, person: str, samples: dict[str, Path]) -> None:
    client.put(f"/v1/people/{person}", data={"photo": File(samples["obama.jpg"].read_bytes())})
    answer = client.post("/", data={"inputFile": File(samples["obama3.jpg"].read_bytes(), "obama3.jpg")})
    assert answer.text == f"obama3:{person}"
    answer = client.post("/", data={"inputFile": File(samples["biden.jpg"].read_bytes(), "biden.jpg")})
    assert answer.text == "biden:unknown"


@pytest.mark.parametrize(
    ("sent", "kept", "shown"),
    [
        ("test_00.jpg", "test_00.jpg", "test_00"),
        ("holiday.2024.jpeg", "holiday.2024.jpeg", "holiday.2024"),
        ("noextension", "noextension", "noextension"),
        (".jpg", ".jpg", ".jpg"),
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\photos\\me.png", "me.png", "me"),
        ("folder/", "folder", "folder"),
        ("a\r\nb\x00\x85\u2028c.jpg", "a b c.jpg", "a b c"),
        ("quo\"te's.jpg", "quo\"te's.jpg", "quo\"te's"),
        ("😀" * 1000 + ".jpg", "😀" * 1000 + ".jpg", "😀" * 1000),
        ("half \ud83d surrogate.jpg", "half ? surrogate.jpg", "half ? surrogate"),
        ("me\u202egpj.exe\u2066.jpg", "megpj.exe.jpg", "megpj.exe"),
        ("\u200f.\u061c", ".", "."),
        ("", "photo", "photo"),
        ("///", "photo", "photo"),
    ],
)
def test_file_names_become_one_line(sent: str, kept: str, shown: str) -> None:
    assert clean_name(sent) == kept
    assert stem(kept) == shown


@pytest.mark.usefixtures("worker")
def test_a_part_without_content_type_and_with_a_hostile_name_is_answered(client: FlaskClient) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="inputFile"; filename="a/b\\"c%0A\xf0\x9f\x98\x80.d.jpg"\r\n\r\n'
        + plain()
        + b"\r\n--x--\r\n"
    )
    answer = client.post("/", data=body, content_type="multipart/form-data; boundary=x")
    assert answer.text == 'b"c%0A😀.d:no_face'


# Recognitions


@pytest.mark.usefixtures("worker")
def test_results_within_the_preferred_wait_come_at_once(client: FlaskClient, samples: dict[str, Path]) -> None:
    photo = samples["obama.jpg"].read_bytes()
    answer = client.post("/v1/recognitions", data={"x": File(photo, "o.jpg")}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Preference-Applied"] == "wait=60"
    conforms(as_json(answer), "Recognitions")
    (item,) = as_json(answer)["recognitions"]
    assert (item["status"], item["file_name"], len(item["faces"])) == ("done", "o.jpg", 1)
    assert answer.headers["Location"] == item["links"]["self"]

    again = client.get(item["links"]["self"])
    assert as_json(again) == item
    conforms(as_json(again), "Item")


def test_without_a_preference_the_answer_is_202_and_the_result_follows(
    client: FlaskClient, system: Settings, worker: object
) -> None:
    answer = client.post("/v1/recognitions", data={"x": File(plain(), "p.jpg")})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers
    assert int(answer.headers["Retry-After"]) > 0
    conforms(as_json(answer), "Recognitions")
    url = answer.headers["Location"]
    tasks.recognize.apply_async(args=[url.rsplit("/", 1)[1]]).get(timeout=240)
    assert as_json(client.get(url))["answer"] == "no_face"


def test_a_photo_without_a_result_is_pending(client: FlaskClient, system: Settings) -> None:
    request_id = uuid.uuid4().hex
    Storage(system).put_photo(request_id, plain(), file_name="later.jpg", content_type="image/jpeg")
    answer = client.get(f"/v1/recognitions/{request_id}")
    assert answer.status_code == 200
    assert (as_json(answer)["status"], as_json(answer)["file_name"]) == ("pending", "later.jpg")
    assert int(answer.headers["Retry-After"]) > 0
    conforms(as_json(answer), "Item")


@pytest.mark.usefixtures("worker")
def test_one_bad_photo_does_not_sink_the_others(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/recognitions",
        data={"a": File(plain(), "a.jpg"), "b": File(b"text", "b.jpg"), "c": File(plain(), "c.jpg")},
        headers={"Prefer": "respond-later; x, wait=60"},
    )
    assert answer.status_code == 200
    conforms(as_json(answer), "Recognitions")
    assert [(item["file_name"], item["status"]) for item in as_json(answer)["recognitions"]] == [
        ("a.jpg", "done"),
        ("b.jpg", "failed"),
        ("c.jpg", "done"),
    ]
    failed = as_json(answer)["recognitions"][1]
    assert (failed["id"], failed["failure"]["code"]) == (None, "image_unsupported")
    assert "Location" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([], 0),
        (["wait=10"], 10),
        (['return=minimal, Wait = "7"; foo'], 7),
        (["return=minimal", "wait=5"], 5),
        (["wait=9999"], 300),
        (["respond-async, wait=10"], 0),
        (["wait=-1"], 0),
        (["wait=soon"], 0),
        (["waiting=10"], 0),
    ],
)
def test_prefer_is_read_as_rfc_7240_writes_it(headers: list[str], wait_s: float) -> None:
    assert preferred_wait_s(headers, most_s=300) == wait_s


# An answer that is lost, or late


@pytest.fixture
def no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are told to answer a queue that nobody reads."""
    send = tasks.recognize.apply_async
    monkeypatch.setattr(tasks.recognize, "apply_async", lambda **named: send(**named, reply_to="nobody"))


@pytest.mark.usefixtures("worker", "no_answers")
def test_a_lost_answer_is_found_in_s3(system: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LOOK_AFTER_S", 0.2)
    client = client_of(replace(system, web_wait_s=60))
    answer = client.post("/", data={"inputFile": File(plain(), "lost.jpg")})
    assert answer.text == "lost:no_face"


@pytest.mark.usefixtures("worker", "no_answers")
def test_no_answer_in_time_is_a_problem_that_says_where_the_result_will_be(
    system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "get_result", lambda *_: None)
    client = client_of(replace(system, web_wait_s=0.1))
    answer = client.post("/", data={"inputFile": File(plain())})
    document = problem(answer, 504, "recognition_timeout")
    monkeypatch.undo()
    assert document["links"]["self"] == f"/v1/recognitions/{document['id']}"
    assert client.get(document["links"]["self"]).status_code == 200


def test_a_queue_that_refuses_leaves_nothing_behind(
    client: FlaskClient, system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise BrokerUnavailable

    before = stored(system)
    monkeypatch.setattr(tasks.recognize, "apply_async", refuse)
    monkeypatch.setattr(tasks.enrol, "apply_async", refuse)
    for answer in (
        client.post("/", data={"inputFile": File(plain())}),
        client.post("/v1/recognitions", data={"inputFile": File(plain())}),
        client.put("/v1/people/Nobody", data={"photo": File(plain())}),
    ):
        problem(answer, 503, "broker_unavailable")
        assert answer.headers["Retry-After"]
    assert nothing_new(system, before)


def test_the_answer_to_a_task_that_was_not_sent_is_not_waited_for(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS would be asked for it for an hour."""

    def refuse(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, "SendMessage")

    monkeypatch.setattr(broker.Channel, "_put", refuse)
    problem(client.post("/", data={"inputFile": File(plain())}), 503, "broker_unavailable")
    wait_until(lambda: tasks.app.backend.collector.waiting == 0, what="nothing waited for")


# People


@pytest.mark.usefixtures("worker")
def test_a_person_is_enrolled_shown_and_forgotten(
    client: FlaskClient, system: Settings, person: str, samples: dict[str, Path]
) -> None:
    """S2: the media type is stored with the photo."""
    photos = [samples["obama.jpg"].read_bytes(), samples["obama2.jpg"].read_bytes()]

    answer = client.put(f"/v1/people/{person}", data={"photo": [File(photos[0]), File(photos[1])]})
    assert answer.status_code == 201, answer.text
    conforms(as_json(answer), "Person")
    assert len(as_json(answer)["photos"]) == 2
    again = client.put(f"/v1/people/{person}", data={"photo": File(photos[0])})
    assert again.status_code == 200
    assert {each["id"] for each in as_json(again)["photos"]} < {each["id"] for each in as_json(answer)["photos"]}

    everybody = as_json(client.get("/v1/people"))
    conforms(everybody, "People")
    assert {each["name"]: each["photos"] for each in everybody["people"]}[person] == 2
    shown = client.get(answer.headers["Location"])
    conforms(as_json(shown), "Person")
    urls = [each["links"]["self"] for each in as_json(shown)["photos"]]
    fetched = [client.get(url) for url in urls]
    assert {each.data for each in fetched} == set(photos)
    assert {each.mimetype for each in fetched} == {"image/jpeg"}
    assert client.get(urls[0], headers={"If-None-Match": fetched[0].headers["ETag"]}).status_code == 304
    kept = boto3.client("s3").list_objects_v2(Bucket=system.gallery_bucket, Prefix=f"photos/{quote(person)}/")
    for each in kept["Contents"]:
        head = boto3.client("s3").head_object(Bucket=system.gallery_bucket, Key=each["Key"])
        assert head["ContentType"] == "image/jpeg"

    assert client.delete(urls[0]).status_code == 204
    problem(client.get(urls[0]), 404, "not_found")
    problem(client.delete(urls[0]), 404, "not_found")
    assert client.delete(f"/v1/people/{person}").status_code == 204
    problem(client.get(f"/v1/people/{person}"), 404, "person_not_found")
    problem(client.delete(f"/v1/people/{person}"), 404, "person_not_found")


@pytest.mark.parametrize(
    ("stored_as", "data", "shown"),
    [
        ("image/png", b"", "image/png"),
        ("binary/octet-stream", b"\xff\xd8\xff" + b"\xff" * 1_000_000, "image/jpeg"),
        ("binary/octet-stream", b"\0\0\0\x18ftypheic", "image/heif"),
        ("text/html", b"<script>", "application/octet-stream"),
    ],
    ids=["as stored", "an older JPEG", "an older HEIC", "no photo"],
)
def test_a_photo_of_the_gallery_is_not_looked_into(
    client: FlaskClient,
    system: Settings,
    monkeypatch: pytest.MonkeyPatch,
    stored_as: str,
    data: bytes,
    shown: str,
) -> None:
    """S2: its media type is what was stored at enrolment; of what older versions stored, what the first bytes say."""

    def parse(*_: object, **__: object) -> None:
        raise AssertionError("a photo of the gallery is parsed")

    monkeypatch.setattr(images, "inspect", parse)
    key = f"photos/Old%20One/{uuid.uuid4().hex[:24]}"
    s3 = boto3.client("s3")
    s3.put_object(Bucket=system.gallery_bucket, Key=key, Body=data, ContentType=stored_as)
    answer = client.get(f"/v1/people/Old%20One/photos/{key.rpartition('/')[2]}")
    s3.delete_object(Bucket=system.gallery_bucket, Key=key)
    assert (answer.status_code, answer.mimetype, answer.data) == (200, shown, data)


@pytest.mark.usefixtures("worker")
def test_photos_are_enrolled_all_or_none(
    client: FlaskClient, system: Settings, person: str, samples: dict[str, Path]
) -> None:
    before = stored(system)
    two = encoded(side_by_side(samples["obama.jpg"], samples["biden.jpg"]))
    photos = [File(samples["biden.jpg"].read_bytes(), "good.jpg"), File(two, "two.jpg"), File(plain(), "none.jpg")]
    answer = client.put(f"/v1/people/{person}", data={"photo": photos})
    document = problem(answer, 422, "several_faces")
    assert [(each["file_name"], each["code"]) for each in document["errors"]] == [
        ("two.jpg", "several_faces"),
        ("none.jpg", "no_face"),
    ]
    conforms(document, "Problem")
    assert nothing_new(system, before)


def test_each_route_of_the_api_is_there_with_a_slash_at_its_end_too(client: FlaskClient) -> None:
    """R15: whichever spelling, the same view with the same values; `/metrics/`, which no proxy closes, is not there."""
    routes = client.application.url_map.bind("localhost")
    shown = {"name": "Anna", "photo_id": "0" * 24, "request_id": "0" * 32}
    both = 0
    for rule in client.application.url_map.iter_rules():
        if rule.rule.startswith("/v1/"):
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", lambda match: shown[match[1]], rule.rule)
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                without, with_slash = (routes.match(each, method=method) for each in (path, path + "/"))
                assert without[0] == with_slash[0] == rule.endpoint
                both += 1
    assert both >= 10
    before = client.get("/v1/people/Nobody%20of%20this%20name")
    after = client.get("/v1/people/Nobody%20of%20this%20name/")
    assert problem(before, 404, "person_not_found")["detail"] == problem(after, 404, "person_not_found")["detail"]
    problem(client.get("/v1/recognitions/" + "0" * 32 + "/"), 404, "recognition_not_found")
    problem(client.post("/v1/recognitions/"), 400, "empty_body")
    problem(client.get("/metrics/"), 404, "not_found")


# Around it


def test_health_and_readiness(client: FlaskClient) -> None:
    for url in ("/healthz", "/readyz"):
        answer = client.get(url)
        assert answer.status_code == 200
        conforms(as_json(answer), "Health")


def test_readiness_asks_s3_and_sqs(system: Settings) -> None:
    missing = client_of(replace(system, prefix="nowhere"))
    problem(missing.get("/readyz"), 503, "storage_unavailable")
    s3 = boto3.client("s3")
    half = replace(system, prefix=f"h{uuid.uuid4().hex[:8]}")
    for bucket in (half.in_bucket, half.out_bucket, half.gallery_bucket):
        s3.create_bucket(Bucket=bucket)
    problem(client_of(half).get("/readyz"), 503, "broker_unavailable")


@pytest.mark.parametrize("url", ["/", "/docs", "/v1/people", "/static/page.js", "/nowhere"])
def test_every_answer_has_the_security_headers(client: FlaskClient, url: str) -> None:
    with client.get(url) as answer:
        headers = answer.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert len(headers["X-Request-ID"]) == 32


def test_a_bug_is_a_problem_without_a_traceback_and_the_log_has_it(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(People, "list_people", fail)
    with caplog.at_level(logging.ERROR):
        document = problem(client.get("/v1/people"), 500, "internal_error")
    assert "secret" not in str(document)
    assert document["request_id"] in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.usefixtures("worker")
def test_an_upload_never_touches_the_disk(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    photo = plain() + bytes(4 * 2**20) + b"\xff\xd9"
    assert client.post("/", data={"inputFile": File(photo, "big.jpg")}).text == "big:no_face"


# The description


def test_the_description_is_valid_openapi(client: FlaskClient) -> None:
    validate(as_json(client.get("/openapi.json")))


def test_the_description_and_the_url_map_say_the_same(client: FlaskClient) -> None:
    own = {"page.index", "page.static", "openapi.openapi", "openapi.docs", "openapi.asset"}

    def template(rule: Rule) -> str:
        return rule.rule.replace("<path:", "<").replace("<", "{").replace(">", "}")

    served = {
        (template(rule), method)
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint not in own
    }
    methods = {"get", "put", "post", "delete", "patch"}
    described = {
        (path, method.upper())
        for path, item in openapi.document()["paths"].items()
        for method in item
        if method in methods
    }
    assert described == served


def test_the_description_of_a_result_is_its_dataclass() -> None:
    result = Recognition(id="0" * 32, status="done", file_name="a.jpg")
    conforms({**result.to_dict(), "links": {"self": "/x"}}, "Item")


def test_the_docs_page_is_served_from_here(client: FlaskClient) -> None:
    page = client.get("/docs").text
    assert "//" not in page.replace("</", "")
    assert client.get("/docs/swagger-ui-bundle.js").mimetype == "text/javascript"
    problem(client.get("/docs/..%2f__init__.py"), 404, "not_found")
