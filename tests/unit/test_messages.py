"""What a worker takes in of whatever is written to the request queue, and what a result may look like."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faceapp.broker.messages import ENROL, ERASE, RECOGNIZE, refusal
from faceapp.errors import SchemaError
from faceapp.schema import Box, Candidate, Enrolment, Face, Failure, Photo, PhotoFailure, Recognition

ID = "0123456789abcdef" * 2
TASKS = {RECOGNIZE, ENROL, ERASE, "tests.echo"}
NO_SECONDS = "its arguments are no request id and seconds"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def message(**changes: Any) -> dict[str, Any]:
    """A task's message as the web tier writes it; `changes` are parts of it by their path: `headers__id`."""
    call = json.dumps([[ID], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    found: dict[str, Any] = {
        "body": call,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": RECOGNIZE, "id": ID, "root_id": ID, "argsrepr": f"['{ID}']"},
        "properties": {
            "correlation_id": ID,
            "reply_to": "faceapp-resp-queue",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "req-queue"},
            "priority": 0,
            "body_encoding": "utf-8",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = found
        for parent in parents:
            part = part[parent]
        part[name.replace("_type", "-type").replace("_encoding", "-encoding") if not parents else name] = value
    return found


def reason(document: Any) -> str:
    return refusal(document if isinstance(document, str) else json.dumps(document), tasks=TASKS)


WRONG_SECONDS = [json.dumps([[ID, wrong], {}, {}]) for wrong in [0, -1, 10**6, True, "5", None, []]]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("", "it is not JSON"),
        ("rubbish", "it is not JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ([], "it is no Celery task"),
        ({}, "it is no Celery task"),
        (message(headers=[]), "it is no Celery task"),
        (message(headers__task=["a"]), "it is no Celery task"),
        (message(headers__task="celery.map"), "its task 'celery.map' is none of ours"),
        (message(headers__id=None), "its id is no id"),
        (message(headers__id="../../etc"), "its id is no id"),
        (message(headers__timelimit=5), "its time limits are not two"),
        (message(headers__timelimit=[-1, None]), "its time limits are not within 3600 s"),
        (message(headers__timelimit=[3601, None]), "its time limits are not within 3600 s"),
        (message(headers__timelimit=[True, None]), "its time limits are not within 3600 s"),
        (message(headers__timelimit=["5", None]), "its time limits are not within 3600 s"),
        (message(headers__eta="9999-12-31T00:00:00"), "it has the header eta"),
        (message(headers__expires=1e300), "it has the header expires"),
        (message(headers__retries=10**30), "it has retries"),
        (message(headers__retries="3"), "it has retries"),
        (message(headers__stamps={"a": 1}), "it has the header stamps"),
        (message(headers__shadow={}), "its header shadow is no text"),
        (message(headers__ignore_result="yes"), "its header ignore_result is neither true nor false"),
        (message(content_type="application/x-python-serialize"), "its content is not JSON in UTF-8"),
        (message(content_type="application/data"), "its content is not JSON in UTF-8"),
        (message(content_encoding="rot13"), "its content is not JSON in UTF-8"),
        (message(properties=5), "it has no properties"),
        (message(properties__reply_to=["a"]), "its reply_to is no text"),
        (message(properties__body_encoding="zlib"), "its body is encoded"),
        (message(properties__delivery_info=None), "its delivery_info is no object"),
        (message(properties__priority="1"), "its priority is no number"),
        (message(body=[[ID], {}, {}]), "its arguments are no text"),
        (message(body="{"), "its arguments are not JSON"),
        (message(body="[" * 100_000), "it is nested too deeply"),
        (message(body="{}"), "its body is not arguments, named arguments and options"),
        (message(body="[[], {}]"), "its body is not arguments, named arguments and options"),
        (message(body='[{"a": 1}, [], {}]'), "its arguments are no list or object"),
        (message(body=json.dumps([[ID, 1], {}, {}])), "its argument is not one request id"),
        (message(headers__task=ERASE, body=json.dumps([[ID, 1, 2], {}, {}])), "its argument is not one request id"),
        *((message(headers__task=ERASE, body=body), NO_SECONDS) for body in WRONG_SECONDS),
        (message(body=json.dumps([[], {"request_id": ID}, {}])), "its argument is not one request id"),
        (message(body=json.dumps([["../../etc/passwd"], {}, {}])), "its argument is not one request id"),
        (message(body=json.dumps([[7], {}, {}])), "its argument is not one request id"),
        (message(body=json.dumps([[ID], {}, {"callbacks": [{"task": "x"}]}])), "it is to call other tasks"),
    ],
)
def test_what_is_no_task_of_ours_is_refused_with_its_reason(document: Any, why: str) -> None:
    assert reason(document) == why


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a JSON document is."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(each, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there."""
    if not path:
        return value
    found = copy.deepcopy(document)
    part = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return found


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(sorted(parts(message()), key=repr)), value=JSON)
def test_no_part_of_a_message_brings_the_check_down(path: tuple[Any, ...], value: Any) -> None:
    assert isinstance(reason(json.dumps(changed(message(), path, value))), str)


@settings(max_examples=200, deadline=None)
@given(st.text() | JSON.map(json.dumps))
def test_nothing_made_up_is_a_task(body: str) -> None:
    assert reason(body)


DONE = Recognition(
    id=ID,
    status="done",
    photo=Photo(width=1, height=2, format="JPEG"),
    faces=(
        Face(
            box=Box(left=0.0, top=1.0, right=2.0, bottom=3.0),
            landmarks=((1.0, 2.0),),
            score=0.5,
            name="ann",
            distance=0.25,
            candidates=(Candidate(name="ann", distance=0.25),),
        ),
    ),
)
FAILED = Recognition(id=ID, status="failed", failure=Failure(code="no_face", detail="None."))
ENROLMENT = Enrolment(id=ID, name="ann", failures=(PhotoFailure(file_name="a", code="b", detail="c"),))
DOCUMENTS: list[Recognition | Enrolment] = [DONE, FAILED, ENROLMENT]
PLACES = [
    (each, path) for each in DOCUMENTS for path in sorted(parts(json.loads(json.dumps(each.to_dict()))), key=repr)
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_read_as_it_was_written(document: Recognition | Enrolment) -> None:
    assert type(document).from_dict(json.loads(json.dumps(document.to_dict()))) == document


@settings(max_examples=500, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_a_document_that_does_not_fit_raises_one_error(
    place: tuple[Recognition | Enrolment, tuple[Any, ...]], value: Any
) -> None:
    document, path = place
    carried = json.loads(json.dumps(changed(json.loads(json.dumps(document.to_dict())), path, value)))
    try:
        read = type(document).from_dict(carried)
    except SchemaError:
        return
    # What is taken can be written as JSON that every reader takes, and is what a worker could have written.
    json.dumps(read.to_dict(), ensure_ascii=False, allow_nan=False).encode()
    assert type(document).from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(
    "change",
    [
        {"version": True},
        {"version": 2},
        {"status": "pending"},
        {"status": "failed"},
        {"failure": {"code": "a", "detail": "b"}},
        {"id": 5},
        {"file_name": "\ud800"},
        {"faces": {}},
        {"timings": {"fetch_s": float("nan")}},
        {"timings": {"fetch_s": float("inf")}},
        {"timings": {"fetch_s": 10**400}},
        {"timings": None},
        {"photo": {"width": 1.5, "height": 1, "format": "PNG"}},
        {"photo": {"width": 1}},
    ],
)
def test_a_value_of_another_type_does_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        Recognition.from_dict({**DONE.to_dict(), **change})


@pytest.mark.parametrize("text", ["", "[" * 100_000, "9" * 5000, "null", b"\xff"])
def test_what_is_no_document_does_not_fit(text: str | bytes) -> None:
    with pytest.raises(SchemaError):
        Recognition.from_json(text)
