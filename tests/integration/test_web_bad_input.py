"""Everything that a stranger may send: the right status, a problem document with a stable code, nothing half-stored."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from faceapp.config import PhotoLimits, Settings
from faceapp.http import inspection
from faceapp.schema import Photo
from tests.support.web import (
    BOUNDARY,
    File,
    as_json,
    client_of,
    encoded,
    form,
    nothing_new,
    plain,
    png,
    problem,
    side_by_side,
    stored,
)

UPLOADS = [("POST", "/", "inputFile"), ("POST", "/v1/recognitions", "any"), ("PUT", "/v1/people/Somebody", "photo")]


@pytest.fixture
def client(system: Settings) -> FlaskClient:
    return client_of(replace(system, web_max_photo_bytes=1_000_000, web_max_request_bytes=3_000_000))


@pytest.fixture
def nothing_stored(system: Settings) -> Iterator[None]:
    before = stored(system)
    yield
    assert nothing_new(system, before)


everywhere = pytest.mark.parametrize(("method", "url", "field"), UPLOADS, ids=[url for _, url, _ in UPLOADS])
stores_nothing = pytest.mark.usefixtures("nothing_stored")


@everywhere
@stores_nothing
@pytest.mark.parametrize("content_type", [None, "multipart/form-data; boundary=x", "text/plain"])
def test_an_empty_body(client: FlaskClient, method: str, url: str, field: str, content_type: str | None) -> None:
    problem(client.open(url, method=method, input_stream=io.BytesIO(), content_type=content_type), 400, "empty_body")


@everywhere
@stores_nothing
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"inputFile=photo.jpg"),
        ("image/jpeg", plain()),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="inputFile"; filename=""\r\n\r\n\r\n--x--\r\n',
        ),
    ],
    ids=["urlencoded", "no form", "only text", "nothing chosen"],
)
def test_no_file(client: FlaskClient, method: str, url: str, field: str, content_type: str, body: bytes) -> None:
    problem(client.open(url, method=method, data=body, content_type=content_type), 400, "file_missing")


@everywhere
@stores_nothing
def test_a_path_instead_of_a_file(client: FlaskClient, method: str, url: str, field: str) -> None:
    """`curl -F inputFile=photo.jpg`, without @, sends the path as text."""
    document = problem(client.open(url, method=method, data={field: "photo.jpg"}), 400, "file_missing")
    assert document["detail"] == f"{field} holds text, not a file: with curl, write -F {field}=@PATH."
    other = client.open(url, method=method, data={"token": "x", field: File(b"", "")})
    assert "curl" not in problem(other, 400, "file_missing")["detail"]


@stores_nothing
def test_a_file_in_another_field(client: FlaskClient) -> None:
    document = problem(client.post("/", data={"picture": File(plain())}), 400, "file_missing")
    assert "'picture'" in document["detail"]
    assert "'inputFile'" in document["detail"]


@everywhere
@stores_nothing
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary in here"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nb',
        ),
    ],
    ids=["without boundary", "another boundary", "cut off"],
)
def test_a_broken_form(client: FlaskClient, method: str, url: str, field: str, content_type: str, body: bytes) -> None:
    problem(client.open(url, method=method, data=body, content_type=content_type), 400, "bad_request")


@everywhere
@stores_nothing
@pytest.mark.parametrize(
    ("headers", "status", "code", "says"),
    [
        ({"Content-Encoding": "gzip"}, 415, "content_encoding_unsupported", "'gzip'"),
        ({"Content-Encoding": "Br"}, 415, "content_encoding_unsupported", "'br'"),
        (
            {"Transfer-Encoding": "gzip, chunked"},
            415,
            "content_encoding_unsupported",
            "Transfer-Encoding 'gzip, chunked'",
        ),
        ({"Content-Type": "image/jpeg"}, 400, "file_missing", "curl -F"),
        ({"Content-Type": "application/json"}, 400, "file_missing", "The body is application/json: send"),
        ({"Content-Type": ""}, 400, "file_missing", "The request has no Content-Type: send"),
        ({"Content-Type": "multipart/form-data; boundary=" + "b" * 201}, 400, "bad_request", "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=\xfc"}, 400, "bad_request", "boundary"),
    ],
    ids=["gzip", "brotli", "gzip on its way", "a bare photo", "JSON", "no type", "long boundary", "no ASCII boundary"],
)
def test_what_the_head_rules_out_is_refused_unread(
    client: FlaskClient,
    method: str,
    url: str,
    field: str,
    headers: dict[str, str],
    status: int,
    code: str,
    says: str,
) -> None:
    """R11, R15: a compressed body, and a body that is no form, are told what to send; nothing of them is read."""
    body = io.BytesIO(form({field: File(plain())}))
    sent = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"} | headers
    answer = client.open(url, method=method, input_stream=body, headers=sent, content_length=len(body.getvalue()))
    assert says in problem(answer, status, code)["detail"]
    assert body.tell() == 0
    assert answer.headers.get("Accept-Encoding") == ("identity" if status == 415 else None)


@pytest.mark.usefixtures("worker")
def test_a_body_whose_encoding_is_none_is_taken(client: FlaskClient) -> None:
    """R11: `identity` says that nothing was done to it."""
    answer = client.post("/", data={"file": File(plain(), "a.jpg")}, headers={"Content-Encoding": "identity"})
    assert answer.text == "a:no_face"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("file_name", "line"),
    [
        (b"M\374ller.jpg", "M\ufffdller:no_face"),
        ("表示.jpg".encode("cp932"), "\ufffd\ufffd\ufffd:no_face"),
        ("照片.jpg".encode("gbk"), "\ufffd\ufffdƬ:no_face"),
        (b"C:\\Users\\x\\me.jpg", "me:no_face"),
        (b"\\\\\\\\server\\\\share\\\\me.jpg", "me:no_face"),
    ],
    ids=["latin-1", "cp932", "gbk", "a Windows path", "an escaped path"],
)
def test_a_file_name_as_clients_write_it(client: FlaskClient, file_name: bytes, line: str) -> None:
    """R4, R10: bytes of any encoding lose no photo, and a path is its last part."""
    body = b'--x\r\nContent-Disposition: form-data; name="inputFile"; filename="' + file_name
    body += b'"\r\n\r\n' + plain() + b"\r\n--x--\r\n"
    answer = client.post("/", data=body, content_type="multipart/form-data; boundary=x")
    assert (answer.status_code, answer.text) == (200, line)


def send(client: FlaskClient, method: str, url: str, field: str, *photos: Any) -> TestResponse:
    return client.open(url, method=method, data={field: list(photos)})


@everywhere
@stores_nothing
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"just text", 415, "image_unsupported"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image_unsupported"),
        (b"%PDF-1.7", 415, "image_unsupported"),
        (b"", 415, "image_unsupported"),
        (plain()[:300], 422, "image_truncated"),
        (png(60_000, 60_000), 422, "image_too_large"),
        (png(15_999, 15_999), 422, "image_too_large"),
        (png(20_001, 100), 422, "image_too_large"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 422, "image_truncated"),
    ],
    ids=["text", "svg", "pdf", "no bytes", "truncated", "bomb", "bomb by area", "20,001 px wide", "only a signature"],
)
def test_files_that_are_no_photo(
    client: FlaskClient, method: str, url: str, field: str, data: bytes, status: int, code: str
) -> None:
    # What the client says about the file is not to be trusted.
    problem(send(client, method, url, field, File(data, "photo.jpg", "image/jpeg")), status, code)


@everywhere
@stores_nothing
def test_a_photo_over_the_limit(client: FlaskClient, method: str, url: str, field: str) -> None:
    document = problem(send(client, method, url, field, File(plain() + bytes(1_000_000))), 413, "upload_too_large")
    assert "0.954 MiB" in document["detail"]


@everywhere
@stores_nothing
def test_a_request_over_the_limit(client: FlaskClient, method: str, url: str, field: str) -> None:
    photos = [File(plain() + bytes(900_000)) for _ in range(4)]
    problem(send(client, method, url, field, *photos), 413, "upload_too_large")


@everywhere
@stores_nothing
def test_a_hundred_files(client: FlaskClient, method: str, url: str, field: str) -> None:
    photos = [File(plain(64, 64), f"{n}.jpg") for n in range(100)]
    problem(send(client, method, url, field, *photos), 413, "too_many_files")


@stores_nothing
def test_two_files_in_the_classic_form(client: FlaskClient) -> None:
    document = problem(client.post("/", data={"file": [File(plain()), File(plain())]}), 413, "too_many_files")
    assert "/v1/recognitions" in document["detail"]


@stores_nothing
def test_photos_that_are_too_many_are_not_looked_at(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: POST / looked at all files of a form before it said that it takes one."""
    looked_at: list[int] = []
    inspect = inspection.inspect

    def counting(data: bytes, limits: PhotoLimits) -> Photo:
        looked_at.append(len(data))
        return inspect(data, limits)

    monkeypatch.setattr(inspection, "inspect", counting)
    photos = [File(plain(64, 64)) for _ in range(32)]
    problem(client.post("/", data={"file": photos}), 413, "too_many_files")
    assert looked_at == []
    assert client.post("/", data={"file": File(b"no photo")}).status_code == 415
    assert looked_at == [8]


