"""Who may do what over HTTP: keys and roles, rates, other sites' pages; and nothing of a key in the log."""

from __future__ import annotations

import http.client
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import urllib3
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from faceapp.config import Settings
from faceapp.errors import KeyInvalid, RoleMissing, Unauthorized
from faceapp.http import auth, openapi
from faceapp.http.auth import PUBLIC, ROLES, Rates, path_of
from faceapp.operations.client import Client as ServiceClient
from faceapp.security.key_text import new_text
from faceapp.security.keys import ADMIN, ENROL, OBJECT, RECOGNISE, Keyring, Keys
from faceapp.storage import Storage
from faceapp.web import create_app
from tests.support.aws import KEY
from tests.support.services import wait_until
from tests.support.web import BOUNDARY, File, client_of, form, messages, plain, problem, web_server

STRANGER = {"REMOTE_ADDR": "203.0.113.7"}
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
SOMEBODY = "/v1/people/nobody"
MAY = {RECOGNISE: {RECOGNISE}, ENROL: {RECOGNISE, ENROL}, ADMIN: {RECOGNISE, ENROL, ADMIN}}


@pytest.fixture
def client(stack: Settings) -> FlaskClient:
    return client_of(stack, key="")


@pytest.fixture
def keys(stack: Settings) -> Keys:
    return Keys(Storage(stack))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def of(client: FlaskClient) -> auth.Auth:
    door: auth.Auth = client.application.extensions["faceapp-auth"]
    return door


