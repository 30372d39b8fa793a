"""One rule for every port: is a request from a program or an own page of this machine?

A browser on this machine is a peer on the loopback, too. Another site's page can make it send requests here
(cross-site request forgery), and can give its own name our address (DNS rebinding). A proxy or a tunnel on this machine
is a peer on the loopback as well, whoever is behind it. `reason_against` looks for all of that.

It cannot see everything: a tunnel that adds no header looks like curl. So this rule alone opens only what does no harm
(the classic line, numbers); the rest needs a credential besides (see docs/security.md).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from email import errors
from email.message import Message
from enum import Enum
from functools import lru_cache
from urllib.parse import urlsplit


class Reason(Enum):
    """Why a request is not from here; the value is a sentence for whoever sent it."""

    PEER = "It comes from another machine."
    HOST = "It names another host: only 127.0.0.1, [::1] and localhost are this machine's names here."
    PROXY = "It comes through a proxy or a tunnel."
    PAGE = "Another site's page is behind it."


LOOPBACK = re.compile(r"(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
"""A `Host` header that names the loopback, as clients write it: no user, no path, no other spelling of the address."""

PROXIES = re.compile(
    r"""
    forwarded(-.*)? | via | max-forwards | proxy(-.*)? | client-ip | front-end-https | ssl-client-.*
    | x-(forward(ed)?|real|client|original|originating|proxy\w*|cluster|remote|envoy|scheme|host|ip|url-scheme|ssl
        |nginx|varnish|traefik|haproxy|caddy|squid|auth-request|authentik|pomerium|goog|iap|appengine|google|azure
        |arr|waws|ms|akamai|edge|cdn|fastly|sucuri|nf|vercel|bluecoat|replit|zrok|tunnel|coming-from|cloud-trace)(-.*)?
    | x-amz-cf-.* | x-amzn-(trace-id|oidc-.*|mtls-.*|tls-.*) | true-client-.* | remote-.* | tailscale-.* | ngrok-.*
    | cf-.* | cdn-.* | fly-.* | fastly-.* | akamai-.* | incap-.* | sozu-.* | rndr-.* | disguised-host
    | was-default-hostname | pangolin-.*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Headers that proxies, load balancers, CDNs and tunnels add, by family."""


NO_HEADERS = (
    errors.MissingHeaderBodySeparatorDefect,
    errors.FirstHeaderLineIsContinuationDefect,
    errors.InvalidHeaderDefect,
    errors.MisplacedEnvelopeHeaderDefect,
)
"""What the standard library says of a head with lines that are none."""


def hides_headers(head: Message[str, str]) -> bool:
    """Whether a head that `http.client` parsed has odd lines: it passes over whatever follows the first of them.

    Lines that are folded are odd, too, and values with NUL in them.
    """
    if head.get_unixfrom() or any(isinstance(each, NO_HEADERS) for each in head.defects):
        return True
    return any(control in value for value in head.values() for control in "\0\r\n")


def reason_against(
    *,
    peer: str | None,
    version: str,
    headers: Iterable[tuple[str, str]],
    pages: bool = True,
    network: bool = False,
) -> Reason | None:
    """Why a request is not from a program or an own page of this machine; None when nothing says so.

    `peer` is the connection's other end (an IP address), `version` the protocol's (`HTTP/1.1`), `headers` all headers,
    with those that came twice. `pages` False is for what no page of ours asks for: a browser may only open
    an address that its user typed. `network` takes peers of private networks, too, by whatever name they call us.
    """
    address, found = address_of(peer), [(name.lower(), value) for name, value in headers]
    hosts = [value for name, value in found if name == "host"]
    if address is None or not (address.is_loopback or (network and address.is_private)):
        return Reason.PEER
    if len(hosts) != 1 or (address.is_loopback and not names_loopback(hosts[0])):
        return Reason.HOST
    # nginx speaks HTTP/1.0 to what is behind it unless it is told otherwise. Clients that do have no use for Host.
    if version == "HTTP/1.0" or came_by_proxy(name for name, _ in found):
        return Reason.PROXY
    if is_other_page(found, host=hosts[0], pages=pages):
        return Reason.PAGE
    return None


def is_other_page(headers: Iterable[tuple[str, str]], *, host: str, pages: bool = True) -> bool:
    """Whether a browser says that another site's page is behind the request. `pages` as in `reason_against`."""
    sites = ("same-origin", "none") if pages else ("none",)
    for name, value in headers:
        if name.lower() == "sec-fetch-site" and value not in sites:
            return True
        if name.lower() == "origin" and not (pages and _host_of(value) == host.lower()):
            return True
    return False


def address_of(peer: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A peer's IP address; None if it is none (a Unix socket's)."""
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def came_by_proxy(header_names: Iterable[str]) -> bool:
    """Whether a request has a header of a proxy's: then its peer is the proxy, whoever sent it."""
    return any(map(_is_proxys, header_names))


@lru_cache(maxsize=1024)
def _is_proxys(header_name: str) -> bool:
    return PROXIES.fullmatch(header_name) is not None


def names_loopback(host: str) -> bool:
    """Whether a `Host` header (`name:port`) is one of the loopback's own names, and nothing else."""
    found = LOOPBACK.fullmatch(host)
    if found is None:
        return False
    name = found[1]
    return not name.startswith("127.") or all(int(part) < 256 for part in name.split("."))


def is_loopback_address(address: str) -> bool:
    """Whether listening on `address` (a name or a number) is listening to this machine alone."""
    try:
        found = socket.getaddrinfo(address or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def is_loopback_url(url: str) -> bool:
    """Whether a URL's host is one of the loopback's own names."""
    try:
        return names_loopback(urlsplit(url).netloc)
    except ValueError:
        return False


def no_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which no proxy is asked for this machine, nor for what `environ` excepts in either of them."""
    named = [each.strip() for name in ("no_proxy", "NO_PROXY") for each in environ.get(name, "").split(",")]
    # An asterisk means every host only where it stands alone.
    hosts = "*" if "*" in named else ",".join(dict.fromkeys(filter(None, [*named, "127.0.0.1", "localhost"])))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _host_of(origin: str) -> str:
    """The host and port of an `Origin`; empty for one that is opaque or none."""
    found = re.fullmatch(r"https?://([^/?#@\s]+)", origin.lower())
    return found[1] if found else ""