@pytest.mark.parametrize("path", ["/v1//people", "//v1/people", "/v1/people//Somebody", "/static//page.js"])
def test_slashes_in_a_row_lead_nowhere(client: FlaskClient, path: str) -> None:
    """S1: the answer was 308 to the host that the request named."""
    for headers in ({"Host": "localhost"}, {"Host": "evil.example"}, {"Host": "evil.example", "Authorization": "x"}):
        answer = client.get(path, headers=headers, base_url="http://localhost")
        assert answer.status_code in {400, 401, 403, 404, 421}
        assert "Location" not in answer.headers


@stores_nothing
def test_text_without_end_in_a_form(client: FlaskClient) -> None:
    problem(client.post("/", data={"note": "x" * 1_000_000, "file": File(plain())}), 413, "upload_too_large")


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd.jpg", "a\nb\r\nc: d.jpg", 'it\'s a "quote".jpg', "😀" * 500 + ".jpg", "%2e%2e%2f\u202e.jpg"],
    ids=["slashes", "newlines", "quotes", "500 emoji", "percent and bidi"],
)
def test_a_hostile_file_name(client: FlaskClient, name: str) -> None:
    answer = client.post("/v1/recognitions", data={"f": File(plain(), name)}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    shown = as_json(answer)["recognitions"][0]["file_name"]
    assert "/" not in shown
    assert shown.isprintable() or "\u202e" in shown
    line = client.post("/", data={"inputFile": File(plain(), name)}).text
    assert line.endswith(":no_face")
    assert len(line.splitlines()) == 1


@stores_nothing
@pytest.mark.parametrize(
    "request_id", ["0" * 32, "0" * 31, "x" * 32, "..", "%2e%2e%2f%2e%2e", "a" * 5000, "0" * 31 + "\n"]
)
def test_an_unknown_or_malformed_id(client: FlaskClient, request_id: str) -> None:
    answer = client.get(f"/v1/recognitions/{request_id}")
    problem(answer, 404, "not_found" if "%2f" in request_id else "recognition_not_found")


@stores_nothing
@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("DELETE", "/", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("PUT", "/v1/recognitions", {"OPTIONS", "POST"}),
        ("POST", "/v1/people/Somebody", {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method(client: FlaskClient, method: str, url: str, allowed: set[str]) -> None:
    answer = client.open(url, method=method)
    problem(answer, 405, "method_not_allowed")
    assert {each.strip() for each in answer.headers["Allow"].split(",")} == allowed


@stores_nothing
@pytest.mark.parametrize(
    "name", ["a..b", "%2e%2e", "..%2F..%2Fetc", "a%2Fb", "%20", "x" * 65, "a%00b", "%3Cscript%3E", "unknown", "-a"]
)
def test_a_name_that_cannot_be_a_persons(client: FlaskClient, name: str) -> None:
    for method in ("GET", "DELETE"):
        problem(client.open(f"/v1/people/{name}", method=method), 400, "name_invalid")
    problem(client.put(f"/v1/people/{name}", data={"photo": File(plain())}), 400, "name_invalid")


@stores_nothing
@pytest.mark.parametrize("photo_id", ["0" * 24, "x", "..%2fx", "%2e%2e"])
def test_a_photo_that_nobody_has(client: FlaskClient, photo_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = client.open(f"/v1/people/Somebody/photos/{photo_id}", method=method)
        assert answer.status_code in {400, 404}
        assert as_json(answer)["code"] in {"not_found", "name_invalid"}


@pytest.mark.usefixtures("worker")
def test_a_photo_that_only_its_decoder_finds_broken(client: FlaskClient, samples: dict[str, Path]) -> None:
    whole = encoded(side_by_side(samples["obama.jpg"]))
    broken = whole[: len(whole) // 2] + whole[-2:]  # JPEG's end marker is there
    document = problem(client.post("/", data={"inputFile": File(broken)}), 422, "image_truncated")
    result = as_json(client.get(f"/v1/recognitions/{document['request_id']}"))
    assert (result["status"], result["failure"]["code"]) == ("failed", "image_truncated")
    problem(client.put("/v1/people/Somebody", data={"photo": File(broken)}), 422, "image_truncated")


@pytest.mark.usefixtures("worker")
def test_no_face(client: FlaskClient, system: Settings) -> None:
    assert client.post("/", data={"inputFile": File(plain(), "wall.jpg")}).text == "wall:no_face"
    before = stored(system)
    problem(client.put("/v1/people/Somebody", data={"photo": File(plain())}), 422, "no_face")
    assert nothing_new(system, before)


@pytest.mark.usefixtures("worker")
def test_a_face_cut_by_the_border(client: FlaskClient, samples: dict[str, Path]) -> None:
    photo = samples["obama_partial_face.jpg"].read_bytes()
    answer = client.post("/v1/recognitions", data={"f": File(photo)}, headers={"Prefer": "wait=60"})
    (item,) = as_json(answer)["recognitions"]
    assert item["status"] == "done"
    assert len(item["faces"]) == 1
    assert item["faces"][0]["box"]["left"] < 0


@pytest.mark.usefixtures("worker", "nothing_stored")
def test_two_faces_to_enrol(client: FlaskClient, samples: dict[str, Path]) -> None:
    two = encoded(side_by_side(samples["obama.jpg"], samples["biden.jpg"]), quality=70)
    document = problem(client.put("/v1/people/Somebody", data={"photo": File(two)}), 422, "several_faces")
    assert document["errors"][0]["file_name"] == "photo.jpg"
