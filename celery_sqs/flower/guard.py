"""Who may use a Flower that asks for no password: who is on this machine and has its start's credential.

Flower's buttons stop workers and its pages show names. A page that the user happens to have open must not be able to
press them, nor whoever comes through a proxy or a tunnel on this machine.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any
from urllib.parse import urlencode

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform, RequestHandler

from celery_sqs.door import Reason, is_loopback_address, reason_against
from celery_sqs.errors import ConfigurationError
from celery_sqs.flower.options import FlowerOptions

OPEN = ("/metrics", "/healthcheck")
"""What needs no key, from this machine."""
NOT_FROM_HERE = "This Flower asks for no password, so it answers this machine only."
KEY_MISSING = (
    "This Flower needs its key: open the address with ?key=... that {printer} printed. "
    "Programs send it as 'Authorization: Bearer <key>'."
)


def is_protected(options: Any) -> bool:
    """Whether Flower asks who somebody is."""
    return bool(options.basic_auth or options.auth)


def check_address(options: Any, own: FlowerOptions) -> None:
    """Raises ConfigurationError when others could reach a Flower that asks nobody for a password, or nobody could."""
    if any(not all(each.partition(":")) for each in options.basic_auth or []):
        raise ConfigurationError(f"{own.password_setting} is no USER:PASSWORD: nobody could log in.")
    if is_protected(options) or options.unix_socket or is_loopback_address(options.address):
        return
    where = options.address or "every address of this machine"
    raise ConfigurationError(
        f"Flower on {where} would let anybody stop the workers: set {own.password_setting}=USER:PASSWORD or --auth, or "
        "let it listen on 127.0.0.1."
    )


class Guard:
    """The door of a Flower that asks for no password: this machine's (celery_sqs.door), for who knows its `key`.

    A browser brings the key once, in the link that was printed at the start, and gets a cookie for it, good for this
    Flower alone. A program sends `Authorization: Bearer <key>`. Numbers (OPEN) need no key.
    """

    def __init__(self, key: str, options: Any, own: FlowerOptions) -> None:
        self._key, self._prefix = key, f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self._has_peer = not options.unix_socket
        # Browsers send a cookie to every port of a host.
        self._cookie = f"{own.cookie}-{options.port}"
        self._key_missing = KEY_MISSING.format(printer=own.printer)
        self._pass = hmac.digest(key.encode(), b"Flower's cookie", hashlib.sha256).hex()

    def instead(self, request: HTTPServerRequest) -> tuple[type[RequestHandler], dict[str, Any]] | None:
        """The handler and its arguments, for a request that may not pass or brings the key; None to let it pass."""
        # The file of a Unix socket is its owner's.
        peer = request.remote_ip if self._has_peer else "127.0.0.1"
        reason = reason_against(peer=peer, version=request.version, headers=request.headers.get_all())
        if reason and not (reason is Reason.PAGE and _is_link(request)):
            return Refuse, {"status": 403, "sentence": f"{NOT_FROM_HERE} {reason.value}"}
        given = request.query_arguments.get("key", [b""])[0].decode(errors="replace")
        if request.method == "GET" and _same(given, self._key):
            return Enter, {"cookie": self._cookie, "value": self._pass}
        if request.path.removeprefix(self._prefix) in OPEN or self._knows(request):
            return None
        return Refuse, {"status": 401, "sentence": self._key_missing}

    def _knows(self, request: HTTPServerRequest) -> bool:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _same(text.strip(), self._key)
        cookie = request.cookies.get(self._cookie)
        return cookie is not None and _same(cookie.value, self._pass)


def _same(text: str, secret: str) -> bool:
    return hmac.compare_digest(text.encode(errors="replace"), secret.encode())


def _is_link(request: HTTPServerRequest) -> bool:
    """Whether the user followed a link here: the page opens, and the one with the link learns nothing of it."""
    headers = request.headers
    navigates = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return request.method == "GET" and navigates and "Origin" not in headers


class Enter(RequestHandler):
    """Takes the key out of the address: a cookie, and the same address without."""

    def initialize(self, cookie: str, value: str) -> None:
        self._cookie, self._value = cookie, value

    def get(self, *_: Any) -> None:
        self.set_cookie(self._cookie, self._value, httponly=True, samesite="Strict", path="/")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        # Not what the request's path was: `//other.example` would lead elsewhere.
        rest = [(name, value) for name, values in self.request.query_arguments.items() for value in values]
        query = urlencode([each for each in rest if each[0] != "key"])
        path = f"/{self.request.path.lstrip('/')}"
        self.redirect(f"{path}?{query}" if query else path, status=303)


class Refuse(RequestHandler):
    """Answers a request that may not pass."""

    def initialize(self, status: int, sentence: str) -> None:
        self._status, self._sentence = status, sentence

    def check_xsrf_cookie(self) -> None:
        """Nothing happens here."""

    def prepare(self) -> None:
        self.set_status(self._status)
        if self._status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="flower"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._sentence}\n")


class OwnPagesOnly(OutputTransform):
    """Takes out what would let other pages read the answers or put ours into a frame."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        # Flower allows every origin as soon as its API works without a password.
        for name in [each for each in headers if each.lower().startswith("access-control-")]:
            del headers[name]
        headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        return status_code, headers, chunk