def operations(client: FlaskClient) -> dict[str, str]:
    """Every operation of the service, with a path that it takes."""
    return {
        f"{method} {path_of(rule.rule)}": re.sub(r"<[^>]+>", "0" * 32, rule.rule)
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


# Which operation needs what.


def test_every_operation_is_public_or_has_a_role(client: FlaskClient) -> None:
    assert set(operations(client)) - PUBLIC - set(ROLES) == set()
    assert set(ROLES).isdisjoint(PUBLIC)
    assert PUBLIC.issubset(operations(client))


def test_a_stranger_needs_a_key_before_anything_else(client: FlaskClient) -> None:
    for operation, path in operations(client).items():
        if operation not in PUBLIC:
            method = operation.partition(" ")[0]
            answer = client.open(path, method=method, environ_base=STRANGER, data=b"no form")
            problem(answer, 401, "key_missing")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("operation", sorted(PUBLIC - {"GET /metrics"}))
def test_what_is_public_needs_none(client: FlaskClient, operation: str) -> None:
    asset = {"GET /docs/{asset}": "/docs/swagger-ui.css", "GET /static/{filename}": "/static/page.js"}
    path = asset.get(operation, operation.split(" ")[1])
    with client.get(path, environ_base=STRANGER, headers={"Sec-Fetch-Site": "cross-site"}) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("role", [RECOGNISE, ENROL, ADMIN])
def test_a_key_may_what_its_role_may(client: FlaskClient, keys: Keys, role: str) -> None:
    headers = bearer(keys.create(name="x", role=role).text)
    for operation, path in operations(client).items():
        method = operation.partition(" ")[0]
        if operation in PUBLIC:
            continue
        answer = client.open(path, method=method, environ_base=STRANGER, headers=headers)
        if ROLES[operation] in MAY[role]:
            assert answer.status_code not in (401, 403), operation
        else:
            document = problem(answer, 403, "role_missing")
            assert document["role"] == ROLES[operation]
            assert repr(ROLES[operation]) in document["detail"]
            assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


def test_an_operation_that_nobody_thought_of_is_an_admins(stack: Settings, keys: Keys) -> None:
    app = create_app(stack)
    app.add_url_rule("/v1/new", view_func=lambda: "new")
    client = app.test_client()
    enrol, admin = (bearer(keys.create(name="x", role=role).text) for role in (ENROL, ADMIN))
    assert client.get("/v1/new", environ_base=STRANGER).status_code == 401
    assert client.get("/v1/new", environ_base=STRANGER, headers=enrol).status_code == 403
    assert client.get("/v1/new", environ_base=STRANGER, headers=admin).status_code == 200


def security_of(path: str, role: str | None) -> list[dict[str, list[str]]] | None:
    """What the description says of an operation: the classic line alone may go without a key."""
    if role is None:
        return None
    return [{"key": [role]}, *([{}] if path == "/" else [])]


def test_the_description_tells_of_keys() -> None:
    document = openapi.document()
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            role = ROLES.get(f"{method.upper()} {path}")
            assert operation.get("security") == security_of(path, role)
            assert not role or {"401", "403", "429"} <= set(operation["responses"])


# Who needs one.


@pytest.mark.parametrize(
    ("mode", "peer", "host", "path", "needs"),
    [
        ("loopback", "127.0.0.1", "localhost:8000", "/", False),
        ("loopback", "127.0.0.1", "127.0.0.1:8000", "/", False),
        ("loopback", "127.8.9.1", "[::1]:8000", "/", False),
        ("loopback", "::1", "localhost", "/", False),
        ("loopback", "127.0.0.1", "localhost:8000", SOMEBODY, True),
        ("loopback", "::1", "[::1]:8000", SOMEBODY, True),
        ("loopback", "::ffff:127.0.0.1", "localhost", "/", False),
        ("loopback", "127.0.0.1", "evil.example", "/", True),
        ("loopback", "127.0.0.1", "127.0.0.1.evil.example", "/", True),
        ("loopback", "127.0.0.1", "localhost.evil.example", "/", True),
        ("loopback", "127.0.0.1", "192.168.1.2:8000", "/", True),
        ("loopback", "192.168.1.2", "localhost:8000", "/", True),
        ("loopback", "::ffff:192.168.1.2", "localhost", "/", True),
        ("loopback", "", "localhost", "/", True),
        ("classic", "203.0.113.7", "web.example:8000", "/", False),
        ("classic", "203.0.113.7", "web.example:8000", SOMEBODY, True),
        ("classic", "127.0.0.1", "localhost:8000", SOMEBODY, True),
        ("classic", "127.0.0.1", "localhost:8000", "/", False),
        ("always", "127.0.0.1", "localhost:8000", SOMEBODY, True),
        ("always", "127.0.0.1", "localhost:8000", "/", True),
    ],
)
def test_who_needs_a_key(stack: Settings, mode: str, peer: str, host: str, path: str, needs: bool) -> None:
    client = client_of(replace(stack, web_auth=mode), key="")
    method, passed = ("POST", "empty_body") if path == "/" else ("GET", "person_not_found")
    answer = client.open(path, method=method, environ_base={"REMOTE_ADDR": peer}, headers={"Host": host})
    assert answer.get_json()["code"] == ("key_missing" if needs else passed)


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip", "Cf-Connecting-Ip"])
def test_whoever_comes_through_a_proxy_needs_a_key(client: FlaskClient, keys: Keys, header: str) -> None:
    """S3, with tests/unit/test_door.py, which has every header."""
    problem(client.post("/", headers={header.lower(): "127.0.0.1"}), 401, "key_missing")
    headers = {header: "for=127.0.0.1", **bearer(keys.create(name="x", role=ENROL).text)}
    problem(client.get(SOMEBODY, headers=headers), 404, "person_not_found")


def test_a_key_that_is_not_good_is_refused_here_too(client: FlaskClient) -> None:
    answer = client.get(SOMEBODY, headers=bearer(f"fa_01234567_{'A' * 43}"))
    problem(answer, 401, "key_invalid")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("text", ["", " ", "Bearer", "Bearer ", "bearer x y", "Basic dTpw", "Bearer fa_", "x" * 5000])
def test_what_is_no_key_is_refused(client: FlaskClient, text: str) -> None:
    answer = client.get(SOMEBODY, environ_base=STRANGER, headers={"Authorization": text})
    assert answer.status_code == 401
    assert answer.get_json()["code"] in ("key_missing", "key_invalid")


LINES = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=200)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LINES | LINES.map(lambda text: f"Bearer {text}") | LINES.map(lambda text: f"Bearer fa_{text}"))
def test_no_header_gets_a_stranger_in(client: FlaskClient, text: str) -> None:
    answer = client.get(SOMEBODY, environ_overrides={**STRANGER, "HTTP_AUTHORIZATION": text})
    assert answer.status_code == 401


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(host=LINES, origin=st.none() | LINES)
def test_no_host_or_origin_gets_another_page_in(client: FlaskClient, host: str, origin: str | None) -> None:
    headers = {"HTTP_HOST": f"{host}x", **({"HTTP_ORIGIN": origin} if origin is not None else {})}
    answer = client.get(SOMEBODY, environ_overrides=headers)
    assert answer.status_code in (400, 401, 403)


def test_a_damaged_document_of_keys_lets_nobody_in_and_says_what_to_do(client: FlaskClient, keys: Keys) -> None:
    headers = bearer(keys.create(name="x", role=ADMIN).text)
    Storage(client.application.config["FACEAPP"]).put_gallery(OBJECT, b"{}")
    document = problem(client.get(SOMEBODY, headers=headers), 503, "keys_unreadable")
    assert "create the keys anew" in document["detail"]
    # Who needs none is still served, and so is the machine's own key.
    problem(client.post("/"), 400, "empty_body")
    problem(client.get(SOMEBODY, headers=bearer(KEY)), 404, "person_not_found")


