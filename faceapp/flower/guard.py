"""Who may use a Flower that asks for no password: programs and browsers of this machine, no page from elsewhere.

Flower's buttons stop workers. On the loopback they work without a password, so a page that the user happens to have
open must not be able to press them: neither by sending requests to this port, nor by giving its own name our address.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform, RequestHandler

from faceapp.errors import ConfigError
from faceapp.origins import is_cross_site, names_loopback


def is_protected(options: Any) -> bool:
    """Whether Flower asks who somebody is."""
    return bool(options.basic_auth or options.auth)


def check_address(options: Any) -> None:
    """Raises ConfigError when others could reach a Flower that asks nobody for a password."""
    if is_protected(options) or options.unix_socket or is_loopback(options.address):
        return
    where = options.address or "every address of this machine"
    raise ConfigError(
        f"Flower on {where} would let anybody stop the workers: set --basic-auth=USER:PASSWORD or --auth, "
        "or let it listen on 127.0.0.1."
    )


def is_loopback(address: str) -> bool:
    """Whether listening on `address` (a name or a number) is listening to this machine alone."""
    try:
        found = socket.getaddrinfo(address or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def refusal(request: HTTPServerRequest) -> str:
    """Why a request comes from elsewhere, as a sentence; nothing when it does not."""
    if not names_loopback(request.host):
        return "This Flower asks for no password, so it answers to 127.0.0.1 and localhost only."
    if _is_link(request):
        return ""
    headers = request.headers
    if is_cross_site(host=request.host, origin=headers.get("Origin"), fetch_site=headers.get("Sec-Fetch-Site")):
        return "This Flower asks for no password, so other pages may not use it."
    return ""


def _is_link(request: HTTPServerRequest) -> bool:
    """Whether the user followed a link here: the page opens, and the one with the link learns nothing of it."""
    headers = request.headers
    navigates = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return request.method == "GET" and navigates and "Origin" not in headers


class Refuse(RequestHandler):
    """Answers a request from elsewhere."""

    def initialize(self, sentence: str) -> None:
        self._sentence = sentence

    def check_xsrf_cookie(self) -> None:
        """Nothing happens here."""

    def prepare(self) -> None:
        self.set_status(403)
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
