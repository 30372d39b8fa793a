"""What the web tier tells Prometheus, and whom."""

from __future__ import annotations

import http.client
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import flask
import pytest
from prometheus_client.parser import text_string_to_metric_families

from faceapp import tasks
from faceapp.config import Settings
from faceapp.errors import LocalError
from faceapp.http import server
from faceapp.http.metrics import may_read
from tests.support.aws import BEARER
from tests.support.services import wait_until
from tests.support.web import BOUNDARY, Client, File, client_of, plain, problem

FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
Samples = dict[tuple[str, frozenset[str]], float]
STAGES = ("store", "send", "wait", "queued", "fetch", "decode", "detect", "align", "embed", "search", "total")


def parsed(text: str) -> Samples:
    """Every sample by its name and its labels' values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, *labels: str) -> float:
    """The sum of the samples with these labels' values among theirs."""
    full = f"faceapp_web_{name}"
    return sum(value for (found, values), value in samples.items() if found == full and values.issuperset(labels))


def scrape(client: Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == HTTPStatus.OK, answer.text
    assert answer.content_type.startswith("text/plain; version=")
    assert answer.headers["Cache-Control"] == "no-store"
    return parsed(answer.text)


def ask(url: str, method: str = "GET", path: str = "/metrics", body: Any = None, **headers: str) -> tuple[int, str]:
    """One request over a connection of its own, so that any of the processes may get it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    try:
        connection.request(method, path, body=body, headers=FORM | BEARER | {"Connection": "close"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.usefixtures("worker")
def test_requests_photos_stages_and_answers_are_counted(system: Settings, samples: dict[str, Path]) -> None:
    client = client_of(system)
    before = scrape(client)
    assert client.post("/", data={"inputFile": File(plain(), "a.jpg")}).text == "a:no_face"
    problem(client.post("/", data={"inputFile": File(b"no photo", "b.jpg")}), 415, "image_unsupported")
    problem(client.post("/", data={}), 400, "file_missing")
    photos = {"photo": [File(plain(), "c.jpg"), File(b"no photo", "d.jpg")]}
    assert client.post("/v1/recognitions", data=photos, headers={"Prefer": "wait=60"}).status_code == 200
    assert client.post("/v1/recognitions", data={"photo": File(plain())}).status_code == 202
    problem(client.get("/somewhere/else"), 404, "not_found")
    after = scrape(client)

    def rise(name: str, *labels: str) -> float:
        return value(after, name, *labels) - value(before, name, *labels)

    assert rise("requests_total", "classic.answer", "ok") == 1
    assert rise("requests_total", "classic.answer", "415", "image_unsupported") == 1
    assert rise("requests_total", "classic.answer", "file_missing") == 1
    assert rise("requests_total", "api.recognise", "ok") == 1
    assert rise("requests_total", "api.recognise", "202", "pending") == 1
    assert rise("requests_total", "none", "not_found") == 1
    assert rise("request_duration_seconds_count", "classic.answer") == 3
    assert rise("photos_total", "no_face") == 2
    assert rise("photos_total", "image_unsupported") == 2
    assert rise("photos_total", "accepted") == 1
    # With no face there is nothing to align, but each stage took its (no) time.
    assert {stage: rise("stage_duration_seconds_count", stage) for stage in STAGES} == {
        **dict.fromkeys(STAGES, 2),
        "store": 3,
        "send": 3,
    }
    assert rise("stage_duration_seconds_sum", "detect") > 0
    assert rise("answers_total", "delivered") == 2
    assert value(after, "waiting_requests") == 0
    assert value(after, "processes") == 1


@pytest.mark.usefixtures("worker")
def test_people_and_enrolments_are_counted_without_their_names(system: Settings, samples: dict[str, Path]) -> None:
    client = client_of(system)
    obama, again = samples["obama.jpg"].read_bytes(), samples["obama2.jpg"].read_bytes()
    name = "Metrics Person"
    assert client.put(f"/v1/people/{name}", data={"photo": File(obama)}).status_code == 201
    refused = client.put(f"/v1/people/{name}", data={"photo": [File(again), File(plain())]})
    problem(refused, 422, "no_face")

    def named() -> bool:
        return name in client.post("/", data={"inputFile": File(obama, "x.jpg")}).text

    wait_until(named, what="the enrolled person in the worker's gallery")
    assert client.get(f"/v1/people/{name}").status_code == 200
    assert client.delete(f"/v1/people/{name}").status_code == 204
    text = client.get("/metrics").text
    found = parsed(text)
    assert value(found, "photos_total", "enrolled") == 1
    assert value(found, "photos_total", "no_face") == 1
    assert value(found, "photos_total", "left_out") == 1
    assert value(found, "photos_total", "named") == 1
    assert value(found, "requests_total", "api.enrol", "no_face") == 1
    assert value(found, "requests_total", "api.person", "ok") == 1
    assert "Metrics" not in text
    assert "x.jpg" not in text


def test_a_late_and_a_corrupt_answer_are_counted(system: Settings) -> None:
    client = client_of(system)
    before = scrape(client)
    collector = tasks.app.backend.collector
    collector.expect("metrics-1")
    collector.expect("metrics-2")  # it goes on reading for this one
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=collector.queue_name)["QueueUrl"]
    answer = '{"task_id": "metrics-1", "status": "SUCCESS", "result": null}'
    for body in ("no answer", answer, answer):
        sqs.send_message(QueueUrl=url, MessageBody=body)

    def told() -> bool:
        after = scrape(client)
        return all(
            value(after, "answers_total", outcome) == value(before, "answers_total", outcome) + 1
            for outcome in ("late", "corrupt")
        )

    wait_until(told, what="both in the numbers")
    collector.forget("metrics-1")
    collector.forget("metrics-2")


def test_two_apps_in_one_process_have_numbers_of_their_own(system: Settings) -> None:
    first, second = client_of(system), client_of(system)
    assert first.get("/healthz").status_code == 200
    assert value(scrape(first), "requests_total", "health.healthz", "ok") == 1
    assert value(scrape(second), "requests_total", "health.healthz", "ok") == 0


def test_storage_that_fails_is_counted_by_its_code(system: Settings) -> None:
    client = client_of(replace(system, prefix="nothing-is-there"))
    problem(client.post("/", data={"inputFile": File(plain())}), 503, "storage_unavailable")
    after = scrape(client)
    assert value(after, "photos_total", "storage_unavailable") == 1
    assert value(after, "requests_total", "classic.answer", "storage_unavailable") == 1


@pytest.mark.parametrize(
    ("readers", "peer", "may"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "::1", True),
        ("loopback", "::ffff:127.0.0.1", True),
        ("loopback", "10.0.0.7", False),
        ("loopback", "203.0.113.9", False),
        ("loopback", None, False),
        ("loopback", "", False),
        ("loopback", "not an address", False),
        ("private", "127.0.0.1", True),
        ("private", "10.0.0.7", True),
        ("private", "::ffff:192.168.1.2", True),
        ("private", "fe80::1%eth0", True),
        ("private", "8.8.8.8", False),
        ("private", "::ffff:8.8.8.8", False),
        ("private", "2a00::1", False),
        ("any", "8.8.8.8", True),
        ("off", "127.0.0.1", False),
    ],
)
def test_who_may_read(readers: str, peer: str | None, may: bool) -> None:
    app = flask.Flask("test")
    with app.test_request_context("/metrics", headers={"Host": "127.0.0.1:8000"}, environ_base={"REMOTE_ADDR": peer}):
        assert may_read(readers, flask.request) is may


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip", "Cf-Connecting-Ip"])
def test_behind_a_proxy_everybody_is_a_stranger(system: Settings, header: str) -> None:
    for readers, status in (("loopback", 403), ("private", 403), ("any", 200)):
        client = client_of(replace(system, web_metrics=readers))
        answer = client.get("/metrics", headers={header.lower(): "127.0.0.1"})
        assert answer.status_code == status
        if status == 403:
            assert "FACEAPP_WEB_METRICS" in problem(answer, 403, "forbidden")["detail"]
            assert "faceapp_web" not in answer.text


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://localhost:1"}]
)
def test_no_page_reads_them(system: Settings, headers: dict[str, str]) -> None:
    """S8: neither a page of another site nor one whose name suddenly means this machine."""
    answer = client_of(system).get("/metrics", headers=headers)
    problem(answer, 403, "forbidden")


def test_a_stranger_is_refused(system: Settings) -> None:
    answer = client_of(system).get("/metrics", environ_base={"REMOTE_ADDR": "203.0.113.9"})
    problem(answer, 403, "forbidden")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(LocalError, match=r"TMPDIR.*FACEAPP_WEB_PROCESSES=1"):
        server.metrics_folder()
