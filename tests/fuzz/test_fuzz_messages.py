"""Messages, documents, headers, names and settings of every shape: each is taken, or refused by its one error."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

import pytest
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from celery_sqs.aws import Aws
from celery_sqs.control import Question, Replies
from celery_sqs.queues import letters
from celery_sqs.results.collector import Collector
from faceapp.broker.messages import refusal
from faceapp.config import Settings
from faceapp.errors import ConfigError, InvalidName, SchemaError
from faceapp.http import uploads
from faceapp.http.api import preferred_wait_s
from faceapp.observability import logs
from faceapp.operations.dead_letters import request_id_of
from faceapp.people import names
from faceapp.schema import Box, Candidate, Enrolment, Face, Failure, Photo, PhotoFailure, Recognition
from tests.support.fuzzing import cases
from tests.support.web import BOUNDARY, client_of

DEEP = "[" * 100_000

FACE = Face(
    box=Box(left=1.0, top=2.0, right=30.0, bottom=40.0),
    landmarks=((1.0, 2.0),) * 5,
    score=0.9,
    name="ada",
    distance=0.3,
    candidates=(Candidate(name="ada", distance=0.3),),
)
RESULTS = (
    Recognition(id="0" * 32, status="done", photo=Photo(width=3, height=2, format="PNG"), faces=(FACE,), model="m"),
    Recognition(id="1" * 32, status="failed", failure=Failure(code="image_truncated", detail="It is cut off.")),
)
ENROLMENTS = (
    Enrolment(id="0" * 32, name="ada", photos=("a", "b")),
    Enrolment(id="1" * 32, name="ada", failures=(PhotoFailure(file_name="a.jpg", code="no_face", detail="None."),)),
)
MESSAGE = {
    "body": json.dumps([["0" * 32], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {
        "lang": "py",
        "task": "faceapp.recognize",
        "id": "0" * 32,
        "argsrepr": "('0',)",
        "request_id": "mine",
        "timelimit": [None, None],
        "retries": 0,
    },
    "properties": {
        "correlation_id": "0" * 32,
        "reply_to": "faceapp-resp-queue",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "req-queue"},
        "priority": 0,
        "body_encoding": "utf-8",
        "delivery_tag": "x",
    },
}

values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, 1, -1, 10**400, 2**63, 1e308]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["", "done", "failed", "\ud800", "0" * 32, "a" * 5000]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, wholes: tuple[dict[str, Any], ...]) -> Any:
    """One of these documents with other values in one to four places; sometimes without a key, or with one more."""
    document = json.loads(json.dumps(draw(st.sampled_from(wholes))))
    for _ in range(draw(st.integers(1, 4))):
        holder = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], dict | list) and draw(st.booleans()):
                holder = holder[key]
                continue
            match draw(st.sampled_from(["change", "change", "drop", "add"])):
                case "change":
                    holder[key] = draw(values)
                case "drop":
                    del holder[key]
                case _ if isinstance(holder, dict):
                    holder[draw(st.text(max_size=6))] = draw(values)
                case _:
                    holder.append(draw(values))
            break
    return document


# Result documents.


@pytest.mark.fuzz
@cases(400)
@given(document=st.one_of(altered(tuple(each.to_dict() for each in RESULTS)), values))
def test_a_result_document_is_read_or_a_schema_error(document: Any) -> None:
    try:
        found = Recognition.from_dict(document)
    except SchemaError:
        return
    again = Recognition.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert isinstance(found.answer, str)
    found.to_json().encode()


@pytest.mark.fuzz
@cases(200)
@example(text=DEEP.encode())
@example(text=b"\xff")
@example(text=RESULTS[0].to_json().replace("0.9", "1" + "0" * 5000).encode())
@given(
    text=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode(errors="replace")),
        values.map(json.dumps),
    )
)
def test_the_text_of_a_result_is_read_or_a_schema_error(text: bytes | str) -> None:
    with suppress(SchemaError):
        assert isinstance(Recognition.from_json(text), Recognition)


@pytest.mark.fuzz
@cases(300)
@given(document=st.one_of(altered(tuple(each.to_dict() for each in ENROLMENTS)), values))
def test_an_enrolment_document_is_read_or_a_schema_error(document: Any) -> None:
    try:
        found = Enrolment.from_dict(document)
    except SchemaError:
        return
    assert Enrolment.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Messages.


@pytest.mark.fuzz
@cases(400)
@example(text=DEEP)
@example(text=json.dumps({**MESSAGE, "body": DEEP}))
@given(text=st.one_of(altered((MESSAGE,)).map(json.dumps), values.map(json.dumps), st.text(max_size=60)))
def test_a_task_message_is_taken_or_there_is_a_reason(text: str) -> None:
    tasks = {"faceapp.recognize", "faceapp.enrol"}
    why = refusal(text, tasks=tasks)
    assert isinstance(why, str)
    if why:
        return
    message = json.loads(text)
    (request_id,), named, _ = json.loads(message["body"])
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert named == {}
    assert message["headers"]["task"] in tasks


def test_our_own_message_is_taken() -> None:
    assert refusal(json.dumps(MESSAGE), tasks={"faceapp.recognize"}) == ""


@pytest.mark.fuzz
@cases(300)
@example(text=DEEP)
@given(
    text=st.one_of(
        altered(({"task_id": "a", "status": "SUCCESS", "result": RESULTS[0].to_dict()},)).map(json.dumps),
        values.map(json.dumps),
        st.text(max_size=60),
    )
)
def test_an_answer_is_delivered_or_counted(text: str) -> None:
    collector = Collector(Aws(), "no-queue", wait_s=1)
    collector._deliver(text, delivery=1)
    assert sum(collector.counts.values()) == 1


REPLY = {"headers": {"ticket": "a", "clock": 1}, "body": json.dumps({"worker@host": {"ok": "pong"}}), "properties": {}}


@pytest.mark.fuzz
@cases(200)
@example(text=json.dumps({"headers": {"ticket": []}, "body": "1"}))  # it cannot be the key of anything
@example(text=DEEP)
@example(text=json.dumps({"headers": {"ticket": "a"}, "body": DEEP}))
@given(text=st.one_of(altered((REPLY,)).map(json.dumps), values.map(json.dumps), st.text(max_size=60)))
def test_a_reply_to_remote_control_is_taken_or_dropped(text: str) -> None:
    replies = Replies(Aws(), "no-prefix-", wait_s=1)
    question = replies._questions["a"] = Question(1)
    replies._deliver(text, delivery=1)
    assert question.answers.qsize() in {0, 1}


@pytest.mark.fuzz
@cases(200)
@example(text=DEEP)
@given(text=st.one_of(altered((MESSAGE,)).map(json.dumps), values.map(json.dumps), st.text(max_size=60)))
def test_a_dead_letter_is_a_task_or_none(text: str) -> None:
    found = letters.decoded(text)
    assert found is None or isinstance(found["headers"]["task"], str)
    assert isinstance(request_id_of(found), str | None)


# Requests.


@pytest.mark.fuzz
@cases(300)
@given(
    headers=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.from_regex(r'(wait ?= ?"?\d*"?;?,? ?|respond-async,? ?|a=b, ?){1,4}', fullmatch=True),
        ),
        max_size=3,
    ),
    most_s=st.floats(0, 1000),
)
def test_a_preference_is_seconds_within_the_most(headers: list[str], most_s: float) -> None:
    assert 0 <= preferred_wait_s(headers, most_s=most_s) <= most_s


hostile = st.text(st.one_of(st.characters(), st.sampled_from("/\\.\r\n\x00\x85\u2028\u202e\ud800% '\"")), max_size=60)


@pytest.mark.fuzz
@cases(300)
@given(name=hostile)
def test_a_file_name_is_one_line_without_a_path(name: str) -> None:
    clean = uploads.clean_name(name)
    assert clean
    assert len(clean.splitlines()) == 1
    assert "/" not in clean
    assert "\\" not in clean
    assert uploads.clean_name(clean) == clean
    assert uploads.stem(clean).encode()


@pytest.mark.fuzz
@cases(300)
@given(name=st.one_of(hostile, st.from_regex(r"[\w .'_-]{1,66}", fullmatch=True)))
def test_a_persons_name_is_safe_in_keys_and_paths_or_refused(name: str) -> None:
    try:
        checked = names.clean(name)
    except InvalidName:
        return
    assert names.clean(checked) == checked
    assert all(each.isprintable() or each in names.JOINERS for each in checked)
    assert names.likeness(names.likeness(checked)) == names.likeness(checked)
    assert not {"/", "\\", "%", ":", "<", '"'} & set(checked)
    assert ".." not in checked
    assert unquote(quote(checked, safe="")) == checked
    # An S3 key has 1,024 bytes.
    assert len(f"photos/{quote(checked, safe='')}/{'0' * 24}") < 1024


@pytest.fixture(scope="module")
def client(system: Settings) -> FlaskClient:
    return client_of(system)


pieces = st.one_of(
    st.sampled_from(
        [
            b"--" + BOUNDARY + b"\r\n",
            b"--" + BOUNDARY + b"--\r\n",
            b"--" + BOUNDARY,
            b"\r\n",
            b"\r\n\r\n",
            b'Content-Disposition: form-data; name="inputFile"; filename="a.jpg"\r\n',
            b'Content-Disposition: form-data; name="photo"\r\n',
            b"Content-Disposition: form-data; name*=utf-8''a; filename*=utf-16''%ff%fe\r\n",
            b"Content-Disposition: form-data\r\n",
            b"Content-Disposition: attachment; filename=\r\n",
            b"Content-Type: multipart/form-data; boundary=x\r\n",
            b"Content-Type: text/plain; charset=utf-7\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
        ]
    ),
    st.binary(max_size=20),
)


@pytest.mark.fuzz
@cases(150)
@given(
    body=st.lists(pieces, max_size=12).map(b"".join),
    content_type=st.one_of(
        st.just(f"multipart/form-data; boundary={BOUNDARY.decode()}"),
        st.sampled_from(["multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x", ""]),
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40),
    ),
    path=st.sampled_from(["/", "/v1/recognitions", "/v1/people/Somebody"]),
)
def test_a_form_without_a_photo_is_a_problem_document(
    client: FlaskClient, body: bytes, content_type: str, path: str
) -> None:
    method = "PUT" if "people" in path else "POST"
    answer = client.open(path, method=method, data=body, headers={"Content-Type": content_type})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.content_type == "application/problem+json"
    assert answer.json
    assert answer.json["status"] == answer.status_code


header = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=80)


@pytest.mark.fuzz
@cases(150)
@given(
    request_id=st.one_of(header, st.from_regex("[A-Za-z0-9._-]{1,66}", fullmatch=True)),
    traceparent=st.one_of(header, st.from_regex("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)),
    more=st.dictionaries(
        st.sampled_from(["Prefer", "Range", "Authorization", "Cookie", "If-None-Match", "Accept", "Host", "Origin"]),
        header,
        max_size=3,
    ),
)
def test_headers_of_any_kind_do_no_harm(
    client: FlaskClient, request_id: str, traceparent: str, more: dict[str, str]
) -> None:
    answer = client.get("/healthz", headers={"X-Request-ID": request_id, "traceparent": traceparent, **more})
    assert answer.status_code < 500
    assert logs.REQUEST_ID.fullmatch(answer.headers["X-Request-ID"])
    assert (answer.headers["X-Request-ID"] == request_id) == bool(logs.REQUEST_ID.fullmatch(request_id))


# Settings.

VARIABLES = [f"FACEAPP_{name.upper()}" for name in Settings.__dataclass_fields__]


@pytest.mark.fuzz
@cases(300)
@given(
    environ=st.dictionaries(
        st.one_of(st.sampled_from(VARIABLES), st.text(max_size=8).map(lambda text: f"FACEAPP_{text}")),
        st.one_of(
            st.text(max_size=12),
            st.integers().map(str),
            st.floats().map(str),
            st.sampled_from(["nan", "inf", "-1", "1e400", "true", "off", "٣", "1_000", "0x10", " 5 ", "a" * 5000]),
        ),
        max_size=4,
    )
)
def test_settings_are_read_or_a_config_error(environ: dict[str, str]) -> None:
    try:
        found = Settings.from_environ(environ)
    except ConfigError:
        return
    assert isinstance(found, Settings)