def test_the_starts_own_key_may_everything_and_has_no_rate(stack: Settings) -> None:
    """S3: what `faceapp up` hands to the page and the commands."""
    client = client_of(replace(stack, web_auth="always", web_rate_per_minute=1), key="")
    for operation, path in operations(client).items():
        answer = client.open(path, method=operation.partition(" ")[0], environ_base=STRANGER, headers=bearer(KEY))
        assert answer.status_code not in (401, 403, 429) or operation == "GET /metrics"
    for wrong in (KEY[:-1], f"{KEY}A", KEY.swapcase(), new_text()):
        problem(client.get(SOMEBODY, headers=bearer(wrong)), 401, "key_invalid")


def test_without_s3_keys_that_were_read_are_good_and_others_are_503(stack: Settings, keys: Keys) -> None:
    headers = bearer(keys.create(name="x", role=RECOGNISE).text)
    dead = Storage(stack, client=boto3.client("s3", endpoint_url="http://127.0.0.1:9"))
    knows, knows_not = client_of(stack, key=""), client_of(stack, key="")
    assert knows.get("/v1/scaler", headers=headers).status_code == 200
    of(knows).keyring._storage, of(knows).keyring._fresh_until_s = dead, 0.0
    of(knows_not).keyring = Keyring(dead)
    assert knows.get("/v1/scaler", headers=headers).status_code == 200
    answer = knows_not.get("/v1/scaler", headers=headers)
    problem(answer, 503, "storage_unavailable")
    assert "Retry-After" in answer.headers
    problem(knows_not.get("/v1/scaler", environ_base=STRANGER), 401, "key_missing")


# Other sites' pages.


CROSS_SITE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9000"},
    {"Origin": "http://["},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
@pytest.mark.parametrize("operation", ["POST /", "POST /v1/recognitions", "GET /v1/people", "DELETE /v1/people/x"])
def test_another_sites_page_is_refused(client: FlaskClient, operation: str, headers: dict[str, str]) -> None:
    method, path = operation.split(" ")
    answer = client.open(path, method=method, headers=headers, data={"inputFile": File(plain())})
    problem(answer, 403, "cross_site")


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_what_is_open_to_the_courses_clients_is_not_open_to_pages(stack: Settings, headers: dict[str, str]) -> None:
    client = client_of(replace(stack, web_auth="classic"), key="")
    problem(client.post("/", environ_base=STRANGER, headers=headers), 401, "key_missing")
    problem(client.post("/", headers=headers), 403, "cross_site")


def test_its_own_page_and_programs_are_not_refused(client: FlaskClient, keys: Keys) -> None:
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    for headers in ({}, own, {"Sec-Fetch-Site": "none"}):
        problem(client.post("/", headers=headers), 400, "empty_body")
    # No other page has a key, so whoever sends one may come from anywhere.
    key = bearer(keys.create(name="x", role=ADMIN).text)
    problem(client.post("/", headers={**CROSS_SITE[0], **key}), 400, "empty_body")


def test_a_preflight_is_told_nothing(client: FlaskClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    answer = client.options("/v1/people/x", headers=headers)
    problem(answer, 403, "cross_site")
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control-")]


# Rates.


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly() -> None:
    rates = Rates(60)
    assert [rates.wait_s("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.wait_s("a", 0.0) == 1.0
    assert rates.wait_s("b", 0.0) == 0.0
    assert rates.wait_s("a", 0.5) == 0.5
    assert rates.wait_s("a", 1.0) == 0.0
    assert rates.wait_s("a", 1.0) > 0
    assert sum(rates.wait_s("a", 10_000.0) == 0 for _ in range(100)) == 60


@pytest.mark.parametrize("per_minute", [0.1, 1, 600])
def test_rates_forget_keys_that_are_not_used(per_minute: float) -> None:
    """C11: each key that was ever used was kept for ever. What is forgotten would be full again."""
    rates, now_s, full_s = Rates(per_minute), 0.0, 60 * max(1.0, per_minute) / per_minute
    for n in range(100):
        assert rates.wait_s(str(n), now_s) == 0.0
        now_s += full_s / 10
    assert len(rates._buckets) <= 12
    tokens = round(max(1.0, per_minute)) - 1
    assert [rates.wait_s("99", now_s - full_s / 10) for _ in range(tokens)] == [0.0] * tokens
    assert rates.wait_s("99", now_s - full_s / 10) > 0


def test_no_limit_and_a_thousand_at_once() -> None:
    settings = Settings()
    for rates in (Rates(0), Rates(settings.web_rate_per_minute)):
        assert {rates.wait_s("a", 5.0) for _ in range(1000)} == {0.0}


def test_a_key_that_is_used_too_often_is_told_when_to_come_back(stack: Settings, keys: Keys) -> None:
    client = client_of(replace(stack, web_rate_per_minute=6, web_processes=2), key="")
    used, other = (bearer(keys.create(name=name, role=RECOGNISE).text) for name in "ab")
    codes = [client.get("/v1/scaler", headers=used).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    answer = client.get("/v1/scaler", headers=used)
    problem(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert client.get("/v1/scaler", headers=other).status_code == 200
    # What needs no key has no rate.
    assert {client.post("/").status_code for _ in range(10)} == {400}


# The real server.


@pytest.fixture
def server(aws_endpoint: str, stack: Settings, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web tier of two processes that asks everybody for a key, and its log."""
    log = tmp_path / "log"
    env = {
        "FACEAPP_WEB_AUTH": "always",
        "FACEAPP_WEB_PROCESSES": "2",
        "FACEAPP_LOG_LEVEL": "DEBUG",
        "FACEAPP_LOG_FORMAT": "json",
    }
    with web_server(aws_endpoint, stack, log, **env) as (url, _):
        yield url, log


def upload(url: str, key: str, data: bytes) -> tuple[int, dict[str, Any]]:
    """Send the whole photo, and only then look for an answer, as most clients do."""
    body = form({"photo": File(data)})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    try:
        connection.request("POST", "/v1/recognitions", body, {**FORM, **bearer(key)})
        answer = connection.getresponse()
        return answer.status, json.load(io.TextIOWrapper(answer))
    finally:
        connection.close()


def test_every_process_knows_the_keys_and_the_log_does_not(
    server: tuple[str, Path], keys: Keys, stack: Settings, tmp_path: Path
) -> None:
    url, log = server
    minted = keys.create(name="somebody's", role=RECOGNISE)
    photo = tmp_path / "a.jpg"
    photo.write_bytes(plain())
    wrong = minted.text[:-5] + "AAAAA"
    for text, error in (("", Unauthorized), (wrong, KeyInvalid)):
        with pytest.raises(error):
            ServiceClient(url, key=text).recognise(photo)
    for text in ("", wrong):
        status, document = upload(url, text, plain() + bytes(12 * 2**20))
        assert (status, document["code"]) == (401, "key_invalid")
    for _ in range(20):
        status, document = upload(url, minted.text, plain())
        assert (status, document["recognitions"][0]["status"]) == (202, "pending")
    assert messages(stack) == 20
    with pytest.raises(RoleMissing, match="needs 'admin'"):
        ServiceClient(url, key=minted.text).forget("x")
    rotated = keys.rotate(minted.key.id, grace_hours=1)
    http = urllib3.PoolManager(retries=False)

    def statuses(text: str) -> set[int]:
        return {http.request("GET", f"{url}/v1/scaler", headers=bearer(text)).status for _ in range(8)}

    wait_until(lambda: statuses(rotated.text) == {200}, what="the new secret in every process")
    assert statuses(minted.text) == {200}
    keys.revoke(minted.key.id)
    wait_until(lambda: statuses(rotated.text) == {401}, what="the end of the key in every process")
    assert statuses(minted.text) == {401}
    lines = log.read_text()
    for text in (minted.text, rotated.text, wrong):
        assert text.rpartition(f"{minted.key.id}_")[2] not in lines
        assert text not in lines
    assert minted.key.sha256 not in lines
    told = [json.loads(line) for line in lines.splitlines() if '"route"' in line]
    assert minted.key.id in {each.get("key") for each in told if each["status"] == 202}


def test_the_courses_clients_need_none_where_that_is_said(aws_endpoint: str, stack: Settings, tmp_path: Path) -> None:
    with web_server(aws_endpoint, stack, tmp_path / "log", FACEAPP_WEB_AUTH="classic", FACEAPP_WEB_WAIT_S="0.1") as (
        url,
        _,
    ):
        http = urllib3.PoolManager(retries=False)
        through = {"X-Forwarded-For": "203.0.113.7"}
        fields = {"inputFile": ("a.jpg", plain(), "image/jpeg")}
        answer = http.request("POST", url, fields=fields, headers=through)
        # Taken, with no worker here to answer.
        assert (answer.status, answer.json()["code"]) == (504, "recognition_timeout")
        later = http.request("GET", url + answer.json()["links"]["self"], headers=through)
        assert (later.status, later.json()["code"]) == (401, "key_missing")
